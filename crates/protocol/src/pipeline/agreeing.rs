//! The part of the queue that agrees with the other replicas of the stage.
//!
//! Owns when a snapshot is due, when computing stands still for a decision, and when it goes over to what was agreed. Knows
//! nothing of what is exchanged.

use crate::agenda::Exchanges;
use crate::ids::{InnerStep, OuterStep};
use crate::pipeline::agreement::{Closing, Exchange};
use crate::pipeline::{Busy, Pipeline, Task};

impl Pipeline {
    /// Enters the open exchange at its border without having trained for it. At the end it waits for the close as all do: what is
    /// done again may fall to it before.
    pub fn enter(&mut self, outer: OuterStep) {
        if self.version < self.agenda.steps().0 {
            self.agreement.snapshot_due = Some(outer);
        }
    }

    /// Returns whether computing stands still until the replicas have agreed.
    pub fn awaits_agreement(&self) -> bool {
        match self.agreement.exchange {
            Exchange::Open { cutover, .. } => self.version >= cutover,
            Exchange::None | Exchange::Committed { .. } => false,
        }
    }

    /// Hears that all work of the run is credited.
    pub fn close(&mut self, outer: Option<OuterStep>) {
        if self.agreement.close(outer) {
            self.close_alone();
        }
    }

    /// Closes where there is nothing to agree on.
    pub(super) fn close_alone(&mut self) {
        let alone = match self.exchanges() {
            Exchanges::Nothing | Exchanges::Gradients => true,
            Exchanges::PseudoGradients => {
                let agreed = matches!(self.agreement.closing, Closing::Asked { outer: None });
                agreed && self.agreement.exchange == Exchange::None
            }
        };
        let asked = matches!(self.agreement.closing, Closing::Asked { .. });
        if alone && asked && self.version >= self.agenda.steps().0 && self.in_sum == 0 {
            self.finish_closing();
        }
    }

    fn finish_closing(&mut self) {
        let outer = match self.agreement.closing {
            Closing::Asked { outer } | Closing::Closed { outer } => outer,
            Closing::Not => None,
        };
        self.agreement.closing = Closing::Closed { outer };
        self.save_due = Some(self.agenda.steps());
    }

    pub(super) fn start_exchange(&mut self) -> Option<Task> {
        if let Some(outer) = self.adoption_due() {
            self.busy = Some(Busy::Adopt);
            return Some(Task::Adopt { outer });
        }
        if let Closing::Asked { outer: Some(outer) } = self.agreement.closing
            && self.exchanges() == Exchanges::PseudoGradients
            && self.version >= self.agenda.steps().0
            && self.in_sum == 0
            && self.agreement.exchange == Exchange::None
        {
            self.agreement.snapshot_due = Some(outer);
        }
        let outer = self.agreement.snapshot_due.take()?;
        self.busy = Some(Busy::Snapshot(outer));
        Some(Task::Snapshot { outer, microbatches: self.in_sum })
    }

    fn adoption_due(&self) -> Option<OuterStep> {
        match self.agreement.exchange {
            Exchange::Committed { outer, cutover } if self.version >= cutover => Some(outer),
            Exchange::None | Exchange::Open { .. } | Exchange::Committed { .. } => None,
        }
    }

    /// Settles a snapshot: from here on the exchange is open, and computing goes on until the cut-over.
    pub fn snapshotted(&mut self) -> (OuterStep, InnerStep) {
        let Some(Busy::Snapshot(outer)) = self.busy.take() else {
            panic!("the driver answered a snapshot that was not under way");
        };
        let border = InnerStep(self.version);
        let waits = self.drain == Some(border) || border >= self.agenda.steps();
        let cutover = match self.exchanges() {
            Exchanges::PseudoGradients if !waits => self.agenda.cutover_of(border),
            Exchanges::PseudoGradients | Exchanges::Gradients | Exchanges::Nothing => border,
        };
        self.agreement.exchange = Exchange::Open { outer, cutover: cutover.0 };
        (outer, border)
    }

    /// Hears that the open exchange is committed.
    pub fn committed(&mut self) {
        if let Exchange::Open { outer, cutover } = self.agreement.exchange {
            self.agreement.exchange = Exchange::Committed { outer, cutover };
        }
    }

    /// Hears that the open exchange is called off: training goes on as it is, and at the end work may come again.
    pub fn restored(&mut self) {
        let restored = core::mem::replace(&mut self.agreement.exchange, Exchange::None);
        // All may have been told meanwhile to agree for the last time in the next one.
        let last = match (restored, self.agreement.closing) {
            (Exchange::Open { outer, .. }, Closing::Asked { outer: Some(last) }) => last <= outer,
            (Exchange::None | Exchange::Open { .. } | Exchange::Committed { .. }, _) => false,
        };
        if last {
            self.agreement.closing = Closing::Not;
        }
    }

    /// Settles going over to what was agreed.
    pub fn adopted(&mut self) {
        assert!(matches!(self.busy.take(), Some(Busy::Adopt)), "the driver answers the adoption under way");
        let adopted = core::mem::replace(&mut self.agreement.exchange, Exchange::None);
        let last = match (adopted, self.agreement.closing) {
            (Exchange::Committed { outer, .. }, Closing::Asked { outer: Some(last) }) => outer == last,
            (Exchange::None | Exchange::Open { .. } | Exchange::Committed { .. }, _) => false,
        };
        match self.exchanges() {
            Exchanges::Gradients => self.agreement.gradients_agreed = true,
            Exchanges::PseudoGradients if last => self.finish_closing(),
            Exchanges::PseudoGradients | Exchanges::Nothing => self.close_alone(),
        }
    }
}
