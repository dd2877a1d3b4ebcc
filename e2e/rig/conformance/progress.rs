//! What a person sees of the suite: one line for each case that ends, and at the end what failed.

use crate::report::Count;

const FAILED: &str = "FAILED";

/// What was seen of Ginkgo's output so far.
#[derive(Default)]
pub(super) struct Progress {
    /// The state of a case whose name stands in the next line.
    state: Option<String>,
    ended: u32,
    in_summary: bool,
    /// The last line's count, once it was there.
    pub(super) count: Option<Count>,
}

impl Progress {
    /// Prints a line if a case has ended, or a failure is summed up. Returns whether a case has failed.
    pub(super) fn see(&mut self, line: &str) -> bool {
        self.count = Count::of_ginkgo(line).or(self.count);
        let ended = self.state.take();
        if let Some(state) = &ended {
            self.ended += 1;
            println!("    {:3} {state} {}", self.ended, short(line));
        }
        self.state = state(line);
        self.in_summary |= line.starts_with("Summarizing ");
        if self.in_summary {
            println!("    {line}");
        }
        ended.is_some_and(|state| state.starts_with(FAILED))
    }
}

/// How a case ended and how long it took, if `line` says so: `• [24.3 seconds]`, `• [FAILED] [24.3 seconds]`.
fn state(line: &str) -> Option<String> {
    let rest = line.strip_prefix("• ")?.strip_suffix(" seconds]")?;
    let (state, seconds) = rest.rsplit_once('[')?;
    let seconds: f64 = seconds.parse().ok()?;
    let state = if state.is_empty() { "ok    " } else { FAILED };
    Some(format!("{state} {seconds:5.1} s"))
}

/// A case's name without what is the same in all of them.
fn short(name: &str) -> &str {
    let name = name.split_once("[Testpattern: ").map_or(name, |(_, rest)| rest);
    name.split_once(" [Driver: ").map_or(name, |(rest, _)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_case_is_seen() {
        assert_eq!(state("• [24.312 seconds]").as_deref(), Some("ok      24.3 s"));
        assert_eq!(state("• [FAILED] [300.0 seconds]").as_deref(), Some("FAILED 300.0 s"));
        assert_eq!(state("[SynchronizedBeforeSuite] PASSED [0.000 seconds]"), None);
        let name =
            "External Storage [Driver: d] [Testpattern: Dynamic PV (xfs)] volumes should store data [Slow] [Driver: d]";
        assert_eq!(short(name), "Dynamic PV (xfs)] volumes should store data [Slow]");
    }
}
