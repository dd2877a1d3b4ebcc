//! A power cut in two halves: between them the rig kills the machine and boots it again from the same disks and TPM.

use std::fs;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::driver::Kind;
use crate::scene::Scene;
use crate::volume::Volume;
use crate::volume::needle;

const KINDS: [Kind; 3] = [Kind::Ext4, Kind::Xfs, Kind::Block];
/// What the second half must find, on the system disk.
const NOTES: &str = "/var/lib/before-the-power-cut";
/// Where a raw volume keeps its needle.
const OFFSET_BYTES: u64 = 1 << 20;

#[test]
#[ignore = "the rig runs it before it cuts the power"]
fn before_the_power_cut() {
    let scene = Scene::new();
    fs::create_dir_all(NOTES).expect("a directory");
    for kind in KINDS {
        let volume = Volume::create_staged(&scene, &format!("power-{kind:?}"), kind);
        let needle = needle();
        match kind {
            Kind::Block => {
                let device = File::options().write(true).open(volume.mapper()).expect("opens");
                device.write_all_at(&needle, OFFSET_BYTES).and_then(|()| device.sync_all()).expect("written");
            }
            Kind::Ext4 | Kind::Xfs => {
                keep(&volume.file("acknowledged"), &needle);
                // Nobody was promised that this is there afterwards; the file system must survive it.
                fs::write(volume.file("not-yet"), vec![1; 4 << 20]).expect("written");
            }
        }
        keep(&Path::new(NOTES).join(format!("{kind:?}")), &[volume.id.as_bytes(), b" ", &needle].concat());
    }
    // The driver and its mounts are there when the power goes.
    std::mem::forget(scene);
}

#[test]
#[ignore = "the rig runs it after it has cut the power"]
fn after_the_power_cut() {
    let scene = Scene::after_a_power_cut();
    for kind in KINDS {
        let note = fs::read(Path::new(NOTES).join(format!("{kind:?}"))).expect("the first half ran");
        let (id, needle) = note.split_at(note.iter().position(|byte| *byte == b' ').expect("two words"));
        let volume = Volume::existing(&scene, str::from_utf8(id).expect("an id"), kind);
        assert_eq!(volume.in_kernel(), "", "the machine did not lose its power");
        let releases = scene.broker.releases();
        volume.stage(&scene);
        assert_eq!(scene.broker.releases(), releases + 1, "a stage without a new attestation");
        let mut found = vec![0; needle.len() - 1];
        let file = if kind == Kind::Block { volume.mapper() } else { volume.file("acknowledged") };
        let offset_bytes = if kind == Kind::Block { OFFSET_BYTES } else { 0 };
        File::open(file).and_then(|file| file.read_exact_at(&mut found, offset_bytes)).expect("readable");
        assert_eq!(found, needle[1..], "{kind:?} lost what was synced");
        volume.unstage(&scene);
    }
    scene.end();
}

fn keep(path: &Path, data: &[u8]) {
    let written = File::create(path).and_then(|mut file| file.write_all(data).and_then(|()| file.sync_all()));
    written.expect("written and synced");
}
