//! The driver under test: the real program, started as an operator would, spoken to over its socket.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use coffer::grpc::proto::csi;
use coffer::grpc::proto::csi::controller_client::ControllerClient;
use coffer::grpc::proto::csi::node_client::NodeClient;
use coffer::grpc::proto::csi::volume_capability::AccessType;
use coffer::grpc::proto::csi::volume_capability::MountVolume;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::Channel;
use tonic::transport::Endpoint;

/// Where the kubelet's directories would be.
pub(crate) const KUBELET: &str = "/var/lib/kubelet";
/// The socket of the driver under test.
pub(crate) const SOCKET: &str = "/var/lib/kubelet/plugins/csi.coffer.dev/csi.sock";
/// Where the driver under test answers over HTTP.
pub(crate) const HTTP: &str = "127.0.0.1:9808";
/// What Kubernetes would call this node.
pub(crate) const NODE: &str = "node1";
/// Enough for a stage under TCG behind a slow KBS.
const CALL_DEADLINE: Duration = Duration::from_secs(150);

/// What every test says of its volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Block,
}

impl Kind {
    pub(crate) fn capability(self) -> csi::VolumeCapability {
        let mount =
            |fs_type: &str| AccessType::Mount(MountVolume { fs_type: fs_type.into(), ..MountVolume::default() });
        csi::VolumeCapability {
            access_type: Some(match self {
                Self::Ext4 => mount("ext4"),
                Self::Xfs => mount("xfs"),
                Self::Block => AccessType::Block(csi::volume_capability::BlockVolume {}),
            }),
            access_mode: Some(csi::volume_capability::AccessMode {
                mode: csi::volume_capability::access_mode::Mode::SingleNodeMultiWriter.into(),
            }),
        }
    }
}

/// How a driver is started.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// What the node is called.
    pub(crate) node: &'static str,
    /// The pool's directory.
    pub(crate) pool: PathBuf,
    /// Flags that name KBS and attester.
    pub(crate) kbs: Vec<String>,
    /// Further flags.
    pub(crate) flags: Vec<String>,
    /// Variables of its environment.
    pub(crate) variables: &'static [(&'static str, &'static str)],
    /// Where both outputs of the program go.
    pub(crate) log: PathBuf,
    /// The cluster that the driver is a node of, if it is not alone.
    pub(crate) kubeconfig: Option<&'static str>,
    /// Where libraries are that it finds before the node's.
    pub(crate) libraries: Option<&'static str>,
}

/// A running driver and a connection to it.
pub(crate) struct Driver {
    child: Child,
    runtime: Arc<Runtime>,
    channel: Channel,
}

impl Driver {
    /// Starts the driver and waits until it answers.
    pub(crate) fn start(options: &Options) -> Self {
        let runtime = Arc::new(
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("a runtime for the client"),
        );
        fs::create_dir_all(Path::new(SOCKET).parent().expect("a parent")).expect("the plugin's directory");
        let child = spawn(options);
        let channel = connect(&runtime, SOCKET);
        let mut driver = Self { child, runtime, channel };
        driver.wait_until_it_answers();
        driver
    }

