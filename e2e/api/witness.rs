//! The resource as second witness that a volume was ever formatted.

use std::sync::Arc;
use std::time::Instant;

use coffer::cluster::Witness;
use coffer::key::fake::FakeKbs;
use coffer::lifecycle::Lifecycle;
use coffer::metrics::Metrics;
use coffer::provision::Pools;
use coffer::provision::Provisioner;
use coffer::record::RECORD_FILE;
use coffer::record::State;
use coffer::volume::KeyUri;
use coffer::volume::Profile;
use coffer::volume::Reason;
use coffer::volume::VolumeId;
use coffer::volume::VolumeSpec;
use kube::Client;
use kube::Config;
use kube::api::Patch;
use kube::api::PatchParams;
use serde_json::Value;
use serde_json::json;

use crate::scene::SOON;
use crate::scene::Scene;
use crate::scene::TestNode;
use crate::scene::soon;
use crate::scene::spec;
use crate::scene::whereabouts;

/// Changes one member of the record of `id`, which carries no MAC yet. Returns what it was.
fn change(node: &TestNode, id: &VolumeId, member: &str, value: Value) -> Vec<u8> {
    let path = node.pool.directory(id).join(RECORD_FILE);
    let text = std::fs::read(&path).expect("a record");
    let mut record: Value = serde_json::from_slice(&text).expect("JSON");
    record[member] = value;
    std::fs::write(&path, record.to_string()).expect("written");
    text
}

fn is_blank(node: &TestNode, id: &VolumeId) -> bool {
    !coffer::device::backing::holds_data(&node.pool.directory(id).join("backing")).expect("readable")
}

/// Stages the volume as the kubelet does, which asks again while an answer is open.
async fn staged_in_the_end(node: &TestNode, id: &VolumeId) {
    let staged = async {
        while let Err(error) = node.lifecycle.stage(node.stage_request(id)).await {
            assert_eq!(error.reason(), Reason::OperationPending, "{error}");
            tokio::task::yield_now().await;
        }
    };
    soon(staged).await;
}

#[tokio::test]
async fn an_old_copy_of_the_pool_permits_no_format() {
    let scene = Scene::start().await;
    let (controller, node) = (scene.controller().await, scene.node("witness-1").await);
    let id = controller.create("witness", &["witness-1"]).await.expect("made");
    let directory = node.pool.directory(&id);
    let old = std::fs::read(directory.join("volume.json")).expect("a record");
    let bytes = std::fs::metadata(directory.join("backing")).expect("a backing").len();
    node.lifecycle.stage(node.stage_request(&id)).await.expect("formatted");
    node.lifecycle.unstage(id.clone(), node.staging()).await.expect("unstaged");

    // Whoever holds the disk puts back the record of before, and an image without a byte in it.
    std::fs::write(directory.join("volume.json"), &old).expect("put back");
    let blank = std::fs::File::create(directory.join("backing")).expect("blanked");
    blank.set_len(bytes).expect("as long as it was");
    let refused = node.lifecycle.stage(node.stage_request(&id)).await.expect_err("not formatted again");
    assert_eq!(refused.reason(), Reason::PermitRevoked);
    assert_eq!(std::fs::read(directory.join("volume.json")).expect("a record"), old);
    assert!(!coffer::device::backing::holds_data(&directory.join("backing")).expect("readable"));
    assert!(node.machine.mounts().is_empty());
}

