//! A pod that shows whether it was disturbed: it counts as fast as its volume acknowledges.

use anyhow::Result;
use serde_json::Value;
use serde_json::json;

use super::scene::DEADLINE;
use super::scene::Scene;
use crate::control_plane::NODES;
use crate::objects::claim;
use crate::objects::on;
use crate::objects::pod;
use crate::wait;

/// The pod `counter`, which counts in the volume of `claim`.
pub(super) fn counter(claim: &str) -> Value {
    let mut pod = pod("counter", &[claim]);
    let script = format!(
        "trap 'exit 0' TERM; i=$(cat /{claim}/count 2>/dev/null || echo 0); \
         while :; do i=$((i+1)); echo $i >/{claim}/next && sync /{claim}/next && mv /{claim}/next /{claim}/count && \
         sync /{claim} || exit 1; sleep 0.2; done"
    );
    pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", script]);
    pod
}

/// What it has counted to.
pub(super) fn counted(scene: &Scene, claim: &str) -> Result<u64> {
    Ok(scene.exec("counter", &format!("cat /{claim}/count"))?.parse()?)
}

/// Does `disturb`, during which the counter's container goes on undisturbed, on the first node in the claim `data`.
pub(super) fn while_counting(scene: &mut Scene, disturb: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let [first, _] = NODES;
    scene.apply(&[claim("data", "64Mi"), on(first, counter("data"))])?;
    scene.ready("counter")?;
    let before = wait::until(DEADLINE, "the counter to count", || Ok(counted(scene, "data").ok()))?;
    disturb(scene)?;
    wait::until(DEADLINE, "the counter to go on", || {
        Ok(counted(scene, "data").is_ok_and(|now| now > before).then_some(()))
    })?;
    let pod = scene.ready("counter")?;
    anyhow::ensure!(pod["status"]["containerStatuses"][0]["restartCount"] == 0, "the container was restarted");
    Ok(())
}
