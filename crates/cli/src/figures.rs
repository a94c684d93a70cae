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
    /// Of all members together, from here on.
    members_wall: Span,
    compute: Span,
    serialise: Span,
    sync: Span,
    lost: Span,
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
    /// Where the members' time went.
    pub(crate) split: Split,
}

/// Where the time of the members went, as shares of it; they add up to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Split {
    /// Forward, backward and optimizer, whose results count.
    pub(crate) compute: f64,
    /// Nothing to do: the others' computing, and what is on its way.
    pub(crate) wait: f64,
    /// Tensors turned into messages and back.
    pub(crate) transfer: f64,
    /// Standing still for an outer step: snapshot, cut-over, and waiting for the decision.
    pub(crate) sync: f64,
    /// Computing whose results were thrown away.
    pub(crate) lost: f64,
}

impl Sums {
    /// Adds a step.
    pub(crate) fn add(&mut self, summary: &StepSummary) {
        self.steps += 1;
        self.tokens += summary.tokens;
        self.wall = self.wall.saturating_add(summary.wall);
        let mut standing = Span(0);
        for (_, report) in &summary.reports {
            self.wire_bytes += report.wire_bytes;
            self.members_wall = self.members_wall.saturating_add(report.wall);
            self.compute = self.compute.saturating_add(report.compute);
            self.serialise = self.serialise.saturating_add(report.serialise);
            self.sync = self.sync.saturating_add(report.sync);
            self.lost = self.lost.saturating_add(report.lost);
            standing = standing.saturating_add(report.sync);
        }
        // Whoever stands still for an outer step does not train: utilisation counts the mean of the members.
        let standing = Span(standing.0 / (summary.reports.len() as u64).max(1));
        let outside = summary.outside.saturating_add(standing);
        self.outside = self.outside.saturating_add(Span(outside.0.min(summary.wall.0)));
    }

    fn split(&self) -> Split {
        let wall = self.members_wall.as_secs_f64();
        let share = |part: Span| if wall > 0.0 { (part.as_secs_f64() / wall).min(1.0) } else { 0.0 };
        let (transfer, sync, lost) = (share(self.serialise), share(self.sync), share(self.lost));
        let compute = (share(self.compute) - transfer - lost).max(0.0);
        Split { compute, wait: (1.0 - compute - transfer - sync - lost).max(0.0), transfer, sync, lost }
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
            split: self.split(),
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
        )?;
        let Split { compute, wait, transfer, sync, lost } = self.split;
        let parts =
            [("compute", compute), ("wait", wait), ("transfer", transfer), ("sync", sync), ("lost", lost)];
        if parts.iter().any(|(_, share)| *share > 0.0) {
            let parts = parts.map(|(part, share)| format!("{part} {}", percent(share)));
            write!(f, "; {}", parts.join(", "))?;
        }
        Ok(())
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
        let words = figures.to_string();
        assert!(
            words.starts_with("200 tokens/s, MFU 50.0 % x utilisation 80.0 % = 40.0 %, 2 B/token; "),
            "{words}"
        );
    }

    #[test]
    fn the_time_of_the_members_is_split_without_rest() {
        let report = StepReport {
            wall: Span::seconds(10),
            compute: Span::seconds(7),
            serialise: Span::seconds(1),
            sync: Span::seconds(2),
            ..StepReport::default()
        };
        let place = Place { stage: StageId(0), replica: ReplicaId(0) };
        let mut sums = Sums::default();
        let mut summary = step(10, Span::seconds(10), Span::seconds(0));
        summary.reports = vec![(place, report)];
        sums.add(&summary);
        let figures = sums.figures(Measure::default()).unwrap();
        assert_eq!(figures.utilisation, 0.8, "standing still for an outer step is not training");
        let words = figures.to_string();
        let split = "; compute 60.0 %, wait 10.0 %, transfer 10.0 %, sync 20.0 %, lost 0.0 %";
        assert!(words.ends_with(split), "{words}");
    }

    #[test]
    fn without_a_peak_there_is_no_mfu_and_without_time_nothing() {
        let mut sums = Sums::default();
        assert_eq!(sums.figures(Measure::default()), None);
        sums.add(&step(10, Span::seconds(1), Span::seconds(0)));
        let figures = sums.figures(Measure { flops_per_token: 2e6, peak_flops: 0.0 }).unwrap();
        let words = figures.to_string();
        let start = "10 tokens/s, MFU unknown x utilisation 100.0 % = unknown, 200 B/token; ";
        assert!(words.starts_with(start), "{words}");
    }
}
