//! Chapter 5: what one node may have, the other may not.

use anyhow::Context as _;
use anyhow::Result;

use super::POD_DEADLINE;
use super::Story;
use super::text;
use crate::control_plane::NODES;
use crate::objects;
use crate::objects::claim;
use crate::objects::of_class;
use crate::objects::on;
use crate::objects::pod;
use crate::process::read;
use crate::traces;
use crate::wait;

const NAME: &str = "stranger";

impl Story {
    /// A pod on the second node wants a volume whose secret is for the first alone.
    pub(super) fn refuse_second_node(&mut self) -> Result<()> {
        let [_, second] = NODES;
        let releases = self.kbs.releases()?.len();
        // The scheduler may have put the story's own volume on that node.
        let before = traces::mounts(&self.cluster.nodes[1].guest)?;
        let claim = of_class("first-only", claim(NAME, "64Mi"));
        self.cluster.plane.apply(&objects::list(&[claim, on(second, pod(NAME, &[NAME]))]))?;
        let event = self.refusals(NAME, 1)?;
        self.show_refusal(&event, "PolicyDenied")?;
        let bound = self.cluster.plane.get("pvc", NAME)?.context("the claim is gone")?;
        let pv = self.cluster.plane.get("pv", &text(&bound, "/spec/volumeName")?)?.context("the volume is gone")?;
        let id = text(&pv, "/spec/csi/volumeHandle")?;
        self.check_row(&id, "Provisioned", |row| {
            row["status"]["everReady"] != true && row["spec"]["nodeName"] == second
        })?;
        let left = traces::in_kernel(&self.cluster.nodes[1].guest, &id)?;
        self.check("the KBS released nothing, and the node holds nothing", {
            self.kbs.releases()?.len() == releases && left == before
        });
        read(&mut self.cluster.plane.kubectl(&["delete", "pod,pvc", NAME]))?;
        wait::until(POD_DEADLINE, "the second node's volume to be gone", || {
            Ok(self.cluster.plane.get("encvol", &id)?.is_none().then_some(()))
        })?;
        self.check("pod, claim and volume are deleted: it was never formatted, and leaves nothing", true);
        Ok(())
    }
}
