//! Kubernetes' control plane as plain processes on this machine: etcd, API server, controller manager, scheduler.
//!
//! Everything listens on the loopback of the rig's own network namespace, keeps its state in a directory of its own
//! and is thrown away with SIGKILL. Refuses nothing; it must run in the rig's namespaces, because it puts an
//! `/etc/hosts` of its own in place through which the API server finds the nodes.

use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use serde_json::Value;

use crate::certificates;
use crate::machine::HOST_IN_GUEST;
use crate::process::Daemon;
use crate::process::Fate;
use crate::process::read;
use crate::wait;

/// The nodes' names, which are those of their users and in the API server's `/etc/hosts`.
pub(crate) const NODES: [&str; 2] = ["node1", "node2"];
/// Where the API server listens on loopback.
const API_PORT: u16 = 6443;

/// Who may talk to the API server: a name for files, the user, its groups.
const USERS: [(&str, &str, &str); 6] = [
    ("admin", "admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("kube-proxy", "system:kube-proxy", ""),
    (NODES[0], "system:node:node1", "system:nodes"),
    (NODES[1], "system:node:node2", "system:nodes"),
];

/// A running control plane and how to speak to it.
pub(crate) struct ControlPlane {
    dir: PathBuf,
    programs: PathBuf,
    fate: Fate,
    daemons: Vec<Daemon>,
}

impl ControlPlane {
    /// Starts an empty control plane in `dir` and returns when the API server is ready. `programs` holds
    /// Kubernetes' programs, `etcd` is etcd's.
    pub(crate) fn start(dir: &Path, programs: &Path, etcd: &Path, fate: Fate) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let (dir, programs) = (dir.to_owned(), programs.to_owned());
        let mut plane = Self { dir, programs, fate, daemons: Vec::new() };
        certificates::write(&plane.dir)?;
        plane.write_users()?;
        plane.resolve_nodes()?;
        plane.start_etcd(etcd)?;
        plane.start_api_server()?;
        plane.wait_until_ready()?;
        // Not earlier: the controller manager ends for good when its cluster roles are not there yet.
        plane.start_controller_manager()?;
        plane.start_scheduler()?;
        Ok(plane)
    }

    /// Does `meanwhile` while there is no API server; it comes back after `outage`, or later if that takes longer.
    pub(crate) fn without_api_server(
        &mut self,
        outage: Duration,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let begun = Instant::now();
        let at =
            self.daemons.iter().position(|daemon| daemon.is("kube-apiserver")).context("there is an API server")?;
        self.daemons.remove(at).kill()?;
        let outcome = meanwhile();
        // Nothing is waited for: the outage itself is what is tested.
        std::thread::sleep(outage.saturating_sub(begun.elapsed()));
        self.start_api_server()?;
        self.wait_until_ready()?;
        outcome
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        wait::until(wait::seconds(120), "the API server", || {
            self.must_run()?;
            let answer = self.kubectl(&["get", "--raw", "/readyz"]).output()?;
            Ok(answer.status.success().then_some(()))
        })
    }

    /// An error if one of its programs has ended.
    pub(crate) fn must_run(&mut self) -> Result<()> {
        let logs = self.dir.display().to_string();
        self.daemons.iter_mut().try_for_each(Daemon::must_run).with_context(|| format!("see the logs in {logs}"))
    }

    /// One of Kubernetes' programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// `kubectl` as administrator with `arguments`.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig("admin")).args(arguments);
        // Discovery is cached in the home directory otherwise, and would describe an earlier cluster.
        command.env("KUBECACHEDIR", self.dir.join("kubectl-cache"));
        command
    }

    /// Applies `manifests`.
    pub(crate) fn apply(&self, manifests: &str) -> Result<()> {
        let mut command = self.kubectl(&["apply", "-f", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("standard input is a pipe")?.write_all(manifests.as_bytes())?;
        let output = child.wait_with_output()?;
        anyhow::ensure!(output.status.success(), "kubectl apply: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The object `name`, or `None` if there is none.
    pub(crate) fn get(&self, kind: &str, name: &str) -> Result<Option<Value>> {
        let text = read(&mut self.kubectl(&["get", kind, name, "--ignore-not-found", "-o", "json"]))?;
        Ok(if text.is_empty() { None } else { Some(serde_json::from_str(&text)?) })
    }

    /// The configuration with which `user` speaks to the API server from this machine.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir.join(format!("{user}.kubeconfig"))
    }

    /// The same for a program in the guest; self-contained.
    pub(crate) fn kubeconfig_in_guest(&self, user: &str) -> PathBuf {
        self.dir.join(format!("{user}.guest.kubeconfig"))
    }

    /// The configuration with which a program in the guest speaks to the API server under `token`.
    pub(crate) fn kubeconfig_with(&self, token: &str) -> Result<String> {
        kubeconfig(HOST_IN_GUEST, &fs::read(self.dir.join("ca.crt"))?, token)
    }

    fn write_users(&self) -> Result<()> {
        let ca = fs::read(self.dir.join("ca.crt"))?;
        let mut tokens = String::new();
        for (name, user, groups) in USERS {
            let token = uuid::Uuid::new_v4().simple().to_string();
            tokens += &format!("{token},{user},{name},\"{groups}\"\n");
            fs::write(self.kubeconfig(name), kubeconfig("127.0.0.1", &ca, &token)?)?;
            fs::write(self.kubeconfig_in_guest(name), kubeconfig(HOST_IN_GUEST, &ca, &token)?)?;
        }
        fs::write(self.dir.join("tokens.csv"), tokens).context("write the token file")
    }

    /// `kubectl exec` goes from the API server to the kubelet by the node's name: it must mean QEMU's forwarded port.
    fn resolve_nodes(&self) -> Result<()> {
        let hosts = self.dir.join("hosts");
        let mut text = "127.0.0.1 localhost\n".to_owned();
        for (number, name) in (1..).zip(NODES) {
            text += &format!("{} {name}\n", kubelet_address(number));
        }
        fs::write(&hosts, text)?;
        rustix::mount::mount_bind(&hosts, "/etc/hosts").context("bind the rig's own /etc/hosts in its mount namespace")
    }

    fn start_etcd(&mut self, program: &Path) -> Result<()> {
        let data = format!("--data-dir={}", self.dir.join("etcd").display());
        // Nobody reads this state after the rig: a disk that syncs would only make every write slow.
        let arguments = [
            &data,
            "--unsafe-no-fsync",
            "--log-level=warn",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
        ];
        self.start_program("etcd", program, &arguments.map(str::to_owned))
    }

    fn start_api_server(&mut self) -> Result<()> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        let arguments = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            "--kubelet-preferred-address-types=Hostname".to_owned(),
            "--feature-gates=CSIVolumeHealth=true".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--secure-port={API_PORT}"),
            format!("--advertise-address={HOST_IN_GUEST}"),
            format!("--cert-dir={}", self.dir.display()),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--service-account-key-file={}", file("service-account.pub")),
            format!("--service-account-signing-key-file={}", file("service-account.key")),
        ];
        self.start_program("kube-apiserver", &self.programs.join("kube-apiserver"), &arguments)
    }

    fn start_controller_manager(&mut self) -> Result<()> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        let arguments = [
            "--use-service-account-credentials".to_owned(),
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--service-account-private-key-file={}", file("service-account.key")),
        ];
        self.start_controller("kube-controller-manager", "controller-manager", &arguments)
    }

    fn start_scheduler(&mut self) -> Result<()> {
        self.start_controller("kube-scheduler", "scheduler", &[])
    }

    fn start_controller(&mut self, program: &str, user: &str, more: &[String]) -> Result<()> {
        let kubeconfig = self.kubeconfig(user).display().to_string();
        let mut arguments = vec![
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            format!("--cert-dir={}", self.dir.join(program).display()),
        ];
        arguments.extend_from_slice(more);
        self.start_program(program, &self.programs.join(program), &arguments)
    }

    fn start_program(&mut self, name: &str, program: &Path, arguments: &[String]) -> Result<()> {
        let log = self.dir.join(format!("{name}.log"));
        self.daemons.push(Daemon::start(&program.to_string_lossy(), arguments, &log, self.fate)?);
        Ok(())
    }
}

/// Where the kubelet of the node `number` can be reached: all of them want the same port.
pub(crate) fn kubelet_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, number)
}

/// A client configuration with everything inside; JSON is YAML.
fn kubeconfig(address: &str, ca: &[u8], token: &str) -> Result<String> {
    use base64::Engine as _;
    let ca = base64::engine::general_purpose::STANDARD.encode(ca);
    let text = serde_json::to_string_pretty(&serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "rig", "cluster": {
            "server": format!("https://{address}:{API_PORT}"), "certificate-authority-data": ca}}],
        "users": [{"name": "rig", "user": {"token": token}}],
        "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": "rig"}}],
        "current-context": "rig",
    }))?;
    Ok(text)
}
