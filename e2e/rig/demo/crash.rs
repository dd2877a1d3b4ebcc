//! Chapter 7: the node loses power and comes back with the same disks and the same TPM.

use anyhow::Context as _;
use anyhow::Result;

use super::POD_DEADLINE;
use super::Story;
use super::Volume;
use super::text;
use crate::wait;

const BOOT_ID: &str = "/status/nodeInfo/bootID";
const CONTAINER_ID: &str = "/status/containerStatuses/0/containerID";

impl Story {
    pub(super) fn crash(&mut self, volume: &Volume) -> Result<()> {
        let boot = text(&self.node()?, BOOT_ID)?;
        let container = text(&self.pod()?.context("the pod is gone")?, CONTAINER_ID)?;
        let releases = self.kbs.releases()?.len();

        let node = &mut self.cluster.nodes[self.home];
        node.machine.kill()?;
        node.guest = node.machine.boot()?;
        self.check("QEMU was killed, and the same disks and the same TPM boot again", true);
        wait::until(POD_DEADLINE, "the kubelet to report the new boot", || {
            Ok((text(&self.node()?, BOOT_ID)? != boot).then_some(()))
        })?;
        self.check("the node reports a new bootID", true);
        // The control plane still calls the old container Ready: only a new container's Ready counts.
        let is_new = |pod: &serde_json::Value| text(pod, CONTAINER_ID).is_ok_and(|id| id != container);
        self.ready_pod(POD_DEADLINE, is_new)?;
        self.check("the container is a new one, and the pod Ready after that", true);
        self.check("the release log has a new line", self.kbs.releases()?.len() > releases);
        self.check_needle(volume)
    }

    fn node(&self) -> Result<serde_json::Value> {
        self.cluster.plane.get("node", self.home().name)?.context("the node is gone")
    }
}
