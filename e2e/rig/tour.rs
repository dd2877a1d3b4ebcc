//! `make cluster`: what `make test` has time for in a cluster, all of it in one.

use std::path::Path;

use anyhow::Result;

use crate::cluster::Parts;
use crate::conformance::Part;
use crate::conformance::Tools;
use crate::demo::Story;
use crate::process::Fate;
use crate::report::Count;
use crate::report::stage;
use crate::sandbox;
use crate::scenarios;

/// Room for the demo's volumes, which it searches as a whole, and for those of three cases of the suite at once.
const POOL_BYTES: u64 = 4 << 30;

/// The demo's story, one scenario of each area, and a part of Kubernetes' storage suite.
pub(crate) fn test(run: &Path) -> Result<()> {
    let (parts, tools) = sandbox::enter_with("node image, Kubernetes and its test suite, Coffer's image", || {
        Ok((Parts::get()?, Tools::get()?))
    })?;
    let mut story = Story::told(run, parts.with_pool(POOL_BYTES), Fate::WithRig)?;
    let cluster = &mut story.cluster;
    let upgraded = stage("Upgrade the release: the pools and classes of the scenarios", || {
        for command in cluster.upgrade(&scenarios::values())? {
            cluster.shell(&command)?;
        }
        cluster.wait_for_capacities()
    });
    let rest = upgraded.map(|()| {
        let scenarios = scenarios::play_representative(cluster);
        scenarios.and(tools.run(cluster, &Part::Representative))
    });
    story.count.and(Count::of(rest)).conclude()
}
