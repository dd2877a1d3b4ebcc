//! Who may have which key: nodes known by attestation key and PCR values, and for each resource path their names.
//!
//! A path that is not listed is released to nobody, and a node without a PCR that it was registered with is no node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::verify::Claims;
use crate::key::evidence::AttesterDescription;
use crate::key::evidence::PCR_COUNT;
use crate::volume::Error;
use crate::volume::KeyUri;
use crate::volume::Result;

/// A set of PCR numbers, written as `0-7` or `0,2,4-7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcrSet(u32);

impl PcrSet {
    /// The numbers in ascending order.
    pub fn numbers(self) -> impl Iterator<Item = u8> {
        (0..PCR_COUNT as u8).filter(move |number| self.0 & (1 << number) != 0)
    }
}

impl FromStr for PcrSet {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let form = || format!("{text:?} is not a set of PCRs 0 to 23 such as 0-7 or 0,2,4-7");
        let number = |text: &str| text.parse::<u8>().ok().filter(|&number| usize::from(number) < PCR_COUNT);
        text.split(',').try_fold(Self(0), |set, range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) =
                number(first).zip(number(last)).filter(|(first, last)| first <= last).ok_or_else(form)?;
            Ok((first..=last).fold(set, |Self(bits), number| Self(bits | 1 << number)))
        })
    }
}

impl FromIterator<u8> for PcrSet {
    fn from_iter<I: IntoIterator<Item = u8>>(numbers: I) -> Self {
        Self(numbers.into_iter().fold(0, |bits, number| bits | 1 << number))
    }
}

impl fmt::Display for PcrSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u8, u8)> = Vec::new();
        for number in self.numbers() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => ranges.push((number, number)),
            }
        }
        for (at, (first, last)) in ranges.into_iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

/// A node as it was registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// Kind of evidence that it gives.
    pub tee: String,
    /// Base64 of the DER SubjectPublicKeyInfo of its attestation key; absent for evidence that nobody signs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attestation_key: Option<String>,
    /// The PCRs that are compared, in hexadecimal.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub pcrs: BTreeMap<u8, String>,
}

impl Node {
    /// The node that `description` describes, known by those of its PCRs that are in `pcrs`.
    ///
    /// # Errors
    /// `InvalidArgument` if the description lacks a PCR or its key is not the one whose digest it names.
    pub fn new(description: &AttesterDescription, pcrs: PcrSet) -> Result<Self> {
        let refused = |what: &str| Error::invalid("attest.json", what);
        let AttesterDescription { tee, attestation_key, attestation_key_sha256, pcrs: known, .. } = description;
        let Some(key) = attestation_key else {
            if tee == "sample" {
                return Ok(Self { tee: tee.clone(), attestation_key: None, pcrs: BTreeMap::new() });
            }
            return Err(refused("names no attestation key"));
        };
        let der = STANDARD.decode(key).map_err(|_| refused("has an attestation key that is not base64"))?;
        if attestation_key_sha256.as_ref().is_some_and(|digest| *digest != hex::encode(Sha256::digest(der))) {
            return Err(refused("has an attestation key and the SHA-256 of another one"));
        }
        let value =
            |number| known.get(&number).filter(|value| is_digest(value)).map(|value| (number, value.to_lowercase()));
        let compared: Option<BTreeMap<_, _>> = pcrs.numbers().map(value).collect();
        let pcrs = compared.ok_or_else(|| refused(&format!("does not have every one of the PCRs {pcrs}")))?;
        Ok(Self { tee: tee.clone(), attestation_key: Some(key.clone()), pcrs })
    }

    /// Whether `claims` are this node's.
    fn is(&self, claims: &Claims) -> bool {
        let Claims { tee, attestation_key, pcrs } = claims;
        let has = |(&number, value): (&u8, &String)| {
            pcrs.get(usize::from(number)).is_some_and(|claimed| hex::encode(claimed).eq_ignore_ascii_case(value))
        };
        self.tee == *tee
            && self.attestation_key == attestation_key.as_ref().map(|der| STANDARD.encode(der))
            && self.pcrs.iter().all(has)
    }

