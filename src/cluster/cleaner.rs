//! Lets the resources of deleted volumes go: once their node has erased them, or is itself gone for good.
//!
//! Every replica of the controller does this; what one has done, the others find done.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
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
use super::FINALIZER;
use super::News;
use super::Phase;
use super::error::again;
use super::error::complain;
use super::retained::tell_retained;

/// How often it is looked whether the node of a volume that waits for it is still in the cluster.
const NODE_PERIOD: Duration = Duration::from_secs(15);

struct Cleaner {
    volumes: Api<EncryptedVolume>,
    nodes: Api<Node>,
    events: Events,
}

/// Lets go of what is deleted, and says what to do with what is retained. Works until it is dropped.
pub async fn clean(client: Client) {
    let volumes: Api<EncryptedVolume> = Api::all(client.clone());
    let events = Events::of_controller(client.clone());
    let cleaner = Cleaner { volumes: volumes.clone(), nodes: Api::all(client.clone()), events: events.clone() };
    let cleaned = Controller::new(volumes, watcher::Config::default())
        .run(|volume, cleaner| async move { cleaner.visit(&volume).await }, on_error, Arc::new(cleaner))
        .for_each(complain);
    tokio::join!(cleaned, tell_retained(client, events));
}

fn on_error(volume: Arc<EncryptedVolume>, error: &kube::Error, _: Arc<Cleaner>) -> Action {
    again(&*volume, error, "a deleted volume's resource stays for now")
}

impl Cleaner {
    async fn visit(&self, volume: &EncryptedVolume) -> kube::Result<Action> {
        if !volume.is_deleted() || !volume.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(Action::await_change());
        }
        if matches!(volume.phase(), Some(Phase::Deleted | Phase::Rejected)) {
            self.let_go(volume).await?;
            return Ok(Action::await_change());
        }
        if self.nodes.get_metadata_opt(&volume.spec.node_name).await?.is_some() {
            return Ok(Action::requeue(NODE_PERIOD));
        }
        if self.let_go(volume).await? {
            self.tell_bytes_are_left(volume).await;
        }
        Ok(Action::await_change())
    }

    /// Lets Kubernetes remove the resource; false if another replica did.
    async fn let_go(&self, volume: &EncryptedVolume) -> kube::Result<bool> {
        let others: Vec<_> = volume.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        // With the version: of two replicas one wins, and a status that came meanwhile is looked at again.
        let patch = json!({"metadata": {"finalizers": others, "resourceVersion": volume.resource_version()}});
        match self.volumes.patch_metadata(&volume.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
            outcome => outcome.map(|_resource| true),
        }
    }

    async fn tell_bytes_are_left(&self, volume: &EncryptedVolume) {
        let note = format!(
            "volume {} is deleted, but its node {} left the cluster before it could erase it; if that machine comes back, \
             run `coffer volume purge` there",
            volume.name_any(),
            volume.spec.node_name
        );
        tracing::warn!(volume = volume.name_any(), "{note}");
        let news = News { warning: true, reason: "BytesLeftBehind".into(), action: "Delete", note };
        self.events.tell(volume, news).await;
    }
}