    fn wait_until_it_answers(&mut self) {
        let start = Instant::now();
        loop {
            let mut client = csi::identity_client::IdentityClient::new(self.channel.clone());
            let answer = self.runtime.block_on(client.probe(csi::ProbeRequest {}));
            match answer {
                Ok(_) => return,
                Err(status) => {
                    let ended = self.child.try_wait().expect("the driver is our child");
                    assert!(ended.is_none(), "the driver ended with {ended:?}");
                    assert!(start.elapsed() < Duration::from_secs(60), "the driver does not answer: {status}");
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The driver's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the driver as a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("the driver is our child");
        self.child.wait().expect("the driver is our child");
    }

    /// Whether the driver has ended.
    pub(crate) fn is_dead(&mut self) -> bool {
        self.child.try_wait().expect("the driver is our child").is_some()
    }

    /// Ends the driver as the kubelet would, and expects success.
    pub(crate) fn terminate(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the driver is our child");
        let status = self.child.wait().expect("the driver is our child");
        assert!(status.success(), "on SIGTERM the driver ended with {status}");
    }

    /// `CreateVolume` of the default class.
    pub(crate) fn create(&self, name: &str, bytes: i64, kind: Kind) -> Result<csi::Volume, Status> {
        self.create_in(&[], name, bytes, kind)
    }

    /// `CreateVolume` of a class with more `parameters`.
    pub(crate) fn create_in(
        &self,
        parameters: &[(&str, &str)],
        name: &str,
        bytes: i64,
        kind: Kind,
    ) -> Result<csi::Volume, Status> {
        let key = ("keyUri", crate::broker::KEY_URI);
        let parameters = parameters.iter().chain([&key]).map(|(name, value)| ((*name).into(), (*value).into()));
        let request = csi::CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capabilities: vec![kind.capability()],
            parameters: parameters.collect(),
            ..csi::CreateVolumeRequest::default()
        };
        let answer = self.runtime.block_on(self.controller().create_volume(request))?;
        Ok(answer.into_inner().volume.expect("CreateVolume answers with a volume"))
    }

    /// `DeleteVolume`.
    pub(crate) fn delete(&self, id: &str) -> Result<(), Status> {
        let request = csi::DeleteVolumeRequest { volume_id: id.into(), ..csi::DeleteVolumeRequest::default() };
        self.runtime.block_on(self.controller().delete_volume(request)).map(drop)
    }

    /// `GetCapacity`.
    pub(crate) fn capacity(&self) -> Result<csi::GetCapacityResponse, Status> {
        let request = csi::GetCapacityRequest::default();
        Ok(self.runtime.block_on(self.controller().get_capacity(request))?.into_inner())
    }

    /// `GetCapacity` of the controller of a cluster, at `socket`.
    pub(crate) fn capacity_of_cluster(&self, socket: &str) -> Result<csi::GetCapacityResponse, Status> {
        let mut controller = ControllerClient::new(connect(&self.runtime, socket));
        Ok(self.runtime.block_on(controller.get_capacity(csi::GetCapacityRequest::default()))?.into_inner())
    }

    /// `NodeStageVolume`; the staging directory is made first, as the kubelet does.
    pub(crate) fn stage(&self, id: &str, kind: Kind) -> Result<(), Status> {
        self.stage_within(id, kind, CALL_DEADLINE)
    }

    /// `NodeStageVolume` of a caller that gives up after `patience`.
    pub(crate) fn stage_within(&self, id: &str, kind: Kind, patience: Duration) -> Result<(), Status> {
        let path = staging_path(id);
        fs::create_dir_all(&path).expect("the staging directory");
        let mut request = tonic::Request::new(csi::NodeStageVolumeRequest {
            volume_id: id.into(),
            staging_target_path: path.to_string_lossy().into_owned(),
            volume_capability: Some(kind.capability()),
            ..csi::NodeStageVolumeRequest::default()
        });
        request.set_timeout(patience);
        let mut node = self.node();
        self.runtime.block_on(async move {
            match tokio::time::timeout(patience, node.node_stage_volume(request)).await {
                Ok(answer) => answer.map(drop),
                Err(_) => Err(Status::deadline_exceeded("the caller gave up")),
            }
        })
    }

    /// `NodeUnstageVolume`; the staging directory is removed afterwards, as the kubelet does.
    pub(crate) fn unstage(&self, id: &str) -> Result<(), Status> {
        let path = staging_path(id);
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: id.into(),
            staging_target_path: path.to_string_lossy().into_owned(),
        };
        self.runtime.block_on(self.node().node_unstage_volume(request))?;
        remove_staging(id);
        Ok(())
    }

    /// `NodePublishVolume` for the pod `pod`.
    pub(crate) fn publish(&self, id: &str, kind: Kind, pod: &str, access: Access) -> Result<PathBuf, Status> {
        let target = target_path(id, pod);
        fs::create_dir_all(target.parent().expect("a parent")).expect("the pod's directory");
        let request = csi::NodePublishVolumeRequest {
            volume_id: id.into(),
            staging_target_path: staging_path(id).to_string_lossy().into_owned(),
            target_path: target.to_string_lossy().into_owned(),
            volume_capability: Some(kind.capability()),
            readonly: access == Access::ReadOnly,
            ..csi::NodePublishVolumeRequest::default()
        };
        self.runtime.block_on(self.node().node_publish_volume(request))?;
        Ok(target)
    }

    /// `NodeUnpublishVolume` for the pod `pod`; the pod's directory goes too.
    pub(crate) fn unpublish(&self, id: &str, pod: &str) -> Result<(), Status> {
        let target = target_path(id, pod);
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: id.into(),
            target_path: target.to_string_lossy().into_owned(),
        };
        self.runtime.block_on(self.node().node_unpublish_volume(request))?;
        assert!(!target.exists(), "the target {} is still there", target.display());
        fs::remove_dir_all(Path::new(KUBELET).join("pods").join(pod)).expect("the pod's directory");
        Ok(())
    }

