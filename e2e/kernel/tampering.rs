//! A Ready volume whose record or backing is not what we wrote: refused with its reason, unchanged, nothing attached.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::driver::Kind;
use crate::scene::Scene;
use crate::scene::shell;
use crate::volume::Volume;

/// Makes a Ready volume, spoils it, and expects that a stage is refused with `reason`; then puts it right again and
/// expects that it stages.
fn spoiled(reason: &str, spoil: impl FnOnce(&Scene, &Volume)) {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "spoiled", Kind::Ext4);
    fs::write(volume.file("file"), "text").expect("written");
    volume.unstage(&scene);
    let copy = "/tmp/volume";
    shell(&format!(
        "rm -rf {copy}; cp -a --sparse=always {} {copy}",
        volume.record().parent().expect("a directory").display()
    ));

    spoil(&scene, &volume);
    volume.stage_is_refused(&scene, reason);
    volume.stage_is_refused(&scene, reason);

    shell(&format!("cp -a --sparse=always {copy}/. {}", volume.record().parent().expect("a directory").display()));
    volume.stage(&scene);
    assert_eq!(fs::read_to_string(volume.file("file")).expect("it was never formatted"), "text");
    volume.unstage(&scene);
    volume.delete(&scene);
    let other = coffer::volume::VolumeId::for_name("other");
    scene.driver().delete(other.as_str()).expect("deleted if it was made");
    scene.end();
}

fn edit_record(volume: &Volume, edit: impl FnOnce(&mut serde_json::Value)) {
    let record = fs::read(volume.record()).expect("the record");
    let mut record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    edit(&mut record);
    fs::write(volume.record(), serde_json::to_vec(&record).expect("JSON")).expect("written");
}

fn overwrite(volume: &Volume, offset: u64, data: &[u8]) {
    let file = File::options().write(true).open(volume.backing()).expect("the backing");
    file.write_all_at(data, offset).expect("written");
}

#[test]
fn a_truncated_record_is_refused() {
    spoiled("RecordDamaged", |_, volume| {
        let record = fs::read(volume.record()).expect("the record");
        fs::write(volume.record(), &record[..record.len() / 2]).expect("written");
    });
}

#[test]
fn a_record_of_a_newer_schema_is_refused() {
    spoiled("RecordTooNew", |_, volume| edit_record(volume, |record| record["schema"] = 99.into()));
}

#[test]
fn a_record_for_another_id_is_refused() {
    spoiled("RecordDamaged", |_, volume| {
        let other = coffer::volume::VolumeId::for_name("other");
        edit_record(volume, |record| record["id"] = other.as_str().into());
    });
}

#[test]
fn the_volume_of_another_node_is_refused_before_a_key_is_asked_for() {
    let mut scene = Scene::new();
    let volume = Volume::create_staged(&scene, "elsewhere", Kind::Ext4);
    volume.unstage(&scene);
    let released = scene.broker.releases();
    let home = std::mem::replace(&mut scene.options().node, "node2");
    scene.restart_driver();
    volume.stage_is_refused(&scene, "WrongNode");
    assert_eq!(scene.broker.releases(), released);
    scene.options().node = home;
    scene.restart_driver();
    volume.stage(&scene);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn an_open_volume_whose_record_was_changed_is_closed_and_not_deleted_below_its_mount() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "changed", Kind::Ext4);
    fs::write(volume.file("file"), "text").expect("written");
    let record = fs::read(volume.record()).expect("the record");
    edit_record(&volume, |record| record["luks_uuid"] = "11111111-2222-4333-8444-555555555555".into());
    let status = scene.driver().delete(&volume.id).expect_err("it is mounted");
    assert!(status.message().starts_with("StillStaged: "), "{status:?}");
    volume.unstage(&scene);
    assert_eq!(shell("dmsetup ls; losetup --list --noheadings").trim(), "No devices found");
    fs::write(volume.record(), record).expect("put back");
    volume.stage(&scene);
    assert_eq!(fs::read_to_string(volume.file("file")).expect("there"), "text");
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_record_with_a_wrong_mac_is_refused() {
    spoiled("RecordTampered", |_, volume| edit_record(volume, |record| record["mac"] = "0".repeat(64).into()));
}

#[test]
fn a_record_that_was_changed_without_its_mac_is_refused() {
    spoiled("RecordTampered", |_, volume| edit_record(volume, |record| record["name"] = "changed".into()));
}

#[test]
fn a_zeroed_header_is_refused() {
    spoiled("HeaderMissing", |_, volume| overwrite(volume, 0, &[0; 2 << 20]));
}

#[test]
fn a_header_with_one_changed_byte_in_both_copies_is_refused() {
    spoiled("HeaderTampered", |_, volume| {
        for offset in [4096 + 20, 16384 + 4096 + 20] {
            overwrite(volume, offset, b"~");
        }
    });
}

#[test]
fn a_changed_keyslot_area_is_refused() {
    spoiled("HeaderTampered", |_, volume| overwrite(volume, 32768 + 1000, b"not what was sealed"));
}

#[test]
fn a_truncated_backing_is_refused() {
    spoiled("DeviceTruncated", |_, volume| {
        File::options().write(true).open(volume.backing()).expect("the backing").set_len(4 << 20).expect("shorter");
    });
}

#[test]
fn a_missing_backing_is_refused_and_not_made_anew() {
    spoiled("DeviceMissing", |_, volume| fs::remove_file(volume.backing()).expect("removed"));
}

#[test]
fn the_image_of_another_volume_is_refused() {
    spoiled("WrongVolume", |scene, volume| {
        let other = Volume::create_staged(scene, "other", Kind::Ext4);
        other.unstage(scene);
        fs::copy(other.backing(), volume.backing()).expect("copied");
    });
}

#[test]
fn an_ext4_image_in_place_of_the_volume_is_refused() {
    spoiled("HeaderMissing", |_, volume| {
        shell(&format!("mkfs.ext4 -q -F {}", volume.backing().display()));
    });
}

#[test]
fn one_intact_copy_of_the_header_is_enough() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "torn", Kind::Ext4);
    for offset in [0, 16384] {
        volume.unstage(&scene);
        let mut saved = vec![0; 16384];
        let file = File::open(volume.backing()).expect("the backing");
        file.read_exact_at(&mut saved, offset).expect("read");
        overwrite(&volume, offset + 4096, &[0; 512]);
        volume.stage(&scene);
        volume.unstage(&scene);
        overwrite(&volume, offset, &saved);
        volume.stage(&scene);
    }
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_declared_volume_whose_backing_holds_data_is_not_formatted() {
    let scene = Scene::new();
    let volume = Volume::create(&scene, "not-blank", Kind::Ext4);
    overwrite(&volume, 8 << 20, b"somebody wrote here");
    volume.stage_is_refused(&scene, "NotBlank");
    volume.delete(&scene);
    scene.end();
}
