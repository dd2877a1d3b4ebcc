//! What must hold in a cluster of two nodes, whatever happens to pods, nodes, driver and control plane: `make scenarios`.
//!
//! Each scenario has a namespace of its own. After it nothing may be left on any node, no Warning may have been reported
//! that it did not name, and the data must be what the pods wrote.

mod claims;
mod crashes;
mod outages;
mod pods;
mod scene;
mod space;

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::cluster::Cluster;
use crate::cluster::Parts;
use crate::install::KEY_URI;
use crate::process::Fate;
use crate::report::Count;
use crate::report::stage;
use crate::sandbox;
use crate::traces::POOL;
use scene::Scene;

/// A second directory on each node's disk of pools.
const SECOND_POOL: &str = "/var/lib/coffer/second";

/// One thing that must hold.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    run: fn(&mut Scene) -> Result<()>,
    /// Reasons of the Warnings that belong to it.
    warnings: &'static [&'static str],
}

/// Every scenario; those that take a node away come last.
fn all() -> Vec<Scenario> {
    [pods::SCENARIOS, claims::SCENARIOS, space::SCENARIOS, crashes::SCENARIOS, outages::SCENARIOS]
        .into_iter()
        .flatten()
        .copied()
        .collect()
}

/// Runs the scenarios whose names contain a word of `filter` in a fresh cluster in `run`; without words all of them.
pub(crate) fn test(run: &Path, filter: &str, fate: Fate) -> Result<()> {
    if sandbox::is_outside() {
        stage("Build what the cache does not have: node image, Kubernetes, Coffer's image", || Parts::get().map(drop))?;
    }
    sandbox::enter()?;
    let (mut cluster, kbs) = Cluster::start_with_kbs(run, Parts::get()?, fate)?;
    stage("Install the chart", || cluster.set_up(&kbs, &values()))?;
    let words: Vec<&str> = filter.split_whitespace().collect();
    play(&mut cluster, |scenario| words.is_empty() || words.iter().any(|word| scenario.name.contains(word))).conclude()
}

fn play(cluster: &mut Cluster, wanted: impl Fn(&Scenario) -> bool) -> Count {
    let mut count = Count::default();
    for scenario in all().into_iter().filter(wanted) {
        match stage(scenario.name, || scene::play(cluster, &scenario)) {
            Ok(()) => count.passed += 1,
            Err(error) => {
                println!("    {error:#}\n    logs: below {}", cluster.run.display());
                count.failed += 1;
            }
        }
    }
    count
}

/// Every class that the scenarios use.
fn values() -> serde_json::Value {
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
        ],
    })
}
