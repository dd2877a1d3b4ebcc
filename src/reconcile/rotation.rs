//! Moves a volume to the key that its resource names. A refused move is tried again after a while and not with each
//! look at the volume: every attempt asks the KBS, and its end is itself a reason to look.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use super::Volumes;
use super::status;
use crate::cluster::EncryptedVolume;
use crate::cluster::EncryptedVolumeStatus;
use crate::lifecycle::Sighting;
use crate::volume::Reason;
use crate::volume::VolumeId;

/// How soon a refused rotation is tried again while its resource stays as it is.
pub(super) const PERIOD: Duration = Duration::from_secs(60);

/// Which rotations were refused, of which generation of the resource, and when.
#[derive(Default)]
pub(super) struct Refusals(Mutex<HashMap<VolumeId, (Option<i64>, Instant)>>);

impl Refusals {
    fn is_due(&self, id: &VolumeId, generation: Option<i64>) -> bool {
        let refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.get(id).is_none_or(|(of, at)| *of != generation || at.elapsed() >= PERIOD)
    }

    fn note(&self, id: &VolumeId, generation: Option<i64>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), (generation, Instant::now()));
    }

    /// Forgets the volume, which has moved or is gone.
    pub(super) fn forget(&self, id: &VolumeId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl Volumes {
    /// Moves the volume, if that is due, and says what has become of it.
    pub(super) async fn rotate(
        &self,
        volume: &EncryptedVolume,
        id: &VolumeId,
        sighting: &Sighting,
    ) -> EncryptedVolumeStatus {
        let generation = volume.metadata.generation;
        if !self.refusals.is_due(id, generation) {
            return status::seen(volume, sighting);
        }
        match self.lifecycle.rotate(id.clone(), volume.spec.key_uri.clone()).await {
            Ok(()) => {
                self.refusals.forget(id);
                status::rotated(volume, sighting)
            }
            // Its end brings the next visit.
            Err(error) if error.reason() == Reason::OperationPending => status::seen(volume, sighting),
            Err(error) => {
                self.refusals.note(id, generation);
                status::not_rotated(volume, sighting, &error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_rotation_waits_unless_its_resource_changes() {
        let (refusals, id) = (Refusals::default(), VolumeId::for_name("x"));
        assert!(refusals.is_due(&id, Some(1)));
        refusals.note(&id, Some(1));
        assert!(!refusals.is_due(&id, Some(1)));
        assert!(refusals.is_due(&id, Some(2)));
        assert!(refusals.is_due(&VolumeId::for_name("y"), Some(1)));
        refusals.forget(&id);
        assert!(refusals.is_due(&id, Some(1)));
    }
}
