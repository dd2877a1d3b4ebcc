//! Power cuts: what a disk may hold after one at any moment is what a volume must come back from.
//!
//! The kernel logs every write to the pool's disk from its first filesystem on. A copy of the disk is made from the log
//! up to one flush; of the writes up to the next, which a disk with a cache of its own need not have kept, it gets all,
//! none, or some. In each copy every volume must open with every record that was acknowledged, and be clean.

mod load;
mod log;

use std::fs::File;
use std::path::PathBuf;
use std::thread;

use coffer::volume::Profile;

use crate::driver::Kind;
use crate::driver::staging_path;
use crate::scene;
use crate::scene::DISK;
use crate::scene::Scene;
use crate::scene::shell;
use crate::soak::Part;
use crate::soak::figure;
use crate::volume::Volume;
use log::Entry;
use log::Log;

/// How many copies of each profile's disk a complete soak has under load, and in how many parts.
const COPIES: usize = 200;
/// As many as this are made of moments in the first stages, for each one under load.
const FIRST_STAGE_SHARE: f64 = 0.1;
/// What the second disk is divided into, in MiB: the pool, a copy of it, what is written to the copy, the log.
const PIECES: [(&str, u64); 4] = [("pool", 1024), ("copy", 1024), ("changes", 512), ("log", 5000)];
/// The device that is logged.
const LIVE: &str = "power-live";
/// The device of one copy.
const CUT: &str = "power-cut";
/// Marks in the log, beside the ids of volumes.
const CREATED: &str = "created";
const STAGED: &str = "staged";
/// What the kernel must not say.
const COMPLAINTS: &str = "INTEGRITY AEAD ERROR|EXT4-fs error|XFS .*([Cc]orrupt|error)|I/O error|JBD2: ";

fn node(name: &str) -> PathBuf {
    PathBuf::from("/dev/mapper").join(name)
}

/// Divides the second disk, blank, and logs what is written to its first piece.
fn divide_disk() {
    let mut start = 0;
    for (name, mebibytes) in PIECES {
        let sectors = mebibytes << 11;
        shell(&format!("dmsetup create power-{name} --table '0 {sectors} linear {DISK} {start}'"));
        start += sectors;
    }
    let sectors = PIECES[0].1 << 11;
    let table = format!("0 {sectors} log-writes {} {}", node("power-pool").display(), node("power-log").display());
    shell(&format!(
        "blkdiscard -z {} && blkdiscard -z {}
         dmsetup create {LIVE} --table '{table}'",
        node("power-pool").display(),
        node("power-copy").display()
    ));
}

fn remove(devices: &[&str]) {
    shell(&format!("udevadm settle; dmsetup remove --retry {}", devices.join(" ")));
}

/// Volumes of `kinds` in `profile` from their creation on, under load, and the log of it.
fn log_of(profile: Profile, kinds: &[Kind]) -> (Vec<Volume>, Log) {
    let scene = Scene::with_pool_on(&node(LIVE));
    let class = [("profile", profile.as_str())];
    let volumes: Vec<_> =
        kinds.iter().map(|kind| Volume::create_in(&scene, &class, &format!("power-{kind:?}"), *kind)).collect();
    load::mark(LIVE, CREATED);
    volumes.iter().for_each(|volume| volume.stage(&scene));
    load::mark(LIVE, STAGED);
    thread::scope(|scope| {
        for volume in &volumes {
            scope.spawn(|| load::write(volume, LIVE));
        }
    });
    volumes.iter().for_each(|volume| volume.unstage(&scene));
    scene.leave();
    remove(&[LIVE]);
    (volumes, Log::read(&node("power-log")))
}

/// One power cut: after the flush number `flush` of the log and before the one number `next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cut {
    flush: usize,
    next: usize,
}

/// `count` cuts, evenly spread over the flushes between the marks, and those of the first stages.
fn cuts(entries: &[Entry], count: usize) -> Vec<Cut> {
    let marked = |text| entries.iter().position(|entry| entry.mark.as_deref() == Some(text)).expect("marked");
    let flushes: Vec<_> = (0..entries.len()).filter(|number| entries[*number].is_flush()).collect();
    let all: Vec<_> = flushes.windows(2).map(|pair| Cut { flush: pair[0], next: pair[1] }).collect();
    let spread = |from: usize, to: usize, count: usize| {
        let there: Vec<_> = all.iter().copied().filter(|cut| (from..to).contains(&cut.flush)).collect();
        assert!(there.len() >= count, "{} flushes are too few for {count} copies", there.len());
        (0..count).map(|number| there[number * there.len() / count]).collect::<Vec<_>>()
    };
    let in_first_stages = (count as f64 * FIRST_STAGE_SHARE).ceil() as usize;
    let mut cuts = spread(marked(CREATED), marked(STAGED), in_first_stages);
    cuts.extend(spread(marked(STAGED), entries.len(), count));
    cuts
}

