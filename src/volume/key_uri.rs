//! The name of a key: `kbs:///<repository>/<type>/<tag>`, and the template for it in a StorageClass.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Error, Result, VolumeId};

/// The claim that a volume was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Namespace of the PersistentVolumeClaim.
    pub namespace: String,
    /// Name of the PersistentVolumeClaim.
    pub name: String,
}

/// The resource path of a secret at the KBS.
///
/// Each of the three segments matches `[A-Za-z0-9_-][A-Za-z0-9_.-]*`, which is what a KBS accepts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyUri(String);

const SCHEME: &str = "kbs:///";
const FORM: &str =
    "must be kbs:///<repository>/<type>/<tag>, each segment of letters, digits, '_', '-' and, not in front, '.'";

impl KeyUri {
    /// Parses `text`; `field` names it in the error.
    ///
    /// # Errors
    /// `InvalidArgument` with the accepted form.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        let path = text.strip_prefix(SCHEME).ok_or_else(|| Error::invalid(field, FORM))?;
        let segments: Vec<&str> = path.split('/').collect();
        if segments.len() != 3 || !segments.iter().all(|segment| is_segment(segment)) {
            return Err(Error::invalid(field, FORM));
        }
        Ok(Self(text.to_owned()))
    }

    /// `<repository>/<type>/<tag>`.
    #[must_use]
    pub fn resource_path(&self) -> &str {
        &self.0[SCHEME.len()..]
    }
}

fn is_segment(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    text.bytes().enumerate().all(|(at, byte)| is_word(byte) || (at > 0 && byte == b'.')) && !text.is_empty()
}

impl fmt::Display for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for KeyUri {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse("key URI", &text)
    }
}

impl From<KeyUri> for String {
    fn from(uri: KeyUri) -> Self {
        uri.0
    }
}

/// A key URI of a StorageClass, which may hold `${volume.id}`, `${pvc.namespace}` and `${pvc.name}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUriTemplate<'a>(pub &'a str);

impl KeyUriTemplate<'_> {
    /// The URI for one volume. A variable that cannot be filled, and an unknown one, is an error that names it.
    ///
    /// # Errors
    /// `InvalidArgument`, as said.
    pub fn expand(&self, field: &str, id: &VolumeId, claim: Option<&Claim>) -> Result<KeyUri> {
        let mut text = String::new();
        let mut rest = self.0;
        while let Some(start) = rest.find("${") {
            let (before, variable) = rest.split_at(start);
            let end = variable.find('}').ok_or_else(|| Error::invalid(field, "a variable is not closed with }"))?;
            text.push_str(before);
            text.push_str(match (&variable[2..end], claim) {
                ("volume.id", _) => id.as_str(),
                ("pvc.namespace", Some(claim)) => &claim.namespace,
                ("pvc.name", Some(claim)) => &claim.name,
                ("pvc.namespace" | "pvc.name", None) => {
                    return Err(Error::invalid(
                        field,
                        "uses ${pvc...}, but the provisioner runs without --extra-create-metadata",
                    ));
                }
                _ => {
                    return Err(Error::invalid(
                        field,
                        "knows the variables ${volume.id}, ${pvc.namespace} and ${pvc.name}",
                    ));
                }
            });
            rest = &variable[end + 1..];
        }
        text.push_str(rest);
        KeyUri::parse(field, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_segments_and_nothing_else() {
        assert_eq!(KeyUri::parse("keyUri", "kbs:///a/b_c/d-1.e").expect("valid").resource_path(), "a/b_c/d-1.e");
        for text in [
            "",
            "kbs://a/b/c",
            "kbs:///a/b",
            "kbs:///a/b/c/d",
            "kbs:///a//c",
            "kbs:///a/../c",
            "kbs:///a/b/c?x",
            "kbs:///a/b/.c",
        ] {
            assert!(KeyUri::parse("keyUri", text).is_err(), "{text}");
        }
    }

    #[test]
    fn variables_are_filled_or_named() {
        let id = VolumeId::for_name("x");
        let claim = Claim { namespace: "shop".into(), name: "orders".into() };
        let expand = |text, claim| KeyUriTemplate(text).expand("keyUri", &id, claim).map(|uri| uri.to_string());
        assert_eq!(expand("kbs:///a/b/${volume.id}", None).expect("id"), format!("kbs:///a/b/{id}"));
        assert_eq!(
            expand("kbs:///a/${pvc.namespace}/${pvc.name}", Some(&claim)).expect("claim"),
            "kbs:///a/shop/orders"
        );
        assert!(expand("kbs:///a/${pvc.namespace}/x", None).is_err());
        assert!(expand("kbs:///a/b/${pod.name}", Some(&claim)).is_err());
        assert!(expand("kbs:///a/b/${volume.id", Some(&claim)).is_err());
    }
}
