//! What a KBS's refusal means to us. Its text is never repeated: only the last word of the error's type is looked at.

use reqwest::StatusCode;
use serde::Deserialize;

use super::exchange::{Failure, Step};
use crate::volume::Error;
use crate::volume::KeyUri;
use crate::volume::Reason;

/// The body of a refusal; the human text beside the type is not read.
#[derive(Deserialize)]
struct Refusal {
    r#type: String,
}

/// What to make of an answer that is no success.
///
/// A KBS answers nearly everything with 401, so the word decides and the status only tells what to write when there is
/// no such word.
pub(super) fn refusal(step: Step, uri: &KeyUri, status: StatusCode, body: &[u8]) -> Failure {
    if status.is_redirection() {
        return protocol(step, "with a redirect, which is not followed; give its final address in --kbs-url", status);
    }
    let Some(Refusal { r#type }) = object(body) else {
        return protocol(
            step,
            "with an error that is none of the KBS protocol; is --kbs-url the address of a KBS?",
            status,
        );
    };
    match (r#type.rsplit('/').next().unwrap_or_default(), step) {
        ("AttestationError", Step::Auth) => Failure::Refused(Error::new(
            Reason::AttestationDenied,
            "the KBS refused to begin: it must speak KBS protocol 0.4.0 and accept this kind of evidence",
        )),
        ("AttestationError", _) => Failure::Refused(Error::new(
            Reason::AttestationDenied,
            "the KBS did not believe this node's evidence; its log says which check failed",
        )),
        ("PolicyDeny", Step::Resource) => Failure::Refused(policy_denied(uri)),
        ("PluginInternalError", Step::Resource) => Failure::Refused(key_not_found(uri)),
        ("TokenNotFound" | "TokenVerifierError", Step::Resource) => Failure::SessionForgotten,
        _ => protocol(step, "with an error that this driver does not expect there; the KBS's log says more", status),
    }
}

/// `body` as a `T`; what is no object is none, also where serde alone would take a list for the members of one.
pub(super) fn object<'body, T: Deserialize<'body>>(body: &'body [u8]) -> Option<T> {
    body.trim_ascii_start().starts_with(b"{").then(|| serde_json::from_slice(body).ok())?
}

fn policy_denied(uri: &KeyUri) -> Error {
    let message = format!(
        "the KBS believed this node's evidence, but its policy does not release {uri} to it; add this node (coffer \
         attest shows its key and PCRs) to the policy of that path"
    );
    Error::new(Reason::PolicyDenied, message)
}

fn key_not_found(uri: &KeyUri) -> Error {
    let message = format!(
        "the KBS has no key {uri}, or failed to read it; store at least 32 random bytes there, once, and keep them"
    );
    Error::new(Reason::KeyNotFound, message)
}

/// The KBS accepted evidence and did not know its own session, twice.
pub(super) fn session_forgotten_twice() -> Error {
    Error::new(
        Reason::AttestationDenied,
        "the KBS accepted this node's evidence and then did not know the session, twice; if several KBS run behind one \
         address, they must share their sessions",
    )
}

fn protocol(step: Step, what: &str, status: StatusCode) -> Failure {
    let message = format!("the KBS answered {step} {what} (HTTP {})", status.as_u16());
    Failure::Refused(Error::new(Reason::KbsProtocol, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "canary-in-the-detail";

    fn classify(step: Step, status: u16, body: &str) -> Option<Error> {
        let uri = KeyUri::parse("keyUri", "kbs:///a/b/c").expect("a URI");
        match refusal(step, &uri, StatusCode::from_u16(status).expect("a status"), body.as_bytes()) {
            Failure::Refused(error) => Some(error),
            Failure::SessionForgotten => None,
        }
    }

    fn body(kind: &str) -> String {
        format!(r#"{{"type":"https://github.com/confidential-containers/kbs/errors/{kind}","detail":"{CANARY}"}}"#)
    }

    #[test]
    fn every_refusal_has_its_reason_and_repeats_nothing() {
        for (step, kind, reason) in [
            (Step::Auth, "AttestationError", Reason::AttestationDenied),
            (Step::Attest, "AttestationError", Reason::AttestationDenied),
            (Step::Resource, "AttestationError", Reason::AttestationDenied),
            (Step::Resource, "PolicyDeny", Reason::PolicyDenied),
            (Step::Resource, "PluginInternalError", Reason::KeyNotFound),
            (Step::Auth, "PolicyDeny", Reason::KbsProtocol),
            (Step::Attest, "PluginInternalError", Reason::KbsProtocol),
            (Step::Attest, "TokenNotFound", Reason::KbsProtocol),
            (Step::Resource, "InvalidRequestPath", Reason::KbsProtocol),
            (Step::Resource, "PluginNotFound", Reason::KbsProtocol),
            (Step::Resource, "ParsePolicyError", Reason::KbsProtocol),
            (Step::Resource, "PolicyEngineError", Reason::KbsProtocol),
            (Step::Resource, "JweError", Reason::KbsProtocol),
            (Step::Resource, "SerdeError", Reason::KbsProtocol),
            (Step::Resource, "policydeny", Reason::KbsProtocol),
            (Step::Resource, "", Reason::KbsProtocol),
            (Step::Resource, CANARY, Reason::KbsProtocol),
        ] {
            let error = classify(step, 401, &body(kind)).unwrap_or_else(|| panic!("{kind} is final"));
            assert_eq!(error.reason(), reason, "{kind}");
            assert!(!format!("{error} {error:?}").contains(CANARY), "{error:?}");
        }
    }

    #[test]
    fn a_forgotten_session_is_worth_one_more_exchange() {
        assert!(classify(Step::Resource, 401, &body("TokenNotFound")).is_none());
        assert!(classify(Step::Resource, 401, &body("TokenVerifierError")).is_none());
    }

    #[test]
    fn what_is_no_refusal_of_the_protocol_is_a_protocol_error() {
        for text in ["", "<html>", "{}", "[]", "null", r#"{"type":7}"#, CANARY] {
            let error = classify(Step::Resource, 500, text).expect("final");
            assert_eq!(error.reason(), Reason::KbsProtocol, "{text}");
            assert!(error.explanation().contains("500") && !error.explanation().contains(CANARY), "{error}");
        }
        let redirect = classify(Step::Auth, 302, &body("PolicyDeny")).expect("final");
        assert!(redirect.explanation().contains("redirect"), "{redirect}");
    }

    #[test]
    fn what_the_operator_must_do_is_named() {
        let denied = classify(Step::Resource, 401, &body("PolicyDeny")).expect("final");
        assert!(denied.explanation().contains("kbs:///a/b/c") && denied.explanation().contains("policy of that path"));
        let absent = classify(Step::Resource, 401, &body("PluginInternalError")).expect("final");
        assert!(absent.explanation().contains("kbs:///a/b/c") && absent.explanation().contains("32 random bytes"));
    }
}
