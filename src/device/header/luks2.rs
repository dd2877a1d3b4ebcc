//! The parser of one header copy: pure functions over bytes. A copy has two halves, 4096 bytes of fields and JSON, and
//! both are compared with what the profile has (LUKS2 On-Disk Format Specification, sections 2 and 3).
//!
//! Refuses every byte that the format leaves free: labels, padding, unused checksum bytes. What is not in the seal and
//! can still vary is the sequence number, the salt and the checksum. Of the JSON it refuses duplicate and unknown
//! members, floats, text beyond ASCII, and every value that the profile does not have: a null cipher, a re-encryption,
//! requirements, flags, foreign tokens, key areas elsewhere. Only salts, digests, the keyslot in use and our seals differ
//! between two volumes. Member order means nothing.

use std::fmt;
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256, Sha512};
use uuid::Uuid;

use crate::volume::Profile;

/// Size of one copy, binary header and JSON.
pub(super) const COPY_BYTES: usize = 16 << 10;
/// Size of the binary header at the front of a copy.
const BINARY_BYTES: usize = 4096;

const MAGIC: Range<usize> = 0..6;
const VERSION: Range<usize> = 6..8;
const COPY_SIZE: Range<usize> = 8..16;
const SEQID: Range<usize> = 16..24;
const LABEL: Range<usize> = 24..72;
const CHECKSUM_NAME: Range<usize> = 72..104;
const SALT: Range<usize> = 104..168;
const UUID: Range<usize> = 168..208;
const SUBSYSTEM: Range<usize> = 208..256;
const OFFSET: Range<usize> = 256..264;
const PADDING: Range<usize> = 264..448;
const CHECKSUM: Range<usize> = 448..512;
/// The part of [`CHECKSUM`] that SHA-256 fills.
const CHECKSUM_USED: Range<usize> = 448..480;
const TAIL: Range<usize> = 512..BINARY_BYTES;

/// Which of the two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Primary,
    Secondary,
}

impl Place {
    pub(super) const ALL: [Self; 2] = [Self::Primary, Self::Secondary];

    /// Where the copy lies on the device.
    pub(super) fn range(self) -> Range<usize> {
        match self {
            Self::Primary => 0..COPY_BYTES,
            Self::Secondary => COPY_BYTES..2 * COPY_BYTES,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }

    fn magic(self) -> &'static [u8; 6] {
        match self {
            Self::Primary => b"LUKS\xba\xbe",
            Self::Secondary => b"SKUL\xba\xbe",
        }
    }

    fn offset_field(self) -> [u8; 8] {
        (self.range().start as u64).to_be_bytes()
    }
}

/// One copy: [`COPY_BYTES`] bytes and where they lie.
#[derive(Clone, Copy)]
pub(super) struct HeaderCopy<'a> {
    place: Place,
    bytes: &'a [u8; COPY_BYTES],
}

impl<'a> HeaderCopy<'a> {
    pub(super) fn new(place: Place, bytes: &'a [u8; COPY_BYTES]) -> Self {
        Self { place, bytes }
    }

    /// Whether nothing was ever written to the binary header.
    pub(super) fn is_blank(&self) -> bool {
        is_zero(&self.bytes[..BINARY_BYTES])
    }

    pub(super) fn has_magic(&self) -> bool {
        self.bytes[MAGIC] == *self.place.magic()
    }

    /// Whether the UUID field is exactly `uuid`, whatever the rest looks like.
    pub(super) fn names(&self, uuid: &Uuid) -> bool {
        self.bytes[UUID] == uuid_field(uuid)
    }

    pub(super) fn seqid(&self) -> u64 {
        u64::from_be_bytes(self.bytes[SEQID].try_into().expect("the field has eight bytes"))
    }

    /// Whether the stored checksum is the one of this copy.
    pub(super) fn is_intact(&self) -> bool {
        self.bytes[CHECKSUM_USED] == checksum(self.bytes)
    }

