//! Registration with the kubelet, in the same process: the kubelet finds our socket, asks who we are, and tells us what
//! became of it.

use std::path::PathBuf;

use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::async_trait;
use tracing::error;
use tracing::info;

use super::proto::registration::InfoRequest;
use super::proto::registration::PluginInfo;
use super::proto::registration::RegistrationStatus;
use super::proto::registration::RegistrationStatusResponse;
use super::proto::registration::registration_server;
use crate::volume::DRIVER_NAME;

/// What the kubelet is told.
#[derive(Clone, Debug)]
pub(super) struct Registration {
    /// The CSI socket, by the path that the kubelet sees too.
    pub(super) endpoint: PathBuf,
}

#[async_trait]
impl registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER_NAME.into(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            info!("the kubelet has registered {DRIVER_NAME}");
        } else {
            error!("the kubelet refused to register {DRIVER_NAME} and will try again: {}", status.error);
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
