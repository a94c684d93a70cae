//! When a replica takes an optimizer step.
//!
//! Owns that gate: what falls to the replica is in the sum, or will not come any more. Knows nothing of order or queues.

use crate::agenda::Exchanges;
use crate::ids::{InnerStep, MicrobatchId, OuterStep, Split};
use crate::pipeline::{Busy, Pipeline, Task};
use crate::port::Duty;

impl Pipeline {
    /// Returns whether as much is in the sum as falls to this replica in the present step.
    pub(super) fn worked(&self) -> bool {
        let step = InnerStep(self.version);
        let due = self.place_of(self.agenda.training_of(step).end);
        self.version < self.agenda.steps().0 && self.accounted.starting() + self.accounted.len() >= due
    }

    /// Returns whether everything of the present step is settled, so that nothing more of it will come.
    fn passed(&self) -> bool {
        let step = InnerStep(self.version);
        let settled = self.frontier.train_below >= self.agenda.training_of(step).end;
        settled && self.version < self.agenda.steps().0 && !self.holds_training_of(step)
    }

    fn holds_training_of(&self, step: InnerStep) -> bool {
        let of_step =
            |index: u64| self.agenda.step_of(MicrobatchId::train(index)).is_some_and(|at| at <= step);
        let waits = self.waiting.iter().any(|(order, kept)| {
            order.microbatch().split == Split::Train && order.step() <= step && kept.duty == Duty::Train
        });
        waits || self.kept.iter().any(|(index, kept)| kept.duty == Duty::Train && of_step(*index))
    }

    fn evaluated(&self) -> bool {
        let evaluation = self.agenda.evaluation_at(InnerStep(self.version));
        // Who holds the place only now has no part in the evaluations before.
        let mut places = self.held_out_place_of(evaluation.start)..self.held_out_place_of(evaluation.end);
        self.frontier.held_out_below >= evaluation.end || places.all(|place| self.evaluated.contains(place))
    }

    pub(super) fn step_due(&self) -> bool {
        let more =
            self.version < self.agenda.steps().0 && (self.worked() || self.passed()) && self.evaluated();
        more || self.agreement.wants_last_step(self.in_sum)
    }

    pub(super) fn start_step(&mut self) -> Task {
        if self.exchanges() == Exchanges::Gradients && !self.agreement.has_gradients() {
            let outer = OuterStep(self.version);
            self.busy = Some(Busy::Snapshot(outer));
            return Task::Snapshot { outer, microbatches: self.in_sum };
        }
        self.busy = Some(Busy::Step);
        // What was exchanged is a gradient for everyone, also for a replica that had no part in it.
        let microbatches = match self.exchanges() {
            Exchanges::Gradients => self.in_sum.max(1),
            Exchanges::PseudoGradients | Exchanges::Nothing => self.in_sum,
        };
        Task::Step { step: InnerStep(self.version), microbatches }
    }

    /// Settles an optimizer step; gives it, and how many microbatches were in its sum.
    pub fn stepped(&mut self) -> (InnerStep, u32) {
        assert!(matches!(self.busy.take(), Some(Busy::Step)), "the driver answers the step under way");
        let step = InnerStep(self.version);
        self.absolve(step);
        self.version += 1;
        let microbatches = core::mem::take(&mut self.in_sum);
        let border = InnerStep(self.version);
        self.agreement.stepped(&self.agenda, border);
        let saves = self.agenda.saves_at(border) && border < self.agenda.steps();
        if saves || self.drain == Some(border) {
            self.save_due = Some(border);
        }
        self.close_alone();
        (step, microbatches)
    }

    /// Waits no longer for what falls to this replica in a step that is over.
    fn absolve(&mut self, step: InnerStep) {
        let due = self.place_of(self.agenda.training_of(step).end);
        if self.worked() {
            return;
        }
        let missing: alloc::vec::Vec<u64> = self.accounted.missing_below(due).collect();
        for place in missing {
            self.accounted.insert(place);
        }
    }
}
