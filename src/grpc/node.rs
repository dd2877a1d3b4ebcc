//! The Node service: from the request to one call of the lifecycle and back.
//!
//! Checks come in the order that callers rely on: is every required field there, does the volume exist, does the rest
//! make sense. Unstage and unpublish go on without a pool: they take down what the kernel holds.

use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::async_trait;

use super::access::Access;
use super::call::answer;
use super::field;
use super::health;
use super::proto::csi;
use super::proto::csi::StorageHealthErrorType::StorageDegraded as Degraded;
use super::proto::csi::StorageHealthErrorType::StorageUnreachable as Unreachable;
use super::proto::csi::VolumeUsage;
use super::proto::csi::node_get_storage_health_response::StorageBackendHealth;
use super::proto::csi::node_service_capability::Rpc;
use super::proto::csi::node_service_capability::Type;
use super::proto::csi::node_service_capability::rpc::Type as RpcType;
use super::proto::csi::volume_usage::Unit;
use super::status;
use super::topology;
use crate::device::Usage;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::PublishRequest;
use crate::lifecycle::StageRequest;
use crate::metrics::Metrics;
use crate::volume::Content;
use crate::volume::Error;
use crate::volume::Place;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;
use crate::volume::VolumeSpec;

/// What the Node service offers; everything else answers UNIMPLEMENTED.
const CAPABILITIES: [RpcType; 5] = [
    RpcType::StageUnstageVolume,
    RpcType::GetVolumeStats,
    RpcType::SingleNodeMultiWriter,
    RpcType::GetVolumeHealth,
    RpcType::GetStorageHealth,
];

/// The Node service over the volumes of this machine.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) lifecycle: Lifecycle,
    /// What Kubernetes calls this node.
    pub(super) name: String,
    /// 0 is no limit.
    pub(super) max_volumes: u32,
    pub(super) metrics: Metrics,
}

#[async_trait]
impl csi::node_server::Node for Node {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let request = request.get_ref();
        answer(&self.metrics, request, async {
            self.lifecycle.stage(self.stage_request(request).await?).await?;
            Ok(csi::NodeStageVolumeResponse {})
        })
        .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let request = request.get_ref();
        answer(&self.metrics, request, async {
            field::required("volume_id", &request.volume_id)?;
            field::required("staging_target_path", &request.staging_target_path)?;
            if let Some(id) = VolumeId::parse(&request.volume_id) {
                let staging_path = field::path("staging_target_path", &request.staging_target_path)?;
                self.lifecycle.unstage(id, staging_path).await?;
            }
            Ok(csi::NodeUnstageVolumeResponse {})
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let request = request.get_ref();
        answer(&self.metrics, request, async {
            self.lifecycle.publish(self.publish_request(request).await?).await?;
            Ok(csi::NodePublishVolumeResponse {})
        })
        .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let request = request.get_ref();
        answer(&self.metrics, request, async {
            field::required("volume_id", &request.volume_id)?;
            field::required("target_path", &request.target_path)?;
            if let Some(id) = VolumeId::parse(&request.volume_id) {
                self.lifecycle.unpublish(id, field::path("target_path", &request.target_path)?).await?;
            }
            Ok(csi::NodeUnpublishVolumeResponse {})
        })
        .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let request = request.get_ref();
        answer(&self.metrics, request, async {
            field::required("volume_id", &request.volume_id)?;
            // Nothing is ever at a relative path, which is therefore not found and not a bad argument.
            field::required("volume_path", &request.volume_path)?;
            let id = self.find(&request.volume_id).await?;
            let usage = self.lifecycle.usage(id, request.volume_path.clone().into()).await?;
            Ok(csi::NodeGetVolumeStatsResponse { usage: wire_usage(usage) })
        })
        .await
    }

    async fn node_get_volume_health(
        &self,
        request: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        let request = request.get_ref();
        answer(&self.metrics, request, async {
            let entries = self.lifecycle.health(self.find(&request.volume_id).await?).await?;
            let volume_health = Some(health::of_volume(&request.volume_id, &entries));
            Ok(csi::NodeGetVolumeHealthResponse { volume_health })
        })
        .await
    }

    async fn node_get_storage_health(
        &self,
        request: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Result<Response<csi::NodeGetStorageHealthResponse>, Status> {
        answer(&self.metrics, request.get_ref(), async {
            Ok(csi::NodeGetStorageHealthResponse { backend_health: self.storage_health().await? })
        })
        .await
    }

    async fn node_get_capabilities(
        &self,
        request: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let capability =
            |rpc: RpcType| csi::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: rpc.into() })) };
        answer(&self.metrics, request.get_ref(), async {
            Ok(csi::NodeGetCapabilitiesResponse { capabilities: CAPABILITIES.map(capability).into() })
        })
        .await
    }

    async fn node_get_info(
        &self,
        request: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        answer(&self.metrics, request.get_ref(), async {
            Ok(csi::NodeGetInfoResponse {
                node_id: self.name.clone(),
                max_volumes_per_node: self.max_volumes.into(),
                accessible_topology: Some(topology::of(&Place::of(&self.name))),
            })
        })
        .await
    }
}

