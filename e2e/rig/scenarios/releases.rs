//! The release changes below pods that go on, and an older one is followed by this one.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::Scenario;
use super::counter::while_counting;
use super::scene::Scene;
use crate::control_plane::NODES;
use crate::install::KEY_URI;
use crate::objects::claim;
use crate::objects::on;
use crate::objects::pod;

/// The commit that brought the chart. It knew nothing of probes, Events or what is reserved in a pool.
const FIRST_CHART: &str = "fe961176e851358e60546ca6be27a2372280cc28";

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "chart_upgraded_while_a_pod_writes", run: upgraded, warnings: &["Unhealthy"] },
    Scenario { name: "chart_removed_and_upgraded_from_the_first", run: from_first, warnings: &["Unhealthy"] },
];

fn upgraded(scene: &mut Scene) -> Result<()> {
    while_counting(scene, |scene| scene.cluster.upgrade(&json!({ "log": "debug" })).map(drop))
}

/// Removing the release leaves volumes and their resources; what the first chart made opens after the upgrade.
fn from_first(scene: &mut Scene) -> Result<()> {
    let [first, _] = NODES;
    let chart = first_chart(&scene.cluster.run)?;
    while_counting(scene, |scene| {
        let volume = scene.volume("data")?;
        scene.cluster.uninstall()?;
        let kept = scene.get("encvol", &volume.id)?.is_some_and(|kept| kept["status"]["phase"] == "Staged");
        anyhow::ensure!(kept, "the resource of the volume went with the release");
        // It knew no profile with tags.
        let classes = json!([{ "name": "coffer", "keyUri": KEY_URI }]);
        scene.cluster.install_again(&chart, &format!("--set-json 'storageClasses={classes}'"))?;
        scene.apply(&[claim("older", "64Mi"), on(first, pod("writer", &["older"]))])?;
        scene.ready("writer")?;
        let digest = scene.write("writer", "/older/file")?;
        scene.delete("pod", "writer")?;
        scene.cluster.upgrade(&super::values())?;
        // Each start of that chart's container left a mount; the socket that this one serves may lie in it.
        for node in &scene.cluster.nodes {
            node.guest.check("while umount --lazy --quiet /var/lib/kubelet/plugins/csi.coffer.dev; do :; done")?;
        }
        scene.cluster.wait_for_registration()?;
        scene.apply(&[on(first, pod("reader", &["older"]))])?;
        scene.ready("reader")?;
        scene.check("reader", "/older/file", &digest)
    })
}

/// The chart of [`FIRST_CHART`], from this repository's history.
fn first_chart(run: &Path) -> Result<PathBuf> {
    let directory = crate::sandbox::fresh(&run.join("first-chart"))?;
    // Images ran as root then.
    let script = format!(
        "git archive {FIRST_CHART} helm/coffer | tar --extract --directory {0}
         sed --in-place 's/^\\( *\\)privileged: true$/&\\n\\1runAsUser: 0/' {0}/helm/coffer/templates/node.yaml
         grep --quiet 'runAsUser: 0' {0}/helm/coffer/templates/node.yaml",
        directory.display()
    );
    let mut shell = std::process::Command::new("bash");
    shell.args(["-eo", "pipefail", "-c", &script]).current_dir(env!("CARGO_MANIFEST_DIR"));
    crate::process::succeed(&mut shell)?;
    Ok(directory.join("helm/coffer"))
}
