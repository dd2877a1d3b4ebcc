//! Health on the wire: at most one entry for each status, in the sizes that Kubernetes shows.

use super::proto::csi;
use super::proto::csi::VolumeHealthErrorType;
use super::proto::csi::node_get_storage_health_response::StorageBackendHealth;
use super::proto::csi::volume_health::VolumeHealthEntry;
use crate::volume::HealthEntry;
use crate::volume::HealthStatus;
use crate::volume::Reason;
use crate::volume::shortened;

/// What is wrong with the volume `id`.
pub(super) fn of_volume(id: &str, entries: &[HealthEntry]) -> csi::VolumeHealth {
    let mut health_statuses: Vec<VolumeHealthEntry> = Vec::new();
    for entry in entries {
        let status: i32 = match entry.status {
            HealthStatus::Inaccessible => VolumeHealthErrorType::Inaccessible,
            HealthStatus::DataLoss => VolumeHealthErrorType::DataLoss,
        }
        .into();
        if health_statuses.iter().all(|known| known.status != status) {
            let (reason, message) = (entry.reason.clone(), shortened(&entry.message).to_owned());
            health_statuses.push(VolumeHealthEntry { status, reason, message });
        }
    }
    csi::VolumeHealth { volume_id: id.to_owned(), health_statuses }
}

/// One thing that is wrong with the node's storage.
pub(super) fn of_storage(status: csi::StorageHealthErrorType, reason: Reason, message: &str) -> StorageBackendHealth {
    StorageBackendHealth {
        status: status.into(),
        reason: reason.to_string(),
        message: shortened(message).to_owned(),
        volume_capability: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::MESSAGE_BYTES;

    #[test]
    fn one_entry_for_each_status_and_no_text_too_long() {
        let entry = |status, reason: &str| HealthEntry { status, reason: reason.into(), message: "ü".repeat(1000) };
        let entries = [
            entry(HealthStatus::DataLoss, "HeaderTampered"),
            entry(HealthStatus::Inaccessible, "PolicyDenied"),
            entry(HealthStatus::DataLoss, "DeviceMissing"),
        ];
        let health = of_volume("cv-1", &entries);
        let reasons: Vec<_> = health.health_statuses.iter().map(|entry| entry.reason.as_str()).collect();
        assert_eq!(reasons, ["HeaderTampered", "PolicyDenied"]);
        assert!(health.health_statuses.iter().all(|entry| entry.message.len() == MESSAGE_BYTES));
    }
}
