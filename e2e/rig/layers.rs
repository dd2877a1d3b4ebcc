//! Every layer of tests, one after the other, and one count at the end.

use std::io::BufRead;
use std::io::BufReader;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;

use crate::report::Count;
use crate::report::stage;

/// From what takes seconds to what takes minutes. Each is a target of the Makefile.
const LAYERS: [&str; 6] = ["unit", "conformance", "kbs", "kernel", "sanity", "cluster"];

/// Runs every layer, also after one has failed.
pub(crate) fn all() -> Result<()> {
    let mut counts = Vec::new();
    for layer in LAYERS {
        let count = stage(&format!("make {layer}"), || make(layer)).unwrap_or_else(|error| {
            println!("    {error:#}");
            Count { passed: 0, failed: 1 }
        });
        counts.push((layer, count));
    }
    for (layer, Count { passed, failed }) in &counts {
        println!("{layer:>12}: {passed} passed, {failed} failed");
    }
    counts.into_iter().fold(Count::default(), |sum, (_, count)| sum.and(count)).conclude()
}

/// The tests of the library and the programs whose names contain `filter`, on the host.
pub(crate) fn unit(filter: &str) -> Result<()> {
    cargo_test(&["--lib", "--bins", "--test", "house", "--test", "proto"], filter)
}

/// The test target `name` of cargo, on the host.
pub(crate) fn target(name: &str, filter: &str) -> Result<()> {
    cargo_test(&["--test", name], filter)
}

fn make(layer: &str) -> Result<Count> {
    let mut count = None;
    let success = follow(Command::new("make").args(["--no-print-directory", layer]), |line| {
        count = Count::of_conclusion(line).or(count);
    })?;
    let count = count.with_context(|| format!("make {layer} did not say how many tests passed"))?;
    Ok(Count { failed: count.failed.max(u64::from(!success)), ..count })
}

fn cargo_test(targets: &[&str], filter: &str) -> Result<()> {
    let mut count = Count::default();
    let mut tests = Command::new("cargo");
    tests.args(["test", "--release", "--all-features", "--no-fail-fast"]).args(targets).args(["--", filter]);
    let success = follow(&mut tests, |line| count = count.and(Count::of_rust(line).unwrap_or_default()))?;
    count.failed = count.failed.max(u64::from(!success));
    count.conclude()
}

/// Runs `command`, prints each line of its output as it comes and shows it to `each`. Returns whether it succeeded.
fn follow(command: &mut Command, mut each: impl FnMut(&str)) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {command:?}"))?;
    let output = BufReader::new(child.stdout.take().context("standard output is a pipe")?);
    for line in output.lines() {
        let line = line?;
        println!("{line}");
        each(&line);
    }
    Ok(child.wait()?.success())
}
