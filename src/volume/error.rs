//! One error type for the whole house. Its [`Reason`] is the stable word that users see in the gRPC message, the
//! Event, the health entry and the metric; its message is written for the person who will read it there.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Why something was refused. The names are a stable interface.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name),+ }

        impl Reason {
            /// Every reason, for tables and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The stable word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }
        }
    };
}

reasons! {
    /// A field of the request is missing or wrong.
    InvalidArgument,
    /// The size cannot be provided at all.
    SizeOutOfRange,
    /// No volume with this id.
    VolumeNotFound,
    /// A volume of this name exists and differs, or it is staged or published differently.
    AlreadyExists,
    /// Another operation on this volume is running.
    OperationPending,
    /// The volume is still staged; its deletion waits for the unstage.
    StillStaged,
    /// `ListVolumes` was continued with a token that is not one of ours.
    InvalidToken,
    /// The access asked for exceeds what the volume can do.
    CapabilityExceeded,
    /// The staging path is missing, is not a directory, or nothing is staged there.
    StagingMissing,
    /// A single-writer volume is published elsewhere.
    PublishConflict,
    /// The pool directory is absent, not initialised, on another filesystem, or read-only.
    PoolMissing,
    /// The pool has no room.
    NoSpace,
    /// The KBS cannot be reached.
    KbsUnreachable,
    /// The KBS did not answer inside the deadline.
    KbsTimeout,
    /// The KBS answered something that the protocol does not allow.
    KbsProtocol,
    /// The KBS could not prove that it is the one we were told to trust.
    KbsUntrusted,
    /// Others were waiting for the KBS for too long.
    KbsBusy,
    /// This machine cannot produce evidence.
    AttesterUnavailable,
    /// The KBS did not believe the evidence.
    AttestationDenied,
    /// The KBS believed the evidence; its policy gives this node no access to the key.
    PolicyDenied,
    /// The KBS has no such key, or failed to read it.
    KeyNotFound,
    /// The secret has fewer than 32 bytes.
    KeyTooShort,
    /// The secret is not the one that this volume was made with.
    WrongKey,
    /// What is in memory could get to a disk unencrypted.
    MemoryUnprotected,
    /// The record cannot be read as what we wrote.
    RecordDamaged,
    /// The record's MAC is wrong.
    RecordTampered,
    /// A newer version of the driver wrote the record.
    RecordTooNew,
    /// The backing is gone.
    DeviceMissing,
    /// The backing is smaller than the record says.
    DeviceTruncated,
    /// The backing cannot be read.
    DeviceUnreadable,
    /// There is no LUKS2 header where one must be.
    HeaderMissing,
    /// The header is not the one that we sealed.
    HeaderTampered,
    /// The header belongs to another volume.
    WrongVolume,
    /// The record was written on another node.
    WrongNode,
    /// A format was refused because the backing holds something.
    NotBlank,
    /// The kernel holds a device under our name that is not ours.
    ForeignDevice,
    /// The filesystem has errors that are not safe to repair unattended.
    FilesystemDamaged,
    /// Sectors of the payload do not hold what was written there. No call is refused for it; the volume's health shows it.
    IntegrityError,
    /// The cluster has seen the volume Ready, or does not know it: it is not formatted.
    PermitRevoked,
    /// The API server cannot be asked whether the volume may be formatted.
    WitnessUnreachable,
    /// The API server cannot be reached.
    ApiServerUnreachable,
    /// Not offered yet.
    Unimplemented,
    /// Something unexpected; the cause is in the message.
    Internal,
}

impl Reason {
    /// Whether the caller may expect the same call to succeed later without anyone acting.
    ///
    /// The kubelet treats all other answers to a stage as final: it removes the staging directory and may never
    /// call unstage.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::OperationPending
                | Self::StillStaged
                | Self::PoolMissing
                | Self::NoSpace
                | Self::KbsUnreachable
                | Self::KbsTimeout
                | Self::KbsProtocol
                | Self::KbsUntrusted
                | Self::KbsBusy
                | Self::AttesterUnavailable
                | Self::WitnessUnreachable
                | Self::ApiServerUnreachable
        )
    }

    /// Why a file of a pool could not be made or changed.
    #[must_use]
    pub fn of_write(cause: &io::Error) -> Self {
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem => Self::PoolMissing,
            _ => Self::Internal,
        }
    }

    /// Whether it means that stored bytes are not those that were written.
    #[must_use]
    pub fn is_integrity(self) -> bool {
        matches!(
            self,
            Self::RecordDamaged
                | Self::RecordTampered
                | Self::DeviceMissing
                | Self::DeviceTruncated
                | Self::DeviceUnreadable
                | Self::HeaderMissing
                | Self::HeaderTampered
                | Self::WrongVolume
                | Self::FilesystemDamaged
                | Self::IntegrityError
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A reason, what it means here and what to do about it, and the cause.
///
/// Neither message nor cause ever holds a secret or a byte that the KBS sent.
#[derive(Debug)]
pub struct Error {
    reason: Reason,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a further cause.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), source: None }
    }

    /// The field of a request that is missing or wrong, and the form that is accepted.
    pub fn invalid(field: &str, expected: impl fmt::Display) -> Self {
        Self::new(Reason::InvalidArgument, format!("{field}: {expected}"))
    }

    /// The same error with the cause behind it.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// The stable word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Message and every cause behind it, in one line: what is shown beside the reason word.
    #[must_use]
    pub fn explanation(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    /// Reason word and explanation.
    #[must_use]
    pub fn chain(&self) -> String {
        format!("{}: {}", self.reason, self.explanation())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
