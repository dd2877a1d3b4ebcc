//! Coffer in a cluster of the rig, as an operator installs it: the chart, then what Helm's notes say.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use anyhow::Result;
use serde_json::Value;
use serde_json::json;

use crate::cluster::Cluster;
use crate::cluster::Node;
use crate::control_plane::NODES;
use crate::kbs::Kbs;
use crate::process::read;
use crate::product_image;
use crate::wait;

/// The chart's namespace.
pub(crate) const NAMESPACE: &str = "coffer-system";
/// Name of the driver.
pub(crate) const DRIVER: &str = "csi.coffer.dev";
/// File with the values of the first installation, below the run.
const VALUES: &str = "values.yaml";
/// Where the chart's own StorageClass says that its secret is.
pub(crate) const KEY_URI: &str = "kbs:///default/storage/coffer";

impl Cluster {
    /// Installs the chart with `values`, does what its notes say, has the KBS accept both nodes, and gives them [`KEY_URI`].
    pub(crate) fn set_up(&self, kbs: &Kbs, values: &Value) -> Result<()> {
        for command in self.install(kbs, values)? {
            self.shell(&command)?;
        }
        self.wait_for_registration()?;
        self.nodes.iter().try_for_each(|node| self.admit(kbs, node).map(drop))?;
        self.store(kbs, KEY_URI, &NODES)?;
        self.wait_for_capacities()
    }

    /// Stores a secret under `uri` that the nodes `allowed` may have. Returns what the KBS said.
    pub(crate) fn store(&self, kbs: &Kbs, uri: &str, allowed: &[&str]) -> Result<String> {
        let mut arguments = vec!["put"];
        allowed.iter().for_each(|node| arguments.extend(["--allow", node]));
        arguments.push(uri);
        kbs.operate(&arguments)
    }

    /// Installs the chart with `values` beside those that the rig needs. Returns the commands that Helm's notes name.
    pub(crate) fn install(&self, kbs: &Kbs, values: &Value) -> Result<Vec<String>> {
        let mut all = json!({
            "kbs": { "url": Kbs::url(), "ca": fs::read_to_string(kbs.ca())? },
            "image": { "repository": product_image::REPOSITORY, "tag": product_image::TAG },
        });
        let wanted = values.as_object().context("values are an object")?;
        all.as_object_mut().context("values are an object")?.extend(wanted.clone());
        self.values(VALUES, &all)?;
        Ok(commands(&self.helm_install(&own_chart(), "")?))
    }

    /// Installs `chart` with the values of [`Cluster::install`], but for those in `flags`; returns when pods can be scheduled
    /// for its volumes.
    pub(crate) fn install_again(&self, chart: &Path, flags: &str) -> Result<()> {
        self.helm_install(chart, flags)?;
        self.wait_for_registration()?;
        self.wait_for_capacities()
    }

    fn helm_install(&self, chart: &Path, flags: &str) -> Result<String> {
        let (chart, values) = (chart.display(), self.run.join(VALUES));
        self.helm(&format!("install coffer {chart} --create-namespace --values {} {flags}", values.display()))
    }

    /// Removes the release; returns when its pods are gone.
    pub(crate) fn uninstall(&self) -> Result<()> {
        self.helm("uninstall coffer --wait")?;
        let selector = "app.kubernetes.io/instance=coffer";
        self.shell(&format!(
            "kubectl --namespace {NAMESPACE} wait --for=delete pod --selector {selector} --timeout=300s"
        ))
        .map(drop)
    }

    /// Upgrades the release to the chart with other `values` beside those that it has; returns when the nodes have
    /// it, with the commands that Helm's notes name.
    pub(crate) fn upgrade(&self, values: &Value) -> Result<Vec<String>> {
        let file = self.values("upgrade.yaml", values)?;
        let chart = own_chart();
        let said =
            self.helm(&format!("upgrade coffer {} --reset-then-reuse-values --values {file}", chart.display()))?;
        self.shell(&format!("kubectl --namespace {NAMESPACE} rollout status ds/coffer-node --timeout=300s"))?;
        Ok(commands(&said))
    }

    /// Writes `values` to a file; JSON is YAML.
    fn values(&self, name: &str, values: &Value) -> Result<String> {
        let file = self.run.join(name);
        fs::write(&file, serde_json::to_string_pretty(values)?)?;
        Ok(file.display().to_string())
    }

