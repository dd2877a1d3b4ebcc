//! The sending side of [`crate::key::jwe`]: encrypts a secret for the key pair of one exchange.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use aes_kw::KwAes256;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::SecretKey;
use p256::elliptic_curve::Generate;
use zeroize::Zeroizing;

use super::fill_random;
use crate::key::jwe::ContentEncryption;
use crate::key::jwe::Envelope;
use crate::key::jwe::EphemeralKey;
use crate::key::jwe::Header;
use crate::key::jwe::KeyAgreement;
use crate::key::jwe::derive_wrapping_key;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SecretBytes;

/// Encrypts `secret` so that only the holder of `recipient` can read it.
pub(super) fn seal(recipient: &p256::PublicKey, secret: &SecretBytes) -> Result<Envelope> {
    let failed = |what: &str| Error::new(Reason::Internal, format!("the secret could not be {what}"));
    let ephemeral = SecretKey::generate();
    let mut content_key = Zeroizing::new([0; 32]);
    let mut iv = [0; 12];
    fill_random(content_key.as_mut_slice())?;
    fill_random(&mut iv)?;

    let header = Header {
        alg: KeyAgreement::EcdhEsA256Kw,
        enc: ContentEncryption::A256Gcm,
        epk: EphemeralKey::of(&ephemeral.public_key()),
    };
    let header = serde_json::to_vec(&header).map_err(|cause| failed("described").caused_by(cause))?;
    let protected = URL_SAFE_NO_PAD.encode(header);

    let wrapping_key = derive_wrapping_key(ephemeral.diffie_hellman(recipient).raw_secret_bytes());
    let mut wrapped = [0; 40];
    KwAes256::new((&*wrapping_key).into())
        .wrap_key(content_key.as_slice(), &mut wrapped)
        .map_err(|_| failed("wrapped"))?;
    let mut content = Zeroizing::new(secret.expose().to_vec());
    let tag = Aes256Gcm::new((&*content_key).into())
        .encrypt_inout_detached(&iv.into(), protected.as_bytes(), content.as_mut_slice().into())
        .map_err(|_| failed("encrypted"))?;
    Ok(Envelope {
        protected,
        encrypted_key: URL_SAFE_NO_PAD.encode(wrapped),
        iv: URL_SAFE_NO_PAD.encode(iv),
        ciphertext: URL_SAFE_NO_PAD.encode(&*content),
        tag: URL_SAFE_NO_PAD.encode(tag),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::jwe::ExchangeKey;

    #[test]
    fn what_is_sealed_opens_for_its_recipient_only() {
        let secret = SecretBytes::new(Zeroizing::new(vec![9; 32]));
        let key = ExchangeKey::generate().expect("locked");
        let envelope = seal(&key.recipient().point().expect("on the curve"), &secret).expect("seals");
        let answer = serde_json::to_vec(&envelope).expect("serialises");
        assert_eq!(key.open(&answer).expect("opens").expose(), [9; 32]);
        assert!(ExchangeKey::generate().expect("locked").open(&answer).is_err());
    }
}
