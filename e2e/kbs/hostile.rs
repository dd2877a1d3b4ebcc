//! What a hostile KBS may send, over a real socket and at every step, row by row. Each row is refused for its reason, in
//! bounded time and memory, after one exchange, and nothing of it is repeated.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coffer::key::evidence::Attester;
use coffer::key::kbs::{KbsClient, KbsConfig, Limits};
use coffer::volume::Reason;
use serde_json::json;

use crate::rig::refused;

/// In every row that has room for it.
const CANARY: &str = "canary-of-the-answer";
const STEPS: [&str; 3] = ["auth", "attest", "resource"];
/// For rows that are refused at once, on a busy machine.
const PROMPT: Duration = Duration::from_secs(20);
/// For rows that end only when the client gives up.
const SLOW: Duration = Duration::from_secs(2);
/// How long after its deadline a client may still take.
const GRACE: Duration = Duration::from_secs(5);

type Send = Arc<dyn Fn(&mut TcpStream) -> io::Result<()> + std::marker::Send + Sync>;

/// What is wrong, at which steps, what is sent, and why it is refused.
struct Row {
    what: &'static str,
    steps: &'static [&'static str],
    send: Send,
    reason: Reason,
    exchange: Duration,
}

impl Row {
    fn new(what: &'static str, reason: Reason, send: Send) -> Self {
        let exchange = if reason == Reason::KbsTimeout { SLOW } else { PROMPT };
        Self { what, steps: &STEPS, send, reason, exchange }
    }

    /// Is only sent at `steps`.
    fn at(self, steps: &'static [&'static str]) -> Self {
        Self { steps, ..self }
    }
}

/// `bytes`, then the end of the connection.
fn once(what: &'static str, reason: Reason, bytes: impl Into<Vec<u8>>) -> Row {
    let bytes = bytes.into();
    Row::new(what, reason, Arc::new(move |stream| stream.write_all(&bytes)))
}

/// `head`, then `part` until nobody listens.
fn forever(what: &'static str, reason: Reason, head: &'static str, part: String) -> Row {
    let send = move |stream: &mut TcpStream| {
        stream.write_all(head.as_bytes())?;
        loop {
            stream.write_all(part.as_bytes())?;
        }
    };
    Row::new(what, reason, Arc::new(send))
}

