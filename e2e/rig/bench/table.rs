//! Figures and columns as a person reads them.

use std::fmt;

/// What several rounds found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub(crate) median: f64,
    lowest: f64,
    highest: f64,
}

impl Spread {
    /// Of at least one figure.
    pub(crate) fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Self { median, lowest: sorted[0], highest: sorted[sorted.len() - 1] }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} to {})", number(self.median), number(self.lowest), number(self.highest))
    }
}

/// Three figures that mean something, and no fewer than all before the point.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Rows of cells; the first column is flush left, every other one flush right except the last.
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    pub(crate) fn new<const N: usize>(heads: [&str; N]) -> Self {
        Self(vec![heads.map(str::to_owned).to_vec()])
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.push(cells.to_vec());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        for row in &self.0 {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = width(column);
                match column {
                    0 => line += &format!("{cell:<width$}"),
                    _ if column + 1 == columns => line += &format!("  {cell}"),
                    _ => line += &format!("  {cell:>width$}"),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_in_the_middle_of_the_spread() {
        assert_eq!(Spread::of(&[9.0, 1.0, 2.0]).to_string(), "2.00 (1.00 to 9.00)");
        assert_eq!(Spread::of(&[4.0, 100.0, 2.0, 1.0]).to_string(), "3.00 (1.00 to 100)");
        assert_eq!(Spread::of(&[12.34]).to_string(), "12.3 (12.3 to 12.3)");
    }

    #[test]
    fn columns_stand_below_their_heads() {
        let mut table = Table::new(["", "ours", "aim"]);
        table.row(["long name".to_owned(), "1.00".to_owned(), "≥ 2".to_owned()]);
        table.row(["x".to_owned(), "1000000".to_owned(), String::new()]);
        assert_eq!(table.to_string(), "              ours  aim\nlong name     1.00  ≥ 2\nx          1000000\n");
    }
}
