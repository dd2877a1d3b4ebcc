//! `EncryptedVolume`: what a volume shall be, and what its node says of it.

#![expect(unreachable_pub, reason = "the derive repeats each struct in private")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use kube::KubeSchema;
use kube::ResourceExt as _;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

use super::FINALIZER;
use super::Quantity;
use crate::volume::Claim;
use crate::volume::Content;
use crate::volume::Error;
use crate::volume::Init;
use crate::volume::KeyUri;
use crate::volume::Place;
use crate::volume::PoolName;
use crate::volume::Profile;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::Volume;
use crate::volume::VolumeSpec;

/// What a volume shall be. Nothing of it changes but the URI of its key, which a rotation moves.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "coffer.dev",
    version = "v1alpha1",
    kind = "EncryptedVolume",
    plural = "encryptedvolumes",
    shortname = "encvol",
    category = "coffer",
    derive = "PartialEq",
    status = "EncryptedVolumeStatus",
    selectable = ".spec.nodeName",
    doc = "A volume whose bytes leave its node only as ciphertext. The controller makes it for a claim. To delete it by \
           hand, give it the annotation coffer.dev/confirm-delete with its own name as value.",
    validation = Rule::new("self.metadata.name.matches('^cv-[0-9a-f]{32}$')")
        .message("metadata.name must be cv- and 32 hexadecimal digits"),
    validation = Rule::new(
        "!(has(oldSelf.status) && has(oldSelf.status.everReady) && oldSelf.status.everReady) || \
         (has(self.status) && has(self.status.everReady) && self.status.everReady)"
    ).message("status.everReady is one-way: a volume that was Ready stays one that was"),
    printcolumn(name = "Claim", type_ = "string", json_path = ".spec.claim"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Size", type_ = "string", json_path = ".spec.size"),
    printcolumn(name = "Profile", type_ = "string", json_path = ".spec.profile"),
    printcolumn(name = "Attester", type_ = "string", json_path = ".status.attester"),
    printcolumn(name = "Attested", type_ = "date", json_path = ".status.lastAttested"),
    printcolumn(name = "Health", type_ = "string", json_path = ".status.health"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool", priority = 1),
    printcolumn(name = "Content", type_ = "string", json_path = ".spec.content", priority = 1),
    printcolumn(name = "Key", type_ = "string", json_path = ".spec.keyUri", priority = 1),
    printcolumn(name = "Integrity-Errors", type_ = "integer", json_path = ".status.integrityErrors", priority = 1)
)]
#[x_kube(validation = Rule::new(
    "self.nodeName == oldSelf.nodeName && self.pool == oldSelf.pool && self.name == oldSelf.name && \
     self.size == oldSelf.size && self.content == oldSelf.content && self.profile == oldSelf.profile && \
     has(self.init) == has(oldSelf.init) && (!has(self.init) || self.init == oldSelf.init) && \
     has(self.claim) == has(oldSelf.claim) && (!has(self.claim) || self.claim == oldSelf.claim)"
).message("spec is immutable, except spec.keyUri"))]
#[serde(rename_all = "camelCase")]
pub struct EncryptedVolumeSpec {
    /// The node whose pool holds the volume.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// Which of that node's pools.
    #[schemars(length(min = 1, max = 63))]
    pub pool: String,
    /// The name in CreateVolume, from which the volume's id is derived.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// Size of the volume's device.
    pub size: Quantity,
    /// A filesystem, or block for a raw device.
    #[schemars(with = "String", extend("enum" = ["ext4", "xfs", "block"]))]
    pub content: Content,
    /// Cryptographic parameters.
    #[schemars(with = "String", extend("enum" = Profile::ALL.map(Profile::as_str)))]
    pub profile: Profile,
    /// Which sectors get their tags before the volume is used, for a profile that has tags; seeded if it does not say.
    #[serde(default, skip_serializing_if = "Init::is_default")]
    #[schemars(with = "String", extend("enum" = Init::ALL.map(Init::as_str)))]
    pub init: Init,
    /// Where the secret is at the KBS. A change moves the volume to another secret, open or not, and the condition
    /// KeyRotated says whether it has moved.
    #[schemars(
        with = "String",
        regex(pattern = r"^kbs:///[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*){2}$")
    )]
    pub key_uri: KeyUri,
    /// The PersistentVolumeClaim behind the volume, as namespace/name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 507))]
    pub claim: Option<String>,
}

/// What the volume's node says of it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptedVolumeStatus {
    /// How far the volume has come. Absent until the node has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// One-way: whether the volume was ever formatted. A second witness beside the node's own record that it must never
    /// be formatted again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ever_ready: bool,
    /// Who made the proof for the last release of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attester: Option<String>,
    /// When the key was last released to the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_attested: Option<Time>,
    /// Healthy, or how bad the worst is that is wrong: Inaccessible or DataLoss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// How many of its sectors are known not to hold what was written there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub integrity_errors: Option<i64>,
    /// What is true of the volume and why, with words that say what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How far a volume has come.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The node will not make it, and has nothing of it on its disk.
    Rejected,
    /// Made; never formatted.
    Provisioned,
    /// Formatted, and closed.
    Ready,
    /// Open on its node.
    Staged,
    /// Erased; only the resource is left.
    Deleted,
}

