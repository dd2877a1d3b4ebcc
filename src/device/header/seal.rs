//! The seal: a MAC over everything in a header that decides what is read and how, kept in a LUKS2 token.
//!
//! The text is `coffer/seal/1`, a line feed, and the canonical JSON (RFC 8785) of the header, the SHA-256 of each used
//! key area, and what the header belongs to. Sequence number, checksum and the copies' salts stay outside: the token
//! itself changes them, and they decide nothing.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::device::Shape;
use crate::volume::SecretBytes;

/// `type` of the LUKS2 token that holds a seal.
pub(super) const TOKEN_TYPE: &str = "coffer-seal";
/// First line of the authenticated text: what it is for, and its version.
const CONTEXT: &[u8] = b"coffer/seal/1\n";

/// The text that the seal of `shape` authenticates. `document` has passed the profile; `area` gives the bytes of a
/// keyslot's area.
pub(super) fn text<'a>(
    shape: &Shape,
    document: &Value,
    keyslots: &[(&'static str, Range<usize>)],
    area: impl Fn(&Range<usize>) -> &'a [u8],
) -> Vec<u8> {
    let hash = |(id, range): &(&'static str, Range<usize>)| {
        ((*id).to_owned(), Value::from(hex::encode(Sha256::digest(area(range)))))
    };
    let fields = json!({
        "areas": keyslots.iter().map(hash).collect::<Map<_, _>>(),
        "hdr_size": super::luks2::COPY_BYTES.to_string(),
        "header": without_macs(document),
        "label": "",
        "profile": shape.profile.as_str(),
        "subsystem": "",
        "uuid": shape.luks_uuid.hyphenated().to_string(),
        "volume": shape.id.as_str(),
    });
    let canonical = serde_json_canonicalizer::to_vec(&fields).expect("text, integers and objects always serialise");
    [CONTEXT, &canonical].concat()
}

/// The token that carries `mac`.
pub(in crate::device) fn token(mac: &[u8; 32]) -> Value {
    json!({"type": TOKEN_TYPE, "keyslots": [], "v": 1, "epoch": "1", "mac": STANDARD.encode(mac)})
}

/// The MAC of `text` under the volume's seal key.
pub(in crate::device) fn mac(key: &SecretBytes, text: &[u8]) -> [u8; 32] {
    hmac(key, text).finalize().into_bytes().into()
}

/// Whether one of the document's tokens carries the MAC of `text`. The comparison takes the same time wherever the
/// bytes differ.
pub(super) fn holds(document: &Value, key: &SecretBytes, text: &[u8]) -> bool {
    let hmac = hmac(key, text);
    let carries = |token: &Value| {
        let mac = token["mac"].as_str().and_then(|text| STANDARD.decode(text).ok());
        mac.is_some_and(|mac| hmac.clone().verify_slice(&mac).is_ok())
    };
    document["tokens"].as_object().is_some_and(|tokens| tokens.values().any(carries))
}

fn hmac(key: &SecretBytes, text: &[u8]) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes keys of any length").chain_update(text)
}

fn without_macs(document: &Value) -> Value {
    let mut header = document.clone();
    for token in header["tokens"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        token["mac"] = Value::from("");
    }
    header
}
