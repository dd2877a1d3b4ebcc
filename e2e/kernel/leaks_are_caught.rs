//! A leak check that never fails proves nothing: here one of each kind is leaked on purpose.

use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::time::Instant;

use crate::driver::KUBELET;
use crate::driver::SOCKET;
use crate::scene::Scene;
use crate::scene::shell;

#[test]
fn one_leak_of_each_kind_is_caught() {
    let scene = Scene::new();
    let pool = scene.pool().display();
    for (kind, leak, repair) in [
        ("+ pool", format!("touch {pool}/left"), format!("rm {pool}/left")),
        ("+ kubelet", format!("mkdir {KUBELET}/pods/left"), format!("rmdir {KUBELET}/pods/left")),
        ("+ mount", "mount -t tmpfs left /mnt".into(), "umount /mnt".into()),
        ("+ dm left", "dmsetup create left --table '0 8 zero'".into(), "dmsetup remove left".into()),
        (
            "+ loop on /tmp/left",
            "truncate -s 1M /tmp/left; losetup -f /tmp/left".into(),
            "losetup -D; udevadm settle; rm /tmp/left".into(),
        ),
    ] {
        shell(&leak);
        let changes = scene.changes();
        shell(&repair);
        assert!(changes.iter().any(|change| change.starts_with(kind)), "{leak} was not caught: {changes:?}");
        assert_eq!(scene.changes(), Vec::<String>::new(), "{repair} did not help");
    }
    // A connection that nobody closes is a descriptor that the driver keeps.
    let connection = UnixStream::connect(SOCKET).expect("the driver listens");
    let start = Instant::now();
    while !scene.changes().iter().any(|change| change.starts_with("+ descriptor socket")) {
        assert!(start.elapsed() < Duration::from_secs(10), "a kept connection was not caught");
    }
    drop(connection);
    scene.end();
}