#[tokio::test]
async fn without_the_witness_nothing_is_formatted_and_what_is_ready_opens() {
    let scene = Scene::start().await;
    let (controller, node) = (scene.controller().await, scene.node("alone-1").await);
    let ready = controller.create("alone-ready", &["alone-1"]).await.expect("made");
    let fresh = controller.create("alone-fresh", &["alone-1"]).await.expect("made");
    node.lifecycle.stage(node.stage_request(&ready)).await.expect("formatted");
    node.lifecycle.unstage(ready.clone(), node.staging()).await.expect("unstaged");

    let mut nowhere = Config::infer().await.expect("KUBECONFIG");
    nowhere.cluster_url = "https://127.0.0.1:1".parse().expect("an address");
    let away = Client::try_from(nowhere).expect("a client");
    let pools = Pools::new(vec![node.pool.clone()]).expect("one pool");
    let (machine, kbs) = (Arc::new(node.machine.clone()), Arc::new(FakeKbs::default()));
    let alone = Lifecycle::new(machine, kbs, pools, Some(Witness::new(away)), Metrics::default());
    let refused = alone.stage(node.stage_request(&fresh)).await.expect_err("nobody to ask");
    assert_eq!(refused.reason(), Reason::WitnessUnreachable);
    assert!(!coffer::device::backing::holds_data(&node.pool.directory(&fresh).join("backing")).expect("readable"));
    alone.stage(node.stage_request(&ready)).await.expect("Ready volumes need no API server");
}

#[tokio::test]
async fn a_volume_that_the_cluster_does_not_know_is_not_formatted() {
    let scene = Scene::start().await;
    let node = scene.node("unknown-1").await;
    let made = node.lifecycle.create(crate::scene::spec("unknown")).await.expect("made behind its back");
    let refused = node.lifecycle.stage(node.stage_request(&made.id())).await.expect_err("nobody asked for it");
    assert_eq!(refused.reason(), Reason::PermitRevoked);
}

#[tokio::test]
async fn a_record_that_does_not_say_what_the_cluster_asked_for_permits_no_format() {
    let scene = Scene::start().await;
    let (controller, node) = (scene.controller().await, scene.node("asked-1").await);
    let asked = VolumeSpec { profile: Profile::Aead1, ..spec("asked") };
    let id = controller.pools.create(asked, whereabouts(&["asked-1"]), Instant::now() + SOON).await.expect("made").id;
    for (member, value) in [
        ("profile", json!("xts-1")),
        ("init", json!("full")),
        ("payload_bytes", json!(8 << 20)),
        ("name", json!("another")),
    ] {
        let record = change(&node, &id, member, value);
        let refused = node.lifecycle.stage(node.stage_request(&id)).await.expect_err("not what was asked for");
        assert_eq!(refused.reason(), Reason::RecordTampered, "{member}: {refused}");
        assert!(is_blank(&node, &id) && node.machine.mounts().is_empty(), "{member}");
        std::fs::write(node.pool.directory(&id).join(RECORD_FILE), record).expect("put back");
    }
    node.lifecycle.stage(node.stage_request(&id)).await.expect("as it was asked for");
}

#[tokio::test]
async fn the_disk_does_not_say_which_secret_a_new_volume_has() {
    let scene = Scene::start().await;
    let (controller, node) = (scene.controller().await, scene.node("secret-1").await);
    let id = controller.create("secret", &["secret-1"]).await.expect("made");
    change(&node, &id, "key_uri", json!("kbs:///keys/default/known"));
    let refused = node.lifecycle.stage(node.stage_request(&id)).await.expect_err("another secret");
    assert_eq!(refused.reason(), Reason::OperationPending);
    assert!(is_blank(&node, &id));
    staged_in_the_end(&node, &id).await;
    assert_eq!(node.pool.get(&id).expect("a record").key_uri, spec("secret").key_uri);
}

#[tokio::test]
async fn a_first_stage_that_was_cut_off_follows_a_secret_that_moves() {
    let scene = Scene::start().await;
    let (controller, node) = (scene.controller().await, scene.node("moves-1").await);
    let id = controller.create("moves", &["moves-1"]).await.expect("made");
    let begun = node.pool.get(&id).expect("a record").formatting();
    begun.write(&node.pool.directory(&id)).expect("killed in the middle of a format");
    let to = KeyUri::parse("keyUri", "kbs:///keys/default/moved").expect("valid");
    let patch = Patch::Merge(json!({"spec": {"keyUri": to}}));
    scene.volumes().patch(id.as_str(), &PatchParams::default(), &patch).await.expect("patched");
    staged_in_the_end(&node, &id).await;
    let record = node.pool.get(&id).expect("a record");
    assert_eq!((record.state, record.key_uri), (State::Ready, to));
}
