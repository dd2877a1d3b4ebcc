//! Many calls at once, and callers that do not wait.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use tonic::Code;
use tonic::Status;

use crate::driver::Kind;
use crate::scene::Scene;
use crate::volume::Volume;

/// How long a kubelet would go on.
const PATIENCE: Duration = Duration::from_secs(400);

/// Calls again while the answer is ABORTED or did not come in time, as the kubelet does.
fn insist(mut call: impl FnMut() -> Result<(), Status>) {
    let start = Instant::now();
    loop {
        match call() {
            Ok(()) => return,
            Err(status) => {
                let again = matches!(status.code(), Code::Aborted | Code::DeadlineExceeded | Code::Cancelled);
                assert!(again && start.elapsed() < PATIENCE, "{status:?}");
                thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

#[test]
fn two_stages_of_one_volume_at_once_both_succeed() {
    let scene = Scene::new();
    let volume = Volume::create(&scene, "pair", Kind::Ext4);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| insist(|| scene.driver().stage(&volume.id, volume.kind)));
        }
    });
    let mounts = std::fs::read_to_string("/proc/1/mountinfo").expect("mounts");
    assert_eq!(mounts.lines().filter(|line| line.contains(&volume.id)).count(), 1, "mounted once");
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn fifty_volumes_are_staged_at_once() {
    let scene = Scene::new();
    let driver = scene.driver();
    let ids: Vec<String> = (0..50)
        .map(|number| driver.create(&format!("crowd-{number}"), 16 << 20, Kind::Ext4).expect("created").volume_id)
        .collect();
    let all = |call: &(dyn Fn(&str) -> Result<(), Status> + Sync)| {
        thread::scope(|scope| {
            for id in &ids {
                scope.spawn(move || insist(|| call(id)));
            }
        });
    };
    all(&|id| driver.stage(id, Kind::Ext4));
    let mounts = std::fs::read_to_string("/proc/1/mountinfo").expect("mounts");
    assert_eq!(mounts.lines().filter(|line| line.contains("globalmount")).count(), 50);
    all(&|id| driver.unstage(id));
    all(&|id| driver.delete(id));
    scene.end();
}

#[test]
fn a_deletion_that_races_the_unstage_waits_for_it() {
    let scene = Scene::new();
    let volume = Volume::create_staged(&scene, "race", Kind::Ext4);
    thread::scope(|scope| {
        scope.spawn(|| insist(|| scene.driver().delete(&volume.id)));
        scope.spawn(|| insist(|| scene.driver().unstage(&volume.id)));
    });
    assert!(!volume.record().exists());
    scene.end();
}

#[test]
fn work_goes_on_when_the_caller_gives_up() {
    let scene = Scene::new();
    let volume = Volume::create(&scene, "impatient", Kind::Ext4);
    let gave_up = scene.driver().stage_within(&volume.id, volume.kind, Duration::from_millis(150));
    // The client's own clock says Cancelled, a deadline that the server sees DeadlineExceeded.
    let gave_up = gave_up.expect_err("a stage takes longer").code();
    assert!(matches!(gave_up, Code::Cancelled | Code::DeadlineExceeded), "{gave_up:?}");
    let second = scene.driver().stage(&volume.id, volume.kind).expect_err("the first still runs");
    assert_eq!(second.code(), Code::Aborted, "{second:?}");
    assert!(second.message().starts_with("OperationPending: "), "{second:?}");
    let releases = scene.broker.releases();
    insist(|| scene.driver().stage(&volume.id, volume.kind));
    assert!(scene.broker.releases() <= releases + 1, "the work was done twice");
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}
