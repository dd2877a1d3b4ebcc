//! What is not the header: a kernel that keeps no keys, and a filesystem of another type inside the volume.

use std::fs::File;
use std::os::unix::fs::FileExt;

use coffer::volume::DATA_OFFSET_BYTES;

use crate::driver::Kind;
use crate::scene::Scene;
use crate::scene::shell;
use crate::strace::Strace;
use crate::volume::Volume;

#[test]
fn a_blocked_kernel_keyring_is_refused_and_no_key_is_in_a_table() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "keyring", Kind::Ext4);
    volume.unstage(&scene);
    let calls = "add_key,keyctl,request_key";
    // What a container's seccomp profile answers, and what a kernel without keyrings does.
    for errno in ["EPERM", "ENOSYS"] {
        let inject = format!("inject={calls}:error={errno}");
        let strace = Strace::attach(scene.driver().pid(), &["-e", &format!("trace={calls}"), "-e", &inject]);
        let status = volume.stage_is_refused(&scene, "Internal");
        strace.detach();
        assert!(status.message().contains("add_key"), "{errno}: {status:?}");
    }
    volume.stage(&scene);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

/// Makes `make` run on what is inside the volume, which is at rest, past the driver.
fn inside(scene: &Scene, volume: &Volume, make: &str) {
    let key = "/run/inside-passphrase";
    std::fs::write(key, scene.broker.passphrase(&volume.id).expose()).expect("in memory");
    shell(&format!(
        "cryptsetup open --key-file {key} {} inside; rm {key}; {make}; cryptsetup close inside",
        volume.backing().display()
    ));
}

#[test]
fn a_filesystem_of_another_type_is_refused_and_not_repaired() {
    let scene = Scene::new();
    for (kind, make) in [
        (
            Kind::Ext4,
            "truncate -s 300M /tmp/xfs && mkfs.xfs -q /tmp/xfs && dd if=/tmp/xfs of=/dev/mapper/inside bs=64K count=1 \
                      oflag=direct status=none; rm /tmp/xfs",
        ),
        (Kind::Xfs, "mkfs.ext4 -q -F /dev/mapper/inside"),
        (Kind::Xfs, "dd if=/dev/zero of=/dev/mapper/inside bs=64K count=1 oflag=direct status=none"),
    ] {
        let volume = Volume::create_staged(&scene, "inside", kind);
        volume.unstage(&scene);
        inside(&scene, &volume, make);
        let front = || {
            let mut front = vec![0; 64 << 10];
            let image = File::open(volume.backing()).expect("the backing");
            image.read_exact_at(&mut front, DATA_OFFSET_BYTES).expect("readable");
            front
        };
        let before = front();
        let status = scene.driver().stage(&volume.id, kind).expect_err("refused");
        assert!(status.message().starts_with("FilesystemDamaged: "), "{kind:?}, {make}: {status:?}");
        volume.stage_leaves_nothing();
        assert!(front() == before, "what is there stays");
        volume.delete(&scene);
    }
    scene.end();
}
