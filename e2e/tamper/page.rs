//! `docs/tampering.md` has a row for each known attack. What the page says is compared with what happens, and what happens
//! is written to the node's logs, where a page that is to be changed gets its rows from.

use std::fs;

/// The page, as the tests were built with it.
const PAGE: &str = include_str!("../../docs/tampering.md");

/// The rows of one table, as they were seen.
pub(super) struct Table {
    heading: &'static str,
    rows: Vec<String>,
    /// How many cases each of those who were asked has opened.
    opened: [usize; 3],
}

impl Table {
    /// The table below `heading`.
    pub(super) fn new(heading: &'static str) -> Self {
        Self { heading, rows: Vec::new(), opened: [0; 3] }
    }

    /// Adds the answers of the driver and of both versions of cryptsetup.
    pub(super) fn add(&mut self, name: &str, ours: &str, [older, newer]: [String; 2]) {
        let answers = [ours, &older, &newer];
        for (opened, answer) in self.opened.iter_mut().zip(answers) {
            *opened += usize::from(answer.starts_with("opens"));
        }
        self.rows.push(format!("| {name} | {} |", answers.join(" | ")));
    }

    /// Writes down what was seen, and expects that the page says it.
    #[track_caller]
    pub(super) fn check(self) {
        let [ours, older, newer] = self.opened;
        let count = format!("Of {} changes Coffer opens {ours}, cryptsetup {older} and {newer}.", self.rows.len());
        let seen = [self.rows, vec![count]].concat();
        fs::write("/log/tampering.md", seen.join("\n") + "\n").expect("the logs can be written");
        let part = PAGE.split("\n## ").find(|part| part.starts_with(self.heading)).expect("the page has this part");
        // Below the head of the table.
        let said = part.lines().filter(|line| line.starts_with("| ") || line.starts_with("Of ")).skip(1);
        let said: Vec<_> = said.collect();
        let unsaid: Vec<_> = seen.iter().filter(|line| !said.contains(&line.as_str())).collect();
        let unseen: Vec<_> = said.iter().filter(|line| !seen.iter().any(|seen| seen == *line)).collect();
        assert!(unsaid.is_empty() && unseen.is_empty(), "seen, not on the page: {unsaid:#?}\nnot seen: {unseen:#?}");
    }
}
