//! One exchange at a time: whoever waits too long for others is told so instead of waiting for ever.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// The queue before the KBS, served in the order of arrival.
pub(super) struct Turn {
    permits: Semaphore,
    patience: Duration,
}

impl Turn {
    pub(super) fn new(patience: Duration) -> Self {
        Self { permits: Semaphore::new(1), patience }
    }

    /// Waits until nobody else has the turn. It ends when the guard is dropped.
    ///
    /// # Errors
    /// `KbsBusy` when the patience is over.
    pub(super) async fn take(&self) -> Result<SemaphorePermit<'_>> {
        match tokio::time::timeout(self.patience, self.permits.acquire()).await {
            Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
            Err(_) => Err(Error::new(
                Reason::KbsBusy,
                format!(
                    "other volumes of this node were waiting for the KBS for {} s; this one is tried again",
                    self.patience.as_secs()
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_for_the_turn_is_bounded() {
        let turn = Turn::new(Duration::from_millis(20));
        let held = turn.take().await.expect("free");
        assert_eq!(turn.take().await.expect_err("taken").reason(), Reason::KbsBusy);
        drop(held);
        drop(turn.take().await.expect("free again"));
    }

    #[tokio::test]
    async fn a_caller_that_gives_up_leaves_the_queue() {
        let turn = Turn::new(Duration::from_secs(60));
        let held = turn.take().await.expect("free");
        let waiting = tokio::time::timeout(Duration::from_millis(5), turn.take()).await;
        assert!(waiting.is_err(), "the turn is taken");
        drop(held);
        drop(turn.take().await.expect("the one who gave up does not hold it"));
    }

    #[tokio::test]
    async fn nobody_has_the_turn_together_with_another() {
        let turn = Turn::new(Duration::from_secs(60));
        let inside = std::sync::atomic::AtomicUsize::new(0);
        let visit = async || {
            let _held = turn.take().await.expect("patient");
            assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
            tokio::task::yield_now().await;
            inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        };
        tokio::join!(visit(), visit(), visit());
    }
}
