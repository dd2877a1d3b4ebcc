//! The node's half of a cluster: makes and erases the volumes that resources ask of this node, moves them to the keys that
//! resources name, and shows in their status what has become of them.
//!
//! A node writes the status of its own volumes and pools and nothing else. What a resource says never permits a format
//! and never makes a volume twice: once the node has answered, only the disk says what is there.

mod pools;
mod rotation;
mod status;

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::StreamExt as _;
use kube::Api;
use kube::Client;
use kube::ResourceExt as _;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::runtime::Controller;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use serde_json::json;
use tokio_stream::wrappers::BroadcastStream;

use crate::cluster::EncryptedVolume;
use crate::cluster::EncryptedVolumeStatus;
use crate::cluster::Events;
use crate::cluster::Phase;
use crate::cluster::complain;
use crate::lifecycle::Lifecycle;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;
use pools::PoolReporter;
use rotation::Refusals;

/// How often a volume is looked at although nobody has said that anything changed.
const PERIOD: Duration = Duration::from_secs(300);
/// How soon what could not be done is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What works on the resources of one node.
pub struct Reconciler {
    client: Client,
    node_name: String,
    lifecycle: Lifecycle,
}

impl Reconciler {
    /// The resources in the cluster of `client` that name `node_name`, whose volumes are those of `lifecycle`.
    #[must_use]
    pub fn new(client: Client, node_name: String, lifecycle: Lifecycle) -> Self {
        Self { client, node_name, lifecycle }
    }

    /// Works until it is dropped.
    pub async fn run(self) {
        let pools = PoolReporter::new(self.client.clone(), self.node_name.clone(), self.lifecycle.clone());
        let settled = BroadcastStream::new(self.lifecycle.settled());
        let ended = settled.filter_map(|id| async { Some(ObjectRef::new(id.ok()?.as_str())) });
        let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node_name));
        let events = Events::of_node(self.client.clone(), &self.node_name);
        let api = Api::all(self.client);
        let refusals = Refusals::default();
        let volumes = Volumes { api, events, node_name: self.node_name, lifecycle: self.lifecycle, refusals };
        let reconciled = Controller::new(volumes.api.clone(), mine)
            .reconcile_on(ended)
            .run(|volume, volumes| async move { volumes.visit(&volume).await }, on_error, Arc::new(volumes))
            .for_each(complain);
        tokio::join!(reconciled, pools.run());
    }
}

fn on_error(volume: Arc<EncryptedVolume>, error: &Error, _: Arc<Volumes>) -> Action {
    tracing::warn!(volume = volume.name_any(), "{}", error.chain());
    Action::requeue(RETRY)
}

struct Volumes {
    api: Api<EncryptedVolume>,
    events: Events,
    node_name: String,
    lifecycle: Lifecycle,
    refusals: Refusals,
}

impl Volumes {
    /// Does what `volume` asks for and says what has become of it.
    async fn visit(&self, volume: &EncryptedVolume) -> Result<Action> {
        let Some(id) = VolumeId::parse(&volume.name_any()).filter(|_| volume.spec.node_name == self.node_name) else {
            return Ok(Action::await_change());
        };
        match volume.phase() {
            Some(Phase::Deleted | Phase::Rejected) => Ok(Action::await_change()),
            _ if volume.is_deleted() => self.erase(volume, id).await,
            None => self.make(volume, id).await,
            Some(_) => self.show(volume, id).await,
        }
    }

    async fn make(&self, volume: &EncryptedVolume, id: VolumeId) -> Result<Action> {
        let made = async {
            self.lifecycle.create(volume.volume()?.spec).await?;
            self.lifecycle.sight(id).await
        };
        let (status, next) = match made.await {
            Ok(sighting) => (status::provisioned(volume, &sighting), PERIOD),
            // The pool itself has said so: nothing of the volume is on its disk.
            Err(error) if error.reason() == Reason::NoSpace => (status::rejected(volume, &error), PERIOD),
            Err(error) => (status::pending(volume, &error), RETRY),
        };
        self.write(volume, status).await?;
        Ok(Action::requeue(next))
    }

    async fn erase(&self, volume: &EncryptedVolume, id: VolumeId) -> Result<Action> {
        match self.lifecycle.delete(id.clone(), Instant::now()).await {
            Ok(()) => {
                self.refusals.forget(&id);
                self.write(volume, status::erased(volume)).await?;
                Ok(Action::await_change())
            }
            Err(error) => {
                self.write(volume, status::not_erased(volume, &error)).await?;
                Ok(Action::requeue(RETRY))
            }
        }
    }

    async fn show(&self, volume: &EncryptedVolume, id: VolumeId) -> Result<Action> {
        // In the middle of an operation there is nothing worth a write; its end brings the next visit.
        if self.lifecycle.is_busy(&id) {
            return Ok(Action::requeue(PERIOD));
        }
        let (status, next) = match self.lifecycle.sight(id.clone()).await {
            Ok(sighting) if sighting.opens_with(&volume.spec.key_uri) => (status::seen(volume, &sighting), PERIOD),
            Ok(sighting) => (self.rotate(volume, &id, &sighting).await, rotation::PERIOD),
            // Nothing is made anew in place of what is gone.
            Err(error) => (status::unseen(volume, &error), PERIOD),
        };
        self.write(volume, status).await?;
        Ok(Action::requeue(next))
    }

    /// Writes `status` unless the resource says so already, and tells what is new in it.
    async fn write(&self, volume: &EncryptedVolume, status: EncryptedVolumeStatus) -> Result<()> {
        if volume.status.as_ref() == Some(&status) {
            return Ok(());
        }
        // With the version: what was computed from an older resource must not undo what is newer.
        let patch =
            Patch::Merge(json!({"metadata": {"resourceVersion": volume.resource_version()}, "status": &status}));
        match self.api.patch_status(&volume.name_any(), &PatchParams::default(), &patch).await {
            // A newer one comes by the watch, and is visited then.
            Err(kube::Error::Api(answer)) if answer.is_not_found() || answer.is_conflict() => Ok(()),
            Err(error) => {
                let message = "the volume's status cannot be written";
                Err(Error::new(Reason::ApiServerUnreachable, message).caused_by(error))
            }
            Ok(_) => {
                for news in status::news(volume, &status) {
                    self.events.tell(volume, news).await;
                }
                Ok(())
            }
        }
    }
}
