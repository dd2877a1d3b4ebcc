//! Waiting for a condition, with a deadline and the reason why it is waited for.
//!
//! Nothing in the rig sleeps for a fixed time, but for the length of an outage: it asks again until the condition holds.

use std::time::Duration;
use std::time::Instant;

use anyhow::Result;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(200);

/// `n` seconds.
pub(crate) const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Asks `probe` until it gives a value. An error of `probe` ends the wait at once.
pub(crate) fn until<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        anyhow::ensure!(begun.elapsed() < limit, "waited {} s for {what}", limit.as_secs());
        std::thread::sleep(PAUSE);
    }
}
