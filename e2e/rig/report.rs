//! What a person sees while the rig works: stages with their time, then how many tests passed.

use std::time::Instant;

use anyhow::Result;

/// Does `work`, and says before and after that it does.
pub(crate) fn stage<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("==> {title}");
    let start = Instant::now();
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    println!("    {outcome} after {:.1} s", start.elapsed().as_secs_f64());
    result
}

/// Tests that passed and tests that did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
}

impl Count {
    /// The counts in a line that ends a run of Rust's test harness, if `line` is one.
    pub(crate) fn of_rust(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("test result: ")?;
        Some(Self { passed: number_before(rest, " passed")?, failed: number_before(rest, " failed")? })
    }

    /// The counts in the line that ends a run of Ginkgo, if `line` is one.
    pub(crate) fn of_ginkgo(line: &str) -> Option<Self> {
        let starts = line.contains(" Passed") && line.contains(" Failed") && line.contains("Skipped");
        let counts = || Some(Self { passed: number_before(line, " Passed")?, failed: number_before(line, " Failed")? });
        starts.then(counts).flatten()
    }

    /// The counts in the last line of a target of ours, if `line` is one.
    pub(crate) fn of_conclusion(line: &str) -> Option<Self> {
        let (passed, failed) = line.strip_suffix(" failed")?.split_once(" passed, ")?;
        Some(Self { passed: passed.parse().ok()?, failed: failed.parse().ok()? })
    }

    /// What was counted; what could not be is told and counts as one failure.
    pub(crate) fn of(outcome: Result<Self>) -> Self {
        outcome.unwrap_or_else(|error| {
            println!("    {error:#}");
            Self { passed: 0, failed: 1 }
        })
    }

    /// Both together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { passed: self.passed + other.passed, failed: self.failed + other.failed }
    }

    /// The last line of a target, and an error if anything failed or nothing ran.
    pub(crate) fn conclude(self) -> Result<()> {
        println!("{} passed, {} failed", self.passed, self.failed);
        anyhow::ensure!(self.failed == 0 && self.passed > 0, "not everything passed");
        Ok(())
    }
}

fn number_before(line: &str, word: &str) -> Option<u64> {
    let before = &line[..line.find(word)?];
    let digits = before.rfind(|character: char| !character.is_ascii_digit()).map_or(before, |at| &before[at + 1..]);
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_every_harness() {
        let rust = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(Count::of_rust(rust), Some(Count { passed: 12, failed: 3 }));
        let ginkgo = "FAIL! -- 50 Passed | 2 Failed | 1 Pending | 41 Skipped";
        assert_eq!(Count::of_ginkgo(ginkgo), Some(Count { passed: 50, failed: 2 }));
        assert_eq!(Count::of_conclusion("12 passed, 3 failed"), Some(Count { passed: 12, failed: 3 }));
        assert_eq!(Count::of_conclusion("      kernel: 12 passed, 3 failed"), None);
        assert_eq!(Count::of_rust("test a_test ... ok"), None);
        assert_eq!(Count::of_ginkgo("Ran 52 of 94 Specs"), None);
    }
}
