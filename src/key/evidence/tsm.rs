//! Evidence of a confidential virtual machine: a report of its TEE, TDX or SEV-SNP, from the kernel's configfs-tsm.
//!
//! The kernel has one provider of reports at most, the driver of the TEE that the machine runs in. Refused: a report of
//! another TEE than the one that was named, and one that is not bound to this exchange.

mod request;
mod snp;
mod tdx;

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{AttesterDescription, ReportData, blocking};
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// Where Linux has configfs-tsm, since 6.7 (Documentation/ABI/testing/configfs-tsm-report).
pub const DIRECTORY: &str = "/sys/kernel/config/tsm/report";

/// Where Linux shows what the firmware of a TDX machine measured (ACPI 6.5, table 5.25.2).
const EVENT_LOG: &str = "/sys/firmware/acpi/tables/data/CCEL";

/// What a TEE takes into a report: the digest of the exchange, then zeros.
type Bound = [u8; 64];

/// The kinds of TEE that can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tee {
    /// Intel TDX.
    Tdx,
    /// AMD SEV-SNP.
    Snp,
}

impl Tee {
    const ALL: [Self; 2] = [Self::Tdx, Self::Snp];

    /// Its name in the KBS protocol.
    fn name(self) -> &'static str {
        match self {
            Self::Tdx => "tdx",
            Self::Snp => "snp",
        }
    }

    /// What its driver calls itself in `provider`.
    fn provider(self) -> &'static str {
        match self {
            Self::Tdx => "tdx_guest",
            Self::Snp => "sev_guest",
        }
    }
}

/// The TEE that this machine runs in.
pub struct Tsm {
    directory: PathBuf,
    tee: Tee,
}

impl Tsm {
    /// The TEE `tee` behind the configfs-tsm at `directory`. Neither is touched yet.
    #[must_use]
    pub fn new(directory: PathBuf, tee: Tee) -> Self {
        Self { directory, tee }
    }

    /// The TEE that the kernel names, which is asked now: its provider is the driver of TDX or of SEV-SNP, or nothing.
    ///
    /// # Errors
    /// `AttesterUnavailable` if it names neither.
    pub fn detect(directory: PathBuf) -> Result<Self> {
        let provider = request::provider(&directory)?;
        let tee = Tee::ALL.into_iter().find(|tee| tee.provider() == provider).ok_or_else(|| {
            let message = format!("the TEE of this machine is {provider:?}; only tdx_guest and sev_guest are known");
            Error::new(Reason::AttesterUnavailable, message)
        })?;
        Ok(Self::new(directory, tee))
    }

    /// The name of this kind of evidence in the KBS protocol.
    #[must_use]
    pub fn tee(&self) -> &'static str {
        self.tee.name()
    }

    /// The `primary_evidence` bound to `data`.
    ///
    /// # Errors
    /// `AttesterUnavailable` with what the kernel said, or with what is wrong with the report.
    pub async fn evidence(&self, data: &ReportData) -> Result<Value> {
        let mut bound: Bound = [0; 64];
        bound[..data.len()].copy_from_slice(data);
        let (directory, tee) = (self.directory.clone(), self.tee);
        blocking("asked the TEE", move || {
            let blobs = request::report(&directory, tee.provider(), &bound)?;
            match tee {
                Tee::Tdx => tdx::evidence(&blobs.outblob, &bound, Path::new(EVENT_LOG)),
                Tee::Snp => snp::evidence(&blobs.outblob, &blobs.auxblob, &bound),
            }
        })
        .await
    }

    /// What a report of this machine says, under the names that a KBS gives to it. The report is bound to no exchange.
    ///
    /// # Errors
    /// `AttesterUnavailable` as for evidence.
    pub async fn describe(&self) -> Result<AttesterDescription> {
        let (directory, tee) = (self.directory.clone(), self.tee);
        let claims = blocking("asked the TEE", move || {
            let nothing = [0; 64];
            let blobs = request::report(&directory, tee.provider(), &nothing)?;
            match tee {
                Tee::Tdx => tdx::claims(&blobs.outblob, &nothing),
                Tee::Snp => snp::claims(&blobs.outblob, &nothing),
            }
        })
        .await?;
        Ok(AttesterDescription { claims, ..AttesterDescription::without_proof(self.tee()) })
    }
}

/// A report that was made, and is not sent.
fn refused(message: impl Into<String>) -> Error {
    Error::new(Reason::AttesterUnavailable, message)
}
