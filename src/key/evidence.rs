//! What this machine can prove about itself, bound to one exchange with a KBS.
//!
//! An attester is named explicitly and nothing ever falls back to another one: a machine without its TEE or TPM proves
//! nothing. `sample` proves nothing at all; it exists only with cargo feature `dev`.

#[cfg(feature = "tpm")]
mod tpm;
mod tsm;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha384};

use super::jwe::RecipientKey;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

#[cfg(feature = "tpm")]
pub use tpm::Tpm;
pub use tsm::{DIRECTORY as TSM_DIRECTORY, Tee, Tsm};

/// PCRs of one bank that evidence covers: 0 to 23, as the TCG PC client profile numbers them.
pub const PCR_COUNT: usize = 24;

/// SHA-384 of what evidence is bound to; hardware that holds less gets its first bytes.
pub type ReportData = [u8; 48];

/// The digest to which evidence is bound: SHA-384 over the JSON of nonce, key and other evidence, in the canonical
/// form of RFC 8785. This is the rule of KBS protocol 0.4.0 for every kind of TEE that Coffer knows.
///
/// `nonce` is the KBS's text as it was received, `additional_evidence` the text about devices, empty if there is none.
#[must_use]
pub fn report_data(nonce: &str, key: &RecipientKey, additional_evidence: &str) -> ReportData {
    let bound = json!({ "additional-evidence": additional_evidence, "nonce": nonce, "tee-pubkey": key });
    let canonical =
        serde_json_canonicalizer::to_vec(&bound).expect("strings and objects of them have a canonical form");
    Sha384::digest(canonical).into()
}

/// Who makes the proof on this machine.
pub enum Attester {
    /// A confidential virtual machine: proves what was booted, and that memory is confidential.
    Tsm(Tsm),
    /// A TPM 2.0: proves what was booted, not that memory is confidential.
    #[cfg(feature = "tpm")]
    Tpm(Tpm),
    /// Evidence without any proof, for development.
    #[cfg(feature = "dev")]
    Sample,
}

impl Attester {
    /// The name of this kind of evidence in the KBS protocol.
    #[must_use]
    pub fn tee(&self) -> &'static str {
        match *self {
            Self::Tsm(ref tsm) => tsm.tee(),
            #[cfg(feature = "tpm")]
            Self::Tpm(_) => "tpm",
            #[cfg(feature = "dev")]
            Self::Sample => "sample",
        }
    }

    /// Whether this evidence proves anything. What does not must never be sent where it could be mistaken for proof.
    #[must_use]
    pub fn is_genuine(&self) -> bool {
        self.tee() != "sample"
    }

    /// The `primary_evidence` of an exchange, bound to `data`.
    ///
    /// # Errors
    /// `AttesterUnavailable` if this machine cannot make it.
    pub async fn evidence(&self, data: &ReportData) -> Result<Value> {
        match *self {
            Self::Tsm(ref tsm) => tsm.evidence(data).await,
            #[cfg(feature = "tpm")]
            Self::Tpm(ref tpm) => tpm.evidence(data).await,
            #[cfg(feature = "dev")]
            Self::Sample => {
                use base64::Engine;
                Ok(json!({ "svn": "1", "report_data": base64::engine::general_purpose::STANDARD.encode(data) }))
            }
        }
    }

    /// What the evidence of this machine says, in the form that a policy needs.
    ///
    /// # Errors
    /// `AttesterUnavailable` if this machine cannot tell.
    pub async fn describe(&self) -> Result<AttesterDescription> {
        match *self {
            Self::Tsm(ref tsm) => tsm.describe().await,
            #[cfg(feature = "tpm")]
            Self::Tpm(ref tpm) => tpm.describe().await,
            #[cfg(feature = "dev")]
            Self::Sample => Ok(AttesterDescription::without_proof("sample")),
        }
    }
}

/// Does `work` where it may block: hardware takes its time.
async fn blocking<T: Send + 'static>(what: &str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|cause| {
        let message = format!("the thread that {what} ended early");
        Err(Error::new(Reason::AttesterUnavailable, message).caused_by(cause))
    })
}

/// What a machine proves: the answer of `coffer attest`, and what a KBS's operator registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttesterDescription {
    /// Kind of evidence.
    pub tee: String,
    /// The key that signs evidence: base64 of its DER SubjectPublicKeyInfo.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attestation_key: Option<String>,
    /// SHA-256 of that DER, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attestation_key_sha256: Option<String>,
    /// The SHA-256 bank by PCR number, in hexadecimal.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub pcrs: BTreeMap<u8, String>,
    /// What a TEE's report says, under the names that the claims of a Trustee KBS have; bytes in hexadecimal.
    #[serde(skip_serializing_if = "Value::is_null", default)]
    pub claims: Value,
}

