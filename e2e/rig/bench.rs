//! `make bench`: has a node measure the driver and its rivals, and a cluster the way of a claim, and makes tables of it.
//!
//! It is a report and no test. It fails if something could not be measured, never because a figure is bad.

mod cluster;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde::Deserialize;

use crate::cluster::Parts;
use crate::process::Fate;
use crate::programs::Programs;
use crate::suites;
use table::Spread;
use table::Table;

/// How much faster than the defaults of cryptsetup and mkfs a first stage is meant to be, without the KBS.
const FIRST_STAGE_AIM: f64 = 15.0;
/// The same of a restage.
const RESTAGE_AIM: f64 = 20.0;
/// Share of the throughput of a volume made by hand; ours has the same kernel below it, so this finds a lost flag.
const THROUGHPUT_AIM: f64 = 0.98;
/// Resident memory of a driver that has nothing to do.
const IDLE_AIM_KIB: f64 = 12.0 * 1024.0;
/// And what each staged volume adds to it.
const VOLUME_AIM_KIB: f64 = 8.0;
/// Volumes staged when memory is looked at the last time.
const VOLUMES: f64 = 50.0;

/// How much faster than writing every tag the first stage of a seeded volume is meant to be.
const TAGS_AIM: f64 = 10.0;
const TAGS: &str = "first stage of 10 GiB with tags";

const STEPS: [&str; 3] = ["first stage", "restage", "unstage"];
const WORKLOADS: [(&str, &str); 4] = [
    ("random read 4 KiB", "IOPS"),
    ("random write 4 KiB", "IOPS"),
    ("sequential read 1 MiB", "MiB/s"),
    ("sequential write 1 MiB", "MiB/s"),
];
const MOMENTS: [&str; 4] = ["idle", "1 staged", "50 staged", "all unstaged"];

/// Where something is measured.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Place {
    /// A node alone: the driver and its rivals in turns.
    Node,
    /// A cluster: from a claim to a running pod.
    Cluster,
}

/// Measures `rounds` rounds on a fresh node in `run`, then twice as many in a cluster, or in one of the two `only`; prints
/// the report.
pub(crate) fn report(run: &Path, rounds: u32, only: Option<Place>) -> Result<()> {
    let programs = suites::sandboxed(|| {
        Parts::get()?;
        Programs::product()?.with_test("kernel")
    })?;
    if only != Some(Place::Cluster) {
        println!("\n{}", on_a_node(run, &programs, rounds)?);
    }
    if only != Some(Place::Node) {
        println!("\n{}", cluster::report(&run.join("cluster"), 2 * rounds)?);
    }
    Ok(())
}

fn on_a_node(run: &Path, programs: &Programs, rounds: u32) -> Result<String> {
    let (machine, guest) = suites::boot(run, programs, Fate::WithRig)?;
    let script = "/share/bin/test-kernel --test-threads=1 --ignored --nocapture bench 2>&1";
    let status = suites::show(&guest, &format!("COFFER_BENCH_ROUNDS={rounds} {script}"), |_line| ())?;
    if status != 0 {
        bail!("not everything was measured; see {} and {}", machine.logs().display(), machine.console().display());
    }
    let path = machine.logs().join("bench.jsonl");
    let text = fs::read_to_string(&path).with_context(|| format!("no samples in {}", path.display()))?;
    Ok(format!("{}every sample: {}", Samples::parse(&text)?.describe()?, path.display()))
}

/// One line of the node's file.
#[derive(Deserialize)]
struct Sample {
    measure: String,
    arm: String,
    value: f64,
}

/// By measure and arm, in the order of the rounds.
struct Samples(BTreeMap<(String, String), Vec<f64>>);

impl Samples {
    fn parse(text: &str) -> Result<Self> {
        let mut samples: BTreeMap<_, Vec<f64>> = BTreeMap::new();
        for line in text.lines() {
            let Sample { measure, arm, value } = serde_json::from_str(line).context("a sample is not one")?;
            samples.entry((measure, arm)).or_default().push(value);
        }
        Ok(Self(samples))
    }

