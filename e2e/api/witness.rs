//! The resource as second witness that a volume was ever formatted.

use std::sync::Arc;

use coffer::cluster::Witness;
use coffer::key::fake::FakeKbs;
use coffer::lifecycle::Lifecycle;
use coffer::metrics::Metrics;
use coffer::provision::Pools;
use coffer::volume::Reason;
use kube::Client;
use kube::Config;

use crate::scene::Scene;

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
