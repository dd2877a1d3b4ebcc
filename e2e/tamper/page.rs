//! `docs/tampering.md` has a row for each known attack, and of the rest how many. What the page says is compared with what
//! happens, and what happens is written to the node's logs, where a page that is to be changed gets its rows from.

use std::fs;

/// The page, as the rig shares it.
const PAGE: &str = "/share/bin/tampering.md";
/// What the head of a table begins with.
const HEAD: &str = "| Change |";

/// The rows of one table, as they were seen.
pub(super) struct Table {
    heading: &'static str,
    /// Whether the page has the rows, and not only how many there are.
    is_on_page: bool,
    rows: Vec<String>,
    /// How many cases each of those who were asked has opened.
    opened: [usize; 3],
}

impl Table {
    /// The table below `heading`.
    pub(super) fn new(heading: &'static str) -> Self {
        Self { heading, is_on_page: true, rows: Vec::new(), opened: [0; 3] }
    }

    /// One of which the page has, below `heading`, the sum.
    pub(super) fn summed(heading: &'static str) -> Self {
        Self { is_on_page: false, ..Self::new(heading) }
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
        let sum = format!("Of {} changes Coffer opens {ours}, cryptsetup {older} and {newer}.", self.rows.len());
        let log = format!("/log/tampering-{}.md", self.heading.to_lowercase().replace(' ', "-"));
        fs::write(log, format!("{}\n\n{sum}\n", self.rows.join("\n"))).expect("the logs can be written");
        let mut seen = if self.is_on_page { self.rows } else { Vec::new() };
        seen.push(sum);
        let page = fs::read_to_string(PAGE).expect("the rig shares the page");
        let part = page.split("\n## ").find(|part| part.starts_with(self.heading)).expect("the page has this part");
        let says = |line: &&str| (line.starts_with("| ") && !line.starts_with(HEAD)) || line.starts_with("Of ");
        let said: Vec<_> = part.lines().filter(says).collect();
        let unsaid: Vec<_> = seen.iter().filter(|line| !said.contains(&line.as_str())).collect();
        let unseen: Vec<_> = said.iter().filter(|line| !seen.iter().any(|seen| seen == *line)).collect();
        assert!(unsaid.is_empty() && unseen.is_empty(), "seen, not on the page: {unsaid:#?}\nnot seen: {unseen:#?}");
    }
}
