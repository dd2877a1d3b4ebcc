//! What the API server itself enforces for the resources.

use coffer::cluster::EncryptedVolume;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::PostParams;
use serde_json::Value;
use serde_json::json;

use crate::scene::Scene;
use crate::scene::apply_chart;
use crate::scene::spec;

#[tokio::test]
async fn a_spec_never_changes_but_for_the_uri_of_its_key() {
    let scene = Scene::start().await;
    let volumes = scene.volumes();
    let resource = EncryptedVolume::asking("nowhere", &spec("rules-spec"));
    let made = volumes.create(&PostParams::default(), &resource).await.expect("created");
    let name = made.metadata.name.expect("a name");
    let change = |spec: Value| {
        let (volumes, name) = (volumes.clone(), name.clone());
        async move { volumes.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await.map(drop) }
    };
    for spec in [
        json!({"nodeName": "elsewhere"}),
        json!({"pool": "other"}),
        json!({"name": "other"}),
        json!({"size": "32Mi"}),
        json!({"content": "xfs"}),
        json!({"claim": "other/one"}),
        json!({"claim": null}),
    ] {
        let error = change(spec.clone()).await.expect_err("immutable").to_string();
        assert!(error.contains("spec is immutable, except spec.keyUri"), "{spec}: {error}");
    }
    for (spec, field) in [
        (json!({"keyUri": "file:///etc/passwd"}), "spec.keyUri"),
        (json!({"profile": "null-0"}), "spec.profile"),
        (json!({"content": "btrfs"}), "spec.content"),
        (json!({"size": "a lot"}), "spec.size"),
    ] {
        let error = change(spec).await.expect_err("of no legal form").to_string();
        assert!(error.contains(field), "{error}");
    }
    change(json!({"keyUri": "kbs:///keys/default/two"})).await.expect("a rotation");
}

#[tokio::test]
async fn a_volume_that_was_ready_stays_one_that_was() {
    let scene = Scene::start().await;
    let volumes = scene.volumes();
    let resource = EncryptedVolume::asking("nowhere", &spec("rules-ready"));
    let name = volumes.create(&PostParams::default(), &resource).await.expect("created").metadata.name.expect("named");
    let say = |status: Value| {
        let (volumes, name) = (volumes.clone(), name.clone());
        async move {
            let patch = Patch::Merge(json!({"status": status}));
            volumes.patch_status(&name, &PatchParams::default(), &patch).await.map(drop)
        }
    };
    say(json!({"phase": "Provisioned"})).await.expect("never ready");
    say(json!({"everReady": false})).await.expect("still never ready");
    say(json!({"everReady": true})).await.expect("ready");
    say(json!({"phase": "Ready"})).await.expect("other fields change");
    for status in [json!({"everReady": false}), json!({"everReady": null}), Value::Null] {
        let error = say(status.clone()).await.expect_err("one-way").to_string();
        assert!(error.contains("everReady is one-way"), "{status}: {error}");
    }
    let error = say(json!({"phase": "Elsewhere"})).await.expect_err("no phase").to_string();
    assert!(error.contains("status.phase"), "{error}");
}

#[tokio::test]
async fn only_names_of_volumes_are_names() {
    let scene = Scene::start().await;
    let mut resource = EncryptedVolume::asking("nowhere", &spec("rules-name"));
    resource.metadata.name = Some("cv-1".into());
    let error = scene.volumes().create(&PostParams::default(), &resource).await.expect_err("no id").to_string();
    assert!(error.contains("32 hexadecimal digits"), "{error}");
}

#[tokio::test]
async fn the_chart_is_accepted_with_every_file_of_values() {
    let _scene = Scene::start().await;
    for file in ["minimal", "everything"] {
        apply_chart(&format!("helm/coffer/ci/{file}-values.yaml"), "--dry-run=server").await;
    }
}
