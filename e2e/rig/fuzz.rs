//! What reads an attacker's bytes, under a fuzzer: first every stored case, then new ones for a while.
//!
//! The targets run side by side. What the fuzzer learns stays in the run's directory and a later run goes on from there;
//! a case that broke something lies beside it and, once it is fixed, belongs into `fuzz/corpus`.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;

use crate::report::Count;
use crate::report::stage;

/// Where the targets and their stored cases lie.
const TARGETS: &str = "fuzz/fuzz_targets";
const CORPUS: &str = "fuzz/corpus";
/// No input takes longer, in seconds, and none makes a target take more memory, in MiB.
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=512"];
/// What libFuzzer says at the end when it found nothing.
const EXECUTIONS: &str = "stat::number_of_executed_units:";
/// How much of a target's log is shown when it failed.
const SHOWN_LINES: usize = 30;

/// Runs the targets whose names contain `filter`, for `seconds` each; `programs` is where cargo-fuzz built them.
pub(crate) fn test(run: &Path, programs: &Path, filter: &str, seconds: u32) -> Result<()> {
    let targets = targets(filter)?;
    fs::create_dir_all(run)?;
    let outcomes = stage(&format!("Fuzz {} for {seconds} s", targets.join(", ")), || {
        let fuzz_one = |target: &String| fuzz(run, programs, target, seconds);
        Ok(std::thread::scope(|scope| {
            let running = targets.iter().map(|target| scope.spawn(move || fuzz_one(target))).collect::<Vec<_>>();
            running.into_iter().map(|target| target.join().expect("a target reports what fails")).collect::<Vec<_>>()
        }))
    })?;
    let mut count = Count::default();
    for (target, outcome) in targets.iter().zip(outcomes) {
        count = count.and(Count::of(outcome.map(|executions| {
            println!("    {target}: {executions} inputs");
            Count { passed: 1, failed: 0 }
        })));
    }
    count.conclude()
}

fn targets(filter: &str) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(TARGETS)? {
        let path = entry?.path();
        targets.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    targets.retain(|name| name.contains(filter));
    targets.sort();
    Ok(targets)
}

/// Runs one target; says how many inputs it took, or shows the end of its log.
fn fuzz(run: &Path, programs: &Path, target: &str, seconds: u32) -> Result<u64> {
    let stored = Path::new(CORPUS).join(target);
    ensure!(fs::read_dir(&stored)?.count() > 0, "{} has no cases", stored.display());
    let learnt = run.join(target);
    fs::create_dir_all(&learnt)?;
    let log = run.join(format!("{target}.log"));
    let output = File::create(&log)?;
    let status = Command::new(programs.join(target))
        .args(LIMITS)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/{target}-", run.display()))
        .arg("-print_final_stats=1")
        .args([&learnt, &stored])
        // Without it the end of the log says what is wrong.
        .env("RUST_BACKTRACE", "0")
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .with_context(|| format!("cannot start {target}"))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let executions = text.lines().find_map(|line| line.strip_prefix(EXECUTIONS)?.trim().parse::<u64>().ok());
    match executions {
        Some(executions) if status.success() => Ok(executions),
        _ => {
            let lines: Vec<_> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            bail!("{target} ended with {status}; {} ends with:\n{end}", log.display());
        }
    }
}
