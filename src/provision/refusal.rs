//! Why the last stage of a volume was refused: for display only, unauthenticated, removed by the next good stage.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::LocalPool;
use super::now;
use crate::record::replace;
use crate::volume::Error;
use crate::volume::VolumeId;

const REFUSAL_FILE: &str = "refusal.json";

/// The contents of `refusal.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The stable reason word.
    pub reason: String,
    /// What was found and what to do.
    pub message: String,
    /// When, RFC 3339 in UTC.
    pub at: String,
}

impl LocalPool {
    /// Notes that a stage was refused. Failing to note it changes nothing about the refusal.
    pub fn note_refusal(&self, id: &VolumeId, error: &Error) {
        let refusal = Refusal { reason: error.reason().to_string(), message: error.message().to_owned(), at: now() };
        let text = serde_json::to_vec_pretty(&refusal).expect("three texts");
        if let Err(error) = replace(&self.directory(id), REFUSAL_FILE, &text) {
            tracing::debug!(%error, "the refusal could not be noted");
        }
    }

    /// Forgets the last refusal.
    pub fn clear_refusal(&self, id: &VolumeId) {
        match std::fs::remove_file(self.refusal_path(id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!(%error, "an old refusal could not be removed");
            }
            _ => {}
        }
    }

    /// The last refusal, if the volume was not staged since.
    #[must_use]
    pub fn refusal(&self, id: &VolumeId) -> Option<Refusal> {
        let text = std::fs::read(self.refusal_path(id)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn refusal_path(&self, id: &VolumeId) -> std::path::PathBuf {
        Path::new(&self.directory(id)).join(REFUSAL_FILE)
    }
}
