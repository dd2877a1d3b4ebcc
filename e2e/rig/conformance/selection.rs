//! Which cases of the suite run.

/// Cases for which the rig lacks something, by words that only they have, each with what it lacks.
const LEFT_OUT: [&str; 2] = [
    // It stops a container with crictl, which no node of the rig has.
    "(default fs)] subPath should remount stale subpath bind mount after network filesystem disruption",
    // It runs the images of volume-data-source-validator and hello-populator, which the rig has no means to make.
    "(default fs)] provisioning should provision storage with any volume data source",
];

/// One case for each test pattern and each feature, by words that only they have.
const REPRESENTATIVE: [&str; 10] = [
    "(default fs)] volumes should allow exec of files on the volume",
    "(xfs)] volumes should store data",
    "(block volmode)] volumes should store data",
    "(default fs)] provisioning should provision storage with mount options",
    "(default fs)] fsgroupchangepolicy (Always)[LinuxOnly], rwop pod created with an initial fsgroup",
    "(default fs)] read-write-once-pod should block a second pod",
    "(default fs)] capacity provides storage capacity information",
    "(filesystem volmode)] volumeLimits should verify that all csinodes have volume limits",
    "(delayed binding)] topology should provision a volume and schedule a pod with AllowedTopologies",
    "(default fs) (late-binding)] ephemeral should create read-only inline ephemeral volume",
];

/// A part of the suite.
pub(crate) enum Part {
    /// Every case whose name contains a match of this regular expression.
    Matching(String),
    /// What `make test` has time for.
    Representative,
}

impl Part {
    /// How Ginkgo is told.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<_> = match self {
            Self::Matching(words) => vec![focus(words)],
            Self::Representative => REPRESENTATIVE.iter().map(|words| focus(&literal(words))).collect(),
        };
        arguments.extend(LEFT_OUT.iter().map(|words| format!("--skip={}", literal(words))));
        arguments
    }
}

fn focus(expression: &str) -> String {
    format!("--focus=External.Storage.*{expression}")
}

/// The regular expression that matches `text` and nothing else.
fn literal(text: &str) -> String {
    let mut expression = String::new();
    for character in text.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            expression.push('\\');
        }
        expression.push(character);
    }
    expression
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_matched_as_they_stand() {
        assert_eq!(literal("(xfs)] a.b"), r"\(xfs\)\] a\.b");
    }
}
