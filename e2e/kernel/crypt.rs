//! The library's device-mapper work on a real kernel: what the table says, where the key is, what is refused, and that
//! whatever a killed call leaves can be removed.

use std::fs::File;
use std::fs::Metadata;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use coffer::device::Mapper;
use coffer::device::Shape;
use coffer::device::backing::Attached;
use coffer::device::crypt;
use coffer::device::header::Frozen;
use coffer::device::header::Image;
use coffer::key::VolumeKeys;
use coffer::volume::Profile;
use coffer::volume::Reason;
use coffer::volume::SecretBytes;
use coffer::volume::VolumeId;
use uuid::Uuid;

use crate::scene::shell;
use crate::scene::wait_until;

const PAYLOAD_BYTES: u64 = 62 << 20;

/// A sealed volume on a loop device, closed and detached at the end.
struct Sealed {
    shape: Shape,
    keys: VolumeKeys,
    attached: Attached,
    frozen: Frozen,
}

impl Sealed {
    fn new(name: &str) -> Self {
        Self::of_profile(name, Profile::Xts1)
    }

    fn of_profile(name: &str, profile: Profile) -> Self {
        let id = VolumeId::for_name(name);
        let secret = SecretBytes::new(vec![7; 32].into());
        let keys = VolumeKeys::derive(&secret, &id).expect("long enough");
        let backing = PathBuf::from(format!("/tmp/{name}"));
        let luks_uuid = Uuid::new_v4();
        let shape = Shape { id, profile, payload_bytes: PAYLOAD_BYTES, luks_uuid, backing };
        let attached = attach(&shape.backing, profile);
        let image = crypt::format(&shape, &keys.passphrase).expect("formats");
        let (image, digest) = crypt::seal(&image, &shape, &[&keys.seal]).expect("seals");
        image.write(&attached).expect("writes");
        // The first open of a new volume makes the superblock of its tags.
        let new = image.frozen(&shape).expect("freezes");
        crypt::clear_tags(&shape, &attached).expect("clears");
        crypt::open(&shape, &attached, &new, &keys.passphrase).expect("opens");
        crypt::close(&shape.id).expect("closes");
        let verified = Image::read(&attached).and_then(|image| image.verify(&shape, &keys.seal)).expect("verifies");
        assert_eq!(verified.digest, digest);
        Self { shape, keys, attached, frozen: verified.frozen }
    }

    fn open(&self) -> coffer::volume::Result<()> {
        crypt::open(&self.shape, &self.attached, &self.frozen, &self.keys.passphrase)
    }

    fn look(&self) -> Mapper {
        crypt::look(&self.shape.id, Some(&self.shape), [self.number()]).expect("device-mapper answers")
    }

    fn number(&self) -> (u32, u32) {
        let device = self.attached.device.metadata().expect("an open device").rdev();
        (rustix::fs::major(device), rustix::fs::minor(device))
    }

    fn name(&self) -> String {
        self.shape.id.mapper_name()
    }

    fn dm_uuid(&self) -> String {
        format!("CRYPT-LUKS2-{}-{}", self.shape.luks_uuid.simple(), self.name())
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        let (name, device, backing) = (self.name(), self.attached.path.display(), self.shape.backing.display());
        shell(&format!(
            "for name in {name} {name}_dif; do dmsetup remove --retry $name 2>/dev/null || true; done; losetup -d {device}; rm -f {backing}"
        ));
    }
}

fn attach(backing: &Path, profile: Profile) -> Attached {
    let size = profile.backing_bytes(PAYLOAD_BYTES);
    let backing = backing.display();
    let command = "losetup --find --show --direct-io=on --sector-size 4096";
    let path = PathBuf::from(shell(&format!("truncate -s {size} {backing} && {command} {backing}")).trim());
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::CLOEXEC;
    let device = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).expect("opens without the page cache");
    Attached { device: device.into(), path }
}

fn is_block(data: &Metadata) -> bool {
    data.file_type().is_block_device()
}

