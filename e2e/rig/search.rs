//! Looks for a sequence of bytes in every byte of a file or device, however large, and counts how often it is there.
//!
//! With [`Reading::Direct`] it asks the device itself and not the page cache.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use memchr::memmem::Finder;

/// One read; a multiple of every sector size.
const CHUNK_BYTES: usize = 4 << 20;
/// Direct I/O wants buffers that begin at a multiple of the device's sector size.
const ALIGNMENT_BYTES: usize = 4096;

/// Where the bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The page cache.
    Cached,
    /// The device, past the page cache (`O_DIRECT`).
    Direct,
}

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// How often the needle is there; occurrences may overlap.
    pub(crate) hits: u64,
    /// How much was read.
    pub(crate) bytes: u64,
}

/// Searches all of `path` for `needle`.
pub(crate) fn file(path: &Path, needle: &[u8], reading: Reading) -> Result<Found> {
    let mut options = File::options();
    options.read(true);
    if reading == Reading::Direct {
        options.custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed());
    }
    let file = options.open(path).with_context(|| format!("cannot open {}", path.display()))?;
    stream(file, needle, CHUNK_BYTES).with_context(|| format!("cannot read {}", path.display()))
}

/// Searches everything that `from` gives, in reads of at most `chunk_bytes`.
fn stream(mut from: impl Read, needle: &[u8], chunk_bytes: usize) -> Result<Found> {
    anyhow::ensure!(!needle.is_empty(), "nothing to search for");
    let overlap = needle.len() - 1;
    let mut buffer = vec![0; overlap + ALIGNMENT_BYTES + chunk_bytes];
    // What is read begins at an aligned address; the end of the read before is kept right in front of it.
    let begin = overlap + buffer[overlap..].as_ptr().align_offset(ALIGNMENT_BYTES);
    let finder = Finder::new(needle);
    let mut found = Found { hits: 0, bytes: 0 };
    let mut kept = 0;
    loop {
        let length = from.read(&mut buffer[begin..begin + chunk_bytes])?;
        if length == 0 {
            return Ok(found);
        }
        let window = begin - kept..begin + length;
        found.hits += count(&finder, &buffer[window.clone()]);
        found.bytes += u64::try_from(length)?;
        kept = overlap.min(window.len());
        buffer.copy_within(window.end - kept..window.end, begin - kept);
    }
}

fn count(finder: &Finder<'_>, mut haystack: &[u8]) -> u64 {
    let mut hits = 0;
    while let Some(at) = finder.find(haystack) {
        hits += 1;
        haystack = &haystack[at + 1..];
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_is_found_at_every_offset_from_a_border_between_reads() {
        let needle = *b"0123456789abcdef";
        for offset in 0..64 {
            let mut haystack = vec![b'.'; 96];
            haystack[offset..offset + needle.len()].copy_from_slice(&needle);
            for chunk_bytes in [1, 7, 16, 32, 4096] {
                let found = stream(haystack.as_slice(), &needle, chunk_bytes).expect("memory can be read");
                assert_eq!(found, Found { hits: 1, bytes: 96 }, "offset {offset}, reads of {chunk_bytes}");
            }
        }
    }

    #[test]
    fn every_occurrence_counts_once_also_overlapping_ones() {
        let found = stream(&b"xabababax"[..], b"aba", 4).expect("memory can be read");
        assert_eq!(found.hits, 3);
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let found = stream(&[0; 10_000][..], &[1; 64], 512).expect("memory can be read");
        assert_eq!(found, Found { hits: 0, bytes: 10_000 });
    }
}
