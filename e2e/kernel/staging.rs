//! A volume from its first stage to its deletion, and what the kernel shows meanwhile.

use std::fs;
use std::fs::File;
use std::io::Write;

use crate::driver::Kind;
use crate::driver::staging_path;
use crate::scene::Scene;
use crate::scene::shell;
use crate::scene::wait_until;
use crate::volume::Volume;
use crate::volume::needle;
use crate::volume::occurrences;

fn write_durably(path: &std::path::Path, data: &[u8]) {
    let mut file = File::create(path).expect("created");
    file.write_all(data).expect("written");
    file.sync_all().expect("synced");
}

fn a_needle_is_in_the_mapper_and_not_in_the_backing(kind: Kind) {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "needle", kind);
    let needle = needle();
    write_durably(&volume.file("needle"), &needle);
    assert_eq!(occurrences(&volume.backing(), &needle), 0, "plaintext below the volume");
    assert!(occurrences(&volume.mapper(), &needle) >= 1, "the search does not find what is there");

    volume.unstage(&scene);
    assert_eq!(volume.in_kernel(), "");
    volume.stage(&scene);
    assert_eq!(fs::read(volume.file("needle")).expect("still there"), needle);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn what_is_written_to_ext4_is_ciphertext_below_and_survives_a_restage() {
    a_needle_is_in_the_mapper_and_not_in_the_backing(Kind::Ext4);
}

#[test]
fn what_is_written_to_xfs_is_ciphertext_below_and_survives_a_restage() {
    a_needle_is_in_the_mapper_and_not_in_the_backing(Kind::Xfs);
}

#[test]
fn what_is_written_to_a_raw_block_volume_is_ciphertext_below_and_survives_a_restage() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "raw", Kind::Block);
    assert_eq!(fs::read_dir(staging_path(&volume.id)).expect("a directory").count(), 0, "block stages no file");
    let needle = needle();
    let mut block = vec![0; 4096];
    block[..64].copy_from_slice(&needle);
    fs::write("/tmp/block", &block).expect("a file");
    shell(&format!(
        "dd if=/tmp/block of={} bs=4096 seek=3 oflag=direct conv=fsync status=none",
        volume.mapper().display()
    ));
    assert_eq!(occurrences(&volume.backing(), &needle), 0, "plaintext below the volume");

    volume.unstage(&scene);
    volume.stage(&scene);
    assert_eq!(occurrences(&volume.mapper(), &needle), 1);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn the_table_is_xts_with_4096_byte_sectors_and_its_key_is_in_the_keyring() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "table", Kind::Ext4);
    let table = shell(&format!("dmsetup table {}", volume.mapper_name()));
    let words: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(words[..4], ["0", "65536", "crypt", "aes-xts-plain64"], "{table}");
    let key = words[4].strip_prefix(":64:logon:").expect("the table names the key, which is in a keyring");
    assert!(words.contains(&"sector_size:4096"), "{table}");
    assert!(!table.contains("allow_discards"), "{table}");
    let options = shell(&format!(
        "cat /sys/block/$(dmsetup deps -o blkdevname {} | grep -o 'loop[0-9]*')/loop/dio",
        volume.mapper_name()
    ));
    assert_eq!(options.trim(), "1", "the loop reads and writes through the page cache");
    // The key must not outlive the call in any keyring that another program could search.
    wait_until("the end of the key", || !shell("cat /proc/keys").contains(key));

    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_second_stage_answers_from_what_is_there_and_asks_nobody() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "twice", Kind::Ext4);
    let (releases, mounts) = (scene.broker.releases(), volume.in_kernel());
    volume.stage(&scene);
    assert_eq!(scene.broker.releases(), releases, "a repeated stage fetched the key again");
    assert_eq!(volume.in_kernel(), mounts);
    let other = scene.driver().stage(&volume.id, Kind::Xfs).expect_err("another file system");
    assert!(matches!(other.code(), tonic::Code::AlreadyExists | tonic::Code::FailedPrecondition), "{other:?}");

    volume.unstage(&scene);
    volume.unstage(&scene);
    volume.delete(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_staged_volume_is_adopted_by_a_restarted_driver() {
    let mut scene = Scene::new();
    let volume = Volume::create_staged(&scene, "adopted", Kind::Ext4);
    let (kernel, releases) = (volume.in_kernel(), scene.broker.releases());
    scene.restart_driver();
    volume.stage(&scene);
    assert_eq!(volume.in_kernel(), kernel);
    assert_eq!(scene.broker.releases(), releases);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn every_restage_is_a_fresh_release() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "fresh", Kind::Ext4);
    for _ in 0..2 {
        let releases = scene.broker.releases();
        volume.unstage(&scene);
        volume.stage(&scene);
        assert_eq!(scene.broker.releases(), releases + 1);
    }
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn stock_cryptsetup_opens_the_volume_with_the_derived_passphrase() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "stock", Kind::Ext4);
    let needle = needle();
    write_durably(&volume.file("needle"), &needle);
    volume.unstage(&scene);

    let passphrase = scene.broker.passphrase(&volume.id);
    fs::write("/run/passphrase", passphrase.expose()).expect("in memory");
    shell("mkdir -p /mnt/stock");
    shell(&format!("cryptsetup open --readonly --key-file /run/passphrase {} stock", volume.backing().display()));
    shell("mount -o ro,noload /dev/mapper/stock /mnt/stock");
    let found = fs::read("/mnt/stock/needle").expect("the file is there");
    shell("umount /mnt/stock; cryptsetup close stock; rm /run/passphrase");
    assert_eq!(found, needle);

    // Neither way of opening it spoils it for the other.
    volume.stage(&scene);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_damaged_ext4_is_repaired_before_it_is_mounted() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "fsck", Kind::Ext4);
    shell(&format!("umount {}", staging_path(&volume.id).display()));
    // A wrong count of free blocks is what an unclean end may leave, and what a preening check repairs.
    shell(&format!("debugfs -w -R 'set_super_value free_blocks_count 1' {}", volume.mapper().display()));
    shell(&format!("debugfs -w -R 'set_super_value state 0' {}", volume.mapper().display()));
    volume.stage(&scene);
    let super_block = shell(&format!("dumpe2fs -h {} 2>/dev/null", volume.mapper().display()));
    assert!(!super_block.lines().any(|line| line == "Free blocks:              1"), "{super_block}");
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}
