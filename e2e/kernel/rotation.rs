//! A volume moves to another secret while it is written to, and what is left of the old one.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;

use sha2::Digest;
use sha2::Sha256;

use crate::broker::KEY_URI;
use crate::broker::NEXT_KEY_URI;
use crate::driver::Kind;
use crate::scene::Scene;
use crate::scene::shell;
use crate::scene::wait_until;
use crate::volume::Volume;

/// What one write of the writer is.
const BLOCK_BYTES: usize = 64 << 10;
/// How many blocks the writer goes through, again and again.
const BLOCKS: usize = 64;

/// A KBS with a second secret.
#[track_caller]
fn scene() -> Scene {
    let scene = Scene::new();
    scene.broker.offer_next();
    scene
}

/// `coffer volume rotate` beside the driver, which begins when it is let go.
pub(crate) struct Rotation {
    program: Child,
    errors: Vec<u8>,
}

impl Rotation {
    /// Started, and waiting.
    pub(crate) fn held(scene: &Scene, volume: &Volume, to: &str) -> Self {
        let program = Command::new("sh")
            .args(["-c", "read -r _; exec \"$@\"", "sh"])
            .args(["coffer", "volume", "rotate", &volume.id, "--to", to, "--pool"])
            .arg(scene.pool())
            .args(scene.broker.flags())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell starts");
        Self { program, errors: Vec::new() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.program.id()
    }

    /// Lets it go, and returns when nothing of it runs any more.
    pub(crate) fn run(&mut self) {
        writeln!(self.program.stdin.take().expect("a pipe")).expect("it waits for this");
        let mut errors = self.program.stderr.take().expect("a pipe");
        errors.read_to_end(&mut self.errors).expect("readable");
    }

    /// How it ended, and what it said on standard error. Until then its process id belongs to nobody else.
    pub(crate) fn end(mut self) -> Output {
        let status = self.program.wait().expect("our child");
        Output { status, stdout: Vec::new(), stderr: self.errors }
    }
}

pub(crate) fn rotate(scene: &Scene, volume: &Volume, to: &str) -> Output {
    let mut rotation = Rotation::held(scene, volume, to);
    rotation.run();
    rotation.end()
}

#[track_caller]
fn rotated(scene: &Scene, volume: &Volume, to: &str) {
    succeeded(volume, &rotate(scene, volume, to), to);
}

#[track_caller]
fn succeeded(volume: &Volume, output: &Output, to: &str) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(volume.recorded("key_uri"), to);
}

/// Refused with `reason` in a line that names `what`, and without a change of record or header.
#[track_caller]
fn rotation_is_refused(scene: &Scene, volume: &Volume, to: &str, (reason, what): (&str, &str)) {
    let before = volume.metadata();
    let output = rotate(scene, volume, to);
    let errors = String::from_utf8_lossy(&output.stderr);
    let line = errors.lines().last().unwrap_or_default();
    assert!(!output.status.success() && line.starts_with(&format!("coffer: {reason}: ")), "{reason}: {errors}");
    assert!(line.contains(what), "{what}: {line}");
    assert!(volume.metadata() == before, "the refusal changed the volume");
}

/// Whether stock `cryptsetup` opens the image with the passphrase derived from the secret at `uri`.
pub(crate) fn stock_opens(scene: &Scene, volume: &Volume, uri: &str) -> bool {
    let key = "/run/rotation-key";
    fs::write(key, scene.broker.passphrase_at(uri, &volume.id).expose()).expect("written");
    let opened = Command::new("cryptsetup")
        .args(["open", "--test-passphrase", "--key-file", key])
        .arg(volume.backing())
        .output()
        .expect("cryptsetup starts");
    fs::remove_file(key).expect("removed");
    opened.status.success()
}

/// Writes blocks with fsync, in a round, until `stop`, and returns what each must hold; tells how many it has written.
fn write_blocks(path: &Path, written: &AtomicUsize, stop: &AtomicBool) -> BTreeMap<usize, [u8; 32]> {
    let file = File::create(path).expect("opens");
    let mut digests = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let number = written.load(Ordering::Relaxed);
        let block = number.to_le_bytes().repeat(BLOCK_BYTES / size_of::<usize>());
        let place = number % BLOCKS;
        let written_at = file.write_all_at(&block, (place * BLOCK_BYTES) as u64);
        written_at.and_then(|()| file.sync_all()).expect("the mounted volume takes writes");
        digests.insert(place, Sha256::digest(&block).into());
        written.fetch_add(1, Ordering::Relaxed);
    }
    digests
}

