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
        let driver = "pgrep -x coffer";
        let before = self.cluster.guest.check(driver)?;
        self.apply_example("")?;
        self.ready_pod(POD_DEADLINE, |_| true)?;
        self.check("the pod is Ready", true);
        let here = self.cluster.guest.check(driver)?;
        self.check("the running driver saw the new pool: it is still the same process", here == before);

        let claim = self.cluster.plane.get("pvc", CLAIM)?.context("the claim is gone")?;
        let pv = text(&claim, "/spec/volumeName")?;
        let object = self.cluster.plane.get("pv", &pv)?.context("the volume of a bound claim is gone")?;
        let id = text(&object, "/spec/csi/volumeHandle")?;
        println!("           volume {id}");
        let needle = self.in_pod(WRITE_NEEDLE)?;
        self.check("the pod wrote 64 random bytes, with fsync", needle.len() == 64);
        Ok(Volume { id, pv, needle })
    }
}
