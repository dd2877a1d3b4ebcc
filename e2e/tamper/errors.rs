//! A disk that fails: an I/O error in any sector of the header is an error, never a header that is missing.

use super::Subject;
use super::sample;
use crate::driver::Kind;
use crate::scene::DISK;
use crate::scene::FAILING_DISK;
use crate::scene::Scene;
use crate::scene::shell;
use crate::volume::Volume;

/// Sectors of 512 bytes in a block of the pool's filesystem.
const BLOCK_SECTORS: u64 = 8;
/// Blocks before the payload.
const FRONT_BLOCKS: u64 = 512;

/// A table that gives the tests' disk of so many `sectors`, but for the block `bad`, which fails.
fn table(sectors: u64, bad: Option<u64>) -> String {
    let linear = |from: u64, to: u64| format!("{from} {} linear {DISK} {from}\n", to - from);
    match bad.map(|block| block * BLOCK_SECTORS) {
        None => linear(0, sectors),
        Some(at) => {
            let after = at + BLOCK_SECTORS;
            format!("{}{at} {BLOCK_SECTORS} error\n{}", linear(0, at), linear(after, sectors))
        }
    }
}

/// The disk is as `table` says from now on.
fn becomes(table: &str) {
    let name = FAILING_DISK;
    shell(&format!("printf '{table}' | dmsetup load {name} && dmsetup resume --noflush --nolockfs {name}"));
}

/// The blocks of the disk that hold what lies before the payload. What was never written is in none.
fn blocks(volume: &Volume) -> Vec<u64> {
    let listed = shell(&format!("sync; filefrag -v -b4096 {}", volume.backing().display()));
    let extents = listed.lines().filter_map(|line| {
        let numbers: Vec<_> = line.split([':', '.', ' ']).filter(|word| !word.is_empty()).collect();
        let number = |at: usize| numbers.get(at)?.parse::<u64>().ok();
        Some((number(0)?, number(1)?, number(2)?, number(3)?))
    });
    extents
        .flat_map(|(_, first, last, block)| (first..=last.min(FRONT_BLOCKS - 1)).map(move |at| block + at - first))
        .collect()
}

#[test]
fn an_error_in_any_sector_of_the_header_is_refused_and_changes_nothing() {
    let sectors: u64 = shell(&format!("blockdev --getsz {DISK}")).trim().parse().expect("a number");
    let scene = Scene::over(&table(sectors, None));
    let subject = Subject::new(&scene, "failing");
    let blocks = blocks(&subject.volume);
    // Two copies, and four areas of 63 blocks.
    assert!(blocks.len() >= 8 + 252, "only {} blocks hold the header", blocks.len());
    let (step, mut tried) = (2 * sample() - 1, 0);
    for bad in blocks.iter().step_by(step) {
        becomes(&table(sectors, Some(*bad)));
        let answer = scene.driver().stage(&subject.volume.id, Kind::Ext4);
        becomes(&table(sectors, None));
        let status = answer.expect_err("refused");
        assert!(status.message().starts_with("DeviceUnreadable: "), "block {bad}: {status:?}");
        subject.volume.stage_leaves_nothing();
        tried += 1;
    }
    println!("{tried} of {} blocks failed", blocks.len());
    assert!(std::fs::read(subject.volume.backing()).expect("the backing") == subject.backing, "nothing was changed");
    subject.volume.stage(&scene);
    subject.opened().expect("the file is there");
    subject.volume.delete(&scene);
    scene.end();
    shell(&format!("dmsetup remove {FAILING_DISK}"));
}
