//! The published vector of the KBS protocol, and envelopes that must be refused.

use serde_json::json;

use super::*;

/// Private part of the P-256 key in RFC 7517, appendix A.2.
const PRIVATE: &str = "870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE";
const PROTECTED: &str = "eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00iLCJlcGsiOnsiY3J2IjoiUC0yNTYiLCJrdHkiOiJFQyIsIngiOiJqbE03YjZDX2UwWWx1ekJtZkFIN1lINzUtTGlvRC05Yk1BWW9jREdIc3FNIiwieSI6ImMtc2R2ZUF6R0RadEJwLURwdldRQUZQSE5qUExCQnNoeFY0YWhzSDBBTFEifX0";

fn key() -> ExchangeKey {
    let bytes = URL_SAFE_NO_PAD.decode(PRIVATE).expect("base64url");
    ExchangeKey::of(&SecretKey::from_slice(&bytes).expect("a private key")).expect("locked")
}

fn envelope() -> Value {
    json!({
        "protected": PROTECTED,
        "encrypted_key": "7qBJhNkOT6NZng4d03FMzpXReTlVJYvmBSM5CNhR3wLb0pOdsMbpSg",
        "iv": "AAECAwQFBgcICQoL",
        "ciphertext": "MW26bqiA73DoOA",
        "tag": "QHsoUcWy2RlfFfRCn0p-7Q",
    })
}

fn open(envelope: &Value) -> Result<SecretBytes> {
    key().open(envelope.to_string().as_bytes())
}

fn header() -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(PROTECTED).expect("base64url")).expect("a header")
}

/// The vector under another header, as its sender would have encrypted it: what is wrong is the header alone.
fn under(header: &str) -> Value {
    let mut envelope = envelope();
    let protected = URL_SAFE_NO_PAD.encode(header);
    let content_key: [u8; 32] = std::array::from_fn(|at| u8::try_from(at).expect("small"));
    let iv: [u8; IV_BYTES] = decode_exactly("AAECAwQFBgcICQoL", "the vector's").expect("12 bytes");
    let mut text = b"volume-key".to_vec();
    let tag = Aes256Gcm::new((&content_key).into())
        .encrypt_inout_detached(&iv.into(), protected.as_bytes(), text.as_mut_slice().into())
        .expect("encrypted");
    envelope["protected"] = protected.into();
    envelope["ciphertext"] = URL_SAFE_NO_PAD.encode(text).into();
    envelope["tag"] = URL_SAFE_NO_PAD.encode(tag).into();
    envelope
}

/// [`under`] the vector's header changed by `change`.
fn with_header(change: impl FnOnce(&mut Value)) -> Value {
    let mut header = header();
    change(&mut header);
    under(&header.to_string())
}

#[test]
fn the_published_vector_opens() {
    assert_eq!(open(&envelope()).expect("opens").expose(), b"volume-key");
}

#[test]
fn the_sender_of_these_tests_is_the_one_of_the_vector() {
    let header = URL_SAFE_NO_PAD.decode(PROTECTED).expect("base64url");
    assert_eq!(under(std::str::from_utf8(&header).expect("text")), envelope());
    assert_eq!(open(&with_header(|_| ())).expect("another spelling").expose(), b"volume-key");
}

#[test]
fn the_wrapping_key_of_the_published_vector_is_derived() {
    let header: Header =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(PROTECTED).expect("base64url")).expect("a header");
    let sender = point(&header.epk.x, &header.epk.y).expect("on the curve");
    let derived = derive_wrapping_key(key().private().diffie_hellman(&sender).raw_secret_bytes());
    assert_eq!(hex::encode(*derived), "89d6255aefe43d9050cee2f808f9012817b044f93318320a5b765d5b3d5bb9d4");
}

#[test]
fn the_recipient_has_the_members_that_a_kbs_hashes_and_no_others() {
    assert_eq!(
        serde_json::to_value(key().recipient()).expect("serialises"),
        json!({
            "alg": "ECDH-ES+A256KW", "crv": "P-256", "kty": "EC",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        })
    );
}

#[test]
fn every_exchange_has_its_own_key() {
    let recipient = || ExchangeKey::generate().expect("locked").recipient();
    assert_ne!(recipient(), recipient());
}

