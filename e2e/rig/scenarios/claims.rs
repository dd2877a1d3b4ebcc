//! How claims and volumes end, and what outlives them.

use anyhow::Context as _;
use anyhow::Result;
use serde_json::json;

use super::Scenario;
use super::scene::Scene;
use crate::control_plane::NODES;
use crate::objects::claim;
use crate::objects::of_class;
use crate::objects::on;
use crate::objects::pod;
use crate::traces::POOL;
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "retained_and_bound_again", run: retained, warnings: &["FailedScheduling"] },
    Scenario { name: "claim_deleted_while_its_pod_runs", run: in_use, warnings: &[] },
    Scenario { name: "claim_deleted_before_any_pod", run: never_staged, warnings: &[] },
    Scenario { name: "namespace_deleted", run: namespace, warnings: &[] },
    Scenario { name: "old_copy_of_a_volume_is_refused", run: old_copy, warnings: &["FailedMount"] },
    Scenario { name: "thirty_claims_at_once", run: crowd, warnings: OUT_OF_TIME },
];

/// Fifteen first stages at once keep an emulated node busy for about the two minutes that the kubelet gives each; what
/// was begun goes on, and the next try finds it done.
const OUT_OF_TIME: &[&str] = &["FailedMount: DeadlineExceeded"];

fn in_use(scene: &mut Scene) -> Result<()> {
    scene.apply(&[claim("data", "64Mi"), pod("user", &["data"])])?;
    scene.ready("user")?;
    let digest = scene.write("user", "/data/file")?;
    let volume = scene.volume("data")?;
    scene.kubectl("delete pvc data --wait=false")?;
    scene.check("user", "/data/file", &digest)?;
    let waiting = scene.get("pvc", "data")?.context("the claim of a running pod is gone")?;
    anyhow::ensure!(waiting["metadata"]["deletionTimestamp"].is_string(), "the claim is not being deleted");
    scene.delete("pod", "user")?;
    scene.gone("pvc", "data")?;
    scene.gone("encvol", &volume.id)
}

fn never_staged(scene: &mut Scene) -> Result<()> {
    let volume = scene.provisioned("64Mi")?;
    scene.delete("pvc", "data")?;
    scene.gone("encvol", &volume.id)
}

fn namespace(scene: &mut Scene) -> Result<()> {
    scene.apply(&[claim("data", "64Mi"), pod("user", &["data"])])?;
    scene.ready("user")?;
    let volume = scene.volume("data")?;
    scene.cluster.shell(&format!("kubectl delete namespace {}", scene.namespace))?;
    scene.gone("encvol", &volume.id)
}

fn retained(scene: &mut Scene) -> Result<()> {
    scene.apply(&[of_class("retain", claim("data", "64Mi")), pod("writer", &["data"])])?;
    scene.ready("writer")?;
    let digest = scene.write("writer", "/data/file")?;
    let volume = scene.volume("data")?;
    scene.delete("pod", "writer")?;
    scene.delete("pvc", "data")?;
    wait::until(super::scene::DEADLINE, "the volume to be released", || {
        let pv = scene.get("pv", &volume.pv)?.context("a retained volume is gone")?;
        Ok((pv["status"]["phase"] == "Released").then_some(()))
    })?;
    scene.phase(&volume.id, "Ready")?;

    scene.kubectl(&format!(
        "patch pv {} --type json --patch '[{{\"op\":\"remove\",\"path\":\"/spec/claimRef\"}}]'",
        volume.pv
    ))?;
    let mut again = of_class("retain", claim("again", "64Mi"));
    again["spec"]["volumeName"] = json!(volume.pv);
    scene.apply(&[again, pod("reader", &["again"])])?;
    scene.ready("reader")?;
    scene.check("reader", "/again/file", &digest)?;
    // Now it may go with its claim.
    let delete = r#"{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}"#;
    scene.kubectl(&format!("patch pv {} --patch '{delete}'", volume.pv))?;
    scene.delete("pod", "reader")?;
    scene.delete("pvc", "again")?;
    scene.gone("encvol", &volume.id)
}

/// A copy from before the first stage says that the volume was never formatted, and the cluster knows better.
fn old_copy(scene: &mut Scene) -> Result<()> {
    let volume = scene.provisioned("64Mi")?;
    let guest = scene.home(&volume).guest;
    let directory = format!("{POOL}/{}", volume.id);
    guest.check(&format!("cp --archive {directory} /root/old"))?;
    scene.apply(&[pod("writer", &["data"])])?;
    scene.ready("writer")?;
    let digest = scene.write("writer", "/data/file")?;
    scene.delete("pod", "writer")?;
    scene.phase(&volume.id, "Ready")?;

    guest.check(&format!("mv {directory} /root/new && cp --archive /root/old {directory}"))?;
    scene.apply(&[pod("reader", &["data"])])?;
    scene.event("FailedMount", "PermitRevoked: ")?;
    guest.check(&format!("cmp /root/old/backing {directory}/backing"))?;
    guest.check(&format!("rm --recursive /root/old {directory} && mv /root/new {directory}"))?;
    scene.ready("reader")?;
    scene.check("reader", "/data/file", &digest)
}

/// Fifteen on each node, all applied together.
fn crowd(scene: &mut Scene) -> Result<()> {
    let names: Vec<String> = (0..30).map(|number| format!("data-{number}")).collect();
    let mut objects: Vec<_> = names.iter().map(|name| claim(name, "16Mi")).collect();
    for (node, names) in NODES.iter().zip(names.chunks(15)) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        objects.push(on(node, pod(node, &names)));
    }
    scene.apply(&objects)?;
    for node in NODES {
        scene.ready(node)?;
    }
    for (node, names) in NODES.iter().zip(names.chunks(15)) {
        let script: String =
            names.iter().map(|name| format!("echo {name} >/{name}/file; sync /{name}/file;")).collect();
        scene.exec(node, &script)?;
        let script: String = names.iter().map(|name| format!("cat /{name}/file;")).collect();
        let found = scene.exec(node, &script)?;
        anyhow::ensure!(found.lines().eq(names.iter().map(String::as_str)), "volumes of {node} are mixed up: {found}");
    }
    Ok(())
}
