//! Evidence of a TPM 2.0: a quote over the SHA-256 PCRs 0 to 23, signed by a key that is the same after every boot.
//!
//! The key is a primary key of the endorsement hierarchy from a fixed template, so nothing is stored anywhere. A
//! connection to the TPM lives as long as one quote. PCR values that do not hash to what was quoted are never sent.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use picky_asn1::wrapper::IntegerAsn1;
use picky_asn1_x509::SubjectPublicKeyInfo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tss_esapi::Context;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::handles::{KeyHandle, ObjectHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Attest, AttestInfo, Auth, Data, PcrSelectionList, PcrSlot, Public, Signature, SignatureScheme,
};
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::utils::TpmsContext;
use zeroize::Zeroizing;

use super::{AttesterDescription, PCR_COUNT, ReportData, blocking};
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// `TPMT_PUBLIC` of the attestation key (TPM 2.0 library, part 2, 12.2.4). Another byte is another key, so that every
/// registration of every node would be void: this never changes.
const TEMPLATE: &[u8] = &[
    0x00, 0x01, // type: RSA
    0x00, 0x0b, // nameAlg: SHA-256
    0x00, 0x05, 0x00, 0x72, // fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign
    0x00, 0x00, // no policy
    0x00, 0x10, // symmetric: none
    0x00, 0x14, 0x00, 0x0b, // scheme: RSASSA with SHA-256
    0x08, 0x00, // 2048 bits
    0x00, 0x00, 0x00, 0x00, // exponent: 65537
    0x00, 0x00, // unique: empty
];
const EXPONENT: [u8; 3] = [1, 0, 1];
/// Bytes that the TPM signs along with the PCRs; the protocol's digest is cut to this length for a TPM.
const QUALIFYING_BYTES: usize = 32;
/// The most digests that one TPM2_PCR_Read returns (`TPML_DIGEST`, TPM 2.0 library, part 2, 10.9.4).
const PCRS_PER_READ: usize = 8;
/// How often a quote is tried again because a PCR was extended between reading and quoting.
const ATTEMPTS: usize = 5;

type Pcrs = [[u8; 32]; PCR_COUNT];

/// A TPM that can be asked for evidence.
pub struct Tpm(Arc<Inner>);

struct Inner {
    tcti: String,
    connection: TctiNameConf,
    endorsement_auth_file: Option<PathBuf>,
    /// The attestation key as the TPM saved it, encrypted by itself: making an RSA primary takes seconds on some chips.
    /// The lock also keeps two threads from talking to a TPM without resource manager at once.
    saved: Mutex<Option<SavedKey>>,
}

struct SavedKey {
    context: TpmsContext,
    public_der: Vec<u8>,
}

struct Quote {
    public_der: Vec<u8>,
    message: Attest,
    signature: Signature,
    pcrs: Pcrs,
}

impl Tpm {
    /// The TPM behind `tcti`, written as the TSS writes it: `device:/dev/tpmrm0`, `swtpm:host=...,port=...`.
    /// `endorsement_auth_file` holds the password of the endorsement hierarchy if it has one; a final newline is not
    /// part of it.
    ///
    /// # Errors
    /// `InvalidArgument` if the text is no TCTI or the file cannot be read. The TPM itself is not touched.
    pub fn new(tcti: &str, endorsement_auth_file: Option<PathBuf>) -> Result<Self> {
        let connection = TctiNameConf::from_str(tcti).map_err(|cause| {
            let form =
                format!("{tcti:?} is not one of device:<path>, swtpm:host=<host>,port=<port>, mssim:... or tabrmd");
            Error::invalid("--tcti", form).caused_by(cause)
        })?;
        if let Some(path) = &endorsement_auth_file {
            read_auth(path)?;
        }
        let tcti = tcti.to_owned();
        Ok(Self(Arc::new(Inner { tcti, connection, endorsement_auth_file, saved: Mutex::new(None) })))
    }

    /// The `primary_evidence` bound to `data`.
    ///
    /// # Errors
    /// `AttesterUnavailable` with what the TPM said.
    pub async fn evidence(&self, data: &ReportData) -> Result<Value> {
        let qualifying: [u8; QUALIFYING_BYTES] = *data.first_chunk().expect("a digest of 48 bytes begins with 32");
        let quote = self.ask(move |tpm| tpm.quote(&qualifying)).await?;
        let marshalled = |bytes: tss_esapi::Result<Vec<u8>>| {
            bytes
                .map(|bytes| STANDARD.encode(bytes))
                .map_err(|cause| self.0.failed("its quote has an unknown form", cause))
        };
        Ok(json!({
            "ak_public": STANDARD.encode(&quote.public_der),
            "tpm_quote": {
                "message": marshalled(quote.message.marshall())?,
                "signature": marshalled(quote.signature.marshall())?,
                "pcrs": quote.pcrs.map(hex::encode),
            },
        }))
    }

