//! The two copies of a LUKS2 header: whatever opens under a seal is what was sealed, and is what the profile demands.
//!
//! The binary halves, checksums and seals are made here, from the published format, so that the fuzzer gets past them.
//! Input: a letter (see [`Making`]), a digit (how many patches follow), patches of four bytes (where, two bytes of
//! offset, what to flip), and the JSON of both copies.

#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coffer::device::Shape;
use coffer::device::backing::Attached;
use coffer::device::header::{Image, Verified};
use coffer::volume::{DATA_OFFSET_BYTES, Profile, Reason, SecretBytes, VolumeId};
use coffer_fuzz::assert_fit_to_show;
use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

const COPY_BYTES: usize = 16 << 10;
const BINARY_BYTES: usize = 4096;
const CHECKSUM: usize = 448;
/// Where the key area of slot 0 begins; that of slot 1 follows.
const FIRST_AREA: usize = 32_768;
const KEY: [u8; 32] = [7; 32];

/// The JSON of a header as libcryptsetup makes it, with one token for the seal.
const HONEST: &[u8] = include_bytes!("../corpus/header/honest").split_at(2).1;

/// What is done with the input before the driver sees it: the low bits of its first letter.
struct Making {
    /// The token gets the MAC that belongs to the JSON, as if the secret's owner had written it.
    sealed: bool,
    /// The checksum of this copy is made right after the patches.
    summed: [bool; 2],
    /// The secondary copy is an honest header of `xts-1`, older than the primary one.
    honest_secondary: bool,
    /// What the volume's record says.
    profile: Profile,
}

impl Making {
    fn of(letter: u8) -> Self {
        let bit = |bit: u8| letter & (1 << bit) != 0;
        let profile = if bit(4) { Profile::Aead1 } else { Profile::Xts1 };
        Self { sealed: bit(0), summed: [!bit(1), !bit(2)], honest_secondary: bit(3), profile }
    }
}

/// Sizes of a volume key, and of its area: 4000 stripes of it, in whole blocks.
fn sizes(profile: Profile) -> (usize, usize) {
    match profile {
        Profile::Xts1 => (64, 258_048),
        Profile::Aead1 => (96, 385_024),
    }
}

fn shape(profile: Profile) -> Shape {
    Shape {
        id: VolumeId::parse(&format!("cv-{}", "0".repeat(32))).expect("an id"),
        profile,
        payload_bytes: 64 << 20,
        luks_uuid: Uuid::from_u128(0x1111_1111_2222_3333_4444_5555_5555_5555),
        backing: PathBuf::new(),
    }
}

/// The text that a seal authenticates, or `None` if there is nothing to seal. The key areas are zeros.
fn text_to_seal(document: &Value, profile: Profile) -> Option<Vec<u8>> {
    static AREAS: LazyLock<[String; 2]> = LazyLock::new(|| {
        [Profile::Xts1, Profile::Aead1].map(|profile| hex::encode(Sha256::digest(vec![0; sizes(profile).1])))
    });
    let area = &AREAS[usize::from(profile == Profile::Aead1)];
    let mut header = document.clone();
    for token in header.get_mut("tokens")?.as_object_mut()?.values_mut() {
        *token.get_mut("mac")? = "".into();
    }
    let areas: Map<_, _> =
        document.get("keyslots")?.as_object()?.keys().map(|slot| (slot.clone(), area.clone().into())).collect();
    let shape = shape(profile);
    let fields = json!({
        "areas": areas, "hdr_size": COPY_BYTES.to_string(), "header": header, "label": "", "profile": profile.as_str(),
        "subsystem": "", "uuid": shape.luks_uuid.to_string(), "volume": shape.id.to_string(),
    });
    Some([b"coffer/seal/1\n".as_slice(), &serde_json_canonicalizer::to_vec(&fields).ok()?].concat())
}

