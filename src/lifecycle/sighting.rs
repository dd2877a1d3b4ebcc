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
use crate::volume::KeyUri;
use crate::volume::PoolName;
use crate::volume::Result;
use crate::volume::VolumeId;

/// One look at a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Whether the volume was formatted.
    pub is_ready: bool,
    /// Where the secrets are that open it: one, or a second one until a rotation is finished.
    pub key_uris: Vec<KeyUri>,
    /// Whether it is open.
    pub is_open: bool,
    /// Why the last stage was refused, if none has succeeded since.
    pub refusal: Option<Refusal>,
    /// The last release of its key to this machine.
    pub release: Option<Release>,
    /// How many of its sectors are known not to hold what was written there.
    pub bad_sectors: usize,
    /// What is wrong with it.
    pub health: Vec<HealthEntry>,
}

impl Sighting {
    /// Whether the secret at `uri` opens the volume, and no other.
    #[must_use]
    pub fn opens_with(&self, uri: &KeyUri) -> bool {
        self.key_uris == [uri.clone()]
    }
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
}

impl Host {
    pub(super) fn sight_pools(&self) -> Vec<PoolSighting> {
        let sight = |pool: &LocalPool| PoolSighting {
            name: pool.name().clone(),
            path: pool.path().to_owned(),
            capacity: pool.capacity(),
        };
        self.pools.iter().map(sight).collect()
    }

    pub(super) fn open_volumes(&self) -> Result<u64> {
        let mut open = 0;
        for pool in self.pools.iter().filter(|pool| pool.ready().is_ok()) {
            for id in pool.ids()? {
                // Without a shape: what a table must be is asked when a volume is used, not when it is counted.
                open += u64::from(self.machine.look(&id, None)?.mapper == Mapper::Live);
            }
        }
        Ok(open)
    }

    pub(super) fn contents(&self, pool: &PoolName) -> Result<Vec<(VolumeId, Option<Error>)>> {
        Ok(self.pools.named(pool)?.list()?.into_iter().map(|(id, record)| (id, record.err())).collect())
    }

    pub(super) fn sight(&self, id: &VolumeId) -> Result<Sighting> {
        let record = self.pools.get(id)?;
        let pool = self.pools.of(id);
        let is_open = self.machine.look(id, Some(&pool.shape(&record)))?.mapper == Mapper::Live;
        let (refusal, bad) = (pool.refusal(id), pool.bad_sectors(id));
        let health = self.health(&record, refusal.as_ref().filter(|_| !is_open), bad.as_ref());
        let is_ready = record.state == State::Ready;
        let key_uris = record.key_uris().cloned().collect();
        let bad_sectors = bad.map_or(0, |bad| bad.sectors.len());
        Ok(Sighting { is_ready, key_uris, is_open, refusal, release: pool.release(id), bad_sectors, health })
    }
}
