//! Whether the KBS is reached, and is the one that we were told to trust.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use coffer::key::evidence::Attester;
use coffer::key::kbs::{KbsClient, KbsConfig, Limits};
use coffer::volume::Reason;

use crate::proxy::{Identity, Proxy};
use crate::rig::{Kbs, client, refused, released};

const LIMITS: Limits = Limits { exchange: Duration::from_secs(20), turn: Duration::from_secs(20) };

/// A server that answers every connection with `bytes`, and the port it is on.
fn raw_server(bytes: &'static [u8]) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            // What the client does about this answer is its affair: it may have gone already.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(bytes);
        }
    });
    port
}

fn over_plain_http(port: u16) -> KbsClient {
    let config = KbsConfig {
        url: format!("http://127.0.0.1:{port}"),
        ca_file: None,
        allow_insecure_http: true,
        attester: Attester::Sample,
        limits: LIMITS,
    };
    KbsClient::new(config).expect("a valid configuration")
}

#[tokio::test]
async fn a_kbs_that_another_ca_signed_is_not_trusted() {
    let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
    released(&kbs.client(Attester::Sample)).await;
    let other = Kbs::start(true);
    let error =
        refused(&client(&kbs.url(), &other.state.ca_file(), Attester::Sample, LIMITS), Reason::KbsUntrusted).await;
    assert!(error.explanation().contains("--kbs-ca"), "{error}");
    assert_eq!(kbs.releases().len(), 1);
}

#[tokio::test]
async fn a_certificate_for_another_host_is_not_trusted() {
    let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
    let identity =
        |names: &[&str]| Proxy::start(kbs.url(), &kbs.state.ca_file(), Identity::new(names, None), Box::new(|_, _| ()));
    let right = identity(&["127.0.0.1"]);
    released(&client(&right.url, &right.identity.ca_file(), Attester::Sample, LIMITS)).await;
    let wrong = identity(&["canary-of-the-certificate.example", "127.0.0.2"]);
    let error =
        refused(&client(&wrong.url, &wrong.identity.ca_file(), Attester::Sample, LIMITS), Reason::KbsUntrusted).await;
    assert!(error.explanation().contains("host name"), "{error}");
    let told = format!("{} {error:?}", error.chain());
    assert!(!told.contains("canary"), "what an impostor says goes into an Event: {told}");
    assert_eq!(kbs.releases().len(), 1);
}

#[tokio::test]
async fn a_certificate_outside_its_dates_is_not_trusted() {
    let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
    for dates in [(2001, 2002), (2900, 2901)] {
        let identity = Identity::new(&["127.0.0.1"], Some(dates));
        let proxy = Proxy::start(kbs.url(), &kbs.state.ca_file(), identity, Box::new(|_, _| ()));
        let untrusted = client(&proxy.url, &proxy.identity.ca_file(), Attester::Sample, LIMITS);
        let error = refused(&untrusted, Reason::KbsUntrusted).await;
        assert!(error.explanation().contains("clock"), "{error}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_no_kbs() {
    let kbs = Kbs::start(true);
    let port = raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let plain = client(&format!("https://127.0.0.1:{port}"), &kbs.state.ca_file(), Attester::Sample, LIMITS);
    let error = refused(&plain, Reason::KbsProtocol).await;
    assert!(error.explanation().contains("TLS"), "{error}");
}

#[tokio::test]
async fn a_closed_port_and_an_unknown_name_are_unreachable() {
    let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
    let (url, ca_file) = (kbs.url(), kbs.state.ca_file());
    let reached = kbs.client(Attester::Sample);
    released(&reached).await;
    kbs.server.stop().await.expect("stopped");
    refused(&reached, Reason::KbsUnreachable).await;
    assert_eq!(reached.last_exchange_error(), Some(Reason::KbsUnreachable));
    let error =
        refused(&client("https://kbs.invalid", &ca_file, Attester::Sample, LIMITS), Reason::KbsUnreachable).await;
    assert!(error.explanation().contains("kbs.invalid"), "{error}");
    assert!(!error.explanation().contains(&url), "{error}");
}

#[tokio::test]
async fn what_is_not_http_is_a_protocol_error() {
    refused(&over_plain_http(raw_server(b"canary-of-the-answer\r\n\r\n")), Reason::KbsProtocol).await;
    refused(&over_plain_http(raw_server(b"")), Reason::KbsProtocol).await;
}

#[tokio::test]
async fn a_connection_that_breaks_in_an_answer_is_unreachable() {
    let cut = raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{");
    let error = refused(&over_plain_http(cut), Reason::KbsUnreachable).await;
    assert!(error.explanation().contains("broke"), "{error}");
}
