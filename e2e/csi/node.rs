//! Node: the cells of its error tables, and the table of repeated publishes.

use std::fs;

use tonic::Code;

use super::*;

pub(super) fn stage(scene: &Scene, id: &str, capability: csi::VolumeCapability) -> csi::NodeStageVolumeRequest {
    let staging = scene.path("staging");
    fs::create_dir_all(&staging).expect("a directory");
    csi::NodeStageVolumeRequest {
        volume_id: id.into(),
        staging_target_path: staging.display().to_string(),
        volume_capability: Some(capability),
        ..Default::default()
    }
}

fn publish(scene: &Scene, id: &str, target: &str, capability: csi::VolumeCapability) -> csi::NodePublishVolumeRequest {
    csi::NodePublishVolumeRequest {
        volume_id: id.into(),
        staging_target_path: scene.path("staging").display().to_string(),
        target_path: scene.path(target).display().to_string(),
        volume_capability: Some(capability),
        ..Default::default()
    }
}

#[tokio::test]
async fn missing_fields_are_invalid_arguments_before_anything_is_looked_up() {
    let scene = Scene::start().await;
    let capability = mount(Mode::SingleNodeWriter);
    let whole = stage(&scene, UNKNOWN_ID, capability.clone());
    for request in [
        csi::NodeStageVolumeRequest { volume_id: String::new(), ..whole.clone() },
        csi::NodeStageVolumeRequest { staging_target_path: String::new(), ..whole.clone() },
        csi::NodeStageVolumeRequest { volume_capability: None, ..whole.clone() },
    ] {
        scene.refused(scene.node().node_stage_volume(request), Code::InvalidArgument).await;
    }
    let whole = publish(&scene, UNKNOWN_ID, "target", capability);
    for request in [
        csi::NodePublishVolumeRequest { volume_id: String::new(), ..whole.clone() },
        csi::NodePublishVolumeRequest { target_path: String::new(), ..whole.clone() },
        csi::NodePublishVolumeRequest { volume_capability: None, ..whole.clone() },
    ] {
        scene.refused(scene.node().node_publish_volume(request), Code::InvalidArgument).await;
    }
    let mut node = scene.node();
    let unstage = csi::NodeUnstageVolumeRequest { volume_id: UNKNOWN_ID.into(), ..Default::default() };
    scene.refused(node.node_unstage_volume(unstage), Code::InvalidArgument).await;
    let unpublish = csi::NodeUnpublishVolumeRequest { volume_id: UNKNOWN_ID.into(), ..Default::default() };
    scene.refused(node.node_unpublish_volume(unpublish), Code::InvalidArgument).await;
    let stats = csi::NodeGetVolumeStatsRequest { volume_id: UNKNOWN_ID.into(), ..Default::default() };
    scene.refused(node.node_get_volume_stats(stats), Code::InvalidArgument).await;
    scene.refused(node.node_get_volume_health(csi::NodeGetVolumeHealthRequest::default()), Code::InvalidArgument).await;
}

#[tokio::test]
async fn unknown_volumes_are_not_found_and_have_nothing_to_undo() {
    let scene = Scene::start().await;
    let capability = mount(Mode::SingleNodeWriter);
    for id in [UNKNOWN_ID, "fake-vol-id", "../x", &"x".repeat(500)] {
        let request = stage(&scene, id, capability.clone());
        scene.refused(scene.node().node_stage_volume(request), Code::NotFound).await;
        let request = publish(&scene, id, "target", capability.clone());
        scene.refused(scene.node().node_publish_volume(request), Code::NotFound).await;
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: id.into(),
            volume_path: "some/path".into(),
            ..Default::default()
        };
        scene.refused(scene.node().node_get_volume_stats(request), Code::NotFound).await;
        let staging_target_path = scene.path("staging").display().to_string();
        let request = csi::NodeUnstageVolumeRequest { volume_id: id.into(), staging_target_path };
        scene.node().node_unstage_volume(request).await.expect("nothing to undo");
        let target_path = scene.path("target").display().to_string();
        let request = csi::NodeUnpublishVolumeRequest { volume_id: id.into(), target_path };
        scene.node().node_unpublish_volume(request).await.expect("nothing to undo");
    }
}

