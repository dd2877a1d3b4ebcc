//! The header against everything that a device may show: what we wrote, what a power cut leaves, what an attacker
//! makes of it. The images are made by the libcryptsetup of the machine, so these tests also notice when it changes.

mod mutation;

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::json;
use zeroize::Zeroizing;

use super::*;
use crate::device::crypt;
use crate::volume::Profile;
use crate::volume::VolumeId;

const PASSPHRASE: &[u8] = b"b553532b03b069f6bae533c6f770615442f988288a0f49c4a9155ea521985581";

fn secret(bytes: &[u8]) -> SecretBytes {
    SecretBytes::new(Zeroizing::new(bytes.to_vec()))
}

fn key() -> SecretBytes {
    secret(&[7; 32])
}

fn shape() -> Shape {
    Shape {
        id: VolumeId::parse(&format!("cv-{}", "0".repeat(32))).expect("an id"),
        profile: Profile::Xts1,
        payload_bytes: 64 << 20,
        luks_uuid: Uuid::from_u128(0x1111_1111_2222_3333_4444_5555_5555_5555),
        backing: PathBuf::new(),
    }
}

static FORMATTED: LazyLock<Image> = LazyLock::new(|| crypt::format(&shape(), &secret(PASSPHRASE)).expect("formats"));
static SEALED: LazyLock<(Image, [u8; 32])> =
    LazyLock::new(|| crypt::seal(&FORMATTED, &shape(), &[&key()]).expect("seals"));

fn sealed() -> Image {
    SEALED.0.clone()
}

impl Image {
    fn copy_mut(&mut self, place: Place) -> &mut [u8; COPY_BYTES] {
        (&mut self.bytes_mut()[place.range()]).try_into().expect("a place is one copy long")
    }

    /// Changes both copies and makes their checksums right again, as an attacker would.
    fn forge(mut self, change: impl Fn(&mut [u8; COPY_BYTES])) -> Self {
        for place in Place::ALL {
            let copy = self.copy_mut(place);
            change(copy);
            luks2::restore_checksum(copy);
        }
        self
    }

    fn document(&self) -> Value {
        luks2::parse_json(self.copy(Place::Primary).json().expect("intact")).expect("JSON")
    }

    fn forge_json(self, change: impl Fn(&mut Value)) -> Self {
        let mut document = self.document();
        change(&mut document);
        self.forge_text(document.to_string().as_bytes())
    }

    fn forge_text(self, text: &[u8]) -> Self {
        self.forge(|copy| {
            copy[4096..].fill(0);
            copy[4096..][..text.len()].copy_from_slice(text);
        })
    }
}

fn aead() -> Shape {
    Shape { profile: Profile::Aead1, ..shape() }
}

fn refused(image: &Image) -> Reason {
    image.verify(&shape(), &key()).expect_err("refused").reason()
}

fn bytes_of(frozen: &Frozen) -> Image {
    frozen.image().expect("reads")
}

#[test]
fn the_sealed_text_is_the_published_vector() {
    let vector: Value = serde_json::from_str(VECTOR).expect("JSON");
    let mut header = vector["header"].clone();
    header["tokens"]["0"]["mac"] = json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let header = luks2::parse_json(header.to_string().as_bytes()).expect("strict JSON");
    let keyslots = luks2::keyslots(&header, Profile::Xts1).expect("of the profile");
    assert_eq!(keyslots, [("0", 32_768..290_816)]);
    let mut text = seal::text(&shape(), &header, &keyslots, |_| b"the area of the vector is not published");
    let text_of_area = hex::encode(Sha256::digest(b"the area of the vector is not published"));
    let published = vector["areas"]["0"].as_str().expect("text");
    text = String::from_utf8(text).expect("ASCII").replace(&text_of_area, published).into_bytes();
    assert_eq!(text, format!("coffer/seal/1\n{VECTOR}").into_bytes());
    let mac = seal::mac(&secret(&[0; 32]), &text);
    assert_eq!(hex::encode(mac), "0c73f0e041784edbcc4767918e4eb4df9d252a9c049cb50733b7e088bfeb963c");
}

