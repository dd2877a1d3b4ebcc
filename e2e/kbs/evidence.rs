//! Evidence that is false, stale or somebody else's.

use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coffer::key::evidence::{Attester, Tpm};
use coffer::key::jwe::ExchangeKey;
use coffer::volume::Reason;
use serde_json::{Value, json};

use crate::proxy::Message;
use crate::rig::{Kbs, NODE, denied_by_tampering, key_uri, refused, released, tampered};
use crate::swtpm::Swtpm;

const QUOTE: &str = "/tee-evidence/primary_evidence/tpm_quote";

/// Flips one bit of byte `at` of base64 text; from the end if negative.
fn flip(value: &mut Value, at: isize) {
    let mut bytes = STANDARD.decode(value.as_str().expect("text")).expect("base64");
    let length = isize::try_from(bytes.len()).expect("a short text");
    let at = usize::try_from(if at < 0 { length + at } else { at }).expect("inside the text");
    bytes[at] ^= 1;
    *value = STANDARD.encode(bytes).into();
}

#[tokio::test]
async fn a_node_with_a_true_quote_gets_the_key_and_a_line_in_the_log() {
    let tpm = Swtpm::start();
    let attester = tpm.attester();
    let description = attester.describe().await.expect("described");
    let kbs = Kbs::for_node(&attester, "0-7").await;
    released(&kbs.client(attester)).await;
    let [line] = &kbs.releases()[..] else { panic!("not one line") };
    assert_eq!(line["event"], "released");
    assert_eq!(line["node"], NODE);
    assert_eq!(line["tee"], "tpm");
    assert_eq!(line["pcrs"], "0-7");
    assert_eq!(line["resourcePath"], key_uri().resource_path());
    assert_eq!(line["attestationKeySha256"].as_str(), description.attestation_key_sha256.as_deref());
    assert_eq!(line["pcrsSha256"].as_str().map(str::len), Some(64));
    assert!(line["time"].as_str().is_some_and(|time| time.ends_with('Z')));
}

#[tokio::test]
async fn a_nonce_changed_on_its_way_to_the_node_is_refused() {
    denied_by_tampering(|message| {
        if message.is_answer("auth") {
            message.change("/nonce", |nonce| flip(nonce, 0));
        }
    })
    .await;
}

#[tokio::test]
async fn a_nonce_changed_on_its_way_back_is_refused() {
    denied_by_tampering(|message| {
        if message.is_request("attest") {
            message.change("/runtime-data/nonce", |nonce| flip(nonce, 0));
        }
    })
    .await;
}

#[tokio::test]
async fn a_quote_of_an_earlier_exchange_is_refused() {
    let recorded = Mutex::new(None::<Value>);
    let tamper = move |message: &mut Message, armed: bool| {
        if message.is_request("attest") {
            let mut recorded = recorded.lock().expect("not poisoned");
            match recorded.as_ref().filter(|_| armed) {
                Some(old) => message.change("/tee-evidence", |evidence| *evidence = old.clone()),
                None => *recorded = Some(message.json()["tee-evidence"].clone()),
            }
        }
    };
    let tpm = Swtpm::start();
    let outcome = tampered(tpm.attester(), Reason::AttestationDenied, tamper).await;
    assert_eq!(outcome.new_releases, 0);
}

#[tokio::test]
async fn the_whole_attestation_of_an_earlier_exchange_is_refused() {
    let recorded = Mutex::new(None::<Vec<u8>>);
    let tamper = move |message: &mut Message, armed: bool| {
        if message.is_request("attest") {
            let mut recorded = recorded.lock().expect("not poisoned");
            match recorded.as_ref().filter(|_| armed) {
                Some(old) => message.body.clone_from(old),
                None => *recorded = Some(message.body.clone()),
            }
        }
    };
    let tpm = Swtpm::start();
    let outcome = tampered(tpm.attester(), Reason::AttestationDenied, tamper).await;
    assert_eq!(outcome.new_releases, 0);
}

#[tokio::test]
async fn a_corrupted_signature_is_refused() {
    denied_by_tampering(|message| {
        if message.is_request("attest") {
            message.change(&format!("{QUOTE}/signature"), |signature| flip(signature, -1));
        }
    })
    .await;
}

#[tokio::test]
async fn another_signature_scheme_is_refused() {
    denied_by_tampering(|message| {
        if message.is_request("attest") {
            message.change(&format!("{QUOTE}/signature"), |signature| flip(signature, 3));
        }
    })
    .await;
}

#[tokio::test]
async fn a_changed_quote_is_refused() {
    denied_by_tampering(|message| {
        if message.is_request("attest") {
            message.change(&format!("{QUOTE}/message"), |quote| flip(quote, -1));
        }
    })
    .await;
}

#[tokio::test]
async fn pcr_values_that_were_not_quoted_are_refused() {
    denied_by_tampering(|message| {
        if message.is_request("attest") {
            message.change(&format!("{QUOTE}/pcrs/7"), |pcr| *pcr = format!("{:064x}", 1).into());
        }
    })
    .await;
}

