//! Where a volume stands and what comes next: the whole decision of a stage, without any I/O.

use crate::volume::Content;

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
    /// The filesystem is at the staging path; or the raw block volume is complete.
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

/// The step from `rung`, or `None` at the top. A complete raw block volume is at the top as soon as it is open.
pub(super) fn next_step(rung: Rung, content: Content, complete: bool) -> Option<Step> {
    match (rung, content) {
        (Rung::Absent, _) => Some(Step::Attach),
        (Rung::Attached, _) => Some(Step::Prepare),
        (Rung::Prepared, _) => Some(Step::Open),
        (Rung::Open, Content::Block) if complete => None,
        (Rung::Open, _) => Some(Step::Finish),
        (Rung::Mounted, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::FsType;

    #[test]
    fn every_rung_has_one_way_up() {
        let ext4 = Content::Filesystem(FsType::Ext4);
        for (rung, content, complete, step) in [
            (Rung::Absent, ext4, true, Some(Step::Attach)),
            (Rung::Attached, ext4, true, Some(Step::Prepare)),
            (Rung::Prepared, ext4, true, Some(Step::Open)),
            (Rung::Open, ext4, true, Some(Step::Finish)),
            (Rung::Open, ext4, false, Some(Step::Finish)),
            (Rung::Mounted, ext4, true, None),
            (Rung::Prepared, Content::Block, true, Some(Step::Open)),
            (Rung::Open, Content::Block, false, Some(Step::Finish)),
            (Rung::Open, Content::Block, true, None),
        ] {
            assert_eq!(next_step(rung, content, complete), step, "{rung:?} {content} {complete}");
        }
    }
}
