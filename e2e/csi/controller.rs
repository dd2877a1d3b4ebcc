//! Identity and Controller: the cells of their error tables.

use std::fs;

use tonic::Code;

use super::*;

#[tokio::test]
async fn the_plugin_names_itself_and_is_ready() {
    let scene = Scene::start().await;
    let info = scene.identity().get_plugin_info(csi::GetPluginInfoRequest {}).await.expect("answered").into_inner();
    assert_eq!(info.name, "csi.coffer.dev");
    assert_eq!(scene.identity().probe(csi::ProbeRequest {}).await.expect("answered").into_inner().ready, Some(true));
}

#[tokio::test]
async fn create_is_idempotent_and_answers_exactly_the_payload() {
    let scene = Scene::start().await;
    let first = scene.controller().create_volume(create("a")).await.expect("created").into_inner();
    let second = scene.controller().create_volume(create("a")).await.expect("found").into_inner();
    assert_eq!(first, second);
    let volume = first.volume.expect("a volume");
    assert_eq!(volume.capacity_bytes, 16 * MIB);
    assert_eq!(volume.accessible_topology[0].segments["topology.coffer.dev/node"], "node1");
}

#[tokio::test]
async fn create_refuses_every_wrong_field_as_invalid_argument() {
    let scene = Scene::start().await;
    let text = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
    let range = |required_bytes, limit_bytes| Some(csi::CapacityRange { required_bytes, limit_bytes });
    let source = csi::volume_content_source::VolumeSource { volume_id: UNKNOWN_ID.into() };
    let source = csi::VolumeContentSource { r#type: Some(csi::volume_content_source::Type::Volume(source)) };
    for request in [
        csi::CreateVolumeRequest { name: String::new(), ..create("a") },
        csi::CreateVolumeRequest { name: "a".repeat(129), ..create("a") },
        csi::CreateVolumeRequest { name: "a\0".into(), ..create("a") },
        csi::CreateVolumeRequest { volume_capabilities: vec![], ..create("a") },
        csi::CreateVolumeRequest { volume_capabilities: vec![csi::VolumeCapability::default()], ..create("a") },
        csi::CreateVolumeRequest { volume_capabilities: vec![mount(Mode::MultiNodeMultiWriter)], ..create("a") },
        csi::CreateVolumeRequest { capacity_range: range(-1, 0), ..create("a") },
        csi::CreateVolumeRequest { capacity_range: range(32 * MIB, 16 * MIB), ..create("a") },
        csi::CreateVolumeRequest { parameters: HashMap::new(), ..create("a") },
        csi::CreateVolumeRequest { parameters: text("keyUri", "https://x"), ..create("a") },
        csi::CreateVolumeRequest { parameters: text("keyURI", "kbs:///a/b/c"), ..create("a") },
        csi::CreateVolumeRequest { mutable_parameters: text("a", "b"), ..create("a") },
        csi::CreateVolumeRequest { volume_content_source: Some(source), ..create("a") },
    ] {
        scene.refused(scene.controller().create_volume(request), Code::InvalidArgument).await;
    }
}

#[tokio::test]
async fn create_refuses_sizes_that_cannot_be_as_out_of_range() {
    let scene = Scene::start().await;
    for (required_bytes, limit_bytes) in [(MIB, 0), (i64::MAX, 0), (16 * MIB + 1, 16 * MIB + 2)] {
        let capacity_range = Some(csi::CapacityRange { required_bytes, limit_bytes });
        let request = csi::CreateVolumeRequest { capacity_range, ..create("a") };
        scene.refused(scene.controller().create_volume(request), Code::OutOfRange).await;
    }
}

#[tokio::test]
async fn create_of_an_existing_name_with_another_size_is_already_exists() {
    let scene = Scene::start().await;
    scene.volume("a", mount(Mode::SingleNodeWriter)).await;
    let capacity_range = Some(csi::CapacityRange { required_bytes: 32 * MIB, limit_bytes: 32 * MIB });
    let request = csi::CreateVolumeRequest { capacity_range, ..create("a") };
    scene.refused(scene.controller().create_volume(request), Code::AlreadyExists).await;
}

#[tokio::test]
async fn create_for_other_nodes_only_is_resource_exhausted() {
    let scene = Scene::start().await;
    let elsewhere = csi::Topology { segments: [("topology.coffer.dev/node".into(), "node2".into())].into() };
    let requirement = csi::TopologyRequirement { requisite: vec![elsewhere], preferred: vec![] };
    let request = csi::CreateVolumeRequest { accessibility_requirements: Some(requirement), ..create("a") };
    scene.refused(scene.controller().create_volume(request), Code::ResourceExhausted).await;
}

#[tokio::test]
async fn create_of_more_than_the_pool_has_is_resource_exhausted() {
    let scene = Scene::start().await;
    let capacity_range = Some(csi::CapacityRange { required_bytes: 1 << 50, limit_bytes: 0 });
    let request = csi::CreateVolumeRequest { capacity_range, ..create("a") };
    scene.refused(scene.controller().create_volume(request), Code::ResourceExhausted).await;
}

#[tokio::test]
async fn delete_takes_any_id_but_none() {
    let scene = Scene::start().await;
    let id = scene.volume("a", mount(Mode::SingleNodeWriter)).await;
    let request = |volume_id: &str| csi::DeleteVolumeRequest { volume_id: volume_id.into(), ..Default::default() };
    scene.refused(scene.controller().delete_volume(request("")), Code::InvalidArgument).await;
    for id in [&id, &id, UNKNOWN_ID, "fake-vol-id", "../../etc", "a/b", &"x".repeat(500)] {
        scene.controller().delete_volume(request(id)).await.expect("deleted");
    }
    assert!(!scene.path("pool").join(&id).exists());
}

#[tokio::test]
async fn an_absent_pool_is_unavailable_and_has_no_capacity() {
    let scene = Scene::start().await;
    fs::remove_dir_all(scene.path("pool")).expect("removed");
    let get = csi::ControllerGetVolumeRequest { volume_id: UNKNOWN_ID.into() };
    scene.refused(scene.controller().controller_get_volume(get), Code::Unavailable).await;
    let delete = csi::DeleteVolumeRequest { volume_id: UNKNOWN_ID.into(), ..Default::default() };
    scene.refused(scene.controller().delete_volume(delete), Code::Unavailable).await;
    let capacity = scene.controller().get_capacity(csi::GetCapacityRequest::default()).await.expect("answered");
    assert_eq!(capacity.into_inner().available_capacity, 0);
}

#[tokio::test]
async fn unknown_ids_are_not_found() {
    let scene = Scene::start().await;
    for id in [UNKNOWN_ID, "fake-vol-id", "../x", &"x".repeat(500)] {
        let get = csi::ControllerGetVolumeRequest { volume_id: id.into() };
        scene.refused(scene.controller().controller_get_volume(get), Code::NotFound).await;
        let health = csi::ControllerGetVolumeHealthRequest { volume_id: id.into(), ..Default::default() };
        scene.refused(scene.controller().controller_get_volume_health(health), Code::NotFound).await;
        let volume_capabilities = vec![mount(Mode::SingleNodeWriter)];
        let validate =
            csi::ValidateVolumeCapabilitiesRequest { volume_id: id.into(), volume_capabilities, ..Default::default() };
        scene.refused(scene.controller().validate_volume_capabilities(validate), Code::NotFound).await;
    }
}

#[tokio::test]
async fn validation_confirms_what_fits_and_explains_what_does_not() {
    let scene = Scene::start().await;
    let volume_id = scene.volume("a", mount(Mode::SingleNodeWriter)).await;
    for (capability, fits) in [
        (mount(Mode::SingleNodeSingleWriter), true),
        (mount(Mode::MultiNodeReaderOnly), false),
        (block(Mode::SingleNodeWriter), false),
    ] {
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id.clone(),
            volume_capabilities: vec![capability],
            ..Default::default()
        };
        let answer = scene.controller().validate_volume_capabilities(request).await.expect("answered").into_inner();
        assert_eq!((answer.confirmed.is_some(), answer.message.is_empty()), (fits, fits), "{answer:?}");
    }
}