    fn helm(&self, command: &str) -> Result<String> {
        self.shell(&format!("helm {command} --namespace {NAMESPACE}"))
    }

    /// Runs an operator's `command` line in a shell that has `kubectl` and `helm`; returns what it printed.
    pub(crate) fn shell(&self, command: &str) -> Result<String> {
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        for program in [&self.helm, &self.plane.program("kubectl")] {
            let directory = program.parent().context("a program is in a directory")?;
            path = std::env::join_paths([directory.to_owned()].into_iter().chain(std::env::split_paths(&path)))?;
        }
        let mut shell = Command::new("sh");
        shell.args(["-euc", command]).env("PATH", path);
        shell.env("KUBECONFIG", self.plane.kubeconfig("admin")).env("KUBECACHEDIR", self.run.join("kubectl-cache"));
        shell.env("HELM_CACHE_HOME", self.run.join("helm")).env("HELM_CONFIG_HOME", self.run.join("helm"));
        read(&mut shell)
    }

    /// Runs `command` in the driver's container on `node`.
    pub(crate) fn in_driver(&self, node: &Node, command: &str) -> Result<String> {
        let pod = self.driver_pod(node)?.context("no pod of the driver runs on the node")?;
        let name = pod["metadata"]["name"].as_str().context("a pod has a name")?;
        self.shell(&format!("kubectl --namespace {NAMESPACE} exec {name} -- {command}"))
    }

    /// The pod of `coffer node` on `node`, if there is one.
    pub(crate) fn driver_pod(&self, node: &Node) -> Result<Option<Value>> {
        let list = self.shell(&format!(
            "kubectl --namespace {NAMESPACE} get pods --selector app.kubernetes.io/component=node \
             --field-selector spec.nodeName={} --output json",
            node.name
        ))?;
        let list: Value = serde_json::from_str(&list)?;
        Ok(list["items"].get(0).cloned())
    }

    /// Waits until the kubelets of all nodes know the driver.
    pub(crate) fn wait_for_registration(&self) -> Result<()> {
        for node in &self.nodes {
            wait::until(wait::seconds(300), "the driver's registration", || {
                let csi_node = self.plane.get("csinode", node.name)?.unwrap_or_default();
                let drivers = csi_node["spec"]["drivers"].as_array().cloned().unwrap_or_default();
                Ok(drivers.iter().any(|driver| driver["name"] == DRIVER).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Waits until the scheduler knows how much room each node has for each class: csi-provisioner looks once a minute.
    pub(crate) fn wait_for_capacities(&self) -> Result<()> {
        let classes: Value = serde_json::from_str(&self.shell("kubectl get storageclass --output json")?)?;
        // Who binds at once does not ask the scheduler.
        let waiting = |class: &&Value| class["volumeBindingMode"] == "WaitForFirstConsumer";
        let classes = classes["items"].as_array().into_iter().flatten().filter(waiting).count();
        wait::until(wait::seconds(300), "the capacities of all pools", || {
            let list: Value = serde_json::from_str(&self.shell("kubectl get csistoragecapacity -A --output json")?)?;
            let known = list["items"].as_array().into_iter().flatten();
            let with_room = known.filter(|known| known["capacity"].as_str().is_some_and(|room| room != "0"));
            Ok((with_room.count() == classes * self.nodes.len()).then_some(()))
        })
    }

    /// What the node proves goes into the KBS's policy. Returns what `coffer attest` said, and the KBS.
    pub(crate) fn admit(&self, kbs: &Kbs, node: &Node) -> Result<(Value, String)> {
        let attestation = self.in_driver(node, "coffer attest --output json")?;
        let file = self.run.join(format!("attest-{}.json", node.name));
        fs::write(&file, &attestation)?;
        let said = kbs.operate(&["register", "--pcrs", "0-7", node.name, &file.to_string_lossy()])?;
        Ok((serde_json::from_str(&attestation).context("coffer attest prints JSON")?, said))
    }
}

/// The commands in the notes that Helm prints.
fn commands(notes: &str) -> Vec<String> {
    let indented = notes.lines().filter_map(|line| line.strip_prefix("  "));
    indented.filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

/// The chart of this checkout.
fn own_chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/coffer")
}
