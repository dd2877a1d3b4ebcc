//! Volumes that a controller asks nodes for.

use std::time::Duration;

use coffer::cluster::CONFIRM_DELETE;
use coffer::cluster::EncryptedPool;
use coffer::cluster::EncryptedVolume;
use coffer::cluster::FINALIZER;
use coffer::cluster::Phase;
use coffer::provision::Provisioner as _;
use coffer::volume::Place;
use coffer::volume::PoolName;
use coffer::volume::Reason;
use coffer::volume::VolumeSpec;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::DeleteParams;
use kube::api::ListParams;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::PostParams;
use kube::runtime::wait::conditions::is_deleted;
use serde_json::json;

use crate::scene::SOON;
use crate::scene::Scene;
use crate::scene::soon;
use crate::scene::spec;
use crate::scene::whereabouts;

/// Long enough for a call to find out that nobody answers.
const A_MOMENT: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_volume_is_made_where_it_is_asked_for_shown_and_erased() {
    let scene = Scene::start().await;
    let (controller, node) = (scene.controller().await, scene.node("life-1").await);
    let id = controller.create("life", &["life-1"]).await.expect("made");
    assert_eq!(controller.create("life", &["life-1"]).await.expect("made already"), id);
    assert!(node.pool.directory(&id).join("backing").exists());
    assert_eq!(controller.pools.get(id.clone()).await.expect("there").place, Place::of("life-1"));
    let listed = controller.pools.list().await.expect("listed");
    assert!(listed.iter().any(|volume| volume.spec == spec("life")), "{listed:?}");

    node.lifecycle.stage(node.stage_request(&id)).await.expect("staged");
    let is_staged = |volume: Option<&EncryptedVolume>| volume.and_then(EncryptedVolume::phase) == Some(Phase::Staged);
    let staged = scene.wait(&scene.volumes(), id.as_str(), is_staged).await.expect("shown");
    let status = staged.status.as_ref().expect("a status");
    assert!(status.ever_ready && status.last_attested.is_some(), "{status:?}");
    assert_eq!((status.attester.as_deref(), status.health.as_deref()), (Some("sample"), Some("Healthy")));
    assert_eq!(controller.pools.health(id.clone()).await.expect("told"), []);

    let deadline = std::time::Instant::now() + A_MOMENT;
    let busy = controller.pools.delete(id.clone(), deadline).await.expect_err("staged");
    assert_eq!(busy.reason(), Reason::OperationPending);
    assert!(busy.explanation().contains("StillStaged"), "{busy}");
    node.lifecycle.unstage(id.clone(), node.staging()).await.expect("unstaged");
    controller.delete(&id).await.expect("erased");
    assert!(!node.pool.directory(&id).exists());
    assert!(scene.volumes().get_opt(id.as_str()).await.expect("asked").is_none());
    controller.delete(&id).await.expect("gone is deleted");
}

#[tokio::test]
async fn a_node_that_rejects_gives_the_volume_back_to_the_scheduler() {
    let scene = Scene::start().await;
    let (controller, _node) = (scene.controller().await, scene.node("full-1").await);
    let huge = VolumeSpec { payload_bytes: 1 << 50, ..spec("full") };
    let deadline = std::time::Instant::now() + SOON;
    let full = controller.pools.create(huge.clone(), whereabouts(&["full-1"]), deadline).await.expect_err("no room");
    assert_eq!(full.reason(), Reason::NoSpace);
    assert!(full.explanation().contains("full-1") && full.explanation().contains("NoSpace"), "{full}");
    assert!(scene.volumes().get_opt(huge.id().as_str()).await.expect("asked").is_none());
    let nobody = controller.create("full", &["full-2"]).await.expect_err("no such node");
    assert_eq!(nobody.reason(), Reason::NoSpace);
}

#[tokio::test]
async fn the_next_node_is_asked_when_the_preferred_one_rejects() {
    let scene = Scene::start().await;
    let (controller, first, _second) =
        (scene.controller().await, scene.node("next-1").await, scene.node("next-2").await);
    // The pool is ready as far as anybody knows, and has no room when it is asked.
    std::fs::write(first.pool.path().join("ballast"), b"").expect("written");
    let room = controller.pools.capacity(&PoolName::default(), Some(&Place::of("next-1"))).await.expect("told");
    assert!(room.available_bytes > 0);
    drop(first);
    let asking = controller.create("next", &["next-1", "next-2"]);
    let id = spec("next").id();
    let rejecting = async {
        let asked = |volume: Option<&EncryptedVolume>| volume.is_some_and(|volume| volume.spec.node_name == "next-1");
        scene.wait(&scene.volumes(), id.as_str(), asked).await;
        say(&scene, id.as_str(), "Rejected").await;
    };
    let (made, ()) = tokio::join!(asking, rejecting);
    let made = controller.pools.get(made.expect("made by the second")).await.expect("there");
    assert_eq!(made.place, Place::of("next-2"));
}

