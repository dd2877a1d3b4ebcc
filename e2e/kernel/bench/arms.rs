//! Three ways to an encrypted, mounted volume: the driver, an expert's script, and a script that takes every default.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use crate::driver::Kind;
use crate::driver::staging_path;
use crate::scene::Scene;
use crate::scene::shell;
use crate::scene::wait_until;

/// Payload of every volume here.
const BYTES: i64 = 1 << 30;

/// cryptsetup told everything that the driver does: its header, its key derivation, its table, its file system.
const HAND_ATTACH: &str = "loop=$(losetup --find --show --direct-io=on --sector-size 4096 $image)";
const HAND_FORMAT: &str = "cryptsetup luksFormat --batch-mode --type luks2 --cipher aes-xts-plain64 --key-size 512 \
     --sector-size 4096 --hash sha256 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --luks2-metadata-size 16k \
     --luks2-keyslots-size 1m --offset 4096 --key-file $key $loop";
const HAND_OPEN: &str = "cryptsetup open --type luks2 --key-file $key --perf-no_read_workqueue \
     --perf-no_write_workqueue $loop $name";
const HAND_MKFS: &str = "mkfs.ext4 -q -F -b 4096 -m 0 -E nodiscard,lazy_itable_init=1,lazy_journal_init=1 $mapper";
const HAND_MOUNT: &str = "mount -t ext4 -o noatime,nosuid,nodev,errors=remount-ro $mapper $mount";
const HAND_DETACH: &str = "umount $mount; cryptsetup close $name; losetup --detach $(losetup -n -O NAME -j $image)";

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// From an empty sparse image to a mounted file system.
    FirstStage,
    /// From mounted to nothing in the kernel.
    Unstage,
    /// From an image that was made before to mounted.
    Restage,
}

impl Step {
    /// What the samples call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FirstStage => "first stage",
            Self::Unstage => "unstage",
            Self::Restage => "restage",
        }
    }
}

/// How long a step took, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Time {
    /// Without the KBS.
    pub(crate) own_ms: f64,
    /// The exchange with the KBS, if there was one.
    pub(crate) kbs_ms: Option<f64>,
}

/// One way to a volume.
pub(crate) trait Arm {
    /// What the samples call it.
    fn name(&self) -> &'static str;
    /// Makes the sparse image; not timed.
    fn create(&mut self);
    /// Does one step.
    fn perform(&self, step: Step) -> Time;
    /// Where the volume is mounted.
    fn mounted_at(&self) -> PathBuf;
    /// Removes the image; not timed.
    fn delete(&mut self);
}

/// The driver, asked over its socket.
pub(crate) struct Ours<'a> {
    scene: &'a Scene,
    id: String,
}

impl<'a> Ours<'a> {
    pub(crate) fn new(scene: &'a Scene) -> Self {
        Self { scene, id: String::new() }
    }

    /// Milliseconds of every release of a key so far, from the driver's log.
    fn releases(&self) -> Vec<f64> {
        let log = fs::read_to_string(self.scene.log()).expect("the driver logs");
        let lines = log.lines().filter(|line| line.contains("the KBS released a key"));
        lines.filter_map(|line| line.split_once("milliseconds=")?.1.split_whitespace().next()?.parse().ok()).collect()
    }
}

impl Arm for Ours<'_> {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn create(&mut self) {
        self.id = self.scene.driver().create("bench", BYTES, Kind::Ext4).expect("created").volume_id;
    }

    fn perform(&self, step: Step) -> Time {
        let before = self.releases().len();
        let start = Instant::now();
        match step {
            Step::FirstStage | Step::Restage => self.scene.driver().stage(&self.id, Kind::Ext4),
            Step::Unstage => self.scene.driver().unstage(&self.id),
        }
        .expect("the driver does it");
        let whole_ms = milliseconds(start);
        if step == Step::Unstage {
            return Time { own_ms: whole_ms, kbs_ms: None };
        }
        wait_until("the line in the log", || self.releases().len() > before);
        let kbs_ms = self.releases()[before..].iter().sum();
        Time { own_ms: whole_ms - kbs_ms, kbs_ms: Some(kbs_ms) }
    }

    fn mounted_at(&self) -> PathBuf {
        staging_path(&self.id)
    }

    fn delete(&mut self) {
        self.scene.driver().delete(&self.id).expect("deleted");
    }
}

/// A script for bash. It finds `$image`, `$mount`, `$key` (a file with 32 bytes), `$name` and `$mapper`.
pub(crate) struct Script {
    name: &'static str,
    first_stage: Vec<&'static str>,
    unstage: &'static str,
    restage: Vec<&'static str>,
}

impl Script {
    /// An expert with our parameters.
    pub(crate) fn hand() -> Self {
        Self {
            name: "hand",
            first_stage: vec![HAND_ATTACH, HAND_FORMAT, HAND_OPEN, HAND_MKFS, HAND_MOUNT],
            unstage: HAND_DETACH,
            restage: vec![HAND_ATTACH, HAND_OPEN, "e2fsck -p $mapper", HAND_MOUNT],
        }
    }

    /// Somebody who reads the first page of the manual.
    pub(crate) fn stock() -> Self {
        let format = "cryptsetup luksFormat --batch-mode --key-file $key $image";
        let open = "cryptsetup open --key-file $key $image $name";
        let mount = "mount $mapper $mount";
        Self {
            name: "stock",
            first_stage: vec![format, open, "mkfs.ext4 -q $mapper", mount],
            unstage: "umount $mount; cryptsetup close $name",
            restage: vec![open, mount],
        }
    }

    fn run(&self, commands: &str) -> String {
        let name = self.name;
        shell(&format!(
            "image=/mnt/pool/{name}.img mount=/mnt/{name} key=/run/{name}.key name=bench-{name}
             mapper=/dev/mapper/$name
             {commands}"
        ))
    }
}

impl Arm for Script {
    fn name(&self) -> &'static str {
        self.name
    }

    fn create(&mut self) {
        let bytes = BYTES + i64::try_from(coffer::volume::DATA_OFFSET_BYTES).expect("a few MiB");
        self.run(&format!("head -c 32 /dev/urandom >$key; truncate --size {bytes} $image; mkdir -p $mount"));
    }

    /// The clock runs inside the script: starting bash is not the script's work.
    fn perform(&self, step: Step) -> Time {
        let commands = match step {
            Step::FirstStage => self.first_stage.join("\n"),
            Step::Unstage => self.unstage.to_owned(),
            Step::Restage => self.restage.join("\n"),
        };
        let printed = self.run(&format!(
            "exec 3>&1 >/dev/null
             begin=$EPOCHREALTIME
             {commands}
             echo $begin $EPOCHREALTIME >&3"
        ));
        let seconds: Vec<f64> = printed.split_whitespace().map(|text| text.parse().expect("seconds")).collect();
        let [begin, end] = seconds[..] else { panic!("the script printed more than two times: {printed}") };
        Time { own_ms: (end - begin) * 1000.0, kbs_ms: None }
    }

    fn mounted_at(&self) -> PathBuf {
        Path::new("/mnt").join(self.name)
    }

    fn delete(&mut self) {
        self.run("rm $image $key; rmdir $mount");
    }
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}
