//! A KBS, or somebody in its place, that answers what it must not.

use std::sync::Mutex;

use axum::http::{HeaderValue, StatusCode, header};
use coffer::key::VolumeKeys;
use coffer::key::evidence::Attester;
use coffer::volume::{Reason, VolumeId};
use coffer::{key::KeySource, key::kbs::Limits};
use serde_json::json;
use std::time::Duration;

use crate::proxy::Message;
use crate::rig::{Kbs, NODE, client, key_uri, refused, released, secret, tampered};

const STEPS: [&str; 3] = ["auth", "attest", "resource"];
const CANARY: &str = "canary-of-the-answer";

/// The key is refused for `reason` when the answer to `step` is changed.
async fn answered(step: &'static str, reason: Reason, change: impl Fn(&mut Message) + Send + Sync + 'static) {
    let tamper = move |message: &mut Message, armed: bool| {
        if armed && message.is_answer(step) {
            change(message);
        }
    };
    let outcome = tampered(Attester::Sample, reason, tamper).await;
    let error = outcome.error;
    assert!(!format!("{error} {error:?}").contains(CANARY), "{error:?}");
    assert_eq!(outcome.exchanges, 1, "{step}");
    assert_eq!(outcome.new_releases, usize::from(step == "resource"), "only the last answer is one about a release");
}

#[tokio::test]
async fn garbage_is_a_protocol_error_at_every_step() {
    for step in STEPS {
        for body in ["", "{}", "[]", "null", "<html>canary-of-the-answer</html>", "\u{0}\u{1}canary-of-the-answer"] {
            answered(step, Reason::KbsProtocol, |message| message.body = body.into()).await;
        }
    }
}

#[tokio::test]
async fn an_answer_cut_short_is_a_protocol_error_at_every_step() {
    for step in STEPS {
        answered(step, Reason::KbsProtocol, |message| message.body.truncate(message.body.len() / 2)).await;
    }
}

