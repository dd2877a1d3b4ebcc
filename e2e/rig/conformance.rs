//! Kubernetes' own storage suite (`e2e.test`, External Storage) against Coffer in a cluster of the rig.
//!
//! What Coffer claims to do stands in `suite/driver.yaml`, what is left out of it and why in [`selection`]. Every case
//! that runs counts; the suite skips by itself what belongs to capabilities that are declared false.

mod progress;
mod selection;

use std::fs;
use std::fs::File;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process_group;
use serde_json::json;

use crate::cluster::Cluster;
use crate::cluster::Parts;
use crate::kubernetes;
use crate::process::Fate;
use crate::report::Count;
use crate::report::stage;
use crate::sandbox;
use progress::Progress;
pub(crate) use selection::Part;

/// Every case waits for most of its time; with more of them at once the emulated processor is what they wait for.
const PROCESSES: u32 = 3;
/// Every volume of the cases that run at once, with the room of whole claims.
const POOL_BYTES: u64 = 24 << 30;
/// Small, so that the suite can reach it.
const MAX_VOLUMES: u32 = 10;

/// What runs the suite; getting it needs the package registries, so it is done outside the sandbox.
pub(crate) struct Tools {
    ginkgo: PathBuf,
    suite: PathBuf,
}

impl Tools {
    /// Builds what the cache does not have.
    pub(crate) fn get() -> Result<Self> {
        Ok(Self { ginkgo: kubernetes::programs()?.join("ginkgo"), suite: kubernetes::suite()? })
    }
}

/// Runs `part` of the suite in a fresh cluster in `run`.
pub(crate) fn test(run: &Path, part: &Part, fate: Fate) -> Result<()> {
    let begun = Instant::now();
    let (parts, tools) = sandbox::enter_with("node image, Kubernetes and its test suite, Coffer's image", || {
        Ok((Parts::get()?, Tools::get()?))
    })?;
    let (mut cluster, kbs) = Cluster::start_with_kbs(run, parts.with_pool(POOL_BYTES), fate)?;
    let values = json!({ "node": { "maxVolumes": MAX_VOLUMES } });
    stage("Install the chart", || cluster.set_up(&kbs, &values))?;
    let count = tools.run(&mut cluster, part);
    println!("==> {:.0} s in all", begun.elapsed().as_secs_f64());
    println!("    the programs' logs: below {}", cluster.run.display());
    count.conclude()
}

fn results(cluster: &Cluster) -> PathBuf {
    cluster.run.join("suite")
}

impl Tools {
    /// Runs `part` in a cluster with the chart's own class, and says where its report is.
    pub(crate) fn run(&self, cluster: &mut Cluster, part: &Part) -> Count {
        let outcome = stage("Kubernetes' storage suite", || self.count(cluster, part));
        println!("    report and output of every case: {}", results(cluster).display());
        Count::of(outcome)
    }

    fn count(&self, cluster: &mut Cluster, part: &Part) -> Result<Count> {
        let results = results(cluster);
        fs::create_dir_all(&results)?;
        let driver = results.join("driver.yaml");
        fs::write(&driver, include_str!("suite/driver.yaml"))?;
        let mut log = File::create(results.join("output.log"))?;
        let mut command = Command::new(&self.ginkgo);
        command
            .args(["run", "-v", "--no-color", "--silence-skips", "--timeout=4h", "--junit-report=junit.xml"])
            .arg(format!("--procs={PROCESSES}"))
            .arg(format!("--output-dir={}", results.display()))
            .args(part.arguments())
            .arg(&self.suite)
            .args(["--", "-provider=skeleton"])
            .arg(format!("-storage.testdriver={}", driver.display()))
            .arg(format!("-kubeconfig={}", cluster.plane.kubeconfig("admin").display()))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?);
        let mut child = command.spawn().context("cannot start ginkgo")?;
        let output = BufReader::new(child.stdout.take().context("standard output is a pipe")?);
        let mut progress = Progress::default();
        for line in output.lines() {
            let line = line?;
            writeln!(log, "{line}")?;
            // Without an API server every other case would fail, too, each after half a minute.
            if progress.see(&line)
                && let Err(error) = cluster.plane.must_run()
            {
                kill_process_group(Pid::from_child(&child), Signal::KILL)?;
                child.wait()?;
                return Err(error);
            }
        }
        let success = child.wait()?.success();
        let count = progress.count.context("the suite did not say how many cases passed")?;
        Ok(Count { failed: count.failed.max(u64::from(!success)), ..count })
    }
}
