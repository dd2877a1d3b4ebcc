//! The secret behind a volume, or why not; and what is derived from it.

pub mod evidence;
#[cfg(any(test, feature = "dev"))]
pub mod fake;
pub mod jwe;
pub mod kbs;

use async_trait::async_trait;
use hkdf::Hkdf;
use sha2::Sha256;

use crate::volume::Error;
use crate::volume::KeyUri;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SecretBytes;
use crate::volume::VolumeId;

/// The shortest secret from which keys are derived.
pub const MINIMUM_SECRET_BYTES: usize = 32;

/// Who gives us the secret of a volume.
#[async_trait]
pub trait KeySource: Send + Sync + 'static {
    /// Proves what this machine is and returns the secret under `uri`. Every call is a fresh proof.
    async fn secret(&self, uri: &KeyUri) -> Result<SecretBytes>;

    /// The host of the KBS that is asked.
    fn kbs(&self) -> &str;

    /// Who makes the proof: the name of its kind of evidence in the KBS protocol.
    fn attester(&self) -> &str;

    /// Why the last attempt gave no secret; `None` if it gave one, or if nobody has asked yet. Asks nobody.
    fn last_error(&self) -> Option<Reason> {
        None
    }
}

/// The keys of one volume. They exist only inside the call that needs them.
pub struct VolumeKeys {
    /// Text that unlocks the volume's LUKS2 keyslot.
    pub passphrase: SecretBytes,
    /// Key of the MAC over the LUKS2 header.
    pub seal: SecretBytes,
    /// Key of the MAC over the record.
    pub record: SecretBytes,
    /// Public value in the record that tells a wrong secret from a changed header.
    pub check: [u8; 32],
}

impl VolumeKeys {
    /// HKDF-SHA256 with `secret` as input keying material, empty salt, and a label followed by the volume id as info.
    ///
    /// # Errors
    /// `KeyTooShort` if the secret has fewer than 32 bytes, `MemoryUnprotected` if the kernel does not lock the memory
    /// of a key.
    pub fn derive(secret: &SecretBytes, id: &VolumeId) -> Result<Self> {
        let length = secret.expose().len();
        if length < MINIMUM_SECRET_BYTES {
            return Err(Error::new(
                Reason::KeyTooShort,
                format!(
                    "the secret at the KBS has {length} bytes; it must have at least {MINIMUM_SECRET_BYTES} random ones"
                ),
            ));
        }
        let hkdf = Hkdf::<Sha256>::new(None, secret.expose());
        let expand = |label: &str| {
            SecretBytes::filled(32, |key| {
                hkdf.expand(format!("coffer/v1/{label}/{id}").as_bytes(), key)
                    .expect("32 bytes are fewer than HKDF-SHA256 can give");
                Ok(())
            })
        };
        let mut check = [0; 32];
        check.copy_from_slice(expand("check")?.expose());
        Ok(Self { passphrase: expand("keyslot")?.to_hex()?, seal: expand("seal")?, record: expand("record")?, check })
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn derivations_match_the_published_vector() {
        let secret = SecretBytes::new(Zeroizing::new((0..32).collect()));
        let id = VolumeId::parse(&format!("cv-{}", "0".repeat(32))).expect("an id");
        let keys = VolumeKeys::derive(&secret, &id).expect("long enough");
        assert_eq!(keys.passphrase.expose(), b"b553532b03b069f6bae533c6f770615442f988288a0f49c4a9155ea521985581");
        assert_eq!(
            keys.seal.to_hex().expect("locked").expose(),
            b"222b56d2cfc9577883a15db761ffb71107917abac6ed2530bf4d497967439c80"
        );
    }

    #[test]
    fn a_short_secret_is_refused() {
        let secret = SecretBytes::new(Zeroizing::new(vec![7; 31]));
        let error = VolumeKeys::derive(&secret, &VolumeId::for_name("x")).err().expect("refused");
        assert_eq!(error.reason(), Reason::KeyTooShort);
    }
}
