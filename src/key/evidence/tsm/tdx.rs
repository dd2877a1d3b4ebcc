//! TDX quotes: which machine a quote is about, and whether it is bound to this exchange.
//!
//! Offsets are those of the "TD Quote" of versions 4 and 5 in Intel's TDX DCAP Quoting Library API, appendix A. Refused:
//! every other version or TEE, which the KBS does not read either.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Bound, refused};
use crate::volume::Result;

/// Bytes of a quote's header: version, type of key, type of TEE, and what does not matter here.
const HEADER_BYTES: usize = 48;
const TEE_TYPE: Range<usize> = 4..8;
/// `TDX_TEE_TYPE`.
const TDX: [u8; 4] = [0x81, 0, 0, 0];
/// Bytes that version 5 puts between header and body: the body's type (2: TDX 1.0, 3: TDX 1.5) and its size.
const DESCRIPTOR_BYTES: usize = 6;
/// Of a body of TDX 1.0; that of 1.5 begins with the same.
const BODY_BYTES: usize = 584;
const REPORT_DATA: Range<usize> = 520..584;
/// What describes a machine in the body, under the names of the KBS's claims.
const CLAIMS: [(&str, Range<usize>); 12] = [
    ("tcb_svn", 0..16),
    ("mr_seam", 16..64),
    ("td_attributes", 120..128),
    ("xfam", 128..136),
    ("mr_td", 136..184),
    ("mr_config_id", 184..232),
    ("mr_owner", 232..280),
    ("mr_owner_config", 280..328),
    ("rtmr_0", 328..376),
    ("rtmr_1", 376..424),
    ("rtmr_2", 424..472),
    ("rtmr_3", 472..520),
];
/// More than any firmware logs, and less than a KBS takes.
const EVENT_LOG_LIMIT_BYTES: usize = 1 << 20;

/// The evidence of a TDX machine, if `quote` is bound to `bound`. `event_log` is a file that a machine may have.
pub(super) fn evidence(quote: &[u8], bound: &Bound, event_log: &Path) -> Result<Value> {
    body(quote, bound)?;
    let log = match std::fs::read(event_log) {
        Ok(log) if log.len() <= EVENT_LOG_LIMIT_BYTES => Some(STANDARD.encode(log)),
        Ok(log) => return Err(refused(format!("{} has {} bytes, too many", event_log.display(), log.len()))),
        Err(cause) if cause.kind() == ErrorKind::NotFound => None,
        Err(cause) => {
            return Err(refused(format!("{} cannot be read", event_log.display())).caused_by(cause));
        }
    };
    Ok(json!({ "cc_eventlog": log, "quote": STANDARD.encode(quote) }))
}

/// What `quote`, which must be bound to `bound`, says of the machine, in hexadecimal.
pub(super) fn claims(quote: &[u8], bound: &Bound) -> Result<Value> {
    let body = body(quote, bound)?;
    Ok(CLAIMS.into_iter().map(|(name, range)| (name, hex::encode(&body[range]))).collect())
}

/// The TD report in `quote`, if it is bound to `bound`.
fn body<'a>(quote: &'a [u8], bound: &Bound) -> Result<&'a [u8]> {
    if quote.get(TEE_TYPE) != Some(&TDX) {
        return Err(refused("the kernel's report is not a TDX quote"));
    }
    let start = match (number(quote, 0), number(quote, HEADER_BYTES)) {
        (4, _) => HEADER_BYTES,
        (5, 2 | 3) => HEADER_BYTES + DESCRIPTOR_BYTES,
        (5, body) => return Err(refused(format!("the TDX quote has a body of type {body}; 2 and 3 are known"))),
        (version, _) => return Err(refused(format!("the TDX quote has version {version}; 4 and 5 are known"))),
    };
    let Some(body) = quote.get(start..start + BODY_BYTES) else {
        return Err(refused(format!("the TDX quote is cut short, to {} bytes", quote.len())));
    };
    if body[REPORT_DATA] != bound[..] {
        return Err(refused("the TDX quote is bound to something else than this exchange"));
    }
    Ok(body)
}

