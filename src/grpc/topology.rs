//! Where volumes are: on the node that made them and nowhere else.

use sha2::Digest;
use sha2::Sha256;

use super::proto::csi;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;

/// The label that the kubelet puts on a node from our answer to `NodeGetInfo`.
pub const TOPOLOGY_KEY: &str = "topology.coffer.dev/node";

/// Longest value of a label in Kubernetes.
const LABEL_BYTES: usize = 63;

/// The place of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    value: String,
}

impl Place {
    /// The place of the node called `node_name`: its name if that may stand in a label, else a hash of it.
    pub(super) fn of(node_name: &str) -> Self {
        let value = if is_label_value(node_name) {
            node_name.to_owned()
        } else {
            format!("n-{}", &hex::encode(Sha256::digest(node_name.as_bytes()))[..32])
        };
        Self { value }
    }

    /// The place on the wire.
    pub(super) fn to_topology(&self) -> csi::Topology {
        csi::Topology { segments: [(TOPOLOGY_KEY.to_owned(), self.value.clone())].into() }
    }

    /// Whether `topology` covers this node. Keys are compared without case, as the CSI says.
    pub(super) fn is_in(&self, topology: &csi::Topology) -> bool {
        topology.segments.iter().all(|(key, value)| key.eq_ignore_ascii_case(TOPOLOGY_KEY) && *value == self.value)
    }

    /// Refuses a requirement that leaves no room for this node. `preferred` is an order among nodes; with one there is
    /// nothing to order.
    pub(super) fn admit(&self, requirement: Option<&csi::TopologyRequirement>) -> Result<()> {
        let requisite = requirement.map_or(&[][..], |requirement| &requirement.requisite);
        if requisite.is_empty() || requisite.iter().any(|topology| self.is_in(topology)) {
            return Ok(());
        }
        Err(Error::new(
            Reason::NoSpace,
            format!(
                "the volume may not be on this node ({TOPOLOGY_KEY}={}): the request requires other nodes",
                self.value
            ),
        ))
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

    fn topology(pairs: &[(&str, &str)]) -> csi::Topology {
        csi::Topology { segments: pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect() }
    }

    #[test]
    fn a_name_that_is_no_label_becomes_a_hash() {
        assert_eq!(Place::of("node-1.example").value, "node-1.example");
        let long = "n".repeat(64);
        for name in ["", "-a", "a.", "a b", "ü", &long] {
            let value = Place::of(name).value;
            assert!(value.starts_with("n-") && value.len() == 34 && is_label_value(&value), "{value}");
        }
        assert_ne!(Place::of("-a"), Place::of("-b"));
    }

    #[test]
    fn a_requirement_must_leave_this_node() {
        let place = Place::of("here");
        let here = topology(&[(TOPOLOGY_KEY, "here")]);
        let there = topology(&[(TOPOLOGY_KEY, "there")]);
        let requirement = |requisite: Vec<csi::Topology>, preferred| csi::TopologyRequirement { requisite, preferred };
        assert!(place.admit(None).is_ok());
        assert!(place.admit(Some(&requirement(vec![], vec![there.clone()]))).is_ok());
        assert!(place.admit(Some(&requirement(vec![there.clone(), here.clone()], vec![there.clone()]))).is_ok());
        let error = place.admit(Some(&requirement(vec![there], vec![]))).expect_err("excluded");
        assert_eq!(error.reason(), Reason::NoSpace);
        let foreign = topology(&[(TOPOLOGY_KEY, "here"), ("zone", "z")]);
        assert!(place.admit(Some(&requirement(vec![foreign], vec![]))).is_err());
    }
}
