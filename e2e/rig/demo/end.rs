//! Chapter 9: what is deleted leaves nothing on the node.

use anyhow::Result;

use super::CLAIM;
use super::POD;
use super::Story;
use super::Volume;
use crate::install::DRIVER;
use crate::process::read;
use crate::traces;
use crate::traces::POOL;
use crate::wait;

impl Story {
    pub(super) fn end(&mut self, volume: &Volume) -> Result<()> {
        let objects = [("pod", POD), ("pvc", CLAIM), ("pv", volume.pv.as_str()), ("encvol", volume.id.as_str())];
        for (kind, name) in &objects[..2] {
            read(&mut self.cluster.plane.kubectl(&["delete", kind, name, "--wait=false"]))?;
        }
        wait::until(wait::seconds(120), "pod, claim, volume and resource to be gone", || {
            for (kind, name) in &objects {
                if self.cluster.plane.get(kind, name)?.is_some() {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })?;
        self.check("pod, claim, volume and EncryptedVolume are gone from Kubernetes", true);
        self.check_nothing_left(volume)
    }

    fn check_nothing_left(&mut self, volume: &Volume) -> Result<()> {
        let guest = &self.home().guest;
        // The kubelet removes a pod's directory in rounds of its own, a moment after the pod's object.
        let mut left = Vec::new();
        let clean = wait::until(wait::seconds(60), "the kubelet's round", || {
            left = traces::of_driver(guest, DRIVER, &[&volume.id, &volume.pv])?;
            Ok(left.is_empty().then_some(()))
        });
        for line in &left {
            println!("           left: {line}");
        }
        let pool = guest.check(&format!("ls -A {POOL}"))?;
        self.check("the pool's directory holds pool.json and nothing else", pool == "pool.json\n");
        self.check("no loop, dm device, mount or directory of the kubelet is left", clean.is_ok());
        Ok(())
    }
}
