//! Every field of the binary header, and what lies outside of both copies.

use std::ops::Range;

use coffer::volume::Reason;

use super::Answer;
use super::Case;
use super::FRONT_BYTES;
use super::forge::BOTH;
use super::forge::COPY_BYTES;
use super::forge::Header;
use super::forge::Patch;

/// The fields by their names in the LUKS2 On-Disk Format Specification, section 2.1; the checksum's unused half apart.
const FIELDS: [(&str, Range<usize>); 14] = [
    ("magic", 0..6),
    ("version", 6..8),
    ("hdr_size", 8..16),
    ("seqid", 16..24),
    ("label", 24..72),
    ("csum_alg", 72..104),
    ("salt", 104..168),
    ("uuid", 168..208),
    ("subsystem", 208..256),
    ("hdr_offset", 256..264),
    ("padding", 264..448),
    ("csum", 448..480),
    ("csum beyond SHA-256", 480..512),
    ("padding4096", 512..4096),
];

/// What is done to a field's bytes.
type Change = fn(&mut [u8]);

/// How a field is changed.
const CHANGES: [(&str, Change); 4] = [
    ("first bit", |field| field[0] ^= 0x80),
    ("last bit", |field| *field.last_mut().expect("a field has bytes") ^= 1),
    ("zeroed", |field| field.fill(0)),
    ("all ones", |field| field.fill(0xff)),
];

/// One change of each kind in each field of both copies, and one in each field of either.
pub(super) fn cases(header: &Header) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, range) in FIELDS {
        for (what, change) in CHANGES {
            let patches = forge(header, BOTH, &range, change);
            // A field that is zero already is not changed by zeroing it, and with one untouched copy the volume opens.
            let untouched = header.forge(BOTH, |_| {});
            if patches.iter().zip(&untouched).all(|(changed, untouched)| changed != untouched) {
                cases.push(Case::header(format!("{name}: {what}"), patches, in_both(name)));
            }
        }
        for (place, copy) in [(0, "primary"), (1, "secondary")] {
            let patches = forge(header, &[place], &range, CHANGES[0].1);
            cases.push(Case::header(format!("{name}: first bit, {copy} copy only"), patches, Answer::Opens));
        }
    }
    cases
}

/// The answer to a field that is changed in both copies.
fn in_both(field: &str) -> Answer {
    match field {
        "magic" => Answer::Refused(Reason::HeaderMissing),
        "uuid" => Answer::Refused(Reason::WrongVolume),
        // They decide nothing: the one orders two copies, the other keeps them from being the same bytes.
        "seqid" | "salt" => Answer::Opens,
        _ => Answer::Refused(Reason::HeaderTampered),
    }
}

fn forge(header: &Header, places: &[usize], field: &Range<usize>, change: Change) -> Vec<Patch> {
    if !(448..512).contains(&field.start) {
        return header.forge(places, |copy| change(&mut copy[field.clone()]));
    }
    // The checksum itself is what is changed.
    let mut patches = header.forge(places, |_| {});
    patches.iter_mut().for_each(|(_, copy)| change(&mut copy[field.clone()]));
    patches
}

/// The fields of dm-integrity's superblock (`struct superblock` in `drivers/md/dm-integrity.c`), which lies in front of
/// the journal of profile `aead-1`.
const SUPERBLOCK: [(&str, Range<usize>); 10] = [
    ("magic", 0..8),
    ("version", 8..9),
    ("log2_interleave_sectors", 9..10),
    ("integrity_tag_size", 10..12),
    ("journal_sections", 12..16),
    ("provided_data_sectors", 16..24),
    ("flags", 24..28),
    ("log2_sectors_per_block", 28..29),
    ("log2_blocks_per_bitmap_bit", 29..30),
    ("rest", 30..4096),
];

/// One change of each kind in each field of dm-integrity's superblock, and none of it.
pub(super) fn superblock(backing: &[u8]) -> Vec<Case> {
    let original = &backing[FRONT_BYTES..][..4096];
    let whole = |name: String, block: Vec<u8>, reason| {
        Case::header(name, vec![(FRONT_BYTES as u64, block)], Answer::Refused(reason))
    };
    let mut cases = vec![whole("superblock zeroed".into(), vec![0; 4096], Reason::HeaderMissing)];
    for (name, range) in SUPERBLOCK {
        for (what, change) in CHANGES {
            let mut block = original.to_vec();
            change(&mut block[range.clone()]);
            if block != original {
                cases.push(whole(format!("superblock {name}: {what}"), block, Reason::HeaderTampered));
            }
        }
    }
    cases
}

/// Bytes behind the copies: the area of keyslot 0, one that is not used, and what follows all of them. `area_bytes` is
/// the size of one keyslot's area.
pub(super) fn outside(backing: &[u8], area_bytes: usize) -> Vec<Case> {
    let first = 2 * COPY_BYTES;
    let tampered = Answer::Refused(Reason::HeaderTampered);
    let flipped =
        |name: &str, at: usize, answer| Case::header(name.to_owned(), vec![(at as u64, vec![backing[at] ^ 1])], answer);
    vec![
        flipped("area of keyslot 0: first byte", first, tampered),
        flipped("area of keyslot 0: a byte in the middle", first + area_bytes / 2, tampered),
        flipped("area of keyslot 0: last byte", first + area_bytes - 1, tampered),
        Case::header("area of keyslot 0: zeroed".into(), vec![(first as u64, vec![0; area_bytes])], tampered),
        flipped("area of an unused keyslot", first + area_bytes, Answer::Opens),
        flipped("bytes behind the keyslots", 1_081_344, Answer::Opens),
    ]
}
