//! One operation per volume at a time. This is all that the lifecycle remembers about a volume.

use std::collections::HashSet;

use tokio::sync::watch;

use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;

/// The volumes that are being worked on.
#[derive(Default)]
pub(super) struct Busy(watch::Sender<HashSet<VolumeId>>);

impl Busy {
    /// The right to work on `id` until the guard is dropped; `OperationPending` while another holds it.
    pub(super) fn claim(&self, id: &VolumeId) -> Result<Guard> {
        if self.0.send_if_modified(|volumes| volumes.insert(id.clone())) {
            return Ok(Guard { busy: self.0.clone(), id: id.clone() });
        }
        let message = format!("an earlier call for volume {id} is still at work; this one may be repeated");
        Err(Error::new(Reason::OperationPending, message))
    }

    /// Whether somebody holds the right to work on `id`.
    pub(super) fn holds(&self, id: &VolumeId) -> bool {
        self.0.borrow().contains(id)
    }

    /// Completes when no guard is held.
    pub(super) async fn idle(&self) {
        // It can only fail once the sender is gone, and `self` is the sender.
        let _ = self.0.subscribe().wait_for(HashSet::is_empty).await;
    }
}

/// The right to work on one volume.
pub(super) struct Guard {
    busy: watch::Sender<HashSet<VolumeId>>,
    id: VolumeId,
}

impl Guard {
    /// Does `work` and then gives the volume free.
    pub(super) fn hold<T>(self, work: impl FnOnce() -> T) -> T {
        work()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.busy.send_modify(|volumes| {
            volumes.remove(&self.id);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_claimed_once_and_free_after_the_guard() {
        let busy = Busy::default();
        let (a, b) = (VolumeId::for_name("a"), VolumeId::for_name("b"));
        let guard = busy.claim(&a).expect("free");
        assert_eq!(busy.claim(&a).err().expect("held").reason(), Reason::OperationPending);
        assert!(busy.holds(&a) && !busy.holds(&b));
        let _other = busy.claim(&b).expect("another volume is free");
        drop(guard);
        busy.claim(&a).expect("free again");
    }
}
