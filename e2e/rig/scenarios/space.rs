//! Where volumes go: capacity, a second pool, binding before any pod.

use anyhow::Result;

use super::Scenario;
use super::scene::Scene;
use crate::control_plane::NODES;
use crate::objects::claim;
use crate::objects::of_class;
use crate::objects::on;
use crate::objects::pod;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "pool_full", run: full, warnings: &["FailedScheduling", "ProvisioningFailed"] },
    Scenario { name: "second_pool", run: second_pool, warnings: &[] },
    Scenario { name: "immediate_binding", run: immediate, warnings: &[] },
];

/// Of a gibibyte on each node one volume takes most of the first; the next goes to the second, and one more nowhere.
fn full(scene: &mut Scene) -> Result<()> {
    let [first, second] = NODES;
    scene.apply(&[claim("large", "600Mi"), on(first, pod("one", &["large"]))])?;
    scene.ready("one")?;
    scene.apply(&[claim("next", "600Mi"), pod("two", &["next"])])?;
    let two = scene.ready("two")?;
    anyhow::ensure!(two["spec"]["nodeName"] == second, "there is room only on {second}");
    scene.apply(&[claim("last", "600Mi"), pod("three", &["last"])])?;
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
    scene.apply(&[of_class("immediate", claim("data", "64Mi"))])?;
    let volume = scene.volume("data")?;
    scene.apply(&[pod("writer", &["data"])])?;
    let pod = scene.ready("writer")?;
    anyhow::ensure!(pod["spec"]["nodeName"] == scene.home(&volume).name, "the pod is not where its volume is");
    let digest = scene.write("writer", "/data/file")?;
    scene.check("writer", "/data/file", &digest)
}
