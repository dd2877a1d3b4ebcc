//! Resident memory of the driver: idle, and with volumes staged.

use std::fs;

use super::Samples;
use crate::driver::Kind;
use crate::scene::Scene;

/// How many volumes are staged at last.
const MANY: usize = 50;
const BYTES: i64 = 16 << 20;

/// Stages fifty volumes, one after the other, and looks before the first, after the first, after the last, and when
/// all are unstaged. The scene's driver must not have staged anything yet.
pub(crate) fn measure(scene: &Scene, samples: &mut Samples) {
    println!("memory, {MANY} volumes");
    let mut look = |moment: &str| {
        for (measure, kib) in resident(scene.driver().pid()) {
            samples.keep(moment, measure, kib);
        }
    };
    look("idle");
    let mut ids = Vec::new();
    for number in 1..=MANY {
        let volume = scene.driver().create(&format!("memory-{number}"), BYTES, Kind::Ext4).expect("created");
        scene.driver().stage(&volume.volume_id, Kind::Ext4).expect("staged");
        ids.push(volume.volume_id);
        if number == 1 {
            look("1 staged");
        }
    }
    look("50 staged");
    for id in ids {
        scene.driver().unstage(&id).expect("unstaged");
        scene.driver().delete(&id).expect("deleted");
    }
    look("all unstaged");
}

/// What the process holds, in KiB: whole, proportional, and what of the whole is no file's.
fn resident(pid: u32) -> [(&'static str, f64); 3] {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the driver runs");
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the driver runs");
    [("VmRSS", kib(&status, "VmRSS")), ("Pss", kib(&rollup, "Pss")), ("RssAnon", kib(&status, "RssAnon"))]
}

fn kib(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.split_whitespace().next()).expect("the kernel tells");
    number.parse().expect("a number of KiB")
}
