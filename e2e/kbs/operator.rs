//! The operator's files and steps.

use std::os::unix::fs::PermissionsExt;

use coffer::dev_kbs::{ServeConfig, Server, State};
use coffer::key::evidence::{Attester, AttesterDescription};
use coffer::volume::Reason;

use crate::rig::{Kbs, NODE, SECRET, key_uri, refused, released, secret};

#[tokio::test]
async fn the_policy_is_read_again_at_every_request() {
    let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
    let client = kbs.client(Attester::Sample);
    released(&client).await;
    kbs.state.deny(&key_uri(), NODE).expect("denied");
    let error = refused(&client, Reason::PolicyDenied).await;
    assert!(error.explanation().contains("add this node"), "{error}");
    assert_eq!(kbs.releases().len(), 1);
    kbs.state.allow(&key_uri(), NODE).expect("allowed");
    released(&client).await;
}

#[tokio::test]
async fn a_policy_that_is_not_understood_releases_nothing() {
    let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
    let client = kbs.client(Attester::Sample);
    released(&client).await;
    let policy = kbs.directory.path().join("policy.json");
    let text = std::fs::read_to_string(&policy).expect("a policy");
    std::fs::write(&policy, &text[..text.len() / 2]).expect("written");
    refused(&client, Reason::KeyNotFound).await;
    assert_eq!(kbs.releases().len(), 1);
    std::fs::write(&policy, text).expect("written");
    released(&client).await;
}

#[tokio::test]
async fn what_cannot_be_written_down_is_not_released() {
    let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
    let client = kbs.client(Attester::Sample);
    released(&client).await;
    std::fs::rename(kbs.state.release_log(), kbs.directory.path().join("old.log")).expect("moved");
    std::fs::create_dir(kbs.state.release_log()).expect("in the way");
    refused(&client, Reason::KeyNotFound).await;
}

#[tokio::test]
async fn secrets_and_keys_are_only_their_owners() {
    let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
    released(&kbs.client(Attester::Sample)).await;
    for (file, expected) in [("secrets.json", 0o600), ("ca.key", 0o600), ("ca.pem", 0o644), ("policy.json", 0o644)] {
        let mode = std::fs::metadata(kbs.directory.path().join(file)).expect(file).permissions().mode();
        assert_eq!(mode & 0o777, expected, "{file}");
    }
}

#[tokio::test]
async fn clients_trust_the_kbs_after_its_restart_and_under_a_new_name() {
    let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
    let ca = std::fs::read(kbs.state.ca_file()).expect("a CA");
    released(&kbs.client(Attester::Sample)).await;
    let Kbs { state, directory, server } = kbs;
    server.stop().await.expect("stopped");
    let config = ServeConfig {
        listen: "127.0.0.1:0".parse().expect("an address"),
        names: vec!["10.0.2.2".into(), "kbs.example".into()],
        allow_sample: true,
    };
    let server = Server::start(state.clone(), config).expect("starts again");
    let kbs = Kbs { state, directory, server };
    assert_eq!(std::fs::read(kbs.state.ca_file()).expect("a CA"), ca);
    released(&kbs.client(Attester::Sample)).await;
}

#[test]
fn a_key_is_not_replaced_by_accident() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = State::open(directory.path()).expect("a state directory");
    state.put(&key_uri(), &secret(&SECRET), false, &[]).expect("stored");
    let before = std::fs::read(directory.path().join("secrets.json")).expect("secrets");
    let error = state.put(&key_uri(), &secret(&[1; 32]), false, &[]).expect_err("there is one");
    assert_eq!(error.reason(), Reason::AlreadyExists);
    assert!(error.explanation().contains("--replace"), "{error}");
    assert_eq!(std::fs::read(directory.path().join("secrets.json")).expect("secrets"), before);
}

#[test]
fn a_new_key_goes_to_the_nodes_that_are_named_or_else_registered() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = State::open(directory.path()).expect("a state directory");
    for name in ["one", "two"] {
        let sample = AttesterDescription::without_proof("sample");
        state.register(name, &sample, "0-7".parse().expect("PCRs")).expect("registered");
    }
    assert_eq!(state.put(&key_uri(), &secret(&SECRET), false, &[]).expect("stored"), ["one", "two"]);
    state.deny(&key_uri(), "one").expect("denied");
    assert_eq!(state.put(&key_uri(), &secret(&SECRET), true, &[]).expect("replaced"), ["two"], "the policy stays");
    let named = coffer::volume::KeyUri::parse("key URI", "kbs:///a/b/c").expect("a URI");
    assert_eq!(state.put(&named, &secret(&SECRET), false, &["one".into()]).expect("stored"), ["one"]);
    assert!(state.put(&named, &secret(&SECRET), true, &["three".into()]).is_err(), "not registered");
    assert!(state.allow(&named, "three").is_err());
}
