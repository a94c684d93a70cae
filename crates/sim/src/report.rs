//! The report of a scenario: what came of it, expectation by expectation, and the line that repeats it.
//!
//! Owns the words. Knows nothing of how it came about.

use crate::scenario::expectation::{Check, Verdict};
use crate::swarm::SimOutcome;
use std::fmt;

/// What a scenario gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The seed that decided everything.
    pub seed: u64,
    /// The whole outcome.
    pub outcome: SimOutcome,
    /// Each expectation and what was found.
    pub checks: Vec<Check>,
}

impl Report {
    /// Says whether every expectation was met.
    pub fn verdict(&self) -> Verdict {
        if self.checks.iter().all(|check| check.verdict == Verdict::Met) {
            Verdict::Met
        } else {
            Verdict::Missed
        }
    }

    /// Returns the line that repeats this run of the scenario in `file`.
    pub fn repeat(&self, file: &str) -> String {
        format!("trestle simulate {file} --seed {}", self.seed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SimOutcome { digest, tally, time, messages, wire_bytes, .. } = &self.outcome;
        writeln!(
            f,
            "seed {}: {} steps in {time} of virtual time, {} events, {messages} messages, {wire_bytes} bytes sent",
            self.seed, tally.steps, tally.events
        )?;
        writeln!(f, "log digest {}", digest.to_hex())?;
        self.checks.iter().try_for_each(|check| writeln!(f, "{check}"))
    }
}
