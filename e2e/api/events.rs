//! What is told of a volume as events, and how often its resource is written.

use coffer::cluster::EncryptedVolume;
use coffer::cluster::Phase;
use coffer::device::fake::Verb;
use coffer::device::fake::When;
use coffer::volume::Reason;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::PostParams;
use kube::api::WatchEvent;
use kube::api::WatchParams;
use serde_json::json;

use crate::scene::Scene;
use crate::scene::TestNode;
use crate::scene::soon;

/// The most writes of a resource in the life of a volume that nothing disturbs.
const WRITES: usize = 8;

/// The events about `name` with `reason`, once they are as `condition` wants them.
pub(crate) async fn events(
    scene: &Scene,
    name: &str,
    reason: &str,
    condition: impl Fn(&[Event]) -> bool,
) -> Vec<Event> {
    let api: Api<Event> = Api::namespaced(scene.client.clone(), "default");
    let about = ListParams::default().fields(&format!("reason={reason},regarding.name={name}"));
    soon(async {
        loop {
            let found = api.list(&about).await.expect("listed").items;
            if condition(&found) {
                return found;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

async fn wait_for(scene: &Scene, id: &str, phase: Phase) {
    let is_there = |volume: Option<&EncryptedVolume>| volume.and_then(EncryptedVolume::phase) == Some(phase);
    scene.wait(&scene.volumes(), id, is_there).await;
}

/// Refuses one stage.
async fn refuse(node: &TestNode, id: &coffer::volume::VolumeId) {
    node.machine.fail_at(Verb::Open, When::Before, Reason::ForeignDevice);
    let refused = node.lifecycle.stage(node.stage_request(id)).await.expect_err("as told");
    assert_eq!(refused.reason(), Reason::ForeignDevice);
}

#[tokio::test]
async fn a_refusal_is_one_event_and_a_series_when_it_comes_back() {
    let scene = Scene::start().await;
    let (controller, node) = (scene.controller().await, scene.node("events-1").await);
    let id = controller.create("events", &["events-1"]).await.expect("made");
    refuse(&node, &id).await;
    let told = events(&scene, id.as_str(), "ForeignDevice", |events| !events.is_empty()).await;
    assert_eq!(told[0].type_.as_deref(), Some("Warning"));
    assert_eq!(told[0].action.as_deref(), Some("Stage"));
    assert_eq!(told[0].reporting_instance.as_deref(), Some("events-1"));
    assert!(told[0].note.as_deref().is_some_and(|note| note.contains("injected")), "{told:?}");

    // The kubelet tries again and again.
    refuse(&node, &id).await;
    refuse(&node, &id).await;
    node.lifecycle.stage(node.stage_request(&id)).await.expect("staged");
    wait_for(&scene, id.as_str(), Phase::Staged).await;
    node.lifecycle.unstage(id.clone(), node.staging()).await.expect("unstaged");
    wait_for(&scene, id.as_str(), Phase::Ready).await;
    refuse(&node, &id).await;
    let is_series = |events: &[Event]| events.iter().any(|event| event.series.is_some());
    let told = events(&scene, id.as_str(), "ForeignDevice", is_series).await;
    let counts: Vec<_> = told.iter().map(|event| event.series.as_ref().map(|series| series.count)).collect();
    assert_eq!(counts, [Some(2)], "{told:?}");

    node.lifecycle.stage(node.stage_request(&id)).await.expect("staged");
    node.lifecycle.unstage(id.clone(), node.staging()).await.expect("unstaged");
    controller.delete(&id).await.expect("erased");
    let told = events(&scene, id.as_str(), "Deleted", |events| !events.is_empty()).await;
    assert_eq!((told.len(), told[0].type_.as_deref()), (1, Some("Normal")));
}

#[tokio::test]
async fn a_retained_volume_is_told_once_with_what_to_do() {
    let scene = Scene::start().await;
    let (controller, _other, _node) =
        (scene.controller().await, scene.controller().await, scene.node("retained-1").await);
    let id = controller.create("retained", &["retained-1"]).await.expect("made");
    let pvs: Api<PersistentVolume> = Api::all(scene.client.clone());
    let pv: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": "retained"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "16Mi"},
            "csi": {"driver": "csi.coffer.dev", "volumeHandle": id},
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": "default", "name": "orders", "uid": "first"},
        },
    }))
    .expect("a persistent volume");
    pvs.create(&PostParams::default(), &pv).await.expect("made");
    release(&pvs).await;
    let told = events(&scene, id.as_str(), "Retained", |events| !events.is_empty()).await;
    assert_eq!(told[0].type_.as_deref(), Some("Normal"));
    let note = told[0].note.as_deref().unwrap_or_default();
    assert!(note.contains("default/orders") && note.contains("kubectl patch pv retained"), "{note}");

    // Bound to another claim, and left behind by that one too.
    let bound = json!({"spec": {"claimRef": {"uid": "second"}}});
    pvs.patch("retained", &PatchParams::default(), &Patch::Merge(bound)).await.expect("bound");
    release(&pvs).await;
    let tellings = |events: &[Event]| {
        events.iter().map(|event| event.series.as_ref().map_or(1, |series| series.count)).sum::<i32>()
    };
    let told = events(&scene, id.as_str(), "Retained", |events| tellings(events) >= 2).await;
    assert_eq!(tellings(&told), 2, "two controllers tell each time once: {told:?}");
}

/// Plays the cluster's own controller, which says so too as soon as it finds no claim.
async fn release(pvs: &Api<PersistentVolume>) {
    let released = Patch::Merge(json!({"status": {"phase": "Released"}}));
    pvs.patch_status("retained", &PatchParams::default(), &released).await.expect("released");
}

#[tokio::test]
async fn a_volumes_life_is_few_writes() {
    let scene = Scene::start().await;
    let (controller, node) = (scene.controller().await, scene.node("writes-1").await);
    let id = crate::scene::spec("writes").id();
    let name = id.to_string();
    let volumes = scene.volumes();
    let before = volumes.list(&ListParams::default()).await.expect("listed").metadata.resource_version;
    let only = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut watched = volumes.watch(&only, &before.expect("a version")).await.expect("watched").boxed();
    let life = async {
        controller.create("writes", &["writes-1"]).await.expect("made");
        node.lifecycle.stage(node.stage_request(&id)).await.expect("staged");
        wait_for(&scene, &name, Phase::Staged).await;
        node.lifecycle.unstage(id.clone(), node.staging()).await.expect("unstaged");
        wait_for(&scene, &name, Phase::Ready).await;
        controller.delete(&id).await.expect("erased");
    };
    let counted = async {
        let mut writes = Vec::new();
        while let Some(event) = watched.next().await {
            match event.expect("an event") {
                WatchEvent::Added(volume) | WatchEvent::Modified(volume) => writes.push(volume.status),
                WatchEvent::Deleted(volume) => {
                    writes.push(volume.status);
                    return writes;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("the watch ended after {} writes", writes.len())
    };
    let ((), writes) = soon(async { tokio::join!(life, counted) }).await;
    assert!(writes.len() <= WRITES, "{} writes in one life: {writes:#?}", writes.len());
}
