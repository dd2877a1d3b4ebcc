//! HTTP: what probes are told whatever else is wrong, and what is counted of the calls on the CSI socket.

use std::os::unix::fs::FileExt as _;

use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::node::stage;
use super::*;

/// Asks like a probe: one connection, no library.
pub(super) async fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    let mut connection = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: coffer\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.expect("asked");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("answered");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let media_type = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
    (status, media_type.to_owned(), text.to_owned())
}

/// The value of the sample whose name and labels are `sample`; 0 if there is none.
fn value(text: &str, sample: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().expect("a number"))
}

#[tokio::test]
async fn a_driver_that_serves_is_alive_and_ready_without_pool_and_kbs() {
    let scene = Scene::start().await;
    scene.kbs.answers(Err(Reason::KbsUnreachable));
    fs::remove_file(scene.path("pool/pool.json")).expect("the pool goes away");
    assert_eq!(scene.get("/healthz").await.0, 200);
    assert_eq!(scene.get("/readyz").await.0, 200);
    assert_eq!(scene.get("/").await.0, 404);
    let (status, media_type, text) = scene.get("/metrics").await;
    assert_eq!((status, media_type.as_str()), (200, coffer::metrics::MEDIA_TYPE));
    assert!(text.contains("coffer_pool_ready{pool=\"default\"} 0\n"), "{text}");
}

#[tokio::test]
async fn whoever_does_not_serve_the_socket_is_alive_and_not_ready() {
    let directory = tempfile::tempdir().expect("a directory");
    let csi = directory.path().join("csi.sock");
    // Bound, as by a process that hangs: connections are accepted by the kernel alone.
    let _silent = std::os::unix::net::UnixListener::bind(&csi).expect("bound");
    for csi in [csi, directory.path().join("nobody.sock")] {
        let subject = Subject { csi, metrics: Metrics::default(), node: None };
        let http = Http::bind("127.0.0.1:0", subject).await.expect("bound");
        let address = http.address().expect("an address");
        tokio::spawn(http.serve());
        assert_eq!(get(address, "/healthz").await.0, 200);
        let (status, _, text) = get(address, "/readyz").await;
        assert!(status == 503 && text.contains("CSI socket"), "{status}: {text}");
        assert_eq!(get(address, "/metrics").await.0, 200);
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_used_is_named() {
    let taken = Http::bind("127.0.0.1:0", subject()).await.expect("bound");
    let address = taken.address().expect("an address").to_string();
    for address in [address.as_str(), "localhost", ":none", "192.0.2.1:80"] {
        let refused = Http::bind(address, subject()).await.err().expect("refused");
        assert_eq!(refused.reason(), Reason::InvalidArgument);
        assert!(refused.explanation().starts_with("--http: ") && refused.explanation().contains(address), "{refused}");
    }
    Http::bind(":0", subject()).await.expect("every address, with IPv6 or without");
}

fn subject() -> Subject {
    Subject { csi: "/nonexistent.sock".into(), metrics: Metrics::default(), node: None }
}

#[tokio::test]
async fn calls_keys_volumes_and_pools_are_measured() {
    let scene = Scene::start().await;
    let id = scene.volume("measured", mount(Mode::SingleNodeWriter)).await;
    let staging = stage(&scene, &id, mount(Mode::SingleNodeWriter));
    scene.kbs.answers(Err(Reason::PolicyDenied));
    scene.refused(scene.node().node_stage_volume(staging.clone()), Code::PermissionDenied).await;
    let (_, _, before) = scene.get("/metrics").await;
    let calls = |reason: &str| {
        format!("coffer_operation_duration_seconds_count{{method=\"NodeStageVolume\",reason=\"{reason}\"}}")
    };
    let requests =
        |result: &str| format!("coffer_key_request_duration_seconds_count{{kbs=\"kbs.example\",result=\"{result}\"}}");
    assert_eq!((value(&before, &calls("PolicyDenied")), value(&before, &calls("OK"))), (1, 0), "{before}");
    assert_eq!((value(&before, &requests("PolicyDenied")), value(&before, &requests("OK"))), (1, 0), "{before}");
    assert_eq!(value(&before, "coffer_open_volumes"), 0);

    scene.kbs.answers(Ok(7));
    scene.node().node_stage_volume(staging).await.expect("staged");
    let (_, _, after) = scene.get("/metrics").await;
    assert_eq!((value(&after, &calls("PolicyDenied")), value(&after, &calls("OK"))), (1, 1), "{after}");
    assert_eq!((value(&after, &requests("PolicyDenied")), value(&after, &requests("OK"))), (1, 1), "{after}");
    assert_eq!(value(&after, "coffer_open_volumes"), 1);
    assert!(value(&after, "coffer_last_attestation_timestamp_seconds") > 0, "{after}");
    let pool = |what: &str| value(&after, &format!("coffer_pool_{what}_bytes{{pool=\"default\"}}"));
    assert_eq!(pool("promised"), 16 << 20);
    assert_eq!(pool("capacity"), pool("promised") + pool("available"));
    assert!(!after.contains(&id) && !after.contains("kbs:///"), "neither volumes nor keys are named:\n{after}");
}

#[tokio::test]
async fn bytes_that_were_not_written_are_counted_by_whoever_finds_them() {
    let scene = Scene::start().await;
    let id = scene.volume("changed", mount(Mode::SingleNodeWriter)).await;
    let staging = stage(&scene, &id, mount(Mode::SingleNodeWriter));
    scene.node().node_stage_volume(staging.clone()).await.expect("staged");
    let staging_target_path = staging.staging_target_path.clone();
    let unstage = csi::NodeUnstageVolumeRequest { volume_id: id.clone(), staging_target_path };
    scene.node().node_unstage_volume(unstage).await.expect("unstaged");
    let found = "coffer_integrity_errors_total{reason=\"HeaderMissing\"}";
    assert_eq!(value(&scene.get("/metrics").await.2, found), 0);

    let backing = scene.path(&format!("pool/{id}/backing"));
    let image = fs::OpenOptions::new().write(true).open(backing).expect("an image");
    image.write_all_at(&vec![0; 1 << 20], 0).expect("its header is gone");
    scene.refused(scene.node().node_stage_volume(staging), Code::DataLoss).await;
    assert_eq!(value(&scene.get("/metrics").await.2, found), 1);
    let lost = csi::NodeGetVolumeHealthRequest { volume_id: id, ..Default::default() };
    scene.node().node_get_volume_health(lost).await.expect("told");
    let text = scene.get("/metrics").await.2;
    let all: u64 = text
        .lines()
        .filter_map(|line| line.strip_prefix("coffer_integrity_errors_total")?.split(' ').nth(1)?.parse::<u64>().ok())
        .sum();
    assert_eq!(all, 2, "{text}");
}
