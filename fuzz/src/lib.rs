//! What all targets ask of an error: whoever reads it in a log or an Event must not be at the mercy of what was refused.

use coffer::volume::{Error, MESSAGE_BYTES};

/// A word that a target puts into what is refused, and that nobody may repeat.
pub const CANARY: &str = "canary-7f3a9c51d2";

/// Panics unless `error` is one printable line that Kubernetes would show whole, without [`CANARY`].
pub fn assert_fit_to_show(error: &Error) {
    let chain = error.chain();
    assert!(chain.len() <= MESSAGE_BYTES, "an error of {} bytes: {chain:.200}", chain.len());
    assert!(!chain.contains(char::is_control), "an error that is not one line: {chain:?}");
    assert!(!format!("{chain} {error:?}").contains(CANARY), "an error repeats what was refused: {error:?}");
}
