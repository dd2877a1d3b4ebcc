//! What a volume costs: times of the driver beside two scripts around cryptsetup, throughput, resident memory.
//!
//! `make bench` runs this and makes a table of the samples; `make kernel` does not. Nothing here judges a figure: it
//! fails only if something could not be measured.

mod arms;
mod io;
mod memory;
mod tags;

use std::env;
use std::fs::File;
use std::io::Write;

use crate::scene::Scene;
use crate::scene::shell;
use arms::Arm;
use arms::Ours;
use arms::Script;
use arms::Step;

/// Read by the host when the run has ended: one JSON object a line.
const SAMPLES: &str = "/log/bench.jsonl";
/// How many rounds, if `COFFER_BENCH_ROUNDS` does not say.
const ROUNDS: usize = 5;
/// Room for a volume of every arm and for fifty small ones.
const POOL: &str = "6G";

/// The samples of one run, in the order in which they were taken.
pub(crate) struct Samples(File);

impl Samples {
    fn create() -> Self {
        Self(File::create(SAMPLES).expect("the directory of logs is writable"))
    }

    /// Keeps one figure: of what, who reached it, how much. The host knows each measure's unit.
    pub(crate) fn keep(&mut self, measure: &str, arm: &str, value: f64) {
        let line = serde_json::json!({ "measure": measure, "arm": arm, "value": value });
        writeln!(self.0, "{line}").expect("the samples can be written");
        println!("    {measure}, {arm}: {value:.1}");
    }
}

#[test]
#[ignore = "make bench"]
fn bench_of_times_throughput_and_memory() {
    let rounds = env::var("COFFER_BENCH_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number of rounds"));
    let mut samples = Samples::create();
    let scene = Scene::with_pool_of(POOL);
    println!("{}", shell("uname -sr; cryptsetup --version; fio --version; grep -m1 'model name' /proc/cpuinfo"));
    memory::measure(&scene, &mut samples);
    times(&scene, rounds, &mut samples);
    throughput(&scene, rounds, &mut samples);
    scene.end();
    tags::measure(&mut samples);
}

/// Every arm's whole life in every round; another one begins each time.
fn times(scene: &Scene, rounds: usize, samples: &mut Samples) {
    let (mut ours, mut hand, mut stock) = (Ours::new(scene), Script::hand(), Script::stock());
    let arms: &mut [&mut dyn Arm] = &mut [&mut ours, &mut hand, &mut stock];
    for round in 1..=rounds {
        println!("times, round {round} of {rounds}");
        for arm in arms.iter_mut() {
            arm.create();
            for step in [Step::FirstStage, Step::Unstage, Step::Restage] {
                let time = settled(|| arm.perform(step));
                samples.keep(step.name(), arm.name(), time.own_ms);
                if let Some(kbs_ms) = time.kbs_ms {
                    samples.keep(step.name(), "KBS", kbs_ms);
                }
            }
            settled(|| arm.perform(Step::Unstage));
            arm.delete();
        }
        arms.rotate_left(1);
    }
}

/// Reads and writes on a volume of ours and on one that was made by hand, both mounted all the time.
fn throughput(scene: &Scene, rounds: usize, samples: &mut Samples) {
    let (mut ours, mut hand) = (Ours::new(scene), Script::hand());
    let arms: &mut [&mut dyn Arm] = &mut [&mut ours, &mut hand];
    for arm in arms.iter_mut() {
        arm.create();
        arm.perform(Step::FirstStage);
        io::lay_out(&arm.mounted_at());
    }
    // Both must show the same cipher, flags and sector sizes, or the comparison is of something else.
    println!("{}", shell("dmsetup table; losetup --list --output NAME,DIO,LOG-SEC,BACK-FILE"));
    for round in 1..=rounds {
        println!("throughput, round {round} of {rounds}");
        io::measure([&*arms[0], &*arms[1]], samples);
        arms.rotate_left(1);
    }
    for arm in arms.iter_mut() {
        arm.perform(Step::Unstage);
        arm.delete();
    }
}

/// Does `work` when what came before it has reached the disk and devices are quiet.
fn settled<T>(work: impl FnOnce() -> T) -> T {
    shell("sync; udevadm settle");
    work()
}
