//! What must hold in a cluster of two nodes, whatever happens to pods, nodes, driver and control plane: `make scenarios`.
//!
//! Each scenario has a namespace of its own. After it nothing may be left on any node, no Warning may have been reported
//! that it did not name, and the data must be what the pods wrote.

mod claims;
mod counter;
mod crashes;
mod integrity;
mod outages;
mod pods;
mod releases;
mod scene;
mod space;

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::cluster::Cluster;
use crate::cluster::Parts;
use crate::demo::ONLY_FIRST_URI;
use crate::install::KEY_URI;
use crate::process::Fate;
use crate::report::Count;
use crate::report::stage;
use crate::traces::POOL;
use scene::Scene;

/// A second directory on each node's disk of pools.
const SECOND_POOL: &str = "/var/lib/coffer/second";

/// One thing that must hold.
struct Scenario {
    name: &'static str,
    run: fn(&mut Scene) -> Result<()>,
    /// The Warnings that belong to it: each a reason, or `reason: words of the message`.
    warnings: &'static [&'static str],
}

impl Scenario {
    fn names(&self, reason: &str, message: &str) -> bool {
        self.warnings.iter().any(|warning| match warning.split_once(": ") {
            Some((named, words)) => named == reason && message.contains(words),
            None => *warning == reason,
        })
    }
}

/// Every scenario; those that take a node away come last.
const AREAS: [&[Scenario]; 7] = [
    pods::SCENARIOS,
    claims::SCENARIOS,
    space::SCENARIOS,
    integrity::SCENARIOS,
    releases::SCENARIOS,
    crashes::SCENARIOS,
    outages::SCENARIOS,
];

/// Runs the scenarios whose names contain a word of `filter` in a fresh cluster in `run`; without words all of them.
pub(crate) fn test(run: &Path, filter: &str, fate: Fate) -> Result<()> {
    let (mut cluster, kbs) = Cluster::start_with_kbs(run, Parts::sandboxed()?, fate)?;
    stage("Install the chart", || cluster.set_up(&kbs, &values()))?;
    let words: Vec<&str> = filter.split_whitespace().collect();
    let wanted = |scenario: &&Scenario| words.is_empty() || words.iter().any(|word| scenario.name.contains(word));
    play(&mut cluster, AREAS.iter().copied().flatten().filter(wanted)).conclude()
}

/// Plays the first scenario of each area but the last: of outages the demo's story has two.
pub(crate) fn play_representative(cluster: &mut Cluster) -> Count {
    let [areas @ .., _] = AREAS;
    play(cluster, areas.iter().filter_map(|area| area.first()))
}

fn play<'a>(cluster: &mut Cluster, scenarios: impl Iterator<Item = &'a Scenario>) -> Count {
    let mut count = Count::default();
    for scenario in scenarios {
        match stage(scenario.name, || scene::play(cluster, scenario)) {
            Ok(()) => count.passed += 1,
            Err(error) => {
                println!("    {error:#}\n    logs: below {}", cluster.run.display());
                count.failed += 1;
            }
        }
    }
    count
}

/// Every class that the scenarios and the demo use.
pub(crate) fn values() -> serde_json::Value {
    let class = |name: &str, more: serde_json::Value| {
        let mut class = json!({ "name": name, "keyUri": KEY_URI });
        class.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        class
    };
    json!({
        "pools": [{ "name": "default", "path": POOL }, { "name": "second", "path": SECOND_POOL }],
        "storageClasses": [
            class("coffer", json!({})),
            class("immediate", json!({ "volumeBindingMode": "Immediate" })),
            class("retain", json!({ "reclaimPolicy": "Retain" })),
            class("second", json!({ "pool": "second" })),
            class("xfs", json!({ "fsType": "xfs" })),
            class("noatime", json!({ "mountOptions": ["noatime"] })),
            class("suid", json!({ "mountOptions": ["suid"] })),
            class("tags", json!({ "profile": "aead-1" })),
            class("first-only", json!({ "keyUri": ONLY_FIRST_URI })),
        ],
    })
}