    fn of(&self, measure: &str, arm: &str) -> Result<&[f64]> {
        let found = self.0.get(&(measure.to_owned(), arm.to_owned()));
        found.map(Vec::as_slice).with_context(|| format!("{measure} of {arm} was not measured"))
    }

    fn spread(&self, measure: &str, arm: &str) -> Result<Spread> {
        Ok(Spread::of(self.of(measure, arm)?))
    }

    /// `over` divided by `under`, round by round: what slowed a whole round down cancels out.
    fn ratio(&self, measure: &str, over: &str, under: &str) -> Result<Spread> {
        let (over, under) = (self.of(measure, over)?, self.of(measure, under)?);
        anyhow::ensure!(over.len() == under.len(), "{measure}: the arms did not take part in the same rounds");
        let ratios: Vec<f64> = over.iter().zip(under).map(|(over, under)| over / under).collect();
        Ok(Spread::of(&ratios))
    }

    /// The whole report.
    fn describe(&self) -> Result<String> {
        let rounds = self.of(STEPS[0], "ours")?.len();
        let (times, throughput, memory) = (self.times()?, self.throughput()?, self.memory()?);
        let [seeded, full] = [self.of(TAGS, "seeded")?[0], self.of(TAGS, "full")?[0]];
        let [seeded, full, tags] = [seeded, full, full / seeded].map(table::number);
        Ok(format!(
            "Times on a volume of 1 GiB, ms: median (lowest to highest) of {rounds} rounds; ratios are taken in each round\n\
             {times}\n\
             Throughput on the mounted volume: median (lowest to highest) of {rounds} rounds\n\
             {throughput}\n\
             Resident memory of the driver, KiB; the KBS runs from the same file in the same node, which lowers PSS\n\
             {memory}\n\
             First stage of 10 GiB of profile aead-1, ms, with the KBS: seeded {seeded}, every tag {full}; \
             ratio {tags}, aim {TAGS_AIM}\n"
        ))
    }

    fn times(&self) -> Result<Table> {
        let mut table = Table::new(["", "ours", "KBS, besides", "hand", "stock", "hand ÷ ours", "stock ÷ ours", "aim"]);
        for step in STEPS {
            let stock = self.ratio(step, "stock", "ours")?;
            table.row([
                step.to_owned(),
                self.spread(step, "ours")?.to_string(),
                self.spread(step, "KBS").map_or_else(|_| "-".to_owned(), |kbs| kbs.to_string()),
                self.spread(step, "hand")?.to_string(),
                self.spread(step, "stock")?.to_string(),
                self.ratio(step, "hand", "ours")?.to_string(),
                stock.to_string(),
                match step {
                    "first stage" => at_least(FIRST_STAGE_AIM, stock.median),
                    "restage" => at_least(RESTAGE_AIM, stock.median),
                    _ => String::new(),
                },
            ]);
        }
        Ok(table)
    }

    fn throughput(&self) -> Result<Table> {
        let mut table = Table::new(["", "", "ours", "hand", "ours ÷ hand", "aim"]);
        for (workload, unit) in WORKLOADS {
            let ratio = self.ratio(workload, "ours", "hand")?;
            table.row([
                workload.to_owned(),
                unit.to_owned(),
                self.spread(workload, "ours")?.to_string(),
                self.spread(workload, "hand")?.to_string(),
                ratio.to_string(),
                at_least(THROUGHPUT_AIM, ratio.median),
            ]);
        }
        Ok(table)
    }