#[tokio::test]
async fn listing_pages_and_refuses_tokens_and_counts_that_are_wrong() {
    let scene = Scene::start().await;
    for name in ["a", "b", "c"] {
        scene.volume(name, mount(Mode::SingleNodeWriter)).await;
    }
    let list = |max_entries, token: &str| csi::ListVolumesRequest { max_entries, starting_token: token.into() };
    scene.refused(scene.controller().list_volumes(list(0, "invalid-token")), Code::Aborted).await;
    scene.refused(scene.controller().list_volumes(list(-1, "")), Code::InvalidArgument).await;
    let first = scene.controller().list_volumes(list(2, "")).await.expect("listed").into_inner();
    let rest = scene.controller().list_volumes(list(2, &first.next_token)).await.expect("listed").into_inner();
    assert_eq!((first.entries.len(), rest.entries.len(), rest.next_token.as_str()), (2, 1, ""));
}

#[tokio::test]
async fn capacity_ignores_the_provisioners_keys_and_other_nodes_have_none() {
    let scene = Scene::start().await;
    let parameters = HashMap::from([("csi.storage.k8s.io/fstype".into(), "xfs".into())]);
    let request = csi::GetCapacityRequest { parameters, ..Default::default() };
    let answer = scene.controller().get_capacity(request).await.expect("answered").into_inner();
    assert!(answer.available_capacity > 0);
    let segments = [("topology.coffer.dev/node".into(), "node2".into())].into();
    let request =
        csi::GetCapacityRequest { accessible_topology: Some(csi::Topology { segments }), ..Default::default() };
    let answer = scene.controller().get_capacity(request).await.expect("answered").into_inner();
    assert_eq!(answer.available_capacity, 0);
}

