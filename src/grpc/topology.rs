//! Places on the wire: one label of a node.

use super::proto::csi;
use crate::volume::Place;
use crate::volume::Whereabouts;

/// The label that the kubelet puts on a node from our answer to `NodeGetInfo`.
pub const TOPOLOGY_KEY: &str = "topology.coffer.dev/node";

/// `place` as the CSI writes it.
pub(super) fn of(place: &Place) -> csi::Topology {
    csi::Topology { segments: [(TOPOLOGY_KEY.to_owned(), place.to_string())].into() }
}

/// What a topology covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Covered {
    /// It says nothing about nodes.
    Anywhere,
    /// One node.
    At(Place),
    /// It demands a label that no node of ours has.
    Nowhere,
}

/// What `topology` covers. Keys are compared without case, as the CSI says.
pub(super) fn covered(topology: &csi::Topology) -> Covered {
    let mut covered = Covered::Anywhere;
    for (key, value) in &topology.segments {
        if !key.eq_ignore_ascii_case(TOPOLOGY_KEY) {
            return Covered::Nowhere;
        }
        covered = Covered::At(Place::labelled(value));
    }
    covered
}

/// Where a volume may be. An empty list of requisites demands nothing, and `preferred` is an order only.
pub(super) fn whereabouts(requirement: Option<&csi::TopologyRequirement>) -> Whereabouts {
    let Some(requirement) = requirement else { return Whereabouts::default() };
    let places = |topologies: &[csi::Topology]| topologies.iter().map(covered).collect::<Vec<_>>();
    let requisite = places(&requirement.requisite);
    let is_free = requisite.is_empty() || requisite.contains(&Covered::Anywhere);
    let named = |covered| if let Covered::At(place) = covered { Some(place) } else { None };
    Whereabouts {
        allowed: if is_free { None } else { Some(requisite.into_iter().filter_map(named).collect()) },
        preferred: places(&requirement.preferred).into_iter().filter_map(named).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(pairs: &[(&str, &str)]) -> csi::Topology {
        csi::Topology { segments: pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect() }
    }

    #[test]
    fn a_requirement_must_leave_this_node() {
        let place = Place::of("here");
        let here = topology(&[("Topology.coffer.dev/NODE", "here")]);
        let there = topology(&[(TOPOLOGY_KEY, "there")]);
        let foreign = topology(&[(TOPOLOGY_KEY, "here"), ("zone", "z")]);
        let allowed = |requisite: &[&csi::Topology], preferred: &[&csi::Topology]| {
            let owned = |topologies: &[&csi::Topology]| topologies.iter().copied().cloned().collect();
            let requirement = csi::TopologyRequirement { requisite: owned(requisite), preferred: owned(preferred) };
            whereabouts(Some(&requirement)).allow(&place)
        };
        assert!(whereabouts(None).allow(&place));
        assert!(allowed(&[], &[&there]));
        assert!(allowed(&[&there, &here], &[&there]));
        assert!(allowed(&[&topology(&[])], &[]));
        assert!(!allowed(&[&there], &[]));
        assert!(!allowed(&[&foreign], &[]));
    }

    #[test]
    fn preferences_keep_their_order() {
        let requirement = csi::TopologyRequirement {
            requisite: vec![],
            preferred: vec![topology(&[(TOPOLOGY_KEY, "b")]), topology(&[(TOPOLOGY_KEY, "a")])],
        };
        assert_eq!(whereabouts(Some(&requirement)).preferred, [Place::of("b"), Place::of("a")]);
    }
}