#[test]
fn an_open_volume_has_exactly_our_table_and_a_key_that_nobody_sees() {
    let volume = Sealed::new("crypt-table");
    assert_eq!(volume.look(), Mapper::Absent);
    volume.open().expect("opens");
    assert_eq!(volume.look(), Mapper::Live);
    assert_eq!(crypt::look(&volume.shape.id, None, []).expect("answers"), Mapper::Live);
    let (name, uuid, (major, minor)) = (volume.name(), volume.shape.luks_uuid, volume.number());
    assert_eq!(
        shell(&format!("dmsetup table --showkeys {name}")).trim(),
        format!(
            "0 126976 crypt aes-xts-plain64 :64:logon:cryptsetup:{uuid}-d0 0 {major}:{minor} 4096 3 \
             no_read_workqueue no_write_workqueue sector_size:4096"
        )
    );
    assert_eq!(shell(&format!("dmsetup info -c --noheadings -o uuid {name}")).trim(), volume.dm_uuid());
    // The kernel collects keys without a keyring in the background.
    wait_until("the end of the key", || !shell("cat /proc/keys").contains(&uuid.to_string()));
    crypt::close(&volume.shape.id).expect("closes");
    assert_eq!(volume.look(), Mapper::Absent);
    crypt::close(&volume.shape.id).expect("closing twice is closing once");
}

#[test]
fn a_volume_with_tags_has_exactly_our_two_tables_and_opens_only_over_its_own_superblock() {
    let volume = Sealed::of_profile("crypt-tags", Profile::Aead1);
    volume.open().expect("opens");
    assert_eq!(volume.look(), Mapper::Live);
    let (name, uuid, (major, minor)) = (volume.name(), volume.shape.luks_uuid, volume.number());
    let below = shell(&format!("dmsetup info -c --noheadings -o minor {name}_dif"));
    assert_eq!(
        shell(&format!("dmsetup table --showkeys {name}; dmsetup table {name}_dif")).trim(),
        format!(
            "0 126976 crypt capi:authenc(hmac(sha256),xts(aes))-plain64 :96:logon:cryptsetup:{uuid}-d0 0 {major_of_dm}:{below} 0 4 \
             no_read_workqueue no_write_workqueue integrity:32:aead sector_size:4096\n\
             0 126976 integrity {major}:{minor} 4096 32 J 7 block_size:4096 journal_sectors:16368 \
             interleave_sectors:32768 buffer_sectors:128 journal_watermark:50 commit_time:10000 fix_padding",
            major_of_dm = shell(&format!("dmsetup info -c --noheadings -o major {name}_dif")).trim(),
            below = below.trim(),
        )
    );
    wait_until("the end of the key", || !shell("cat /proc/keys").contains(&uuid.to_string()));
    crypt::close(&volume.shape.id).expect("closes");
    assert_eq!(shell("dmsetup ls | grep crypt-tags || true"), "");

    let mut superblock = vec![0; 4096];
    let buffered = File::options().read(true).write(true).open(&volume.shape.backing).expect("opens");
    buffered.read_exact_at(&mut superblock, 2 << 20).expect("reads");
    assert_eq!(superblock, crypt::superblock_of(&volume.shape), "the kernel writes what we expect");
    // One bit of each field, of the padding behind them, and of the last byte.
    for at in [0, 8, 9, 10, 12, 16, 23, 24, 28, 29, 30, 32, 48, 511, 4095] {
        let mut changed = superblock.clone();
        changed[at] ^= 2;
        buffered.write_all_at(&changed, 2 << 20).and_then(|()| buffered.sync_all()).expect("writes");
        assert_eq!(volume.open().expect_err("refused").reason(), Reason::HeaderTampered, "byte {at}");
        assert_eq!(volume.look(), Mapper::Absent);
    }
    buffered.write_all_at(&[0; 4096], 2 << 20).and_then(|()| buffered.sync_all()).expect("writes");
    assert_eq!(volume.open().expect_err("refused").reason(), Reason::HeaderMissing);
    buffered.read_exact_at(&mut superblock, 2 << 20).expect("reads");
    assert_eq!(superblock, [0; 4096], "a refused open makes no superblock");
    buffered.write_all_at(&crypt::superblock_of(&volume.shape), 2 << 20).expect("writes");
    buffered.sync_all().expect("is durable");
    volume.open().expect("opens");
    crypt::close(&volume.shape.id).expect("closes");
}

