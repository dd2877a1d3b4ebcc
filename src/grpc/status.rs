//! The one table from [`Reason`] to a gRPC code, without a wildcard: a new reason does not compile until it has one.

use tonic::{Code, Status};

use crate::volume::Error;
use crate::volume::Reason;

/// Longest message on the wire, in characters. A request may be quoted in it, and it ends up in an Event.
const MESSAGE_CHARACTERS: usize = 2000;

/// The answer for `error`: its reason word, its message and the causes behind it. The CSI wants details to be empty.
pub(super) fn of(error: &Error) -> Status {
    Status::new(code(error.reason()), error.chain().chars().take(MESSAGE_CHARACTERS).collect::<String>())
}

/// The code of a reason. UNAVAILABLE, ABORTED, DEADLINE_EXCEEDED and RESOURCE_EXHAUSTED tell the kubelet that the
/// outcome is open, so it will call again or unstage; every other code is final. RESOURCE_EXHAUSTED lets the scheduler
/// choose another node.
pub(super) fn code(reason: Reason) -> Code {
    match reason {
        Reason::InvalidArgument => Code::InvalidArgument,
        Reason::SizeOutOfRange => Code::OutOfRange,
        Reason::VolumeNotFound => Code::NotFound,
        Reason::AlreadyExists => Code::AlreadyExists,
        Reason::OperationPending | Reason::StillStaged | Reason::KbsBusy | Reason::InvalidToken => Code::Aborted,
        Reason::PoolMissing
        | Reason::KbsUnreachable
        | Reason::KbsTimeout
        | Reason::KbsProtocol
        | Reason::KbsUntrusted
        | Reason::AttesterUnavailable
        | Reason::WitnessUnreachable
        | Reason::ApiServerUnreachable => Code::Unavailable,
        Reason::NoSpace => Code::ResourceExhausted,
        Reason::AttestationDenied => Code::Unauthenticated,
        Reason::PolicyDenied => Code::PermissionDenied,
        Reason::CapabilityExceeded
        | Reason::StagingMissing
        | Reason::PublishConflict
        | Reason::KeyNotFound
        | Reason::KeyTooShort
        | Reason::WrongKey
        | Reason::MemoryUnprotected
        | Reason::RecordTooNew
        | Reason::WrongVolume
        | Reason::WrongNode
        | Reason::NotBlank
        | Reason::PermitRevoked
        | Reason::ForeignDevice => Code::FailedPrecondition,
        Reason::RecordDamaged
        | Reason::RecordTampered
        | Reason::DeviceMissing
        | Reason::DeviceTruncated
        | Reason::DeviceUnreadable
        | Reason::HeaderMissing
        | Reason::HeaderTampered
        | Reason::FilesystemDamaged
        | Reason::IntegrityError => Code::DataLoss,
        Reason::Unimplemented => Code::Unimplemented,
        Reason::Internal => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_by_itself_has_a_code_that_the_kubelet_does_not_take_as_final() {
        // A bad token is ABORTED because the CSI says so; it never answers a stage.
        for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::InvalidToken) {
            let open = matches!(
                code(*reason),
                Code::Unavailable | Code::Aborted | Code::DeadlineExceeded | Code::ResourceExhausted
            );
            assert_eq!(open, reason.is_transient(), "{reason}");
        }
    }

    #[test]
    fn lost_data_is_an_integrity_error() {
        for reason in Reason::ALL {
            let lost = code(*reason) == Code::DataLoss;
            // Another volume's bytes are whole, and in the wrong place.
            assert_eq!(lost || *reason == Reason::WrongVolume, reason.is_integrity(), "{reason}");
        }
    }

    #[test]
    fn a_message_is_the_reason_word_the_text_and_the_causes() {
        let error =
            Error::new(Reason::DeviceUnreadable, "backing of cv-1").caused_by(std::io::Error::other("disk gone"));
        let status = of(&error);
        assert_eq!(status.code(), Code::DataLoss);
        assert_eq!(status.message(), "DeviceUnreadable: backing of cv-1: disk gone");
        assert!(status.details().is_empty());
    }
}
