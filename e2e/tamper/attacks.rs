//! The attacks that have a name: what was done to other systems of this kind, or could be.

use coffer::device::Shape;
use coffer::device::backing::Attached;
use coffer::device::crypt;
use coffer::key::VolumeKeys;
use coffer::volume::DATA_OFFSET_BYTES;
use coffer::volume::Reason;
use coffer::volume::SecretBytes;
use serde_json::Value;
use serde_json::json;

use super::Answer;
use super::Case;
use super::document::edited;
use super::document::further_keyslot;
use super::forge::BOTH;
use super::forge::Header;
use super::forge::Patch;
use super::forge::digest_of_key;
use super::forge::open_key_area;
use super::forge::put_text;

/// The whole of what lies before the payload.
const FRONT_BYTES: usize = DATA_OFFSET_BYTES as usize;
const TAMPERED: Answer = Answer::Refused(Reason::HeaderTampered);

/// A change of the JSON, by name.
type Edit = (&'static str, fn(&mut Value));

/// A1: what is below the volume is plaintext, or nearly.
const CIPHERS: [Edit; 6] = [
    ("A1 null segment cipher", |d| d["segments"]["0"]["encryption"] = json!("cipher_null-ecb")),
    ("A1 segment cipher without a mode that moves", |d| d["segments"]["0"]["encryption"] = json!("aes-ecb")),
    ("A1 segment cipher with predictable IVs", |d| d["segments"]["0"]["encryption"] = json!("aes-cbc-plain64")),
    ("A1 segment in the kernel's own notation", |d| {
        d["segments"]["0"]["encryption"] = json!("capi:ecb(cipher_null)-plain64");
    }),
    ("A1 linear segment", |d| {
        let offset = d["segments"]["0"]["offset"].clone();
        d["segments"]["0"] = json!({"type": "linear", "offset": offset, "size": "dynamic"});
    }),
    ("A1 segment with another integrity", |d| {
        d["segments"]["0"]["integrity"] =
            json!({"type": "none", "journal_encryption": "none", "journal_integrity": "none"});
    }),
];

/// A3: a re-encryption that was never begun decrypts a part of the volume (CVE-2021-4122).
const REENCRYPTIONS: [Edit; 7] = [
    ("A3 requirement online-reencrypt", |d| require(d, "online-reencrypt")),
    ("A3 requirement online-reencrypt-v2", |d| require(d, "online-reencrypt-v2")),
    ("A3 requirement offline-reencrypt", |d| require(d, "offline-reencrypt")),
    ("A3 requirement that nobody knows", |d| require(d, "coffer")),
    ("A3 requirements that are empty", |d| d["config"]["requirements"] = json!({"mandatory": []})),
    ("A3 segment flag in-reencryption", |d| d["segments"]["0"]["flags"] = json!(["in-reencryption"])),
    ("A3 a whole unfinished decryption", |d| {
        let (crypt, offset) = (d["segments"]["0"].clone(), d["segments"]["0"]["offset"].clone());
        let linear = json!({"type": "linear", "offset": offset, "size": "1048576", "flags": ["in-reencryption"]});
        let mut rest = crypt.clone();
        rest["offset"] = json!((DATA_OFFSET_BYTES + (1 << 20)).to_string());
        rest["iv_tweak"] = json!("2048");
        let mut before = crypt;
        before["flags"] = json!(["backup-previous"]);
        let after = json!({"type": "linear", "offset": offset, "size": "dynamic", "flags": ["backup-final"]});
        d["segments"] = json!({"0": linear, "1": rest, "2": before, "3": after});
        d["digests"]["0"]["segments"] = json!(["1", "2"]);
        let area =
            json!({"type": "checksum", "offset": "806912", "size": "274432", "hash": "sha256", "sector_size": 512});
        d["keyslots"]["1"] =
            json!({"type": "reencrypt", "mode": "decrypt", "direction": "forward", "key_size": 1, "area": area});
        require(d, "online-reencrypt-v2");
    }),
];

/// A5: key areas that are not where key areas are.
const AREAS: [Edit; 9] = [
    ("A5 key area over the primary header", |d| area(d)["offset"] = json!("0")),
    ("A5 key area over the secondary header", |d| area(d)["offset"] = json!("16384")),
    ("A5 key area over the payload", |d| area(d)["offset"] = json!(DATA_OFFSET_BYTES.to_string())),
    ("A5 key area of another slot", |d| {
        *d = json!({"keyslots": {"0": further_keyslot(d, 1)}, "tokens": d["tokens"],
        "segments": d["segments"], "digests": d["digests"], "config": d["config"]})
    }),
    ("A5 key area off by one sector", |d| area(d)["offset"] = json!("36864")),
    ("A5 key area at the end of 64 bits", |d| area(d)["offset"] = json!("18446744073709547520")),
    ("A5 key area of no size", |d| area(d)["size"] = json!("0")),
    ("A5 key area of 2^63 bytes", |d| area(d)["size"] = json!("9223372036854775808")),
    ("A5 keyslots over the payload", |d| d["config"]["keyslots_size"] = json!("16777216")),
];

/// A6: more of everything, and weaker.
const EXTRAS: [Edit; 27] = [
    ("A6 second keyslot", |d| {
        d["keyslots"]["1"] = further_keyslot(d, 1);
        d["digests"]["0"]["keyslots"] = json!(["0", "1"]);
    }),
    ("A6 second keyslot without a digest", |d| d["keyslots"]["1"] = further_keyslot(d, 1)),
    ("A6 two keyslots in one area", |d| d["keyslots"]["1"] = d["keyslots"]["0"].clone()),
    ("A6 keyslot 31", |d| d["keyslots"]["31"] = further_keyslot(d, 1)),
    ("A6 keyslot of an unknown type", |d| d["keyslots"]["0"]["type"] = json!("coffer")),
    ("A6 keyslot to be ignored", |d| d["keyslots"]["0"]["priority"] = json!(0)),
    ("A6 no keyslot", |d| {
        d["keyslots"] = json!({});
        d["digests"]["0"]["keyslots"] = json!([]);
    }),
    ("A6 digest that no keyslot has", |d| d["digests"]["0"]["keyslots"] = json!([])),
    ("A6 digest of no segment", |d| d["digests"]["0"]["segments"] = json!([])),
    ("A6 second digest", |d| d["digests"]["1"] = d["digests"]["0"].clone()),
    ("A6 second segment", |d| d["segments"]["1"] = d["segments"]["0"].clone()),
    ("A6 segment over the header", |d| d["segments"]["0"]["offset"] = json!("0")),
    ("A6 segment that begins later", |d| {
        d["segments"]["0"]["offset"] = json!((DATA_OFFSET_BYTES + (1 << 20)).to_string());
    }),
    ("A6 segment of one sector", |d| d["segments"]["0"]["size"] = json!("4096")),
    ("A6 other IVs", |d| d["segments"]["0"]["iv_tweak"] = json!("8")),
    ("A6 sectors of 512 bytes", |d| d["segments"]["0"]["sector_size"] = json!(512)),
    ("A6 flag allow-discards", |d| d["config"]["flags"] = json!(["allow-discards"])),
    ("A6 flags no-journal and no-read-workqueue", |d| {
        d["config"]["flags"] = json!(["no-journal", "no-read-workqueue"]);
    }),
    ("A6 token that asks the keyring", |d| {
        d["tokens"]["1"] = json!({"type": "luks2-keyring", "keyslots": ["0"], "key_description": "x"});
    }),
    ("A6 token of a plug-in", |d| d["tokens"]["1"] = json!({"type": "systemd-tpm2", "keyslots": ["0"]})),
    ("A6 the seal twice", |d| d["tokens"]["1"] = d["tokens"]["0"].clone()),
    ("A6 the seal removed", |d| d["tokens"] = json!({})),
    ("A6 key derivation of one iteration", |d| d["keyslots"]["0"]["kdf"]["iterations"] = json!(1)),
    ("A6 key derivation of 2^32 - 1 iterations", |d| d["keyslots"]["0"]["kdf"]["iterations"] = json!(u32::MAX)),
    ("A6 key derivation with SHA-1", |d| d["keyslots"]["0"]["kdf"]["hash"] = json!("sha1")),
    ("A6 key derivation argon2id with 4 GiB", |d| {
        let salt = d["keyslots"]["0"]["kdf"]["salt"].clone();
        d["keyslots"]["0"]["kdf"] =
            json!({"type": "argon2id", "time": 4, "memory": 4_194_304, "cpus": 4, "salt": salt});
    }),
    ("A6 key in one stripe", |d| d["keyslots"]["0"]["af"]["stripes"] = json!(1)),
];

fn require(document: &mut Value, word: &str) {
    document["config"]["requirements"] = json!({"mandatory": [word]});
}

fn area(document: &mut Value) -> &mut Value {
    &mut document["keyslots"]["0"]["area"]
}

/// Every attack that needs nothing but the volume's own header.
pub(super) fn alone(header: &Header) -> Vec<Case> {
    let edits = [CIPHERS.as_slice(), &REENCRYPTIONS, &AREAS, &EXTRAS].concat();
    let mut cases: Vec<_> = edits.into_iter().map(|(name, edit)| edited(header, name, edit)).collect();
    let null_keyslot = |d: &mut Value| area(d)["encryption"] = json!("cipher_null-ecb");
    cases.push(edited(header, "A2 null keyslot cipher", null_keyslot));
    cases.push(Case::header("A2 null keyslot cipher, volume key of the attacker".into(), known_key(header), TAMPERED));
    cases.extend(copies(header));
    cases
}

/// A header that any passphrase opens, for a volume key that the attacker chose.
fn known_key(header: &Header) -> Vec<Patch> {
    let document = header.document();
    let key_bytes = document["keyslots"]["0"]["key_size"].as_u64().expect("a number");
    let key = vec![0x42; usize::try_from(key_bytes).expect("a key is short")];
    let salt = [7; 32];
    let mut patches = header.with(|d| {
        use base64::Engine;
        let text = |bytes: &[u8]| json!(base64::engine::general_purpose::STANDARD.encode(bytes));
        area(d)["encryption"] = json!("cipher_null-ecb");
        d["digests"]["0"]["salt"] = text(&salt);
        d["digests"]["0"]["digest"] = text(&digest_of_key(&key, &salt));
    });
    patches.push((32_768, open_key_area(&key)));
    patches
}

/// One copy that is hostile beside one that is not, and the number that orders them.
fn copies(header: &Header) -> Vec<Case> {
    let mut hostile = header.document();
    hostile["segments"]["0"]["encryption"] = json!("cipher_null-ecb");
    let text = hostile.to_string();
    let newer = |places: &[usize]| {
        header.forge(places, |copy| {
            put_text(copy, text.as_bytes());
            copy[16..24].fill(0x7f);
        })
    };
    let blank = |place: usize| vec![((place * super::forge::COPY_BYTES) as u64, vec![0; super::forge::COPY_BYTES])];
    let case = |name: &str, patches, answer| Case::header(name.to_owned(), patches, answer);
    vec![
        case("A1 in the primary copy, which is newer", newer(&[0]), Answer::Opens),
        case("A1 in the secondary copy, which is newer", newer(&[1]), Answer::Opens),
        case("A1 in both copies, which are newer", newer(BOTH), TAMPERED),
        case("A1 in the primary copy, the secondary one lost", [newer(&[0]), blank(1)].concat(), TAMPERED),
        case("primary copy lost", blank(0), Answer::Opens),
        case("secondary copy lost", blank(1), Answer::Opens),
        case("both copies lost", [blank(0), blank(1)].concat(), Answer::Refused(Reason::HeaderMissing)),
    ]
}

/// What takes the tags of profile `aead-1` away, or makes them worth less.
pub(super) fn without_tags(header: &Header) -> Vec<Case> {
    const EDITS: [Edit; 5] = [
        ("A1 integrity taken away", |d| {
            drop(d["segments"]["0"].as_object_mut().expect("an object").remove("integrity"))
        }),
        ("A1 integrity and its key taken away", |d| {
            d["segments"]["0"].as_object_mut().expect("an object").remove("integrity");
            d["keyslots"]["0"]["key_size"] = json!(64);
        }),
        ("A1 integrity none", |d| d["segments"]["0"]["integrity"]["type"] = json!("none")),
        ("A1 integrity of SHA-1", |d| d["segments"]["0"]["integrity"]["type"] = json!("hmac(sha1)")),
        ("A1 integrity of Poly1305", |d| d["segments"]["0"]["integrity"]["type"] = json!("poly1305")),
    ];
    EDITS.into_iter().map(|(name, edit)| edited(header, name, edit)).collect()
}

/// A8, attacks with other headers: of `other`, the backing of another volume, and of this volume itself.
pub(super) fn swapped(backing: &[u8], other: &[u8], shape: &Shape, keys: &VolumeKeys) -> Vec<Case> {
    let [front, other] = [backing, other].map(|backing| &backing[..FRONT_BYTES]);
    let whole =
        |name: &str, front: Vec<u8>, reason| Case::header(name.to_owned(), vec![(0, front)], Answer::Refused(reason));
    let (header, theirs) = (Header::of(front), Header::of(other));
    let mut with_our_uuid = other.to_vec();
    for (offset, copy) in theirs.forge(BOTH, |copy| copy[168..208].copy_from_slice(&front[168..208])) {
        let offset = usize::try_from(offset).expect("a small offset");
        with_our_uuid[offset..][..copy.len()].copy_from_slice(&copy);
    }
    let token = theirs.document()["tokens"].clone();
    let keyslot = theirs.document()["keyslots"]["0"].clone();
    let stranger = VolumeKeys::derive(&SecretBytes::new(vec![9; 32].into()), &shape.id).expect("long enough");
    let mut ext4 = vec![0; FRONT_BYTES];
    ext4[1080..1082].copy_from_slice(&[0x53, 0xef]);
    vec![
        whole("A8 header of another volume", other.to_vec(), Reason::WrongVolume),
        whole("A8 header of another volume with this volume's UUID", with_our_uuid, Reason::HeaderTampered),
        edited(&header, "A8 seal of another volume", |d| d["tokens"] = token),
        edited(&header, "A8 keyslot of another volume", |d| d["keyslots"]["0"] = keyslot),
        whole("A8 header of this volume under another secret", sealed(shape, &stranger), Reason::HeaderTampered),
        whole(
            "A8 another sealed header of this volume, as an older one is",
            sealed(shape, keys),
            Reason::HeaderTampered,
        ),
        whole("everything before the payload zeroed", vec![0; FRONT_BYTES], Reason::HeaderMissing),
        whole("everything before the payload ones", vec![0xff; FRONT_BYTES], Reason::HeaderMissing),
        whole("an ext4 superblock in place of the header", ext4, Reason::HeaderMissing),
    ]
}

/// What this driver would write before the payload of `shape`, with these keys.
fn sealed(shape: &Shape, keys: &VolumeKeys) -> Vec<u8> {
    let path = std::path::PathBuf::from("/tmp/sealed");
    let device = std::fs::File::create_new(&path).expect("a new file in memory");
    let attached = Attached { device, path };
    let image = crypt::format(shape, &keys.passphrase).expect("formats");
    let (image, _) = crypt::seal(&image, shape, &[&keys.seal]).expect("seals");
    image.write(&attached).expect("written");
    let mut front = std::fs::read(&attached.path).expect("readable");
    std::fs::remove_file(&attached.path).expect("removed");
    front.resize(FRONT_BYTES, 0);
    front
}