    /// The JSON half without its padding, if each field of the binary half but the UUID is as the profile has it;
    /// otherwise the first field that is not.
    pub(super) fn json(&self) -> Result<&'a [u8], String> {
        let field = |range: Range<usize>| &self.bytes[range];
        let checks = [
            ("magic", field(MAGIC) == self.place.magic()),
            ("checksum", self.is_intact()),
            ("version", field(VERSION) == 2u16.to_be_bytes()),
            ("header size", field(COPY_SIZE) == (COPY_BYTES as u64).to_be_bytes()),
            ("label", is_zero(field(LABEL))),
            ("checksum algorithm", field(CHECKSUM_NAME) == padded::<32>(b"sha256")),
            ("subsystem", is_zero(field(SUBSYSTEM))),
            ("header offset", field(OFFSET) == self.place.offset_field()),
            ("padding", is_zero(field(PADDING)) && is_zero(field(TAIL))),
            ("checksum padding", is_zero(field(CHECKSUM_USED.end..CHECKSUM.end))),
        ];
        if let Some((name, _)) = checks.iter().find(|(_, holds)| !holds) {
            return Err(format!("its {name} is wrong"));
        }
        let area = &self.bytes[BINARY_BYTES..];
        let end = area.iter().position(|byte| *byte == 0).unwrap_or(area.len());
        if is_zero(&area[end..]) { Ok(&area[..end]) } else { Err("bytes follow its JSON".to_owned()) }
    }

    /// This copy with `text` as its JSON half.
    pub(super) fn with_json(&self, text: &[u8]) -> Result<Box<[u8; COPY_BYTES]>, String> {
        let mut bytes = Box::new(*self.bytes);
        let area = &mut bytes[BINARY_BYTES..];
        area.fill(0);
        area.get_mut(..text.len()).ok_or("its JSON has no room")?.copy_from_slice(text);
        restore_checksum(&mut bytes);
        Ok(bytes)
    }

    /// This copy as it reads at `place`. The salt, which only keeps two copies from being the same bytes, is derived.
    pub(super) fn moved_to(&self, place: Place) -> Box<[u8; COPY_BYTES]> {
        let mut bytes = Box::new(*self.bytes);
        if place != self.place {
            bytes[MAGIC].copy_from_slice(place.magic());
            bytes[OFFSET].copy_from_slice(&place.offset_field());
            let salt = Sha512::digest(&self.bytes[SALT]);
            bytes[SALT].copy_from_slice(&salt);
            restore_checksum(&mut bytes);
        }
        bytes
    }
}

/// Puts the checksum of `bytes` into its field.
pub(super) fn restore_checksum(bytes: &mut [u8; COPY_BYTES]) {
    let sum = checksum(bytes);
    bytes[CHECKSUM_USED].copy_from_slice(&sum);
}

/// SHA-256 over the copy with its checksum field zeroed.
fn checksum(bytes: &[u8; COPY_BYTES]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(&bytes[..CHECKSUM.start]);
    hash.update([0; 64]);
    hash.update(&bytes[CHECKSUM.end..]);
    hash.finalize().into()
}

fn uuid_field(uuid: &Uuid) -> [u8; 40] {
    padded(uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes())
}

fn padded<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut field = [0; N];
    field[..text.len()].copy_from_slice(text);
    field
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The keyslots that may be used. Two are enough for a rotation, and `aead-1` has room for no more.
const KEYSLOTS: [&str; 2] = ["0", "1"];
/// Where the first keyslot's area begins: behind the two header copies. The others follow without gaps.
const FIRST_AREA: usize = 32_768;
/// Into how many stripes a key is split before it is encrypted (LUKS2 On-Disk Format Specification, section 3.2.2).
const STRIPES: usize = 4000;
/// Areas are whole blocks of this size.
const AREA_ALIGNMENT: usize = 4096;
/// The tokens that may be there: one seal, or the old and the new secret's during a rotation.
const TOKENS: [&str; 2] = ["0", "1"];
/// How much of an unknown member's name an error repeats.
const SHOWN_NAME_BYTES: usize = 40;

/// What one place in the document must hold.
enum Rule {
    Exactly(Value),
    /// Standard base64 of 32 bytes.
    Base64,
    /// A positive decimal number as text, as LUKS2 spells 64-bit numbers.
    Decimal,
    /// The names of these keyslots, in any order.
    NamesOf(Vec<String>),
    /// Exactly these members.
    Members(Vec<(String, Rule)>),
}

