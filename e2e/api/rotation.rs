//! A volume follows the URI of the key in its resource.

use coffer::cluster::EncryptedVolume;
use coffer::cluster::Phase;
use coffer::cluster::condition::KEY_ROTATED;
use coffer::volume::KeyUri;
use coffer::volume::Reason;
use coffer::volume::VolumeId;
use kube::api::Patch;
use kube::api::PatchParams;
use serde_json::json;

use crate::events::events;
use crate::scene::Scene;

fn uri(tag: &str) -> KeyUri {
    KeyUri::parse("keyUri", &format!("kbs:///keys/default/{tag}")).expect("valid")
}

/// Has an operator move the volume to `uri`, and waits until its node says `status` and `reason` of that.
async fn moved(scene: &Scene, id: &VolumeId, uri: &KeyUri, (status, reason): (&str, &str)) -> EncryptedVolume {
    let patch = Patch::Merge(json!({"spec": {"keyUri": uri}}));
    scene.volumes().patch(id.as_str(), &PatchParams::default(), &patch).await.expect("patched");
    let is_said = |volume: Option<&EncryptedVolume>| {
        volume.and_then(|volume| volume.condition(KEY_ROTATED)).is_some_and(|said| {
            (said.status.as_str(), said.reason.as_str()) == (status, reason) && said.message.contains(&uri.to_string())
        })
    };
    scene.wait(&scene.volumes(), id.as_str(), is_said).await.expect("said")
}

#[tokio::test]
async fn a_volume_follows_the_uri_in_its_spec_while_it_is_mounted() {
    let scene = Scene::start().await;
    let (controller, node) = (scene.controller().await, scene.node("rotation-1").await);
    let id = controller.create("rotation", &["rotation-1"]).await.expect("made");
    node.lifecycle.stage(node.stage_request(&id)).await.expect("staged");
    for (tag, byte) in [("two", 8), ("three", 9)] {
        node.kbs.answers_for(&uri(tag), Ok(byte));
    }
    let seen = moved(&scene, &id, &uri("two"), ("True", "Rotated")).await;
    assert_eq!(seen.phase(), Some(Phase::Staged));
    assert_eq!(node.pool.get(&id).expect("there").key_uri, uri("two"));
    let told = events(&scene, id.as_str(), "Rotated", |events| !events.is_empty()).await;
    assert_eq!((told.len(), told[0].type_.as_deref(), told[0].action.as_deref()), (1, Some("Normal"), Some("Rotate")));

    // Its class goes on naming the old place.
    assert_eq!(controller.create("rotation", &["rotation-1"]).await.expect("made already"), id);

    node.kbs.answers_for(&uri("none"), Err(Reason::KeyNotFound));
    moved(&scene, &id, &uri("none"), ("False", "KeyNotFound")).await;
    assert_eq!(node.pool.get(&id).expect("there").key_uri, uri("two"));
    let told = events(&scene, id.as_str(), "KeyNotFound", |events| !events.is_empty()).await;
    assert_eq!((told.len(), told[0].type_.as_deref()), (1, Some("Warning")));
    moved(&scene, &id, &uri("three"), ("True", "Rotated")).await;

    node.lifecycle.unstage(id.clone(), node.staging()).await.expect("unstaged");
    node.kbs.answers_for(&uri("two"), Err(Reason::KeyNotFound));
    node.lifecycle.stage(node.stage_request(&id)).await.expect("opens with the new key alone");
    node.lifecycle.unstage(id.clone(), node.staging()).await.expect("unstaged");
    controller.delete(&id).await.expect("erased");
    let told = events(&scene, id.as_str(), "Deleted", |events| !events.is_empty()).await;
    let receipt = told[0].note.as_deref().unwrap_or_default();
    assert!(receipt.contains("keyslots") && receipt.contains(&uri("three").to_string()), "{receipt}");
}