    /// Key and PCRs of this TPM.
    ///
    /// # Errors
    /// `AttesterUnavailable` with what the TPM said.
    pub async fn describe(&self) -> Result<AttesterDescription> {
        let (public_der, pcrs) = self.ask(Inner::describe).await?;
        Ok(AttesterDescription {
            tee: "tpm".to_owned(),
            attestation_key: Some(STANDARD.encode(&public_der)),
            attestation_key_sha256: Some(hex::encode(Sha256::digest(&public_der))),
            pcrs: (0..).zip(pcrs.map(hex::encode)).collect(),
            claims: Value::Null,
        })
    }

    async fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = Arc::clone(&self.0);
        blocking("asked the TPM", move || question(&inner)).await
    }
}

impl Inner {
    fn describe(&self) -> Result<(Vec<u8>, Pcrs)> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut context = self.connect()?;
        let (_, public_der) = self.load_key(&mut context, &mut saved)?;
        Ok((public_der, self.read_pcrs(&mut context)?))
    }

    fn quote(&self, qualifying: &[u8]) -> Result<Quote> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let mut context = self.connect()?;
        let (key, public_der) = self.load_key(&mut context, &mut saved)?;
        let qualifying =
            Data::try_from(qualifying.to_vec()).map_err(|cause| self.failed("it takes no nonce", cause))?;
        for _ in 0..ATTEMPTS {
            let pcrs = self.read_pcrs(&mut context)?;
            let selection = self.selection(&PCR_SLOTS)?;
            let (message, signature) = context
                .execute_with_session(Some(AuthSession::Password), |context| {
                    context.quote(key, qualifying.clone(), SignatureScheme::Null, selection)
                })
                .map_err(|cause| self.failed("it made no quote", cause))?;
            if let AttestInfo::Quote { info } = message.attested()
                && info.pcr_digest().value() == Sha256::digest(pcrs.as_flattened()).as_slice()
            {
                return Ok(Quote { public_der, message, signature, pcrs });
            }
        }
        Err(Error::new(
            Reason::AttesterUnavailable,
            format!("the PCRs of the TPM at {} changed during each of {ATTEMPTS} quotes", self.tcti),
        ))
    }

    fn connect(&self) -> Result<Context> {
        Context::new(self.connection.clone()).map_err(|cause| {
            self.failed("it cannot be reached; is this the right --tcti, and may this process open it?", cause)
        })
    }

    /// The attestation key: what the TPM saved for us before or, after its restart for example, the same key made anew.
    fn load_key(&self, context: &mut Context, saved: &mut Option<SavedKey>) -> Result<(KeyHandle, Vec<u8>)> {
        if let Some(SavedKey { context: blob, public_der }) = saved
            && let Ok(handle) = context.context_load(blob.clone())
        {
            return Ok((handle.into(), public_der.clone()));
        }
        let (handle, public_der) = self.create_key(context)?;
        // A TPM that saves no contexts only costs the time to make the key at every exchange.
        *saved = context
            .context_save(handle.into())
            .ok()
            .map(|context| SavedKey { context, public_der: public_der.clone() });
        Ok((handle, public_der))
    }

    fn create_key(&self, context: &mut Context) -> Result<(KeyHandle, Vec<u8>)> {
        let failed = |cause| self.failed("it made no attestation key", cause);
        if let Some(path) = &self.endorsement_auth_file {
            let auth = Auth::try_from(read_auth(path)?.to_vec()).map_err(|cause| {
                Error::new(Reason::AttesterUnavailable, "the password in --endorsement-auth-file is too long")
                    .caused_by(cause)
            })?;
            context.tr_set_auth(ObjectHandle::Endorsement, auth).map_err(failed)?;
        }
        let template = Public::unmarshall(TEMPLATE).map_err(failed)?;
        let created = context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
            })
            .map_err(|cause| match cause {
                tss_esapi::Error::Tss2Error(code)
                    if matches!(code.kind(), Some(Tss2ResponseCodeKind::BadAuth | Tss2ResponseCodeKind::AuthFail)) =>
                {
                    self.failed(
                        "its endorsement hierarchy has another password; name it with --endorsement-auth-file",
                        cause,
                    )
                }
                _ => failed(cause),
            })?;
        let Public::Rsa { unique, .. } = &created.out_public else {
            return Err(failed(tss_esapi::Error::WrapperError(tss_esapi::WrapperErrorKind::WrongValueFromTpm)));
        };
        Ok((created.key_handle, public_key_der(unique.value())))
    }

    fn read_pcrs(&self, context: &mut Context) -> Result<Pcrs> {
        let mut pcrs = [[0; 32]; PCR_COUNT];
        for (slots, values) in PCR_SLOTS.chunks(PCRS_PER_READ).zip(pcrs.chunks_mut(PCRS_PER_READ)) {
            let (_, _, digests) = context
                .pcr_read(self.selection(slots)?)
                .map_err(|cause| self.failed("its PCRs cannot be read", cause))?;
            if digests.len() != slots.len() {
                let message = format!("the TPM at {} has no complete SHA-256 bank of PCRs", self.tcti);
                return Err(Error::new(Reason::AttesterUnavailable, message));
            }
            for (value, digest) in values.iter_mut().zip(digests.value()) {
                *value = digest.value().try_into().map_err(|cause| self.failed("a PCR has a wrong length", cause))?;
            }
        }
        Ok(pcrs)
    }

    fn selection(&self, slots: &[PcrSlot]) -> Result<PcrSelectionList> {
        PcrSelectionList::builder()
            .with_selection(HashingAlgorithm::Sha256, slots)
            .build()
            .map_err(|cause| self.failed("its PCRs cannot be selected", cause))
    }

    fn failed(&self, what: &str, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::new(Reason::AttesterUnavailable, format!("the TPM at {}: {what}", self.tcti)).caused_by(cause)
    }
}

