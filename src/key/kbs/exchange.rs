//! The three requests of one exchange, and everything that lives only as long as it.

use std::fmt;
use std::time::Duration;

use reqwest::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use reqwest::{Client, RequestBuilder, Response, Url};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::answer;
use super::transport::{self, Transport};
use crate::key::evidence::Attester;
use crate::key::evidence::report_data;
use crate::key::jwe::ExchangeKey;
use crate::volume::Error;
use crate::volume::KeyUri;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SecretBytes;

/// The version that this client speaks; a KBS accepts no other than its own.
const PROTOCOL_VERSION: &str = "0.4.0";
/// Name of the cookie that ties the requests of one exchange together.
const SESSION_COOKIE: &str = "kbs-session-id";
/// More than any nonce or session id of the protocol needs.
const TEXT_LIMIT_BYTES: usize = 1024;
/// The largest answer that is read: tokens about machines with many devices have some hundred KiB.
pub(super) const ANSWER_LIMIT_BYTES: usize = 1 << 20;

/// Where an exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Auth,
    Attest,
    Resource,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auth => "the request for a nonce",
            Self::Attest => "the evidence",
            Self::Resource => "the request for the key",
        })
    }
}

/// Why an exchange gave no secret.
#[derive(Debug)]
pub(super) enum Failure {
    /// Asking again would not help.
    Refused(Error),
    /// The KBS does not know the session that it has just attested.
    SessionForgotten,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

#[derive(Deserialize)]
struct Challenge {
    nonce: String,
}

#[derive(Deserialize)]
struct Attested {
    #[serde(rename = "token")]
    _token: String,
}

/// One exchange. Dropping it closes its connection and zeroes its key.
pub(super) struct Exchange<'a> {
    base: &'a Url,
    http: Client,
    key: ExchangeKey,
    deadline: Instant,
    allowed: Duration,
}

impl<'a> Exchange<'a> {
    /// An exchange that must end by `deadline`, `allowed` after its start.
    pub(super) fn new(transport: &'a Transport, deadline: Instant, allowed: Duration) -> Result<Self> {
        let http = transport.connection()?;
        Ok(Self { base: transport.base(), http, key: ExchangeKey::generate()?, deadline, allowed })
    }

    /// Proves with `attester`, and returns the secret under `uri`.
    pub(super) async fn run(self, attester: &Attester, uri: &KeyUri) -> Result<SecretBytes, Failure> {
        let (challenge, cookie) = self.auth(attester, uri).await?;
        let cookie = self.attest(attester, uri, &challenge.nonce, cookie).await?;
        let request = self.http.get(self.endpoint(&format!("resource/{}", uri.resource_path()))).header(COOKIE, cookie);
        let (_, body) = self.send(Step::Resource, uri, request).await?;
        Ok(self.key.open(&body)?)
    }

    async fn auth(&self, attester: &Attester, uri: &KeyUri) -> Result<(Challenge, HeaderValue), Failure> {
        let request = self.http.post(self.endpoint("auth")).json(&json!({
            "version": PROTOCOL_VERSION,
            "tee": attester.tee(),
            "extra-params": { "supported-hash-algorithms": ["sha384"] },
        }));
        let (headers, body) = self.send(Step::Auth, uri, request).await?;
        let challenge: Challenge = answer::object(&body).ok_or_else(|| malformed(Step::Auth, "a nonce"))?;
        if challenge.nonce.is_empty() || challenge.nonce.len() > TEXT_LIMIT_BYTES {
            return Err(malformed(Step::Auth, "a nonce of a sensible length").into());
        }
        let cookie = session_cookie(&headers).ok_or_else(|| malformed(Step::Auth, "a session cookie"))?;
        Ok((challenge, cookie))
    }

