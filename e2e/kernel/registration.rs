//! What the kubelet finds in its directory of registration sockets: it watches that directory, and dials what appears.

use std::fs;
use std::os::unix::fs::MetadataExt;

use coffer::grpc::proto::registration::InfoRequest;
use coffer::grpc::proto::registration::PluginInfo;
use coffer::grpc::proto::registration::registration_client::RegistrationClient;
use tonic::transport::Endpoint;

use crate::driver::SOCKET;
use crate::scene::Scene;

const REGISTRATION: &str = "/var/lib/kubelet/plugins_registry/csi.coffer.dev-reg.sock";

/// What the socket says, asked as the kubelet does.
fn info() -> PluginInfo {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("unix://{REGISTRATION}")).expect("an address");
        let channel = endpoint.connect().await.expect("somebody listens");
        RegistrationClient::new(channel).get_info(InfoRequest {}).await.expect("an answer").into_inner()
    })
}

fn created() -> (u64, i64, i64) {
    let socket = fs::symlink_metadata(REGISTRATION).expect("the socket is there");
    (socket.ino(), socket.ctime(), socket.ctime_nsec())
}

#[test]
fn a_restarted_driver_shows_a_new_socket_and_an_ended_one_leaves_it() {
    let mut scene = Scene::new();
    let first = created();
    let known = info();
    assert_eq!((known.r#type.as_str(), known.name.as_str()), ("CSIPlugin", "csi.coffer.dev"));
    assert_eq!(known.endpoint, SOCKET, "the path that the kubelet dials");

    scene.restart_driver();
    assert_ne!(created(), first, "the kubelet would not notice a socket that stays the same file");
    assert_eq!(info(), known);

    // SIGTERM: to remove the socket is to be taken off the node's CSINode, and every pod would wait for it.
    scene.end();
    assert!(fs::symlink_metadata(REGISTRATION).is_ok(), "the driver took itself off the node");
}