/// DER of the SubjectPublicKeyInfo of an RSA key with the exponent that a TPM means by zero.
fn public_key_der(modulus: &[u8]) -> Vec<u8> {
    let integer = |bytes: &[u8]| IntegerAsn1::from_bytes_be_unsigned(bytes.to_vec());
    picky_asn1_der::to_vec(&SubjectPublicKeyInfo::new_rsa_key(integer(modulus), integer(&EXPONENT)))
        .expect("two integers can always be written as DER")
}

fn read_auth(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let mut auth = std::fs::read(path).map(Zeroizing::new).map_err(|cause| {
        Error::invalid("--endorsement-auth-file", format!("{} cannot be read", path.display())).caused_by(cause)
    })?;
    if auth.last() == Some(&b'\n') {
        auth.pop();
    }
    Ok(auth)
}

const PCR_SLOTS: [PcrSlot; PCR_COUNT] = [
    PcrSlot::Slot0,
    PcrSlot::Slot1,
    PcrSlot::Slot2,
    PcrSlot::Slot3,
    PcrSlot::Slot4,
    PcrSlot::Slot5,
    PcrSlot::Slot6,
    PcrSlot::Slot7,
    PcrSlot::Slot8,
    PcrSlot::Slot9,
    PcrSlot::Slot10,
    PcrSlot::Slot11,
    PcrSlot::Slot12,
    PcrSlot::Slot13,
    PcrSlot::Slot14,
    PcrSlot::Slot15,
    PcrSlot::Slot16,
    PcrSlot::Slot17,
    PcrSlot::Slot18,
    PcrSlot::Slot19,
    PcrSlot::Slot20,
    PcrSlot::Slot21,
    PcrSlot::Slot22,
    PcrSlot::Slot23,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_a_restricted_signing_key() {
        let Public::Rsa { object_attributes, auth_policy, .. } = Public::unmarshall(TEMPLATE).expect("a template")
        else {
            panic!("not RSA");
        };
        assert!(object_attributes.restricted() && object_attributes.sign_encrypt() && !object_attributes.decrypt());
        assert!(auth_policy.value().is_empty());
        assert_eq!(Public::unmarshall(TEMPLATE).and_then(|public| public.marshall()).expect("marshals"), TEMPLATE);
    }

    #[test]
    fn a_wrong_configuration_is_refused_before_the_tpm_is_asked() {
        let refused = Tpm::new("/dev/tpm0", None).err().expect("refused");
        assert!(refused.to_string().starts_with("InvalidArgument: --tcti"), "{refused}");
        let refused = Tpm::new("device:/dev/tpmrm0", Some("/nonexistent".into())).err().expect("refused");
        assert!(refused.to_string().starts_with("InvalidArgument: --endorsement-auth-file"), "{refused}");
    }

    #[tokio::test]
    async fn an_absent_tpm_is_an_error_that_names_it() {
        let tpm = Tpm::new("device:/nonexistent/tpm", None).expect("configured");
        let error = tpm.evidence(&[0; 48]).await.expect_err("no TPM");
        assert_eq!(error.reason(), Reason::AttesterUnavailable);
        assert!(error.explanation().contains("/nonexistent/tpm"), "{error}");
    }

    #[test]
    fn the_public_key_is_written_as_subject_public_key_info() {
        let der = public_key_der(&[0xff; 256]);
        assert_eq!(der.len(), 294, "a 2048-bit RSA key");
        assert_eq!(hex::encode(&der[..24]), "30820122300d06092a864886f70d01010105000382010f00");
    }
}
