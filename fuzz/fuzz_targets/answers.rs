//! A KBS that answers whatever it likes: the client asks it over a real connection, gets no secret, and repeats nothing.
//!
//! Input: the answers to the request for a nonce, the evidence and the request for the key, as they are sent; a line of
//! three dashes lies between two of them. `$canary` stands for text that must not come back in an error.

#![no_main]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use coffer::key::KeySource;
use coffer::key::evidence::Attester;
use coffer::key::kbs::{KbsClient, KbsConfig, Limits};
use coffer::volume::{KeyUri, Reason};
use coffer_fuzz::{CANARY, assert_fit_to_show};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Runtime;

/// Three requests, and once more if the KBS forgot its session.
const MOST_REQUESTS: usize = 6;
/// Why an exchange without a secret may end.
const REASONS: [Reason; 6] = [
    Reason::KbsProtocol,
    Reason::KbsUnreachable,
    Reason::KbsTimeout,
    Reason::AttestationDenied,
    Reason::PolicyDenied,
    Reason::KeyNotFound,
];

static ANSWERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
static REQUESTS: AtomicUsize = AtomicUsize::new(0);

static CLIENT: LazyLock<KbsClient> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || listener.incoming().flatten().for_each(|connection| drop(answer(connection))));
    let limits = Limits { exchange: Duration::from_secs(5), turn: Duration::from_secs(5) };
    KbsClient::new(KbsConfig { url, ca_file: None, allow_insecure_http: true, attester: Attester::Sample, limits })
        .expect("configured")
});
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"));

/// Reads one request whole, answers it, and closes the connection.
fn answer(connection: TcpStream) -> std::io::Result<()> {
    REQUESTS.fetch_add(1, Ordering::SeqCst);
    let mut request = BufReader::new(&connection);
    let mut line = String::new();
    request.read_line(&mut line)?;
    let step = ["/kbs/v0/auth ", "/kbs/v0/attest ", "/kbs/v0/resource/"].iter().position(|path| line.contains(path));
    let mut body_bytes = 0;
    while line.trim() != "" {
        line.clear();
        request.read_line(&mut line)?;
        if let Some(length) = line.to_lowercase().strip_prefix("content-length:") {
            body_bytes = length.trim().parse().unwrap_or(0);
        }
    }
    request.take(body_bytes).read_to_end(&mut Vec::new())?;
    let answers = ANSWERS.lock().expect("nobody panicked").clone();
    let answer = step.and_then(|step| answers.get(step).cloned()).unwrap_or_default();
    (&connection).write_all(&answer)?;
    connection.shutdown(Shutdown::Both)
}

fuzz_target!(|input: &str| {
    let uri = KeyUri::parse("keyUri", "kbs:///a/b/c").expect("a URI");
    let answers = input.split("\n---\n").map(|answer| answer.replace("$canary", CANARY).into_bytes()).collect();
    let client = &*CLIENT;
    *ANSWERS.lock().expect("nobody panicked") = answers;
    REQUESTS.store(0, Ordering::SeqCst);
    let error = RUNTIME.block_on(client.secret(&uri)).expect_err("nobody encrypted a secret");
    assert!(REASONS.contains(&error.reason()), "{error:?}");
    assert_fit_to_show(&error);
    assert!(REQUESTS.load(Ordering::SeqCst) <= MOST_REQUESTS);
    assert_eq!(client.last_error(), Some(error.reason()));
});
