//! What was put back to an earlier state. Some of it nobody can notice; the tests show that `docs/tampering.md` says
//! truly what.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;

use coffer::volume::DATA_OFFSET_BYTES;
use serde_json::Value;

use super::FRONT_BYTES;
use super::Subject;
use crate::driver::Kind;
use crate::listening::EILSEQ;
use crate::listening::read_sector as read_direct;
use crate::scene::Scene;
use crate::scene::shell;
use crate::volume::SMALL_BYTES;
use crate::volume::Volume;
use crate::volume::unfinished;

const SECTOR_BYTES: usize = 4096;
/// Where dm-integrity's journal begins, behind its superblock.
const JOURNAL: usize = FRONT_BYTES + SECTOR_BYTES;
/// One of the 62 sections of the journal: a block of entries, and 32 blocks of data.
const SECTION_BYTES: usize = (1 + 32) * SECTOR_BYTES;
const BEHIND_JOURNAL: usize = JOURNAL + 62 * SECTION_BYTES;

fn write_sector(volume: &Volume, fill: u8) {
    let device = volume.mapper();
    let file = File::options().write(true).open(&device).expect("the device");
    file.write_all_at(&[fill; SECTOR_BYTES], 3 * SECTOR_BYTES as u64).and_then(|()| file.sync_all()).expect("durable");
}

fn read_sector(volume: &Volume) -> Vec<u8> {
    let mut sector = vec![0; SECTOR_BYTES];
    let file = File::open(volume.mapper()).expect("the device");
    file.read_exact_at(&mut sector, 3 * SECTOR_BYTES as u64).expect("readable");
    sector
}

#[test]
fn an_old_sector_comes_back_unnoticed_where_there_is_no_integrity() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "sector", Kind::Block);
    let offset = DATA_OFFSET_BYTES + 3 * SECTOR_BYTES as u64;
    write_sector(&volume, b'A');
    volume.unstage(&scene);
    let mut old = vec![0; SECTOR_BYTES];
    let image = File::options().read(true).write(true).open(volume.backing()).expect("the backing");
    image.read_exact_at(&mut old, offset).expect("readable");
    volume.stage(&scene);
    write_sector(&volume, b'B');
    volume.unstage(&scene);

    image.write_all_at(&old, offset).expect("put back");
    volume.stage(&scene);
    assert!(read_sector(&volume) == [b'A'; SECTOR_BYTES], "what was overwritten is there again");
    volume.unstage(&scene);
    image.write_all_at(&[0; 16], offset).expect("changed");
    volume.stage(&scene);
    let noise = read_sector(&volume);
    assert!(noise[..16].iter().any(|byte| *byte != b'A'), "a changed sector is noise");
    assert!(noise[16..] == [b'A'; SECTOR_BYTES - 16], "in the cipher's block alone, and no error");
    drop(image);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

/// A volume with tags in which `B` was written over `A`, still open, and its backing from before that.
fn rewritten(scene: &Scene, name: &str) -> (Volume, Vec<u8>) {
    let volume = Volume::create_in(scene, &[("profile", "aead-1")], name, Kind::Block);
    volume.stage(scene);
    write_sector(&volume, b'A');
    volume.unstage(scene);
    let old = fs::read(volume.backing()).expect("the backing");
    volume.stage(scene);
    write_sector(&volume, b'B');
    (volume, old)
}