#[test]
fn what_a_killed_open_leaves_of_a_volume_with_tags_is_half_made_and_removed() {
    let volume = Sealed::of_profile("crypt-tags-killed", Profile::Aead1);
    let (name, uuid, (major, minor)) = (volume.name(), volume.dm_uuid(), volume.number());
    let below = format!("CRYPT-INTEGRITY-{}-{name}_dif", volume.shape.luks_uuid.simple());
    let tags =
        format!("0 126976 integrity {major}:{minor} 4096 32 J 3 block_size:4096 interleave_sectors:32768 fix_padding");
    let live = format!("echo '{tags}' | dmsetup create --uuid {below} {name}_dif");
    for leave in [
        format!("dmsetup create --notable --uuid {below} {name}_dif"),
        format!("dmsetup create --notable --uuid {below} {name}_dif && echo '{tags}' | dmsetup load {name}_dif"),
        live.clone(),
        format!("{live} && dmsetup create --notable --uuid {uuid} {name}"),
        format!(
            "{live} && dmsetup create --notable --uuid {uuid} {name} && \
             echo 0 8 linear /dev/mapper/{name}_dif 0 | dmsetup load {name}"
        ),
    ] {
        shell(&leave);
        assert_eq!(volume.look(), Mapper::HalfMade, "{leave}");
        crypt::close(&volume.shape.id).expect("closes");
        assert_eq!(volume.look(), Mapper::Absent, "{leave}");
        volume.open().expect("opens");
        crypt::close(&volume.shape.id).expect("closes");
    }
    shell(&format!("echo '0 126976 linear {major}:{minor} 4096' | dmsetup create --uuid {below} {name}_dif"));
    shell(&format!("echo '0 126976 linear {major}:{minor} 4096' | dmsetup create --uuid {uuid} {name}"));
    assert!(matches!(volume.look(), Mapper::Foreign(_)), "live devices of our names with other tables");
}

#[test]
fn plaintext_is_on_the_mapper_and_nowhere_on_the_backing() {
    let volume = Sealed::new("crypt-needle");
    volume.open().expect("opens");
    let node = crypt::device_node(&volume.shape.id).expect("a node");
    assert!(is_block(&std::fs::metadata(&node).expect("exists")));
    let size = shell(&format!("blockdev --getsize64 {}", node.display()));
    assert_eq!(size.trim(), PAYLOAD_BYTES.to_string(), "the size comes from the record");
    let needle = Uuid::new_v4();
    let device = File::options().read(true).write(true).open(&node).expect("opens");
    device.write_all_at(needle.as_bytes(), 4096).expect("writes");
    device.sync_all().expect("is durable");
    drop(device);
    crypt::close(&volume.shape.id).expect("closes");
    assert!(crypt::device_node(&volume.shape.id).is_err());
    let backing = std::fs::read(&volume.shape.backing).expect("reads");
    assert!(!backing.windows(16).any(|bytes| bytes == needle.as_bytes()));
    volume.open().expect("opens again");
    let mut found = [0; 16];
    let node = crypt::device_node(&volume.shape.id).expect("a node");
    File::open(node).and_then(|device| device.read_exact_at(&mut found, 4096)).expect("reads");
    assert_eq!(found, *needle.as_bytes());
    crypt::close(&volume.shape.id).expect("closes");
}

#[test]
fn udev_does_not_look_into_the_volume() {
    let volume = Sealed::new("crypt-udev");
    volume.open().expect("opens");
    let node = crypt::device_node(&volume.shape.id).expect("a node");
    shell(&format!("mkfs.ext4 -q -L secret-label {} && udevadm settle", node.display()));
    let properties = shell(&format!("udevadm info --query=property {}", node.display()));
    for flag in ["SUBSYSTEM", "DISK", "OTHER"] {
        assert!(properties.contains(&format!("DM_UDEV_DISABLE_{flag}_RULES_FLAG=1")), "{properties}");
    }
    assert!(!properties.contains("ID_FS_") && !properties.contains("secret-label"), "{properties}");
    crypt::close(&volume.shape.id).expect("closes");
}

