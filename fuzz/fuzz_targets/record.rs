//! The record of a volume, as somebody who can write to the pool may have left it.
//!
//! Input: the bytes of `volume.json`.

#![no_main]

use std::sync::LazyLock;

use coffer::record::{Record, State};
use coffer::volume::{PoolName, Reason, SecretBytes, VolumeId};
use coffer_fuzz::assert_fit_to_show;
use libfuzzer_sys::fuzz_target;

/// A Ready record of the volume `pvc-1`, authentic under [`key`] and [`KEY_CHECK`].
const AUTHENTIC: &[u8] = include_bytes!("../corpus/record/authentic");
const KEY_CHECK: [u8; 32] = [2; 32];

static ID: LazyLock<VolumeId> = LazyLock::new(|| VolumeId::for_name("pvc-1"));

fn key() -> SecretBytes {
    SecretBytes::new(vec![3; 32].into())
}

/// The record that AUTHENTIC is; nothing else is authentic.
static OURS: LazyLock<Record> = LazyLock::new(|| {
    let record = Record::parse(AUTHENTIC, &ID).expect("reads");
    record.authenticate(&KEY_CHECK, &key()).expect("authentic");
    record
});

fuzz_target!(|text: &[u8]| {
    match Record::parse(text, &ID) {
        Ok(record) => {
            assert_eq!(record.id, *ID);
            let written = serde_json::to_vec(&record).expect("serialises");
            assert_eq!(Record::parse(&written, &ID).expect("what was read can be written and read"), record);
            assert_eq!(record.spec(PoolName::default()).key_uri, record.key_uri);
            match record.authenticate(&KEY_CHECK, &key()) {
                Ok(()) => assert_eq!(record, *OURS),
                Err(error) => {
                    assert!(matches!(error.reason(), Reason::WrongKey | Reason::RecordTampered), "{error}");
                    assert_fit_to_show(&error);
                }
            }
            let resigned = record.clone().ready([4; 32], KEY_CHECK, &key());
            resigned.authenticate(&KEY_CHECK, &key()).expect("what was just signed is authentic");
            assert_eq!(resigned.state, State::Ready);
        }
        Err(error) => {
            assert!(matches!(error.reason(), Reason::RecordDamaged | Reason::RecordTooNew), "{error}");
            assert_fit_to_show(&error);
        }
    }
});