/// Parses the JSON of one copy; the error says what is wrong with it.
pub(super) fn parse_json(text: &[u8]) -> Result<Value, String> {
    if !text.is_ascii() || text.trim_ascii() != text {
        return Err("its JSON is not bare ASCII".to_owned());
    }
    serde_json::from_slice::<Strict>(text)
        .map(|strict| strict.0)
        .map_err(|error| format!("its JSON is refused: {error}"))
}

/// Compares a parsed document with `profile` and returns the names and areas of its keyslots, in the order of the
/// names; the error names the first place that differs.
pub(super) fn keyslots(document: &Value, profile: Profile) -> Result<Vec<(&'static str, Range<usize>)>, String> {
    let areas = std::iter::zip(KEYSLOTS, areas(profile));
    let used: Vec<_> = areas.filter(|(id, _)| document["keyslots"].get(id).is_some()).collect();
    if used.is_empty() {
        return Err("its JSON has neither keyslot 0 nor keyslot 1".to_owned());
    }
    let tokens = TOKENS.into_iter().filter(|id| document["tokens"].get(id).is_some());
    let ids = used.iter().map(|(id, _)| (*id).to_owned()).collect::<Vec<_>>();
    let slots = used.iter().map(|(id, area)| ((*id).to_owned(), keyslot(profile, area))).collect();
    let rule = Rule::members([
        ("keyslots", Rule::Members(slots)),
        ("tokens", Rule::Members(tokens.map(|id| (id.to_owned(), token())).collect())),
        ("segments", Rule::exactly(segments(profile))),
        ("digests", Rule::members([("0", digest(ids))])),
        ("config", Rule::exactly(json!({"json_size": "12288", "keyslots_size": "1048576"}))),
    ]);
    rule.check("", document)?;
    Ok(used)
}

/// Where the areas of the keyslots that may be used lie, in the order of their names: as large as a split volume key, one
/// after the other.
pub(super) fn areas(profile: Profile) -> impl Iterator<Item = Range<usize>> {
    let bytes = (profile.volume_key_bytes() * STRIPES).next_multiple_of(AREA_ALIGNMENT);
    (0..KEYSLOTS.len()).map(move |number| FIRST_AREA + number * bytes..FIRST_AREA + (number + 1) * bytes)
}

fn keyslot(profile: Profile, area: &Range<usize>) -> Rule {
    Rule::members([
        ("type", Rule::exactly(json!("luks2"))),
        ("key_size", Rule::exactly(json!(profile.volume_key_bytes()))),
        ("af", Rule::exactly(json!({"type": "luks1", "stripes": STRIPES, "hash": "sha256"}))),
        (
            "area",
            Rule::exactly(json!({
                "type": "raw",
                "offset": area.start.to_string(),
                "size": area.len().to_string(),
                "encryption": "aes-xts-plain64",
                "key_size": 64,
            })),
        ),
        ("kdf", pbkdf2([])),
    ])
}

/// The one segment: the whole payload.
pub(in crate::device) fn segments(profile: Profile) -> Value {
    let mut segment = json!({
        "type": "crypt",
        "offset": crate::volume::DATA_OFFSET_BYTES.to_string(),
        "size": "dynamic",
        "iv_tweak": "0",
        "encryption": "aes-xts-plain64",
        "sector_size": crate::volume::SECTOR_BYTES,
    });
    if profile.has_tags() {
        segment["integrity"] =
            json!({"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"});
    }
    json!({ "0": segment })
}

fn digest(keyslots: Vec<String>) -> Rule {
    pbkdf2([("keyslots", Rule::NamesOf(keyslots)), ("segments", Rule::exactly(json!(["0"]))), ("digest", Rule::Base64)])
}

/// PBKDF2 as libcryptsetup writes it, with 1000 iterations: the passphrase is a derived key, so that more would only
/// cost time.
fn pbkdf2<const N: usize>(more: [(&str, Rule); N]) -> Rule {
    let Rule::Members(mut members) = Rule::members([
        ("type", Rule::exactly(json!("pbkdf2"))),
        ("hash", Rule::exactly(json!("sha256"))),
        ("iterations", Rule::exactly(json!(1000))),
        ("salt", Rule::Base64),
    ]) else {
        unreachable!("Rule::members makes Members")
    };
    members.extend(more.map(|(name, rule)| (name.to_owned(), rule)));
    Rule::Members(members)
}

