//! A Kubernetes of two nodes: the control plane on this machine; containerd, kubelet and kube-proxy in two QEMU machines,
//! each with a TPM of its own. Coffer comes by its chart, as anywhere.
//!
//! Refuses nothing: it is thrown away as a whole, with SIGKILL to what it started.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::control_plane::ControlPlane;
use crate::control_plane::NODES;
use crate::control_plane::kubelet_address;
use crate::guest::Guest;
use crate::image::Image;
use crate::image_store;
use crate::kbs::Kbs;
use crate::kubernetes;
use crate::machine::Forward;
use crate::machine::Machine;
use crate::machine::Spec;
use crate::process::Fate;
use crate::programs::Programs;
use crate::programs::write_executable;
use crate::report::stage;
use crate::sandbox;
use crate::wait;

/// The kubelet's port, through which `kubectl exec` and `kubectl logs` come.
const KUBELET_PORT: u16 = 10250;
/// Room for a few volumes; searched as a whole by the demo.
const POOL_BYTES: u64 = 1 << 30;
/// Kubelet, containerd, Coffer and a pod use less than 1 GiB.
const MEMORY_MIB: u32 = 3072;
/// From power-on to Ready it takes 40 s, and twice that on a machine that does something else.
const NODE_DEADLINE: Duration = wait::seconds(240);

/// Programs of the node beside Coffer.
const NODE_PROGRAMS: [&str; 5] = ["containerd", "containerd-shim-runc-v2", "ctr", "kubelet", "kube-proxy"];

/// Files of the node, by their name below `/share`.
const FILES: [(&str, &str); 3] = [
    ("node/containerd.toml", include_str!("node/containerd.toml")),
    ("node/kubelet.yaml", include_str!("node/kubelet.yaml")),
    ("node/pods.conflist", include_str!("node/pods.conflist")),
];

/// Scripts of the node, by their name below `/share`. `prepare` runs at every boot, then the services.
const SCRIPTS: [(&str, &str); 4] = [
    ("prepare", include_str!("node/prepare")),
    ("services/containerd.sh", include_str!("node/services/containerd.sh")),
    ("services/kubelet.sh", include_str!("node/services/kubelet.sh")),
    ("services/kube-proxy.sh", include_str!("node/services/kube-proxy.sh")),
];

/// What a cluster is made of; getting it needs the package registries, so it is done outside the sandbox.
pub(crate) struct Parts {
    product: Programs,
    images: PathBuf,
    kubernetes: PathBuf,
    helm: PathBuf,
    debian: PathBuf,
    image: Image,
    pool_bytes: u64,
}

impl Parts {
    /// Builds what the cache does not have and enters the sandbox.
    pub(crate) fn sandboxed() -> Result<Self> {
        sandbox::enter_with("node image, Kubernetes, Coffer's image", Self::get)
    }

    /// Builds what the cache does not have.
    pub(crate) fn get() -> Result<Self> {
        Ok(Self {
            image: Image::get()?,
            images: image_store::disk()?,
            kubernetes: kubernetes::programs()?,
            helm: kubernetes::helm()?,
            debian: kubernetes::debian_programs()?,
            product: Programs::product()?,
            pool_bytes: POOL_BYTES,
        })
    }

    /// The same with another size of the pools' disks.
    pub(crate) fn with_pool(self, pool_bytes: u64) -> Self {
        Self { pool_bytes, ..self }
    }
}

/// One node of the cluster.
pub(crate) struct Node {
    /// What Kubernetes calls it.
    pub(crate) name: &'static str,
    /// Its machine.
    pub(crate) machine: Machine,
    /// The way into it.
    pub(crate) guest: Guest,
}

/// A running cluster.
pub(crate) struct Cluster {
    /// Where its files are.
    pub(crate) run: PathBuf,
    /// The control plane.
    pub(crate) plane: ControlPlane,
    /// Its nodes.
    pub(crate) nodes: [Node; NODES.len()],
    /// Helm's program.
    pub(crate) helm: PathBuf,
}

impl Cluster {
    /// Starts a KBS and a fresh cluster in `run` and returns when the nodes are Ready.
    pub(crate) fn start_with_kbs(run: &Path, parts: Parts, fate: Fate) -> Result<(Self, Kbs)> {
        let run = &sandbox::fresh(run)?;
        let kbs = stage("KBS: coffer dev-kbs", || Kbs::start(&parts.product.path("coffer")?, &run.join("kbs"), fate))?;
        let cluster = Self::start(run, parts, fate)?;
        Ok((cluster, kbs))
    }

    fn start(run: &Path, parts: Parts, fate: Fate) -> Result<Self> {
        let etcd = parts.debian.join("etcd");
        let plane = stage("Control plane: etcd, API server, controller manager, scheduler", || {
            let plane = ControlPlane::start(&run.join("control-plane"), &parts.kubernetes, &etcd, fate)?;
            plane.apply(include_str!("node/api-server.yaml"))?;
            Ok(plane)
        })?;
        let share = run.join("share");
        fill(&share, &parts)?;
        for user in NODES.iter().copied().chain(["kube-proxy"]) {
            fs::copy(plane.kubeconfig_in_guest(user), share.join(format!("node/{user}.kubeconfig")))?;
        }
        let nodes = stage("Boot the nodes: QEMU, swtpm", || boot(run, &parts, fate))?;
        let cluster = Self { run: run.to_owned(), plane, nodes, helm: parts.helm };
        stage("Nodes Ready", || cluster.wait_until_ready())?;
        Ok(cluster)
    }

    fn wait_until_ready(&self) -> Result<()> {
        for Node { name, .. } in &self.nodes {
            wait::until(NODE_DEADLINE, "the nodes to be Ready", || {
                let node = self.plane.get("node", name)?;
                Ok(node.filter(|node| has_condition(node, "Ready")).map(drop))
            })?;
        }
        Ok(())
    }
}

/// Powers every node on, then waits for all of them.
fn boot(run: &Path, parts: &Parts, fate: Fate) -> Result<[Node; NODES.len()]> {
    let mut machines = Vec::new();
    for (number, name) in (1..).zip(NODES) {
        let forwards = vec![Forward { host: kubelet_address(number), port: KUBELET_PORT }];
        let spec = Spec {
            name: name.into(),
            number,
            memory_mib: MEMORY_MIB,
            pool_bytes: parts.pool_bytes,
            images: Some(parts.images.clone()),
            forwards,
            fate,
        };
        let mut machine = Machine::create(run, parts.image.clone(), spec)?;
        machine.power_on()?;
        machines.push((name, machine));
    }
    let mut nodes = Vec::new();
    for (name, mut machine) in machines {
        let guest = machine.wait_for_agent()?;
        nodes.push(Node { name, machine, guest });
    }
    nodes.try_into().map_err(|_| anyhow::anyhow!("a machine for each node"))
}

/// Whether the object's status has the condition `kind` with status True.
pub(crate) fn has_condition(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// Puts everything that the nodes find in `/share` there.
fn fill(share: &Path, parts: &Parts) -> Result<()> {
    for directory in ["node", "services"] {
        fs::create_dir_all(share.join(directory))?;
    }
    let mut programs = parts.product.clone();
    for program in NODE_PROGRAMS {
        programs = programs.with(&parts.kubernetes.join(program))?;
    }
    programs.share(share)?;
    for (name, content) in FILES {
        fs::write(share.join(name), content)?;
    }
    SCRIPTS.iter().try_for_each(|(name, content)| write_executable(&share.join(name), content))
}
