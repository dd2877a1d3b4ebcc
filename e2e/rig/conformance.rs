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
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;

use crate::cluster::Cluster;
use crate::cluster::Parts;
use crate::images;
use crate::kbs::Kbs;
use crate::kubernetes;
use crate::process::Fate;
use crate::process::read;
use crate::report::Count;
use crate::report::stage;
use crate::sandbox;
use crate::traces::POOL;
use crate::wait;
use progress::Progress;
pub(crate) use selection::Part;

/// Every case waits for most of its time; with more of them at once the emulated processor is what they wait for.
const PROCESSES: u32 = 3;
/// Every volume of the cases that run at once, with the room of whole claims.
const POOL_BYTES: u64 = 24 << 30;
/// Importing 64 MB takes half a minute on an emulated node.
const IMPORT_DEADLINE: &str = "600";
const KEY_URI: &str = "kbs:///default/storage/coffer";

/// What runs the suite; getting it needs the package registries, so it is done outside the sandbox.
struct Tools {
    ginkgo: PathBuf,
    suite: PathBuf,
    agnhost: PathBuf,
    busybox: PathBuf,
    dd: PathBuf,
}

impl Tools {
    fn get() -> Result<Self> {
        let programs = kubernetes::programs()?;
        Ok(Self {
            ginkgo: programs.join("ginkgo"),
            suite: kubernetes::suite()?,
            agnhost: programs.join("agnhost"),
            busybox: kubernetes::debian_programs()?.join("busybox"),
            dd: kubernetes::dd()?,
        })
    }
}

/// Runs `part` of the suite in a fresh cluster in `run`.
pub(crate) fn test(run: &Path, part: &Part, fate: Fate) -> Result<()> {
    let begun = Instant::now();
    if sandbox::is_outside() {
        stage("Build what the cache does not have: node image, Kubernetes and its test suite", || {
            Parts::get()?;
            Tools::get()
        })?;
    }
    sandbox::enter()?;
    let tools = Tools::get()?;
    let (cluster, kbs) = Cluster::start_with_kbs(run, Parts::get()?.with_pool(POOL_BYTES), fate)?;
    stage("Coffer: pool, policy, secret, StorageClass", || operate(&cluster, &kbs))?;
    stage("Images of the suite", || import_images(&cluster, &tools))?;
    let outcome = stage("Kubernetes' storage suite", || tools.run(&cluster, part));
    println!("==> {:.0} s in all", begun.elapsed().as_secs_f64());
    let count = outcome.unwrap_or_else(|error| {
        println!("{error:#}");
        Count { passed: 0, failed: 1 }
    });
    println!("    report and output of every case: {}", results(&cluster).display());
    println!("    the programs' logs: {} and the directories beside it", cluster.machine.logs().display());
    count.conclude()
}

fn results(cluster: &Cluster) -> PathBuf {
    cluster.run.join("suite")
}

/// What an operator does before the first volume.
fn operate(cluster: &Cluster, kbs: &Kbs) -> Result<()> {
    cluster.guest.check(&format!("coffer pool init {POOL}"))?;
    let attestation = cluster.guest.check("coffer attest --attester tpm --output json")?;
    let file = cluster.run.join("attest.json");
    fs::write(&file, attestation)?;
    let node = crate::control_plane::NODE;
    kbs.operate(&["register", "--pcrs", "0-7", node, &file.to_string_lossy()])?;
    kbs.operate(&["put", "--allow", node, KEY_URI])?;
    for object in ["csidriver.yaml", "storageclass.yaml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(object);
        read(&mut cluster.plane.kubectl(&["apply", "-f", &path.to_string_lossy()]))?;
    }
    wait::until(wait::seconds(120), "the driver's registration", || {
        let node = cluster.plane.get("csinode", node)?.context("the kubelet made no CSINode")?;
        Ok(node["spec"]["drivers"].as_array().is_some_and(|drivers| !drivers.is_empty()).then_some(()))
    })
}

/// The nodes read them from the directory that they share with the rig.
fn import_images(cluster: &Cluster, tools: &Tools) -> Result<()> {
    let archive = cluster.run.join("share/suite.tar");
    images::write_of_suite(&tools.busybox, &tools.agnhost, &tools.dd, &archive)?;
    cluster
        .guest
        .check(&format!("timeout {IMPORT_DEADLINE} ctr --namespace k8s.io images import --local /share/suite.tar"))
        .map(drop)
}

impl Tools {
    fn run(&self, cluster: &Cluster, part: &Part) -> Result<Count> {
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
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?);
        let mut child = command.spawn().context("cannot start ginkgo")?;
        let output = BufReader::new(child.stdout.take().context("standard output is a pipe")?);
        let mut progress = Progress::default();
        for line in output.lines() {
            let line = line?;
            writeln!(log, "{line}")?;
            progress.see(&line);
        }
        let success = child.wait()?.success();
        let count = progress.count.context("the suite did not say how many cases passed")?;
        Ok(Count { failed: count.failed.max(u64::from(!success)), ..count })
    }
}
