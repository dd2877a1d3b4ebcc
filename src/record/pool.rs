//! The mark that tells a pool from an empty directory where its disk should be mounted.

use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::read;
use super::replace;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// File name of the mark in a pool's directory.
pub const POOL_FILE: &str = "pool.json";

const SCHEMA: u32 = 1;

/// The contents of `pool.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolFile {
    schema: u32,
    /// The pool.
    pub pool_id: Uuid,
    /// UUID of the filesystem that the pool was made on, where the kernel tells it.
    pub filesystem_uuid: Option<Uuid>,
    /// When the pool was made, RFC 3339 in UTC.
    pub created: String,
}

impl PoolFile {
    /// A new pool on the filesystem `filesystem_uuid`, made at the time `now` (RFC 3339).
    #[must_use]
    pub fn new(filesystem_uuid: Option<Uuid>, now: String) -> Self {
        Self { schema: SCHEMA, pool_id: Uuid::new_v4(), filesystem_uuid, created: now }
    }

    /// Reads the mark of the pool in `directory`, or says what to do about its absence.
    ///
    /// # Errors
    /// `PoolMissing` is what it says that with.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(POOL_FILE);
        let missing = |what: &str| Error::new(Reason::PoolMissing, format!("{}: {what}", path.display()));
        let text = read(&path).map_err(|error| {
            missing("is the pool's disk mounted? A new pool is made with `coffer pool init`").caused_by(error)
        })?;
        let pool: Self = serde_json::from_slice(&text).map_err(|_| missing("is not a pool's mark"))?;
        if pool.schema > SCHEMA {
            return Err(missing("was written by a newer version of the driver; update it"));
        }
        Ok(pool)
    }

    /// Writes the mark into `directory`, durably.
    ///
    /// # Errors
    /// `NoSpace`, `PoolMissing` if the disk is read-only; otherwise `Internal`.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).expect("the mark has only text and numbers");
        text.push(b'\n');
        replace(directory, POOL_FILE, &text).map_err(|error| error.into_error(&format!("cannot write {POOL_FILE}")))
    }
}
