//! A pool never promises more than it can keep, and survives being full.

use std::fs::File;
use std::io::Write;
use std::thread;

use tonic::Code;

use crate::driver::Kind;
use crate::scene::Scene;
use crate::scene::shell;
use crate::volume::Volume;

const EACH_BYTES: i64 = 100 << 20;

#[test]
fn twenty_creations_at_once_get_exactly_what_was_promised_and_can_be_filled() {
    let mut scene = Scene::with_pool_of("1G");
    // Other tests make the kernel complain.
    shell("echo twenty creations begin >/dev/kmsg");
    let promised = scene.driver().capacity().expect("a capacity").available_capacity / EACH_BYTES;
    assert!((5..=9).contains(&promised), "{promised} volumes on 1 GiB");

    let driver = scene.driver();
    let answers: Vec<_> = thread::scope(|scope| {
        let create = |number| move || driver.create(&format!("crowd-{number}"), EACH_BYTES, Kind::Ext4);
        let threads: Vec<_> = (0..20).map(|number| scope.spawn(create(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    let made: Vec<String> = made.into_iter().flatten().map(|volume| volume.volume_id).collect();
    assert_eq!(i64::try_from(made.len()), Ok(promised));
    for status in refused.into_iter().map(|answer| answer.expect_err("refused")) {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().starts_with("NoSpace: "), "{status:?}");
    }

    scene.restart_driver();
    let status = scene.driver().create("one-more", EACH_BYTES, Kind::Ext4).expect_err("promised already");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");

    for id in &made {
        scene.driver().stage(id, Kind::Ext4).expect("staged");
        fill(&crate::driver::staging_path(id).join("fill"));
    }
    shell("sync");
    let since = "dmesg | sed -n '/twenty creations begin/,$p'";
    assert_eq!(shell(&format!("{since} | grep -E 'I/O error|EXT4-fs error|lost async page' || true")), "");
    for id in &made {
        scene.driver().unstage(id).expect("unstaged");
        scene.driver().delete(id).expect("deleted");
    }
    scene.end();
}

/// Writes random bytes until the volume is full, and expects that every one of them reaches the disk.
fn fill(path: &std::path::Path) {
    let mut file = File::create(path).expect("created");
    let mut random = File::open("/dev/urandom").expect("random bytes");
    let mut buffer = vec![0; 1 << 20];
    loop {
        std::io::Read::read_exact(&mut random, &mut buffer).expect("random bytes");
        match file.write_all(&buffer) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
            Err(error) => panic!("{error}"),
        }
    }
    file.sync_all().expect("no I/O error");
}

#[test]
fn a_full_pool_stops_a_format_and_room_lets_it_finish() {
    let scene = Scene::with_pool_of("256M");
    let volume = Volume::create(&scene, "no-room", Kind::Ext4);
    // Somebody else fills the disk: what was promised is no longer there.
    let ballast = scene.pool().with_file_name("ballast");
    let path = ballast.display();
    shell(&format!("dd if=/dev/zero of={path} bs=64k status=none || true; sync {path}; truncate -s -1M {path}"));

    let status = scene.driver().stage(&volume.id, volume.kind).expect_err("there is no room");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().starts_with("NoSpace: "), "{status:?}");
    assert_eq!(volume.state(), "Formatting");

    shell(&format!("rm {}", ballast.display()));
    volume.stage(&scene);
    assert_eq!(volume.state(), "Ready");
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_pool_whose_disk_is_not_mounted_is_not_an_empty_pool() {
    let mut scene = Scene::new();
    let volume = Volume::create_staged(&scene, "away", Kind::Ext4);
    volume.unstage(&scene);
    let directory = scene.pool().to_owned();
    let mount = directory.parent().expect("a mount point").to_owned();
    shell(&format!("umount {0} && mkdir {1}", mount.display(), directory.display()));
    for start_again in [false, true] {
        if start_again {
            scene.restart_driver();
        }
        let capacity = scene.driver().capacity().expect("an answer");
        assert_eq!(capacity.available_capacity, 0);
        for status in [
            scene.driver().create("new", 16 << 20, Kind::Ext4).expect_err("no pool"),
            scene.driver().stage(&volume.id, volume.kind).expect_err("no pool"),
            scene.driver().delete(&volume.id).expect_err("no pool"),
        ] {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert!(status.message().starts_with("PoolMissing: "), "{status:?}");
        }
        scene.driver().unstage(&volume.id).expect("nothing is staged");
    }
    assert_eq!(std::fs::read_dir(&directory).expect("the directory").count(), 0, "something was made there");
    shell(&format!("rmdir {1} && mount /dev/vdb {0}", mount.display(), directory.display()));
    volume.stage(&scene);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}
