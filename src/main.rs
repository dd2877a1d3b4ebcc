//! Flags and environment: picks the implementations and starts them. Nothing else reads either but `dev_kbs`, a
//! program of its own.
//!
//! A wrong configuration ends the program at once, with one line that says what is wrong and exit status 2.

#[path = "main/output.rs"]
mod output;

use std::future::Future;
use std::future::pending;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tracing_subscriber::EnvFilter;

use coffer::cluster::{self, ClusterPools, Witness};
#[cfg(feature = "dev")]
use coffer::dev_kbs;
use coffer::device::Machine;
use coffer::device::integrity::Listener;
use coffer::device::linux::LinuxMachine;
use coffer::device::memory::{self, Exposure};
use coffer::grpc::{Door, Sockets, parse_endpoint};
use coffer::http::{Http, Subject};
use coffer::inspect;
use coffer::key::KeySource;
use coffer::key::evidence::{Attester, TSM_DIRECTORY, Tee, Tsm};
use coffer::key::kbs::{KbsClient, KbsConfig, Limits};
use coffer::lifecycle;
use coffer::lifecycle::Lifecycle;
use coffer::lifecycle::Local;
use coffer::metrics::Metrics;
use coffer::provision::LocalPool;
use coffer::provision::Pools;
use coffer::reconcile::Reconciler;
use coffer::volume::Error;
use coffer::volume::KeyUri;
use coffer::volume::Place;
use coffer::volume::PoolName;
use coffer::volume::Reason;
use coffer::volume::Result;
use coffer::volume::VolumeId;
use output::{Output, explain, fail, print, show};

/// A Kubernetes CSI driver for encrypted volumes. Each volume's key is held by a Key Broker Service (KBS), which
/// releases it only to a node that has proved, by remote attestation, what it is and what it runs.
///
/// Start with `coffer pool init DIR` on a disk for volumes, show the KBS's operator what the node proves with
/// `coffer attest`, and run the driver with `coffer all`.
#[derive(Debug, Parser)]
#[command(name = "coffer", version, arg_required_else_help = true)]
struct Cli {
    /// What log lines look like.
    #[arg(long, env = "COFFER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as coffer::lifecycle=debug.
    #[arg(long, env = "COFFER_LOG", default_value = "info", global = true, value_name = "FILTER")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the driver on one machine alone: controller and node service on one socket
    #[command(after_help = ALL_EXAMPLE)]
    All(Node),
    /// Run the controller service of a cluster: asks nodes for volumes through EncryptedVolume resources
    Controller(Endpoint),
    /// Run the node service of a cluster: makes and opens the volumes that resources ask of this node
    Node(Node),
    /// The directory that holds volumes
    #[command(subcommand)]
    Pool(Pool),
    /// Print what this machine proves to a KBS, in the form that a policy needs
    #[command(after_help = ATTEST_EXAMPLE)]
    Attest(Attest),
    /// Look at volumes on this machine, purge one, or move one to another key, without Kubernetes
    #[command(subcommand)]
    Volume(Volume),
    /// A small KBS for evaluation and tests
    #[cfg(feature = "dev")]
    DevKbs(dev_kbs::DevKbsArgs),
}

const ALL_EXAMPLE: &str = "\
Example:
  coffer all --endpoint unix:///var/lib/kubelet/plugins/csi.coffer.dev/csi.sock --node-name node1 \\
      --pool /var/lib/coffer/pool --kbs-url https://kbs.example:8443 --kbs-ca /etc/coffer/kbs-ca.crt --attester tpm

The pool may be made, mounted or unmounted while the driver runs. The KBS is contacted when a volume is staged.";

const ATTEST_EXAMPLE: &str = "\
Example:
  coffer attest --attester tpm --output json > node1.json";

#[derive(Debug, Args)]
struct Endpoint {
    /// The CSI socket: unix:// and an absolute path that ends in .sock
    #[arg(long, env = "CSI_ENDPOINT", value_parser = parse_endpoint, value_name = "unix:///PATH.sock")]
    endpoint: PathBuf,
    /// Where to answer /healthz, /readyz and /metrics over HTTP; without a host, at every address. Absent: nowhere
    #[arg(long, env = "COFFER_HTTP", value_name = "[HOST]:PORT")]
    http: Option<String>,
}

#[derive(Debug, Args)]
struct Node {
    #[command(flatten)]
    endpoint: Endpoint,
    /// What Kubernetes calls this node
    #[arg(long, env = "NODE_NAME", value_parser = parse_node_name)]
    node_name: String,
    #[command(flatten)]
    pools: PoolFlags,
    #[command(flatten)]
    kbs: KbsFlags,
    /// The kubelet's directory, where the driver registers itself; empty: it does not
    #[arg(long, env = "COFFER_KUBELET_DIR", default_value = "/var/lib/kubelet", value_name = "DIR")]
    kubelet_dir: String,
    #[command(flatten)]
    memory: MemoryFlags,
    /// How many volumes the node may have staged; 0: no limit
    #[arg(long, env = "COFFER_MAX_VOLUMES", default_value_t = 256, value_name = "N")]
    max_volumes: u32,
}

