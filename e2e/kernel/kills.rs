//! Killed at every step: the driver dies at each of its system calls that change anything, and the next call, of a
//! driver that was started again, finishes the work.
//!
//! strace counts per thread and per system call, and so do we: `ioctl` number 3 of a thread is one point.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use crate::driver::Kind;
use crate::scene::Scene;
use crate::scene::shell;
use crate::volume::Volume;

/// The system calls that change the kernel's state or a file's.
const CALLS: &str = "ioctl,pwrite64,pwritev,pwritev2,fsync,fdatasync,rename,renameat,renameat2,mount,move_mount,umount2,\
                     unlink,unlinkat,rmdir,mkdir,mkdirat,fallocate,ftruncate";
const TRACE: &str = "/tmp/kills";
/// Without `COFFER_SOAK` every so many-th point is tried.
const SAMPLE: usize = 8;
/// A killed driver is dead at once; one that was not hit answers the call instead.
const PATIENCE: Duration = Duration::from_secs(5);

/// strace on a running driver. Programs that the driver starts are left alone.
struct Strace(Child);

impl Strace {
    fn attach(pid: u32, arguments: &[&str]) -> Self {
        let child = Command::new("strace")
            .args(["-f", "-b", "execve", "-qq", "-e", "signal=none", "-o", TRACE, "-p", &pid.to_string()])
            .args(arguments)
            .stderr(Stdio::null())
            .spawn()
            .expect("strace starts");
        let start = Instant::now();
        while !all_threads_are_traced(pid) {
            assert!(start.elapsed() < Duration::from_secs(30), "strace does not attach");
        }
        Self(child)
    }

    fn detach(mut self) {
        shell(&format!("kill -INT {} || true", self.0.id()));
        self.0.wait().expect("strace ends");
    }
}

fn all_threads_are_traced(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    })
}

/// How often each system call is made by the thread that makes it most, and how many calls there are in all.
fn points(trace: &str) -> (Vec<(String, usize)>, usize) {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in trace.lines() {
        let mut words = line.splitn(2, ' ');
        let (Some(thread), Some(call)) = (words.next(), words.next()) else { continue };
        if let Some((name, _)) = call.trim_start().split_once('(')
            && CALLS.split(',').any(|known| known == name)
        {
            *counts.entry((name.to_owned(), thread.to_owned())).or_default() += 1;
        }
    }
    let mut most: BTreeMap<String, usize> = BTreeMap::new();
    for ((name, _), count) in &counts {
        let known = most.entry(name.clone()).or_default();
        *known = (*known).max(*count);
    }
    let points = most.into_iter().flat_map(|(name, count)| (1..=count).map(move |number| (name.clone(), number)));
    (points.collect(), counts.values().sum())
}

/// Kills the driver at every point of `act`, for which `prepare` makes a new volume each time, and expects that
/// `act` then succeeds and that nothing is left after the volume's deletion.
fn killed_at_every_step(
    what: &str,
    prepare: impl Fn(&Scene, &str) -> Volume,
    act: impl Fn(&Scene, &Volume) -> Result<(), tonic::Status>,
) {
    let mut scene = Scene::new();
    // What a process does only once is not a point: each driver that is killed has done the same before.
    let volume = prepare(&scene, "first");
    act(&scene, &volume).expect("nobody is killed yet");
    finish(&scene, &volume);
    let volume = prepare(&scene, "count");
    let strace = Strace::attach(scene.driver().pid(), &["-e", &format!("trace={CALLS}")]);
    act(&scene, &volume).expect("nobody is killed yet");
    strace.detach();
    finish(&scene, &volume);
    let trace = fs::read_to_string(TRACE).expect("strace wrote");
    fs::copy(TRACE, Path::new("/log").join(format!("kills-{what}.trace"))).expect("copied");
    let (points, calls) = points(&trace);
    assert!(!points.is_empty(), "{what} makes no system call that counts");

    let step = if std::env::var_os("COFFER_SOAK").is_some() { 1 } else { SAMPLE };
    let (mut kills, mut missed) = (0, Vec::new());
    for (number, (call, when)) in points.iter().enumerate().step_by(step) {
        let volume = prepare(&scene, &format!("{what}-{number}"));
        let inject = format!("inject={call}:signal=KILL:when={when}");
        let strace = Strace::attach(scene.driver().pid(), &["-e", &format!("trace={call}"), "-e", &inject]);
        let answer = act(&scene, &volume);
        let start = Instant::now();
        while answer.is_err() && !scene.driver_is_dead() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
        if scene.driver_is_dead() {
            kills += 1
        } else {
            missed.push(format!("{call} number {when}: {answer:?}"))
        }
        strace.detach();
        scene.restart_driver();
        act(&scene, &volume).unwrap_or_else(|status| panic!("after a kill at {call} number {when}: {status:?}"));
        finish(&scene, &volume);
        let changes = scene.changes();
        assert!(changes.is_empty(), "after a kill at {call} number {when}:\n{}", changes.join("\n"));
    }
    println!("{what}: {kills} kills at {} points of {calls} calls", points.len());
    assert!(missed.is_empty(), "not reached:\n{}", missed.join("\n"));
    scene.end();
}

fn finish(scene: &Scene, volume: &Volume) {
    volume.unstage(scene);
    volume.delete(scene);
}

#[test]
fn a_first_stage_killed_at_every_step_converges() {
    killed_at_every_step(
        "first-stage",
        |scene, name| Volume::create(scene, name, Kind::Ext4),
        |scene, volume| scene.driver().stage(&volume.id, volume.kind),
    );
}

#[test]
fn a_restage_killed_at_every_step_converges() {
    killed_at_every_step(
        "restage",
        |scene, name| {
            let volume = Volume::create_staged(scene, name, Kind::Ext4);
            volume.unstage(scene);
            volume
        },
        |scene, volume| scene.driver().stage(&volume.id, volume.kind),
    );
}

#[test]
fn an_unstage_killed_at_every_step_converges() {
    killed_at_every_step(
        "unstage",
        |scene, name| Volume::create_staged(scene, name, Kind::Ext4),
        |scene, volume| scene.driver().unstage(&volume.id),
    );
}

#[test]
fn a_deletion_killed_at_every_step_converges() {
    killed_at_every_step(
        "delete",
        |scene, name| {
            let volume = Volume::create_staged(scene, name, Kind::Ext4);
            volume.unstage(scene);
            volume
        },
        |scene, volume| scene.driver().delete(&volume.id),
    );
}
