//! The oldest libcryptsetup that is supported, Debian 12's 2.6.1, on the same kernel: it opens what it should, and what
//! it would accept by itself is refused before it sees it.

use std::fs;

use super::Answer;
use super::OLDER_LIBRARIES;
use super::Stock;
use super::Subject;
use super::attacks;
use crate::driver::Kind;
use crate::scene::Scene;
use crate::scene::shell;
use crate::volume::Volume;
use crate::volume::needle;
use crate::volume::occurrences;

/// The version that the driver says it runs with, last.
fn version_in_log(scene: &Scene) -> String {
    let log = fs::read_to_string(scene.log()).expect("the driver logs");
    let line = log.lines().rfind(|line| line.contains("libcryptsetup version=")).expect("the version is logged");
    line.split('"').nth(1).expect("in quotation marks").to_owned()
}

#[test]
fn the_log_names_the_libcryptsetup_that_runs() {
    let mut scene = Scene::new();
    let [older, nodes] = Stock::versions();
    assert_ne!(older, nodes);
    assert_eq!(version_in_log(&scene), nodes);
    scene.options().libraries = Some(OLDER_LIBRARIES);
    scene.restart_driver();
    assert_eq!(version_in_log(&scene), older);
    scene.end();
}

#[test]
fn volumes_are_made_opened_and_refused_alike_with_the_older_library() {
    let mut scene = Scene::new();
    let newer = Volume::create_staged(&scene, "newer", Kind::Ext4);
    fs::write(newer.file("file"), "text").expect("written");
    newer.unstage(&scene);
    scene.options().libraries = Some(OLDER_LIBRARIES);
    scene.restart_driver();
    let [older, _] = Stock::versions();
    println!("libcryptsetup {older}");
    assert_eq!(version_in_log(&scene), older);

    // Made by the one, opened by the other, and the reverse.
    newer.stage(&scene);
    assert_eq!(fs::read_to_string(newer.file("file")).expect("the file is there"), "text");
    newer.unstage(&scene);
    newer.delete(&scene);
    for (profile, kind, crypt) in [
        ("xts-1", Kind::Ext4, "aes-xts-plain64 :64:logon:"),
        ("xts-1", Kind::Xfs, "aes-xts-plain64 :64:logon:"),
        ("xts-1", Kind::Block, "aes-xts-plain64 :64:logon:"),
        ("aead-1", Kind::Ext4, "capi:authenc(hmac(sha256),xts(aes))-plain64 :96:logon:"),
        ("aead-1", Kind::Block, "capi:authenc(hmac(sha256),xts(aes))-plain64 :96:logon:"),
    ] {
        let volume = Volume::create_in(&scene, &[("profile", profile)], "older", kind);
        volume.stage(&scene);
        let table = shell(&format!("dmsetup table {}", volume.mapper_name()));
        assert!(table.contains(crypt), "{table}");
        volume.unstage(&scene);
        volume.stage(&scene);
        volume.unstage(&scene);
        volume.delete(&scene);
    }
    let subject_of_both = Volume::create_staged(&scene, "both", Kind::Ext4);
    let needle = needle();
    fs::write(subject_of_both.file("needle"), &needle).expect("written");
    subject_of_both.unstage(&scene);
    assert_eq!(occurrences(&subject_of_both.backing(), &needle), 0, "plaintext below the volume");

    let mut subject = Subject::new(&scene, "attacked");
    let cases = attacks::alone(&subject.header());
    let matter = |name: &str| name.starts_with("A1") || name.starts_with("A2");
    for case in cases.iter().filter(|case| matter(&case.name) || case.answer == Answer::Opens) {
        subject.answer(case).unwrap_or_else(|failure| panic!("{}: {failure}", case.name));
    }
    subject.volume.delete(&scene);

    scene.options().libraries = None;
    scene.restart_driver();
    subject_of_both.stage(&scene);
    assert_eq!(fs::read(subject_of_both.file("needle")).expect("the file is there"), needle);
    subject_of_both.unstage(&scene);
    subject_of_both.delete(&scene);
    scene.end();
}
