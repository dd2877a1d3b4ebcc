//! Says what to do next with a volume that its claim has left behind: its PersistentVolume is Released and retains it.
//!
//! Every replica of the controller looks; the one that marks the volume's resource tells.

use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::Api;
use kube::Client;
use kube::ResourceExt as _;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::runtime::watcher;
use serde_json::json;

use super::EncryptedVolume;
use super::Events;
use super::News;
use super::error::again;
use super::error::complain;
use crate::volume::DRIVER_NAME;

/// On a volume's resource: the uid of the claim that left it behind, once that was told.
const RETAINED: &str = "coffer.dev/retained";

struct Retained {
    volumes: Api<EncryptedVolume>,
    events: Events,
}

/// Works until it is dropped.
pub(super) async fn tell_retained(client: Client, events: Events) {
    let retained = Retained { volumes: Api::all(client.clone()), events };
    Controller::new(Api::<PersistentVolume>::all(client), watcher::Config::default())
        .run(|pv, retained| async move { retained.visit(&pv).await }, on_error, Arc::new(retained))
        .for_each(complain)
        .await;
}

fn on_error(pv: Arc<PersistentVolume>, error: &kube::Error, _: Arc<Retained>) -> Action {
    again(&*pv, error, "it is not told yet that a volume is retained")
}

impl Retained {
    async fn visit(&self, pv: &PersistentVolume) -> kube::Result<Action> {
        if let Some((id, claim)) = left_behind(pv)
            && let Some(volume) = self.volumes.get_opt(id).await?
            && !volume.is_deleted()
            && volume.annotations().get(RETAINED).map(String::as_str) != claim.uid.as_deref()
        {
            // With the version: of two replicas one wins, and the other finds it told.
            let told = json!({RETAINED: claim.uid});
            let patch = json!({"metadata": {"annotations": told, "resourceVersion": volume.resource_version()}});
            self.volumes.patch_metadata(id, &PatchParams::default(), &Patch::Merge(patch)).await?;
            self.events.tell(&volume, news(pv, claim)).await;
        }
        Ok(Action::await_change())
    }
}

/// The volume that `pv` retains and the claim that has left it, if that is so.
fn left_behind(pv: &PersistentVolume) -> Option<(&str, &ObjectReference)> {
    let spec = pv.spec.as_ref()?;
    let csi = spec.csi.as_ref().filter(|csi| csi.driver == DRIVER_NAME)?;
    let is_released = pv.status.as_ref()?.phase.as_deref() == Some("Released");
    let is_retained = spec.persistent_volume_reclaim_policy.as_deref() == Some("Retain");
    let claim = spec.claim_ref.as_ref().filter(|claim| claim.uid.is_some())?;
    (is_released && is_retained && pv.metadata.deletion_timestamp.is_none()).then_some((&csi.volume_handle, claim))
}

fn news(pv: &PersistentVolume, claim: &ObjectReference) -> News {
    let (pv, part) = (pv.name_any(), |part: &Option<String>| part.clone().unwrap_or_default());
    let note = format!(
        "claim {}/{} is deleted and PersistentVolume {pv} retains the volume with its data. To destroy the data, run \
         kubectl patch pv {pv} -p '{{\"spec\":{{\"persistentVolumeReclaimPolicy\":\"Delete\"}}}}'. To use it again, run \
         kubectl patch pv {pv} -p '{{\"spec\":{{\"claimRef\":null}}}}' and make a claim with spec.volumeName {pv}",
        part(&claim.namespace),
        part(&claim.name),
    );
    News { warning: false, reason: "Retained".into(), action: "Release", note }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pv(driver: &str, policy: &str, phase: &str) -> PersistentVolume {
        serde_json::from_value(json!({
            "metadata": {"name": "pvc-1"},
            "spec": {
                "csi": {"driver": driver, "volumeHandle": "cv-1"},
                "persistentVolumeReclaimPolicy": policy,
                "claimRef": {"namespace": "shop", "name": "orders", "uid": "u"},
            },
            "status": {"phase": phase},
        }))
        .expect("a persistent volume")
    }

    #[test]
    fn only_what_is_released_and_retained_is_left_behind() {
        assert_eq!(left_behind(&pv(DRIVER_NAME, "Retain", "Released")).expect("left behind").0, "cv-1");
        for (driver, policy, phase) in [
            ("other.example", "Retain", "Released"),
            (DRIVER_NAME, "Delete", "Released"),
            (DRIVER_NAME, "Retain", "Bound"),
            (DRIVER_NAME, "Retain", "Available"),
        ] {
            assert!(left_behind(&pv(driver, policy, phase)).is_none(), "{driver} {policy} {phase}");
        }
    }

    #[test]
    fn what_to_do_next_fits_into_a_note() {
        let mut pv = pv(DRIVER_NAME, "Retain", "Released");
        pv.metadata.name = Some(format!("pvc-{}", "0".repeat(36)));
        let long = ObjectReference {
            namespace: Some("n".repeat(63)),
            name: Some("c".repeat(253)),
            ..ObjectReference::default()
        };
        let note = news(&pv, &long).note;
        assert!(note.len() <= 1024, "{} bytes", note.len());
        assert!(note.contains(r#"-p '{"spec":{"claimRef":null}}'"#), "{note}");
    }
}
