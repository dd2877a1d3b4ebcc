//! What can be seen of volumes and pools on this machine, without its key: for those who show them elsewhere.

use std::path::PathBuf;

use super::Host;
use crate::device::Mapper;
use crate::provision::Capacity;
use crate::provision::LocalPool;
use crate::provision::Refusal;
use crate::provision::Release;
use crate::record::State;
use crate::volume::Error;
use crate::volume::HealthEntry;
use crate::volume::PoolName;
use crate::volume::Result;
use crate::volume::VolumeId;

/// One look at a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Whether the volume was formatted.
    pub is_ready: bool,
    /// Whether it is open.
    pub is_open: bool,
    /// Why the last stage was refused, if none has succeeded since.
    pub refusal: Option<Refusal>,
    /// The last release of its key to this machine.
    pub release: Option<Release>,
    /// What is wrong with it.
    pub health: Vec<HealthEntry>,
}

/// One look at a pool.
#[derive(Debug)]
pub struct PoolSighting {
    /// What StorageClasses call it.
    pub name: PoolName,
    /// Where it is.
    pub path: PathBuf,
    /// What it can still promise, or why it cannot be used now.
    pub capacity: Result<Capacity>,
    /// The volumes in it, in the order of ids, with what is wrong with their records.
    pub volumes: Vec<(VolumeId, Option<Error>)>,
}

impl Host {
    pub(super) fn sight_pools(&self) -> Vec<PoolSighting> {
        let volumes = |pool: &LocalPool| {
            let listed = pool.list().unwrap_or_default();
            listed.into_iter().map(|(id, record)| (id, record.err())).collect()
        };
        let sight = |pool: &LocalPool| PoolSighting {
            name: pool.name().clone(),
            path: pool.path().to_owned(),
            capacity: pool.capacity(),
            volumes: volumes(pool),
        };
        self.pools.iter().map(sight).collect()
    }

    pub(super) fn sight(&self, id: &VolumeId) -> Result<Sighting> {
        let record = self.pools.get(id)?;
        let pool = self.pools.of(id);
        Ok(Sighting {
            is_ready: record.state == State::Ready,
            is_open: self.machine.look(id, Some(&pool.shape(&record)))?.mapper == Mapper::Live,
            refusal: pool.refusal(id),
            release: pool.release(id),
            health: self.health(id)?,
        })
    }
}
