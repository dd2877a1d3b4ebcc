//! Swap and hibernation that would take what is in memory to a disk as it is: refused, unless allowed by name.

use std::fs;
use std::process::Command;
use std::thread;

use tonic::Code;

use crate::driver::Kind;
use crate::scene::Scene;
use crate::scene::shell;
use crate::volume::Volume;

/// A file on the system's disk.
const FILE: &str = "/swap";
const RESUME: &str = "/sys/power/resume";

/// What was set up for a test, and how it is undone: in reverse order, also when the test fails.
#[derive(Default)]
struct Setup(Vec<String>);

impl Setup {
    /// Runs `script` and returns what it printed; `undo` ends what it began.
    #[track_caller]
    fn run(&mut self, script: &str, undo: &str) -> String {
        self.0.push(undo.to_owned());
        shell(script).trim().to_owned()
    }

    /// Swap on `path`, a file or a device.
    #[track_caller]
    fn swap_on(&mut self, path: &str) {
        self.run(&format!("mkswap {path} && swapon {path}"), &format!("swapoff {path}"));
    }

    /// The file as a block device.
    #[track_caller]
    fn disk(&mut self) -> String {
        self.run(&format!("dd if=/dev/zero of={FILE} bs=1M count=32 && chmod 600 {FILE}"), &format!("rm {FILE}"));
        let device = shell(&format!("losetup --find --show {FILE}")).trim().to_owned();
        self.0.push(format!("losetup --detach {device}"));
        device
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        for undo in self.0.iter().rev() {
            let undone = Command::new("bash").args(["-c", &format!("udevadm settle; {undo}")]).status();
            // A second panic would hide the first.
            assert!(thread::panicking() || undone.is_ok_and(|status| status.success()), "{undo}");
        }
    }
}

/// A stage is refused before anybody is asked for a key, with words that name `device` and `flag`.
#[track_caller]
fn is_refused(scene: &Scene, volume: &Volume, device: &str, flag: &str) {
    let (state, releases) = (volume.state(), scene.broker.releases());
    let status = volume.stage_is_refused(scene, "MemoryUnprotected");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains(device) && status.message().contains(flag), "{status:?}");
    assert_eq!((volume.state(), scene.broker.releases()), (state, releases));
}

#[track_caller]
fn is_staged(scene: &Scene, volume: &Volume) {
    volume.stage(scene);
    volume.unstage(scene);
}

#[track_caller]
fn restart_with(scene: &mut Scene, flags: &[&str]) {
    scene.options().flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    scene.restart_driver();
}

#[test]
fn swap_in_a_file_is_refused_until_it_is_off_or_allowed() {
    let mut scene = Scene::new();
    let volume = Volume::create(&scene, "swap-file", Kind::Ext4);
    let mut setup = Setup::default();
    setup.run(&format!("dd if=/dev/zero of={FILE} bs=1M count=32 && chmod 600 {FILE}"), &format!("rm {FILE}"));
    setup.swap_on(FILE);
    is_refused(&scene, &volume, FILE, "--allow-unencrypted-swap");
    restart_with(&mut scene, &["--allow-hibernation"]);
    is_refused(&scene, &volume, FILE, "--allow-unencrypted-swap");
    let log = fs::read_to_string(scene.log()).expect("a log");
    assert!(log.contains("no volume will be staged: MemoryUnprotected"), "the operator is not told at the start");
    restart_with(&mut scene, &["--allow-unencrypted-swap"]);
    is_staged(&scene, &volume);
    restart_with(&mut scene, &[]);
    is_refused(&scene, &volume, FILE, "--allow-unencrypted-swap");
    drop(setup);
    is_staged(&scene, &volume);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn swap_on_a_disk_is_refused_and_swap_on_dm_crypt_is_not() {
    let scene = Scene::new();
    let volume = Volume::create(&scene, "swap-disk", Kind::Ext4);
    let mut setup = Setup::default();
    let disk = setup.disk();
    {
        let mut setup = Setup::default();
        setup.swap_on(&disk);
        is_refused(&scene, &volume, &disk, "--allow-unencrypted-swap");
    }
    // What is named like encrypted swap and does not encrypt.
    {
        let mut setup = Setup::default();
        setup.run(
            &format!("dmsetup create swap-plain --uuid CRYPT-VERITY-1 --table \"0 65536 linear {disk} 0\""),
            "dmsetup remove --retry swap-plain",
        );
        setup.swap_on("/dev/mapper/swap-plain");
        is_refused(&scene, &volume, "/dev/", "--allow-unencrypted-swap");
    }
    setup.run(
        &format!(
            "cryptsetup open --batch-mode --type plain --cipher aes-xts-plain64 --key-size 512 \
             --key-file /dev/urandom {disk} swap-crypt"
        ),
        "cryptsetup close swap-crypt",
    );
    {
        let mut setup = Setup::default();
        setup.swap_on("/dev/mapper/swap-crypt");
        is_staged(&scene, &volume);
    }
    setup.run(
        "dmsetup create swap-linear --table '0 65536 linear /dev/mapper/swap-crypt 0'",
        "dmsetup remove --retry swap-linear",
    );
    setup.swap_on("/dev/mapper/swap-linear");
    is_staged(&scene, &volume);
    drop(setup);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn swap_in_compressed_memory_is_no_disk() {
    let scene = Scene::new();
    let volume = Volume::create(&scene, "swap-zram", Kind::Ext4);
    let mut setup = Setup::default();
    setup.run("modprobe zram num_devices=1 && echo 32M >/sys/block/zram0/disksize", "rmmod zram");
    setup.swap_on("/dev/zram0");
    is_staged(&scene, &volume);
    drop(setup);
    volume.delete(&scene);
    scene.end();
}

#[test]
fn hibernation_to_a_disk_is_refused_unless_allowed() {
    let mut scene = Scene::new();
    let volume = Volume::create(&scene, "hibernation", Kind::Ext4);
    let mut setup = Setup::default();
    let disk = setup.disk();
    let number = shell(&format!("cat /sys/class/block/{}/dev", disk.trim_start_matches("/dev/"))).trim().to_owned();
    setup.run(&format!("echo {number} >{RESUME}"), &format!("echo 0:0 >{RESUME}"));
    is_refused(&scene, &volume, &number, "--allow-hibernation");
    restart_with(&mut scene, &["--allow-unencrypted-swap"]);
    is_refused(&scene, &volume, &number, "--allow-hibernation");
    restart_with(&mut scene, &["--allow-hibernation"]);
    is_staged(&scene, &volume);
    restart_with(&mut scene, &[]);
    drop(setup);
    is_staged(&scene, &volume);
    volume.delete(&scene);
    scene.end();
}
