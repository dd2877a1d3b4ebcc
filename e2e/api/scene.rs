//! What the tests have in common: a client, resource types that are installed, and nodes.

use std::fmt::Debug;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use coffer::cluster::ClusterPools;
use coffer::cluster::EncryptedPool;
use coffer::cluster::EncryptedVolume;
use coffer::cluster::Witness;
use coffer::cluster::clean;
use coffer::device::MountOptions;
use coffer::device::fake::FakeMachine;
use coffer::key::fake::FakeKbs;
use coffer::lifecycle::Lifecycle;
use coffer::lifecycle::StageRequest;
use coffer::metrics::Metrics;
use coffer::provision::LocalPool;
use coffer::provision::Pools;
use coffer::provision::Provisioner;
use coffer::reconcile::Reconciler;
use coffer::volume::Claim;
use coffer::volume::Content;
use coffer::volume::FsType;
use coffer::volume::Init;
use coffer::volume::KeyUri;
use coffer::volume::Place;
use coffer::volume::PoolName;
use coffer::volume::Profile;
use coffer::volume::VolumeId;
use coffer::volume::VolumeSpec;
use coffer::volume::Whereabouts;
use k8s_openapi::api::authentication::v1::BoundObjectReference;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::authentication::v1::TokenRequestSpec;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::Client;
use kube::Config;
use kube::Resource;
use kube::api::DeleteParams;
use kube::api::PostParams;
use kube::runtime::wait::Condition;
use kube::runtime::wait::await_condition;
use kube::runtime::wait::conditions::is_crd_established;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

/// How long anything may take that has to happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// What every volume of the tests is.
pub(crate) const EXT4: Content = Content::Filesystem(FsType::Ext4);

/// Where the chart is installed.
pub(crate) const NAMESPACE: &str = "coffer-system";

/// A cluster in which the chart is installed, without anybody to run its pods. Controllers and nodes act under the
/// identities that the chart gives them.
pub(crate) struct Scene {
    /// The cluster's administrator.
    pub(crate) client: Client,
}

impl Scene {
    /// Connects, and installs the chart unless another test has.
    pub(crate) async fn start() -> Self {
        static INSTALLED: OnceCell<()> = OnceCell::const_new();
        let client = Client::try_default().await.expect("KUBECONFIG; run make api");
        INSTALLED.get_or_init(|| install(client.clone())).await;
        Self { client }
    }

    /// A client with a fresh token of one of the chart's service accounts, bound to `pod` if there is one.
    pub(crate) async fn client_of(&self, account: &str, pod: Option<&Pod>) -> Client {
        let bound_object_ref = pod.map(|pod| BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        });
        let request = TokenRequest {
            spec: TokenRequestSpec { audiences: Vec::new(), bound_object_ref, expiration_seconds: Some(3600) },
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
        let made: TokenRequest =
            accounts.create_subresource("token", account, &PostParams::default(), &request).await.expect("a token");
        let mut config = Config::infer().await.expect("KUBECONFIG");
        config.auth_info.token = Some(made.status.expect("answered").token.into());
        Client::try_from(config).expect("a client")
    }

    /// A client with the token that the driver's pod on `node_name` has.
    pub(crate) async fn client_on(&self, node_name: &str) -> Client {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": format!("coffer-node-{node_name}")},
            "spec": {"nodeName": node_name, "serviceAccountName": "coffer-node",
                "containers": [{"name": "coffer", "image": "coffer"}]},
        }))
        .expect("a pod");
        let pod = pods.create(&PostParams::default(), &pod).await.expect("bound");
        self.client_of("coffer-node", Some(&pod)).await
    }

    pub(crate) fn volumes(&self) -> Api<EncryptedVolume> {
        Api::all(self.client.clone())
    }

    /// A controller, which also cleans up.
    pub(crate) async fn controller(&self) -> Controller {
        let client = self.client_of("coffer-controller", None).await;
        Controller { pools: ClusterPools::watch(client.clone()), cleaner: tokio::spawn(clean(client)) }
    }

    /// The resource of a node, as the kubelet registers it.
    pub(crate) async fn register(&self, name: &str) {
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes.create(&PostParams::default(), &node).await.expect("registered");
    }

    /// Takes a node out of the cluster for good.
    pub(crate) async fn remove_node(&self, name: &str) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes.delete(name, &DeleteParams::default()).await.expect("removed");
    }

    /// A node that runs the driver, with one pool; returns when its pool is shown.
    pub(crate) async fn node(&self, name: &str) -> TestNode {
        self.register(name).await;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pool");
        LocalPool::init(&path).expect("a pool");
        let pool = LocalPool::open(PoolName::default(), path);
        let machine = FakeMachine::default();
        let client = self.client_on(name).await;
        let pools = Pools::new(vec![pool.clone()]).expect("one pool").on(Place::of(name));
        let witness = Witness::new(client.clone());
        let kbs = Arc::new(FakeKbs::default());
        let lifecycle =
            Lifecycle::new(Arc::new(machine.clone()), kbs.clone(), pools, Some(witness), Metrics::default());
        let reconciler = Reconciler::new(client, name.to_owned(), lifecycle.clone());
        let node = TestNode { directory, pool, machine, kbs, lifecycle, driver: tokio::spawn(reconciler.run()) };
        let pools: Api<EncryptedPool> = Api::all(self.client.clone());
        let resource = EncryptedPool::name_of(name, &PoolName::default());
        self.wait(&pools, &resource, |pool: Option<&EncryptedPool>| pool.is_some_and(EncryptedPool::is_ready)).await;
        node
    }

    /// The resource once `condition` holds for it.
    pub(crate) async fn wait<K>(&self, api: &Api<K>, name: &str, condition: impl Condition<K>) -> Option<K>
    where
        K: Clone + Debug + Send + DeserializeOwned + Resource + 'static,
    {
        soon(await_condition(api.clone(), name, condition)).await.expect("watched")
    }
}