/// Makes the copy that belongs to `cut` and expects everything of it. `copy` is the disk up to entry number `done`.
fn survive(number: usize, cut: Cut, log: &Log, copy: &File, volumes: &[Volume]) {
    let entries = &log.entries;
    let sectors = PIECES[1].1 << 11;
    let table = format!("{} {} N 16", node("power-copy").display(), node("power-changes").display());
    shell(&format!("dmsetup create {CUT} --table '0 {sectors} snapshot {table}'"));
    let disk = File::options().write(true).open(node(CUT)).expect("the copy");
    let window = &entries[cut.flush + 1..cut.next];
    for (position, entry) in window.iter().filter(|entry| entry.mark.is_none()).enumerate() {
        let is_kept = match number % 4 {
            0 => false,
            1 => true,
            2 => position % 2 == 0,
            _ => position % 2 == 1,
        };
        if is_kept || entry.is_durable() {
            log.apply(entry, &disk);
        }
    }
    disk.sync_all().and_then(|()| copy.sync_all()).expect("synced");
    drop(disk);

    let when = format!("power cut {number} at entry {} of {}", cut.flush, entries.len());
    let scene = Scene::with_pool_from(&node(CUT));
    for volume in volumes {
        let is_mark = |entry: &&Entry| entry.mark.as_deref() == Some(&volume.id);
        let acknowledged = entries[..cut.next].iter().filter(is_mark).count();
        scene.driver().stage(&volume.id, volume.kind).unwrap_or_else(|status| panic!("{when}: {status:?}"));
        load::expect(volume, acknowledged, &when);
        must_be_clean(volume);
        volume.unstage(&scene);
        assert_eq!(volume.in_kernel(), "", "{when}: left behind");
    }
    let complaints = shell(&format!("dmesg -c | grep -E '{COMPLAINTS}' || true"));
    assert_eq!(complaints, "", "{when}");
    scene.leave();
    remove(&[CUT]);
}

/// Whether the filesystem is whole after its log was replayed; the volume is open and no longer mounted afterwards.
fn must_be_clean(volume: &Volume) {
    let check = match volume.kind {
        Kind::Block => return,
        Kind::Ext4 => "e2fsck -fn",
        Kind::Xfs => "xfs_repair -n",
    };
    // What was never written is not read ahead: in a profile with integrity it cannot be read.
    shell(&format!(
        "umount {staging} && blockdev --setra 0 {mapper} && {check} {mapper} 2>&1",
        staging = staging_path(&volume.id).display(),
        mapper = volume.mapper().display()
    ));
}

fn cut_the_power_under(profile: Profile, kinds: &[Kind], count: usize) {
    scene::clear();
    shell("dmesg -C");
    divide_disk();
    let (volumes, log) = log_of(profile, kinds);
    let copy = File::options().write(true).open(node("power-copy")).expect("the copy");
    let cuts = cuts(&log.entries, count);
    let mut done = 0;
    for (number, cut) in cuts.iter().enumerate() {
        let due = log.entries[done..=cut.flush].iter();
        due.filter(|entry| entry.mark.is_none()).for_each(|entry| log.apply(entry, &copy));
        copy.sync_all().expect("synced");
        done = cut.flush + 1;
        survive(number, *cut, &log, &copy, &volumes);
    }
    drop((copy, log));
    remove(&["power-pool", "power-copy", "power-changes", "power-log"]);
    figure(format!("copies of a disk in {}, under load", profile.as_str()), count);
    figure(format!("copies of a disk in {}, in first stages", profile.as_str()), cuts.len() - count);
}

#[test]
fn every_acknowledged_record_survives_a_power_cut() {
    match Part::of_environment() {
        Some(part) => {
            let (profile, part) = part.deal(&Profile::ALL);
            let count = part.take(0..COPIES).count();
            cut_the_power_under(profile, &[Kind::Ext4, Kind::Xfs, Kind::Block], count);
        }
        None => Profile::ALL.into_iter().for_each(|profile| cut_the_power_under(profile, &[Kind::Ext4], 2)),
    }
}
