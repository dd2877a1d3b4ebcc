//! The stage on which a scenario plays: a namespace, a few words for what pods and claims do, and the look around after it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use serde_json::Value;
use serde_json::json;

use super::Scenario;
use crate::cluster::Cluster;
use crate::cluster::Node;
use crate::cluster::has_condition;
use crate::install::DRIVER;
use crate::objects;
use crate::objects::claim;
use crate::objects::of_class;
use crate::traces;
use crate::wait;

/// An emulated pod starts in 10 to 20 s; after a crash the kubelet's back-off adds to that.
pub(super) const DEADLINE: Duration = wait::seconds(300);

/// Where a scenario plays.
pub(super) struct Scene<'a> {
    /// The cluster, with the chart installed.
    pub(super) cluster: &'a mut Cluster,
    /// The scenario's own namespace.
    pub(super) namespace: String,
}

/// The volume behind a claim.
pub(super) struct Volume {
    /// Name of its EncryptedVolume.
    pub(super) id: String,
    /// Name of its PersistentVolume.
    pub(super) pv: String,
    /// Which of the cluster's nodes it is on.
    pub(super) home: usize,
}

/// Plays `scenario` in a namespace of its own and looks around afterwards.
pub(super) fn play(cluster: &mut Cluster, scenario: &Scenario) -> Result<()> {
    let namespace = scenario.name.replace('_', "-");
    cluster.shell(&format!("kubectl create namespace {namespace}"))?;
    let mut scene = Scene { cluster, namespace };
    let outcome = (scenario.run)(&mut scene);
    let warnings = scene.warnings()?;
    let patience = DEADLINE.as_secs();
    let deleted = scene
        .cluster
        .shell(&format!("kubectl delete namespace {} --ignore-not-found --timeout={patience}s", scene.namespace));
    outcome?;
    deleted?;
    scene.check_nothing_left()?;
    let unexpected: Vec<_> =
        warnings.into_iter().filter(|(reason, message)| !scenario.names(reason, message)).collect();
    anyhow::ensure!(unexpected.is_empty(), "Warnings that the scenario does not name: {unexpected:?}");
    Ok(())
}

