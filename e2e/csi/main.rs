//! The CSI seen from its caller: every code of the specification's error tables, over the real socket, with a machine
//! that lives in memory and a key source that answers as it is told.
//!
//! What probes and scrapers are told about it is asked over its other socket.
//!
//! Every refusal has its code, a message that begins with a reason word, empty details, and changes nothing on disk.

mod controller;
mod http;
mod node;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use coffer::device::fake::FakeMachine;
use coffer::grpc::Door;
use coffer::grpc::Sockets;
use coffer::grpc::proto::csi;
use coffer::grpc::proto::csi::controller_client::ControllerClient;
use coffer::grpc::proto::csi::identity_client::IdentityClient;
use coffer::grpc::proto::csi::node_client::NodeClient;
use coffer::grpc::proto::csi::volume_capability::AccessMode;
use coffer::grpc::proto::csi::volume_capability::AccessType;
use coffer::grpc::proto::csi::volume_capability::BlockVolume;
use coffer::grpc::proto::csi::volume_capability::MountVolume;
use coffer::grpc::proto::csi::volume_capability::access_mode::Mode;
use coffer::http::Http;
use coffer::http::Subject;
use coffer::key::KeySource;
use coffer::key::fake::FakeKbs;
use coffer::lifecycle::Lifecycle;
use coffer::lifecycle::Local;
use coffer::metrics::Metrics;
use coffer::provision::LocalPool;
use coffer::provision::Pools;
use coffer::volume::Place;
use coffer::volume::PoolName;
use coffer::volume::Reason;
use tonic::Code;
use tonic::Status;
use tonic::transport::Channel;
use tonic::transport::Endpoint;

const MIB: i64 = 1 << 20;
/// Has our form and belongs to no volume.
const UNKNOWN_ID: &str = "cv-00000000000000000000000000000000";

/// A running driver and a connection to it.
struct Scene {
    kbs: Arc<FakeKbs>,
    directory: tempfile::TempDir,
    channel: Channel,
    web: SocketAddr,
}

impl Scene {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let pool = directory.path().join("pool");
        LocalPool::init(&pool).expect("a new pool");
        let pools = Pools::new(vec![LocalPool::open(PoolName::default(), pool)]).expect("one pool");
        let kbs = Arc::new(FakeKbs::default());
        let metrics = Metrics::default();
        let keys: Arc<dyn KeySource> = kbs.clone();
        let lifecycle = Lifecycle::new(Arc::new(FakeMachine::default()), keys, pools, None, metrics.clone());
        let csi = directory.path().join("csi.sock");
        let address = format!("unix://{}", csi.display());
        let local = Local::new(lifecycle.clone(), Place::of("node1"));
        let door = Door::controller(Arc::new(local), metrics.clone());
        let door = door.and(Door::node(lifecycle.clone(), "node1".into(), 8, metrics.clone()));
        let subject = Subject { csi: csi.clone(), metrics, node: Some(lifecycle) };
        let http = Http::bind("127.0.0.1:0", subject).await.expect("bound");
        let web = http.address().expect("an address");
        tokio::spawn(http.serve());
        tokio::spawn(door.serve(Sockets { csi, registry: None }, std::future::pending()));
        let endpoint = Endpoint::from_shared(address).expect("an address");
        let channel = loop {
            match endpoint.connect().await {
                Ok(channel) => break channel,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        Self { kbs, directory, channel, web }
    }

    fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel.clone())
    }

    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A volume of 16 MiB, and its id.
    async fn volume(&self, name: &str, capability: csi::VolumeCapability) -> String {
        let request = csi::CreateVolumeRequest { volume_capabilities: vec![capability], ..create(name) };
        let answer = self.controller().create_volume(request).await.expect("created").into_inner();
        answer.volume.expect("a volume").volume_id
    }

    /// Status, media type and text of what is answered to a GET of `path` over HTTP.
    async fn get(&self, path: &str) -> (u16, String, String) {
        http::get(self.web, path).await
    }

    /// Runs a call that must be refused, and holds the refusal and the disk against the rules.
    async fn refused<T: std::fmt::Debug>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
        code: Code,
    ) -> Status {
        let before = tree(self.directory.path());
        let status = call.await.expect_err("must be refused");
        assert_eq!(status.code(), code, "{status:?}");
        let word = status.message().split(':').next().unwrap_or_default();
        assert!(Reason::ALL.iter().any(|reason| reason.as_str() == word), "no reason word: {status:?}");
        assert!(status.details().is_empty(), "{status:?}");
        assert_eq!(tree(self.directory.path()), before, "a refusal changed the disk");
        status
    }
}

/// Every path below `directory` with its contents, except what is only for display.
fn tree(directory: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                open.push(path.clone());
                found.insert(path, None);
            } else if path.file_name().is_some_and(|name| name != "refusal.json") && path.is_file() {
                found.insert(path.clone(), Some(fs::read(&path).expect("readable")));
            }
        }
    }
    found
}

fn capability(access_type: AccessType, mode: Mode) -> csi::VolumeCapability {
    csi::VolumeCapability { access_type: Some(access_type), access_mode: Some(AccessMode { mode: mode.into() }) }
}

fn mount(mode: Mode) -> csi::VolumeCapability {
    capability(AccessType::Mount(MountVolume::default()), mode)
}

fn block(mode: Mode) -> csi::VolumeCapability {
    capability(AccessType::Block(BlockVolume {}), mode)
}

fn create(name: &str) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(csi::CapacityRange { required_bytes: 16 * MIB, limit_bytes: 0 }),
        volume_capabilities: vec![mount(Mode::SingleNodeMultiWriter)],
        parameters: HashMap::from([("keyUri".into(), "kbs:///default/coffer/key".into())]),
        ..Default::default()
    }
}