#[test]
fn stock_cryptsetup_opens_the_volume_with_the_derived_passphrase() {
    for profile in Profile::ALL {
        opened_by_stock_cryptsetup(&Sealed::of_profile(&format!("crypt-stock-{}", profile.as_str()), profile));
    }
}

fn opened_by_stock_cryptsetup(volume: &Sealed) {
    volume.open().expect("opens");
    let node = crypt::device_node(&volume.shape.id).expect("a node");
    let device = File::options().write(true).open(node).expect("opens");
    let mut block = vec![0; 4096];
    block[..5].copy_from_slice(b"by us");
    device.write_all_at(&block, 0).and_then(|()| device.sync_all()).expect("writes");
    drop(device);
    crypt::close(&volume.shape.id).expect("closes");
    let header = Image::read(&volume.attached).expect("reads");
    let key = std::env::temp_dir().join("crypt-stock-key");
    std::fs::write(&key, volume.keys.passphrase.expose()).expect("writes");
    let (loop_device, key) = (volume.attached.path.display(), key.display());
    let text = shell(&format!(
        "cryptsetup open --key-file {key} {loop_device} stock; dd if=/dev/mapper/stock iflag=direct bs=4096 count=1 status=none | head -c 5; cryptsetup close stock; rm {key}"
    ));
    assert_eq!(text, "by us");
    let verify = |image: Image| image.verify(&volume.shape, &volume.keys.seal).expect("verifies").digest;
    assert_eq!(verify(Image::read(&volume.attached).expect("reads")), verify(header));
}

#[test]
fn what_a_killed_open_leaves_is_half_made_and_removed() {
    let volume = Sealed::new("crypt-killed");
    let (name, uuid, (major, minor)) = (volume.name(), volume.dm_uuid(), volume.number());
    for leave in [
        format!("dmsetup create --notable --uuid {uuid} {name}"),
        format!("dmsetup create --notable {name}"),
        format!("dmsetup create --notable --uuid CRYPT-LUKS2-{}-{name} {name}", Uuid::new_v4().simple()),
        format!(
            "dmsetup create --notable --uuid {uuid} {name} && echo 0 8 linear {major}:{minor} 0 | dmsetup load {name}"
        ),
    ] {
        shell(&leave);
        assert_eq!(volume.look(), Mapper::HalfMade, "{leave}");
        assert_eq!(volume.open().expect_err("the name is taken").reason(), Reason::ForeignDevice);
        assert_eq!(volume.look(), Mapper::HalfMade, "a refused open removes nothing that it did not make");
        crypt::close(&volume.shape.id).expect("closes");
        volume.open().expect("opens");
        crypt::close(&volume.shape.id).expect("closes");
    }
}

#[test]
fn a_live_device_that_is_not_ours_is_foreign_and_stays() {
    let volume = Sealed::new("crypt-foreign");
    let other = Sealed::new("crypt-foreign-backing");
    let (name, uuid, (major, minor)) = (volume.name(), volume.dm_uuid(), volume.number());
    let (other_major, other_minor) = other.number();
    for (table, with_uuid) in [
        (format!("0 126976 linear {major}:{minor} 4096"), "--uuid LVM-somebody"),
        (format!("0 126976 linear {major}:{minor} 4096"), ""),
        (format!("0 126976 linear {major}:{minor} 4096"), &format!("--uuid {uuid}")),
        (format!("0 126976 crypt cipher_null-ecb - 0 {other_major}:{other_minor} 4096"), &format!("--uuid {uuid}")),
    ] {
        shell(&format!("echo {table} | dmsetup create {with_uuid} {name}"));
        let before = shell(&format!("dmsetup table {name}; dmsetup info {name}"));
        assert!(matches!(volume.look(), Mapper::Foreign(_)), "{table}: {:?}", volume.look());
        assert_eq!(volume.open().expect_err("refused").reason(), Reason::ForeignDevice);
        if !with_uuid.contains(&uuid) {
            assert_eq!(crypt::close(&volume.shape.id).expect_err("refused").reason(), Reason::ForeignDevice);
        }
        assert_eq!(shell(&format!("dmsetup table {name}; dmsetup info {name}")), before, "untouched");
        shell(&format!("dmsetup remove --retry {name}"));
    }
}

