//! Attacks that take hours, in parts: two nodes side by side take the next part until all have passed.
//!
//! A part that has passed is not run again, also by another run, as long as the programs are the same. What the parts
//! count is added up.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use clap::ValueEnum;
use coffer::volume::Profile;
use sha2::Digest;
use sha2::Sha256;

use crate::guest::Guest;
use crate::process::Fate;
use crate::programs::Programs;
use crate::report::Count;
use crate::report::stage;
use crate::suites;

/// An emulated node keeps one core busy.
const NODES: [u8; 2] = [1, 2];
/// How a test says what it counted.
const FIGURE: &str = "figure: ";
/// What was printed at the end, in the attack's directory.
pub(crate) const REPORT: &str = "report";
/// Beside what the tests count: how long the parts took.
const SECONDS: &str = "seconds on a node";

/// What is done to the driver and its volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Attack {
    /// SIGKILL at every step of every operation.
    Kills,
    /// Copies of the disk as power cuts may leave it.
    PowerCuts,
}

impl Attack {
    /// The word for it in the Makefile and in names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kills => "kills",
            Self::PowerCuts => "power-cuts",
        }
    }

    /// The kernel tests that it consists of.
    fn tests(self) -> &'static str {
        match self {
            Self::Kills => "kills::",
            Self::PowerCuts => "power::",
        }
    }

    /// How many parts there are: a multiple of what is attacked, and each about a quarter of an hour.
    fn parts(self) -> usize {
        match self {
            Self::Kills => 4 * 3 * Profile::ALL.len(),
            Self::PowerCuts => 4 * Profile::ALL.len(),
        }
    }
}

/// Runs the parts of `attack` that have not passed yet, or those that `filter` names, and says what all parts counted.
pub(crate) fn test(run: &Path, attack: Attack, filter: &str) -> Result<()> {
    let programs = suites::sandboxed(|| Programs::product()?.with_test("kernel"))?;
    fs::create_dir_all(run)?;
    let passed = Passed::of(&run.join("passed"), &programs)?;
    let parts: Vec<_> = (1..=attack.parts()).map(|number| Part { attack, number }).collect();
    let is_named = |part: &Part| filter.split_whitespace().any(|word| part.name().contains(word));
    let due = parts.iter().copied().filter(|part| if filter.is_empty() { !passed.has(part) } else { is_named(part) });
    let due = Mutex::new(due.collect::<VecDeque<_>>());
    let next = || due.lock().expect("no holder of this lock panics").pop_front();
    let outcomes: Vec<Result<Count>> = thread::scope(|scope| {
        let work = |number| {
            let (run, programs, passed) = (run.join(format!("rig{number}")), &programs, &passed);
            scope.spawn(move || work(number, &run, programs, passed, next))
        };
        let nodes = NODES.map(work);
        nodes.into_iter().map(|node| node.join().expect("a part says how it failed")).collect()
    });
    let count = outcomes.into_iter().map(Count::of).fold(Count::default(), Count::and);
    let there: Vec<_> = parts.iter().filter(|part| passed.has(part)).collect();
    let mut report = format!("{} of {} parts of {} have passed\n", there.len(), parts.len(), attack.name());
    for (what, value) in passed.figures(&there)? {
        report += &format!("{value:>9} {what}\n");
    }
    print!("{report}");
    fs::write(run.join(REPORT), report)?;
    let earlier = there.len() as u64 - count.passed;
    Count { passed: count.passed + earlier, ..count }.conclude()
}

/// Runs one part after the other on the node `number`, which is booted for the first.
fn work(
    number: u8,
    run: &Path,
    programs: &Programs,
    passed: &Passed,
    next: impl Fn() -> Option<Part>,
) -> Result<Count> {
    let mut count = Count::default();
    let Some(mut part) = next() else { return Ok(count) };
    let (machine, guest) = suites::boot_numbered(number, run, programs, Fate::WithRig)?;
    loop {
        let outcome = stage(&format!("{} on node {number}", part.name()), || part.run(&guest));
        match outcome {
            Ok(figures) => {
                passed.keep(&part, &figures)?;
                count.passed += 1;
            }
            Err(error) => {
                println!("{error:#}");
                println!("the programs' logs:  {}", machine.logs().display());
                count.failed += 1;
            }
        }
        match next() {
            Some(another) => part = another,
            None => return Ok(count),
        }
    }
}

/// One part of an attack, from 1.
#[derive(Clone, Copy, Debug)]
struct Part {
    attack: Attack,
    number: usize,
}

impl Part {
    fn name(&self) -> String {
        format!("{}-{}-of-{}", self.attack.name(), self.number, self.attack.parts())
    }

    /// Runs the part in `guest`. Returns what it counted.
    fn run(&self, guest: &Guest) -> Result<Figures> {
        let start = Instant::now();
        let (part, of, tests) = (self.number, self.attack.parts(), self.attack.tests());
        let script =
            format!("COFFER_PART={part}/{of} /share/bin/test-kernel --test-threads=1 --show-output {tests} 2>&1");
        let mut output = Vec::new();
        let status = guest.stream(&script, &[], |_, data| {
            output.extend_from_slice(data);
            Ok(())
        })?;
        let output = String::from_utf8_lossy(&output);
        anyhow::ensure!(status == 0, "{} failed:\n{output}", self.name());
        let mut figures: Figures = output.lines().filter_map(figure).collect();
        figures.insert(SECONDS.to_owned(), start.elapsed().as_secs());
        Ok(figures)
    }
}

/// What was counted, and how much of it.
type Figures = BTreeMap<String, u64>;

fn figure(line: &str) -> Option<(String, u64)> {
    let (what, value) = line.strip_prefix(FIGURE)?.rsplit_once(": ")?;
    Some((what.to_owned(), value.parse().ok()?))
}

/// The parts that have passed with these programs, a file for each.
struct Passed(PathBuf);

impl Passed {
    fn of(directory: &Path, programs: &Programs) -> Result<Self> {
        let mut hash = Sha256::new();
        for name in ["coffer", "test-kernel"] {
            hash.update(fs::read(programs.path(name)?)?);
        }
        let directory = directory.join(hex::encode(&hash.finalize()[..8]));
        fs::create_dir_all(&directory)?;
        Ok(Self(directory))
    }

    fn has(&self, part: &Part) -> bool {
        self.0.join(part.name()).exists()
    }

    fn keep(&self, part: &Part, figures: &Figures) -> Result<()> {
        let lines: String = figures.iter().map(|(what, value)| format!("{FIGURE}{what}: {value}\n")).collect();
        let unfinished = self.0.join("unfinished").with_extension(part.name());
        fs::write(&unfinished, lines)?;
        fs::rename(unfinished, self.0.join(part.name())).context("a part that has passed cannot be kept")
    }

    /// What `parts` counted, together.
    fn figures(&self, parts: &[&Part]) -> Result<Figures> {
        let mut sum = Figures::new();
        for part in parts {
            let text = fs::read_to_string(self.0.join(part.name()))?;
            for (what, value) in text.lines().filter_map(figure) {
                *sum.entry(what).or_default() += value;
            }
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_read_from_what_a_test_prints() {
        assert_eq!(figure("figure: kills, late: 12"), Some(("kills, late".to_owned(), 12)));
        assert_eq!(figure("test kills::figure: 12 ... ok"), None);
    }
}
