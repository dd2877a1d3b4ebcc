//! The client side of the KBS protocol 0.4.0, for any implementation of it: prove, then fetch one secret.
//!
//! An exchange is three requests under one deadline: `auth` gives a nonce and a cookie, `attest` takes evidence bound
//! to the nonce and to a key pair made for this exchange, `resource` gives the secret encrypted for that key. The
//! cookie is used for this one secret; key pair, cookie and connection end with the exchange. One exchange runs at a
//! time. Refused: every other protocol version, redirects, answers above a size, plain HTTP with evidence that proves
//! something, and every server that the pinned CA did not sign.

mod answer;
mod exchange;
mod transport;
mod turn;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::KeySource;
use super::evidence::Attester;
use crate::volume::KeyUri;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SecretBytes;
use exchange::{Exchange, Failure};
use transport::Transport;
use turn::Turn;

/// How long a caller may wait for the KBS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the start of an exchange to its secret.
    pub exchange: Duration,
    /// For other exchanges to end.
    pub turn: Duration,
}

impl Default for Limits {
    /// Thirty seconds for the exchange, a hundred for the turn.
    fn default() -> Self {
        Self { exchange: Duration::from_secs(30), turn: Duration::from_secs(100) }
    }
}

/// Which KBS, whom to believe that it is the one, and what to prove to it.
pub struct KbsConfig {
    /// `https://host[:port][/path]`; `/kbs/v0/...` is appended.
    pub url: String,
    /// PEM file with the CA that signed the KBS's certificate. No other CA is believed.
    pub ca_file: Option<PathBuf>,
    /// Allows `http://`, for development: only together with an attester that proves nothing.
    pub allow_insecure_http: bool,
    /// Who makes the evidence.
    pub attester: Attester,
    /// Deadlines.
    pub limits: Limits,
}

/// A KBS that gives secrets to this machine.
pub struct KbsClient {
    transport: Transport,
    attester: Attester,
    limits: Limits,
    turn: Turn,
    last_error: Mutex<Option<Reason>>,
}

impl KbsClient {
    /// A client for the KBS of `config`, which is not contacted yet.
    ///
    /// # Errors
    /// `InvalidArgument` that names the flag and what is accepted.
    pub fn new(config: KbsConfig) -> Result<Self> {
        let KbsConfig { url, ca_file, allow_insecure_http, attester, limits } = config;
        let transport = Transport::new(&url, ca_file.as_deref(), allow_insecure_http, &attester)?;
        Ok(Self { transport, attester, limits, turn: Turn::new(limits.turn), last_error: Mutex::new(None) })
    }

    /// Why the last exchange that ended gave no secret; `None` if it gave one, and before the first.
    #[must_use]
    pub fn last_exchange_error(&self) -> Option<Reason> {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(&self, uri: &KeyUri) -> Result<SecretBytes> {
        let _turn = self.turn.take().await?;
        let started = Instant::now();
        let outcome = self.exchange(uri, started + self.limits.exchange).await;
        let error = outcome.as_ref().err().map(crate::volume::Error::reason);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match error {
            None => tracing::info!(%uri, tee = self.attester.tee(), milliseconds, "the KBS released a key"),
            Some(reason) => {
                tracing::warn!(%uri, tee = self.attester.tee(), milliseconds, %reason, "the KBS gave no key")
            }
        }
        outcome
    }

    /// One exchange, or two if the KBS forgot the session of the first: it may just have been restarted.
    async fn exchange(&self, uri: &KeyUri, deadline: Instant) -> Result<SecretBytes> {
        for _ in 0..2 {
            match Exchange::new(&self.transport, deadline, self.limits.exchange)?.run(&self.attester, uri).await {
                Ok(secret) => return Ok(secret),
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::SessionForgotten) => tracing::debug!(%uri, "the KBS does not know its own session"),
            }
        }
        Err(answer::session_forgotten_twice())
    }
}

#[async_trait]
impl KeySource for KbsClient {
    async fn secret(&self, uri: &KeyUri) -> Result<SecretBytes> {
        self.fetch(uri).await
    }

    fn kbs(&self) -> &str {
        self.transport.base().host_str().expect("an address without a host was refused")
    }

    fn attester(&self) -> &str {
        self.attester.tee()
    }

    fn last_error(&self) -> Option<Reason> {
        self.last_exchange_error()
    }
}