#[tokio::test]
async fn a_stage_that_exceeds_the_volume_or_has_no_directory_is_a_failed_precondition() {
    let scene = Scene::start().await;
    let id = scene.volume("a", mount(Mode::SingleNodeWriter)).await;
    for capability in [block(Mode::SingleNodeWriter), mount(Mode::MultiNodeMultiWriter)] {
        let request = stage(&scene, &id, capability);
        scene.refused(scene.node().node_stage_volume(request), Code::FailedPrecondition).await;
    }
    let whole = stage(&scene, &id, mount(Mode::SingleNodeWriter));
    let staging_target_path = scene.path("absent").display().to_string();
    let request = csi::NodeStageVolumeRequest { staging_target_path, ..whole.clone() };
    scene.refused(scene.node().node_stage_volume(request), Code::FailedPrecondition).await;
    std::os::unix::fs::symlink(scene.path("staging"), scene.path("link")).expect("a link");
    let staging_target_path = scene.path("link").display().to_string();
    let request = csi::NodeStageVolumeRequest { staging_target_path, ..whole.clone() };
    scene.refused(scene.node().node_stage_volume(request), Code::FailedPrecondition).await;
    let request = csi::NodeStageVolumeRequest { staging_target_path: "some/path".into(), ..whole };
    scene.refused(scene.node().node_stage_volume(request), Code::InvalidArgument).await;
}

#[tokio::test]
async fn a_publish_without_its_stage_is_a_failed_precondition() {
    let scene = Scene::start().await;
    let id = scene.volume("a", mount(Mode::SingleNodeWriter)).await;
    let whole = publish(&scene, &id, "target", mount(Mode::SingleNodeWriter));
    scene.refused(scene.node().node_publish_volume(whole.clone()), Code::FailedPrecondition).await;
    let request = csi::NodePublishVolumeRequest { staging_target_path: String::new(), ..whole };
    scene.refused(scene.node().node_publish_volume(request), Code::FailedPrecondition).await;
}

#[tokio::test]
async fn a_volume_lives_from_stage_to_unstage_and_repeats_are_fine() {
    let scene = Scene::start().await;
    let capability = mount(Mode::SingleNodeMultiWriter);
    let id = scene.volume("a", capability.clone()).await;
    let mut node = scene.node();
    for _ in 0..3 {
        node.node_stage_volume(stage(&scene, &id, capability.clone())).await.expect("staged");
    }
    for _ in 0..3 {
        node.node_publish_volume(publish(&scene, &id, "target", capability.clone())).await.expect("published");
    }
    let volume_path = scene.path("target").display().to_string();
    let stats = csi::NodeGetVolumeStatsRequest { volume_id: id.clone(), volume_path, ..Default::default() };
    assert!(!node.node_get_volume_stats(stats.clone()).await.expect("stats").into_inner().usage.is_empty());
    let elsewhere = csi::NodeGetVolumeStatsRequest { volume_path: "some/path".into(), ..stats };
    scene.refused(node.node_get_volume_stats(elsewhere), Code::NotFound).await;
    for _ in 0..2 {
        let target_path = scene.path("target").display().to_string();
        let request = csi::NodeUnpublishVolumeRequest { volume_id: id.clone(), target_path };
        node.node_unpublish_volume(request).await.expect("unpublished");
        assert!(!scene.path("target").exists());
    }
    for _ in 0..2 {
        let staging_target_path = scene.path("staging").display().to_string();
        let request = csi::NodeUnstageVolumeRequest { volume_id: id.clone(), staging_target_path };
        node.node_unstage_volume(request).await.expect("unstaged");
    }
    scene
        .controller()
        .delete_volume(csi::DeleteVolumeRequest { volume_id: id, ..Default::default() })
        .await
        .expect("deleted");
}

#[tokio::test]
async fn repeated_publishes_follow_the_table_of_the_specification() {
    for (mode, other_target) in [
        (Mode::SingleNodeMultiWriter, Code::Ok),
        (Mode::SingleNodeSingleWriter, Code::FailedPrecondition),
        (Mode::SingleNodeWriter, Code::FailedPrecondition),
        (Mode::SingleNodeReaderOnly, Code::FailedPrecondition),
    ] {
        let scene = Scene::start().await;
        let id = scene.volume("a", mount(mode)).await;
        let mut node = scene.node();
        node.node_stage_volume(stage(&scene, &id, mount(mode))).await.expect("staged");
        let first = publish(&scene, &id, "one", mount(mode));
        node.node_publish_volume(first.clone()).await.expect("published");
        node.node_publish_volume(first.clone()).await.expect("the same again");
        if mode != Mode::SingleNodeReaderOnly {
            let other = csi::NodePublishVolumeRequest { readonly: true, ..first };
            scene.refused(node.node_publish_volume(other), Code::AlreadyExists).await;
        }
        let second = node.node_publish_volume(publish(&scene, &id, "two", mount(mode))).await;
        assert_eq!(second.map_or_else(|status| status.code(), |_| Code::Ok), other_target, "{mode:?}");
    }
}