#[tokio::test]
async fn an_answer_without_end_is_given_up_at_every_step() {
    for step in STEPS {
        answered(step, Reason::KbsProtocol, |message| message.body = vec![b' '; 4 << 20]).await;
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_at_any_step() {
    for step in STEPS {
        for status in [301, 302, 307, 308] {
            answered(step, Reason::KbsProtocol, move |message| {
                message.status = StatusCode::from_u16(status).expect("a status");
                message.headers.insert(header::LOCATION, HeaderValue::from_static("https://canary-of-the-answer/"));
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_failing_server_is_a_protocol_error_at_every_step() {
    for step in STEPS {
        for status in [400, 403, 404, 500, 502, 503] {
            answered(step, Reason::KbsProtocol, move |message| {
                message.status = StatusCode::from_u16(status).expect("a status");
                message.body = CANARY.into();
            })
            .await;
        }
    }
}

#[tokio::test]
async fn the_error_types_of_the_protocol_have_reasons_of_their_own() {
    for (step, kind, reason) in [
        ("auth", "AttestationError", Reason::AttestationDenied),
        ("attest", "AttestationError", Reason::AttestationDenied),
        ("resource", "PolicyDeny", Reason::PolicyDenied),
        ("resource", "PluginInternalError", Reason::KeyNotFound),
        ("resource", "InvalidRequestPath", Reason::KbsProtocol),
    ] {
        answered(step, reason, move |message| {
            message.status = StatusCode::UNAUTHORIZED;
            message.body = json!({ "type": format!("https://kbs/errors/{kind}"), "detail": CANARY }).to_string().into();
        })
        .await;
    }
}

#[tokio::test]
async fn a_forgotten_session_costs_one_more_exchange_and_no_third() {
    for kind in ["TokenNotFound", "TokenVerifierError"] {
        let tamper = move |message: &mut Message, armed: bool| {
            if armed && message.is_answer("resource") {
                message.status = StatusCode::UNAUTHORIZED;
                message.body = json!({ "type": format!("https://kbs/errors/{kind}") }).to_string().into();
            }
        };
        let outcome = tampered(Attester::Sample, Reason::AttestationDenied, tamper).await;
        assert_eq!(outcome.exchanges, 2);
    }
}

#[tokio::test]
async fn a_cookie_lost_on_the_way_is_no_session() {
    let without = |step: &'static str| {
        move |message: &mut Message, armed: bool| {
            if armed && message.is_request(step) {
                message.headers.remove(header::COOKIE);
            }
        }
    };
    let outcome = tampered(Attester::Sample, Reason::AttestationDenied, without("attest")).await;
    assert_eq!((outcome.exchanges, outcome.new_releases), (1, 0));
    let outcome = tampered(Attester::Sample, Reason::AttestationDenied, without("resource")).await;
    assert_eq!((outcome.exchanges, outcome.new_releases), (2, 0));
}

#[tokio::test]
async fn a_missing_cookie_is_a_protocol_error() {
    answered("auth", Reason::KbsProtocol, |message| drop(message.headers.remove(header::SET_COOKIE))).await;
}

#[tokio::test]
async fn the_envelope_of_an_earlier_exchange_does_not_open() {
    let recorded = Mutex::new(None::<Vec<u8>>);
    let tamper = move |message: &mut Message, armed: bool| {
        if message.is_answer("resource") {
            let mut recorded = recorded.lock().expect("not poisoned");
            match recorded.as_ref().filter(|_| armed) {
                Some(old) => message.body.clone_from(old),
                None => *recorded = Some(message.body.clone()),
            }
        }
    };
    let outcome = tampered(Attester::Sample, Reason::KbsProtocol, tamper).await;
    assert!(outcome.error.explanation().contains("not encrypted for this exchange"), "{}", outcome.error);
}

#[tokio::test]
async fn an_envelope_changed_on_its_way_does_not_open() {
    for member in ["protected", "encrypted_key", "iv", "ciphertext", "tag"] {
        answered("resource", Reason::KbsProtocol, move |message| {
            message.change(&format!("/{member}"), |value| {
                let text = value.as_str().expect("text");
                let other = if text.starts_with('A') { "B" } else { "A" };
                *value = format!("{other}{}", &text[1..]).into();
            });
        })
        .await;
    }
}

#[tokio::test]
async fn a_missing_key_is_named_with_what_to_do() {
    let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
    let client = kbs.client(Attester::Sample);
    released(&client).await;
    let absent = coffer::volume::KeyUri::parse("key URI", "kbs:///csi-volumes/default/absent").expect("a URI");
    kbs.state.allow(&absent, NODE).expect("allowed");
    let error = client.secret(&absent).await.expect_err("no such key");
    assert_eq!(error.reason(), Reason::KeyNotFound);
    assert!(error.explanation().contains("kbs:///csi-volumes/default/absent"), "{error}");
    assert_eq!(kbs.releases().len(), 1);
}

#[tokio::test]
async fn a_short_key_is_released_and_not_used() {
    let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
    let client = kbs.client(Attester::Sample);
    released(&client).await;
    kbs.state.put(&key_uri(), &secret(&[7; 16]), true, &[]).expect("replaced");
    let short = client.secret(&key_uri()).await.expect("released");
    let error = VolumeKeys::derive(&short, &VolumeId::for_name("x")).err().expect("refused");
    assert_eq!(error.reason(), Reason::KeyTooShort);
}

#[tokio::test]
async fn a_slow_kbs_is_given_up_at_every_step() {
    let limits = Limits { exchange: Duration::from_secs(2), turn: Duration::from_secs(10) };
    for step in STEPS {
        for is_answer in [false, true] {
            let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
            let proxy = kbs.behind(Box::new(move |message, armed| {
                message.stalled = armed && message.step == step && message.is_answer == is_answer;
            }));
            let client = client(&proxy.url, &proxy.identity.ca_file(), Attester::Sample, limits);
            released(&client).await;
            proxy.arm();
            let started = std::time::Instant::now();
            let error = refused(&client, Reason::KbsTimeout).await;
            assert!(started.elapsed() < Duration::from_secs(8), "{step}");
            assert!(error.explanation().contains("2 s"), "{error}");
        }
    }
}

#[tokio::test]
async fn whoever_waits_too_long_for_another_exchange_is_told_so() {
    let limits = Limits { exchange: Duration::from_secs(3), turn: Duration::from_millis(200) };
    let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
    let proxy = kbs.behind(Box::new(|message, armed| message.stalled = armed));
    let client = client(&proxy.url, &proxy.identity.ca_file(), Attester::Sample, limits);
    released(&client).await;
    proxy.arm();
    let uri = key_uri();
    let (first, second) = tokio::join!(client.secret(&uri), client.secret(&uri));
    assert_eq!(first.expect_err("stalled").reason(), Reason::KbsTimeout);
    assert_eq!(second.expect_err("waited").reason(), Reason::KbsBusy);
    assert_eq!(proxy.exchanges_since_armed(), 1, "the second never reached the KBS");
}

#[tokio::test]
async fn many_callers_are_served_one_after_another() {
    let kbs = Kbs::for_node(&Attester::Sample, "0-7").await;
    let client = kbs.client(Attester::Sample);
    futures_util::future::join_all((0..20).map(|_| released(&client))).await;
    assert_eq!(kbs.releases().len(), 20);
}
