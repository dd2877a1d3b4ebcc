//! Which cases of the suite run.

/// Cases that the rig cannot offer what they need, each by the words that only it has.
const LEFT_OUT: [&str; 0] = [];

/// One case for each test pattern and each feature.
const REPRESENTATIVE: [&str; 0] = [];

/// A part of the suite.
pub(crate) enum Part {
    /// Every case whose name contains these words, which are a regular expression.
    Matching(String),
    /// What `make test` has time for.
    Representative,
}

impl Part {
    /// How Ginkgo is told.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<_> = match self {
            Self::Matching(words) => vec![format!("--focus=External.Storage.*{words}")],
            Self::Representative => {
                REPRESENTATIVE.iter().map(|words| format!("--focus=External.Storage.*{words}")).collect()
            }
        };
        arguments.extend(LEFT_OUT.iter().map(|words| format!("--skip={words}")));
        arguments
    }
}
