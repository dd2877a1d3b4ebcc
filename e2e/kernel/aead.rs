//! Profile `aead-1` from outside: what a changed sector is for its reader, and that a volume that nobody changed never
//! looks changed, not even to those who read what was never written.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::driver::Kind;
use crate::listening::EILSEQ;
use crate::listening::read_sector;
use crate::scene::Scene;
use crate::scene::shell;
use crate::scene::wait_until;
use crate::volume::Volume;
use crate::volume::count;
use crate::volume::needle;
use crate::volume::occurrences;

const CLASS: [(&str, &str); 1] = [("profile", "aead-1")];
const EIO: i32 = 5;

fn volume(scene: &Scene, name: &str, kind: Kind) -> Volume {
    let volume = Volume::create_in(scene, &CLASS, name, kind);
    volume.stage(scene);
    volume
}

/// Where the payload begins on the image: behind the header, dm-integrity's superblock and its journal.
const DATA: u64 = (2 << 20) + (8 + 16_368) * 512;
/// A run of data of 32,768 sectors follows the 256 sectors of its tags.
const RUN_SECTORS: u64 = 32_768;
const RUN_TAG_SECTORS: u64 = 256;

/// Where the first block of `file` is stored on the image. The journal holds it as well until it is emptied.
fn block_on_backing(volume: &Volume, file: &Path) -> u64 {
    shell(&format!("sync -f {}", file.display()));
    for verb in ["suspend", "resume"] {
        shell(&format!("dmsetup {verb} {}_dif", volume.mapper_name()));
    }
    let extents = shell(&format!("filefrag -b512 -v {}", file.display()));
    let first = extents.lines().find(|line| line.trim_start().starts_with("0:")).expect("the file has an extent");
    let sector = first.split(':').nth(2).and_then(|text| text.trim().split('.').next()).expect("a physical offset");
    let sector: u64 = sector.parse().expect("a number");
    DATA + (sector + (sector / RUN_SECTORS + 1) * RUN_TAG_SECTORS) * 512
}

