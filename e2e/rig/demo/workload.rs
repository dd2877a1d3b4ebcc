//! Chapter 2: a claim becomes a volume in a running pod, and the pod writes.

use anyhow::Context as _;
use anyhow::Result;

use super::CLAIM;
use super::POD_DEADLINE;
use super::Story;
use super::Volume;
use super::text;

/// Made in the pod, so that nobody else ever had it before; the redirection is the file's only write.
const WRITE_NEEDLE: &str =
    "dd if=/dev/urandom of=/data/needle bs=64 count=1 conv=fsync 2>/dev/null && cat /data/needle";

impl Story {
    pub(super) fn apply(&mut self) -> Result<Volume> {
        self.apply_example("pvc.yaml")?;
        self.apply_example("pod.yaml")?;
        let pod = self.ready_pod(POD_DEADLINE, |_| true)?;
        let name = text(&pod, "/spec/nodeName")?;
        let nodes = &self.cluster.nodes;
        self.home = nodes.iter().position(|node| node.name == name).context("the pod is on a node of the rig")?;
        self.check(&format!("the pod is Ready, on {name}"), true);

        let claim = self.cluster.plane.get("pvc", CLAIM)?.context("the claim is gone")?;
        let pv = text(&claim, "/spec/volumeName")?;
        let object = self.cluster.plane.get("pv", &pv)?.context("the volume of a bound claim is gone")?;
        let id = text(&object, "/spec/csi/volumeHandle")?;
        self.check_row(&id, "Staged", |row| {
            row["status"]["everReady"] == true && row["status"]["attester"] == "tpm" && row["spec"]["nodeName"] == name
        })?;
        let needle = self.in_pod(WRITE_NEEDLE)?;
        self.check("the pod wrote 64 random bytes, with fsync", needle.len() == 64);
        Ok(Volume { id, pv, needle })
    }
}