#[tokio::test]
async fn what_is_not_advertised_is_unimplemented() {
    let scene = Scene::start().await;
    let mut controller = scene.controller();
    scene.refused(controller.create_snapshot(csi::CreateSnapshotRequest::default()), Code::Unimplemented).await;
    scene.refused(controller.delete_snapshot(csi::DeleteSnapshotRequest::default()), Code::Unimplemented).await;
    scene.refused(controller.list_snapshots(csi::ListSnapshotsRequest::default()), Code::Unimplemented).await;
    scene.refused(controller.get_snapshot(csi::GetSnapshotRequest::default()), Code::Unimplemented).await;
    let expand = csi::ControllerExpandVolumeRequest::default();
    let refused = scene.refused(controller.controller_expand_volume(expand), Code::Unimplemented).await;
    assert!(refused.message().contains("volumes do not grow"), "{refused:?}");
    let modify = csi::ControllerModifyVolumeRequest::default();
    scene.refused(controller.controller_modify_volume(modify), Code::Unimplemented).await;
    let publish = csi::ControllerPublishVolumeRequest::default();
    scene.refused(controller.controller_publish_volume(publish), Code::Unimplemented).await;
    let unpublish = csi::ControllerUnpublishVolumeRequest::default();
    scene.refused(controller.controller_unpublish_volume(unpublish), Code::Unimplemented).await;
    scene.refused(scene.node().node_expand_volume(csi::NodeExpandVolumeRequest::default()), Code::Unimplemented).await;
    let mut groups = csi::group_controller_client::GroupControllerClient::new(scene.channel.clone());
    let request = csi::GroupControllerGetCapabilitiesRequest {};
    scene.refused(groups.group_controller_get_capabilities(request), Code::Unimplemented).await;
}
