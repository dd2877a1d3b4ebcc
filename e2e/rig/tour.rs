//! `make cluster`: what `make test` has time for in a cluster, all of it in one.

use std::path::Path;

use anyhow::Result;

use crate::cluster::Parts;
use crate::conformance::Part;
use crate::conformance::Tools;
use crate::demo::Story;
use crate::process::Fate;
use crate::sandbox;
use crate::scenarios;

/// Room for the demo's volumes, which it searches as a whole, and for those of three cases of the suite at once.
const POOL_BYTES: u64 = 4 << 30;

/// The demo's story, one scenario of each area, and a part of Kubernetes' storage suite.
pub(crate) fn test(run: &Path) -> Result<()> {
    let (parts, tools) = sandbox::enter_with("node image, Kubernetes and its test suite, Coffer's image", || {
        Ok((Parts::get()?, Tools::get()?))
    })?;
    let mut story = Story::told(run, parts.with_pool(POOL_BYTES), Fate::WithRig, &scenarios::values())?;
    let cluster = &mut story.cluster;
    let scenarios = scenarios::play_representative(cluster);
    let cases = tools.run(cluster, &Part::Representative);
    story.count.and(scenarios).and(cases).conclude()
}