impl Phase {
    /// Whether the node has bytes of the volume.
    #[must_use]
    pub fn is_made(self) -> bool {
        matches!(self, Self::Provisioned | Self::Ready | Self::Staged)
    }
}

impl EncryptedVolume {
    /// The resource that asks `node_name` for the volume of `spec`.
    #[must_use]
    pub fn asking(node_name: &str, spec: &VolumeSpec) -> Self {
        let claim = spec.claim.as_ref().map(|claim| format!("{}/{}", claim.namespace, claim.name));
        let mut resource = Self::new(
            spec.id().as_str(),
            EncryptedVolumeSpec {
                node_name: node_name.to_owned(),
                pool: spec.pool.to_string(),
                name: spec.name.clone(),
                size: Quantity(spec.payload_bytes),
                content: spec.content,
                profile: spec.profile,
                init: spec.init,
                key_uri: spec.key_uri.clone(),
                claim,
            },
        );
        resource.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        resource
    }

    /// What is asked for, and where.
    ///
    /// # Errors
    /// `Internal` if the resource's name is not that of its volume: somebody else made it.
    pub fn volume(&self) -> Result<Volume> {
        let claim = |text: &String| {
            let (namespace, name) = text.split_once('/')?;
            Some(Claim { namespace: namespace.to_owned(), name: name.to_owned() })
        };
        let spec = VolumeSpec {
            name: self.spec.name.clone(),
            pool: PoolName::parse("spec.pool", &self.spec.pool)?,
            payload_bytes: self.spec.size.0,
            content: self.spec.content,
            profile: self.spec.profile,
            init: self.spec.init,
            key_uri: self.spec.key_uri.clone(),
            claim: self.spec.claim.as_ref().and_then(claim),
        };
        let id = spec.id();
        if id.as_str() != self.name_any() {
            let message = format!("encvol {} is not named after its spec.name; delete it by hand", self.name_any());
            return Err(Error::new(Reason::Internal, message));
        }
        Ok(Volume { id, spec, place: Place::of(&self.spec.node_name) })
    }

    /// How far the volume has come; `None` until its node has answered.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        self.status.as_ref().and_then(|status| status.phase)
    }

    /// Whether the node has bytes of the volume.
    #[must_use]
    pub fn is_made(&self) -> bool {
        self.phase().is_some_and(Phase::is_made)
    }

    /// Whether the volume was ever formatted.
    #[must_use]
    pub fn was_ever_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.ever_ready)
    }

    /// Whether somebody has deleted the resource, which stays until its node has erased the volume.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// The condition `kind`, if its node has said anything of it.
    #[must_use]
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == kind)
    }

    /// The message of the condition `kind`, with its reason word in front.
    #[must_use]
    pub fn explanation(&self, kind: &str) -> Option<String> {
        let condition = self.condition(kind)?;
        Some(format!("{}: {}", condition.reason, condition.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::FsType;

    fn spec() -> VolumeSpec {
        VolumeSpec {
            name: "pvc-1".into(),
            pool: PoolName::default(),
            payload_bytes: 128 << 20,
            content: Content::Filesystem(FsType::Ext4),
            profile: Profile::Xts1,
            init: Init::Seeded,
            key_uri: KeyUri::parse("keyUri", "kbs:///a/b/c").expect("valid"),
            claim: Some(Claim { namespace: "shop".into(), name: "orders".into() }),
        }
    }

    #[test]
    fn what_is_asked_for_is_read_back() {
        let resource = EncryptedVolume::asking("node1", &spec());
        let json = serde_json::to_value(&resource).expect("serialises");
        assert_eq!(json["spec"]["size"], "128Mi");
        assert_eq!(json["spec"]["content"], "ext4");
        assert_eq!(json["spec"]["claim"], "shop/orders");
        let read: EncryptedVolume = serde_json::from_value(json).expect("parses");
        assert_eq!(read.volume().expect("ours"), Volume { id: spec().id(), spec: spec(), place: Place::of("node1") });
        assert_eq!((read.phase(), read.was_ever_ready(), read.is_deleted()), (None, false, false));
    }

    #[test]
    fn a_resource_under_another_volumes_name_is_not_believed() {
        let mut resource = EncryptedVolume::asking("node1", &spec());
        resource.metadata.name = Some(format!("cv-{}", "0".repeat(32)));
        assert_eq!(resource.volume().expect_err("refused").reason(), Reason::Internal);
    }
}