#[test]
fn our_table_over_another_image_or_suspended_is_foreign() {
    let volume = Sealed::new("crypt-elsewhere");
    volume.open().expect("opens");
    let look = |backings: &[(u32, u32)]| crypt::look(&volume.shape.id, Some(&volume.shape), backings.to_vec());
    assert!(matches!(look(&[(7, 200)]).expect("answers"), Mapper::Foreign(_)));
    assert!(matches!(look(&[]).expect("answers"), Mapper::Foreign(_)));
    assert_eq!(look(&[(7, 200), volume.number()]).expect("answers"), Mapper::Live);
    let longer = Shape { payload_bytes: PAYLOAD_BYTES + 4096, ..volume.shape.clone() };
    let found = crypt::look(&longer.id, Some(&longer), [volume.number()]).expect("answers");
    assert!(matches!(found, Mapper::Foreign(_)), "another size");
    shell(&format!("dmsetup suspend {}", volume.name()));
    assert!(matches!(volume.look(), Mapper::Foreign(_)));
    shell(&format!("dmsetup resume {}", volume.name()));
    assert_eq!(volume.look(), Mapper::Live);
    crypt::close(&volume.shape.id).expect("closes");
}

#[test]
fn a_wrong_passphrase_and_a_blocked_keyring_are_told_apart() {
    let volume = Sealed::new("crypt-refused");
    let wrong = SecretBytes::new(vec![b'x'; 64].into());
    let error = crypt::open(&volume.shape, &volume.attached, &volume.frozen, &wrong).expect_err("refused");
    assert_eq!(error.reason(), Reason::WrongKey);
    assert_eq!(volume.look(), Mapper::Absent);
    let limit = "/proc/sys/kernel/keys/root_maxkeys";
    let before = shell(&format!("cat {limit}; echo 1 >{limit}"));
    let result = volume.open();
    shell(&format!("echo {} >{limit}", before.trim()));
    let error = result.expect_err("refused");
    assert_eq!(error.reason(), Reason::Internal);
    assert!(error.explanation().contains("add_key"), "{error}");
    assert_eq!(volume.look(), Mapper::Absent);
    volume.open().expect("opens");
    crypt::close(&volume.shape.id).expect("closes");
}

#[test]
fn a_table_that_the_kernel_refuses_leaves_nothing() {
    let volume = Sealed::new("crypt-short");
    let longer = Shape { payload_bytes: PAYLOAD_BYTES + 4096, ..volume.shape.clone() };
    let error = crypt::open(&longer, &volume.attached, &volume.frozen, &volume.keys.passphrase).expect_err("too long");
    assert_eq!(error.reason(), Reason::Internal);
    assert_eq!(volume.look(), Mapper::Absent);
}

#[test]
fn a_volume_in_use_stays_open_and_says_so() {
    let volume = Sealed::new("crypt-busy");
    volume.open().expect("opens");
    let user = File::open(crypt::device_node(&volume.shape.id).expect("a node")).expect("opens");
    let error = crypt::close(&volume.shape.id).expect_err("in use");
    assert!(error.explanation().contains("in use"), "{error}");
    assert_eq!(volume.look(), Mapper::Live);
    drop(user);
    crypt::close(&volume.shape.id).expect("closes");
}

#[test]
fn many_volumes_open_and_close_at_once() {
    let volumes: Vec<_> = (0..8).map(|number| Sealed::new(&format!("crypt-many-{number}"))).collect();
    std::thread::scope(|scope| {
        for volume in &volumes {
            scope.spawn(|| {
                volume.open().expect("opens");
                assert_eq!(volume.look(), Mapper::Live);
                crypt::close(&volume.shape.id).expect("closes");
            });
        }
    });
}
