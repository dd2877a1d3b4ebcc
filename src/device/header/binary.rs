//! The binary half of one header copy, as every profile has it: 4096 bytes in front of the JSON.
//!
//! Refuses every byte that the format leaves free: labels, padding, unused checksum bytes. What is not in the seal
//! and can still vary is the sequence number, the salt and the checksum. Field offsets: LUKS2 On-Disk Format
//! Specification, section 2.1.

use std::ops::Range;

use sha2::{Digest, Sha256, Sha512};
use uuid::Uuid;

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
