//! What a disk was told, in the order in which it had to keep it: the log of the kernel's target `log-writes`.
//!
//! A write stands before the flush that made it durable, and a mark behind everything that was durable when it was put.
//! Layout: `drivers/md/dm-log-writes.c`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1 << 0;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
/// Four numbers, then the text of a mark.
const ENTRY_BYTES: usize = 32;
/// The last entry of a log that is whole.
const END: &str = "dm-log-writes-end";

/// One line of the log.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    flags: u64,
    offset_bytes: u64,
    length_bytes: usize,
    data_at: u64,
    /// What somebody wanted to find here.
    pub(super) mark: Option<String>,
}

impl Entry {
    /// Whether everything that was written before is durable from here on.
    pub(super) fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }

    /// Whether this write itself was durable as soon as it was done.
    pub(super) fn is_durable(&self) -> bool {
        self.flags & FUA != 0
    }
}

/// See the module.
pub(super) struct Log {
    file: File,
    pub(super) entries: Vec<Entry>,
}

impl Log {
    /// Reads the log on the device `path`, which must be complete.
    pub(super) fn read(path: &Path) -> Self {
        let file = File::open(path).expect("the log");
        let numbers = |at: u64| {
            let mut bytes = [0; ENTRY_BYTES];
            file.read_exact_at(&mut bytes, at).expect("the log can be read");
            let mut words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
            std::array::from_fn(|_| words.next().expect("four numbers"))
        };
        let [magic, version, count, sector_bytes] = numbers(0);
        // The last of the four is half a number and half nothing.
        let sector_bytes = sector_bytes & u64::from(u32::MAX);
        assert_eq!((magic, version), (MAGIC, 1), "not a log");
        let mut at = sector_bytes;
        let mut entries = Vec::new();
        for _ in 0..count {
            let [sector, sectors, flags, data_bytes] = numbers(at);
            assert_eq!(flags & DISCARD, 0, "nothing here discards");
            let mark = (flags & MARK != 0).then(|| {
                let mut text = vec![0; usize::try_from(data_bytes).expect("short")];
                file.read_exact_at(&mut text, at + ENTRY_BYTES as u64).expect("a mark");
                String::from_utf8(text).expect("marks are text")
            });
            let length_bytes = usize::try_from(sectors * sector_bytes).expect("fits in memory");
            entries.push(Entry {
                flags,
                offset_bytes: sector * sector_bytes,
                length_bytes,
                data_at: at + sector_bytes,
                mark,
            });
            at += sector_bytes * (1 + sectors);
        }
        let last = entries.last().and_then(|entry| entry.mark.as_deref());
        assert_eq!(last, Some(END), "the log is not complete; is its device large enough?");
        Self { file, entries }
    }

    /// Writes to `disk` what the `entry` says.
    pub(super) fn apply(&self, entry: &Entry, disk: &File) {
        let mut data = vec![0; entry.length_bytes];
        let done = self.file.read_exact_at(&mut data, entry.data_at);
        done.and_then(|()| disk.write_all_at(&data, entry.offset_bytes)).expect("the log can be replayed");
    }
}
