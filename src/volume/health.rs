//! What can be wrong with a volume that exists.

use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthStatus {
    /// Not usable now.
    Inaccessible,
    /// Data is lost or was changed.
    DataLoss,
}

impl HealthStatus {
    /// The status that is shown as `word`.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Inaccessible, Self::DataLoss].into_iter().find(|status| status.to_string() == word)
    }
}

impl fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthEntry {
    /// How bad it is.
    pub status: HealthStatus,
    /// The stable reason word.
    pub reason: String,
    /// What was found and what to do.
    pub message: String,
}
