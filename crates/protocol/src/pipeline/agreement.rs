//! Where a replica stands with the others of its stage, from one border to the next, and at the end of the run.
//!
//! Owns that state. Knows nothing of the queue.

use crate::agenda::{Agenda, Exchanges};
use crate::ids::{InnerStep, OuterStep};

/// Where the stage stands with the other replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exchange {
    /// In no exchange.
    None,
    /// The exchange goes on; computing goes on until the cut-over.
    Open { outer: OuterStep, cutover: u64 },
    /// It is committed; at the cut-over the stage goes over to it.
    Committed { outer: OuterStep, cutover: u64 },
}

/// How far the end of the run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    /// Work may still come.
    Not,
    /// None comes any more, and the replicas agree for the last time.
    Asked { outer: Option<OuterStep> },
    /// The weights are final, unless a stage loses what was agreed on last and all agree once more.
    Closed { outer: Option<OuterStep> },
}

/// Where a replica stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreement {
    pub(super) exchange: Exchange,
    pub(super) snapshot_due: Option<OuterStep>,
    /// Whether the gradient of the present step is already the mean of all replicas.
    pub(super) gradients_agreed: bool,
    pub(super) closing: Closing,
}

impl Agreement {
    pub(super) fn new() -> Self {
        let (exchange, closing) = (Exchange::None, Closing::Not);
        Self { exchange, snapshot_due: None, gradients_agreed: false, closing }
    }

    pub(super) fn stepped(&mut self, agenda: &Agenda, border: InnerStep) {
        self.gradients_agreed = false;
        // At the end everyone waits until all work is credited, since what is lost then has no later step to be in.
        if agenda.exchanges() == Exchanges::PseudoGradients && border < agenda.steps() {
            self.snapshot_due = agenda.outer_at(border);
        }
    }

    /// Waits at a border for what is agreed on there, in place of training on meanwhile.
    pub(super) fn go_over_at(&mut self, border: InnerStep) {
        if let Exchange::Open { cutover, .. } | Exchange::Committed { cutover, .. } = &mut self.exchange {
            *cutover = border.0.min(*cutover);
        }
    }

    pub(super) fn has_gradients(&self) -> bool {
        self.gradients_agreed
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.closing, Closing::Closed { .. })
    }

    /// Hears that none comes any more; returns whether that is news.
    pub(super) fn close(&mut self, outer: Option<OuterStep>) -> bool {
        if let Closing::Closed { outer: closed } = self.closing
            && outer <= closed
        {
            return false;
        }
        self.closing = Closing::Asked { outer };
        true
    }

    /// Returns whether work that was done again after the last step waits for a step of its own.
    pub(super) fn wants_last_step(&self, in_sum: u32) -> bool {
        matches!(self.closing, Closing::Asked { .. }) && in_sum > 0
    }
}