#[test]
fn an_old_sector_comes_back_unnoticed_with_its_old_tag() {
    let scene = Scene::new();
    let (volume, old) = rewritten(&scene, "tagged");
    volume.unstage(&scene);

    // The sector and its tag, and not the journal: nothing but them has changed behind it.
    let new = fs::read(volume.backing()).expect("the backing");
    let image = File::options().write(true).open(volume.backing()).expect("the backing");
    let differs =
        |block: &usize| old[block * SECTOR_BYTES..][..SECTOR_BYTES] != new[block * SECTOR_BYTES..][..SECTOR_BYTES];
    let blocks: Vec<_> = (BEHIND_JOURNAL / SECTOR_BYTES..old.len() / SECTOR_BYTES).filter(differs).collect();
    assert_eq!(blocks.len(), 2, "the sector and its tag");
    for block in &blocks {
        let at = block * SECTOR_BYTES;
        image.write_all_at(&old[at..][..SECTOR_BYTES], at as u64).expect("put back");
    }
    drop(image);
    volume.stage(&scene);
    assert!(read_sector(&volume) == [b'A'; SECTOR_BYTES], "what was overwritten is there again");
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_changed_journal_is_an_error_for_its_reader_and_an_older_one_takes_back_what_was_written_last() {
    let mut scene = Scene::new();
    scene.tampers();
    let (volume, old) = rewritten(&scene, "journal");
    // As a power cut leaves it: what was written last is in the journal alone.
    let cut = fs::read(volume.backing()).expect("the backing");
    volume.unstage(&scene);

    let opened_with = |journal: &[u8]| {
        let image = [&cut[..JOURNAL], journal, &cut[BEHIND_JOURNAL..]].concat();
        fs::write(volume.backing(), image).expect("written");
        volume.stage(&scene);
        let read = read_direct(&volume.mapper(), 3);
        volume.unstage(&scene);
        read.map_err(|error| error.raw_os_error())
    };
    let journal = &cut[JOURNAL..BEHIND_JOURNAL];
    assert_eq!(opened_with(journal), Ok(vec![b'B'; SECTOR_BYTES]));
    let mut changed = journal.to_vec();
    for section in changed.chunks_mut(SECTION_BYTES) {
        section[SECTOR_BYTES..].iter_mut().step_by(SECTOR_BYTES).for_each(|byte| *byte ^= 1);
    }
    assert_eq!(opened_with(&changed), Err(Some(EILSEQ)));
    assert_eq!(opened_with(&old[JOURNAL..BEHIND_JOURNAL]), Ok(vec![b'A'; SECTOR_BYTES]));
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_whole_volume_put_back_with_its_record_opens_as_it_was() {
    let scene = Scene::new();
    let subject = Subject::new(&scene, "whole");
    subject.volume.stage(&scene);
    fs::write(subject.volume.file("file"), "newer").expect("written");
    subject.volume.unstage(&scene);
    subject.write(&[(0, subject.backing.clone())], Some(&subject.record));
    subject.volume.stage(&scene);
    assert_eq!(subject.opened().expect("the file is there"), "opens", "it says what it said before");
    subject.volume.delete(&scene);
    scene.end();
}

#[test]
fn a_record_put_back_formats_no_volume_whose_header_is_there() {
    let scene = Scene::new();
    let subject = Subject::new(&scene, "promoted");
    let front = vec![(0, subject.backing[..FRONT_BYTES].to_vec())];
    for state in ["Declared", "Formatting"] {
        // A valid seal means that everything is complete.
        subject.write(&front, Some(&unfinished(&subject.record, state)));
        subject.volume.stage(&scene);
        assert_eq!((subject.volume.state().as_str(), subject.opened()), ("Ready", Ok("opens".into())), "{state}");
        // Also with the state changed alone.
        let text = String::from_utf8(subject.record.clone()).expect("text").replace("Ready", state);
        subject.write(&front, Some(&text.into_bytes()));
        subject.volume.stage(&scene);
        assert_eq!((subject.volume.state().as_str(), subject.opened()), ("Ready", Ok("opens".into())), "{state}");
        // What is there and cannot be read as ours vetoes the format.
        subject.write(&[(0, vec![0xff; FRONT_BYTES])], Some(&unfinished(&subject.record, state)));
        subject.volume.stage_is_refused(&scene, "NotBlank");
    }
    // A declared volume was never written to: data anywhere vetoes.
    subject.write(&[(0, vec![0; FRONT_BYTES])], Some(&unfinished(&subject.record, "Declared")));
    subject.volume.stage_is_refused(&scene, "NotBlank");
    subject.write(&front, Some(&subject.record));
    subject.volume.stage(&scene);
    subject.opened().expect("the file is there");
    subject.volume.delete(&scene);
    scene.end();
}

#[test]
fn a_record_put_back_is_believed_about_the_size() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "size", Kind::Block);
    volume.unstage(&scene);
    let ready = fs::read(volume.record()).expect("the record");
    let size = || shell(&format!("blockdev --getsize64 {}", volume.mapper().display()));
    let mut record: Value = serde_json::from_slice(&unfinished(&ready, "Formatting")).expect("JSON");
    record["payload_bytes"] = (SMALL_BYTES / 2).into();
    for (record, bytes) in [(record.to_string().into_bytes(), SMALL_BYTES / 2), (ready, SMALL_BYTES)] {
        fs::write(volume.record(), record).expect("written");
        volume.stage(&scene);
        assert_eq!(size().trim(), bytes.to_string());
        volume.unstage(&scene);
    }
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_record_put_back_and_a_spoiled_header_make_an_empty_volume_on_a_machine_alone() {
    let scene = Scene::new();
    for (name, state) in [("declared", "Declared"), ("blank", "Formatting"), ("spoiled", "Formatting")] {
        let subject = Subject::new(&scene, name);
        let mut front = vec![0; FRONT_BYTES];
        if name == "spoiled" {
            front.copy_from_slice(&subject.backing[..FRONT_BYTES]);
            front[40_000] ^= 1;
        }
        subject.write(&[(0, front)], Some(&unfinished(&subject.record, state)));
        if state == "Declared" {
            let (length, image) = (subject.backing.len(), subject.volume.backing());
            shell(&format!("fallocate --punch-hole --offset 0 --length {length} {}", image.display()));
        }
        subject.volume.stage(&scene);
        assert!(!subject.volume.file("file").exists(), "the limit that is stated: a new and empty volume");
        subject.volume.unstage(&scene);
        subject.volume.delete(&scene);
    }
    scene.end();
}