impl AttesterDescription {
    /// The description of an attester that has neither key nor measurements.
    #[must_use]
    pub fn without_proof(tee: &str) -> Self {
        Self {
            tee: tee.to_owned(),
            attestation_key: None,
            attestation_key_sha256: None,
            pcrs: BTreeMap::new(),
            claims: Value::Null,
        }
    }
}

impl fmt::Display for AttesterDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "tee                     {}", self.tee)?;
        for (name, value) in
            [("attestation key", &self.attestation_key), ("attestation key SHA-256", &self.attestation_key_sha256)]
        {
            if let Some(value) = value {
                writeln!(f, "{name:<24}{value}")?;
            }
        }
        self.pcrs.iter().try_for_each(|(number, value)| writeln!(f, "PCR {number:<20}{value}"))?;
        write_claims(f, "", &self.claims)
    }
}

/// One line for each value in `claims`, under the path to it.
fn write_claims(f: &mut fmt::Formatter<'_>, path: &str, claims: &Value) -> fmt::Result {
    match claims {
        Value::Null => Ok(()),
        Value::Object(members) => members.iter().try_for_each(|(name, value)| {
            let dot = if path.is_empty() { "" } else { "." };
            write_claims(f, &format!("{path}{dot}{name}"), value)
        }),
        Value::String(text) => writeln!(f, "{path:<32}{text}"),
        value => writeln!(f, "{path:<32}{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Public part of the P-256 key in RFC 7517, appendix A.2.
    fn recipient() -> RecipientKey {
        serde_json::from_value(json!({
            "alg": "ECDH-ES+A256KW", "crv": "P-256", "kty": "EC",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        }))
        .expect("a key")
    }

    const NONCE: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    #[test]
    fn the_digest_matches_the_published_vector() {
        assert_eq!(
            hex::encode(report_data(NONCE, &recipient(), "")),
            "1341202dde83ec1a934a297c4db4ce6f906acdb7d46d1dd9a9cc7081ff62bf4351d9731d2cf253c5b69005bde4d4592f"
        );
    }

    #[test]
    fn the_canonical_text_matches_the_published_vectors() {
        let primary = json!({ "tee-pubkey": recipient(), "nonce": NONCE, "additional-evidence": "" });
        assert_eq!(
            serde_json_canonicalizer::to_string(&primary).expect("canonical"),
            format!(
                "{{\"additional-evidence\":\"\",\"nonce\":\"{NONCE}\",\"tee-pubkey\":{{\"alg\":\"ECDH-ES+A256KW\",\
                 \"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4\",\
                 \"y\":\"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM\"}}}}"
            )
        );
        let device = json!({ "tee-pubkey": recipient(), "nonce": NONCE });
        assert_eq!(
            hex::encode(Sha384::digest(serde_json_canonicalizer::to_vec(&device).expect("canonical"))),
            "c384a9e6ebe921473845b44470202e43976a28d84977016c1db23755ed5ae995656081055ab94168aef66e2aa3ab79ce"
        );
    }

    #[test]
    fn the_digest_binds_nonce_key_and_other_evidence() {
        let other = super::super::jwe::ExchangeKey::generate().expect("locked").recipient();
        let base = report_data(NONCE, &recipient(), "");
        assert_ne!(base, report_data("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", &recipient(), ""));
        assert_ne!(base, report_data(NONCE, &other, ""));
        assert_ne!(base, report_data(NONCE, &recipient(), "{}"));
    }

    #[test]
    fn claims_are_shown_by_the_path_to_them() {
        let claims = json!({ "measurement": "ab", "reported_tcb": { "fmc": null, "snp": 8 } });
        let description = AttesterDescription { claims, ..AttesterDescription::without_proof("snp") };
        let shown = description.to_string();
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines, [["tee", "snp"], ["measurement", "ab"], ["reported_tcb.snp", "8"]]);
    }

    #[cfg(feature = "dev")]
    #[test]
    fn sample_evidence_says_that_it_proves_nothing() {
        assert!(!Attester::Sample.is_genuine());
        let text = serde_json::to_string(&AttesterDescription::without_proof("sample")).expect("serialises");
        assert_eq!(text, r#"{"tee":"sample"}"#);
    }
}
