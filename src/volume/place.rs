//! Where volumes are: on the node that made them and nowhere else.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest value of a label in Kubernetes.
const LABEL_BYTES: usize = 63;

/// One node, as the topology of Kubernetes calls it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Place(String);

impl Place {
    /// The place of the node called `node_name`: its name if that may stand in a label, else a hash of it.
    #[must_use]
    pub fn of(node_name: &str) -> Self {
        if is_label_value(node_name) {
            return Self(node_name.to_owned());
        }
        Self(format!("n-{}", &hex::encode(Sha256::digest(node_name.as_bytes()))[..32]))
    }

    /// The place whose label has the value `text`.
    #[must_use]
    pub fn labelled(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The value of the label.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Place {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if is_label_value(&text) { Ok(Self(text)) } else { Err("a value of a Kubernetes label") }
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.0
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a new volume may be. The default is anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// The only places that will do; `None` if any will.
    pub allowed: Option<Vec<Place>>,
    /// The better places, best first.
    pub preferred: Vec<Place>,
}

impl Whereabouts {
    /// Whether `place` will do.
    #[must_use]
    pub fn allow(&self, place: &Place) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.contains(place))
    }

    /// How good `place` is: 0 is best.
    #[must_use]
    pub fn rank(&self, place: &Place) -> usize {
        self.preferred.iter().position(|preferred| preferred == place).unwrap_or(self.preferred.len())
    }
}

/// Kubernetes' rule for values of labels.
fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let ends = [bytes.first(), bytes.last()];
    bytes.len() <= LABEL_BYTES
        && bytes.iter().all(inner)
        && ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_label_becomes_a_hash() {
        assert_eq!(Place::of("node-1.example").as_str(), "node-1.example");
        let long = "n".repeat(64);
        for name in ["", "-a", "a.", "a b", "ü", &long] {
            let place = Place::of(name);
            assert!(place.as_str().starts_with("n-") && place.as_str().len() == 34, "{place}");
            assert!(is_label_value(place.as_str()), "{place}");
        }
        assert_ne!(Place::of("-a"), Place::of("-b"));
    }

    #[test]
    fn better_places_have_lower_ranks_and_others_none() {
        let [a, b, c] = ["a", "b", "c"].map(Place::of);
        let whereabouts = Whereabouts { allowed: Some(vec![a.clone(), b.clone()]), preferred: vec![b.clone()] };
        assert!(whereabouts.allow(&a) && whereabouts.allow(&b) && !whereabouts.allow(&c));
        assert!(whereabouts.rank(&b) < whereabouts.rank(&a));
        assert!(Whereabouts::default().allow(&c));
    }
}
