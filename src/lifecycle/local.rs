//! The volumes of this machine for whoever asks for volumes: the driver on a single machine.

use std::time::Instant;

use async_trait::async_trait;

use super::Lifecycle;
use crate::provision::Capacity;
use crate::provision::Provisioner;
use crate::volume::Error;
use crate::volume::HealthEntry;
use crate::volume::Place;
use crate::volume::PoolName;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::Volume;
use crate::volume::VolumeId;
use crate::volume::VolumeSpec;
use crate::volume::Whereabouts;

/// Makes volumes on the one machine that `lifecycle` works on.
#[derive(Clone)]
pub struct Local {
    lifecycle: Lifecycle,
    place: Place,
}

impl Local {
    /// The volumes of `lifecycle`, all of which are at `place`.
    #[must_use]
    pub fn new(lifecycle: Lifecycle, place: Place) -> Self {
        Self { lifecycle, place }
    }

    fn at_home(&self, id: VolumeId, spec: VolumeSpec) -> Volume {
        Volume { id, spec, place: self.place.clone() }
    }
}

#[async_trait]
impl Provisioner for Local {
    async fn ready(&self) -> Result<()> {
        self.lifecycle.ready().await
    }

    async fn create(&self, spec: VolumeSpec, whereabouts: Whereabouts, _deadline: Instant) -> Result<Volume> {
        if !whereabouts.allow(&self.place) {
            let message =
                format!("the volume may not be on this node ({}): the request requires other nodes", self.place);
            return Err(Error::new(Reason::NoSpace, message));
        }
        let id = spec.id();
        Ok(self.at_home(id, self.lifecycle.create(spec).await?))
    }

    async fn delete(&self, id: VolumeId, deadline: Instant) -> Result<()> {
        self.lifecycle.delete(id, deadline).await
    }

    async fn get(&self, id: VolumeId) -> Result<Volume> {
        let spec = self.lifecycle.get(id.clone()).await?;
        Ok(self.at_home(id, spec))
    }

    async fn list(&self) -> Result<Vec<Volume>> {
        Ok(self.lifecycle.list().await?.into_iter().map(|(id, spec)| self.at_home(id, spec)).collect())
    }

    async fn capacity(&self, pool: &PoolName, place: Option<&Place>) -> Result<Capacity> {
        match place {
            Some(place) if *place != self.place => Ok(Capacity::default()),
            _ => self.lifecycle.capacity(pool.clone()).await,
        }
    }

    async fn health(&self, id: VolumeId) -> Result<Vec<HealthEntry>> {
        self.lifecycle.health(id).await
    }
}
