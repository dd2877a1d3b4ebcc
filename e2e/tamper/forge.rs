//! What anybody can compute who can write the disk: checksums, mutations of JSON, key areas and digests for a key of
//! one's own. Needs no secret of the volume.

use std::ops::Range;

use hmac::Hmac;
use hmac::KeyInit;
use hmac::Mac;
use serde_json::Value;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;

/// One copy of a header, binary part and JSON (LUKS2 On-Disk Format Specification, section 2).
pub(super) const COPY_BYTES: usize = 16 << 10;
/// The binary part of a copy.
const BINARY_BYTES: usize = 4096;
const CHECKSUM: Range<usize> = 448..512;
/// Both copies.
pub(super) const BOTH: &[usize] = &[0, 1];
/// How many times libcryptsetup spreads a key before it encrypts it into its area.
const STRIPES: usize = 4000;

/// Bytes, and the offset on the backing at which they are put.
pub(super) type Patch = (u64, Vec<u8>);

/// Both copies of a header, as they are on the disk.
#[derive(Clone)]
pub(super) struct Header(Vec<u8>);

impl Header {
    /// The header at the front of `backing`.
    pub(super) fn of(backing: &[u8]) -> Self {
        Self(backing[..2 * COPY_BYTES].to_vec())
    }

    /// The JSON of the primary copy.
    pub(super) fn document(&self) -> Value {
        let area = &self.0[BINARY_BYTES..COPY_BYTES];
        let end = area.iter().position(|byte| *byte == 0).expect("a JSON area ends with zeros");
        serde_json::from_slice(&area[..end]).expect("the header's JSON")
    }

    /// The copies `places` after `change`, each with a right checksum.
    pub(super) fn forge(&self, places: &[usize], change: impl Fn(&mut [u8])) -> Vec<Patch> {
        let forge = |place: &usize| {
            let offset = place * COPY_BYTES;
            let mut copy = self.0[offset..][..COPY_BYTES].to_vec();
            change(&mut copy);
            restore_checksum(&mut copy);
            (offset as u64, copy)
        };
        places.iter().map(forge).collect()
    }

    /// Both copies with `text` as their JSON.
    pub(super) fn with_text(&self, text: &[u8]) -> Vec<Patch> {
        self.forge(BOTH, |copy| put_text(copy, text))
    }

    /// Both copies with the JSON as `change` leaves it.
    pub(super) fn with(&self, change: impl FnOnce(&mut Value)) -> Vec<Patch> {
        let mut document = self.document();
        change(&mut document);
        self.with_text(document.to_string().as_bytes())
    }
}

/// Makes `text` the JSON of a copy.
pub(super) fn put_text(copy: &mut [u8], text: &[u8]) {
    copy[BINARY_BYTES..].fill(0);
    copy[BINARY_BYTES..][..text.len()].copy_from_slice(text);
}

fn restore_checksum(copy: &mut [u8]) {
    copy[CHECKSUM].fill(0);
    let sum = Sha256::digest(&*copy);
    copy[CHECKSUM.start..][..sum.len()].copy_from_slice(&sum);
}

/// How one place in a JSON document is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Removed,
    Null,
    Emptied,
    AnotherType,
    AnotherValue,
    Float,
    UnknownMember,
    Twice,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Removed,
        Self::Null,
        Self::Emptied,
        Self::AnotherType,
        Self::AnotherValue,
        Self::Float,
        Self::UnknownMember,
        Self::Twice,
    ];

    /// The words that follow the place's name.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Null => "is null",
            Self::Emptied => "emptied",
            Self::AnotherType => "of another type",
            Self::AnotherValue => "has another value",
            Self::Float => "is a float",
            Self::UnknownMember => "has an unknown member",
            Self::Twice => "is there twice",
        }
    }
}

/// Every mutation of every place in `document`: the place as a JSON pointer, what was done, and the text that results.
pub(super) fn mutations(document: &Value) -> Vec<(String, Kind, String)> {
    let mut places = vec![String::new()];
    let mut next = 0;
    while next < places.len() {
        let at = places[next].clone();
        match document.pointer(&at).expect("the place was found there") {
            Value::Object(members) => places.extend(members.keys().map(|name| format!("{at}/{name}"))),
            Value::Array(elements) => places.extend((0..elements.len()).map(|index| format!("{at}/{index}"))),
            _ => {}
        }
        next += 1;
    }
    let every = places.into_iter().flat_map(|at| Kind::ALL.map(|kind| (at.clone(), kind)));
    every.filter_map(|(at, kind)| mutate(document, &at, kind).map(|text| (at, kind, text))).collect()
}

