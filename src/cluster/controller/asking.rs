//! Asking one node after the other for a volume, until one has made it.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

use kube::ResourceExt as _;
use kube::api::ListParams;
use kube::api::PostParams;

use super::ClusterPools;
use crate::cluster::EncryptedPool;
use crate::cluster::EncryptedVolume;
use crate::cluster::condition::PROVISIONED;
use crate::cluster::error::failed;
use crate::volume::Error;
use crate::volume::Place;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::Volume;
use crate::volume::VolumeSpec;
use crate::volume::Whereabouts;

/// What one node was asked, and how it answered.
#[derive(Default)]
struct Asked {
    /// The resource that this call has made.
    uid: Option<String>,
    /// Nodes that said no to this call.
    refusals: Vec<(String, String)>,
}

impl ClusterPools {
    /// Has the volume of `spec` made by one of the nodes that will do, or finds it as asked for.
    pub(super) async fn ask(&self, spec: VolumeSpec, whereabouts: &Whereabouts, deadline: Instant) -> Result<Volume> {
        let mut asked = Asked::default();
        loop {
            let Some(volume) = self.find(&spec.id()).await? else {
                let node_name = self.choose(&spec, whereabouts, &asked).await?;
                asked.uid = self.request(&node_name, &spec).await?;
                continue;
            };
            let made = volume.volume()?;
            if !made.spec.is_same_as(&spec) {
                return Err(made.spec.conflict(&spec));
            }
            if volume.is_deleted() {
                self.must_be_gone(&volume, deadline).await?;
                continue;
            }
            match volume.phase() {
                Some(phase) if phase.is_made() => return Ok(made),
                Some(_) => {
                    let is_ours = asked.uid.is_some() && asked.uid == volume.uid();
                    if is_ours {
                        let why = volume.explanation(PROVISIONED).unwrap_or_else(|| "it gave no reason".into());
                        asked.refusals.push((volume.spec.node_name.clone(), why));
                    }
                    self.must_be_gone(&volume, deadline).await?;
                }
                None => self.wait_for_answer(&volume, &made.place, whereabouts, deadline).await?,
            }
        }
    }

    /// The best node that has a pool of the class and was not asked yet.
    async fn choose(&self, spec: &VolumeSpec, whereabouts: &Whereabouts, asked: &Asked) -> Result<String> {
        let watched = self.watched_pools.state();
        if let Some(node_name) = best(watched.iter().map(Arc::as_ref), spec, whereabouts, asked) {
            return Ok(node_name);
        }
        // What is watched comes late: on its word alone nobody is told that there is no room.
        let pools = self.pools.list(&ListParams::default()).await.map_err(failed("list the pools"))?;
        best(pools.iter(), spec, whereabouts, asked).ok_or_else(|| {
            let refusals: Vec<_> = asked.refusals.iter().map(|(node, why)| format!("{node}: {why}")).collect();
            let message = match &refusals[..] {
                [] => format!(
                    "no node that will do has a pool {:?} that is ready; see kubectl get encpool",
                    spec.pool.as_str()
                ),
                refusals => refusals.join("; "),
            };
            Error::new(Reason::NoSpace, message)
        })
    }

    /// Asks `node_name` for the volume; the uid of the resource, `None` if there was one already.
    async fn request(&self, node_name: &str, spec: &VolumeSpec) -> Result<Option<String>> {
        let resource = EncryptedVolume::asking(node_name, spec);
        match self.volumes.create(&PostParams::default(), &resource).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
            created => created.map(|volume| volume.uid()).map_err(failed("create the volume's resource")),
        }
    }

    /// Waits until the node of a pending volume has answered, or the volume is gone.
    async fn wait_for_answer(
        &self,
        volume: &EncryptedVolume,
        place: &Place,
        whereabouts: &Whereabouts,
        deadline: Instant,
    ) -> Result<()> {
        let node_name = &volume.spec.node_name;
        let node = self.nodes.get_metadata_opt(node_name).await.map_err(failed("read the volume's node"))?;
        if node.is_none() {
            self.must_be_gone(volume, deadline).await?;
            return Err(Error::new(Reason::NoSpace, format!("node {node_name} left the cluster before it answered")));
        }
        let pending = || {
            let message =
                format!("node {node_name} has not answered yet; see kubectl describe encvol {}", volume.name_any());
            Error::new(Reason::OperationPending, message)
        };
        if !whereabouts.allow(place) {
            return Err(pending());
        }
        let is_answered = |volume: Option<&EncryptedVolume>| {
            volume.is_none_or(|volume| volume.phase().is_some() || volume.is_deleted())
        };
        if self.wait(&volume.name_any(), is_answered, deadline).await? { Ok(()) } else { Err(pending()) }
    }

    async fn must_be_gone(&self, volume: &EncryptedVolume, deadline: Instant) -> Result<()> {
        if self.remove(volume, deadline).await? {
            return Ok(());
        }
        let message = format!("an earlier volume {} is still being deleted", volume.name_any());
        Err(Error::new(Reason::OperationPending, message))
    }
}

/// The node of the best of `pools`: one with room before one that seems full, then one that is preferred, then the
/// emptiest.
fn best<'a>(
    pools: impl Iterator<Item = &'a EncryptedPool>,
    spec: &VolumeSpec,
    whereabouts: &Whereabouts,
    asked: &Asked,
) -> Option<String> {
    let was_asked = |node: &String| asked.refusals.iter().any(|(refusing, _)| refusing == node);
    let best = pools
        .filter(|pool| pool.spec.pool == spec.pool.as_str() && pool.is_ready())
        .filter(|pool| whereabouts.allow(&Place::of(&pool.spec.node_name)) && !was_asked(&pool.spec.node_name))
        .min_by_key(|pool| {
            let capacity = pool.capacity();
            let is_full = capacity.maximum_volume_bytes < spec.payload_bytes;
            (is_full, whereabouts.rank(&Place::of(&pool.spec.node_name)), Reverse(capacity.available_bytes))
        });
    best.map(|pool| pool.spec.node_name.clone())
}
