//! What a pod gets to see.

use std::fs;
use std::os::unix::fs::FileTypeExt;

use crate::driver::Access;
use crate::driver::Kind;
use crate::scene::Scene;
use crate::scene::shell;
use crate::volume::Volume;

#[test]
fn a_pod_reads_and_writes_what_another_pod_may_only_read() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "shared", Kind::Ext4);
    let writer = scene.driver().publish(&volume.id, volume.kind, "writer", Access::ReadWrite).expect("published");
    let reader = scene.driver().publish(&volume.id, volume.kind, "reader", Access::ReadOnly).expect("published");
    fs::write(writer.join("file"), "text").expect("written");
    assert_eq!(fs::read_to_string(reader.join("file")).expect("read"), "text");
    let refused = fs::write(reader.join("file"), "other").expect_err("the mount is read-only");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    // The same call again changes nothing.
    let mounts = fs::read_to_string("/proc/1/mountinfo").expect("mounts");
    scene.driver().publish(&volume.id, volume.kind, "reader", Access::ReadOnly).expect("published");
    assert_eq!(fs::read_to_string("/proc/1/mountinfo").expect("mounts"), mounts);

    for pod in ["writer", "reader"] {
        scene.driver().unpublish(&volume.id, pod).expect("unpublished");
    }
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_pod_gets_a_block_device_that_is_the_mapper() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "device", Kind::Block);
    let target = scene.driver().publish(&volume.id, volume.kind, "pod", Access::ReadWrite).expect("published");
    assert!(fs::metadata(&target).expect("there").file_type().is_block_device());
    let bytes = shell(&format!("blockdev --getsize64 {}", target.display()));
    assert_eq!(bytes.trim(), crate::volume::SMALL_BYTES.to_string());
    shell(&format!("echo needle | dd of={} bs=4096 conv=sync oflag=direct status=none", target.display()));
    scene.driver().unpublish(&volume.id, "pod").expect("unpublished");
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_volume_that_a_pod_still_uses_is_not_unstaged() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "in-use", Kind::Ext4);
    let target = scene.driver().publish(&volume.id, volume.kind, "pod", Access::ReadWrite).expect("published");
    scene.driver().unstage(&volume.id).expect_err("still published");
    fs::write(target.join("file"), "text").expect("the pod goes on");
    scene.driver().unpublish(&volume.id, "pod").expect("unpublished");
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}