    /// `NodeGetVolumeHealth`: status, reason and message of each entry.
    pub(crate) fn health(&self, id: &str) -> Vec<(String, String, String)> {
        let request = csi::NodeGetVolumeHealthRequest { volume_id: id.into(), ..Default::default() };
        let answer = self.runtime.block_on(self.node().node_get_volume_health(request)).expect("told").into_inner();
        let entries = answer.volume_health.expect("the volume's").health_statuses;
        let told = |entry: csi::volume_health::VolumeHealthEntry| {
            (entry.status().as_str_name().to_owned(), entry.reason, entry.message)
        };
        entries.into_iter().map(told).collect()
    }

    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection to the socket at `path`, made as soon as it is used.
fn connect(runtime: &Runtime, path: &str) -> Channel {
    let _context = runtime.enter();
    Endpoint::from_shared(format!("unix://{path}")).expect("a path").timeout(CALL_DEADLINE).connect_lazy()
}

/// Whether a publish may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    ReadOnly,
}

/// Where the kubelet would stage the volume.
pub(crate) fn staging_path(id: &str) -> PathBuf {
    Path::new(KUBELET).join("plugins/kubernetes.io/csi/csi.coffer.dev").join(id).join("globalmount")
}

/// What the kubelet does with the staging directory after an unstage and after a final refusal.
#[track_caller]
pub(crate) fn remove_staging(id: &str) {
    let path = staging_path(id);
    let parent = path.parent().expect("a volume has a directory of its own");
    if parent.exists() {
        if path.exists() {
            fs::remove_dir(&path).expect("the staging directory is empty");
        }
        fs::remove_dir(parent).expect("the volume's directory is empty");
    }
}

fn target_path(id: &str, pod: &str) -> PathBuf {
    Path::new(KUBELET).join("pods").join(pod).join("volumes/kubernetes.io~csi").join(id).join("mount")
}

fn spawn(options: &Options) -> Child {
    let log = File::options().create(true).append(true).open(&options.log).expect("the driver's log");
    let mut command = Command::new("coffer");
    command.arg(if options.kubeconfig.is_some() { "node" } else { "all" });
    command.envs(options.kubeconfig.map(|file| ("KUBECONFIG", file)));
    command.envs(options.libraries.map(|directory| ("LD_LIBRARY_PATH", directory)));
    command.envs(options.variables.iter().copied());
    command.args(["--endpoint", &format!("unix://{SOCKET}"), "--node-name", options.node, "--http", HTTP]);
    command.arg("--pool").arg(&options.pool).args(&options.kbs).args(["--kubelet-dir", KUBELET]);
    command.args(&options.flags);
    command.stdout(log.try_clone().expect("a second handle")).stderr(log).spawn().expect("coffer starts")
}