#[tokio::test]
async fn what_the_kbs_refuses_has_its_own_code_and_word_and_the_next_stage_succeeds() {
    for (reason, code) in [
        (Reason::KbsUnreachable, Code::Unavailable),
        (Reason::KbsTimeout, Code::Unavailable),
        (Reason::KbsProtocol, Code::Unavailable),
        (Reason::KbsUntrusted, Code::Unavailable),
        (Reason::KbsBusy, Code::Aborted),
        (Reason::AttesterUnavailable, Code::Unavailable),
        (Reason::AttestationDenied, Code::Unauthenticated),
        (Reason::PolicyDenied, Code::PermissionDenied),
        (Reason::KeyNotFound, Code::FailedPrecondition),
        (Reason::KeyTooShort, Code::FailedPrecondition),
    ] {
        let scene = Scene::start().await;
        let id = scene.volume("denied", mount(Mode::SingleNodeMultiWriter)).await;
        let request = stage(&scene, &id, mount(Mode::SingleNodeMultiWriter));
        scene.kbs.answers(Err(reason));
        let status = scene.refused(scene.node().node_stage_volume(request.clone()), code).await;
        assert!(status.message().starts_with(&format!("{reason}: ")), "{status:?}");
        scene.kbs.answers(Ok(7));
        scene.node().node_stage_volume(request).await.expect("once the KBS agrees");
    }
}

#[tokio::test]
async fn a_record_whose_name_was_changed_is_data_loss_and_not_another_volume() {
    let scene = Scene::start().await;
    let id = scene.volume("renamed", mount(Mode::SingleNodeWriter)).await;
    let request = stage(&scene, &id, mount(Mode::SingleNodeWriter));
    scene.node().node_stage_volume(request.clone()).await.expect("staged");
    let staging_target_path = request.staging_target_path.clone();
    let unstage = csi::NodeUnstageVolumeRequest { volume_id: id.clone(), staging_target_path };
    scene.node().node_unstage_volume(unstage).await.expect("unstaged");
    let record = scene.path("pool").join(&id).join("volume.json");
    let text = fs::read_to_string(&record).expect("a record");
    fs::write(&record, text.replace("\"renamed\"", "\"other\"")).expect("changed");
    let status = scene.refused(scene.node().node_stage_volume(request), Code::DataLoss).await;
    assert!(status.message().starts_with("RecordTampered:"), "{status:?}");
    let list = scene.controller().list_volumes(csi::ListVolumesRequest::default()).await.expect("listed").into_inner();
    let listed: Vec<_> =
        list.entries.into_iter().flat_map(|entry| entry.volume).map(|volume| volume.volume_id).collect();
    assert_eq!(listed, [id]);
}

#[tokio::test]
async fn a_call_for_a_volume_that_is_being_worked_on_is_aborted() {
    let scene = Scene::start().await;
    let id = scene.volume("busy", mount(Mode::SingleNodeMultiWriter)).await;
    let request = stage(&scene, &id, mount(Mode::SingleNodeMultiWriter));
    let closed = scene.kbs.hold().await;
    let first = tokio::spawn({
        let (mut node, request) = (scene.node(), request.clone());
        async move { node.node_stage_volume(request).await }
    });
    scene.kbs.asked().await;
    let status = scene.refused(scene.node().node_stage_volume(request.clone()), Code::Aborted).await;
    assert!(status.message().starts_with("OperationPending: "), "{status:?}");
    let unstage = csi::NodeUnstageVolumeRequest {
        volume_id: id.clone(),
        staging_target_path: request.staging_target_path.clone(),
    };
    scene.refused(scene.node().node_unstage_volume(unstage), Code::Aborted).await;
    drop(closed);
    first.await.expect("no panic").expect("the first call succeeds");
    scene.node().node_stage_volume(request).await.expect("done already");
}
