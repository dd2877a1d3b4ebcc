//! The Identity service: who we are and what we serve.

use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::async_trait;

use super::call::answer;
use super::proto::csi;
use super::proto::csi::plugin_capability::Service;
use super::proto::csi::plugin_capability::Type;
use super::proto::csi::plugin_capability::service::Type as ServiceType;
use crate::metrics::Metrics;
use crate::volume::DRIVER_NAME;

/// The Identity service, the same for controller and node.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) metrics: Metrics,
}

#[async_trait]
impl csi::identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        request: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        let info = csi::GetPluginInfoResponse {
            name: DRIVER_NAME.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        };
        answer(&self.metrics, request.get_ref(), async { Ok(info) }).await
    }

    async fn get_plugin_capabilities(
        &self,
        request: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        let capabilities = [ServiceType::ControllerService, ServiceType::VolumeAccessibilityConstraints]
            .map(|service| csi::PluginCapability { r#type: Some(Type::Service(Service { r#type: service.into() })) });
        answer(&self.metrics, request.get_ref(), async {
            Ok(csi::GetPluginCapabilitiesResponse { capabilities: capabilities.into() })
        })
        .await
    }

    /// Ready as soon as the socket is served. A missing pool or an unreachable KBS is told by the calls that need it
    /// and by the health RPCs: restarting the process would mend neither.
    async fn probe(&self, request: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        answer(&self.metrics, request.get_ref(), async { Ok(csi::ProbeResponse { ready: Some(true) }) }).await
    }
}
