//! Driver, controller, kubelet and node end without warning, and what was promised holds.

use anyhow::Result;
use serde_json::json;

use super::Scenario;
use super::counter::counted;
use super::counter::counter;
use super::counter::while_counting;
use super::scene::DEADLINE;
use super::scene::Scene;
use crate::cluster::has_condition;
use crate::control_plane::NODES;
use crate::objects::claim;
use crate::objects::of_class;
use crate::objects::on;
use crate::objects::pod;
use crate::traces::POOL;
use crate::wait;

/// What the kubelet reports of a stage or a probe whose driver went away.
const DRIVER_GONE: &[&str] = &["FailedMount", "BackOff", "Unhealthy", "FailedAttachVolume"];

/// A kubelet that was started again looks after its pods' volumes before it has registered their drivers again.
const UNREGISTERED: &[&str] = &["FailedMount: not found in the list of registered CSI drivers"];

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "driver_killed_in_stage", run: in_stage, warnings: DRIVER_GONE },
    Scenario { name: "driver_killed_in_create", run: in_create, warnings: DRIVER_GONE },
    Scenario { name: "driver_killed_in_delete", run: in_delete, warnings: DRIVER_GONE },
    Scenario { name: "controller_killed_before_its_answer", run: controller, warnings: &["ProvisioningFailed"] },
    Scenario { name: "kubelet_restarted", run: kubelet, warnings: UNREGISTERED },
    Scenario { name: "node_drained_and_back", run: drain, warnings: &["FailedScheduling"] },
    Scenario { name: "node_killed_while_writing", run: power, warnings: &["FailedMount", "NodeNotReady"] },
];

/// Ends the node service as the kernel's out-of-memory killer would.
const KILL: &str = "pkill -KILL -f '^/usr/bin/coffer node'";

fn in_create(scene: &mut Scene) -> Result<()> {
    killed_after(scene, &format!("ls {POOL} | grep -q ^cv-"))
}

fn in_stage(scene: &mut Scene) -> Result<()> {
    killed_after(scene, &format!("grep -qs {POOL} /sys/block/loop*/loop/backing_file"))
}

/// Makes a volume and opens it on the first node, where the service is killed as soon as `begun` holds.
fn killed_after(scene: &mut Scene, begun: &str) -> Result<()> {
    let [first, _] = NODES;
    let script = format!("until {begun}; do sleep 0.02; done; {KILL}");
    let guest = scene.cluster.nodes[0].guest;
    let killer = std::thread::spawn(move || guest.check(&script));
    scene.apply(&[claim("data", "64Mi"), on(first, pod("writer", &["data"]))])?;
    killer.join().expect("the killer reports errors")?;
    scene.ready("writer")?;
    let digest = scene.write("writer", "/data/file")?;
    scene.check("writer", "/data/file", &digest)
}

fn in_delete(scene: &mut Scene) -> Result<()> {
    let volume = scene.provisioned("256Mi")?;
    let guest = scene.home(&volume).guest;
    // The service sees the deletion only after it was started again: it was killed before or within it.
    scene.kubectl("delete pvc data --wait=false")?;
    guest.check(KILL)?;
    scene.gone("encvol", &volume.id)
}

fn controller(scene: &mut Scene) -> Result<()> {
    let on_all = |scene: &Scene, script: &str| {
        scene.cluster.nodes.iter().try_for_each(|node| node.guest.check(script).map(drop))
    };
    // No node answers while the controller still runs.
    on_all(scene, "pkill -STOP -f '^/usr/bin/coffer node'")?;
    scene.apply(&[of_class("immediate", claim("data", "64Mi"))])?;
    let asked = wait::until(DEADLINE, "the controller to ask", || {
        let rows = scene.cluster.shell("kubectl get encvol --output name")?;
        Ok((!rows.is_empty()).then_some(()))
    });
    let killed = on_all(scene, "pkill -KILL -f '^/usr/bin/coffer controller'; true");
    on_all(scene, "pkill -CONT -f '^/usr/bin/coffer node'")?;
    asked.and(killed)?;
    let volume = scene.volume("data")?;
    let rows = scene.cluster.shell("kubectl get encvol --output name")?;
    anyhow::ensure!(rows.lines().count() == 1, "one claim has the volumes {rows}");
    scene.apply(&[pod("writer", &["data"])])?;
    scene.ready("writer")?;
    scene.phase(&volume.id, "Staged")
}

fn kubelet(scene: &mut Scene) -> Result<()> {
    while_counting(scene, |scene| {
        let guest = &scene.cluster.nodes[0].guest;
        let before = guest.check("pgrep -x kubelet")?;
        guest.check("pkill -KILL -x kubelet")?;
        let again = format!("now=$(pgrep -x kubelet) && [ \"$now\" != {} ]", before.trim());
        guest.wait_until("the kubelet to be started again", &again, DEADLINE)
    })
}

fn drain(scene: &mut Scene) -> Result<()> {
    let [first, _] = NODES;
    let template = on(first, pod("writer", &["data"]));
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "writer" },
        "spec": {
            "replicas": 1, "strategy": { "type": "Recreate" }, "selector": { "matchLabels": { "app": "writer" } },
            "template": { "metadata": { "labels": { "app": "writer" } }, "spec": template["spec"] },
        },
    });
    scene.apply(&[claim("data", "64Mi"), deployment])?;
    let running = |scene: &Scene| {
        scene.kubectl(&format!("rollout status deployment/writer --timeout={}s", DEADLINE.as_secs()))?;
        Ok::<_, anyhow::Error>(
            scene.kubectl("get pods --selector app=writer --output name")?.trim().trim_start_matches("pod/").to_owned(),
        )
    };
    let digest = scene.write(&running(scene)?, "/data/file")?;
    let volume = scene.volume("data")?;
    scene.cluster.shell(&format!("kubectl drain {first} --ignore-daemonsets --delete-emptydir-data --timeout=300s"))?;
    scene.phase(&volume.id, "Ready")?;
    scene.cluster.shell(&format!("kubectl uncordon {first}"))?;
    scene.check(&running(scene)?, "/data/file", &digest)
}

fn power(scene: &mut Scene) -> Result<()> {
    let [first, _] = NODES;
    scene.apply(&[claim("data", "64Mi"), on(first, counter("data"))])?;
    let pod = scene.ready("counter")?;
    let digest = scene.write("counter", "/data/file")?;
    let before = wait::until(DEADLINE, "the counter to count", || Ok(counted(scene, "data").ok()))?;
    let container = pod["status"]["containerStatuses"][0]["containerID"].clone();
    let node = &mut scene.cluster.nodes[0];
    node.machine.kill()?;
    node.guest = node.machine.boot()?;
    wait::until(DEADLINE, "the pod's new container to be Ready", || {
        let pod = scene.get("pod", "counter")?;
        Ok(pod.filter(|pod| {
            pod["status"]["containerStatuses"][0]["containerID"] != container && has_condition(pod, "Ready")
        }))
    })?;
    scene.check("counter", "/data/file", &digest)?;
    let after = counted(scene, "data")?;
    anyhow::ensure!(after >= before, "{before} was acknowledged, and {after} is there");
    Ok(())
}
