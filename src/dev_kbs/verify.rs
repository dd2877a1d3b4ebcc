//! Whether evidence is true. A TPM's is: signed by the key that it shows, made for this exchange, and about the PCRs
//! that it lists. Which key and which values are welcome is the policy's affair.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p256::pkcs8::spki::SubjectPublicKeyInfoRef;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::key::evidence::PCR_COUNT;
use crate::key::evidence::ReportData;

/// `TPM_GENERATED_VALUE`: first word of everything that a TPM signs about itself (TPM 2.0 library, part 2, 6.2).
const GENERATED: [u8; 4] = [0xff, 0x54, 0x43, 0x47];
/// `TPM_ST_ATTEST_QUOTE` (part 2, 6.9).
const QUOTE: [u8; 2] = [0x80, 0x18];
/// `TPM_ALG_RSASSA` and `TPM_ALG_SHA256` (part 2, 6.3).
const RSASSA_SHA256: [u8; 4] = [0x00, 0x14, 0x00, 0x0b];
/// One bank, SHA-256, three octets of selection: PCRs 0 to 23 (`TPML_PCR_SELECTION`, part 2, 10.9.7).
const ALL_PCRS_SHA256: [u8; 10] = [0, 0, 0, 1, 0x00, 0x0b, 3, 0xff, 0xff, 0xff];
/// rsaEncryption, RFC 8017 appendix A.
const RSA_ENCRYPTION: &str = "1.2.840.113549.1.1.1";

/// What true evidence says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) tee: String,
    /// DER SubjectPublicKeyInfo of the key that signed.
    pub(super) attestation_key: Option<Vec<u8>>,
    /// The SHA-256 bank, empty if the evidence has none.
    pub(super) pcrs: Vec<[u8; 32]>,
}

#[derive(Deserialize)]
struct TpmEvidence {
    ak_public: String,
    tpm_quote: TpmQuote,
}

#[derive(Deserialize)]
struct TpmQuote {
    message: String,
    signature: String,
    pcrs: Vec<String>,
}

#[derive(Deserialize)]
struct SampleEvidence {
    report_data: String,
}

/// Checks evidence of kind `tee` that must be bound to `data`; the error says what is wrong with it, for the log.
pub(super) fn verify(tee: &str, evidence: &Value, data: &ReportData) -> Result<Claims, &'static str> {
    match tee {
        "tpm" => verify_tpm(evidence, data),
        "sample" => verify_sample(evidence, data),
        _ => Err("this kind of evidence cannot be verified here"),
    }
}

fn verify_sample(evidence: &Value, data: &ReportData) -> Result<Claims, &'static str> {
    let evidence = SampleEvidence::deserialize(evidence).map_err(|_| "the sample evidence has another form")?;
    if STANDARD.decode(evidence.report_data).is_ok_and(|bound| bound == data) {
        Ok(Claims { tee: "sample".to_owned(), attestation_key: None, pcrs: Vec::new() })
    } else {
        Err("the sample evidence is bound to another exchange")
    }
}

fn verify_tpm(evidence: &Value, data: &ReportData) -> Result<Claims, &'static str> {
    let TpmEvidence { ak_public, tpm_quote } =
        TpmEvidence::deserialize(evidence).map_err(|_| "the TPM evidence has another form")?;
    let key = STANDARD.decode(ak_public).map_err(|_| "the attestation key is not base64")?;
    let message = STANDARD.decode(tpm_quote.message).map_err(|_| "the quote is not base64")?;
    let signature = STANDARD.decode(tpm_quote.signature).map_err(|_| "the signature is not base64")?;
    let pcrs: Vec<[u8; 32]> = tpm_quote.pcrs.iter().map_while(|text| digest(text)).collect();
    if pcrs.len() != PCR_COUNT || tpm_quote.pcrs.len() != PCR_COUNT {
        return Err("the PCRs are not 24 SHA-256 values");
    }
    verify_signature(&key, &message, &signature)?;
    let quote = Quote::parse(&message).ok_or("what was signed is not a quote over the SHA-256 PCRs 0 to 23")?;
    if !data.starts_with(quote.qualifying) || quote.qualifying.len() != 32 {
        return Err("the quote is bound to another nonce or key");
    }
    if quote.pcr_digest != Sha256::digest(pcrs.as_flattened()).as_slice() {
        return Err("the PCRs do not hash to the digest in the quote");
    }
    Ok(Claims { tee: "tpm".to_owned(), attestation_key: Some(key), pcrs })
}

