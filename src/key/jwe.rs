//! The envelope in which a KBS hands over a secret: JWE in flattened JSON (RFC 7516), for a key pair of one exchange.
//!
//! Exactly one form is accepted: `ECDH-ES+A256KW` on P-256 with `A256GCM`. Every other algorithm or curve, a point off
//! the curve, a member that we do not know (`zip`, `crit`, `apu`, ...) and base64 with padding or stray bits are
//! refused. No error of this file repeats a byte of what it refused.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Tag};
use aes_kw::KwAes256;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::SecretKey;
use p256::elliptic_curve::Generate;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SecretBytes;

/// `AlgorithmID` of the key derivation, RFC 7518 section 4.6.2.
const KEY_AGREEMENT: &[u8] = b"ECDH-ES+A256KW";
/// A 256-bit content key wrapped by AES key wrap, RFC 3394: eight bytes longer than the key.
const WRAPPED_KEY_BYTES: usize = 40;
/// Initialisation vector of A256GCM, RFC 7518 section 5.3.
const IV_BYTES: usize = 12;

/// The algorithm that wraps the content key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyAgreement {
    /// Ephemeral-static ECDH whose result wraps the content key.
    #[serde(rename = "ECDH-ES+A256KW")]
    EcdhEsA256Kw,
}

/// The algorithm that encrypts the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContentEncryption {
    /// AES-256 in Galois/counter mode.
    #[serde(rename = "A256GCM")]
    A256Gcm,
}

/// The kind of a JSON web key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyType {
    /// Elliptic curve.
    #[serde(rename = "EC")]
    Ec,
}

/// The curve of a JSON web key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Curve {
    /// NIST P-256.
    #[serde(rename = "P-256")]
    P256,
}

/// One coordinate of a point, in JSON as base64url of exactly 32 bytes (RFC 7518 section 6.2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coordinate([u8; 32]);

impl Serialize for Coordinate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Coordinate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom("a coordinate is not base64url of 32 bytes"))
    }
}

/// The public key for which the KBS encrypts. The KBS hashes these members and no others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipientKey {
    /// What the key is for.
    pub alg: KeyAgreement,
    /// Curve of the point.
    pub crv: Curve,
    /// Always an elliptic curve.
    pub kty: KeyType,
    /// Horizontal coordinate.
    pub x: Coordinate,
    /// Vertical coordinate.
    pub y: Coordinate,
}

impl RecipientKey {
    /// The JSON web key of `key`.
    #[must_use]
    pub fn of(key: &p256::PublicKey) -> Self {
        let EphemeralKey { crv, kty, x, y } = EphemeralKey::of(key);
        Self { alg: KeyAgreement::EcdhEsA256Kw, crv, kty, x, y }
    }

    /// The point, if it is on the curve.
    #[must_use]
    pub fn point(&self) -> Option<p256::PublicKey> {
        point(&self.x, &self.y)
    }
}

/// The sender's public key in the header (`epk`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EphemeralKey {
    /// Curve of the point.
    pub crv: Curve,
    /// Always an elliptic curve.
    pub kty: KeyType,
    /// Horizontal coordinate.
    pub x: Coordinate,
    /// Vertical coordinate.
    pub y: Coordinate,
}

impl EphemeralKey {
    /// The JSON web key of `key`.
    #[must_use]
    pub fn of(key: &p256::PublicKey) -> Self {
        let sec1 = key.to_sec1_bytes();
        let coordinate = |at: usize| Coordinate(sec1[at..at + 32].try_into().expect("the slice has 32 bytes"));
        Self { crv: Curve::P256, kty: KeyType::Ec, x: coordinate(1), y: coordinate(33) }
    }
}

/// The protected header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// How the content key is wrapped.
    pub alg: KeyAgreement,
    /// How the content is encrypted.
    pub enc: ContentEncryption,
    /// The sender's public key.
    pub epk: EphemeralKey,
}

/// The whole envelope; every member is base64url without padding.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// The [`Header`], authenticated in exactly this spelling.
    pub protected: String,
    /// The wrapped content key.
    pub encrypted_key: String,
    /// Initialisation vector.
    pub iv: String,
    /// The encrypted secret.
    pub ciphertext: String,
    /// Authentication tag.
    pub tag: String,
}

/// The key pair of one exchange. It is made for it, dropped with it, and zeroed then. Its private half opens the answer
/// to whoever recorded it, so it is a secret like any other.
pub struct ExchangeKey(SecretBytes);

impl ExchangeKey {
    /// A fresh pair from the kernel's random numbers.
    ///
    /// # Errors
    /// `MemoryUnprotected` if the kernel does not lock its memory.
    pub fn generate() -> Result<Self> {
        Self::of(&SecretKey::generate())
    }

