//! `EncryptedPool`: what a node says of one of its pools.

#![expect(clippy::duplicated_attributes, reason = "columns of a table may have the same type")]
#![expect(unreachable_pub, reason = "the derive repeats each struct in private")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use kube::KubeSchema;
use serde::Deserialize;
use serde::Serialize;

use super::Quantity;
use crate::provision::Capacity;
use crate::volume::PoolName;

/// Which pool of which node. The node makes the resource and nobody changes it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "coffer.dev",
    version = "v1alpha1",
    kind = "EncryptedPool",
    plural = "encryptedpools",
    shortname = "encpool",
    category = "coffer",
    derive = "PartialEq",
    status = "EncryptedPoolStatus",
    doc = "A directory of a node that holds volumes. The node makes and maintains it.",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Path", type_ = "string", json_path = ".spec.path"),
    printcolumn(name = "Capacity", type_ = "string", json_path = ".status.capacity"),
    printcolumn(name = "Promised", type_ = "string", json_path = ".status.promised"),
    printcolumn(name = "Free", type_ = "string", json_path = ".status.free"),
    printcolumn(name = "Ready", type_ = "boolean", json_path = ".status.ready"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("self.nodeName == oldSelf.nodeName && self.pool == oldSelf.pool")
    .message("spec.nodeName and spec.pool are immutable"))]
#[serde(rename_all = "camelCase")]
pub struct EncryptedPoolSpec {
    /// The node.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// What StorageClasses call the pool.
    #[schemars(length(min = 1, max = 63))]
    pub pool: String,
    /// The directory on the node.
    #[schemars(length(max = 4095))]
    pub path: String,
}

/// What a node says of its pool.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptedPoolStatus {
    /// Whether volumes can be made and opened there now.
    pub ready: bool,
    /// Why it is not ready: the stable reason word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it is not ready, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Sum of the payloads that it can hold: what is promised and what is free.
    #[serde(default)]
    pub capacity: Quantity,
    /// Sum of the payloads that were promised.
    #[serde(default)]
    pub promised: Quantity,
    /// Sum of the payloads that can still be promised.
    #[serde(default)]
    pub free: Quantity,
    /// What is never promised: it pays for headers and the pool's own bookkeeping.
    #[serde(default)]
    pub reserve: Quantity,
    /// The largest volume that can be made now.
    #[serde(default)]
    pub largest_volume: Quantity,
    /// Who proves what the node is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attester: Option<String>,
    /// What the node's kernel can do: versions of device-mapper targets, and words for what they are able to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Where directory, records and resources do not agree. Nothing of it is deleted on its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub disagreements: Vec<Disagreement>,
    /// When the node last wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<Time>,
}

/// One volume about which directory, record and resource do not agree.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disagreement {
    /// The volume.
    pub volume: String,
    /// The stable word: Orphaned, RecordMissing, RecordDamaged, ...
    pub reason: String,
    /// What was found and what to do.
    pub message: String,
}

impl EncryptedPool {
    /// The resource's name: a node has one for each of its pools.
    #[must_use]
    pub fn name_of(node_name: &str, pool: &PoolName) -> String {
        format!("{pool}.{node_name}")
    }

    /// Whether volumes can be made there now, as far as the node has said.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.ready)
    }

    /// What can still be promised there; nothing while the pool is not ready.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        let status = self.status.as_ref().filter(|status| status.ready);
        status.map_or_else(Capacity::default, |status| Capacity {
            available_bytes: status.free.0,
            maximum_volume_bytes: status.largest_volume.0,
            promised_bytes: status.promised.0,
            reserve_bytes: status.reserve.0,
        })
    }
}
