//! Chapter 6: while the KBS is away, Kubernetes shows it.

use anyhow::Context as _;
use anyhow::Result;
use serde_json::Value;

use super::POD;
use super::POD_DEADLINE;
use super::Story;
use super::Volume;
use crate::install::DRIVER;
use crate::wait;

const REASON: &str = "KbsUnreachable";

impl Story {
    pub(super) fn lose_kbs(&mut self, volume: &Volume) -> Result<()> {
        self.kbs.stop()?;
        self.check_needle(volume)?;
        self.check("the KBS is away, and the open volume does not notice", true);
        self.delete_pod(volume)?;
        self.apply_example("pod.yaml")?;
        let event = self.refusals(POD, 1)?;
        self.show_refusal(&event, REASON)?;

        let pod = wait::until(POD_DEADLINE, "the pod's volumeHealth", || {
            let said = |pod: &Value| mentions(&pod["status"]["volumeHealth"], REASON);
            Ok(self.pod()?.filter(said))
        })?;
        println!("           pod: {}", pod["status"]["volumeHealth"]);
        self.check("pod.status.volumeHealth says why the volume is not there", true);
        let name = self.home().name;
        let storage = wait::until(POD_DEADLINE, "the node's storageHealth", || {
            let csi_node = self.cluster.plane.get("csinode", name)?.context("the kubelet made no CSINode")?;
            let health = csi_node["status"]["storageHealth"].as_array().cloned().unwrap_or_default();
            Ok(health.into_iter().find(|health| health["name"] == DRIVER && mentions(health, REASON)))
        })?;
        println!("           csinode {name}: {}", storage["healthConditions"]);
        self.check("so does CSINode, for the node's storage as a whole", true);
        self.check_row(&volume.id, "Ready", |row| row["status"]["health"] == "Inaccessible")?;

        self.kbs.serve()?;
        self.ready_pod(POD_DEADLINE, |_| true)?;
        self.check("the KBS is back: the pod is Ready, by itself", true);
        wait::until(POD_DEADLINE, "the health to be well again", || {
            let ill = self.pod()?.is_none_or(|pod| mentions(&pod["status"]["volumeHealth"], REASON));
            Ok((!ill).then_some(()))
        })?;
        self.check("and the pod's volumeHealth is empty again", true);
        self.check_row(&volume.id, "Staged", |row| row["status"]["health"] == "Healthy")?;
        self.check_needle(volume)
    }
}

/// Whether one of the health entries has this reason.
fn mentions(health: &Value, reason: &str) -> bool {
    health.to_string().contains(&format!("\"reason\":\"{reason}\""))
}
