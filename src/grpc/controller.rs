//! The Controller service: from the request to one call of the provisioner and back. It sees names and sizes, no keys.

use std::sync::Arc;
use std::time::Instant;

use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::async_trait;

use super::access::Access;
use super::access::content_of;
use super::call::answer;
use super::call::concerns;
use super::call::deadline;
use super::class::Class;
use super::field;
use super::health;
use super::page::Page;
use super::proto::csi;
use super::proto::csi::controller_service_capability::Rpc;
use super::proto::csi::controller_service_capability::Type;
use super::proto::csi::controller_service_capability::rpc::Type as RpcType;
use super::size::Size;
use super::topology;
use super::topology::Covered;
use crate::metrics::Metrics;
use crate::provision::Capacity;
use crate::provision::Provisioner;
use crate::volume::Content;
use crate::volume::Error;
use crate::volume::FsType;
use crate::volume::HealthEntry;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::Volume;
use crate::volume::VolumeId;
use crate::volume::VolumeSpec;

/// What the Controller service offers; everything else answers UNIMPLEMENTED.
const CAPABILITIES: [RpcType; 7] = [
    RpcType::CreateDeleteVolume,
    RpcType::ListVolumes,
    RpcType::GetCapacity,
    RpcType::GetVolume,
    RpcType::SingleNodeMultiWriter,
    RpcType::GetVolumeHealth,
    RpcType::ListVolumeHealth,
];

/// The Controller service over whoever makes volumes.
#[derive(Clone)]
pub(super) struct Controller {
    pub(super) provisioner: Arc<dyn Provisioner>,
    pub(super) metrics: Metrics,
}

#[async_trait]
impl csi::controller_server::Controller for Controller {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let until = deadline(request.metadata());
        let request = request.get_ref();
        answer(&self.metrics, request, async {
            let volume = Some(wire(self.create(request, until).await?));
            Ok(csi::CreateVolumeResponse { volume })
        })
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let until = deadline(request.metadata());
        let request = request.get_ref();
        answer(&self.metrics, request, async {
            self.delete(request, until).await?;
            Ok(csi::DeleteVolumeResponse {})
        })
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.get_ref();
        answer(&self.metrics, request, self.validate(request)).await
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        let request = request.get_ref();
        answer(&self.metrics, request, async {
            let page = Page::parse(request.max_entries, &request.starting_token)?;
            let volumes = self.provisioner.list().await?;
            let (volumes, next_token) = page.of(volumes, |volume| &volume.id);
            let entry = |volume| csi::list_volumes_response::Entry { volume: Some(wire(volume)), status: None };
            Ok(csi::ListVolumesResponse { entries: volumes.into_iter().map(entry).collect(), next_token })
        })
        .await
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        let request = request.get_ref();
        answer(&self.metrics, request, async {
            let volume = Some(wire(self.volume(&request.volume_id).await?));
            // Mandatory, and empty without the capability LIST_VOLUMES_PUBLISHED_NODES.
            let status = Some(csi::controller_get_volume_response::VolumeStatus::default());
            Ok(csi::ControllerGetVolumeResponse { volume, status })
        })
        .await
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<csi::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeHealthResponse>, Status> {
        let request = request.get_ref();
        answer(&self.metrics, request, async {
            let entries = self.provisioner.health(self.find(&request.volume_id).await?).await?;
            let volume_health = Some(health::of_volume(&request.volume_id, &entries));
            Ok(csi::ControllerGetVolumeHealthResponse { volume_health })
        })
        .await
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<csi::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerListVolumeHealthResponse>, Status> {
        let request = request.get_ref();
        answer(&self.metrics, request, async {
            let page = Page::parse(request.max_entries, &request.starting_token)?;
            let (entries, next_token) = page.of(self.troubled().await?, |(id, _)| id);
            let entries = entries.into_iter().map(|(id, entries)| health::of_volume(id.as_str(), &entries)).collect();
            Ok(csi::ControllerListVolumeHealthResponse { entries, next_token })
        })
        .await
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        let request = request.get_ref();
        answer(&self.metrics, request, self.capacity(request)).await
    }

    async fn controller_get_capabilities(
        &self,
        request: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        let capability =
            |rpc: RpcType| csi::ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: rpc.into() })) };
        answer(&self.metrics, request.get_ref(), async {
            Ok(csi::ControllerGetCapabilitiesResponse { capabilities: CAPABILITIES.map(capability).into() })
        })
        .await
    }
}

