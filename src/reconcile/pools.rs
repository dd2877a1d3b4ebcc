//! Shows the pools of this node in their resources, and where directory, records and resources do not agree.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::error::Error as StdError;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::Client;
use kube::ResourceExt as _;
use kube::api::ListParams;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::PostParams;
use serde_json::Value;
use serde_json::json;
use tokio::time::MissedTickBehavior;

use crate::cluster::Disagreement;
use crate::cluster::EncryptedPool;
use crate::cluster::EncryptedPoolSpec;
use crate::cluster::EncryptedPoolStatus;
use crate::cluster::EncryptedVolume;
use crate::cluster::Quantity;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::PoolSighting;
use crate::volume::PoolName;

/// At most one write in this time.
const PERIOD: Duration = Duration::from_secs(10);
/// After so many periods a pool is shown again although nothing of it has changed: resources may have.
const TICKS_UNSEEN: u32 = 30;
/// The unit of sizes in a status: a pool's free space never stands still.
const UNIT_BYTES: u64 = 1 << 20;
/// Most disagreements that are shown of one pool.
const SHOWN: usize = 100;

/// The resources of a node's pools.
pub(super) struct PoolReporter {
    pools: Api<EncryptedPool>,
    volumes: Api<EncryptedVolume>,
    node_name: String,
    lifecycle: Lifecycle,
}

impl PoolReporter {
    /// The pools of `lifecycle` on `node_name`.
    pub(super) fn new(client: Client, node_name: String, lifecycle: Lifecycle) -> Self {
        Self { pools: Api::all(client.clone()), volumes: Api::all(client), node_name, lifecycle }
    }

    /// Works until it is dropped.
    pub(super) async fn run(self) {
        let mut due = tokio::time::interval(PERIOD);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut shown: HashMap<PoolName, EncryptedPoolStatus> = HashMap::new();
        let mut features = Vec::new();
        for tick in 0_u32.. {
            due.tick().await;
            if tick.is_multiple_of(TICKS_UNSEEN) {
                features = self.features().await;
            }
            let Ok(sightings) = self.lifecycle.sight_pools().await else { continue };
            for sighting in sightings {
                let status = self.status(&sighting, &features);
                if tick.is_multiple_of(TICKS_UNSEEN) || shown.get(&sighting.name) != Some(&status) {
                    match self.show(&sighting, status.clone()).await {
                        Ok(()) => drop(shown.insert(sighting.name, status)),
                        Err(error) => {
                            let error: &dyn StdError = &error;
                            tracing::warn!(pool = %sighting.name, error, "the pool's resource cannot be written");
                            shown.remove(&sighting.name);
                        }
                    }
                }
            }
        }
    }

    /// What the kernel can do. Modules that were loaded meanwhile add to it.
    async fn features(&self) -> Vec<String> {
        self.lifecycle.features().await.unwrap_or_else(|error| {
            tracing::warn!(error = error.chain(), "it is not shown what the kernel can do");
            Vec::new()
        })
    }

    /// What this machine alone can say of a pool.
    fn status(&self, sighting: &PoolSighting, features: &[String]) -> EncryptedPoolStatus {
        let (attester, features) = (Some(self.lifecycle.attester().to_owned()), features.to_vec());
        match &sighting.capacity {
            Ok(capacity) => EncryptedPoolStatus {
                ready: true,
                capacity: whole(capacity.total_bytes()),
                promised: whole(capacity.promised_bytes),
                free: whole(capacity.available_bytes),
                reserve: whole(capacity.reserve_bytes),
                largest_volume: whole(capacity.maximum_volume_bytes),
                attester,
                features,
                ..EncryptedPoolStatus::default()
            },
            Err(error) => EncryptedPoolStatus {
                reason: Some(error.reason().to_string()),
                message: Some(error.explanation()),
                attester,
                features,
                ..EncryptedPoolStatus::default()
            },
        }
    }

    async fn show(&self, sighting: &PoolSighting, mut status: EncryptedPoolStatus) -> kube::Result<()> {
        if status.ready {
            status.disagreements = self.disagreements(&sighting.name).await?;
        }
        let name = EncryptedPool::name_of(&self.node_name, &sighting.name);
        let spec = EncryptedPoolSpec {
            node_name: self.node_name.clone(),
            pool: sighting.name.to_string(),
            path: sighting.path.display().to_string(),
        };
        let known = match self.pools.get_opt(&name).await? {
            Some(known) => known,
            None => self.pools.create(&PostParams::default(), &EncryptedPool::new(&name, spec)).await?,
        };
        status.last_updated = known.status.as_ref().and_then(|status| status.last_updated.clone());
        if known.status.as_ref() == Some(&status) {
            return Ok(());
        }
        status.last_updated = Some(Time(Timestamp::now()));
        // The whole status: what is no longer said must go.
        let patch = Patch::Merge(json!({"status": null_where_absent(&status)}));
        self.pools.patch_status(&name, &PatchParams::default(), &patch).await.map(drop)
    }

    /// Where the pool and the resources of this node do not agree.
    async fn disagreements(&self, pool: &PoolName) -> kube::Result<Vec<Disagreement>> {
        // A pool that has just gone away shows so in its next status, and is not an empty one.
        let Ok(contents) = self.lifecycle.contents(pool.clone()).await else { return Ok(Vec::new()) };
        let mine = ListParams::default().fields(&format!("spec.nodeName={}", self.node_name));
        let resources = self.volumes.list(&mine).await?;
        let in_pool = resources.iter().filter(|resource| resource.spec.pool == pool.as_str());
        let mut missing: BTreeMap<String, &EncryptedVolume> =
            in_pool.map(|resource| (resource.name_any(), resource)).collect();
        let mut found = Vec::new();
        for (id, error) in contents {
            let (reason, message) = match (&error, missing.remove(id.as_str())) {
                (Some(error), _) => (error.reason().to_string(), error.explanation()),
                (None, None) => (
                    "Orphaned".to_owned(),
                    "it is in the pool and no encvol asks for it; `coffer volume purge` on the node removes it"
                        .to_owned(),
                ),
                (None, Some(_)) => continue,
            };
            found.push(Disagreement { volume: id.to_string(), reason, message });
        }
        found.extend(missing.values().copied().filter(|resource| resource.is_made()).map(|resource| Disagreement {
            volume: resource.name_any(),
            reason: "RecordMissing".to_owned(),
            message: "the node has made it and it is no longer in the pool; restore the pool from a copy".to_owned(),
        }));
        found.sort();
        found.truncate(SHOWN);
        Ok(found)
    }
}

fn whole(bytes: u64) -> Quantity {
    Quantity(bytes / UNIT_BYTES * UNIT_BYTES)
}

/// `status` with an explicit null for each field that a merge would otherwise keep.
fn null_where_absent(status: &EncryptedPoolStatus) -> Value {
    let mut value = json!({"reason": null, "message": null, "features": null, "disagreements": null});
    let said = serde_json::to_value(status).expect("a status has text keys only");
    value.as_object_mut().expect("an object").extend(said.as_object().cloned().unwrap_or_default());
    value
}