#[tokio::test]
async fn a_node_that_is_silent_is_waited_for_until_it_has_left() {
    let scene = Scene::start().await;
    let controller = scene.controller().await;
    let silent = scene.node("silent-1").await;
    drop(silent);
    let pending = controller.create_within("silent", &["silent-1"], A_MOMENT).await.expect_err("no answer");
    assert_eq!(pending.reason(), Reason::OperationPending);
    let _other = scene.node("silent-2").await;
    let elsewhere = controller.create("silent", &["silent-2"]).await.expect_err("still asked of the first");
    assert_eq!(elsewhere.reason(), Reason::OperationPending);
    scene.remove_node("silent-1").await;
    let gone = controller.create("silent", &["silent-1"]).await.expect_err("the scheduler has to choose again");
    assert_eq!(gone.reason(), Reason::NoSpace);
    controller.create("silent", &["silent-2"]).await.expect("made elsewhere");
}

#[tokio::test]
async fn what_another_call_has_begun_is_found() {
    let scene = Scene::start().await;
    let (one, two, _node) = (scene.controller().await, scene.controller().await, scene.node("begun-1").await);
    // The controller died between writing the resource and answering.
    let resource = EncryptedVolume::asking("begun-1", &spec("begun"));
    scene.volumes().create(&PostParams::default(), &resource).await.expect("written");
    let places = ["begun-1"];
    let (first, second) = tokio::join!(one.create("begun", &places), two.create("begun", &places));
    assert_eq!(first.expect("found"), second.expect("found"));
    let other = VolumeSpec { payload_bytes: 32 << 20, ..spec("begun") };
    let deadline = std::time::Instant::now() + SOON;
    let differs = one.pools.create(other, whereabouts(&places), deadline).await.expect_err("it exists");
    assert_eq!(differs.reason(), Reason::AlreadyExists);
}

#[tokio::test]
async fn a_volume_whose_node_has_left_is_let_go_and_said_to_be_left_behind() {
    let scene = Scene::start().await;
    let (controller, node) = (scene.controller().await, scene.node("left-1").await);
    let id = controller.create("left", &["left-1"]).await.expect("made");
    drop(node);
    scene.remove_node("left-1").await;
    controller.delete(&id).await.expect("let go");
    let events: Api<Event> = Api::namespaced(scene.client.clone(), "default");
    let told = async {
        let about = ListParams::default().fields(&format!("reason=BytesLeftBehind,regarding.name={id}"));
        while events.list(&about).await.expect("listed").items.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    soon(told).await;
}

#[tokio::test]
async fn a_resource_that_a_person_deletes_says_its_name_twice_and_is_erased() {
    let scene = Scene::start().await;
    let (controller, node) = (scene.controller().await, scene.node("hand-1").await);
    let id = controller.create("hand", &["hand-1"]).await.expect("made");
    let resource = scene.volumes().get(id.as_str()).await.expect("there");
    assert_eq!(resource.metadata.finalizers.as_deref(), Some(&[FINALIZER.to_owned()][..]));
    let error =
        scene.volumes().delete(id.as_str(), &DeleteParams::default()).await.expect_err("unconfirmed").to_string();
    assert!(error.contains(&format!("kubectl annotate encvol {id} {CONFIRM_DELETE}={id}")), "{error}");
    assert!(node.pool.directory(&id).exists());
    let confirmed = Patch::Merge(json!({"metadata": {"annotations": {CONFIRM_DELETE: id.as_str()}}}));
    scene.volumes().patch(id.as_str(), &PatchParams::default(), &confirmed).await.expect("annotated");
    scene.volumes().delete(id.as_str(), &DeleteParams::default()).await.expect("deleted");
    let uid = resource.metadata.uid.expect("a uid");
    scene.wait(&scene.volumes(), id.as_str(), is_deleted(&uid)).await;
    assert!(!node.pool.directory(&id).exists());
}

#[tokio::test]
async fn a_pool_shows_what_its_node_can_do_and_what_is_never_promised() {
    let scene = Scene::start().await;
    let _node = scene.node("able-1").await;
    let pools: Api<EncryptedPool> = Api::all(scene.client.clone());
    let pool = pools.get(&EncryptedPool::name_of("able-1", &PoolName::default())).await.expect("shown");
    let status = pool.status.expect("told");
    assert_eq!((status.features, status.attester.as_deref()), (vec!["fake".to_owned()], Some("sample")));
    assert!(status.reserve.0 > 0);
}

/// Plays a node that answers with `phase`.
async fn say(scene: &Scene, id: &str, phase: &str) {
    let patch = Patch::Merge(json!({"status": {"phase": phase}}));
    scene.volumes().patch_status(id, &PatchParams::default(), &patch).await.expect("said");
}
