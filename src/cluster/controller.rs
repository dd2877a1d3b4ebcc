//! Makes volumes by asking nodes for them: the provisioner of a cluster.
//!
//! A volume is a resource that names a node. The node answers in its status, and it alone knows its space: what it
//! rejects is asked of the next node, or given back to the scheduler. No answer is an answer only once the node itself
//! has left the cluster.

mod asking;

use std::time::Instant;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::Client;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use kube::api::ListParams;
use kube::api::Preconditions;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector;
use kube::runtime::reflector::Store;
use kube::runtime::wait::Condition;
use kube::runtime::wait::await_condition;
use kube::runtime::wait::conditions::is_deleted;
use kube::runtime::watcher;

use super::EncryptedPool;
use super::EncryptedVolume;
use super::condition;
use super::error::failed;
use super::error::unreachable;
use crate::provision::Capacity;
use crate::provision::Provisioner;
use crate::volume::Error;
use crate::volume::HealthEntry;
use crate::volume::HealthStatus;
use crate::volume::Place;
use crate::volume::PoolName;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::Volume;
use crate::volume::VolumeId;
use crate::volume::VolumeSpec;
use crate::volume::Whereabouts;

/// The pools of all nodes of a cluster.
#[derive(Clone)]
pub struct ClusterPools {
    volumes: Api<EncryptedVolume>,
    nodes: Api<Node>,
    pools: Api<EncryptedPool>,
    watched_pools: Store<EncryptedPool>,
}

impl ClusterPools {
    /// The pools of the cluster of `client`, which are watched from now on.
    #[must_use]
    pub fn watch(client: Client) -> Self {
        let pools: Api<EncryptedPool> = Api::all(client.clone());
        let (watched_pools, writer) = reflector::store();
        let reflected =
            watcher(pools.clone(), watcher::Config::default()).default_backoff().reflect(writer).for_each(|event| {
                if let Err(error) = event {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the pools cannot be watched");
                }
                std::future::ready(())
            });
        tokio::spawn(reflected);
        Self { volumes: Api::all(client.clone()), nodes: Api::all(client), pools, watched_pools }
    }

    async fn find(&self, id: &VolumeId) -> Result<Option<EncryptedVolume>> {
        self.volumes.get_opt(id.as_str()).await.map_err(failed("read the volume's resource"))
    }

    /// The volume's resource, if its node has made the volume.
    async fn made(&self, id: &VolumeId) -> Result<EncryptedVolume> {
        self.find(id)
            .await?
            .filter(EncryptedVolume::is_made)
            .ok_or_else(|| Error::new(Reason::VolumeNotFound, format!("there is no volume {id} in this cluster")))
    }

    /// Waits until `condition` holds for the resource of `id`; `false` if it does not by `deadline`.
    async fn wait(&self, id: &str, condition: impl Condition<EncryptedVolume>, deadline: Instant) -> Result<bool> {
        let met = await_condition(self.volumes.clone(), id, condition);
        match tokio::time::timeout_at(deadline.into(), met).await {
            Ok(met) => met.map(|_| true).map_err(|error| unreachable("watch the volume's resource", error)),
            Err(_) => Ok(false),
        }
    }

    /// Deletes `volume`, and waits until its resource is gone. `false` if it is not by `deadline`.
    async fn remove(&self, volume: &EncryptedVolume, deadline: Instant) -> Result<bool> {
        let (name, uid) = (volume.name_any(), volume.uid().unwrap_or_default());
        if !volume.is_deleted() {
            let only_this = Preconditions { uid: Some(uid.clone()), resource_version: None };
            let parameters = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
            match self.volumes.delete(&name, &parameters).await {
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
                outcome => drop(outcome.map_err(failed("delete the volume's resource"))?),
            }
        }
        self.wait(&name, is_deleted(&uid), deadline).await
    }
}

#[async_trait]
impl Provisioner for ClusterPools {
    async fn ready(&self) -> Result<()> {
        Ok(())
    }

    async fn create(&self, spec: VolumeSpec, whereabouts: Whereabouts, deadline: Instant) -> Result<Volume> {
        self.ask(spec, &whereabouts, deadline).await
    }

    async fn delete(&self, id: VolumeId, deadline: Instant) -> Result<()> {
        let Some(volume) = self.find(&id).await? else { return Ok(()) };
        if self.remove(&volume, deadline).await? {
            return Ok(());
        }
        let why = self.find(&id).await?.and_then(|volume| volume.explanation(condition::ERASED));
        let node = &volume.spec.node_name;
        let message = why.unwrap_or_else(|| format!("node {node} has not answered yet"));
        Err(Error::new(Reason::OperationPending, format!("volume {id} is not erased yet: {message}")))
    }

    async fn get(&self, id: VolumeId) -> Result<Volume> {
        self.made(&id).await?.volume()
    }

    async fn list(&self) -> Result<Vec<Volume>> {
        let resources = self.volumes.list(&ListParams::default()).await.map_err(failed("list the volumes"))?;
        let readable = |resource: EncryptedVolume| {
            resource.volume().inspect_err(|error| tracing::warn!(error = error.chain(), "a resource is not ours")).ok()
        };
        let made = resources.items.into_iter().filter(EncryptedVolume::is_made);
        let mut volumes: Vec<Volume> = made.filter_map(readable).collect();
        volumes.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(volumes)
    }

    async fn capacity(&self, pool: &PoolName, place: Option<&Place>) -> Result<Capacity> {
        let is_meant = |candidate: &EncryptedPool| {
            candidate.spec.pool == pool.as_str()
                && place.is_none_or(|place| *place == Place::of(&candidate.spec.node_name))
        };
        let sum = |sum: Capacity, pool: &Capacity| Capacity {
            available_bytes: sum.available_bytes.saturating_add(pool.available_bytes),
            maximum_volume_bytes: sum.maximum_volume_bytes.max(pool.maximum_volume_bytes),
            promised_bytes: sum.promised_bytes.saturating_add(pool.promised_bytes),
            reserve_bytes: sum.reserve_bytes.saturating_add(pool.reserve_bytes),
        };
        if self.watched_pools.wait_until_ready().now_or_never().is_none() {
            return Err(Error::new(Reason::ApiServerUnreachable, "the pools of the cluster are not listed yet"));
        }
        let pools = self.watched_pools.state();
        let capacities: Vec<_> = pools.iter().filter(|pool| is_meant(pool)).map(|pool| pool.capacity()).collect();
        Ok(capacities.iter().fold(Capacity::default(), sum))
    }

    async fn health(&self, id: VolumeId) -> Result<Vec<HealthEntry>> {
        let volume = self.made(&id).await?;
        let health = volume.status.as_ref().and_then(|status| status.health.as_deref());
        let Some(status) = health.and_then(HealthStatus::parse) else { return Ok(Vec::new()) };
        let told = volume.condition(condition::HEALTHY);
        Ok(vec![HealthEntry {
            status,
            reason: told.map_or_else(|| status.to_string(), |told| told.reason.clone()),
            message: told.map(|told| told.message.clone()).unwrap_or_default(),
        }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pools_that_were_never_listed_are_not_said_to_be_full() {
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().expect("an address"));
        let pools = ClusterPools::watch(Client::try_from(nowhere).expect("a client"));
        let answer = pools.capacity(&PoolName::default(), None).await;
        assert_eq!(answer.expect_err("nothing is known yet").reason(), Reason::ApiServerUnreachable);
    }
}
