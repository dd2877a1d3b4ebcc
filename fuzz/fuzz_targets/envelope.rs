//! The envelope in which a KBS hands over a secret: what opens is the secret that was put in, under the one algorithm.
//!
//! Input: the JOSE header and the secret, a line each, then the envelope. Words that begin with `$` stand for what a KBS
//! would write there, so that the fuzzer gets past the cryptography.

#![no_main]

use std::sync::LazyLock;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use aes_kw::KwAes256;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coffer::key::jwe::{EphemeralKey, ExchangeKey, derive_wrapping_key};
use coffer::volume::Reason;
use coffer_fuzz::{CANARY, assert_fit_to_show};
use libfuzzer_sys::fuzz_target;
use p256::SecretKey;
use serde_json::{Value, json};

const CONTENT_KEY: [u8; 32] = [1; 32];
const IV: [u8; 12] = [2; 12];

/// One exchange, and what the KBS at its other end makes of it.
struct Exchange {
    key: ExchangeKey,
    sender: Value,
    wrapped_key: String,
}

static EXCHANGE: LazyLock<Exchange> = LazyLock::new(|| {
    let key = ExchangeKey::generate().expect("memory can be locked");
    let sender = SecretKey::from_slice(&[9; 32]).expect("a private key");
    let recipient = key.recipient().point().expect("on the curve");
    let wrapping_key = derive_wrapping_key(sender.diffie_hellman(&recipient).raw_secret_bytes());
    let mut wrapped = [0; 40];
    KwAes256::new((&*wrapping_key).into()).wrap_key(&CONTENT_KEY, &mut wrapped).expect("40 bytes are enough");
    let sender = serde_json::to_value(EphemeralKey::of(&sender.public_key())).expect("serialises");
    Exchange { key, sender, wrapped_key: URL_SAFE_NO_PAD.encode(wrapped) }
});

fuzz_target!(|input: &str| {
    let input = input.replace("$canary", CANARY);
    let mut parts = input.splitn(3, '\n');
    let mut part = || parts.next().unwrap_or_default();
    let [header, secret, envelope] = [part(), part(), part()];
    let coordinate = |name: &str| EXCHANGE.sender[name].as_str().expect("text");
    let header = header.replace("$x", coordinate("x")).replace("$y", coordinate("y"));
    let protected = URL_SAFE_NO_PAD.encode(&header);
    let mut ciphertext = secret.as_bytes().to_vec();
    let tag = Aes256Gcm::new((&CONTENT_KEY).into())
        .encrypt_inout_detached(&IV.into(), protected.as_bytes(), ciphertext.as_mut_slice().into())
        .expect("short enough");
    let envelope = envelope
        .replace("$protected", &protected)
        .replace("$key", &EXCHANGE.wrapped_key)
        .replace("$iv", &URL_SAFE_NO_PAD.encode(IV))
        .replace("$ciphertext", &URL_SAFE_NO_PAD.encode(ciphertext))
        .replace("$tag", &URL_SAFE_NO_PAD.encode(tag));
    match EXCHANGE.key.open(envelope.as_bytes()) {
        Ok(opened) => {
            assert_eq!(opened.expose(), secret.as_bytes());
            let header: Value = serde_json::from_str(&header).expect("JSON");
            assert_eq!(header, json!({"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "epk": EXCHANGE.sender}));
        }
        Err(error) => {
            assert_eq!(error.reason(), Reason::KbsProtocol);
            assert_fit_to_show(&error);
        }
    }
});