    /// Returns the cookie for the resource: the one of `auth`, unless the KBS sets it anew.
    async fn attest(
        &self,
        attester: &Attester,
        uri: &KeyUri,
        nonce: &str,
        cookie: HeaderValue,
    ) -> Result<HeaderValue, Failure> {
        let recipient = self.key.recipient();
        let data = report_data(nonce, &recipient, "");
        let evidence = tokio::time::timeout_at(self.deadline, attester.evidence(&data))
            .await
            .map_err(|_| self.attester_too_slow(attester))??;
        let request = self.http.post(self.endpoint("attest")).header(COOKIE, cookie.clone()).json(&json!({
            "init-data": null,
            "runtime-data": { "nonce": nonce, "tee-pubkey": recipient },
            "tee-evidence": { "primary_evidence": evidence, "additional_evidence": "" },
        }));
        let (headers, body) = self.send(Step::Attest, uri, request).await?;
        answer::object::<Attested>(&body).ok_or_else(|| malformed(Step::Attest, "a token"))?;
        Ok(session_cookie(&headers).unwrap_or(cookie))
    }

    fn endpoint(&self, path: &str) -> Url {
        self.base.join(path).expect("a base that ends in a slash takes any path of key URI characters")
    }

    /// Sends `request` and reads its whole answer before the deadline.
    async fn send(&self, step: Step, uri: &KeyUri, request: RequestBuilder) -> Result<(HeaderMap, Vec<u8>), Failure> {
        let answered = tokio::time::timeout_at(self.deadline, async {
            let response = request.send().await.map_err(|cause| transport::failed(self.base, cause))?;
            let (status, headers) = (response.status(), response.headers().clone());
            Ok::<_, Error>((status, headers, self.read(step, response).await?))
        });
        let (status, headers, body) = answered.await.map_err(|_| self.too_slow(step))??;
        if status.is_success() { Ok((headers, body)) } else { Err(answer::refusal(step, uri, status, &body)) }
    }

    async fn read(&self, step: Step, mut response: Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|cause| transport::failed(self.base, cause))? {
            if body.len() + chunk.len() > ANSWER_LIMIT_BYTES {
                let message = format!("the KBS answered {step} with more than {ANSWER_LIMIT_BYTES} bytes");
                return Err(Error::new(Reason::KbsProtocol, message));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn too_slow(&self, step: Step) -> Error {
        let message = format!(
            "the KBS at {} did not answer {step} within {} s of the exchange's start; look at its load and its log",
            self.base.authority(),
            self.allowed.as_secs_f32()
        );
        Error::new(Reason::KbsTimeout, message)
    }

    fn attester_too_slow(&self, attester: &Attester) -> Error {
        let message = format!("attester {} made no evidence within {} s", attester.tee(), self.allowed.as_secs_f32());
        Error::new(Reason::AttesterUnavailable, message)
    }
}

fn malformed(step: Step, missing: &str) -> Error {
    Error::new(
        Reason::KbsProtocol,
        format!("the KBS answered {step} without {missing} of KBS protocol {PROTOCOL_VERSION}"),
    )
}

/// The session cookie that `headers` set, as a request sends it back.
fn session_cookie(headers: &HeaderMap) -> Option<HeaderValue> {
    let pairs = headers.get_all(SET_COOKIE).iter().filter_map(|value| value.to_str().ok()?.split(';').next());
    let (_, value) = pairs.filter_map(|pair| pair.trim().split_once('=')).rfind(|(name, _)| *name == SESSION_COOKIE)?;
    if value.is_empty() || value.len() > TEXT_LIMIT_BYTES {
        return None;
    }
    let mut cookie = HeaderValue::from_str(&format!("{SESSION_COOKIE}={value}")).ok()?;
    cookie.set_sensitive(true);
    Some(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie(values: &[&str]) -> Option<String> {
        let pairs = values.iter().map(|value| (SET_COOKIE, HeaderValue::from_str(value).expect("a header")));
        session_cookie(&pairs.collect()).map(|value| value.to_str().expect("text").to_owned())
    }

    #[test]
    fn only_the_session_cookie_is_sent_back_and_without_its_attributes() {
        let id = "00112233445566778899aabbccddeeff";
        let expected = format!("kbs-session-id={id}");
        assert_eq!(cookie(&[&format!("{expected}; Expires=Wed, 21 Oct 2026 07:28:00 GMT")]), Some(expected.clone()));
        assert_eq!(cookie(&["other=1", &expected]), Some(expected.clone()));
        for text in [
            "other=1",
            "kbs-session-id=",
            "kbs-session-id",
            "kbs-session-ids=1",
            &format!("{expected}{}", "0".repeat(1024)),
        ] {
            assert_eq!(cookie(&[text]), None, "{text}");
        }
        assert_eq!(cookie(&[]), None);
    }
}
