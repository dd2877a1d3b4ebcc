//! The test suites that run inside a node.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Result;

use crate::control_plane::ControlPlane;
use crate::guest::Guest;
use crate::image::Image;
use crate::kubernetes;
use crate::machine::Machine;
use crate::machine::Spec;
use crate::process::Fate;
use crate::process::read;
use crate::programs::Programs;
use crate::report::Count;
use crate::report::stage;
use crate::sandbox;
use crate::wire::Kind;

/// The kernel tests that have a power cut between them.
const HALVES: [&str; 2] = ["reboot::before_the_power_cut", "reboot::after_the_power_cut"];

/// A node on which a suite runs alone: no Kubernetes, an empty second disk.
fn node(number: u8, fate: Fate) -> Spec {
    Spec {
        name: format!("node{number}"),
        number,
        memory_mib: 2048,
        pool_bytes: 16 << 30,
        images: None,
        forwards: Vec::new(),
        fate,
    }
}

/// Boots a fresh node in `run` that has `programs`.
pub(crate) fn boot(run: &Path, programs: &Programs, fate: Fate) -> Result<(Machine, Guest)> {
    boot_numbered(1, run, programs, fate)
}

/// Boots the fresh node `number` of several, each with a `run` of its own.
pub(crate) fn boot_numbered(number: u8, run: &Path, programs: &Programs, fate: Fate) -> Result<(Machine, Guest)> {
    let run = &sandbox::fresh(run)?;
    let share = run.join("share");
    fs::create_dir_all(&share)?;
    programs.share(&share)?;
    let mut machine = Machine::create(run, Image::get()?, node(number, fate))?;
    let guest = stage("Boot the node", || machine.boot())?;
    Ok((machine, guest))
}

/// What a node and its tests need; inside the sandbox afterwards.
pub(crate) fn sandboxed(build: impl Fn() -> Result<Programs>) -> Result<Programs> {
    sandbox::enter_with("node image, programs", || {
        Image::get()?;
        build()
    })
}

/// The kernel tests whose names contain one of the words of `filter` and none of `skip`; with `soak` also what is long.
pub(crate) fn kernel(run: &Path, filter: &str, skip: &[String], soak: bool) -> Result<()> {
    let programs = sandboxed(|| Programs::product()?.with_test("kernel")?.with_older_cryptsetup()?.with(&tampering()))?;
    let (mut machine, guest) = boot(run, &programs, Fate::WithRig)?;
    let soak = if soak { "COFFER_SOAK=1 " } else { "" };
    let mut count = Count::default();
    let mut tests = |guest: &Guest, arguments: &str| {
        let script = format!("{soak}/share/bin/test-kernel --test-threads=1 --show-output {arguments} 2>&1");
        show(guest, &script, |line| count = count.and(Count::of_rust(line).unwrap_or_default()))
    };
    let skip: Vec<_> = skip.iter().map(|word| format!("--skip {word}")).collect();
    let mut status = tests(&guest, &format!("{} {filter}", skip.join(" ")));
    if filter.is_empty() || filter.split_whitespace().any(|word| HALVES.concat().contains(word)) {
        let [before, after] = HALVES;
        let halves = || {
            let first = tests(&guest, &format!("--ignored {before}"))?;
            machine.kill()?;
            let guest = stage("Boot the node after the power cut", || machine.boot())?;
            Ok(first.max(tests(&guest, &format!("--ignored {after}"))?))
        };
        status = status.and_then(|suite| stage("Cut the power", halves).map(|halves| suite.max(halves)));
    }
    finish(&machine, count, status)
}

/// The page that says what a changed disk comes to. It is shared and not compiled in, so that what takes hours is not due
/// again when the page says it.
fn tampering() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tampering.md")
}

/// csi-sanity in a fresh node, alone and as a node of a cluster; its own cases are what is counted.
pub(crate) fn sanity(run: &Path) -> Result<()> {
    let programs = sandboxed(|| {
        kubernetes::debian_programs()?;
        Programs::product()?.with_test("kernel")?.with(&kubernetes::programs()?.join("csi-sanity"))
    })?;
    let (machine, guest) = boot(run, &programs, Fate::WithRig)?;
    let run = &fs::canonicalize(run)?;
    let _plane = stage("Control plane: an API server that knows the node", || {
        let etcd = kubernetes::debian_programs()?.join("etcd");
        let plane = ControlPlane::start(&run.join("control-plane"), &kubernetes::programs()?, &etcd, Fate::WithRig)?;
        plane.apply(include_str!("../../deploy/coffer.yaml"))?;
        plane.apply(r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}}"#)?;
        fs::copy(plane.kubeconfig_in_guest("admin"), run.join("share/admin.kubeconfig"))?;
        // Only the controller itself deletes volumes without saying their names twice.
        let create = ["--namespace", "coffer-system", "create", "token", "coffer-controller"];
        let token = read(&mut plane.kubectl(&create))?;
        fs::write(run.join("share/controller.kubeconfig"), plane.kubeconfig_with(token.trim())?)?;
        Ok(plane)
    })?;
    let mut count = Count::default();
    let status = show(&guest, "/share/bin/test-kernel --test-threads=1 --ignored --nocapture sanity 2>&1", |line| {
        if let Some(found) = Count::of_ginkgo(line) {
            count = count.and(found);
        }
    });
    finish(&machine, count, status)
}

/// Runs `script` in the guest, prints each line with its output as it comes, and shows it to `each`.
pub(crate) fn show(guest: &Guest, script: &str, mut each: impl FnMut(&str)) -> Result<i32> {
    let mut rest = Vec::new();
    guest.stream(script, &[], |kind, data| {
        let mut out = std::io::stdout().lock();
        out.write_all(data)?;
        out.flush()?;
        if kind == Kind::Stdout {
            rest.extend_from_slice(data);
        }
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            each(&String::from_utf8_lossy(&rest[..end]));
            rest.drain(..=end);
        }
        Ok(())
    })
}

/// Prints where to look if anything went wrong, then the last line.
pub(crate) fn finish(machine: &Machine, mut count: Count, status: Result<i32>) -> Result<()> {
    if !matches!(status, Ok(0)) {
        count.failed = count.failed.max(1);
        println!("the guest's console: {}", machine.console().display());
        println!("the programs' logs:  {}", machine.logs().display());
    }
    if let Err(error) = status {
        println!("{error:#}");
    }
    count.conclude()
}
