//! Every member of the header's JSON, and what the text around them may be.

use coffer::volume::Reason;
use serde_json::Value;
use serde_json::json;

use super::Answer;
use super::Case;
use super::forge::BOTH;
use super::forge::Header;
use super::forge::mutations;
use super::forge::put_text;

const TAMPERED: Answer = Answer::Refused(Reason::HeaderTampered);

/// Each mutation of each place in the document.
pub(super) fn members(header: &Header) -> Vec<Case> {
    let mutated = mutations(&header.document()).into_iter();
    mutated
        .map(|(at, kind, text)| {
            let name = format!("{} {}", if at.is_empty() { "the document" } else { &at }, kind.words());
            Case::header(name, header.with_text(text.as_bytes()), TAMPERED)
        })
        .collect()
}

/// The same document spelled differently, and texts that are no document.
pub(super) fn texts(header: &Header) -> Vec<Case> {
    let document = header.document();
    let text = document.to_string();
    let mut names: Vec<_> = document.as_object().expect("an object").iter().collect();
    names.reverse();
    let reversed: Vec<_> = names.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    let spelled = |name: &str, text: &str, answer| {
        Case::header(format!("text: {name}"), header.with_text(text.as_bytes()), answer)
    };
    let mut cases = vec![
        spelled("members in another order", &format!("{{{}}}", reversed.join(",")), Answer::Opens),
        spelled("spaces between members", &text.replace(',', ", "), Answer::Opens),
        spelled("letters escaped", &text.replace("\"type\"", "\"\\u0074ype\""), Answer::Opens),
        spelled("begins with a space", &format!(" {text}"), TAMPERED),
        spelled("ends with a line feed", &format!("{text}\n"), TAMPERED),
        spelled("two documents", &format!("{text}{{}}"), TAMPERED),
        spelled("cut in half", &text[..text.len() / 2], TAMPERED),
        spelled("empty", "", TAMPERED),
        spelled("a comment", &format!("/**/{text}"), TAMPERED),
        spelled("a comma too many", &text.replacen("},", "},,", 1), TAMPERED),
        spelled("a letter beyond ASCII", &text.replacen("luks2", "luks2\u{e9}", 1), TAMPERED),
        spelled("a byte order mark", &format!("\u{feff}{text}"), TAMPERED),
        spelled("arrays in arrays, 6000 deep", &"[".repeat(6000), TAMPERED),
        spelled("objects in objects, 2000 deep", &"{\"a\":".repeat(2000), TAMPERED),
        spelled("a number of 10000 digits", &text.replacen("1000", &"1".repeat(10_000), 1), TAMPERED),
        spelled("fills its area to the last byte", &format!("{text:12288}"), TAMPERED),
    ];
    let behind = |copy: &mut [u8]| *copy.last_mut().expect("a copy has bytes") = 1;
    cases.push(Case::header("text: a byte at the end of its area".into(), header.forge(BOTH, behind), TAMPERED));
    let hidden = |copy: &mut [u8]| {
        put_text(copy, text.as_bytes());
        copy[4096 + text.len() + 1..][..2].copy_from_slice(b"{}");
    };
    cases.push(Case::header("text: a second document behind a zero".into(), header.forge(BOTH, hidden), TAMPERED));
    cases
}

/// A change of the document, with the name of the case.
pub(super) fn edited(header: &Header, name: &str, change: impl FnOnce(&mut Value)) -> Case {
    Case::header(name.to_owned(), header.with(change), TAMPERED)
}

/// A keyslot like `document`'s first, with its area moved by `areas` areas.
pub(super) fn further_keyslot(document: &Value, areas: u64) -> Value {
    let mut keyslot = document["keyslots"]["0"].clone();
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<u64>().ok()).expect("a number as text");
    let area = &keyslot["area"];
    let offset = number(&area["offset"]) + areas * number(&area["size"]);
    keyslot["area"]["offset"] = json!(offset.to_string());
    keyslot
}