/// The JSON `text` with its seal, and the digest of what that authenticates.
fn seal(text: &[u8], profile: Profile) -> Option<(Vec<u8>, [u8; 32])> {
    let mut document: Value = serde_json::from_slice(text).ok()?;
    let authenticated = text_to_seal(&document, profile)?;
    let mac = Hmac::<Sha256>::new_from_slice(&KEY).expect("any length").chain_update(&authenticated).finalize();
    let token = document["tokens"].as_object_mut()?.values_mut().next()?;
    token["mac"] = STANDARD.encode(mac.into_bytes()).into();
    Some((document.to_string().into_bytes(), Sha256::digest(&authenticated).into()))
}

fn copy(secondary: bool, seqid: u64, json: &[u8]) -> Vec<u8> {
    let mut copy = vec![0; COPY_BYTES];
    let mut put = |at: usize, bytes: &[u8]| copy[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, if secondary { b"SKUL\xba\xbe" } else { b"LUKS\xba\xbe" });
    put(6, &2u16.to_be_bytes());
    put(8, &(COPY_BYTES as u64).to_be_bytes());
    put(16, &seqid.to_be_bytes());
    put(72, b"sha256");
    put(104, &[5; 64]);
    put(168, shape(Profile::Xts1).luks_uuid.to_string().as_bytes());
    put(256, &(if secondary { COPY_BYTES as u64 } else { 0 }).to_be_bytes());
    put(BINARY_BYTES, &json[..json.len().min(COPY_BYTES - BINARY_BYTES)]);
    copy
}

fn restore_checksum(copy: &mut [u8]) {
    copy[CHECKSUM..CHECKSUM + 64].fill(0);
    let sum = Sha256::digest(&copy);
    copy[CHECKSUM..CHECKSUM + 32].copy_from_slice(&sum);
}

/// A file that holds `copies` and, in the key areas, zeros but for `flips`.
fn attached(copies: &[Vec<u8>; 2], flips: &[(usize, u8)]) -> Attached {
    let device = File::from(memfd_create("image", MemfdFlags::CLOEXEC).expect("a memory file"));
    device.set_len(DATA_OFFSET_BYTES).expect("grows");
    device.write_all_at(&copies.concat(), 0).expect("writes");
    for (at, flip) in flips {
        device.write_all_at(&[*flip], *at as u64).expect("writes");
    }
    Attached { device, path: "/dev/loop0".into() }
}

fuzz_target!(|input: &[u8]| {
    static HONEST_SEALED: LazyLock<(Vec<u8>, [u8; 32])> =
        LazyLock::new(|| seal(HONEST, Profile::Xts1).expect("has a token"));
    let [letter, count, rest @ ..] = input else { return };
    let making = Making::of(*letter);
    let (patches, json) = rest.split_at(rest.len().min(4 * usize::from(count & 7)));
    let resealed = if making.sealed { seal(json, making.profile) } else { None };
    let json = resealed.as_ref().map_or(json, |(json, _)| json);
    let mut copies = [copy(false, 3, json), copy(true, 3, json)];
    if making.honest_secondary {
        copies[1] = copy(true, 2, &HONEST_SEALED.0);
    }
    let mut flips = Vec::new();
    let (_, area_bytes) = sizes(making.profile);
    for patch in patches.chunks_exact(4) {
        let at = usize::from(u16::from_be_bytes([patch[1], patch[2]]));
        match patch[0] & 3 {
            which @ 0..=1 => copies[usize::from(which)][at % COPY_BYTES] ^= patch[3],
            which => flips.push((FIRST_AREA + usize::from(which - 2) * area_bytes + at * 4, patch[3])),
        }
    }
    for (copy, _) in copies.iter_mut().zip(making.summed).filter(|(_, summed)| *summed) {
        restore_checksum(copy);
    }

    let image = Image::read(&attached(&copies, &flips)).expect("a memory file can be read");
    let shape = shape(making.profile);
    let is_ours = |copy: &Vec<u8>| copy[168..204] == *shape.luks_uuid.to_string().as_bytes();
    let is_blank = |copy: &Vec<u8>| copy[..BINARY_BYTES] == [0; BINARY_BYTES];
    if image.may_be_overwritten(&shape.luks_uuid) {
        let may = copies.iter().all(|copy| is_ours(copy) || is_blank(copy));
        assert!(may, "somebody else's header would be overwritten");
    }
    match image.verify(&shape, &SecretBytes::new(KEY.to_vec().into())) {
        Ok(verified) => {
            let sealed = [Some(HONEST_SEALED.1), resealed.map(|(_, digest)| digest)];
            assert!(sealed.contains(&Some(verified.digest)), "nobody sealed this header");
            let unsealed =
                image.unsealed(&shape, &verified.digest).expect("a memory file").expect("it has this digest");
            assert!(image.has_digest(&shape, &verified.digest) && unsealed.has_digest(&shape, &verified.digest));
            check_frozen(&verified, &shape);
        }
        Err(error) => {
            let reasons = [Reason::HeaderMissing, Reason::HeaderTampered, Reason::WrongVolume];
            assert!(reasons.contains(&error.reason()), "{error}");
            assert_fit_to_show(&error);
        }
    }
});

