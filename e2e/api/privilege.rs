//! What a stolen credential of a node's driver can do: write the status of that node's volumes and pools.

use coffer::cluster::EncryptedPool;
use coffer::cluster::EncryptedPoolSpec;
use coffer::cluster::EncryptedVolume;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::Client;
use kube::api::DeleteParams;
use kube::api::ListParams;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::PostParams;
use serde_json::json;

use crate::scene::NAMESPACE;
use crate::scene::Scene;
use crate::scene::spec;

fn patch(value: serde_json::Value) -> Patch<serde_json::Value> {
    Patch::Merge(value)
}

/// The volume `name` of `node_name`, made by the administrator.
async fn volume(scene: &Scene, node_name: &str, name: &str) -> String {
    let resource = EncryptedVolume::asking(node_name, &spec(name));
    let made = scene.volumes().create(&PostParams::default(), &resource).await.expect("created");
    made.metadata.name.expect("named")
}

fn forbidden<T: std::fmt::Debug>(outcome: kube::Result<T>, why: &str) {
    match outcome {
        Err(kube::Error::Api(status)) if status.code == 403 => {
            assert!(status.message.contains(why), "{}", status.message)
        }
        other => panic!("not forbidden: {other:?}"),
    }
}

#[tokio::test]
async fn a_stolen_token_works_for_its_own_node_only() {
    let scene = Scene::start().await;
    scene.register("thief").await;
    let (own, other) = (volume(&scene, "thief", "thief-own").await, volume(&scene, "victim", "thief-other").await);
    let thief = scene.client_on("thief").await;
    let volumes: Api<EncryptedVolume> = Api::all(thief.clone());
    let parameters = PatchParams::default();
    let phase = patch(json!({"status": {"phase": "Provisioned"}}));
    volumes.patch_status(&own, &parameters, &phase).await.expect("its own status");
    forbidden(
        volumes.patch_status(&other, &parameters, &phase).await,
        "node thief may not touch what is of node victim",
    );
    let moved = patch(json!({"spec": {"keyUri": "kbs:///keys/of/thief"}}));
    forbidden(volumes.patch(&own, &parameters, &moved).await, "cannot patch resource");
    let unfinished = patch(json!({"metadata": {"finalizers": null}}));
    forbidden(volumes.patch(&own, &parameters, &unfinished).await, "cannot patch resource");
    forbidden(volumes.delete(&own, &DeleteParams::default()).await, "cannot delete resource");
    let resource = EncryptedVolume::asking("thief", &spec("thief-new"));
    forbidden(volumes.create(&PostParams::default(), &resource).await, "cannot create resource");

    let pools: Api<EncryptedPool> = Api::all(thief.clone());
    let pool = |node_name: &str| {
        let spec = EncryptedPoolSpec { node_name: node_name.into(), pool: "default".into(), path: "/".into() };
        EncryptedPool::new(&format!("default.{node_name}"), spec)
    };
    pools.create(&PostParams::default(), &pool("thief")).await.expect("its own pool");
    forbidden(pools.create(&PostParams::default(), &pool("victim")).await, "may not touch what is of node victim");

    false_events(&thief, &own).await;
    nothing_else(&thief).await;
}

/// An event is what people believe: a node tells of volumes and pools only, and in its own name.
async fn false_events(thief: &Client, own: &str) {
    let events: Api<Event> = Api::namespaced(thief.clone(), "default");
    let told = |name: &str, kind: &str, instance: &str| -> Event {
        let version = if kind == "Pod" { "v1" } else { "coffer.dev/v1alpha1" };
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default"},
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "type": "Warning", "reason": "PolicyDenied", "action": "Stage", "note": "a lie",
            "reportingController": "coffer-node", "reportingInstance": instance,
            "regarding": {"apiVersion": version, "kind": kind, "name": own},
        }))
        .expect("an event")
    };
    let create = PostParams::default();
    events.create(&create, &told("thief.own", "EncryptedVolume", "thief")).await.expect("in its own name");
    let parameters = PatchParams::default();
    let noted = patch(json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}}));
    events.patch("thief.own", &parameters, &noted).await.expect("a series");
    let (own_name, subjects) = ("may tell events in its own name only", "of volumes and pools only");
    forbidden(events.create(&create, &told("thief.victim", "EncryptedVolume", "victim")).await, own_name);
    forbidden(events.create(&create, &told("thief.pod", "Pod", "thief")).await, subjects);
    forbidden(events.list(&ListParams::default()).await.map(drop), "cannot list");
    forbidden(events.delete("thief.own", &DeleteParams::default()).await.map(drop), "cannot delete");
    // What the administrator has told stays as it is.
    let administrator: Api<Event> = Api::namespaced(Client::try_default().await.expect("KUBECONFIG"), "default");
    administrator.create(&create, &told("victim.own", "EncryptedVolume", "victim")).await.expect("told");
    forbidden(events.patch("victim.own", &parameters, &noted).await, own_name);
}

/// Whatever is not Coffer's is out of reach.
async fn nothing_else(thief: &Client) {
    let list = ListParams::default();
    forbidden(Api::<PersistentVolume>::all(thief.clone()).list(&list).await.map(drop), "cannot list");
    forbidden(Api::<PersistentVolumeClaim>::all(thief.clone()).list(&list).await.map(drop), "cannot list");
    forbidden(Api::<Secret>::namespaced(thief.clone(), NAMESPACE).list(&list).await.map(drop), "cannot list");
    forbidden(Api::<Pod>::namespaced(thief.clone(), NAMESPACE).list(&list).await.map(drop), "cannot list");
}

#[tokio::test]
async fn a_token_that_is_bound_to_no_node_writes_nothing() {
    let scene = Scene::start().await;
    let own = volume(&scene, "unbound", "unbound-own").await;
    let client = scene.client_of("coffer-node", None).await;
    let volumes: Api<EncryptedVolume> = Api::all(client);
    let phase = patch(json!({"status": {"phase": "Provisioned"}}));
    forbidden(volumes.patch_status(&own, &PatchParams::default(), &phase).await, "must be bound to a pod");
}

#[tokio::test]
async fn the_controller_moves_no_volume_to_another_key() {
    let scene = Scene::start().await;
    let name = volume(&scene, "keyless", "keyless").await;
    let volumes: Api<EncryptedVolume> = Api::all(scene.client_of("coffer-controller", None).await);
    let parameters = PatchParams::default();
    let moved = patch(json!({"spec": {"keyUri": "kbs:///keys/of/thief"}}));
    forbidden(volumes.patch(&name, &parameters, &moved).await, "may not move a volume to another key");
    let let_go = patch(json!({"metadata": {"finalizers": null}}));
    volumes.patch(&name, &parameters, &let_go).await.expect("what it has to do");
}

#[tokio::test]
async fn the_controller_reads_no_secret() {
    let scene = Scene::start().await;
    let controller = scene.client_of("coffer-controller", None).await;
    let list = ListParams::default();
    forbidden(Api::<Secret>::all(controller.clone()).list(&list).await.map(drop), "cannot list");
    forbidden(Api::<Secret>::namespaced(controller, NAMESPACE).list(&list).await.map(drop), "cannot list");
}
