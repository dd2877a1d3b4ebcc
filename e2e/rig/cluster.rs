//! A Kubernetes of one node: the control plane on this machine, containerd, kubelet, Coffer and csi-provisioner in a
//! QEMU machine with a TPM.
//!
//! Refuses nothing: it is thrown away as a whole, with SIGKILL to what it started.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use serde_json::Value;

use crate::control_plane::ControlPlane;
use crate::control_plane::NODE;
use crate::guest::Guest;
use crate::image::Image;
use crate::images;
use crate::kbs::Kbs;
use crate::kubernetes;
use crate::machine::Forward;
use crate::machine::Machine;
use crate::machine::Spec;
use crate::process::Fate;
use crate::programs::Programs;
use crate::programs::write_executable;
use crate::report::stage;
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
const NODE_PROGRAMS: [&str; 5] = ["containerd", "containerd-shim-runc-v2", "ctr", "kubelet", "csi-provisioner"];

/// Files of the node, by their name below `/share`.
const FILES: [(&str, &str); 3] = [
    ("node/containerd.toml", include_str!("node/containerd.toml")),
    ("node/kubelet.yaml", include_str!("node/kubelet.yaml")),
    ("node/cni/10-rig.conflist", include_str!("node/cni/10-rig.conflist")),
];

/// Scripts of the node, by their name below `/share`. `prepare` runs at every boot, then the services.
const SCRIPTS: [(&str, &str); 5] = [
    ("prepare", include_str!("node/prepare")),
    ("services/containerd.sh", include_str!("node/services/containerd.sh")),
    ("services/kubelet.sh", include_str!("node/services/kubelet.sh")),
    ("services/coffer.sh", include_str!("node/services/coffer.sh")),
    ("services/csi-provisioner.sh", include_str!("node/services/csi-provisioner.sh")),
];

/// What a cluster is made of; getting it needs the package registries, so it is done outside the sandbox.
pub(crate) struct Parts {
    product: Programs,
    kubernetes: PathBuf,
    debian: PathBuf,
    image: Image,
    pool_bytes: u64,
}

impl Parts {
    /// Builds what the cache does not have.
    pub(crate) fn get() -> Result<Self> {
        let image = Image::get()?;
        let kubernetes = kubernetes::programs()?;
        let debian = kubernetes::debian_programs()?;
        Ok(Self { product: Programs::product()?, kubernetes, debian, image, pool_bytes: POOL_BYTES })
    }

    /// The same with another size of the pool's disk.
    pub(crate) fn with_pool(self, pool_bytes: u64) -> Self {
        Self { pool_bytes, ..self }
    }
}

/// A running cluster.
pub(crate) struct Cluster {
    /// Where its files are.
    pub(crate) run: PathBuf,
    /// The control plane.
    pub(crate) plane: ControlPlane,
    /// The node's machine.
    pub(crate) machine: Machine,
    /// The way into it.
    pub(crate) guest: Guest,
}

impl Cluster {
    /// Starts a KBS and a fresh cluster in `run` and returns when the node is Ready.
    pub(crate) fn start_with_kbs(run: &Path, parts: Parts, fate: Fate) -> Result<(Self, Kbs)> {
        if run.exists() {
            fs::remove_dir_all(run)?;
        }
        fs::create_dir_all(run)?;
        // Programs are told where their files are, and some change their directory.
        let run = &fs::canonicalize(run)?;
        let kbs = stage("KBS: coffer dev-kbs", || Kbs::start(&parts.product.path("coffer")?, &run.join("kbs"), fate))?;
        let cluster = Self::start(run, parts, &kbs.ca(), fate)?;
        Ok((cluster, kbs))
    }

    fn start(run: &Path, parts: Parts, kbs_ca: &Path, fate: Fate) -> Result<Self> {
        let etcd = parts.debian.join("etcd");
        let plane = stage("Control plane: etcd, API server, controller manager, scheduler", || {
            let plane = ControlPlane::start(&run.join("control-plane"), &parts.kubernetes, &etcd, fate)?;
            plane.apply(include_str!("node/provisioner.yaml"))?;
            Ok(plane)
        })?;
        let share = run.join("share");
        fill(&share, parts.product, &parts.kubernetes)?;
        images::write(&parts.debian.join("busybox"), &share.join("node/images.tar"))?;
        fs::copy(kbs_ca, share.join("node/kbs-ca.crt")).context("share the KBS's certificate authority")?;
        for user in ["kubelet", "provisioner"] {
            fs::copy(plane.kubeconfig_in_guest(user), share.join(format!("node/{user}.kubeconfig")))?;
        }
        let mut machine = Machine::create(run, parts.image, node(parts.pool_bytes, fate))?;
        let guest = stage("Boot the node: QEMU, swtpm", || machine.boot())?;
        let cluster = Self { run: run.to_owned(), plane, machine, guest };
        stage("Node Ready", || cluster.wait_until_ready())?;
        Ok(cluster)
    }

    fn wait_until_ready(&self) -> Result<()> {
        wait::until(NODE_DEADLINE, "the node to be Ready", || {
            let node = self.plane.get("node", NODE)?;
            Ok(node.filter(|node| has_condition(node, "Ready")).map(drop))
        })?;
        self.guest.wait_until("the images", "test -e /run/images-imported", NODE_DEADLINE)
    }
}

/// Whether the object's status has the condition `kind` with status True.
pub(crate) fn has_condition(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == kind && condition["status"] == "True")
}

fn node(pool_bytes: u64, fate: Fate) -> Spec {
    let forwards = vec![Forward { host: Ipv4Addr::LOCALHOST, port: KUBELET_PORT }];
    Spec { name: NODE.into(), subnet: 2, memory_mib: MEMORY_MIB, pool_bytes, forwards, fate }
}

/// Puts everything that the node finds in `/share` there.
fn fill(share: &Path, mut programs: Programs, kubernetes: &Path) -> Result<()> {
    for program in NODE_PROGRAMS {
        programs = programs.with(&kubernetes.join(program))?;
    }
    for directory in ["node/cni", "services"] {
        fs::create_dir_all(share.join(directory))?;
    }
    programs.share(share)?;
    for (name, content) in FILES {
        fs::write(share.join(name), content)?;
    }
    SCRIPTS.iter().try_for_each(|(name, content)| write_executable(&share.join(name), content))
}
