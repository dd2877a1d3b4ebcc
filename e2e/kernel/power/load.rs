//! Somebody who writes numbered records into a volume, has each one synced, and says so outside of the volume.

use std::fs;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use devicemapper::DM;
use devicemapper::DevId;
use devicemapper::DmName;

use crate::driver::Kind;
use crate::driver::staging_path;
use crate::volume::Volume;

/// How many records there are in each volume.
const RECORDS: usize = 40;
const RECORD_BYTES: usize = 4096;

/// Puts `text` into the log of the device `device`.
pub(super) fn mark(device: &str, text: &str) {
    let name = DmName::new(device).expect("a name");
    let message = format!("mark {text}");
    DM::new().and_then(|dm| dm.target_msg(&DevId::Name(name), None, &message)).expect("marked");
}

/// Writes all records of `volume`, one after the other, and marks each in the log of `device` when it is durable. What
/// lies between them nobody was promised.
pub(super) fn write(volume: &Volume, device: &str) {
    let directory = File::open(staging_path(&volume.id)).expect("a directory");
    for number in 0..RECORDS {
        let record = record(volume, number);
        let written = match volume.kind {
            Kind::Block => File::options().write(true).open(volume.mapper()).and_then(|file| {
                file.write_all_at(&record, (number * RECORD_BYTES) as u64).and_then(|()| file.sync_data())
            }),
            Kind::Ext4 | Kind::Xfs => File::create(volume.file(&name(number)))
                .and_then(|mut file| file.write_all(&record).and_then(|()| file.sync_all()))
                .and_then(|()| directory.sync_all()),
        };
        written.expect("written and synced");
        mark(device, &volume.id);
        if volume.kind != Kind::Block {
            let scratch = vec![u8::try_from(number).expect("few"); 32 * RECORD_BYTES];
            let moved = fs::write(volume.file("scratch"), scratch)
                .and_then(|()| fs::rename(volume.file("scratch"), volume.file("moved")));
            moved.expect("written");
        }
    }
}

/// Expects the first `count` records in `volume`.
pub(super) fn expect(volume: &Volume, count: usize, when: &str) {
    for number in 0..count {
        let mut found = vec![0; RECORD_BYTES];
        let read = match volume.kind {
            Kind::Block => File::open(volume.mapper())
                .and_then(|file| file.read_exact_at(&mut found, (number * RECORD_BYTES) as u64)),
            Kind::Ext4 | Kind::Xfs => fs::read(volume.file(&name(number))).map(|data| found = data),
        };
        read.unwrap_or_else(|error| panic!("{when}: record {number} of {count} in {:?}: {error}", volume.kind));
        assert!(
            found == record(volume, number),
            "{when}: record {number} of {count} in {:?} is not whole",
            volume.kind
        );
    }
}

fn name(number: usize) -> String {
    format!("record-{number}")
}

fn record(volume: &Volume, number: usize) -> Vec<u8> {
    format!("{} {number}\n", volume.id).into_bytes().into_iter().cycle().take(RECORD_BYTES).collect()
}
