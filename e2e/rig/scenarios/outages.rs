//! The API server is away, and a node that never comes back.

use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;

use super::Scenario;
use super::scene::DEADLINE;
use super::scene::Scene;
use crate::cluster::has_condition;
use crate::control_plane::NODES;
use crate::objects::claim;
use crate::objects::on;
use crate::objects::pod;
use crate::traces::POOL;
use crate::wait;

/// How long the API server is away.
const OUTAGE: Duration = wait::seconds(60);

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "api_server_away_in_stage", run: in_stage, warnings: &["FailedMount", "NodeNotReady"] },
    Scenario {
        name: "api_server_away_in_first_stage",
        run: in_first_stage,
        warnings: &["FailedMount", "NodeNotReady"],
    },
    Scenario { name: "api_server_away_in_delete", run: in_delete, warnings: &["NodeNotReady", "VolumeFailedDelete"] },
    Scenario { name: "node_that_never_comes_back", run: lost_node, warnings: &["NodeNotReady", "BytesLeftBehind"] },
];

/// A Ready volume opens while the API server is away.
fn in_stage(scene: &mut Scene) -> Result<()> {
    let [first, _] = NODES;
    scene.apply(&[claim("data", "64Mi"), on(first, pod("writer", &["data"]))])?;
    scene.ready("writer")?;
    let digest = scene.write("writer", "/data/file")?;
    let volume = scene.volume("data")?;
    scene.delete("pod", "writer")?;
    scene.phase(&volume.id, "Ready")?;

    let guest = scene.cluster.nodes[0].guest;
    // From the loop device on, nothing of the stage needs the API server.
    let begun = format!("until grep -qs {} /sys/block/loop*/loop/backing_file; do sleep 0.02; done", volume.id);
    let watcher = std::thread::spawn(move || guest.check(&begun));
    scene.apply(&[on(first, pod("reader", &["data"]))])?;
    watcher.join().expect("the watcher reports errors")?;
    scene.cluster.plane.without_api_server(OUTAGE, || {
        let mounted = format!("grep -q /{}/mount /proc/1/mountinfo", volume.pv);
        guest.wait_until("the volume to be mounted for the pod", &mounted, OUTAGE)
    })?;
    scene.ready("reader")?;
    scene.check("reader", "/data/file", &digest)
}

/// What has to be formatted waits for the API server, which alone knows whether it ever was.
fn in_first_stage(scene: &mut Scene) -> Result<()> {
    let volume = scene.provisioned("64Mi")?;
    let guest = scene.home(&volume).guest;
    guest.check("pkill -STOP -f '^/usr/bin/coffer node'")?;
    let go_on = || guest.check("pkill -CONT -f '^/usr/bin/coffer node'");
    let asked = scene.apply(&[pod("writer", &["data"])]).and_then(|()| {
        let begun = "ls -d /var/lib/kubelet/plugins/kubernetes.io/csi/csi.coffer.dev/*/globalmount";
        guest.wait_until("the kubelet to ask for the volume", begun, DEADLINE)
    });
    if asked.is_err() {
        go_on()?;
    }
    asked?;
    scene.cluster.plane.without_api_server(OUTAGE, || {
        go_on()?;
        let refused = "grep -qs WitnessUnreachable /var/log/pods/coffer-system_coffer-node-*/coffer/*.log";
        guest.wait_until("the stage to be refused", refused, OUTAGE)?;
        guest.check(&format!("! head -c 4 {POOL}/{}/backing | grep -q LUKS", volume.id)).map(drop)
    })?;
    scene.ready("writer")?;
    let digest = scene.write("writer", "/data/file")?;
    scene.check("writer", "/data/file", &digest)
}

fn in_delete(scene: &mut Scene) -> Result<()> {
    let volume = scene.provisioned("256Mi")?;
    scene.kubectl("delete pvc data --wait=false")?;
    scene.cluster.plane.without_api_server(OUTAGE, || Ok(()))?;
    scene.gone("pvc", "data")?;
    scene.gone("encvol", &volume.id)
}

/// Its volumes can be deleted once its Node object is, and what they leave is said; should its disk come back after all, the
/// orphan is reported and can be purged.
fn lost_node(scene: &mut Scene) -> Result<()> {
    let [_, second] = NODES;
    scene.apply(&[claim("data", "64Mi"), on(second, pod("writer", &["data"]))])?;
    scene.ready("writer")?;
    let volume = scene.volume("data")?;
    // The kubelet does not sync what it notes about a mount, and never takes away the directory of one whose note is lost.
    scene.cluster.nodes[1].guest.check("sync --file-system /var/lib/kubelet")?;
    scene.cluster.nodes[1].machine.kill()?;
    scene.kubectl("delete pod writer --force --grace-period=0")?;
    scene.cluster.shell(&format!("kubectl delete node {second}"))?;
    scene.delete("pvc", "data")?;
    scene.gone("encvol", &volume.id)?;
    let told = |scene: &Scene| {
        let every = "get events --all-namespaces --field-selector reason=BytesLeftBehind --output name";
        Ok::<_, anyhow::Error>(scene.cluster.shell(&format!("kubectl {every}"))?.lines().count())
    };
    wait::until(DEADLINE, "the event BytesLeftBehind", || Ok((told(scene)? > 0).then_some(())))?;

    let node = &mut scene.cluster.nodes[1];
    node.guest = node.machine.boot()?;
    wait::until(DEADLINE, "the node to be Ready again", || {
        Ok(scene.get("node", second)?.filter(|node| has_condition(node, "Ready")).map(drop))
    })?;
    wait::until(DEADLINE, "the orphan to be reported", || {
        let pool = scene.get("encpool", &format!("default.{second}"))?.context("the pool's resource is gone")?;
        Ok(pool["status"].to_string().contains(&volume.id).then_some(()))
    })?;
    let node = &scene.cluster.nodes[1];
    wait::until(DEADLINE, "the driver on the node", || {
        Ok(scene.cluster.driver_pod(node)?.filter(|pod| has_condition(pod, "Ready")).map(drop))
    })?;
    scene.cluster.in_driver(node, &format!("coffer volume purge {}", volume.id))?;
    let told = told(scene)?;
    anyhow::ensure!(told == 1, "two controllers told {told} times that bytes were left behind");
    Ok(())
}