/// What libcryptsetup gets to see verifies again as the same header, whole in both places, and is harmless.
fn check_frozen(verified: &Verified, shape: &Shape) {
    let file = File::open(verified.frozen.path()).expect("opens");
    let mut bytes = vec![0; DATA_OFFSET_BYTES as usize];
    file.read_exact_at(&mut bytes, 0).expect("reads");
    let again = Image::read(&Attached { device: file, path: "/dev/loop0".into() }).expect("reads");
    let again = again.verify(shape, &SecretBytes::new(KEY.to_vec().into())).expect("verifies again");
    assert_eq!(again.digest, verified.digest);
    let texts = [BINARY_BYTES, COPY_BYTES + BINARY_BYTES].map(|at| &bytes[at..at + COPY_BYTES - BINARY_BYTES]);
    assert_eq!(texts[0], texts[1]);
    let text = texts[0].split(|byte| *byte == 0).next().unwrap_or_default();
    assert_harmless(&serde_json::from_slice(text).expect("JSON"), shape.profile);
    // Compared as one: the fuzzer counts every turn of a loop.
    let beyond = &bytes[FIRST_AREA + 2 * sizes(shape.profile).1..];
    assert!(*beyond == vec![0; beyond.len()], "bytes outside of the key areas were copied");
}

/// Each member by which a LUKS2 header has been turned against its reader, in the reader's words.
fn assert_harmless(document: &Value, profile: Profile) {
    let members = |at: &str| document.pointer(at).and_then(Value::as_object).expect("an object").clone();
    assert_eq!(members("").len(), 5, "{document}");
    assert_eq!(members("/config").len(), 2, "requirements or flags: {document}");
    assert_eq!(members("/segments").len(), 1, "{document}");
    let segment = members("/segments/0");
    let mut expected = json!({
        "encryption": "aes-xts-plain64", "iv_tweak": "0", "offset": "2097152", "sector_size": 4096, "size": "dynamic",
        "type": "crypt",
    });
    if profile == Profile::Aead1 {
        expected["integrity"] =
            json!({"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"});
    }
    assert_eq!(Value::from(segment), expected);
    assert_eq!(members("/digests").keys().collect::<Vec<_>>(), ["0"], "{document}");
    assert_eq!(document["digests"]["0"]["iterations"], 1000);
    assert!(members("/tokens").values().all(|token| token["type"] == "coffer-seal"), "{document}");
    for (slot, keyslot) in members("/keyslots") {
        let (key_bytes, area_bytes) = sizes(profile);
        let area = FIRST_AREA + slot.parse::<usize>().expect("a number") * area_bytes;
        assert_eq!(keyslot["key_size"], key_bytes);
        assert_eq!(keyslot["area"]["encryption"], "aes-xts-plain64");
        assert_eq!(keyslot["area"]["offset"], area.to_string());
        assert_eq!(keyslot["area"]["size"], area_bytes.to_string());
        assert_eq!((&keyslot["kdf"]["type"], &keyslot["kdf"]["iterations"]), (&json!("pbkdf2"), &json!(1000)));
    }
}
