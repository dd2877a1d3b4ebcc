//! Notes beside a record, for display only and unauthenticated: why the last stage was refused, and who proved what at
//! the last release of the key. Failing to write one changes nothing about what it tells.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::LocalPool;
use super::now;
use crate::record::read;
use crate::record::replace;
use crate::volume::Error;
use crate::volume::VolumeId;

const REFUSAL_FILE: &str = "refusal.json";
const RELEASE_FILE: &str = "release.json";

/// The contents of `refusal.json`, which the next good stage removes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The stable reason word.
    pub reason: String,
    /// What was found and what to do.
    pub message: String,
    /// When, RFC 3339 in UTC.
    pub at: String,
}

/// The contents of `release.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Who made the proof.
    pub attester: String,
    /// When the KBS released the secret, RFC 3339 in UTC.
    pub at: String,
}

impl LocalPool {
    /// Notes that a stage was refused.
    pub fn note_refusal(&self, id: &VolumeId, error: &Error) {
        let refusal = Refusal { reason: error.reason().to_string(), message: error.message().to_owned(), at: now() };
        self.note(id, REFUSAL_FILE, &refusal);
    }

    /// Forgets the last refusal.
    pub fn clear_refusal(&self, id: &VolumeId) {
        match std::fs::remove_file(self.directory(id).join(REFUSAL_FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!(%error, "an old refusal could not be removed");
            }
            _ => {}
        }
    }

    /// The last refusal, if the volume was not staged since.
    #[must_use]
    pub fn refusal(&self, id: &VolumeId) -> Option<Refusal> {
        self.noted(id, REFUSAL_FILE)
    }

    /// Notes that `attester` had the secret of the volume released.
    pub fn note_release(&self, id: &VolumeId, attester: &str) {
        self.note(id, RELEASE_FILE, &Release { attester: attester.to_owned(), at: now() });
    }

    /// The last release of the volume's secret to this node.
    #[must_use]
    pub fn release(&self, id: &VolumeId) -> Option<Release> {
        self.noted(id, RELEASE_FILE)
    }

    fn note(&self, id: &VolumeId, file: &str, note: &impl Serialize) {
        let text = serde_json::to_vec_pretty(note).expect("a note holds texts only");
        if let Err(error) = replace(&self.directory(id), file, &text) {
            tracing::debug!(%error, file, "the note could not be written");
        }
    }

    fn noted<T: DeserializeOwned>(&self, id: &VolumeId, file: &str) -> Option<T> {
        let text = read(&self.directory(id).join(file)).ok()?;
        serde_json::from_slice(&text).ok()
    }
}
