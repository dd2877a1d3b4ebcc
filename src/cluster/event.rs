//! Events of Kubernetes: what has happened to a volume, for whoever describes its resource.

use std::error::Error as StdError;

use kube::Client;
use kube::Resource as _;
use kube::ResourceExt as _;
use kube::runtime::events::Event;
use kube::runtime::events::EventType;
use kube::runtime::events::Recorder;
use kube::runtime::events::Reporter;

use super::EncryptedVolume;
use crate::volume::shortened;

/// What has happened to a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Whether somebody should look.
    pub warning: bool,
    /// The stable word.
    pub reason: String,
    /// What was being done.
    pub action: &'static str,
    /// What was found and what to do.
    pub note: String,
}

/// Tells events under one name. What happens again within some minutes becomes a series of the first event.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// Events of the controller.
    #[must_use]
    pub fn of_controller(client: Client) -> Self {
        Self(Recorder::new(client, Reporter { controller: "coffer-controller".into(), instance: None }))
    }

    /// Events of the driver on `node_name`, which admission holds it to.
    #[must_use]
    pub fn of_node(client: Client, node_name: &str) -> Self {
        let reporter = Reporter { controller: "coffer-node".into(), instance: Some(node_name.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Tells `news` of `volume`. An event that is lost changes nothing about what it tells: it is logged.
    pub async fn tell(&self, volume: &EncryptedVolume, news: News) {
        let event = Event {
            type_: if news.warning { EventType::Warning } else { EventType::Normal },
            reason: news.reason,
            note: Some(shortened(&news.note).to_owned()),
            action: news.action.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.0.publish(&event, &volume.object_ref(&())).await {
            let (volume, reason) = (volume.name_any(), event.reason);
            let error: &dyn StdError = &error;
            tracing::warn!(volume, reason, error, "an event could not be told: {}", news.note);
        }
    }
}