#[test]
fn a_changed_sector_is_an_error_for_its_reader_and_never_wrong_bytes() {
    let mut scene = Scene::new();
    scene.tampers();
    let volume = volume(&scene, "changed", Kind::Ext4);
    let file = volume.file("file");
    let text = needle().repeat(64);
    fs::write(&file, &text).expect("written");
    shell(&format!("sync -f {}", file.display()));
    let target = File::options().write(true).open(&file).expect("opens");
    target.sync_all().expect("durable");
    drop(target);
    let at = block_on_backing(&volume, &file);
    let written = fs::read(&file).expect("readable");
    let backing = File::options().read(true).write(true).open(volume.backing()).expect("opens");
    let mut byte = [0];
    for offset in [0, 1, 2048, 4095] {
        backing.read_exact_at(&mut byte, at + offset).expect("read");
        backing.write_all_at(&[byte[0] ^ 1], at + offset).and_then(|()| backing.sync_all()).expect("written");
        shell("sync; echo 3 >/proc/sys/vm/drop_caches");
        assert_eq!(read_sector(&file, 0).expect_err("changed").raw_os_error(), Some(EILSEQ), "byte {offset}");
        assert_eq!(fs::read(&file).expect_err("changed").raw_os_error(), Some(EIO), "byte {offset}");
        backing.write_all_at(&byte, at + offset).and_then(|()| backing.sync_all()).expect("written");
        shell("echo 3 >/proc/sys/vm/drop_caches");
        assert_eq!(fs::read(&file).expect("put right"), written);
    }
    drop(backing);
    assert!(scene.tag_errors() > 0, "the kernel has said nothing");
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_volume_that_nobody_changed_never_looks_changed() {
    let scene = Scene::new();
    let volume = volume(&scene, "healthy", Kind::Ext4);
    let needle = needle();
    fs::write(volume.file("needle"), &needle).expect("written");
    let work = volume.file("");
    shell(&format!(
        "cd {work} && mkdir tree && cp -r /etc/. tree && sync -f . && echo 3 >/proc/sys/vm/drop_caches
         find . -type f -print0 | xargs -0 cat >/dev/null && rm -rf tree/s* && fstrim . 2>/dev/null || true
         fio --name=stress --directory=. --size=8m --bs=4k --rw=randrw --fsync=16 --verify=crc32c --output=/dev/null",
        work = work.display()
    ));
    assert_eq!(occurrences(&volume.backing(), &needle), 0, "plaintext below the volume");
    let mapper = volume.mapper();
    // Whoever looks at every device of the node.
    shell(&format!("udevadm trigger --settle --subsystem-match=block; blkid {}; lsblk -f", mapper.display()));
    volume.unstage(&scene);
    for _ in 0..2 {
        volume.stage(&scene);
        assert_eq!(fs::read(volume.file("needle")).expect("still there"), needle);
        volume.unstage(&scene);
    }
    assert_eq!(scene.tag_errors(), 0);
    let log = fs::read(scene.log()).expect("readable");
    assert_eq!(count(&log, b"WARN"), 0, "{}", String::from_utf8_lossy(&log));
    volume.delete(&scene);
    scene.end();
}

#[test]
fn every_sector_of_a_volume_with_all_tags_can_be_read_before_it_is_written() {
    let scene = Scene::new();
    let asked = [("profile", "aead-1"), ("init", "full")];
    for (kind, class) in [(Kind::Block, &CLASS[..]), (Kind::Xfs, &CLASS), (Kind::Ext4, &asked)] {
        let volume = Volume::create_in(&scene, class, &format!("full-{kind:?}"), kind);
        volume.stage(&scene);
        if kind != Kind::Block {
            fs::write(volume.file("file"), "text").expect("written");
            shell(&format!("sync -f {}", volume.file("file").display()));
        }
        let mapper = volume.mapper();
        shell(&format!("dd if={} of=/dev/null bs=1M iflag=direct status=none", mapper.display()));
        volume.unstage(&scene);
        volume.stage(&scene);
        if kind != Kind::Block {
            assert_eq!(fs::read_to_string(volume.file("file")).expect("still there"), "text");
        }
        volume.unstage(&scene);
        volume.delete(&scene);
    }
    assert_eq!(scene.tag_errors(), 0);
    scene.end();
}

fn initialised_bytes(volume: &Volume) -> Option<u64> {
    let record: serde_json::Value = serde_json::from_slice(&fs::read(volume.record()).ok()?).ok()?;
    record["initialised_bytes"].as_u64()
}

#[test]
fn a_driver_that_is_killed_while_all_sectors_get_their_tags_goes_on_from_there() {
    let mut scene = Scene::new();
    let volume = Volume::create_in(&scene, &CLASS, "interrupted", Kind::Xfs);
    // The kubelet gives up; the work goes on.
    scene.driver().stage_within(&volume.id, volume.kind, Duration::from_secs(1)).expect_err("it takes longer");
    wait_until("the first part", || initialised_bytes(&volume).is_some());
    assert_eq!(volume.state(), "Formatting");
    scene.restart_driver();
    let done_bytes = initialised_bytes(&volume).expect("noted");
    assert_eq!(done_bytes, 256 << 20);
    let keyslot = keyslot_of(&volume);
    volume.stage(&scene);
    assert_eq!(volume.state(), "Ready");
    assert!(keyslot_of(&volume) == keyslot, "it was formatted anew");
    shell(&format!("dd if={} of=/dev/null bs=1M iflag=direct status=none", volume.mapper().display()));
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

/// The area of the first keyslot, which a format fills anew.
fn keyslot_of(volume: &Volume) -> Vec<u8> {
    let mut area = vec![0; 385_024];
    File::open(volume.backing()).and_then(|backing| backing.read_exact_at(&mut area, 32_768)).expect("readable");
    area
}

#[test]
fn hostile_metadata_of_a_filesystem_is_never_parsed() {
    let mut scene = Scene::new();
    scene.tampers();
    for kind in [Kind::Ext4, Kind::Xfs] {
        let volume = volume(&scene, &format!("metadata-{kind:?}"), kind);
        fs::write(volume.file("file"), "text").expect("written");
        volume.unstage(&scene);
        let copy = fs::read(volume.backing()).expect("readable");
        let backing = File::options().write(true).open(volume.backing()).expect("opens");
        // Everything behind the journal for some MiB: the superblock and what is read at a mount.
        let noise = needle().repeat((4 << 20) / 64);
        backing.write_all_at(&noise, DATA).and_then(|()| backing.sync_all()).expect("written");
        volume.stage_is_refused(&scene, "DeviceUnreadable");
        backing.write_all_at(&copy, 0).and_then(|()| backing.sync_all()).expect("written");
        drop(backing);
        volume.stage(&scene);
        assert_eq!(fs::read_to_string(volume.file("file")).expect("put right"), "text");
        volume.unstage(&scene);
        volume.delete(&scene);
    }
    scene.end();
}