#[derive(Debug, Args)]
struct PoolFlags {
    /// A pool's directory, made with `coffer pool init`, and what StorageClasses call it; may be repeated
    #[arg(long = "pool", env = "COFFER_POOL", value_name = "[NAME=]DIR", value_delimiter = ',', required = true)]
    #[arg(value_parser = parse_pool)]
    pools: Vec<LocalPool>,
}

#[derive(Debug, Args)]
struct KbsFlags {
    /// Where the KBS is
    #[arg(long, env = "COFFER_KBS_URL", value_name = "https://HOST[:PORT]")]
    kbs_url: String,
    /// PEM file of the CA that signed the KBS's certificate; no other is believed
    #[arg(long, env = "COFFER_KBS_CA", value_name = "FILE")]
    kbs_ca: Option<PathBuf>,
    /// Allow http:// to the KBS, for development: only together with the attester `sample`
    #[arg(long, env = "COFFER_INSECURE_KBS_HTTP")]
    insecure_kbs_http: bool,
    #[command(flatten)]
    attester: AttesterFlags,
}

#[derive(Debug, Args)]
struct MemoryFlags {
    /// Stage volumes although swap is not encrypted: what is in memory, such as plaintext, may get to that disk
    #[arg(long, env = "COFFER_ALLOW_UNENCRYPTED_SWAP")]
    allow_unencrypted_swap: bool,
    /// Stage volumes although the node hibernates to a disk that is not encrypted: keys may get there
    #[arg(long, env = "COFFER_ALLOW_HIBERNATION")]
    allow_hibernation: bool,
}