#[test]
fn the_header_is_authenticated_as_it_was_spelled() {
    let header = URL_SAFE_NO_PAD.decode(PROTECTED).expect("base64url");
    let mut envelope = envelope();
    envelope["protected"] = URL_SAFE_NO_PAD.encode([b" ", header.as_slice()].concat()).into();
    let error = open(&envelope).expect_err("refused");
    assert!(error.explanation().contains("changed on its way"), "{error}");
}

/// What is wrong, and an envelope with only this wrong.
type Case = (&'static str, Value);

fn hostile_headers() -> Vec<Case> {
    let set = |pointer: &'static str, value: &'static str| {
        with_header(|header| *header.pointer_mut(pointer).expect("a member") = value.into())
    };
    let add = |name: &str, value: Value| with_header(|header| header[name] = value);
    let alg = r#""alg":"ECDH-ES+A256KW""#;
    let enc = r#""enc":"A256GCM""#;
    let epk = format!(r#""epk":{}"#, header()["epk"]);
    let point = |x: &str, y: &str| {
        with_header(|header| {
            header["epk"]["x"] = x.into();
            header["epk"]["y"] = y.into();
        })
    };
    let zero = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    // The order of the field, which is zero in it.
    let order = "_____wAAAAEAAAAAAAAAAAAAAAD_______________8";
    vec![
        ("the point at infinity", point(zero, zero)),
        ("zero, spelled as the order of the field", point(order, zero)),
        ("a coordinate beyond the field", point(&format!("{}8", "_".repeat(42)), zero)),
        ("another curve of 256 bits", set("/epk/crv", "secp256k1")),
        ("a curve that is named otherwise", set("/epk/crv", "p-256")),
        ("an algorithm in other letters", set("/alg", "ecdh-es+a256kw")),
        ("no algorithm", set("/alg", "none")),
        ("an algorithm as an object", with_header(|header| header["alg"] = json!({ "ECDH-ES+A256KW": null }))),
        (
            "a key as an array",
            with_header(|header| {
                let epk = header["epk"].clone();
                header["epk"] = json!([epk["crv"], epk["kty"], epk["x"], epk["y"]]);
            }),
        ),
        ("an array", under(&json!(["ECDH-ES+A256KW", "A256GCM", header()["epk"]]).to_string())),
        ("no key", under(&format!("{{{alg},{enc}}}"))),
        ("two algorithms", under(&format!("{{{alg},{alg},{enc},{epk}}}"))),
        ("two keys", under(&format!("{{{alg},{enc},{epk},{epk}}}"))),
        ("two headers", under(&format!("{{{alg},{enc},{epk}}}{{{alg},{enc},{epk}}}"))),
        ("a comment", under(&format!("{{{alg},{enc},{epk}}}//"))),
        ("arrays in arrays", under(&"[".repeat(100_000))),
        ("nothing", under("")),
        ("RSA instead of ECDH", set("/alg", "RSA1_5")),
        ("OAEP instead of ECDH", set("/alg", "RSA-OAEP-256")),
        ("direct agreement", set("/alg", "ECDH-ES")),
        ("another key wrap", set("/alg", "ECDH-ES+A128KW")),
        ("no key wrap", set("/alg", "dir")),
        ("another cipher", set("/enc", "A128GCM")),
        ("a cipher in CBC mode", set("/enc", "A256CBC-HS512")),
        ("another curve", set("/epk/crv", "P-521")),
        ("another kind of key", set("/epk/kty", "OKP")),
        ("a point off the curve", set("/epk/y", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")),
        ("a coordinate that is too short", set("/epk/x", "jlM7b6C_e0YluzBmfAH7YH75-LioD-9bMAYocDGHsq")),
        ("a private key of the sender", with_header(|header| header["epk"]["d"] = PRIVATE.into())),
        ("compression", add("zip", "DEF".into())),
        ("no compression", add("zip", Value::Null)),
        ("a critical extension", add("crit", json!(["b64"]))),
        ("party information", add("apu", "QQ".into())),
        ("party information of the other", add("apv", "QQ".into())),
        ("a key to fetch", add("jku", "https://canary".into())),
        ("a certificate to fetch", add("x5u", "https://canary".into())),
        ("iterations of a password's hash", add("p2c", 1_000_000_000.into())),
        ("a key id", add("kid", "1".into())),
    ]
}

fn hostile_members() -> Vec<Case> {
    let set = |name: &str, value: Value| {
        let mut envelope = envelope();
        envelope[name] = value;
        envelope
    };
    let without = |name: &str| {
        let mut envelope = envelope();
        envelope.as_object_mut().expect("an object").remove(name);
        envelope
    };
    vec![
        ("no header", without("protected")),
        ("no tag", without("tag")),
        ("no wrapped key", without("encrypted_key")),
        ("an unprotected header", set("unprotected", json!({}))),
        ("a header of the recipient", set("header", json!({}))),
        ("recipients", set("recipients", json!([]))),
        ("additional data", set("aad", "QQ".into())),
        ("padding", set("iv", "AAECAwQFBgcICQoL====".into())),
        ("stray bits", set("ciphertext", "MW26bqiA73DoOB".into())),
        ("the alphabet of plain base64", set("tag", "QHsoUcWy2RlfFfRCn0p+7Q".into())),
        ("another tag", set("tag", "QHsoUcWy2RlfFfRCn0p-7A".into())),
        ("a tag cut short", set("tag", "QHsoUcWy2RlfFfRCn0o".into())),
        ("an empty tag", set("tag", "".into())),
        ("another iv", set("iv", "AAECAwQFBgcICQoM".into())),
        ("a longer iv", set("iv", "AAECAwQFBgcICQoLDA0ODw".into())),
        ("another ciphertext", set("ciphertext", "MW26bqiA73DoOQ".into())),
        ("no ciphertext", set("ciphertext", "".into())),
        ("another wrapped key", set("encrypted_key", "8qBJhNkOT6NZng4d03FMzpXReTlVJYvmBSM5CNhR3wLb0pOdsMbpSg".into())),
        ("a wrapped key of 16 bytes", set("encrypted_key", "7qBJhNkOT6NZng4d03FMzpXReTlVJYvm".into())),
        ("a number", set("iv", 7.into())),
        ("an array", json!([envelope()])),
        ("an array of the members", {
            let envelope = envelope();
            json!(["protected", "encrypted_key", "iv", "ciphertext", "tag"].map(|name| envelope[name].clone()))
        }),
        ("the compact form", {
            let envelope = envelope();
            let parts = ["protected", "encrypted_key", "iv", "ciphertext", "tag"].map(|name| envelope[name].as_str());
            parts.map(|part| part.expect("text")).join(".").into()
        }),
        ("a line break", set("iv", "AAECAwQF\nBgcICQoL".into())),
        ("a wrapped key of another length", set("encrypted_key", "A".repeat(64).into())),
        ("null", Value::Null),
    ]
}

#[test]
fn each_hostile_header_is_refused_although_it_is_authentic() {
    let accepted: Vec<_> = hostile_headers().into_iter().filter(|(_, hostile)| open(hostile).is_ok()).collect();
    assert!(accepted.is_empty(), "{accepted:?}");
    for (what, hostile) in hostile_headers() {
        let error = open(&hostile).expect_err("refused");
        assert!(!error.explanation().contains("changed"), "not for what it says: {what}: {error}");
    }
}

#[test]
fn each_hostile_envelope_is_refused_and_not_repeated() {
    for (what, hostile) in hostile_headers().into_iter().chain(hostile_members()) {
        let error = open(&hostile).err().unwrap_or_else(|| panic!("accepted: {what}"));
        assert_eq!(error.reason(), Reason::KbsProtocol, "{what}");
        for member in hostile.as_object().into_iter().flat_map(|object| object.values()) {
            let text = member.as_str().unwrap_or_default();
            assert!(text.len() < 8 || !format!("{error} {error:?}").contains(text), "{what}: {error:?}");
        }
    }
}

#[test]
fn a_member_given_twice_is_refused() {
    let text = envelope().to_string();
    let twice = format!("{},\"iv\":\"AAECAwQFBgcICQoL\"}}", text.trim_end_matches('}'));
    assert!(key().open(twice.as_bytes()).is_err());
    assert!(key().open(format!("{text} {text}").as_bytes()).is_err());
    assert!(key().open(b"").is_err());
}

#[test]
fn an_envelope_for_another_exchange_is_refused() {
    let error = ExchangeKey::generate().expect("locked").open(envelope().to_string().as_bytes()).expect_err("refused");
    assert!(error.explanation().contains("not encrypted for this exchange"), "{error}");
}
