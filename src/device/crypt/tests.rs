//! Keyslots that come and go: who can open the header then, and which bytes of the disk have changed.

use uuid::Uuid;

use super::*;
use crate::volume::Profile;

fn secret(byte: u8) -> SecretBytes {
    SecretBytes::new(vec![byte; 32].into())
}

fn shape(profile: Profile) -> Shape {
    Shape {
        id: VolumeId::for_name("x"),
        profile,
        payload_bytes: 64 << 20,
        luks_uuid: Uuid::from_u128(7),
        backing: PathBuf::new(),
    }
}

fn sealed(shape: &Shape, secret: &SecretBytes) -> (Image, [u8; 32]) {
    seal(&format(shape, secret).expect("formats"), shape, &[secret]).expect("seals")
}

/// Gives the sealed `image`, which `old` opens, a keyslot and a seal for `new`.
fn with_both(shape: &Shape, image: &Image, old: &SecretBytes, new: &SecretBytes) -> (Image, [u8; 32]) {
    let image = add_keyslot(shape, &frozen(shape, image, old), old, new).expect("added");
    seal(&image, shape, &[old, new]).expect("seals")
}

fn alone(shape: &Shape, image: &Image, secret: &SecretBytes) -> (Image, [u8; 32]) {
    let image = keep_keyslot(shape, &frozen(shape, image, secret), secret).expect("opens");
    seal(&image, shape, &[secret]).expect("seals")
}

fn frozen(shape: &Shape, image: &Image, key: &SecretBytes) -> Frozen {
    image.verify(shape, key).expect("verifies").frozen
}

fn opens(header: &Frozen, passphrase: &SecretBytes) -> bool {
    load(&header.path()).and_then(|mut device| check(&mut device, passphrase)).is_ok()
}

#[test]
fn a_header_with_two_keyslots_opens_with_either_secret_and_each_alone_is_what_it_was() {
    let [old, new] = [secret(1), secret(2)];
    for shape in Profile::ALL.map(shape) {
        let (first, digest) = sealed(&shape, &old);
        let (both, digest_of_both) = with_both(&shape, &first, &old, &new);
        assert_ne!(digest_of_both, digest);
        for key in [&old, &new] {
            let verified = both.verify(&shape, key).expect("verifies");
            assert_eq!(verified.digest, digest_of_both);
            assert!(opens(&verified.frozen, &old) && opens(&verified.frozen, &new));
        }
        let (as_before, same) = alone(&shape, &both, &old);
        assert_eq!(same, digest, "what was added is gone without a trace");
        assert!(!opens(&frozen(&shape, &as_before, &old), &new));
        let (moved, _) = alone(&shape, &both, &new);
        assert_eq!(moved.verify(&shape, &old).expect_err("no such seal").reason(), Reason::HeaderTampered);
        let header = frozen(&shape, &moved, &new);
        assert!(opens(&header, &new) && !opens(&header, &old));

        // And back: the slot that is free is another one now.
        let (again, _) = with_both(&shape, &moved, &new, &old);
        let (back, _) = alone(&shape, &again, &old);
        assert!(opens(&frozen(&shape, &back, &old), &old));
    }
}

#[test]
fn a_passphrase_that_opens_nothing_changes_nothing() {
    let shape = shape(Profile::Xts1);
    let (image, _) = sealed(&shape, &secret(1));
    let header = frozen(&shape, &image, &secret(1));
    assert_eq!(add_keyslot(&shape, &header, &secret(3), &secret(2)).expect_err("refused").reason(), Reason::WrongKey);
    assert_eq!(keep_keyslot(&shape, &header, &secret(3)).expect_err("refused").reason(), Reason::WrongKey);
}

#[test]
fn a_replaced_header_changes_its_copies_and_the_new_area_and_noise_goes_over_the_unused_one() {
    let [old, new] = [secret(1), secret(2)];
    for (shape, area_bytes) in Profile::ALL.map(shape).into_iter().zip([258_048, 385_024]) {
        let (image, _) = sealed(&shape, &old);
        let disk = tempfile::NamedTempFile::new().expect("makes");
        disk.as_file().set_len(4 << 20).expect("grows");
        let attached = Attached { device: disk.reopen().expect("opens"), path: disk.path().to_owned() };
        image.write(&attached).expect("writes");
        let pages_that_change = |work: &dyn Fn()| {
            let read = || std::fs::read(disk.path()).expect("reads");
            let before = read();
            work();
            let after = read();
            let pages = std::iter::zip(before.chunks(4096), after.chunks(4096)).enumerate();
            pages.filter(|(_, (before, after))| before != after).map(|(page, _)| page * 4096).collect::<Vec<_>>()
        };
        let copies = [0, 4096, 16_384, 20_480];
        let area = |number: usize| (0..area_bytes).step_by(4096).map(move |at| 32_768 + number * area_bytes + at);
        let header = frozen(&shape, &image, &old);
        let (both, _) = with_both(&shape, &image, &old, &new);
        let changed = pages_that_change(&|| both.replace(&attached, &shape, &header).expect("writes"));
        assert_eq!(changed, copies.into_iter().chain(area(1)).collect::<Vec<_>>());

        let header = frozen(&shape, &both, &new);
        let (moved, _) = alone(&shape, &both, &new);
        let changed = pages_that_change(&|| moved.replace(&attached, &shape, &header).expect("writes"));
        assert_eq!(changed, copies);
        let changed = pages_that_change(&|| moved.overwrite_unused(&attached, &shape).expect("writes"));
        assert_eq!(changed, area(0).collect::<Vec<_>>());
        let there = Image::read(&attached).expect("reads");
        assert!(opens(&frozen(&shape, &there, &new), &new));
    }
}