impl Node {
    async fn find(&self, volume_id: &str) -> Result<VolumeId> {
        field::volume_id(volume_id, self.lifecycle.ready()).await
    }

    async fn volume(&self, volume_id: &str) -> Result<(VolumeId, VolumeSpec)> {
        let id = self.find(volume_id).await?;
        Ok((id.clone(), self.lifecycle.get(id).await?))
    }

    async fn stage_request(&self, request: &csi::NodeStageVolumeRequest) -> Result<StageRequest> {
        field::required("volume_id", &request.volume_id)?;
        field::required("staging_target_path", &request.staging_target_path)?;
        let access = Access::parse("volume_capability", request.volume_capability.as_ref())?;
        let (id, volume) = self.volume(&request.volume_id).await?;
        Ok(StageRequest {
            staging_path: field::path("staging_target_path", &request.staging_target_path)?,
            content: access.of_volume(volume.content)?,
            options: access.mount_options()?,
            id,
        })
    }

    async fn publish_request(&self, request: &csi::NodePublishVolumeRequest) -> Result<PublishRequest> {
        field::required("volume_id", &request.volume_id)?;
        field::required("target_path", &request.target_path)?;
        let access = Access::parse("volume_capability", request.volume_capability.as_ref())?;
        let (id, volume) = self.volume(&request.volume_id).await?;
        if request.staging_target_path.is_empty() {
            // The one missing field that is not INVALID_ARGUMENT (CSI, NodePublishVolume Errors).
            return Err(Error::new(Reason::StagingMissing, "staging_target_path: is required; stage the volume first"));
        }
        access.mount_options()?;
        Ok(PublishRequest {
            staging_path: field::path("staging_target_path", &request.staging_target_path)?,
            target_path: field::path("target_path", &request.target_path)?,
            content: access.of_volume(volume.content)?,
            read_only: request.readonly || access.is_reader(),
            sharing: access.sharing(),
            id,
        })
    }

    /// What is wrong with the storage behind every volume of this node; empty if nothing is.
    async fn storage_health(&self) -> Result<Vec<StorageBackendHealth>> {
        let mut health = Vec::new();
        for pool in self.lifecycle.sight_pools().await? {
            match pool.capacity {
                Err(error) => health.push(health::of_storage(Unreachable, error.reason(), &error.explanation())),
                Ok(capacity) if capacity.available_bytes < Content::Block.minimum_bytes() => {
                    let message = format!("pool {} has no room for another volume", pool.name);
                    health.push(health::of_storage(Degraded, Reason::NoSpace, &message));
                }
                Ok(_) => {}
            }
        }
        let is_about_kbs = |reason: &Reason| status::code(*reason) == tonic::Code::Unavailable;
        if let Some(reason) = self.lifecycle.last_key_error().filter(is_about_kbs) {
            let message = "the last exchange with the KBS failed; open volumes go on, others cannot be staged";
            health.push(health::of_storage(Degraded, reason, message));
        }
        Ok(health)
    }
}

fn wire_usage(usage: Usage) -> Vec<VolumeUsage> {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let entry = |unit: Unit, [total, available, used]: [u64; 3]| VolumeUsage {
        unit: unit.into(),
        total: signed(total),
        available: signed(available),
        used: signed(used),
    };
    match usage {
        Usage::Filesystem { bytes, inodes } => vec![entry(Unit::Bytes, bytes), entry(Unit::Inodes, inodes)],
        Usage::Block { total_bytes } => vec![entry(Unit::Bytes, [total_bytes, 0, 0])],
    }
}
