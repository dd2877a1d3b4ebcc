//! The story of one volume, told on two real kubelets, kernels and TPMs: installed for, made, used, searched for,
//! refused, crashed, deleted. `make demo` shows it to a person; `make cluster` begins with the same story as a test.
//!
//! A check that does not hold is counted and the story goes on as far as it can.

mod canary;
mod crash;
mod elsewhere;
mod end;
mod health;
#[path = "../kernel/secrecy/needles.rs"]
mod needles;
mod operator;
mod proof;
mod refusal;
mod workload;

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use serde_json::Value;
use serde_json::json;

use crate::cluster::Cluster;
use crate::cluster::Node;
use crate::cluster::Parts;
use crate::cluster::has_condition;
use crate::install::KEY_URI;
use crate::kbs::Kbs;
use crate::process::Fate;
use crate::report::Count;
use crate::report::stage;
use crate::wait;

/// Where the secret is that only the first node may have.
pub(crate) const ONLY_FIRST_URI: &str = "kbs:///default/storage/first-only";
/// Pod and claim of `examples/`.
const POD: &str = "writer";
const CLAIM: &str = "secrets";
/// A pod start takes 10 to 20 s in an emulated machine, and many times that while both cores are busy.
const POD_DEADLINE: Duration = wait::seconds(300);
/// A node mirrors what happens on it at once.
const ROW_DEADLINE: Duration = wait::seconds(60);

/// The rig, and what was found so far.
pub(crate) struct Story {
    /// Where it is told.
    pub(crate) cluster: Cluster,
    kbs: Kbs,
    /// Which node the pod and its volume are on.
    home: usize,
    /// How many of its sentences held.
    pub(crate) count: Count,
}

/// The volume of the claim, and what the pod wrote into it.
struct Volume {
    id: String,
    pv: String,
    needle: Vec<u8>,
}

/// Tells the story in `run`. With [`Fate::Kept`] the rig stays up afterwards.
pub(crate) fn tell(run: &Path, fate: Fate) -> Result<()> {
    let begun = Instant::now();
    let class = |name: &str, uri: &str| json!({ "name": name, "keyUri": uri });
    let classes = [class("coffer", KEY_URI), class("first-only", ONLY_FIRST_URI)];
    let story = Story::told(run, Parts::sandboxed()?, fate, &json!({ "storageClasses": classes }))?;
    println!("==> {:.0} s in all", begun.elapsed().as_secs_f64());
    if fate == Fate::Kept {
        println!("    the rig is up: `make shell` opens a shell on its first node, `make down` ends it");
    }
    story.count.conclude()
}

impl Story {
    /// The story as it went, and the rig on which it was told. The chart's `values` need the classes `coffer` and
    /// `first-only`.
    pub(crate) fn told(run: &Path, parts: Parts, fate: Fate, values: &Value) -> Result<Self> {
        let (cluster, kbs) = Cluster::start_with_kbs(run, parts, fate)?;
        let mut story = Self { cluster, kbs, home: 0, count: Count::default() };
        if let Err(error) = story.chapters(values) {
            story.check(&format!("the story can go on: {error:#}"), false);
            println!("    logs: below {}", story.cluster.run.display());
        }
        Ok(story)
    }

    fn chapters(&mut self, values: &Value) -> Result<()> {
        stage(
            "1. The operator installs the chart, makes pools, shows what the nodes prove, and stores a secret",
            || self.operate(values),
        )?;
        let volume = stage("2. A claim and a pod are applied; the pod writes a needle", || self.apply())?;
        stage("3. Below the pod there is only ciphertext", || self.prove(&volume))?;
        stage("4. The policy no longer accepts the node, and then does again", || self.refuse(&volume))?;
        stage("5. The second node wants a key that only the first may have", || self.refuse_second_node())?;
        stage("6. The KBS is away, and comes back", || self.lose_kbs(&volume))?;
        stage("7. The node crashes", || self.crash(&volume))?;
        stage("8. The keys are searched for, in etcd and in every log", || self.hunt(&volume))?;
        stage("9. Pod and claim are deleted", || self.end(&volume))
    }

    /// The node that the volume is on.
    fn home(&self) -> &Node {
        &self.cluster.nodes[self.home]
    }

    /// Prints what `kubectl` says.
    fn show(&self, arguments: &str) -> Result<()> {
        let said = self.cluster.shell(&format!("kubectl {arguments}"))?;
        said.lines().for_each(|line| println!("           {line}"));
        Ok(())
    }

    /// Waits until the volume's resource is in `phase` and `holds` of it, and shows its row.
    fn check_row(&mut self, id: &str, phase: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
        wait::until(ROW_DEADLINE, "the volume's row in kubectl get encvol", || {
            let row = self.cluster.plane.get("encvol", id)?;
            Ok(row.filter(|row| row["status"]["phase"] == phase && holds(row)).map(drop))
        })?;
        self.show(&format!("get encvol {id}"))?;
        self.check(&format!("kubectl get encvol: {phase}"), true);
        Ok(())
    }

    /// Shows whether something holds, and counts it.
    fn check(&mut self, what: &str, holds: bool) {
        println!("    {} {what}", if holds { "ok    " } else { "FAILED" });
        if holds {
            self.count.passed += 1;
        } else {
            self.count.failed += 1;
        }
    }

    /// The pod, if there is one.
    fn pod(&self) -> Result<Option<Value>> {
        self.cluster.plane.get("pod", POD)
    }

    /// Waits until the pod for which `which` holds is Ready, and returns it.
    fn ready_pod(&self, limit: Duration, which: impl Fn(&Value) -> bool) -> Result<Value> {
        wait::until(limit, "the pod to be Ready", || {
            Ok(self.pod()?.filter(|pod| which(pod) && has_condition(pod, "Ready")))
        })
    }

    /// Runs `script` in the pod and returns what it printed.
    fn in_pod(&self, script: &str) -> Result<Vec<u8>> {
        let output = self.cluster.plane.kubectl(&["exec", POD, "--", "sh", "-c", script]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "in the pod, {script:?}: {said}");
        Ok(output.stdout)
    }

    /// Applies one file of `examples/`.
    fn apply_example(&self, name: &str) -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        crate::process::read(&mut self.cluster.plane.kubectl(&["apply", "-f", &path.to_string_lossy()])).map(drop)
    }

    fn check_needle(&mut self, volume: &Volume) -> Result<()> {
        let here = self.in_pod("cat /data/needle")?;
        self.check("the needle is there, all 64 bytes of it", here == volume.needle);
        Ok(())
    }
}

/// The text at `pointer` of an object.
fn text(object: &Value, pointer: &str) -> Result<String> {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found.map(str::to_owned).with_context(|| format!("the object has no {pointer}"))
}