#[derive(Debug, Args)]
struct AttesterFlags {
    /// Who makes the proof on this machine. There is no fallback
    #[arg(long, env = "COFFER_ATTESTER", value_enum)]
    attester: AttesterKind,
    /// Where configfs-tsm is, for attesters tdx, snp and tsm
    #[arg(long, env = "COFFER_TSM", default_value = TSM_DIRECTORY, value_name = "DIR")]
    tsm: PathBuf,
    /// How to reach the TPM, as the TSS writes it
    #[arg(long, env = "COFFER_TCTI", default_value = "device:/dev/tpmrm0")]
    tcti: String,
    /// File with the password of the TPM's endorsement hierarchy, if it has one
    #[arg(long, env = "COFFER_ENDORSEMENT_AUTH_FILE", value_name = "FILE")]
    endorsement_auth_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AttesterKind {
    /// Intel TDX: proves what was booted, and that memory is confidential
    Tdx,
    /// AMD SEV-SNP: the same
    Snp,
    /// TDX or SEV-SNP, whichever the kernel names at the start; neither is an error
    Tsm,
    /// A TPM 2.0: proves what was booted
    #[cfg(feature = "tpm")]
    Tpm,
    /// No proof at all, for development
    #[cfg(feature = "dev")]
    Sample,
}

#[derive(Debug, Subcommand)]
enum Pool {
    /// Make DIR a pool; one that is already there is kept
    Init {
        /// An empty directory on the disk for volumes, or one to make
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Attest {
    #[command(flatten)]
    attester: AttesterFlags,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Volume {
    /// The pools and their volumes: what the records say and what the kernel holds
    List(Look),
    /// One volume in full
    Inspect {
        /// The volume's id, `spec.csi.volumeHandle` of its PersistentVolume
        id: String,
        #[command(flatten)]
        look: Look,
    },
    /// Move a volume to another secret at the KBS, mounted or not; finishes a move that was interrupted. In a cluster, change
    /// spec.keyUri of its EncryptedVolume instead: its node goes by that
    Rotate {
        /// The volume's id
        id: String,
        /// Where the new secret is; the old one must still be there
        #[arg(long, value_name = "kbs:///REPOSITORY/TYPE/TAG", value_parser = |text: &str| KeyUri::parse("--to", text))]
        to: KeyUri,
        #[command(flatten)]
        pools: PoolFlags,
        #[command(flatten)]
        kbs: KbsFlags,
        #[command(flatten)]
        memory: MemoryFlags,
    },
    /// Destroy a volume that nothing asks for any more, such as one that `kubectl get encpool` calls Orphaned
    Purge {
        /// The volume's id; its data cannot be had back
        id: String,
        #[command(flatten)]
        pools: PoolFlags,
    },
}

#[derive(Debug, Args)]
struct Look {
    #[command(flatten)]
    pools: PoolFlags,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refusal) => return explain(&refusal),
    };
    memory::keep_no_freed_memory();
    if let Err(error) = start_log(&cli).and_then(|()| memory::forbid_core_dumps()) {
        return fail(&error);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime
        .map_err(|error| Error::new(Reason::Internal, "the runtime does not start").caused_by(error))
        .and_then(|runtime| runtime.block_on(run(cli.command)));
    outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::All(flags) => serve_all(flags).await,
        Command::Controller(flags) => serve_controller(flags).await,
        Command::Node(flags) => serve_node(flags).await,
        Command::Pool(Pool::Init { dir }) => {
            print(&format!("{} is pool {}\n", dir.display(), LocalPool::init(&dir)?.pool_id))
        }
        Command::Attest(flags) => {
            let description = attester(flags.attester)?.describe().await?;
            show(flags.output, &description)
        }
        Command::Volume(Volume::List(look)) => {
            show(look.output, &inspect::list(&look.pools.get()?, &LinuxMachine::default())?)
        }
        Command::Volume(Volume::Inspect { id, look }) => {
            show(look.output, &inspect::volume(&look.pools.get()?, &LinuxMachine::default(), &parse_id(&id)?)?)
        }
        Command::Volume(Volume::Rotate { id, to, pools, kbs, memory }) => {
            let (machine, keys) = (Arc::new(memory.machine()), kbs.get()?);
            let lifecycle = Lifecycle::new(machine, keys, pools.get()?, None, Metrics::default());
            lifecycle.rotate(parse_id(&id)?, to.clone()).await?;
            print(&format!("volume {id} opens with the secret at {to}\n"))
        }
        Command::Volume(Volume::Purge { id, pools }) => {
            lifecycle::purge(&pools.get()?, &LinuxMachine::default(), &parse_id(&id)?)?;
            print(&format!("volume {id} is destroyed\n"))
        }
        #[cfg(feature = "dev")]
        Command::DevKbs(arguments) => dev_kbs::run(arguments).await,
    }
}

/// Both halves on one socket, for a machine alone.
async fn serve_all(flags: Node) -> Result<()> {
    let place = Place::of(&flags.node_name);
    let node = node_half(flags, None).await?;
    let controller = Door::controller(Arc::new(Local::new(node.lifecycle, place)), node.metrics);
    serve(controller.and(node.door), node.sockets, node.http, pending()).await
}

async fn serve_node(flags: Node) -> Result<()> {
    let client = kubernetes().await?;
    let node_name = flags.node_name.clone();
    let node = node_half(flags, Some(Witness::new(client.clone()))).await?;
    let reconciler = Reconciler::new(client, node_name, node.lifecycle);
    serve(node.door, node.sockets, node.http, reconciler.run()).await
}

async fn serve_controller(flags: Endpoint) -> Result<()> {
    let client = kubernetes().await?;
    let metrics = Metrics::default();
    let controller = Door::controller(Arc::new(ClusterPools::watch(client.clone())), metrics.clone());
    let http = http(flags.http, Subject { csi: flags.endpoint.clone(), metrics, node: None }).await?;
    let sockets = Sockets { csi: flags.endpoint, registry: None };
    serve(controller, sockets, http, cluster::clean(client)).await
}

/// Serves until a signal comes; `beside` works meanwhile.
async fn serve(door: Door, sockets: Sockets, http: Option<Http>, beside: impl Future<Output = ()>) -> Result<()> {
    let end = end_signal()?;
    let told = async {
        match http {
            Some(http) => http.serve().await,
            None => pending().await,
        }
    };
    tokio::select! {
        told = told => {
            told.map_err(|error| Error::new(Reason::Internal, "the HTTP server failed").caused_by(error))
        }
        served = door.serve(sockets, end) => {
            served.map_err(|error| Error::new(Reason::Internal, "the server failed").caused_by(error))
        }
        () = beside => Err(Error::new(Reason::Internal, "what works on the cluster's resources has ended")),
    }
}

/// What serves a node.
struct NodeHalf {
    lifecycle: Lifecycle,
    metrics: Metrics,
    door: Door,
    sockets: Sockets,
    http: Option<Http>,
}

async fn node_half(flags: Node, witness: Option<Witness>) -> Result<NodeHalf> {
    let keys = flags.kbs.get()?;
    tracing::info!(version = coffer::device::crypt::version().unwrap_or("unknown"), "libcryptsetup");
    let pools = flags.pools.get()?.on(Place::of(&flags.node_name));
    for pool in pools.iter() {
        if let Err(error) = pool.finish_interrupted() {
            tracing::warn!("pool {} is not ready yet: {}", pool.name(), error.chain());
        }
    }
    let machine = flags.memory.machine();
    if let Err(error) = machine.check_memory() {
        tracing::warn!("no volume will be staged: {}", error.chain());
    }
    let metrics = Metrics::default();
    let lifecycle = Lifecycle::new(Arc::new(machine), keys, pools, witness, metrics.clone());
    tokio::spawn(lifecycle.clone().watch(Listener::start()));
    let door = Door::node(lifecycle.clone(), flags.node_name, flags.max_volumes, metrics.clone());
    let registry =
        Some(flags.kubelet_dir).filter(|dir| !dir.is_empty()).map(|dir| PathBuf::from(dir).join("plugins_registry"));
    let sockets = Sockets { csi: flags.endpoint.endpoint, registry };
    let subject = Subject { csi: sockets.csi.clone(), metrics: metrics.clone(), node: Some(lifecycle.clone()) };
    let http = http(flags.endpoint.http, subject).await?;
    Ok(NodeHalf { lifecycle, metrics, door, sockets, http })
}

/// The HTTP server, where one is asked for.
async fn http(address: Option<String>, subject: Subject) -> Result<Option<Http>> {
    match address {
        Some(address) => Http::bind(&address, subject).await.map(Some),
        None => Ok(None),
    }
}

/// The API server of the cluster that this process runs in, or that KUBECONFIG names.
async fn kubernetes() -> Result<kube::Client> {
    kube::Client::try_default().await.map_err(|error| {
        Error::new(Reason::ApiServerUnreachable, "there is no way to an API server: run in a pod, or set KUBECONFIG")
            .caused_by(error)
    })
}

fn attester(flags: AttesterFlags) -> Result<Attester> {
    Ok(match flags.attester {
        AttesterKind::Tdx => Attester::Tsm(Tsm::new(flags.tsm, Tee::Tdx)),
        AttesterKind::Snp => Attester::Tsm(Tsm::new(flags.tsm, Tee::Snp)),
        AttesterKind::Tsm => Attester::Tsm(Tsm::detect(flags.tsm)?),
        #[cfg(feature = "tpm")]
        AttesterKind::Tpm => Attester::Tpm(coffer::key::evidence::Tpm::new(&flags.tcti, flags.endorsement_auth_file)?),
        #[cfg(feature = "dev")]
        AttesterKind::Sample => Attester::Sample,
    })
}

/// Comes with SIGTERM or SIGINT. The handlers stand when this returns.
fn end_signal() -> Result<impl Future<Output = ()>> {
    let handler = |kind| {
        signal(kind).map_err(|error| Error::new(Reason::Internal, "a signal cannot be handled").caused_by(error))
    };
    let (mut terminate, mut interrupt) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn start_log(cli: &Cli) -> Result<()> {
    // At `info` the TSS tells of every connection it closes; the client of Kubernetes tells of every failure that is told
    // again with its cause. Directives for them in --log win over these.
    let directives = format!("tss_esapi=warn,kube_client::client::builder=off,{}", cli.log);
    let filter =
        EnvFilter::try_new(directives).map_err(|error| Error::invalid("--log", "is not a filter").caused_by(error))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

fn parse_node_name(text: &str) -> std::result::Result<String, &'static str> {
    match text.len() {
        // The CSI allows an id of a node 256 bytes, Kubernetes a name of a node 253.
        1..=253 => Ok(text.to_owned()),
        _ => Err("must have 1 to 253 bytes"),
    }
}

fn parse_id(text: &str) -> Result<VolumeId> {
    let not_found = || Error::new(Reason::VolumeNotFound, format!("{text:?} is not an id of this driver"));
    VolumeId::parse(text).ok_or_else(not_found)
}

impl KbsFlags {
    fn get(self) -> Result<Arc<dyn KeySource>> {
        Ok(Arc::new(KbsClient::new(KbsConfig {
            url: self.kbs_url,
            ca_file: self.kbs_ca,
            allow_insecure_http: self.insecure_kbs_http,
            attester: attester(self.attester)?,
            limits: Limits::default(),
        })?))
    }
}

impl MemoryFlags {
    fn machine(self) -> LinuxMachine {
        let allowed = Exposure { unencrypted_swap: self.allow_unencrypted_swap, hibernation: self.allow_hibernation };
        LinuxMachine { allowed }
    }
}

impl PoolFlags {
    fn get(self) -> Result<Pools> {
        Pools::new(self.pools)
    }
}

/// `[NAME=]DIR`; a directory whose name holds '=' needs the name in front.
fn parse_pool(text: &str) -> Result<LocalPool> {
    let (name, directory) = match text.split_once('=') {
        Some((name, directory)) => (PoolName::parse("the pool's name", name)?, directory),
        None => (PoolName::default(), text),
    };
    if directory.is_empty() {
        return Err(Error::invalid("the pool's directory", "is required"));
    }
    Ok(LocalPool::open(name, directory.into()))
}
