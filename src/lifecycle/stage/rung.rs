//! Where a volume stands and what comes next.

/// How far a volume has come. Later is higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rung {
    /// The kernel holds nothing.
    Absent,
    /// A loop device holds the image.
    Attached,
    /// The backing has a header with the record's UUID.
    Prepared,
    /// Our table is live and was read back.
    Open,
    /// The filesystem is at the staging path; or the raw block volume is open and complete, which has none.
    Mounted,
}

/// What takes a volume one rung up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Put the image on a loop device.
    Attach,
    /// Verify the header, or write one if the record permits it.
    Prepare,
    /// Unlock and load the table.
    Open,
    /// Make or check the contents, seal, and mount.
    Finish,
}

/// The step from `rung`, or `None` at the top.
pub(super) fn next_step(rung: Rung) -> Option<Step> {
    match rung {
        Rung::Absent => Some(Step::Attach),
        Rung::Attached => Some(Step::Prepare),
        Rung::Prepared => Some(Step::Open),
        Rung::Open => Some(Step::Finish),
        Rung::Mounted => None,
    }
}
