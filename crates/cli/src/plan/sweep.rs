//! `trestle plan --sweep`: the same run and fleet with other values, side by side.
//!
//! Owns the table, and which of its rows nothing beats. May not know how a forecast is made.

use std::fmt;

use serde::Serialize;

use crate::units::{count, percent};

/// Rows of a table at most: a sweep over many fields grows fast.
pub(crate) const ROWS_MAX: usize = 1000;

/// Forecasts for some values of some fields.
#[derive(Debug, Serialize)]
pub(crate) struct Sweep {
    /// The fields.
    pub(crate) fields: Vec<String>,
    /// Their values, with what comes of them.
    pub(crate) rows: Vec<Row>,
}

/// One combination of values.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// The values, in the order of the fields.
    pub(crate) values: Vec<String>,
    /// What comes of them; else why the fleet cannot hold the run.
    pub(crate) outcome: Result<Figures, String>,
    /// Whether no other row is both faster and cheaper.
    pub(crate) unbeaten: bool,
}

/// The figures of a forecast that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// With everything.
    pub(crate) tokens_per_second: f64,
    /// While the run trains.
    pub(crate) mfu: f64,
    /// The part of the time in which it trains.
    pub(crate) utilisation: f64,
    /// Dollars an hour.
    pub(crate) price_per_hour: f64,
    /// Dollars for a billion tokens.
    pub(crate) price_per_billion: f64,
}

impl Figures {
    /// Returns whether it is at least as fast and as cheap as another, and better in one of them.
    fn beats(&self, other: &Self) -> bool {
        let (fast, cheap) = (self.tokens_per_second, self.price_per_billion);
        let (as_fast, as_cheap) = (fast >= other.tokens_per_second, cheap <= other.price_per_billion);
        as_fast && as_cheap && (fast > other.tokens_per_second || cheap < other.price_per_billion)
    }
}

impl Sweep {
    /// Notes which rows nothing beats.
    pub(crate) fn new(fields: Vec<String>, mut rows: Vec<Row>) -> Self {
        let figures: Vec<Figures> =
            rows.iter().filter_map(|row| row.outcome.as_ref().ok().copied()).collect();
        for row in &mut rows {
            let beaten = |of: &Figures| figures.iter().any(|other| other.beats(of));
            row.unbeaten = row.outcome.as_ref().is_ok_and(|of| !beaten(of));
        }
        Self { fields, rows }
    }
}

impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let values = self.rows.iter().map(|row| row.values[column].len());
            values.chain([self.fields[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.fields.len()).map(width).collect();
        let columns = |values: &[String]| {
            let padded = values.iter().zip(&widths).map(|(value, width)| format!("{value:<width$}  "));
            padded.collect::<String>()
        };
        let titles = "tokens/s      MFU       utilisation  product   $ an hour   $ a billion tokens";
        writeln!(f, "{}{titles}", columns(&self.fields))?;
        for Row { values, outcome, unbeaten } in &self.rows {
            write!(f, "{}", columns(values))?;
            match outcome {
                Ok(of) => writeln!(
                    f,
                    "{:<12}  {:<8}  {:<11}  {:<8}  {:<10.2}  {:.2}{}",
                    count(of.tokens_per_second.round() as u64),
                    percent(of.mfu),
                    percent(of.utilisation),
                    percent(of.mfu * of.utilisation),
                    of.price_per_hour,
                    of.price_per_billion,
                    if *unbeaten { " *" } else { "" }
                )?,
                Err(why) => writeln!(f, "{why}")?,
            }
        }
        writeln!(f, "\n* no other row is both faster and cheaper")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_others_beat_are_told_apart() {
        let row = |speed: f64, price: f64| {
            let figures = Figures {
                tokens_per_second: speed,
                mfu: 0.3,
                utilisation: 0.9,
                price_per_hour: 1.0,
                price_per_billion: price,
            };
            Row { values: vec![speed.to_string()], outcome: Ok(figures), unbeaten: false }
        };
        let none = Row { values: vec!["x".into()], outcome: Err("too few".into()), unbeaten: false };
        let rows = vec![row(100.0, 5.0), row(90.0, 6.0), row(80.0, 4.0), row(100.0, 5.0), none];
        let sweep = Sweep::new(vec!["sync.inner_steps".into()], rows);
        let unbeaten: Vec<bool> = sweep.rows.iter().map(|row| row.unbeaten).collect();
        assert_eq!(unbeaten, [true, false, true, true, false]);
        let table = sweep.to_string();
        assert_eq!(table.lines().count(), 8, "{table}");
        assert!(table.contains("x                 too few\n"), "{table}");
    }
}
