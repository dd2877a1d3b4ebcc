//! What a pod and an operator see of sectors that somebody has changed on the disk.

use anyhow::Context as _;
use anyhow::Result;
use serde_json::Value;

use super::Scenario;
use super::scene::DEADLINE;
use super::scene::Scene;
use crate::objects::DEVICE;
use crate::objects::claim;
use crate::objects::device_pod;
use crate::objects::of_class;
use crate::objects::raw;
use crate::traces::POOL;
use crate::wait;

const REASON: &str = "IntegrityError";

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario { name: "a_changed_sector_is_an_error_and_a_loss_of_data", run: changed, warnings: &[] }];

/// A raw device, of which every sector has its tag from the beginning.
fn changed(scene: &mut Scene) -> Result<()> {
    let device = raw(of_class("tags", claim("device", "64Mi")));
    scene.apply(&[device, device_pod("user", "device")])?;
    scene.ready("user")?;
    let read = &format!("cat {DEVICE} >/dev/null && echo whole");
    anyhow::ensure!(scene.exec("user", read)? == "whole", "an untouched device is read to its end");
    let volume = scene.volume("device")?;
    let guest = &scene.home(&volume).guest;
    let backing = format!("{POOL}/{}/backing", volume.id);
    guest.check(&format!(
        "sync; dd if=/dev/urandom of={backing} bs=1M seek=48 count=1 conv=notrunc,fsync 2>/dev/null
         echo 3 >/proc/sys/vm/drop_caches"
    ))?;
    let refused = scene.exec("user", read).err().context("changed sectors were read without an error")?;
    anyhow::ensure!(format!("{refused:#}").contains("Input/output error"), "{refused:#}");

    let resource = wait::until(DEADLINE, "the resource to tell of the loss", || {
        Ok(scene.get("encvol", &volume.id)?.filter(|resource| resource["status"]["health"] == "DataLoss"))
    })?;
    let conditions = resource["status"]["conditions"].as_array().context("there are conditions")?;
    let told = conditions.iter().any(|condition| condition["reason"] == REASON);
    anyhow::ensure!(told, "no condition says {REASON}: {conditions:?}");
    wait::until(DEADLINE, "an Event on the volume", || {
        let events = format!("get events --all-namespaces --field-selector reason={REASON} --output json");
        let events: Value = serde_json::from_str(&scene.kubectl(&events)?)?;
        let of_volume = |event: &Value| event["involvedObject"]["name"] == volume.id;
        Ok(events["items"].as_array().is_some_and(|events| events.iter().any(of_volume)).then_some(()))
    })?;
    wait::until(DEADLINE, "the pod's volumeHealth", || {
        let pod = scene.get("pod", "user")?.context("the pod runs")?;
        Ok(pod["status"]["volumeHealth"].to_string().contains(REASON).then_some(()))
    })
}
