//! Every member of the record.

use coffer::volume::Reason;
use coffer::volume::VolumeId;
use serde_json::Value;
use serde_json::json;

use super::Answer;
use super::Case;
use super::forge::Kind;
use super::forge::mutations;

/// Each mutation of each member, values that are valid but not the volume's, and texts that are no record.
pub(super) fn cases(record: &[u8]) -> Vec<Case> {
    let document: Value = serde_json::from_slice(record).expect("a record is JSON");
    let mutated = mutations(&document).into_iter().map(|(at, kind, text)| {
        let name = format!("{} {}", if at.is_empty() { "the record" } else { &at }, kind.words());
        Case::record(name, text.into_bytes(), Answer::Refused(mutated(&at, kind)))
    });
    mutated.chain(plausible(&document)).chain(texts(&document)).collect()
}

/// The reason for which a generated mutation is refused.
fn mutated(at: &str, kind: Kind) -> Reason {
    let absent = matches!(kind, Kind::Removed | Kind::Null);
    match (at, kind) {
        ("/schema", Kind::AnotherValue) => Reason::RecordTooNew,
        ("/schema", Kind::Emptied) => Reason::RecordTampered,
        // Without a valid check value the secret passes for a wrong one: which of the two lies cannot be told.
        ("/key_check", _) if absent || kind == Kind::AnotherValue => Reason::WrongKey,
        ("/header_digest" | "/mac" | "/node", _) if absent => Reason::RecordTampered,
        ("/node", Kind::AnotherValue) => Reason::WrongNode,
        ("/name" | "/created" | "/sizes/0/since", Kind::AnotherValue | Kind::Emptied)
        | ("/header_digest" | "/mac" | "/luks_uuid", Kind::AnotherValue)
        | ("/sizes/0/payload_bytes", Kind::AnotherValue | Kind::Emptied)
        | ("/sizes", Kind::Emptied)
        | ("/sizes/0", Kind::Removed) => Reason::RecordTampered,
        _ => Reason::RecordDamaged,
    }
}

/// Values that some other volume could have.
fn plausible(document: &Value) -> Vec<Case> {
    let with = |name: &str, at: &str, value: Value, reason| {
        let mut changed = document.clone();
        changed[at] = value;
        Case::record(format!("/{at}: {name}"), changed.to_string().into_bytes(), Answer::Refused(reason))
    };
    let digest = json!("00".repeat(32));
    vec![
        with("another volume", "id", json!(VolumeId::for_name("another").as_str()), Reason::RecordDamaged),
        with("a path", "id", json!("../../etc"), Reason::RecordDamaged),
        with("another", "name", json!("another"), Reason::RecordTampered),
        with("half", "payload_bytes", json!(8 << 20), Reason::RecordTampered),
        with("more than the backing has", "payload_bytes", json!(1u64 << 40), Reason::RecordTampered),
        with("all that 64 bits can say", "payload_bytes", json!(u64::MAX), Reason::RecordDamaged),
        with("no multiple of a sector", "payload_bytes", json!((16 << 20) + 512), Reason::RecordDamaged),
        with("xfs", "content", json!("xfs"), Reason::CapabilityExceeded),
        with("raw block", "content", json!("block"), Reason::CapabilityExceeded),
        with("btrfs", "content", json!("btrfs"), Reason::RecordDamaged),
        with("another", "profile", json!("aead-1"), Reason::RecordTampered),
        with("full", "init", json!("full"), Reason::RecordTampered),
        with("tags are being made", "initialised_bytes", json!(4096), Reason::RecordTampered),
        with("a profile that does not exist", "profile", json!("null-1"), Reason::RecordDamaged),
        with(
            "a secret that this node may not have",
            "key_uri",
            json!("kbs:///default/volumes/x"),
            Reason::PolicyDenied,
        ),
        with("a file", "key_uri", json!("file:///etc/passwd"), Reason::RecordDamaged),
        with("another", "luks_uuid", json!("11111111-2222-4333-8444-555555555555"), Reason::RecordTampered),
        with("the future", "created", json!("2999-01-01T00:00:00Z"), Reason::RecordTampered),
        with("another node", "node", json!("node2"), Reason::WrongNode),
        with("no name of a node", "node", json!("\u{1b}[2J"), Reason::RecordDamaged),
        with("a state that does not exist", "state", json!("Fresh"), Reason::RecordDamaged),
        with("of another header", "header_digest", digest.clone(), Reason::RecordTampered),
        with("of another secret", "key_check", digest.clone(), Reason::WrongKey),
        with("zeros", "mac", digest, Reason::RecordTampered),
        with("a claim where there was none", "claim", json!({"namespace": "a", "name": "b"}), Reason::RecordTampered),
        with("older", "schema", json!(1), Reason::RecordTampered),
        with("2^32", "schema", json!(1u64 << 32), Reason::RecordDamaged),
        with("negative", "schema", json!(-1), Reason::RecordDamaged),
    ]
}

/// The same record spelled differently, and texts that are no record.
fn texts(document: &Value) -> Vec<Case> {
    let text = document.to_string();
    let spelled = |name: &str, text: Vec<u8>, answer| Case::record(format!("text: {name}"), text, answer);
    let damaged = Answer::Refused(Reason::RecordDamaged);
    vec![
        // The MAC is over what a record means, not over its letters.
        spelled("on one line, members in another order", text.clone().into_bytes(), Answer::Opens),
        spelled("empty", Vec::new(), damaged),
        spelled("cut in half", text.as_bytes()[..text.len() / 2].to_vec(), damaged),
        spelled("two records", format!("{text}{text}").into_bytes(), damaged),
        spelled("zeros in its place", vec![0; text.len()], damaged),
        spelled("not UTF-8", [text.as_bytes(), b"\xff"].concat(), damaged),
        spelled("arrays in arrays, 100000 deep", "[".repeat(100_000).into_bytes(), damaged),
        spelled("16 MiB of spaces before it", [vec![b' '; 16 << 20], text.into_bytes()].concat(), damaged),
    ]
}
