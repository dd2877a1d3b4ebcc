//! Half-done states: those of our own converge, those of others are left alone.

use std::fs;

use crate::driver::Kind;
use crate::driver::staging_path;
use crate::scene::Scene;
use crate::scene::shell;
use crate::volume::Volume;
use crate::volume::unfinished;

fn finish(scene: Scene, volume: &Volume) {
    fs::write(volume.file("file"), "text").expect("the volume is mounted");
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_loop_that_was_left_over_is_no_obstacle() {
    let scene = Scene::new();
    let volume = Volume::create(&scene, "loop", Kind::Ext4);
    shell(&format!("losetup -f {}", volume.backing().display()));
    volume.stage(&scene);
    volume.unstage(&scene);
    shell(&format!("losetup -f {}", volume.backing().display()));
    volume.stage(&scene);
    finish(scene, &volume);
}

#[test]
fn a_dm_device_without_a_table_is_removed_first() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "half-made", Kind::Ext4);
    volume.unstage(&scene);
    shell(&format!("dmsetup create {} --notable", volume.mapper_name()));
    volume.stage(&scene);
    finish(scene, &volume);
}

#[test]
fn an_inactive_table_over_a_left_over_loop_is_removed_first() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "inactive", Kind::Ext4);
    volume.unstage(&scene);
    shell(&format!(
        "loop=$(losetup -f --show {backing}); dmsetup create {name} --notable
         dmsetup load {name} --table \"0 65536 linear $loop 4096\"",
        backing = volume.backing().display(),
        name = volume.mapper_name()
    ));
    volume.stage(&scene);
    finish(scene, &volume);
}

#[test]
fn an_unstage_removes_what_a_killed_stage_left() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "descends", Kind::Ext4);
    shell(&format!("umount {}", staging_path(&volume.id).display()));
    volume.unstage(&scene);
    assert_eq!(volume.in_kernel(), "");
    shell(&format!("dmsetup create {} --notable", volume.mapper_name()));
    volume.unstage(&scene);
    assert_eq!(volume.in_kernel(), "");
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_live_mapper_that_is_not_ours_is_refused_and_untouched() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "foreign", Kind::Ext4);
    volume.unstage(&scene);
    shell(&format!("dmsetup create {} --table '0 65536 zero'", volume.mapper_name()));
    let (table, before) = (shell("dmsetup table; dmsetup info -c --noheadings"), volume.fingerprint());
    let status = scene.driver().stage(&volume.id, volume.kind).expect_err("refused");
    assert!(status.message().starts_with("ForeignDevice: "), "{status:?}");
    assert_eq!(shell("dmsetup table; dmsetup info -c --noheadings"), table);
    assert_eq!(volume.fingerprint(), before);
    shell(&format!("dmsetup remove {}", volume.mapper_name()));
    volume.stage(&scene);
    finish(scene, &volume);
}

#[test]
fn a_crash_after_the_seal_is_promoted_and_not_formatted_again() {
    let scene = Scene::new();
    let volume = Volume::create(&scene, "promoted", Kind::Ext4);
    volume.stage(&scene);
    fs::write(volume.file("file"), "text").expect("written");
    volume.unstage(&scene);
    let uuid = shell(&format!("dd if={} bs=1 skip=168 count=36 status=none", volume.backing().display()));
    let record = fs::read(volume.record()).expect("the record");
    fs::write(volume.record(), unfinished(&record, "Formatting")).expect("written");

    volume.stage(&scene);
    assert_eq!(volume.state(), "Ready");
    assert_eq!(fs::read_to_string(volume.file("file")).expect("not formatted again"), "text");
    assert_eq!(shell(&format!("dd if={} bs=1 skip=168 count=36 status=none", volume.backing().display())), uuid);
    finish(scene, &volume);
}
