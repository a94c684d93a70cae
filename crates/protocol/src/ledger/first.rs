//! What the first stage's work still lacks: the word of the stage after it, or the return of the backward.
//!
//! Owns these halves until they meet. Knows nothing of credit.

use crate::ids::{InnerStep, SeatId};
use crate::work::Trained;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::ops::RangeInclusive;

/// The halves, by microbatch and seat.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct First {
    attested: BTreeSet<(u64, SeatId)>,
    returned: BTreeMap<(u64, SeatId), InnerStep>,
}

impl First {
    /// Notes the word of the stage after it.
    pub(super) fn attested(&mut self, index: u64, seat: SeatId) {
        self.attested.insert((index, seat));
    }

    /// Takes that word, if it was said.
    pub(super) fn take_attested(&mut self, index: u64, seat: SeatId) -> bool {
        self.attested.remove(&(index, seat))
    }

    /// Notes that a backward came back.
    pub(super) fn returned(&mut self, seat: SeatId, trained: Trained) {
        self.returned.insert((trained.index, seat), trained.step);
    }

    /// Takes what came back to a seat.
    pub(super) fn take_returned(&mut self, index: u64, seat: SeatId) -> Option<Trained> {
        self.returned.remove(&(index, seat)).map(|step| Trained { index, step })
    }

    /// Returns the latest seat to which a microbatch came back.
    pub(super) fn returned_to(&self, index: u64) -> Option<SeatId> {
        self.returned.range(of(index)).next_back().map(|((_, seat), _)| *seat)
    }

    /// Forgets what was still to be heard of a microbatch, and gives the seats to which it came back.
    pub(super) fn credited(&mut self, index: u64) -> Vec<SeatId> {
        while let Some(known) = self.attested.range(of(index)).next().copied() {
            self.attested.remove(&known);
        }
        self.returned.extract_if(of(index), |_, _| true).map(|((_, seat), _)| seat).collect()
    }

    /// Forgets what a lost seat did, but for what came back to it in steps that commits hold: that is in the stage's weights.
    pub(super) fn lost(&mut self, seat: SeatId, committed_below: InnerStep) {
        self.attested.retain(|(_, by)| *by != seat);
        self.returned.retain(|(_, by), step| *by != seat || *step < committed_below);
    }
}

fn of(index: u64) -> RangeInclusive<(u64, SeatId)> {
    (index, SeatId(0))..=(index, SeatId(u32::MAX))
}
