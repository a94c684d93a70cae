//! The figures by which runs are compared: speed, MFU, utilisation, bytes on the wire.
//!
//! Owns their formulae. May not know where the numbers come from, nor how they are shown.

use std::fmt;

use serde::Serialize;
use trestle_protocol::event::StepSummary;
use trestle_protocol::time::Span;

use crate::units::{count, percent};

/// What is summed over steps.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) steps: u64,
    pub(crate) tokens: u64,
    wall: Span,
    outside: Span,
    wire_bytes: u64,
}

/// What the work and the devices of a run amount to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measure {
    /// Operations that training one token takes, forward and backward, without recomputation.
    pub(crate) flops_per_token: f64,
    /// The measured peaks of all devices together, FLOP/s; 0 when unknown.
    pub(crate) peak_flops: f64,
}

/// The figures of some steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// Tokens over all time.
    pub(crate) tokens_per_second: f64,
    /// Model operations in training time over what the devices could have done; absent when their peak is unknown.
    pub(crate) mfu: Option<f64>,
    /// Training time over all time.
    pub(crate) utilisation: f64,
    /// Both of the above together.
    pub(crate) mfu_times_utilisation: Option<f64>,
    /// Bytes that all members sent under QUIC, over the tokens trained.
    pub(crate) wire_bytes_per_token: f64,
}

impl Sums {
    /// Adds a step.
    pub(crate) fn add(&mut self, summary: &StepSummary) {
        self.steps += 1;
        self.tokens += summary.tokens;
        self.wall = self.wall.saturating_add(summary.wall);
        self.outside = self.outside.saturating_add(summary.outside);
        self.wire_bytes += summary.reports.iter().map(|(_, report)| report.wire_bytes).sum::<u64>();
    }

    /// Works out the figures; nothing where nothing was trained.
    pub(crate) fn figures(&self, measure: Measure) -> Option<Figures> {
        let wall = self.wall.as_secs_f64();
        let training = wall - self.outside.as_secs_f64();
        if self.tokens == 0 || training <= 0.0 {
            return None;
        }
        let tokens = self.tokens as f64;
        let utilisation = training / wall;
        let Measure { flops_per_token, peak_flops } = measure;
        let known = peak_flops > 0.0 && flops_per_token > 0.0;
        let mfu = known.then(|| tokens * flops_per_token / training / peak_flops);
        Some(Figures {
            tokens_per_second: tokens / wall,
            mfu,
            utilisation,
            mfu_times_utilisation: mfu.map(|mfu| mfu * utilisation),
            wire_bytes_per_token: self.wire_bytes as f64 / tokens,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |share: Option<f64>| share.map_or("unknown".to_owned(), percent);
        write!(
            f,
            "{} tokens/s, MFU {} x utilisation {} = {}, {} B/token",
            count(self.tokens_per_second.round() as u64),
            known(self.mfu),
            percent(self.utilisation),
            known(self.mfu_times_utilisation),
            count(self.wire_bytes_per_token.round() as u64),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trestle_protocol::ids::{InnerStep, ReplicaId, StageId};
    use trestle_protocol::message::StepReport;
    use trestle_protocol::plan::Place;

    fn step(tokens: u64, wall: Span, outside: Span) -> StepSummary {
        let place = |stage| Place { stage: StageId(stage), replica: ReplicaId(0) };
        let report = StepReport { wire_bytes: 1_000, ..StepReport::default() };
        let reports = vec![(place(0), report), (place(1), report)];
        StepSummary { step: InnerStep(0), loss: 1.0, tokens, wall, outside, reports }
    }

    #[test]
    fn mfu_counts_training_time_and_utilisation_is_apart() {
        let mut sums = Sums::default();
        sums.add(&step(1_000, Span::seconds(6), Span::seconds(2)));
        sums.add(&step(1_000, Span::seconds(4), Span::seconds(0)));
        let figures = sums.figures(Measure { flops_per_token: 2e6, peak_flops: 1e9 }).unwrap();
        assert_eq!(figures.tokens_per_second, 200.0);
        assert_eq!(figures.utilisation, 0.8);
        assert_eq!(figures.mfu, Some(0.5));
        assert_eq!(figures.mfu_times_utilisation, Some(0.4));
        assert_eq!(figures.wire_bytes_per_token, 2.0);
        assert_eq!(figures.to_string(), "200 tokens/s, MFU 50.0 % x utilisation 80.0 % = 40.0 %, 2 B/token");
    }

    #[test]
    fn without_a_peak_there_is_no_mfu_and_without_time_nothing() {
        let mut sums = Sums::default();
        assert_eq!(sums.figures(Measure::default()), None);
        sums.add(&step(10, Span::seconds(1), Span::seconds(0)));
        let figures = sums.figures(Measure { flops_per_token: 2e6, peak_flops: 0.0 }).unwrap();
        assert_eq!(
            figures.to_string(),
            "10 tokens/s, MFU unknown x utilisation 100.0 % = unknown, 200 B/token"
        );
    }
}
