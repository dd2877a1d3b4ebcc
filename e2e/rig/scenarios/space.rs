//! Where volumes go: capacity, a second pool, binding before any pod.

use anyhow::Result;

use super::Scenario;
use super::scene::Scene;
use crate::control_plane::NODES;
use crate::objects::claim;
use crate::objects::of_class;
use crate::objects::on;
use crate::objects::pod;
use crate::traces::POOL;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "pool_full", run: full, warnings: &["FailedScheduling", "ProvisioningFailed"] },
    Scenario { name: "second_pool", run: second_pool, warnings: &[] },
    Scenario { name: "immediate_binding", run: immediate, warnings: &[] },
];

/// One volume takes most of the first node; the next goes to the second, and one more nowhere.
fn full(scene: &mut Scene) -> Result<()> {
    let [first, second] = NODES;
    let disk = scene.cluster.nodes[0].guest.check(&format!("df --output=size --block-size=1M {POOL} | tail -n 1"))?;
    let most = format!("{}Mi", disk.trim().parse::<u64>()? * 7 / 10);
    scene.apply(&[claim("large", &most), on(first, pod("one", &["large"]))])?;
    scene.ready("one")?;
    scene.apply(&[claim("next", &most), pod("two", &["next"])])?;
    let two = scene.ready("two")?;
    anyhow::ensure!(two["spec"]["nodeName"] == second, "there is room only on {second}");
    scene.apply(&[claim("last", &most), pod("three", &["last"])])?;
    scene.event("FailedScheduling", "did not have enough free storage")?;
    scene.delete("pod", "one")?;
    scene.delete("pvc", "large")?;
    scene.ready("three").map(drop)
}

fn second_pool(scene: &mut Scene) -> Result<()> {
    scene.apply(&[of_class("second", claim("data", "64Mi")), pod("writer", &["data"])])?;
    scene.ready("writer")?;
    let digest = scene.write("writer", "/data/file")?;
    let volume = scene.volume("data")?;
    scene.home(&volume).guest.check(&format!("test -e {}/{}/backing", super::SECOND_POOL, volume.id))?;
    scene.check("writer", "/data/file", &digest)
}

fn immediate(scene: &mut Scene) -> Result<()> {
    let volume = scene.provisioned("64Mi")?;
    scene.apply(&[pod("writer", &["data"])])?;
    let pod = scene.ready("writer")?;
    anyhow::ensure!(pod["spec"]["nodeName"] == scene.home(&volume).name, "the pod is not where its volume is");
    let digest = scene.write("writer", "/data/file")?;
    scene.check("writer", "/data/file", &digest)
}