fn digest(text: &str) -> Option<[u8; 32]> {
    hex::decode(text).ok()?.try_into().ok()
}

fn verify_signature(key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), &'static str> {
    let key =
        SubjectPublicKeyInfoRef::try_from(key).map_err(|_| "the attestation key is not a SubjectPublicKeyInfo")?;
    if key.algorithm.oid.to_string() != RSA_ENCRYPTION {
        return Err("the attestation key is not an RSA key");
    }
    let rsa = key.subject_public_key.as_bytes().ok_or("the attestation key is cut short")?;
    let mut rest = Bytes(signature);
    let (Some(scheme), Some(signature), []) = (rest.take(4), rest.sized(), rest.0) else {
        return Err("the signature is not a TPMT_SIGNATURE");
    };
    if scheme != RSASSA_SHA256 {
        return Err("the signature is not RSASSA with SHA-256");
    }
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, rsa)
        .verify(message, signature)
        .map_err(|_| "the signature is not of this key over this quote")
}

/// The parts of a `TPMS_ATTEST` that matter (TPM 2.0 library, part 2, 10.12.12).
struct Quote<'a> {
    qualifying: &'a [u8],
    pcr_digest: &'a [u8],
}

impl<'a> Quote<'a> {
    fn parse(message: &'a [u8]) -> Option<Self> {
        let mut rest = Bytes(message);
        let is_quote = rest.take(4)? == GENERATED && rest.take(2)? == QUOTE;
        let _signer = rest.sized()?;
        let qualifying = rest.sized()?;
        let _clock_and_firmware = rest.take(17 + 8)?;
        let covers_all = rest.take(ALL_PCRS_SHA256.len())? == ALL_PCRS_SHA256;
        let pcr_digest = rest.sized()?;
        (is_quote && covers_all && rest.0.is_empty()).then_some(Self { qualifying, pcr_digest })
    }
}

/// What is left to read of a structure in TPM's big-endian form.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    /// Bytes with their length, in two bytes, before them.
    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = u16::from_be_bytes(self.take(2)?.try_into().ok()?);
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_quote_that_is_cut_or_has_more_behind_it_is_no_quote() {
        let mut message =
            [&GENERATED[..], &QUOTE, &[0, 1, 9], &[0, 2, 7, 8], &[0; 25], &ALL_PCRS_SHA256, &[0, 1, 5]].concat();
        let quote = Quote::parse(&message).expect("a quote");
        assert_eq!((quote.qualifying, quote.pcr_digest), (&[7, 8][..], &[5][..]));
        for length in 0..message.len() {
            assert!(Quote::parse(&message[..length]).is_none(), "{length}");
        }
        message.push(0);
        assert!(Quote::parse(&message).is_none());
    }

    #[test]
    fn what_is_no_quote_over_all_pcrs_is_refused() {
        let message = [&GENERATED[..], &QUOTE, &[0, 0, 0, 0], &[0; 25], &ALL_PCRS_SHA256, &[0, 0]].concat();
        assert!(Quote::parse(&message).is_some());
        for at in [0, 3, 4, 5].into_iter().chain(35..45) {
            let mut other = message.clone();
            other[at] ^= 1;
            assert!(Quote::parse(&other).is_none(), "byte {at}");
        }
    }

    #[test]
    fn sample_evidence_is_bound_to_its_exchange() {
        let bound = |data: [u8; 48]| json!({ "svn": "1", "report_data": STANDARD.encode(data) });
        assert!(verify("sample", &bound([1; 48]), &[1; 48]).is_ok());
        assert!(verify("sample", &bound([2; 48]), &[1; 48]).is_err());
        assert!(verify("sample", &json!({}), &[1; 48]).is_err());
        assert!(verify("tdx", &bound([1; 48]), &[1; 48]).is_err());
    }
}