#[test]
fn a_sealed_header_verifies_and_is_frozen_in_both_places() {
    let (image, digest) = &*SEALED;
    let verified = image.verify(&shape(), &key()).expect("verifies");
    assert_eq!(verified.digest, *digest);
    assert!(image.has_digest(&shape(), digest));
    assert!(!image.has_digest(&shape(), &[0; 32]));
    let frozen = bytes_of(&verified.frozen);
    assert_eq!(frozen.verify(&shape(), &key()).expect("verifies").digest, *digest);
    assert!(Place::ALL.iter().all(|place| frozen.candidate(*place, &shape()).is_ok()));
    let writer = File::options().write(true).open(verified.frozen.path()).expect("opens");
    assert_eq!(writer.write_all_at(b"x", 0).expect_err("sealed").kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn a_profile_with_tags_has_a_header_of_its_own() {
    let formatted = crypt::format(&aead(), &secret(PASSPHRASE)).expect("formats");
    let digest = formatted.digest(&aead()).expect("of the profile");
    let (sealed, _) = crypt::seal(&formatted, &aead(), &[&key()]).expect("seals");
    let verified = sealed.verify(&aead(), &key()).expect("verifies");
    assert!(!verified.frozen.is_new && formatted.frozen(&aead()).expect("freezes").is_new);
    let document = sealed.document();
    assert_eq!(document["segments"]["0"]["integrity"]["type"], "hmac(sha256)");
    assert_eq!(document["keyslots"]["0"]["area"]["size"], "385024");
    // The same bytes are no header of the other profile, under whichever seal.
    let error = sealed.verify(&shape(), &key()).expect_err("refused");
    assert_eq!(error.reason(), Reason::HeaderTampered, "{error}");
    assert_eq!(SEALED.0.verify(&aead(), &key()).expect_err("refused").reason(), Reason::HeaderTampered);
    let attacks: [fn(&mut Value); 5] = [
        |d| d["segments"]["0"]["integrity"]["type"] = json!("none"),
        |d| d["segments"]["0"]["integrity"]["journal_integrity"] = json!("hmac(sha256)"),
        |d| d["segments"]["0"]["integrity"]["key_size"] = json!(0),
        |d| drop(d["segments"]["0"].as_object_mut().expect("an object").remove("integrity")),
        |d| d["keyslots"]["0"]["key_size"] = json!(64),
    ];
    for attack in attacks {
        let error = sealed.clone().forge_json(attack).verify(&aead(), &key()).expect_err("refused");
        assert_eq!(error.reason(), Reason::HeaderTampered);
        assert!(error.explanation().contains("of its JSON") || error.explanation().contains("in its JSON"), "{error}");
    }
    // Without a seal it is found by what an authenticated record says of it, and by nothing else.
    let found = formatted.unsealed(&aead(), &digest).expect("no error").expect("found");
    assert_eq!(found.digest(&aead()).expect("of the profile"), digest);
    assert!(found.bytes()[417_792..].iter().all(|byte| *byte == 0), "only what was checked is taken over");
    assert!(formatted.unsealed(&aead(), &[0; 32]).expect("no error").is_none());
}

#[test]
fn without_a_seal_or_with_another_key_nothing_verifies() {
    assert_eq!(refused(&FORMATTED), Reason::HeaderTampered);
    assert!(FORMATTED.frozen(&shape()).is_ok());
    let error = sealed().verify(&shape(), &secret(&[8; 32])).expect_err("refused");
    assert_eq!(error.reason(), Reason::HeaderTampered);
}

#[test]
fn a_torn_update_opens_with_the_copy_that_is_whole() {
    for torn in Place::ALL {
        for damage in [b"".as_slice(), b"\0\0\0\0\0\0", &[0xff; 5000]] {
            let mut image = sealed();
            image.copy_mut(torn)[..damage.len()].copy_from_slice(damage);
            assert_eq!(image.verify(&shape(), &key()).expect("verifies").digest, SEALED.1);
        }
        let mut old = sealed();
        *old.copy_mut(torn) = *FORMATTED.bytes()[torn.range()].first_chunk().expect("long enough");
        assert_eq!(old.verify(&shape(), &key()).expect("verifies").digest, SEALED.1, "{torn:?} is older");
    }
}

#[test]
fn of_two_sealed_copies_the_newer_one_wins() {
    for newer in Place::ALL {
        let mut image = sealed();
        let copy = image.copy_mut(newer);
        copy[16] = 1;
        luks2::restore_checksum(copy);
        let frozen = bytes_of(&image.verify(&shape(), &key()).expect("verifies").frozen);
        assert!(Place::ALL.iter().all(|place| frozen.copy(*place).seqid() >> 56 == 1), "{newer:?}");
        assert_eq!(frozen.copy(newer).moved_to(newer)[..], image.bytes()[newer.range()]);
    }
}

#[test]
fn what_is_no_header_is_called_missing() {
    assert_eq!(refused(&Image::blank()), Reason::HeaderMissing);
    let mut ext4 = Image::blank();
    ext4.bytes_mut()[1080..1082].copy_from_slice(&[0x53, 0xef]);
    let error = ext4.verify(&shape(), &key()).expect_err("refused");
    assert_eq!(error.reason(), Reason::HeaderMissing);
    assert!(error.explanation().contains("an ext4 filesystem"), "{error}");
    assert_eq!(refused(&sealed().forge(|copy| copy[..6].fill(0x41))), Reason::HeaderMissing);
}

#[test]
fn another_volumes_header_is_the_wrong_volume() {
    let other = Shape { luks_uuid: Uuid::from_u128(9), ..shape() };
    let error = sealed().verify(&other, &key()).expect_err("refused");
    assert_eq!(error.reason(), Reason::WrongVolume);
    let mut lost = sealed();
    lost.copy_mut(Place::Secondary).fill(0);
    assert_eq!(lost.verify(&other, &key()).expect_err("refused").reason(), Reason::WrongVolume);
    let same_uuid = Shape { id: VolumeId::for_name("other"), ..shape() };
    assert_eq!(sealed().verify(&same_uuid, &key()).expect_err("refused").reason(), Reason::HeaderTampered);
}

#[test]
fn every_byte_of_the_binary_header_that_the_format_leaves_free_is_refused() {
    let refused_at = |at: usize| refused(&sealed().forge(|copy| copy[at] ^= 1));
    for at in [6, 7, 8, 15, 24, 71, 72, 80, 103, 208, 255, 256, 263, 264, 447, 480, 511, 512, 4095, 16_383] {
        assert_eq!(refused_at(at), Reason::HeaderTampered, "byte {at}");
    }
    for at in [168, 207] {
        assert_eq!(refused_at(at), Reason::WrongVolume, "byte {at}");
    }
    let unchecked = sealed().forge(|copy| copy[104] ^= 1);
    assert!(unchecked.verify(&shape(), &key()).is_ok(), "the salt decides nothing");
    let mut sums = sealed();
    for place in Place::ALL {
        sums.copy_mut(place)[448] ^= 1;
    }
    assert_eq!(refused(&sums), Reason::HeaderTampered);
}

#[test]
fn every_known_attack_on_the_json_is_refused_by_the_profile() {
    type Attack = fn(&mut Value);
    let attacks: [(&str, Attack); 22] = [
        ("/segments/0/encryption", |d| d["segments"]["0"]["encryption"] = json!("cipher_null-ecb")),
        ("/segments/0/offset", |d| d["segments"]["0"]["offset"] = json!("0")),
        ("/segments/0/size", |d| d["segments"]["0"]["size"] = json!("4096")),
        ("/segments/0/iv_tweak", |d| d["segments"]["0"]["iv_tweak"] = json!("1")),
        ("/segments/0/sector_size", |d| d["segments"]["0"]["sector_size"] = json!(512)),
        ("/segments/0/flags", |d| d["segments"]["0"]["flags"] = json!(["in-reencryption"])),
        ("/segments/1", |d| d["segments"]["1"] = d["segments"]["0"].clone()),
        ("/keyslots/0/area", |d| d["keyslots"]["0"]["area"]["encryption"] = json!("cipher_null-ecb")),
        ("/keyslots/0/area", |d| d["keyslots"]["0"]["area"]["offset"] = json!("2097152")),
        ("/keyslots/0/area", |d| d["keyslots"]["0"]["area"]["size"] = json!("4096")),
        ("/keyslots/0/kdf/iterations", |d| d["keyslots"]["0"]["kdf"]["iterations"] = json!(4_000_000_000u32)),
        ("/keyslots/0/kdf/salt", |d| d["keyslots"]["0"]["kdf"]["salt"] = json!("AA==")),
        ("/keyslots/0/af", |d| d["keyslots"]["0"]["af"]["stripes"] = json!(1)),
        ("/keyslots/0/priority", |d| d["keyslots"]["0"]["priority"] = json!(0)),
        ("/keyslots/2", |d| d["keyslots"]["2"] = d["keyslots"]["0"].clone()),
        ("/keyslots/1/area", |d| d["keyslots"]["1"] = d["keyslots"]["0"].clone()),
        ("/digests/1", |d| d["digests"]["1"] = d["digests"]["0"].clone()),
        ("/digests/0/keyslots", |d| d["digests"]["0"]["keyslots"] = json!([])),
        ("/tokens/0", |d| {
            d["tokens"]["0"] = json!({"type": "luks2-keyring", "keyslots": ["0"], "key_description": "x"})
        }),
        ("/tokens/5", |d| d["tokens"]["5"] = d["tokens"]["0"].clone()),
        ("/config/requirements", |d| d["config"]["requirements"] = json!({"mandatory": ["online-reencrypt-v2"]})),
        ("/config/flags", |d| d["config"]["flags"] = json!(["allow-discards"])),
    ];
    for (at, attack) in attacks {
        let error = sealed().forge_json(attack).verify(&shape(), &key()).expect_err(at);
        assert_eq!(error.reason(), Reason::HeaderTampered, "{at}");
        assert!(error.explanation().contains(at), "{at}: {error}");
        assert!(error.explanation().len() < 512, "{at}: too long for an Event");
    }
}

#[test]
fn what_the_profile_lets_vary_is_caught_by_the_seal() {
    let changes: [fn(&mut Value); 6] = [
        |d| d["keyslots"]["0"]["kdf"]["salt"] = json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        |d| d["digests"]["0"]["salt"] = json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        |d| d["digests"]["0"]["digest"] = json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        |d| d["tokens"]["0"]["epoch"] = json!("2"),
        |d| d["tokens"]["0"]["mac"] = json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        |d| d["tokens"] = json!({}),
    ];
    for change in changes {
        assert_eq!(refused(&sealed().forge_json(change)), Reason::HeaderTampered);
    }
    for at in [32_768, 290_815] {
        let mut image = sealed();
        image.bytes_mut()[at] ^= 1;
        assert_eq!(refused(&image), Reason::HeaderTampered, "byte {at} of the key area");
        assert!(!image.has_digest(&shape(), &SEALED.1));
    }
    let mut beyond = sealed();
    beyond.bytes_mut()[290_816] ^= 1;
    assert!(beyond.verify(&shape(), &key()).is_ok(), "an unused key area decides nothing");
}

#[test]
fn the_order_of_members_means_nothing() {
    let mut members: Vec<_> = sealed().document().as_object().expect("an object").clone().into_iter().collect();
    members.reverse();
    let text = members.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect::<Vec<_>>().join(",");
    assert!(sealed().forge_text(format!("{{{text}}}").as_bytes()).verify(&shape(), &key()).is_ok());
    let twice = sealed().document().to_string().replacen('{', "{\"tokens\":{},", 1);
    assert_eq!(refused(&sealed().forge_text(twice.as_bytes())), Reason::HeaderTampered);
}

#[test]
fn only_a_blank_or_own_header_may_be_overwritten() {
    let uuid = shape().luks_uuid;
    let may = |image: &Image| image.may_be_overwritten(&uuid);
    assert!(may(&Image::blank()) && may(&FORMATTED) && may(&SEALED.0));
    for torn in Place::ALL {
        let mut image = sealed();
        image.copy_mut(torn).fill(0);
        assert!(may(&image));
        image.copy_mut(torn)[0] = 1;
        assert!(!may(&image), "{torn:?} holds something else");
    }
    let other = Uuid::from_u128(9);
    assert!(!sealed().may_be_overwritten(&other));
    let mut beyond = Image::blank();
    beyond.bytes_mut()[4096] = 1;
    assert!(may(&beyond), "what lies beyond the binary headers is written again");
}

#[test]
fn an_image_is_written_and_read_back_and_errors_have_their_reason() {
    let file = tempfile::NamedTempFile::new().expect("makes");
    let attached = Attached { device: file.reopen().expect("opens"), path: file.path().to_owned() };
    assert_eq!(Image::read(&attached).expect_err("too short").reason(), Reason::DeviceUnreadable);
    attached.device.set_len(4 << 20).expect("grows");
    sealed().write(&attached).expect("writes");
    assert_eq!(Image::read(&attached).expect("reads").verify(&shape(), &key()).expect("verifies").digest, SEALED.1);
    let full =
        Attached { device: File::options().write(true).open("/dev/full").expect("opens"), path: "/dev/full".into() };
    assert_eq!(sealed().write(&full).expect_err("full").reason(), Reason::NoSpace);
}

/// The sealed image as a disk of 64 MiB.
fn disk() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("makes");
    file.as_file().write_all_at(sealed().bytes(), 0).expect("writes");
    file.as_file().set_len(64 << 20).expect("grows");
    file
}

#[expect(clippy::disallowed_methods, reason = "the stock program is the one to compare with")]
fn cryptsetup(arguments: &[&str], disk: &tempfile::NamedTempFile) -> String {
    let mut child = Command::new("cryptsetup")
        .args(arguments)
        .arg(disk.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cryptsetup is installed");
    child.stdin.take().expect("piped").write_all(PASSPHRASE).expect("writes");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn stock_cryptsetup_reads_and_opens_what_we_made() {
    let disk = disk();
    let dump = cryptsetup(&["luksDump"], &disk);
    assert!(dump.contains("coffer-seal") && dump.contains("aes-xts-plain64"), "{dump}");
    cryptsetup(&["open", "--test-passphrase", "--key-file", "-"], &disk);
    assert!(Image::from_file(disk.as_file()).expect("reads").bytes() == sealed().bytes(), "there is nothing to repair");
}

#[test]
fn a_second_keyslot_made_by_stock_cryptsetup_breaks_the_seal() {
    let disk = disk();
    let new = tempfile::NamedTempFile::new().expect("makes");
    std::fs::write(new.path(), "another").expect("writes");
    let new = new.path().to_str().expect("text");
    let fast = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha256", "--key-file", "-"];
    cryptsetup(&[&["luksAddKey", "--new-keyfile", new], fast.as_slice()].concat(), &disk);
    let image = Image::from_file(disk.as_file()).expect("reads");
    assert_eq!(luks2::keyslots(&image.document(), Profile::Xts1).expect("of the profile").len(), 2);
    assert_eq!(refused(&image), Reason::HeaderTampered);
    let (resealed, _) = crypt::seal(&image, &shape(), &[&key()]).expect("seals");
    assert!(resealed.verify(&shape(), &key()).is_ok());
}

proptest::proptest! {
    #[test]
    fn random_bytes_are_refused_and_never_panic(
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600), at in 0..2 * COPY_BYTES - 600,
    ) {
        let mut image = Image::blank();
        image.bytes_mut()[at..][..bytes.len()].copy_from_slice(&bytes);
        proptest::prop_assert!(image.verify(&shape(), &key()).is_err());
    }

    #[test]
    fn a_changed_byte_under_the_seal_never_verifies(at in 4096..6000usize, value in 1..=255u8) {
        let image = sealed().forge(|copy| copy[at] ^= value);
        proptest::prop_assert!(image.verify(&shape(), &key()).is_err(), "byte {} ^ {}", at, value);
    }

    #[test]
    fn a_changed_byte_of_the_key_area_never_verifies(at in 32_768..290_816usize, value in 1..=255u8) {
        let mut image = sealed();
        image.bytes_mut()[at] ^= value;
        proptest::prop_assert!(image.verify(&shape(), &key()).is_err());
    }

    #[test]
    fn a_damaged_json_never_panics(cuts in proptest::collection::vec((0..1000usize, proptest::num::u8::ANY), 1..20)) {
        let image = sealed().forge(|copy| for (at, value) in &cuts { copy[4096 + at] = *value; });
        let _ = image.verify(&shape(), &key());
    }
}

/// A header of the profile with one token, in the canonical form that the seal authenticates.
const VECTOR: &str = r#"{"areas":{"0":"e9e113cc0ea924b717ecd3067805318873bc6cfb3dd0f849e4db4064431acc70"},"hdr_size":"16384","header":{"config":{"json_size":"12288","keyslots_size":"1048576"},"digests":{"0":{"digest":"zAr/SuN73mXKFoW7FbZMTXEKWadIEYPc+1F8JLURFMA=","hash":"sha256","iterations":1000,"keyslots":["0"],"salt":"LeBzplQ4+WDn38NXk9QQ9Iz3waOxVbUL4ftqSCh066M=","segments":["0"],"type":"pbkdf2"}},"keyslots":{"0":{"af":{"hash":"sha256","stripes":4000,"type":"luks1"},"area":{"encryption":"aes-xts-plain64","key_size":64,"offset":"32768","size":"258048","type":"raw"},"kdf":{"hash":"sha256","iterations":1000,"salt":"85K3FsFWn0i0YCyw7UcwHtgoIUw9qORBVjpz8CQIyQs=","type":"pbkdf2"},"key_size":64,"type":"luks2"}},"segments":{"0":{"encryption":"aes-xts-plain64","iv_tweak":"0","offset":"2097152","sector_size":4096,"size":"dynamic","type":"crypt"}},"tokens":{"0":{"epoch":"1","keyslots":[],"mac":"","type":"coffer-seal","v":1}}},"label":"","profile":"xts-1","subsystem":"","uuid":"11111111-2222-3333-4444-555555555555","volume":"cv-00000000000000000000000000000000"}"#;
