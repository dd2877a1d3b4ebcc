//! What a pool is called: the same on every node that has one of its kind.

use std::fmt;

use serde::Serialize;

use super::{Error, Result};

/// Longest name: a label of the DNS (RFC 1123).
const LABEL_BYTES: usize = 63;

/// The name of a pool, as a StorageClass gives it. The default is `default`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct PoolName(String);

impl PoolName {
    /// Parses `text`; `field` names it in the error.
    ///
    /// # Errors
    /// `InvalidArgument` with the accepted form.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_label = (1..=LABEL_BYTES).contains(&text.len())
            && text.bytes().all(is_inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if is_label {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid(field, "must be 1 to 63 lower-case letters, digits and, not at the ends, '-'"))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for PoolName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_label() {
        for text in ["a", "nvme-1", "0", &"a".repeat(63)] {
            assert_eq!(PoolName::parse("pool", text).expect("a name").as_str(), text);
        }
        for text in ["", "-a", "a-", "A", "a.b", "a/b", "ü", &"a".repeat(64)] {
            let error = PoolName::parse("parameters[\"pool\"]", text).expect_err("refused");
            assert!(error.to_string().contains("parameters[\"pool\"]"), "{error}");
        }
        assert_eq!(PoolName::parse("pool", PoolName::default().as_str()).expect("a name"), PoolName::default());
    }
}