    fn memory(&self) -> Result<Table> {
        let mut table = Table::new(["", "VmRSS", "of it anonymous", "PSS", "aim"]);
        let value = |moment: &str, arm: &str| Ok::<f64, anyhow::Error>(self.spread(moment, arm)?.median);
        for moment in MOMENTS {
            let rss = value(moment, "VmRSS")?;
            let aim = if moment == "idle" { at_most(IDLE_AIM_KIB, rss) } else { String::new() };
            let [anonymous, pss] = [value(moment, "RssAnon")?, value(moment, "Pss")?];
            table.row([moment.to_owned(), table::number(rss), table::number(anonymous), table::number(pss), aim]);
        }
        // The first stage brings in code and libraries once; what counts per volume is what the others add.
        let each = |arm: &str| {
            Ok::<f64, anyhow::Error>((value("50 staged", arm)? - value("1 staged", arm)?) / (VOLUMES - 1.0))
        };
        let [rss, anonymous, pss] = [each("VmRSS")?, each("RssAnon")?, each("Pss")?];
        let cells = [table::number(rss), table::number(anonymous), table::number(pss)];
        let [rss_cell, anonymous_cell, pss_cell] = cells;
        table.row([
            "each volume, 2 to 50".to_owned(),
            rss_cell,
            anonymous_cell,
            pss_cell,
            at_most(VOLUME_AIM_KIB, rss),
        ]);
        Ok(table)
    }
}

fn at_least(aim: f64, found: f64) -> String {
    format!("≥ {}: {}", table::number(aim), verdict(found >= aim))
}

fn at_most(aim: f64, found: f64) -> String {
    format!("≤ {}: {}", table::number(aim), verdict(found <= aim))
}

fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "MISSED" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rounds in which everybody needs as long as given, and a driver of the given size.
    fn samples(ours_ms: f64, idle_kib: f64) -> Samples {
        let mut text = String::new();
        let mut add = |measure: &str, arm: &str, value: f64| {
            text += &format!("{{\"measure\":\"{measure}\",\"arm\":\"{arm}\",\"value\":{value}}}\n");
        };
        for factor in [1.0, 3.0] {
            for step in STEPS {
                add(step, "ours", ours_ms * factor);
                add(step, "hand", 20.0 * factor);
                add(step, "stock", 300.0 * factor);
            }
            for (workload, _) in WORKLOADS {
                add(workload, "ours", 97.0 * factor);
                add(workload, "hand", 100.0 * factor);
            }
        }
        for (moment, more_kib) in MOMENTS.iter().zip([0.0, 1000.0, 1098.0, 1098.0]) {
            for arm in ["VmRSS", "RssAnon", "Pss"] {
                add(moment, arm, idle_kib + more_kib);
            }
        }
        for (arm, ms) in [("seeded", 1000.0), ("full", 30_000.0)] {
            text += &format!("{{\"measure\":\"{TAGS}\",\"arm\":\"{arm}\",\"value\":{ms}}}\n");
        }
        Samples::parse(&text).expect("samples")
    }

    #[test]
    fn what_is_reached_and_what_is_missed_is_said() {
        let text = samples(20.0, 12289.0).describe().expect("complete");
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).expect("a line").to_owned();
        assert!(line("first stage").ends_with("≥ 15.0: reached"), "{text}");
        assert!(line("restage").ends_with("≥ 20.0: MISSED"), "{text}");
        assert!(line("random read").ends_with("≥ 0.98: MISSED"), "{text}");
        assert!(line("idle").ends_with("≤ 12288: MISSED"), "{text}");
        assert!(line("each volume").ends_with("≤ 8.00: reached"), "{text}");
        assert!(line("First stage of 10 GiB").contains("ratio 30.0, aim 10"), "{text}");
    }

    #[test]
    fn ratios_are_taken_in_each_round() {
        let ratio = samples(20.0, 0.0).ratio("restage", "stock", "ours").expect("both");
        assert_eq!(ratio.to_string(), "15.0 (15.0 to 15.0)");
    }

    #[test]
    fn what_was_not_measured_is_an_error() {
        let mut samples = samples(1.0, 0.0);
        samples.0.retain(|(measure, arm), _| measure != "restage" || arm != "hand");
        let error = samples.describe().expect_err("incomplete");
        assert_eq!(error.to_string(), "restage of hand was not measured");
    }
}