/// The text of `document` with the place `at` changed; `None` if the place has no such change.
fn mutate(document: &Value, at: &str, kind: Kind) -> Option<String> {
    /// Stands for what is replaced in the text, where a value cannot say it.
    const MARK: &str = "@";
    let mut changed = document.clone();
    let place = changed.pointer_mut(at).expect("the place was found there");
    match kind {
        Kind::Removed | Kind::Twice => {
            let (parent, name) = at.rsplit_once('/')?;
            let value = place.to_string();
            match (changed.pointer_mut(parent).expect("a place has a parent"), kind) {
                (Value::Object(members), Kind::Removed) => drop(members.remove(name)),
                (Value::Array(elements), Kind::Removed) => drop(elements.remove(name.parse().expect("an index"))),
                (Value::Object(members), _) => {
                    members.insert(MARK.into(), MARK.into());
                    let twice = format!("\"{name}\":{value}");
                    return Some(changed.to_string().replace(&format!("\"{MARK}\":\"{MARK}\""), &twice));
                }
                _ => return None,
            }
        }
        Kind::Null => *place = Value::Null,
        Kind::Emptied => {
            *place = match place {
                Value::Object(_) => json!({}),
                Value::Array(_) => json!([]),
                Value::String(_) => json!(""),
                Value::Number(_) => json!(0),
                _ => return None,
            }
        }
        Kind::AnotherType => {
            *place = match place {
                Value::Object(_) => json!([]),
                Value::Array(_) => json!({}),
                Value::Number(number) => json!(number.to_string()),
                _ => json!(1),
            }
        }
        Kind::AnotherValue => {
            *place = match place {
                Value::String(text) => json!(neighbour(text)),
                Value::Number(number) => json!(number.as_u64()? + 1),
                _ => return None,
            }
        }
        Kind::Float => *place = json!(place.as_u64()? as f64),
        Kind::UnknownMember => drop(place.as_object_mut()?.insert("unknown".into(), json!(1))),
    }
    (changed != *document).then(|| changed.to_string())
}

/// `text` with its first letter or digit replaced, so that numbers stay numbers and hexadecimal stays hexadecimal.
fn neighbour(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    if let Some(first) = bytes.first_mut() {
        *first = match *first {
            b'9' => b'0',
            b'f' => b'a',
            b'z' => b'y',
            b'Z' => b'Y',
            other => other + 1,
        };
    }
    String::from_utf8(bytes).expect("ASCII stays ASCII")
}

/// A key area that needs no key to read: `key` in stripes of zeros, as the null cipher would store it.
pub(super) fn open_key_area(key: &[u8]) -> Vec<u8> {
    let mut block = vec![0; key.len()];
    for _ in 1..STRIPES {
        for (index, part) in block.chunks_mut(32).enumerate() {
            let hashed = Sha256::new().chain_update((index as u32).to_be_bytes()).chain_update(&*part).finalize();
            part.copy_from_slice(&hashed[..part.len()]);
        }
    }
    let last = std::iter::zip(key, block).map(|(key, block)| key ^ block);
    std::iter::repeat_n(0, key.len() * (STRIPES - 1)).chain(last).collect()
}

/// PBKDF2-HMAC-SHA256 of 1000 iterations, 32 bytes (RFC 8018, section 5.2): the digest of a volume key.
pub(super) fn digest_of_key(key: &[u8], salt: &[u8]) -> [u8; 32] {
    let hmac = |text: &[u8]| -> [u8; 32] {
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.chain_update(text).finalize().into_bytes().into()
    };
    let mut round = hmac(&[salt, &1u32.to_be_bytes()].concat());
    let mut sum = round;
    for _ in 1..1000 {
        round = hmac(&round);
        std::iter::zip(&mut sum, round).for_each(|(sum, round)| *sum ^= round);
    }
    sum
}
