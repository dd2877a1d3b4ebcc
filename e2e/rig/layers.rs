//! Every layer of tests, one after the other, and one count at the end.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;
use clap::ValueEnum;

use crate::kubernetes;
use crate::report::Count;
use crate::report::stage;
use crate::soak::Attack;
use crate::soak::REPORT;

/// What needs no node. Each layer is a target of the Makefile.
const ON_THE_HOST: [&str; 6] = ["unit", "fuzz-short", "csi", "kbs", "chart", "api"];
/// An emulated node keeps one core busy, so two of them share the machine: these on one, one after the other,
const ON_ONE_NODE: [&str; 1] = ["kernel"];
/// and these beside them on another.
const ON_THE_OTHER: [&str; 2] = ["sanity", "faults"];
/// Nodes and their control plane, with deadlines for the pods: alone.
const IN_A_CLUSTER: [&str; 1] = ["cluster"];

/// Runs every layer, also after one has failed.
pub(crate) fn all() -> Result<()> {
    let mut counts = ON_THE_HOST.map(|layer| (layer, show(layer))).to_vec();
    std::thread::scope(|scope| {
        println!("==> make {}: beside the next, their output at the end", ON_THE_OTHER.join(" "));
        let other = scope.spawn(|| ON_THE_OTHER.map(|layer| (layer, hold_back(layer))));
        counts.extend(ON_ONE_NODE.map(|layer| (layer, show(layer))));
        for (layer, (count, output)) in other.join().expect("a layer reports what fails") {
            println!("==> make {layer}, which ran meanwhile\n{output}");
            counts.push((layer, count));
        }
    });
    counts.extend(IN_A_CLUSTER.map(|layer| (layer, show(layer))));
    for (layer, Count { passed, failed }) in &counts {
        println!("{layer:>17}: {passed} passed, {failed} failed");
    }
    counts.into_iter().fold(Count::default(), |sum, (_, count)| sum.and(count)).conclude()
}

/// What takes too long for [`all`]; each attack has a directory in `run`.
pub(crate) fn soak(run: &Path) -> Result<()> {
    let attacks = Attack::value_variants().iter().map(|attack| attack.name());
    let counts: Vec<_> = attacks.clone().chain(["scenarios"]).map(|layer| (layer, show(layer))).collect();
    for attack in attacks {
        print!("{}", fs::read_to_string(run.join(attack).join(REPORT)).unwrap_or_default());
    }
    for (layer, Count { passed, failed }) in &counts {
        println!("{layer:>17}: {passed} passed, {failed} failed");
    }
    counts.into_iter().fold(Count::default(), |sum, (_, count)| sum.and(count)).conclude()
}

/// Makes `layer` and prints each line as it comes.
fn show(layer: &str) -> Count {
    Count::of(stage(&format!("make {layer}"), || make(layer, |line| println!("{line}"))))
}

/// Makes `layer` and keeps what it prints.
fn hold_back(layer: &str) -> (Count, String) {
    let mut lines = Vec::new();
    let count = Count::of(make(layer, |line| lines.push(line.to_owned())));
    (count, lines.join("\n"))
}

/// The tests of the library and the programs whose names contain `filter`, on the host.
pub(crate) fn unit(filter: &str) -> Result<()> {
    cargo_test(&["--lib", "--bins", "--test", "house", "--test", "proto", "--test", "policy"], filter, &[])
}

/// The test target `name` of cargo, on the host.
pub(crate) fn target(name: &str, filter: &str) -> Result<()> {
    cargo_test(&["--test", name], filter, &[])
}

/// The tests of the chart, on the host, with a Helm of our own.
pub(crate) fn chart(filter: &str) -> Result<()> {
    let helm = stage("Build what the cache does not have: Helm", kubernetes::helm)?;
    cargo_test(&["--test", "chart"], filter, &[("COFFER_HELM", &helm)])
}

fn make(layer: &str, mut each: impl FnMut(&str)) -> Result<Count> {
    let mut count = None;
    let success = follow(Command::new("make").args(["--no-print-directory", layer]), |line| {
        each(line);
        count = Count::of_conclusion(line).or(count);
    })?;
    let count = count.with_context(|| format!("make {layer} did not say how many tests passed"))?;
    Ok(Count { failed: count.failed.max(u64::from(!success)), ..count })
}

fn cargo_test(targets: &[&str], filter: &str, environment: &[(&str, &Path)]) -> Result<()> {
    let mut tests = Command::new("cargo");
    tests
        .args(["test", "--profile=rig", "--all-features", "--no-fail-fast"])
        .args(targets)
        .args(["--", filter])
        .envs(environment.iter().copied());
    rust_tests(&mut tests)?.conclude()
}

/// Runs `tests`, a program of Rust's test harness or several, shows what it prints, and counts.
pub(crate) fn rust_tests(tests: &mut Command) -> Result<Count> {
    let mut count = Count::default();
    let success = follow(tests, |line| {
        println!("{line}");
        count = count.and(Count::of_rust(line).unwrap_or_default());
    })?;
    Ok(Count { failed: count.failed.max(u64::from(!success)), ..count })
}

/// Runs `command` and shows each line of its output to `each` as it comes. Returns whether it succeeded.
fn follow(command: &mut Command, mut each: impl FnMut(&str)) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {command:?}"))?;
    let output = BufReader::new(child.stdout.take().context("standard output is a pipe")?);
    for line in output.lines() {
        each(&line?);
    }
    Ok(child.wait()?.success())
}