    fn of(key: &SecretKey) -> Result<Self> {
        let scalar = Zeroizing::new(key.to_bytes());
        let copy = |locked: &mut [u8]| {
            locked.copy_from_slice(&scalar);
            Ok(())
        };
        SecretBytes::filled(scalar.len(), copy).map(Self)
    }

    /// What the KBS gets to see.
    #[must_use]
    pub fn recipient(&self) -> RecipientKey {
        RecipientKey::of(&self.private().public_key())
    }

    fn private(&self) -> SecretKey {
        SecretKey::from_slice(self.0.expose()).expect("the private half of a pair")
    }

    /// The secret inside `answer`, the body with which a KBS answered.
    ///
    /// # Errors
    /// `KbsProtocol` if the answer has any other form than the one of this file, or was not made for this key.
    pub fn open(&self, answer: &[u8]) -> Result<SecretBytes> {
        let envelope: Envelope = exactly(answer).ok_or_else(|| refused("it has another form"))?;
        let header: Header = exactly(&decode(&envelope.protected, "the header")?).ok_or_else(|| {
            refused("its header names other algorithms or members than ECDH-ES+A256KW, A256GCM and epk")
        })?;
        let sender =
            point(&header.epk.x, &header.epk.y).ok_or_else(|| refused("its public key is not on the curve"))?;
        let wrapped: [u8; WRAPPED_KEY_BYTES] = decode_exactly(&envelope.encrypted_key, "the wrapped key")?;
        let iv: [u8; IV_BYTES] = decode_exactly(&envelope.iv, "the initialisation vector")?;
        let tag: [u8; 16] = decode_exactly(&envelope.tag, "the tag")?;

        let shared = self.private().diffie_hellman(&sender);
        let wrapping_key = derive_wrapping_key(shared.raw_secret_bytes());
        let mut content_key = Zeroizing::new([0; 32]);
        KwAes256::new((&*wrapping_key).into())
            .unwrap_key(&wrapped, content_key.as_mut_slice())
            .map_err(|_| refused("it was not encrypted for this exchange"))?;
        let ciphertext = decode(&envelope.ciphertext, "the ciphertext")?;
        SecretBytes::filled(ciphertext.len(), |secret| {
            secret.copy_from_slice(&ciphertext);
            Aes256Gcm::new((&*content_key).into())
                .decrypt_inout_detached(&iv.into(), envelope.protected.as_bytes(), secret.into(), &Tag::from(tag))
                .map_err(|_| refused("it was changed on its way"))
        })
    }
}

/// Concat KDF with SHA-256 (RFC 7518 section 4.6.2) for a 256-bit key, with empty party information.
///
/// One round of SHA-256 gives all bits; `shared` is the horizontal coordinate on which both sides agreed.
#[must_use]
pub fn derive_wrapping_key(shared: &[u8]) -> Zeroizing<[u8; 32]> {
    let length = u32::try_from(KEY_AGREEMENT.len()).expect("the name has 14 bytes");
    let mut hash = Sha256::new();
    hash.update(1u32.to_be_bytes());
    hash.update(shared);
    hash.update(length.to_be_bytes());
    hash.update(KEY_AGREEMENT);
    hash.update(0u32.to_be_bytes());
    hash.update(0u32.to_be_bytes());
    hash.update(256u32.to_be_bytes());
    Zeroizing::new(hash.finalize().into())
}

/// `json` as a `T`, if that is how a `T` is written: serde alone takes a list for an object of these members, too, and an
/// object for a word.
fn exactly<T: Serialize + DeserializeOwned>(json: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(json).ok()?;
    let read: Value = serde_json::from_slice(json).ok()?;
    (serde_json::to_value(&value).ok()? == read).then_some(value)
}

fn point(x: &Coordinate, y: &Coordinate) -> Option<p256::PublicKey> {
    let uncompressed = [&[4], x.0.as_slice(), y.0.as_slice()].concat();
    p256::PublicKey::from_sec1_bytes(&uncompressed).ok()
}

fn decode(text: &str, what: &str) -> Result<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| refused(&format!("{what} is not base64url without padding")))
}

fn decode_exactly<const N: usize>(text: &str, what: &str) -> Result<[u8; N]> {
    decode(text, what)?.try_into().map_err(|_| refused(&format!("{what} has a wrong length")))
}

fn refused(why: &str) -> Error {
    Error::new(Reason::KbsProtocol, format!("the KBS sent the key in an envelope that is refused: {why}"))
}

#[cfg(test)]
mod tests;