/// `head`, then `part` again and again, but slowly.
fn drip(what: &'static str, head: &'static str, part: &'static str) -> Row {
    let send = move |stream: &mut TcpStream| {
        stream.write_all(head.as_bytes())?;
        loop {
            stream.write_all(part.as_bytes())?;
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    Row::new(what, Reason::KbsTimeout, Arc::new(send))
}

/// An answer with this status line, these further header lines, and this body.
fn answer(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let length = body.as_ref().len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n");
    [head.as_bytes(), body.as_ref()].concat()
}

fn cookie(value: &str) -> String {
    format!("set-cookie: kbs-session-id={value}\r\n")
}

fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    answer("200 OK", &cookie("0"), body)
}

fn bodies() -> Vec<Row> {
    use Reason::{KbsProtocol, KbsUnreachable};
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let refusal = |kind: &str| json!({ "type": format!("https://kbs/errors/{kind}"), "detail": CANARY }).to_string();
    let gzip_of_a_mebibyte_of_spaces = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &[0; 1000]].concat();
    vec![
        once("larger than any answer", KbsProtocol, ok(vec![b' '; 2 << 20])),
        once("an error larger than any answer", KbsProtocol, answer("401 No", "", vec![b' '; 2 << 20])),
        once("an error whose type is long", KbsProtocol, answer("401 No", "", refusal(&"a/".repeat(100_000)))),
        once("an error with two types", KbsProtocol, answer("401 No", "", r#"{"type":"a/PolicyDeny","type":"a/b"}"#)),
        once("an error that is an array", KbsProtocol, answer("401 No", "", r#"["a/PolicyDeny"]"#)),
        once("an error that succeeds", KbsProtocol, ok(refusal("PolicyDeny"))),
        once("an error that creates", KbsProtocol, answer("201 Created", "", refusal("TokenNotFound"))),
        once("nothing, successfully", KbsProtocol, "HTTP/1.1 204 No Content\r\n\r\n"),
        once("less than it says", KbsUnreachable, "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\ncanary-of-the-answer"),
        once("a length of all bits", KbsProtocol, "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\n{"),
        once("a negative length", KbsProtocol, "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{}"),
        once("two lengths", KbsProtocol, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}"),
        once("a chunk of more than all bits", KbsProtocol, format!("{chunked}fffffffffffffffff\r\n{CANARY}")),
        once("a chunk without a size", KbsProtocol, format!("{chunked}{CANARY}\r\n")),
        once("compressed", KbsProtocol, answer("200 OK", "content-encoding: gzip\r\n", gzip_of_a_mebibyte_of_spaces)),
        once("arrays in arrays", KbsProtocol, ok("[".repeat(500_000))),
        once("objects in objects", KbsProtocol, ok(r#"{"a":"#.repeat(200_000))),
        once("depth where nobody looks", KbsProtocol, ok(format!(r#"{{"a":{}"#, "[".repeat(500_000)))),
        once("no UTF-8", KbsProtocol, ok(b"{\"nonce\":\"\xff\xfe\",\"token\":\"\xff\xfe\"}")),
        once("UTF-16", KbsProtocol, ok(b"\xff\xfe{\0}\0")),
        once("two answers in one", KbsProtocol, ok("{}{}")),
        forever("a body without end", KbsProtocol, "HTTP/1.1 200 OK\r\n\r\n", CANARY.repeat(100)),
        forever("a body without end of HTTP/1.0", KbsProtocol, "HTTP/1.0 200 OK\r\n\r\n", CANARY.repeat(100)),
        forever("an error without end", KbsProtocol, "HTTP/1.1 401 No\r\n\r\n", CANARY.repeat(100)),
        forever("chunks without end", KbsProtocol, chunked, format!("1000\r\n{}\r\n", " ".repeat(4096))),
        forever(
            "an extension of a chunk without end",
            KbsProtocol,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;",
            CANARY.repeat(100),
        ),
        forever(
            "trailers without end",
            KbsProtocol,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
            format!("a: {CANARY}\r\n"),
        ),
    ]
}

fn heads() -> Vec<Row> {
    use Reason::KbsProtocol;
    vec![
        once("a status of four digits", KbsProtocol, "HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\n{}"),
        once("another protocol", KbsProtocol, "ICY 200 OK\r\n\r\n{}"),
        once("a later HTTP", KbsProtocol, "HTTP/9.9 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
        once("another protocol from now on", KbsProtocol, "HTTP/1.1 101 Switching Protocols\r\nupgrade: kbs\r\n\r\n"),
        once("a header with a NUL", KbsProtocol, "HTTP/1.1 200 OK\r\na: canary-of-the-answer\0\r\n\r\n{}"),
        once("a header without a name", KbsProtocol, "HTTP/1.1 200 OK\r\n: canary-of-the-answer\r\n\r\n{}"),
        once("a folded header", KbsProtocol, "HTTP/1.1 200 OK\r\na: b\r\n canary-of-the-answer\r\n\r\n{}"),
        forever("a header without end", KbsProtocol, "HTTP/1.1 200 OK\r\na: ", CANARY.repeat(100)),
        forever("headers without end", KbsProtocol, "HTTP/1.1 200 OK\r\n", format!("a: {CANARY}\r\n")),
        forever("a status line without end", KbsProtocol, "HTTP/1.1 200 ", CANARY.repeat(100)),
        drip("answers to come", "", "HTTP/1.1 100 Continue\r\n\r\n"),
        drip("a head that drips", "HTTP/1.1 200 OK\r\na: ", "b"),
        drip("a body that drips", "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", " "),
        drip("chunks that drip", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "1\r\n \r\n"),
        drip("an error that drips", "HTTP/1.1 401 No\r\ncontent-length: 1000000\r\n\r\n", " "),
    ]
}

/// What is wrong at one step only.
fn members() -> Vec<Row> {
    let challenge = |nonce: &str| format!(r#"{{"nonce":{nonce},"extra-params":""}}"#);
    let auth = |what, headers: &str, body: String| {
        once(what, Reason::KbsProtocol, answer("200 OK", headers, body)).at(&["auth"])
    };
    let attest = |what, body: &str| once(what, Reason::KbsProtocol, ok(body)).at(&["attest"]);
    let (good, good_cookie) = (challenge(r#""AAAA""#), cookie("0"));
    vec![
        auth("a nonce that is a number", &good_cookie, challenge("7")),
        auth("a nonce that is nothing", &good_cookie, challenge("null")),
        auth("an empty nonce", &good_cookie, challenge(r#""""#)),
        auth("a long nonce", &good_cookie, challenge(&format!("\"{}\"", CANARY.repeat(100)))),
        auth("two nonces", &good_cookie, r#"{"nonce":"AAAA","nonce":"BBBB","extra-params":""}"#.into()),
        auth("a challenge that is an array", &good_cookie, r#"["AAAA"]"#.into()),
        auth("no cookie", "", good.clone()),
        auth("another cookie", "set-cookie: session=canary-of-the-answer\r\n", good.clone()),
        auth("an empty cookie", &cookie(""), good.clone()),
        auth("a long cookie", &cookie(&CANARY.repeat(100)), good.clone()),
        auth("a cookie of other letters", &cookie("caf\u{e9}"), good),
        attest("a token that is a number", r#"{"token":7}"#),
        attest("a token that is nothing", r#"{"token":null}"#),
        attest("two tokens", r#"{"token":"a","token":"b"}"#),
        attest("a token that is an array", r#"["canary-of-the-answer"]"#),
    ]
}

/// A KBS that answers as one should, until `step`.
struct Hostile {
    port: u16,
    /// The step of each request.
    asked: Arc<Mutex<Vec<&'static str>>>,
}

impl Hostile {
    fn start(step: &'static str, send: Send) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let hostile = Self { port, asked: Arc::default() };
        let all = Arc::clone(&hostile.asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let asked = request(&stream).expect("a request");
                all.lock().expect("not poisoned").push(asked);
                if asked == step {
                    // The client may have gone away in the middle of it; that is what is wanted.
                    let _ = send(&mut stream);
                } else {
                    let body =
                        if asked == "auth" { r#"{"nonce":"AAAA","extra-params":""}"# } else { r#"{"token":"a"}"# };
                    stream.write_all(&ok(body)).expect("the client listens");
                }
            }
        });
        hostile
    }

    fn client(&self, exchange: Duration) -> KbsClient {
        let config = KbsConfig {
            url: format!("http://127.0.0.1:{}", self.port),
            ca_file: None,
            allow_insecure_http: true,
            attester: Attester::Sample,
            limits: Limits { exchange, turn: PROMPT },
        };
        KbsClient::new(config).expect("a valid configuration")
    }
}

/// Reads one request, and says of which step it is.
fn request(stream: &TcpStream) -> io::Result<&'static str> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line)?;
    let step = STEPS.into_iter().find(|step| line.contains(&format!("/kbs/v0/{step}"))).expect("a step");
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line)?;
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.trim().parse().expect("a length");
        }
    }
    io::copy(&mut reader.take(length), &mut io::sink())?;
    Ok(step)
}

async fn is_refused(row: &Row, step: &'static str) {
    let what = format!("{}, answering {step}", row.what);
    let hostile = Hostile::start(step, Arc::clone(&row.send));
    let client = hostile.client(row.exchange);
    let started = Instant::now();
    let error = refused(&client, row.reason).await;
    assert!(started.elapsed() < row.exchange + GRACE, "{what}: {:?}", started.elapsed());
    let told = format!("{} {error:?}", error.chain());
    assert!(!told.contains(CANARY), "{what}: {told}");
    let asked = hostile.asked.lock().expect("not poisoned");
    let at = STEPS.iter().position(|known| *known == step).expect("a step");
    assert_eq!(*asked, STEPS[..=at], "{what}: the exchange goes on, or again");
}

async fn each_is_refused(rows: Vec<Row>) {
    for row in rows {
        println!("{}", row.what);
        futures_util::future::join_all(row.steps.iter().map(|step| is_refused(&row, step))).await;
    }
}

#[tokio::test]
async fn each_hostile_body_is_refused_at_every_step() {
    each_is_refused(bodies()).await;
}

#[tokio::test]
async fn each_hostile_head_is_refused_at_every_step() {
    each_is_refused(heads()).await;
}

#[tokio::test]
async fn each_hostile_member_is_refused_at_its_step() {
    each_is_refused(members()).await;
}
