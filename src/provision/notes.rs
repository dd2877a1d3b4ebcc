//! Notes beside a record, for display only and unauthenticated: why the last stage was refused, who proved what at the
//! last release of the key, and which sectors the kernel found changed. Failing to write one changes nothing about what
//! it tells.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::LocalPool;
use super::now;
use crate::device::integrity::Opening;
use crate::record::read;
use crate::record::replace;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::SECTOR_BYTES;
use crate::volume::VolumeId;
use crate::volume::shortened;

const REFUSAL_FILE: &str = "refusal.json";
const RELEASE_FILE: &str = "release.json";
const OPENING_FILE: &str = "opening.json";
const INTEGRITY_FILE: &str = "integrity.json";

/// How many bad sectors are kept of one volume.
const SECTORS_LIMIT: usize = 1024;
/// How many of them are named in a message.
const SECTORS_NAMED: usize = 8;

/// The contents of `refusal.json`, which the next good stage removes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The stable reason word.
    pub reason: String,
    /// What was found and what to do.
    pub message: String,
    /// When, RFC 3339 in UTC.
    pub at: String,
}

/// The contents of `release.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Who made the proof.
    pub attester: String,
    /// When the KBS released the secret, RFC 3339 in UTC.
    pub at: String,
}

/// The contents of `integrity.json`, which stays until somebody who has restored the data removes it: a sector that was
/// lost stays lost until it is written again, and nobody tells when that is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadSectors {
    /// Those that are known, in units of [`SECTOR_BYTES`]; a limited number.
    pub sectors: BTreeSet<u64>,
    /// Whether there were more.
    pub more: bool,
    /// When the first was found, RFC 3339 in UTC.
    pub first: String,
    /// When the last was found.
    pub last: String,
}

impl fmt::Display for BadSectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<_> = self.sectors.iter().take(SECTORS_NAMED).map(u64::to_string).collect();
        let (at_least, count) = (if self.more { "at least " } else { "" }, self.sectors.len());
        let dots = if count > named.len() { ", …" } else { "" };
        write!(
            f,
            "sectors of {SECTOR_BYTES} bytes that do not hold what was written there: {at_least}{count} ({}{dots}); reading \
             them fails. Restore what was in them from a copy, then remove the volume's {INTEGRITY_FILE}",
            named.join(", ")
        )
    }
}

impl LocalPool {
    /// Notes that a stage was refused.
    pub fn note_refusal(&self, id: &VolumeId, error: &Error) {
        let refusal = Refusal { reason: error.reason().to_string(), message: error.explanation(), at: now() };
        self.note(id, REFUSAL_FILE, &refusal);
    }

    /// Forgets the last refusal.
    pub fn clear_refusal(&self, id: &VolumeId) {
        match std::fs::remove_file(self.directory(id).join(REFUSAL_FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!(%error, "an old refusal could not be removed");
            }
            _ => {}
        }
    }

    /// The last refusal, if the volume was not staged since.
    #[must_use]
    pub fn refusal(&self, id: &VolumeId) -> Option<Refusal> {
        let noted: Refusal = self.noted(id, REFUSAL_FILE)?;
        // It is shown where people read words of this driver.
        let is_ours = Reason::ALL.iter().any(|reason| reason.as_str() == noted.reason);
        let plain = |character: char| if character.is_control() { ' ' } else { character };
        let message = shortened(&noted.message).chars().map(plain).collect();
        is_ours.then_some(Refusal { message, ..noted })
    }

    /// Notes that `attester` had the secret of the volume released.
    pub fn note_release(&self, id: &VolumeId, attester: &str) {
        self.note(id, RELEASE_FILE, &Release { attester: attester.to_owned(), at: now() });
    }

    /// The last release of the volume's secret to this node.
    #[must_use]
    pub fn release(&self, id: &VolumeId) -> Option<Release> {
        self.noted(id, RELEASE_FILE)
    }

    /// Notes from when on what the kernel tells of the volume's device is the volume's.
    pub fn note_opening(&self, id: &VolumeId, opening: &Opening) {
        self.note(id, OPENING_FILE, opening);
    }

    /// The last opening of the volume that was noted.
    #[must_use]
    pub fn opening(&self, id: &VolumeId) -> Option<Opening> {
        self.noted(id, OPENING_FILE)
    }

    /// Adds `found` to the bad sectors of the volume; returns those that were not known.
    pub fn note_bad_sectors(&self, id: &VolumeId, found: &BTreeSet<u64>) -> Vec<u64> {
        let mut bad = self.bad_sectors(id).unwrap_or_else(|| BadSectors { first: now(), ..BadSectors::default() });
        let room = SECTORS_LIMIT.saturating_sub(bad.sectors.len());
        let mut new: Vec<u64> = found.difference(&bad.sectors).copied().collect();
        let is_known = new.is_empty() || (bad.more && room == 0);
        bad.more |= new.len() > room;
        new.truncate(room);
        bad.sectors.extend(&new);
        if !is_known {
            bad.last = now();
            self.note(id, INTEGRITY_FILE, &bad);
        }
        new
    }

    /// The bad sectors of the volume, if there are any.
    #[must_use]
    pub fn bad_sectors(&self, id: &VolumeId) -> Option<BadSectors> {
        self.noted(id, INTEGRITY_FILE)
    }

    fn note(&self, id: &VolumeId, file: &str, note: &impl Serialize) {
        let directory = self.directory(id);
        if directory.is_symlink() {
            return;
        }
        let text = serde_json::to_vec_pretty(note).expect("a note holds texts only");
        if let Err(error) = replace(&directory, file, &text) {
            tracing::debug!(error = &error as &dyn std::error::Error, file, "the note could not be written");
        }
    }

    fn noted<T: DeserializeOwned>(&self, id: &VolumeId, file: &str) -> Option<T> {
        let text = read(&self.directory(id).join(file)).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::LocalPool;
    use crate::volume::PoolName;

    #[test]
    fn bad_sectors_are_kept_once_each_and_no_more_than_fit() {
        let directory = tempfile::tempdir().expect("a directory");
        let pool = LocalPool::open(PoolName::default(), directory.path().to_owned());
        let id = VolumeId::for_name("x");
        std::fs::create_dir(pool.directory(&id)).expect("the volume's directory");
        assert_eq!(pool.bad_sectors(&id), None);
        assert_eq!(pool.note_bad_sectors(&id, &BTreeSet::from([7, 9])), [7, 9]);
        assert_eq!(pool.note_bad_sectors(&id, &BTreeSet::from([8, 9])), [8]);
        let note = pool.bad_sectors(&id).expect("noted");
        assert_eq!((note.sectors.len(), note.more), (3, false));
        assert!(note.to_string().contains(" there: 3 (7, 8, 9); "), "{note}");

        let many: BTreeSet<u64> = (0..2000).collect();
        assert_eq!(pool.note_bad_sectors(&id, &many).len(), SECTORS_LIMIT - 3);
        assert_eq!(pool.note_bad_sectors(&id, &many), [] as [u64; 0]);
        let note = pool.bad_sectors(&id).expect("noted");
        assert_eq!((note.sectors.len(), note.more), (SECTORS_LIMIT, true));
        assert!(note.to_string().contains(" there: at least 1024 (0, 1, 2, 3, 4, 5, 6, 7, …); "), "{note}");
    }
}
