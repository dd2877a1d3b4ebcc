//! A KBS for tests: it answers what it is told to, as soon as nobody holds it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;

use async_trait::async_trait;
use tokio::sync::MutexGuard;
use tokio::sync::Notify;
use zeroize::Zeroizing;

use super::KeySource;
use super::MINIMUM_SECRET_BYTES;
use crate::volume::Error;
use crate::volume::KeyUri;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SecretBytes;

/// The KBS. At first it releases one secret to everybody.
pub struct FakeKbs {
    answer: Mutex<Result<u8, Reason>>,
    answers: Mutex<HashMap<KeyUri, Result<u8, Reason>>>,
    held: tokio::sync::Mutex<()>,
    asked: Notify,
}

impl Default for FakeKbs {
    fn default() -> Self {
        Self {
            answer: Mutex::new(Ok(7)),
            answers: Mutex::default(),
            held: tokio::sync::Mutex::default(),
            asked: Notify::new(),
        }
    }
}

impl FakeKbs {
    /// From now on every key is a secret made of this byte, or refused for this reason.
    pub fn answers(&self, answer: Result<u8, Reason>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    /// From now on the answer for `uri`, whatever the others get.
    pub fn answers_for(&self, uri: &KeyUri, answer: Result<u8, Reason>) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(uri.clone(), answer);
    }

    /// Answers nobody until what this returns is dropped.
    pub async fn hold(&self) -> MutexGuard<'_, ()> {
        self.held.lock().await
    }

    /// Waits for a request.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }
}

#[async_trait]
impl KeySource for FakeKbs {
    async fn secret(&self, uri: &KeyUri) -> Result<SecretBytes> {
        self.asked.notify_one();
        let _turn = self.held.lock().await;
        let own = self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(uri).copied();
        let answer = own.unwrap_or_else(|| *self.answer.lock().unwrap_or_else(PoisonError::into_inner));
        answer
            .map(|byte| SecretBytes::new(Zeroizing::new(vec![byte; MINIMUM_SECRET_BYTES])))
            .map_err(|reason| Error::new(reason, format!("the test's KBS says so of {uri}")))
    }

    fn kbs(&self) -> &str {
        "kbs.example"
    }

    fn attester(&self) -> &str {
        "sample"
    }
}