#[tokio::test]
async fn a_pcr_outside_the_registered_subset_must_be_true_too() {
    denied_by_tampering(|message| {
        if message.is_request("attest") {
            message.change(&format!("{QUOTE}/pcrs/23"), |pcr| *pcr = format!("{:064x}", 1).into());
        }
    })
    .await;
}

#[tokio::test]
async fn a_shortened_list_of_pcrs_is_refused() {
    denied_by_tampering(|message| {
        if message.is_request("attest") {
            message.change(&format!("{QUOTE}/pcrs"), |pcrs| drop(pcrs.as_array_mut().expect("a list").pop()));
        }
    })
    .await;
}

#[tokio::test]
async fn the_quote_of_one_key_under_the_name_of_another_is_refused() {
    let other = Swtpm::start();
    let key = other.attester().describe().await.expect("described").attestation_key.expect("a key");
    denied_by_tampering(move |message| {
        if message.is_request("attest") {
            message.change("/tee-evidence/primary_evidence/ak_public", |public| *public = key.clone().into());
        }
    })
    .await;
}

#[tokio::test]
async fn a_quote_does_not_serve_for_the_key_of_somebody_between() {
    denied_by_tampering(|message| {
        if message.is_request("attest") {
            let own = json!(ExchangeKey::generate().expect("locked").recipient());
            message.change("/runtime-data/tee-pubkey", |recipient| *recipient = own);
        }
    })
    .await;
}

#[tokio::test]
async fn evidence_of_devices_that_was_not_quoted_is_refused() {
    denied_by_tampering(|message| {
        if message.is_request("attest") {
            message.change("/tee-evidence/additional_evidence", |evidence| *evidence = "{}".into());
        }
    })
    .await;
}

#[tokio::test]
async fn another_version_of_the_protocol_is_refused() {
    denied_by_tampering(|message| {
        if message.is_request("auth") {
            message.change("/version", |version| *version = "0.3.0".into());
        }
    })
    .await;
}

#[tokio::test]
async fn a_tpm_that_pretends_to_be_a_sample_is_refused() {
    denied_by_tampering(|message| {
        if message.is_request("auth") {
            message.change("/tee", |tee| *tee = "sample".into());
        }
    })
    .await;
}

#[tokio::test]
async fn sample_evidence_is_refused_unless_the_kbs_was_told_to_accept_it() {
    let attester = Attester::Sample;
    released(&Kbs::for_node(&attester, "0-7").await.client(attester)).await;
    let strict = Kbs::start(false);
    refused(&strict.client(Attester::Sample), Reason::AttestationDenied).await;
    assert!(strict.releases().is_empty());
}

#[tokio::test]
async fn another_tpm_is_refused_by_policy() {
    let (tpm, other) = (Swtpm::start(), Swtpm::start());
    let kbs = Kbs::for_node(&tpm.attester(), "0-7").await;
    released(&kbs.client(tpm.attester())).await;
    let error = refused(&kbs.client(other.attester()), Reason::PolicyDenied).await;
    assert!(error.explanation().contains("kbs:///csi-volumes/default/key"), "{error}");
    assert_eq!(kbs.releases().len(), 1);
}

#[tokio::test]
async fn a_node_that_booted_something_else_is_refused_by_policy() {
    let tpm = Swtpm::start();
    let kbs = Kbs::for_node(&tpm.attester(), "0-7").await;
    let client = kbs.client(tpm.attester());
    released(&client).await;
    tpm.extend(16);
    released(&client).await;
    tpm.extend(7);
    refused(&client, Reason::PolicyDenied).await;
    assert_eq!(kbs.releases().len(), 2);
}

#[tokio::test]
async fn the_attestation_key_is_the_same_after_a_restart() {
    let tpm = Swtpm::start();
    let attester = tpm.attester();
    let before = attester.describe().await.expect("described");
    assert_eq!(attester.describe().await.expect("described again"), before);
    let tpm = tpm.restart();
    assert_eq!(tpm.attester().describe().await.expect("described after the restart"), before);
    tpm.tool("tpm2_clear", &[]);
    let cleared = tpm.attester().describe().await.expect("described after tpm2_clear");
    assert_eq!(cleared.attestation_key, before.attestation_key);
}

#[tokio::test]
async fn the_password_of_the_endorsement_hierarchy_comes_from_its_file() {
    let tpm = Swtpm::start();
    let before = tpm.attester().describe().await.expect("described");
    tpm.tool("tpm2_changeauth", &["-c", "endorsement", "hush-hush"]);
    let error = tpm.attester().describe().await.expect_err("no password");
    assert_eq!(error.reason(), Reason::AttesterUnavailable);
    assert!(error.explanation().contains("--endorsement-auth-file"), "{error}");

    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("auth");
    std::fs::write(&file, "hush-hush\n").expect("written");
    let attester = Attester::Tpm(Tpm::new(&tpm.tcti(), Some(file.clone())).expect("configured"));
    assert_eq!(attester.describe().await.expect("described"), before);

    std::fs::write(&file, "hush").expect("written");
    let wrong = Attester::Tpm(Tpm::new(&tpm.tcti(), Some(file)).expect("configured"));
    let error = wrong.describe().await.expect_err("another password");
    assert!(!format!("{error} {error:?}").contains("hush"), "{error}");
}
