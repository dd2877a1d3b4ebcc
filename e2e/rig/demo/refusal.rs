//! Chapter 4: a node that the policy does not accept gets nothing and changes nothing.

use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use serde_json::Value;

use super::POD;
use super::POD_DEADLINE;
use super::Story;
use super::Volume;
use super::text;
use crate::install::KEY_URI;
use crate::process::read;
use crate::traces;
use crate::wait;

impl Story {
    pub(super) fn refuse(&mut self, volume: &Volume) -> Result<()> {
        let name = self.home().name;
        self.kbs.operate(&["deny", KEY_URI, name])?;
        self.delete_pod(volume)?;
        let before = traces::digests(&self.home().guest, &volume.id)?;
        let releases = self.kbs.releases()?.len();

        self.apply_example("pod.yaml")?;
        let event = self.refusals(POD, 2)?;
        let left = traces::in_kernel(&self.home().guest, &volume.id)?;
        traces::copy(&self.home().guest, &volume.id)?;
        let released = self.kbs.releases()?.len() - releases;
        let pod = self.pod()?.context("the pod is gone")?;
        // At once: each further refusal doubles the time after which the kubelet asks again.
        self.kbs.operate(&["allow", KEY_URI, name])?;
        let restored = Instant::now();
        self.show_refusal(&event, "PolicyDenied")?;
        let waiting = pod.pointer("/status/containerStatuses/0/state/waiting/reason");
        self.check("the pod stays in ContainerCreating", waiting.is_some_and(|reason| reason == "ContainerCreating"));
        self.check(&format!("no loop, mapper or mount is left {}", left.join("; ")), left.is_empty());
        self.check("the KBS released nothing", released == 0);

        self.ready_pod(POD_DEADLINE, |_| true)?;
        let seconds = restored.elapsed().as_secs_f64();
        let said = format!("the policy accepts the node again: the pod is Ready {seconds:.1} s later, by itself");
        self.check(&said, true);
        self.check_needle(volume)?;
        let after = traces::digests_of_copy(&self.home().guest)?;
        self.check("while it was refused, record, header and SHA-256 of the whole backing were as before", {
            after == before
        });
        Ok(())
    }

    /// Deletes the pod and waits until the node has closed the volume.
    pub(super) fn delete_pod(&mut self, volume: &Volume) -> Result<()> {
        read(&mut self.cluster.plane.kubectl(&["delete", "pod", POD]))?;
        wait::until(POD_DEADLINE, "the mapper to be gone", || {
            let left = traces::in_kernel(&self.home().guest, &volume.id)?;
            Ok(left.is_empty().then_some(()))
        })?;
        self.check("the pod is deleted, and loop, mapper and mounts are gone", true);
        Ok(())
    }

    /// Waits until the kubelet has reported `count` refusals of the pod `name` that is there now; returns the last Event.
    pub(super) fn refusals(&self, name: &str, count: u64) -> Result<Value> {
        let pod = self.cluster.plane.get("pod", name)?.context("the pod is gone")?;
        let selector = format!("reason=FailedMount,involvedObject.uid={}", text(&pod, "/metadata/uid")?);
        let arguments = ["get", "events", "--field-selector", &selector, "-o", "json"];
        wait::until(POD_DEADLINE, "a FailedMount", || {
            let list: Value = serde_json::from_str(&read(&mut self.cluster.plane.kubectl(&arguments))?)?;
            let events = list["items"].as_array().cloned().unwrap_or_default();
            let seen: u64 = events.iter().map(|event| event["count"].as_u64().unwrap_or(1)).sum();
            Ok(events.into_iter().next_back().filter(|_| seen >= count))
        })
    }

    pub(super) fn show_refusal(&mut self, event: &Value, reason: &str) -> Result<()> {
        let message = text(event, "/message")?;
        // The kubelet puts its own words and the gRPC code in front of what the driver says.
        let said = message.split_once(" desc = ").map_or(message.as_str(), |(_, said)| said);
        println!("           {said}");
        self.check(&format!("an Event FailedMount says {reason}: and what to do"), {
            said.strip_prefix(reason).is_some_and(|rest| rest.starts_with(": "))
        });
        Ok(())
    }
}