/// The little-endian number at `at`, zero if there is none.
fn number(quote: &[u8], at: usize) -> u16 {
    quote.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &[u8] = include_bytes!("../../../../e2e/recorded/tdx-quote-v4.bin");
    const NO_LOG: &str = "/nonexistent/CCEL";

    fn recorded_bound() -> Bound {
        RECORDED[HEADER_BYTES..][REPORT_DATA].try_into().expect("64 bytes")
    }

    /// The recorded quote in the form of version 5, with `more` behind the body.
    fn version_5(body: u8, more: usize) -> Vec<u8> {
        let (header, rest) = RECORDED.split_at(HEADER_BYTES);
        let (report, signature) = rest.split_at(BODY_BYTES);
        let size = u32::try_from(BODY_BYTES + more).expect("small").to_le_bytes();
        let mut quote = [header, &[body, 0], &size, report, &vec![0; more], signature].concat();
        quote[0] = 5;
        quote
    }

    fn refusal(quote: &[u8]) -> String {
        body(quote, &recorded_bound()).expect_err("refused").explanation()
    }

    #[test]
    fn the_recorded_quote_describes_its_machine() {
        let claims = claims(RECORDED, &recorded_bound()).expect("a quote");
        let text = |name: &str| claims[name].as_str().expect("text").to_owned();
        assert_eq!(text("tcb_svn"), "06010300000000000000000000000000");
        assert_eq!(
            text("mr_td"),
            "91eb2b44d141d4ece09f0c75c2c53d247a3c68edd7fafe8a3520c942a604a407de03ae6dc5f87f27428b2538873118b7"
        );
        assert!(text("rtmr_2").starts_with("d833feef2cd94514"));
        assert_eq!((text("rtmr_3"), text("mr_config_id")), ("0".repeat(96), "0".repeat(96)));
        assert_eq!((text("td_attributes"), text("xfam")), ("0000001000000000".into(), "e702060000000000".into()));
    }

    #[test]
    fn evidence_is_the_quote_and_the_event_log() {
        let evidence = |log: &Path| evidence(RECORDED, &recorded_bound(), log);
        assert_eq!(
            evidence(Path::new(NO_LOG)).expect("evidence"),
            json!({ "cc_eventlog": null, "quote": STANDARD.encode(RECORDED) })
        );
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("CCEL");
        std::fs::write(&log, b"measured").expect("written");
        assert_eq!(evidence(&log).expect("evidence")["cc_eventlog"], STANDARD.encode("measured"));
        std::fs::write(&log, vec![0; EVENT_LOG_LIMIT_BYTES + 1]).expect("written");
        assert!(evidence(&log).expect_err("too large").explanation().contains("too many"));
        let error = evidence(directory.path()).expect_err("a directory");
        assert!(error.explanation().contains("cannot be read"), "{error}");
    }

    #[test]
    fn version_5_says_the_same() {
        let expected = claims(RECORDED, &recorded_bound()).expect("a quote");
        for (body, more) in [(2, 0), (3, 64)] {
            assert_eq!(claims(&version_5(body, more), &recorded_bound()).expect("a quote"), expected);
        }
        assert!(refusal(&version_5(1, 0)).contains("body of type 1"));
        assert!(refusal(&version_5(4, 301)).contains("body of type 4"));
    }

    #[test]
    fn a_quote_of_another_exchange_is_refused() {
        for at in [0, 47, 48, 63] {
            let mut other = recorded_bound();
            other[at] ^= 1;
            let error = evidence(RECORDED, &other, Path::new(NO_LOG)).expect_err("another exchange");
            assert!(error.explanation().contains("bound to something else"), "{at}: {error}");
        }
    }

    #[test]
    fn what_is_no_quote_of_a_known_form_is_refused() {
        let changed = |at: usize, value: u8| {
            let mut quote = RECORDED.to_vec();
            quote[at] = value;
            refusal(&quote)
        };
        assert!(changed(0, 3).contains("version 3"));
        assert!(changed(0, 6).contains("version 6"));
        assert!(changed(4, 0).contains("not a TDX quote"));
        for length in [0, 7, 47, 48, 631] {
            let said = refusal(&RECORDED[..length]);
            assert!(said.contains("cut short") || said.contains("not a TDX quote"), "{length}: {said}");
        }
        assert!(body(&RECORDED[..HEADER_BYTES + BODY_BYTES], &recorded_bound()).is_ok());
    }
}
