//! What must never be written anywhere: secrets, session cookies, and what a KBS says.

use std::io;
use std::sync::{Arc, Mutex};

use axum::http::{StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use coffer::volume::Reason;
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use crate::proxy::Message;
use crate::rig::{NODE, SECRET, key_uri, tampered};
use crate::swtpm::Swtpm;

/// Everything that was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn neither_secrets_nor_cookies_nor_answers_are_logged_at_any_level() {
    const CANARY: &str = "canary-of-the-answer";
    let log = Log::default();
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false).with_writer(log.clone()).init();

    let cookies = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&cookies);
    let tamper = move |message: &mut Message, armed: bool| {
        if let Some(cookie) = message.headers.get(header::COOKIE) {
            let cookie = cookie.to_str().expect("text").rsplit('=').next().expect("a value").to_owned();
            seen.lock().expect("not poisoned").push(cookie);
        }
        if armed && message.is_answer("resource") {
            message.status = StatusCode::UNAUTHORIZED;
            message.body = json!({ "type": "https://kbs/errors/PolicyDeny", "detail": CANARY }).to_string().into();
        }
    };
    let tpm = Swtpm::start();
    let outcome = tampered(tpm.attester(), Reason::PolicyDenied, tamper).await;
    let error = format!("{} {:?}", outcome.error, outcome.error);

    let log = String::from_utf8_lossy(&log.0.lock().expect("not poisoned")).into_owned();
    assert!(log.contains("the KBS released a key") && log.contains(key_uri().resource_path()), "something is logged");
    assert!(log.contains(NODE), "the KBS logs too");
    let secret = std::str::from_utf8(&SECRET).expect("text");
    let mut forbidden =
        vec![secret.to_owned(), hex::encode(SECRET), STANDARD.encode(SECRET), URL_SAFE_NO_PAD.encode(SECRET)];
    forbidden.push(CANARY.to_owned());
    let cookies = cookies.lock().expect("not poisoned").clone();
    assert_eq!(cookies.len(), 4, "two exchanges with a cookie in two requests each");
    forbidden.extend(cookies);
    for text in forbidden {
        assert!(!log.contains(&text), "logged: {text}");
        assert!(!error.contains(&text), "in the error: {text}");
    }
}