fn token() -> Rule {
    Rule::members([
        ("type", Rule::exactly(json!(super::seal::TOKEN_TYPE))),
        ("keyslots", Rule::exactly(json!([]))),
        ("v", Rule::exactly(json!(1))),
        ("epoch", Rule::Decimal),
        ("mac", Rule::Base64),
    ])
}

impl Rule {
    /// `value` and nothing else; of an object, each member by itself, so that an error names the one that differs.
    fn exactly(value: Value) -> Self {
        match value {
            Value::Object(object) => {
                Self::Members(object.into_iter().map(|(name, member)| (name, Self::exactly(member))).collect())
            }
            plain => Self::Exactly(plain),
        }
    }

    fn members<const N: usize>(members: [(&str, Self); N]) -> Self {
        Self::Members(members.map(|(name, rule)| (name.to_owned(), rule)).into())
    }

    fn check(&self, at: &str, found: &Value) -> Result<(), String> {
        let holds = match self {
            Self::Members(members) => return check_members(members, at, found),
            Self::Exactly(value) => found == value,
            Self::Base64 => found.as_str().is_some_and(|text| STANDARD.decode(text).is_ok_and(|b| b.len() == 32)),
            Self::Decimal => found
                .as_str()
                .is_some_and(|text| text.parse::<u64>().is_ok_and(|number| number > 0 && number.to_string() == text)),
            Self::NamesOf(ids) => found.as_array().is_some_and(|names| {
                names.len() == ids.len() && ids.iter().all(|id| names.iter().any(|name| name == id))
            }),
        };
        if holds { Ok(()) } else { Err(format!("{at} of its JSON is not what the profile demands")) }
    }
}

fn check_members(members: &[(String, Rule)], at: &str, found: &Value) -> Result<(), String> {
    let object = found.as_object().ok_or_else(|| format!("{at} of its JSON is not an object"))?;
    for (name, rule) in members {
        let value = object.get(name).ok_or_else(|| format!("{at}/{name} is missing in its JSON"))?;
        rule.check(&format!("{at}/{name}"), value)?;
    }
    match object.keys().find(|key| members.iter().all(|(name, _)| name != *key)) {
        Some(unknown) => {
            let name: String = unknown.chars().take(SHOWN_NAME_BYTES).flat_map(char::escape_default).collect();
            Err(format!("{at}/{name} is unknown in its JSON"))
        }
        None => Ok(()),
    }
}

/// A JSON value without duplicate members, without numbers that are not unsigned integers, and with ASCII text only.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object, an array, ASCII text or an unsigned integer")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Strict, E> {
        Ok(Strict(Value::from(number)))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Strict, E> {
        if text.is_ascii() { Ok(Strict(Value::from(text))) } else { Err(E::custom("text is not ASCII")) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Strict, A::Error> {
        let mut array = Vec::new();
        while let Some(Strict(element)) = elements.next_element()? {
            array.push(element);
        }
        Ok(Strict(Value::Array(array)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Strict, A::Error> {
        let mut object = Map::new();
        while let Some((name, Strict(value))) = members.next_entry::<String, Strict>()? {
            if !name.is_ascii() {
                return Err(A::Error::custom("a member's name is not ASCII"));
            }
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a member occurs twice"));
            }
        }
        Ok(Strict(Value::Object(object)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_json_is_read() {
        assert_eq!(parse_json(br#"{"b":[1,"x"],"a":{}}"#).expect("plain"), json!({"a": {}, "b": [1, "x"]}));
        let refused: [&[u8]; 12] = [
            b"",
            b"{",
            br#"{"a":1,"a":1}"#,
            br#"{"x":{"a":1,"b":2,"a":1}}"#,
            br#"{"a":1.0}"#,
            br#"{"a":1e3}"#,
            br#"{"a":-1}"#,
            br#"{"a":true}"#,
            br#"{"a":null}"#,
            br#"{"a":"\u00e9"}"#,
            "{\"a\":\"é\"}".as_bytes(),
            br#"{} {}"#,
        ];
        for text in refused {
            assert!(parse_json(text).is_err(), "{}", text.escape_ascii());
        }
        assert!(parse_json("[".repeat(10_000).as_bytes()).is_err());
    }
}
