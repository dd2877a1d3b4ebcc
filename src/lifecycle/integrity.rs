//! Bad sectors: noted beside the record of their volume as the kernel tells of them, and from then on a loss of data.
//!
//! Only a noted opening makes a sector a volume's. It is noted once the volume is Ready: what a format reads before it
//! writes is no loss.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use super::Host;
use super::Lifecycle;
use crate::device::Mapper;
use crate::device::Shape;
use crate::device::integrity::BadSector;
use crate::device::integrity::Listener;
use crate::record::Record;
use crate::record::State;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;

/// Whoever reads a bad sector over and over must not keep the driver busy.
const PAUSE: Duration = Duration::from_millis(100);

impl Lifecycle {
    /// Notes the bad sectors that `listener` hears of, until it is dropped.
    pub async fn watch(self, listener: Listener) {
        if let Err(error) = self.blocking(Host::note_missing_openings).await {
            tracing::warn!(
                error = error.chain(),
                "some open volumes may not show integrity errors before they are staged again"
            );
        }
        loop {
            self.hear(listener.next().await).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Notes `told` with the volumes that it is of.
    pub(super) async fn hear(&self, told: Vec<BadSector>) {
        let noted = self.blocking(move |host| Ok(host.note_bad_sectors(&told))).await;
        for id in noted.unwrap_or_default() {
            // Nobody may be listening.
            let _ = self.settled.send(id);
        }
    }
}

impl Host {
    /// From now on what the kernel tells of the open volume's device is told of the volume.
    pub(super) fn note_opening(&self, shape: &Shape) {
        if !shape.profile.has_tags() {
            return;
        }
        match self.machine.opening(&shape.id) {
            Ok(opening) => self.pools.of(&shape.id).note_opening(&shape.id, &opening),
            Err(error) => tracing::warn!(volume = %shape.id, "integrity errors stay unseen: {}", error.chain()),
        }
    }

    /// Those that a driver that was killed has not noted.
    pub(super) fn note_missing_openings(&self) -> Result<()> {
        for pool in self.pools.iter().filter(|pool| pool.ready().is_ok()) {
            for (id, record) in pool.list()? {
                let has_loss = |record: &Record| record.state == State::Ready && record.profile.has_tags();
                let Some(record) = record.ok().filter(has_loss) else { continue };
                if self.machine.look(&id, Some(&pool.shape(&record)))?.mapper != Mapper::Live {
                    continue;
                }
                let now = self.machine.opening(&id)?;
                if !pool.opening(&id).is_some_and(|noted| noted.is_of_the_disk_of(&now)) {
                    pool.note_opening(&id, &now);
                }
            }
        }
        Ok(())
    }

    /// Notes what of `told` is of a volume; returns the volumes of which something new is known.
    fn note_bad_sectors(&self, told: &[BadSector]) -> Vec<VolumeId> {
        let mut of_volumes: BTreeMap<&VolumeId, Vec<&BadSector>> = BTreeMap::new();
        for bad in told {
            of_volumes.entry(&bad.id).or_default().push(bad);
        }
        let mut noted = Vec::new();
        for (id, told) in of_volumes {
            let pool = self.pools.of(id);
            let Some(opening) = pool.opening(id) else { continue };
            let sectors: BTreeSet<u64> =
                told.into_iter().filter(|bad| opening.is_before(bad)).map(|bad| bad.sector).collect();
            let new = pool.note_bad_sectors(id, &sectors);
            let Some(first) = new.first() else { continue };
            new.iter().for_each(|_| self.metrics.found(Reason::IntegrityError));
            tracing::error!(volume = %id, sectors = new.len(), first, "sectors do not hold what was written there");
            noted.push(id.clone());
        }
        noted
    }
}