fn holds(path: &Path, digests: &BTreeMap<usize, [u8; 32]>) {
    shell("sync; echo 3 >/proc/sys/vm/drop_caches");
    let data = fs::read(path).expect("readable");
    for (place, digest) in digests {
        let block = &data[place * BLOCK_BYTES..][..BLOCK_BYTES];
        assert_eq!(<[u8; 32]>::from(Sha256::digest(block)), *digest, "block {place}");
    }
}

#[test]
fn a_mounted_volume_moves_to_another_secret_under_writes() {
    let scene = scene();
    for profile in ["xts-1", "aead-1"] {
        move_under_writes(&scene, profile);
    }
    scene.end();
}

fn move_under_writes(scene: &Scene, profile: &str) {
    let volume = Volume::create_in(scene, &[("profile", profile)], profile, Kind::Ext4);
    volume.stage(scene);
    let mapper = || shell(&format!("dmsetup table {0} && dmsetup info {0}", volume.mapper_name()));
    let before = mapper();
    let (written, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let file = volume.file("data");
    let (output, during, digests) = thread::scope(|scope| {
        let writer = scope.spawn(|| write_blocks(&file, &written, &stop));
        wait_until("a first write", || written.load(Ordering::Relaxed) > 0);
        let first = written.load(Ordering::Relaxed);
        let output = rotate(scene, &volume, NEXT_KEY_URI);
        let during = written.load(Ordering::Relaxed) - first;
        stop.store(true, Ordering::Relaxed);
        (output, during, writer.join().expect("the writer"))
    });
    succeeded(&volume, &output, NEXT_KEY_URI);
    println!("{profile}: {during} writes with fsync while the volume was rotated");
    assert!(during > 1, "the writer stood still");
    assert_eq!(mapper(), before, "the mapper was touched");
    holds(&file, &digests);
    volume.unstage(scene);
    assert!(!stock_opens(scene, &volume, KEY_URI), "the old secret still opens the volume");
    assert!(stock_opens(scene, &volume, NEXT_KEY_URI), "the new secret does not open the volume");
    // Nobody needs the old secret any more.
    scene.broker.deny();
    volume.stage(scene);
    holds(&file, &digests);
    volume.unstage(scene);
    volume.delete(scene);
    let log = fs::read_to_string(scene.log()).expect("the driver's log");
    let receipt = log.lines().rfind(|line| line.contains("volume deleted")).expect("a receipt");
    for words in ["Keyslots", "overwritten", "copies", NEXT_KEY_URI, &volume.id] {
        assert!(receipt.contains(words), "{receipt}");
    }
    scene.broker.reset();
}

#[test]
fn a_rotation_is_refused_whole() {
    let scene = scene();
    let volume = Volume::create_staged(&scene, "refused", Kind::Ext4);
    let absent = "kbs:///default/volumes/absent";
    scene.broker.allow_at(absent);
    rotation_is_refused(&scene, &volume, absent, ("KeyNotFound", absent));
    scene.broker.deny_at(NEXT_KEY_URI);
    rotation_is_refused(&scene, &volume, NEXT_KEY_URI, ("PolicyDenied", NEXT_KEY_URI));
    scene.broker.offer_next();
    scene.broker.remove_secret();
    rotation_is_refused(&scene, &volume, NEXT_KEY_URI, ("KeyNotFound", KEY_URI));
    scene.broker.reset();
    scene.broker.offer_next();
    let lock = File::open(volume.record().parent().expect("a directory")).expect("opens");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    rotation_is_refused(&scene, &volume, NEXT_KEY_URI, ("OperationPending", &volume.id));
    let busy = scene.driver().unstage(&volume.id).expect_err("another process works on the volume");
    assert!(busy.message().starts_with("OperationPending: "), "{busy:?}");
    drop(lock);
    volume.unstage(&scene);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn a_volume_moves_while_it_is_closed_and_back_again() {
    let scene = scene();
    let volume = Volume::create_staged(&scene, "closed", Kind::Block);
    volume.unstage(&scene);
    for uri in [NEXT_KEY_URI, KEY_URI, NEXT_KEY_URI] {
        rotated(&scene, &volume, uri);
        wait_until("the end of the loop device", || volume.in_kernel().is_empty());
        volume.stage(&scene);
        volume.unstage(&scene);
    }
    volume.delete(&scene);
    scene.end();
}
