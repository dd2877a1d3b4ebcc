//! What can be wrong with a volume that exists.

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthStatus {
    /// Usable, but not as it should be.
    Degraded,
    /// Not usable now.
    Inaccessible,
    /// Data is lost or was changed.
    DataLoss,
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