impl Scene<'_> {
    /// Runs `kubectl` with `arguments` in the namespace; returns what it printed.
    pub(super) fn kubectl(&self, arguments: &str) -> Result<String> {
        self.cluster.shell(&format!("kubectl --namespace {} {arguments}", self.namespace))
    }

    /// Applies `objects` in the namespace.
    pub(super) fn apply(&self, objects: &[Value]) -> Result<()> {
        let mut objects = objects.to_vec();
        objects.iter_mut().for_each(|object| object["metadata"]["namespace"] = json!(self.namespace));
        self.cluster.plane.apply(&objects::list(&objects))
    }

    /// The object `name` of the namespace, or of none, if it is there.
    pub(super) fn get(&self, kind: &str, name: &str) -> Result<Option<Value>> {
        let text = self.kubectl(&format!("get {kind} {name} --ignore-not-found --output json"))?;
        Ok(if text.is_empty() { None } else { Some(serde_json::from_str(&text)?) })
    }

    /// Waits until the pod `name` is Ready, and returns it.
    pub(super) fn ready(&self, name: &str) -> Result<Value> {
        wait::until(DEADLINE, &format!("pod {name} to be Ready"), || {
            Ok(self.get("pod", name)?.filter(|pod| has_condition(pod, "Ready")))
        })
    }

    /// Deletes the object and waits until it is gone.
    pub(super) fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.kubectl(&format!("delete {kind} {name} --timeout={}s", DEADLINE.as_secs())).map(drop)
    }

    /// Waits until the object is gone.
    pub(super) fn gone(&self, kind: &str, name: &str) -> Result<()> {
        wait::until(DEADLINE, &format!("{kind} {name} to be gone"), || {
            Ok(self.get(kind, name)?.is_none().then_some(()))
        })
    }

    /// Runs `script` in the pod; returns what it printed.
    pub(super) fn exec(&self, pod: &str, script: &str) -> Result<String> {
        let mut command =
            self.cluster.plane.kubectl(&["--namespace", &self.namespace, "exec", pod, "--", "sh", "-ec", script]);
        Ok(crate::process::read(&mut command)?.trim().to_owned())
    }

    /// Has the pod write 4 random MiB to `file`, with fsync; returns their digest.
    pub(super) fn write(&self, pod: &str, file: &str) -> Result<String> {
        self.exec(pod, &format!("dd if=/dev/urandom of={file} bs=1M count=4 conv=fsync 2>/dev/null; sha256sum <{file}"))
    }

    /// An error unless the bytes that the pod reads in `file` have this digest.
    pub(super) fn check(&self, pod: &str, file: &str, digest: &str) -> Result<()> {
        let found = self.exec(pod, &format!("sha256sum <{file}"))?;
        anyhow::ensure!(found == digest, "pod {pod} reads other bytes in {file} than were written");
        Ok(())
    }

    /// The volume that the claim is bound to, when it is.
    pub(super) fn volume(&self, claim: &str) -> Result<Volume> {
        let pv = wait::until(DEADLINE, &format!("claim {claim} to be bound"), || {
            let bound = self.get("pvc", claim)?.filter(|claim| claim["status"]["phase"] == "Bound");
            Ok(bound.and_then(|claim| claim["spec"]["volumeName"].as_str().map(str::to_owned)))
        })?;
        let object = self.get("pv", &pv)?.context("the volume of a bound claim is gone")?;
        let id = object["spec"]["csi"]["volumeHandle"].as_str().context("a volume has a handle")?.to_owned();
        let resource = self.get("encvol", &id)?.context("the volume has no resource")?;
        let home = self.cluster.nodes.iter().position(|node| resource["spec"]["nodeName"] == node.name);
        Ok(Volume { id, pv, home: home.context("the volume is on a node of the rig")? })
    }

    /// The volume of a new claim `data` that binds at once, before any pod wants it.
    pub(super) fn provisioned(&self, size: &str) -> Result<Volume> {
        self.apply(&[of_class("immediate", claim("data", size))])?;
        let volume = self.volume("data")?;
        self.phase(&volume.id, "Provisioned")?;
        Ok(volume)
    }

    /// The node of the volume.
    pub(super) fn home(&self, volume: &Volume) -> &Node {
        &self.cluster.nodes[volume.home]
    }

    /// Waits until the resource of the volume says `phase`.
    pub(super) fn phase(&self, id: &str, phase: &str) -> Result<()> {
        wait::until(DEADLINE, &format!("phase {phase} of {id}"), || {
            let resource = self.get("encvol", id)?.context("the resource is gone")?;
            Ok((resource["status"]["phase"] == phase).then_some(()))
        })
    }

    /// Waits until an event with this reason whose message contains `words` was reported about anything of the namespace.
    pub(super) fn event(&self, reason: &str, words: &str) -> Result<()> {
        wait::until(DEADLINE, &format!("the event {reason}: {words}"), || {
            let list = self.kubectl(&format!("get events --field-selector reason={reason} --output json"))?;
            let list: Value = serde_json::from_str(&list)?;
            let mut events = list["items"].as_array().into_iter().flatten();
            Ok(events.any(|event| event["message"].as_str().is_some_and(|said| said.contains(words))).then_some(()))
        })
    }

    fn warnings(&self) -> Result<BTreeSet<(String, String)>> {
        let list: Value =
            serde_json::from_str(&self.kubectl("get events --field-selector type=Warning --output json")?)?;
        let word = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let events = list["items"].as_array().into_iter().flatten();
        Ok(events.map(|event| (word(event, "reason"), word(event, "message"))).collect())
    }

    /// Waits until Kubernetes has no volume and the nodes hold nothing any more; an error says what stays.
    fn check_nothing_left(&self) -> Result<()> {
        let mut left = Vec::new();
        let clean = wait::until(wait::seconds(120), "nothing to be left", || {
            left = self.cluster.shell("kubectl get pv,encvol --output name")?.lines().map(str::to_owned).collect();
            for node in &self.cluster.nodes {
                left.extend(
                    traces::of_driver(&node.guest, DRIVER, &[])?
                        .into_iter()
                        .map(|line| format!("{}: {line}", node.name)),
                );
            }
            Ok(left.is_empty().then_some(()))
        });
        clean.with_context(|| format!("left: {}", left.join("; ")))
    }
}