impl Controller {
    async fn create(&self, request: &csi::CreateVolumeRequest, until: Instant) -> Result<Volume> {
        let name = field::name("name", &request.name)?;
        let id = VolumeId::for_name(name);
        concerns(&id);
        if request.volume_content_source.is_some() {
            return Err(Error::invalid("volume_content_source", "is not offered: volumes begin empty"));
        }
        if !request.mutable_parameters.is_empty() {
            return Err(Error::invalid(
                "mutable_parameters",
                "are not offered; use a StorageClass without a VolumeAttributesClass",
            ));
        }
        let content = content_of(&request.volume_capabilities)?;
        let size = Size::parse(request.capacity_range.as_ref())?;
        let class = Class::parse(&request.parameters)?;
        let key_uri = class.key_uri(&id, class.claim.as_ref())?;
        let existing = match self.provisioner.get(id).await {
            Ok(volume) => Some(volume.spec.payload_bytes),
            Err(error) if error.reason() == Reason::VolumeNotFound => None,
            Err(error) => return Err(error),
        };
        let payload_bytes = match existing.filter(|bytes| size.admits(*bytes)) {
            Some(bytes) => bytes,
            None => size.choose(content)?,
        };
        let (pool, profile, claim) = (class.pool, class.profile, class.claim);
        let init = class.init.of(profile, content);
        let spec = VolumeSpec { name: name.into(), pool, payload_bytes, content, profile, init, key_uri, claim };
        let whereabouts = topology::whereabouts(request.accessibility_requirements.as_ref());
        self.provisioner.create(spec, whereabouts, until).await
    }

    async fn delete(&self, request: &csi::DeleteVolumeRequest, until: Instant) -> Result<()> {
        match self.find(&request.volume_id).await {
            Ok(id) => self.provisioner.delete(id, until).await,
            Err(error) if error.reason() == Reason::VolumeNotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn validate(
        &self,
        request: &csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse> {
        field::required("volume_id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Error::invalid("volume_capabilities", "at least one is required"));
        }
        let volume = self.volume(&request.volume_id).await?;
        match fits(&volume, request) {
            Ok(()) => {
                let confirmed = csi::validate_volume_capabilities_response::Confirmed {
                    volume_context: request.volume_context.clone(),
                    volume_capabilities: request.volume_capabilities.clone(),
                    parameters: request.parameters.clone(),
                    mutable_parameters: request.mutable_parameters.clone(),
                };
                Ok(csi::ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
            }
            Err(refusal) => {
                Ok(csi::ValidateVolumeCapabilitiesResponse { confirmed: None, message: refusal.to_string() })
            }
        }
    }

    async fn capacity(&self, request: &csi::GetCapacityRequest) -> Result<csi::GetCapacityResponse> {
        let pool = Class::parse(&request.parameters)?.pool;
        let content = match &request.volume_capabilities[..] {
            [] => Content::Filesystem(FsType::Ext4),
            capabilities => content_of(capabilities)?,
        };
        let capacity = match request.accessible_topology.as_ref().map_or(Covered::Anywhere, topology::covered) {
            Covered::Anywhere => self.provisioner.capacity(&pool, None).await?,
            Covered::At(place) => self.provisioner.capacity(&pool, Some(&place)).await?,
            Covered::Nowhere => Capacity::default(),
        };
        Ok(csi::GetCapacityResponse {
            available_capacity: signed(capacity.available_bytes),
            maximum_volume_size: Some(signed(capacity.maximum_volume_bytes)),
            minimum_volume_size: Some(signed(content.minimum_bytes())),
        })
    }

    async fn find(&self, volume_id: &str) -> Result<VolumeId> {
        field::volume_id(volume_id, self.provisioner.ready()).await
    }

    async fn volume(&self, volume_id: &str) -> Result<Volume> {
        self.provisioner.get(self.find(volume_id).await?).await
    }

    /// The volumes that have trouble, in the order of ids.
    async fn troubled(&self) -> Result<Vec<(VolumeId, Vec<HealthEntry>)>> {
        let mut troubled = Vec::new();
        for Volume { id, .. } in self.provisioner.list().await? {
            match self.provisioner.health(id.clone()).await {
                Ok(entries) if entries.is_empty() => {}
                Ok(entries) => troubled.push((id, entries)),
                Err(error) if error.reason() == Reason::VolumeNotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(troubled)
    }
}

fn wire(volume: Volume) -> csi::Volume {
    csi::Volume {
        capacity_bytes: signed(volume.spec.payload_bytes),
        volume_id: volume.id.into(),
        accessible_topology: vec![topology::of(&volume.place)],
        ..Default::default()
    }
}

/// Whether the volume is what a request describes; the refusal says in what it differs.
fn fits(volume: &Volume, request: &csi::ValidateVolumeCapabilitiesRequest) -> Result<()> {
    let made = &volume.spec;
    for capability in &request.volume_capabilities {
        let access = Access::parse("volume_capabilities", Some(capability))?;
        access.of_volume(made.content)?;
        access.mount_options()?;
    }
    if !request.mutable_parameters.is_empty() {
        return Err(Error::invalid("mutable_parameters", "are not offered"));
    }
    if request.parameters.is_empty() {
        return Ok(());
    }
    let class = Class::parse(&request.parameters)?;
    let key_uri = class.key_uri(&volume.id, made.claim.as_ref())?;
    let init = class.init.of(class.profile, made.content);
    if (&key_uri, class.profile, init, &class.pool) != (&made.key_uri, made.profile, made.init, &made.pool) {
        let (profile, init) = (made.profile.as_str(), made.init.as_str());
        let text =
            format!("the volume was made with {}, profile {profile}, init {init}, pool {}", made.key_uri, made.pool);
        return Err(Error::invalid("parameters", text));
    }
    Ok(())
}

/// A size as the CSI spells it. No size of ours needs the sign bit.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
