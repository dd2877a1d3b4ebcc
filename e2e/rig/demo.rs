//! The story of one volume, told on a real kubelet, a real kernel and a TPM: made, used, searched for, refused,
//! crashed, deleted. `make demo` shows it to a person; `make cluster` is the same story as a test.
//!
//! A check that does not hold is counted and the story goes on as far as it can.

mod crash;
mod end;
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

use crate::cluster::Cluster;
use crate::cluster::Parts;
use crate::cluster::has_condition;
use crate::kbs::Kbs;
use crate::process::Fate;
use crate::report::Count;
use crate::report::stage;
use crate::sandbox;
use crate::wait;

/// Where the StorageClass of `examples/` says that its secret is.
const KEY_URI: &str = "kbs:///default/storage/coffer";
/// Pod, claim and driver of `examples/`.
const POD: &str = "writer";
const CLAIM: &str = "secrets";
const DRIVER: &str = "csi.coffer.dev";
/// A pod start takes 10 to 20 s in an emulated machine, and many times that while both cores are busy.
const POD_DEADLINE: Duration = wait::seconds(300);

/// The rig, and what was found so far.
struct Story {
    cluster: Cluster,
    kbs: Kbs,
    count: Count,
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
    if sandbox::is_outside() {
        stage("Build what the cache does not have: node image, Kubernetes, containerd", || Parts::get().map(drop))?;
        sandbox::enter()?;
    }
    sandbox::enter()?;
    let parts = Parts::get()?;
    let (cluster, kbs) = Cluster::start_with_kbs(run, parts, fate)?;
    let mut story = Story { cluster, kbs, count: Count::default() };
    if let Err(error) = story.chapters() {
        story.check(&format!("the story can go on: {error:#}"), false);
        println!("    logs: {} and the directories beside it", story.cluster.machine.logs().display());
    }
    println!("==> {:.0} s in all", begun.elapsed().as_secs_f64());
    if fate == Fate::Kept {
        println!("    the rig is up: `make shell` opens a shell on the node, `make down` ends it");
    }
    story.count.conclude()
}

impl Story {
    fn chapters(&mut self) -> Result<()> {
        stage("1. The operator makes a pool, shows what the node proves, and stores a secret", || self.operate())?;
        let volume = stage("2. A claim and a pod are applied; the pod writes a needle", || self.apply())?;
        stage("3. Below the pod there is only ciphertext", || self.prove(&volume))?;
        stage("4. The policy no longer accepts the node, and then does again", || self.refuse(&volume))?;
        stage("5. The node crashes", || self.crash(&volume))?;
        stage("6. Pod and claim are deleted", || self.end(&volume))
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

    /// Applies one file of `examples/`, or all of them.
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