/// Installs the chart with the values that every installation needs.
async fn install(client: Client) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(NAMESPACE.to_owned());
    namespaces.create(&PostParams::default(), &namespace).await.expect("a namespace");
    apply_chart("helm/coffer/ci/minimal-values.yaml", "").await;
    let types: Api<CustomResourceDefinition> = Api::all(client);
    for name in ["encryptedvolumes.coffer.dev", "encryptedpools.coffer.dev"] {
        soon(await_condition(types.clone(), name, is_crd_established())).await.expect("established");
    }
}

/// Renders the chart with a file of values and applies it, with `flags` of kubectl.
pub(crate) async fn apply_chart(values: &str, flags: &str) {
    let program = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name}; run make api"));
    let script = format!(
        "{} template coffer helm/coffer --namespace {NAMESPACE} --values {values} --kube-version 1.37.1 | \
         {} apply --server-side {flags} -f -",
        program("COFFER_HELM"),
        program("COFFER_KUBECTL")
    );
    let applied = Command::new("bash")
        .args(["-eo", "pipefail", "-c", &script])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .await
        .expect("a shell");
    assert!(applied.status.success(), "{values}: {}", String::from_utf8_lossy(&applied.stderr));
}

/// A controller of the cluster.
pub(crate) struct Controller {
    pub(crate) pools: ClusterPools,
    cleaner: JoinHandle<()>,
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.cleaner.abort();
    }
}

impl Controller {
    /// Creates the volume `name` at one of `places`.
    pub(crate) async fn create(&self, name: &str, places: &[&str]) -> coffer::volume::Result<VolumeId> {
        self.create_within(name, places, SOON).await
    }

    pub(crate) async fn create_within(
        &self,
        name: &str,
        places: &[&str],
        patience: Duration,
    ) -> coffer::volume::Result<VolumeId> {
        let made = self.pools.create(spec(name), whereabouts(places), Instant::now() + patience).await?;
        assert!(places.contains(&made.place.as_str()), "{} is none of {places:?}", made.place);
        Ok(made.id)
    }

    pub(crate) async fn delete(&self, id: &VolumeId) -> coffer::volume::Result<()> {
        self.pools.delete(id.clone(), Instant::now() + SOON).await
    }
}

/// A node of the cluster.
pub(crate) struct TestNode {
    directory: tempfile::TempDir,
    pub(crate) pool: LocalPool,
    pub(crate) machine: FakeMachine,
    pub(crate) kbs: Arc<FakeKbs>,
    pub(crate) lifecycle: Lifecycle,
    driver: JoinHandle<()>,
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl TestNode {
    pub(crate) fn staging(&self) -> PathBuf {
        let path = self.directory.path().join("staging");
        std::fs::create_dir_all(&path).expect("a staging directory");
        path
    }

    pub(crate) fn stage_request(&self, id: &VolumeId) -> StageRequest {
        StageRequest { id: id.clone(), staging_path: self.staging(), content: EXT4, options: MountOptions::default() }
    }
}

/// `future`, which has to come to an end soon.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("nothing happened in time")
}

pub(crate) fn spec(name: &str) -> VolumeSpec {
    VolumeSpec {
        name: name.into(),
        pool: PoolName::default(),
        payload_bytes: 16 << 20,
        content: EXT4,
        profile: Profile::Xts1,
        init: Init::Seeded,
        key_uri: KeyUri::parse("keyUri", "kbs:///keys/default/one").expect("valid"),
        claim: Some(Claim { namespace: "shop".into(), name: name.into() }),
    }
}

pub(crate) fn whereabouts(places: &[&str]) -> Whereabouts {
    let places: Vec<_> = places.iter().map(|place| Place::of(place)).collect();
    Whereabouts { allowed: Some(places.clone()), preferred: places }
}