    /// The numbers of the PCRs that are compared.
    #[must_use]
    pub fn compared(&self) -> PcrSet {
        self.pcrs.keys().copied().collect()
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The file `policy.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// For each resource path, the names of the nodes that may have its secret.
    pub resources: BTreeMap<String, BTreeSet<String>>,
}

impl Policy {
    /// The node of `claims` if it may have the secret under `uri`.
    pub(super) fn allows(&self, claims: &Claims, uri: &KeyUri) -> Option<(&str, &Node)> {
        let names = self.resources.get(uri.resource_path())?;
        let mut nodes = names.iter().filter_map(|name| self.nodes.get_key_value(name));
        nodes.find(|(_, node)| node.is(claims)).map(|(name, node)| (name.as_str(), node))
    }

    /// # Errors
    /// `InvalidArgument` if there is no node called `name`.
    pub(super) fn check_node(&self, name: &str) -> Result<()> {
        if self.nodes.contains_key(name) {
            return Ok(());
        }
        let known: Vec<&str> = self.nodes.keys().map(String::as_str).collect();
        Err(Error::invalid("node", format!("{name:?} is not registered; registered are: {}", known.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(key: &[u8], pcr_7: u8) -> Claims {
        let mut pcrs = vec![[0; 32]; PCR_COUNT];
        pcrs[7] = [pcr_7; 32];
        Claims { tee: "tpm".into(), attestation_key: Some(key.to_vec()), pcrs }
    }

    fn description(key: &[u8], pcr_7: u8) -> AttesterDescription {
        let Claims { tee, attestation_key, pcrs } = claims(key, pcr_7);
        AttesterDescription {
            tee,
            attestation_key: attestation_key.map(|key| STANDARD.encode(key)),
            attestation_key_sha256: Some(hex::encode(Sha256::digest(key))),
            pcrs: (0..).zip(pcrs.iter().map(hex::encode)).collect(),
            claims: serde_json::Value::Null,
        }
    }

    #[test]
    fn sets_of_pcrs_are_read_and_written() {
        for (text, shown) in [("0-7", "0-7"), ("0,2,4-7", "0,2,4-7"), ("23", "23"), ("1,0,2", "0-2"), ("3,3-4", "3-4")]
        {
            assert_eq!(text.parse::<PcrSet>().expect("a set").to_string(), shown);
        }
        for text in ["", "24", "7-0", "a", "0-", "-1", "0,,1", "0-24"] {
            assert!(text.parse::<PcrSet>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_goes_to_named_nodes_with_the_registered_key_and_pcrs() {
        let uri = KeyUri::parse("keyUri", "kbs:///a/b/c").expect("a URI");
        let other = KeyUri::parse("keyUri", "kbs:///a/b/d").expect("a URI");
        let node = Node::new(&description(b"key", 7), "0-7".parse().expect("a set")).expect("a node");
        let mut policy = Policy::default();
        policy.nodes.insert("one".into(), node);
        assert!(policy.allows(&claims(b"key", 7), &uri).is_none(), "no path is listed");
        policy.resources.insert("a/b/c".into(), BTreeSet::from(["one".into()]));
        assert!(policy.allows(&claims(b"key", 7), &uri).is_some());
        assert!(policy.allows(&claims(b"key", 7), &other).is_none());
        assert!(policy.allows(&claims(b"yek", 7), &uri).is_none());
        assert!(policy.allows(&claims(b"key", 8), &uri).is_none());
        let sample = Claims { tee: "sample".into(), attestation_key: None, pcrs: Vec::new() };
        assert!(policy.allows(&sample, &uri).is_none());
    }

    #[test]
    fn pcrs_outside_the_named_subset_may_change() {
        let node = Node::new(&description(b"key", 7), "0-6".parse().expect("a set")).expect("a node");
        assert!(node.is(&claims(b"key", 8)));
        assert_eq!(node.compared().to_string(), "0-6");
    }

    #[test]
    fn an_inconsistent_description_is_refused() {
        let pcrs = "0-7".parse().expect("a set");
        let mut lacking = description(b"key", 7);
        lacking.pcrs.remove(&3);
        assert!(Node::new(&lacking, pcrs).is_err());
        let mut other = description(b"key", 7);
        other.attestation_key = Some(STANDARD.encode(b"yek"));
        assert!(Node::new(&other, pcrs).is_err());
        assert!(Node::new(&AttesterDescription::without_proof("tpm"), pcrs).is_err());
        assert!(Node::new(&AttesterDescription::without_proof("sample"), pcrs).is_ok());
    }
}
