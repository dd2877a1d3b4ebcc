//! Fields of a request: present, of a legal form, no larger than the CSI allows. Every refusal names the field.
//!
//! Identifiers of volumes have no illegal form: any string may be looked up.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};

use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;

/// Longest string (CSI, "Size Limits").
const STRING_BYTES: usize = 128;
/// Largest map, and all mount flags together (CSI, "Size Limits" and `MountVolume.mount_flags`).
pub(super) const MAP_BYTES: usize = 4096;
/// `PATH_MAX` of Linux without the closing zero.
const PATH_BYTES: usize = 4095;

/// `text`, which must not be empty.
pub(super) fn required<'a>(field: &str, text: &'a str) -> Result<&'a str> {
    if text.is_empty() { Err(Error::invalid(field, "is required")) } else { Ok(text) }
}

/// A message field that must be there.
pub(super) fn present<'a, T>(field: &str, value: Option<&'a T>) -> Result<&'a T> {
    value.ok_or_else(|| Error::invalid(field, "is required"))
}

/// A name: not empty, at most 128 bytes, without control characters other than tab and line ends.
pub(super) fn name<'a>(field: &str, text: &'a str) -> Result<&'a str> {
    required(field, text)?;
    if text.len() > STRING_BYTES {
        return Err(Error::invalid(field, format!("has {} bytes, at most {STRING_BYTES} are allowed", text.len())));
    }
    if text.chars().any(|letter| letter.is_control() && !matches!(letter, '\t' | '\n' | '\r')) {
        return Err(Error::invalid(field, "holds control characters"));
    }
    Ok(text)
}

/// `text` as the id of a volume that may exist. What this driver never made is not found, unless `ready` says that
/// nothing can be told of volumes now.
pub(super) async fn volume_id(text: &str, ready: impl Future<Output = Result<()>>) -> Result<VolumeId> {
    required("volume_id", text)?;
    if let Some(id) = VolumeId::parse(text) {
        return Ok(id);
    }
    ready.await?;
    let shown: String = text.chars().take(64).collect();
    let message = format!("there is no volume {shown:?}: this driver never made such an id");
    Err(Error::new(Reason::VolumeNotFound, message))
}

/// An absolute path without `..`.
pub(super) fn path(field: &str, text: &str) -> Result<PathBuf> {
    required(field, text)?;
    let path = Path::new(text);
    if !path.is_absolute() || path.components().any(|part| part.as_os_str() == "..") || text.contains('\0') {
        return Err(Error::invalid(field, "must be an absolute path without '..'"));
    }
    if text.len() > PATH_BYTES {
        return Err(Error::invalid(field, format!("has {} bytes, a path has at most {PATH_BYTES}", text.len())));
    }
    Ok(path.to_owned())
}

/// A map, which must not be larger than 4 KiB.
pub(super) fn map(field: &str, entries: &HashMap<String, String>) -> Result<()> {
    let bytes: usize = entries.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAP_BYTES {
        return Err(Error::invalid(field, format!("has {bytes} bytes, at most {MAP_BYTES} are allowed")));
    }
    Ok(())
}

/// How many entries an answer may have; 0 is no limit.
pub(super) fn max_entries(field: &str, count: i32) -> Result<usize> {
    match usize::try_from(count) {
        Ok(0) => Ok(usize::MAX),
        Ok(count) => Ok(count),
        Err(_) => Err(Error::invalid(field, "must not be negative")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_printable() {
        assert!(name("name", &"ü".repeat(64)).is_ok());
        for text in ["", "a\0b", "a\u{7f}", "a\u{9f}", &"a".repeat(129)] {
            assert!(name("name", text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn paths_are_absolute_and_go_down() {
        assert_eq!(path("target_path", "/a/b").expect("valid"), Path::new("/a/b"));
        for text in ["", "a", "some/path", "/a/../b", "/a\0", &format!("/{}", "a".repeat(4095))] {
            assert!(path("target_path", text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn maps_and_counts_are_bounded() {
        let entries = |bytes: usize| HashMap::from([("k".to_owned(), "v".repeat(bytes - 1))]);
        assert!(map("parameters", &entries(4096)).is_ok());
        assert!(map("parameters", &entries(4097)).is_err());
        assert_eq!(max_entries("max_entries", 0).expect("no limit"), usize::MAX);
        assert_eq!(max_entries("max_entries", 2).expect("a limit"), 2);
        assert!(max_entries("max_entries", -1).is_err());
    }
}
