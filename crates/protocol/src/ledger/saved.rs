//! The last durable border, and whose work its checkpoints have.
//!
//! Owns what each commit left out. Knows nothing of credit.

use crate::ids::{InnerStep, SeatId};
use alloc::collections::{BTreeMap, BTreeSet};
use serde::{Deserialize, Serialize};

/// What is durable.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Saved {
    /// The border.
    step: InnerStep,
    /// The last border at or before it at which the replicas of a stage agreed.
    agreed: InnerStep,
    /// The seats whose checkpoints are part of it.
    seats: BTreeSet<SeatId>,
    /// Of each seat that a commit since then left out, by that commit's border: the step below which its work was committed before.
    missed: BTreeMap<(SeatId, InnerStep), InnerStep>,
}

impl Saved {
    /// Notes that a commit left a seat out, of whose work the commits before it hold what it trained below a step.
    pub(super) fn left_out(&mut self, border: InnerStep, seat: SeatId, below: InnerStep) {
        self.missed.insert((seat, border), below);
    }

    /// Notes that a commit holds a seat's contribution: at the end another commit of the same border may have left it out.
    pub(super) fn took_part(&mut self, border: InnerStep, seat: SeatId) {
        self.missed.remove(&(seat, border));
    }

    /// Goes over to a later border.
    pub(super) fn go_on(&mut self, step: InnerStep, agreed: InnerStep, seats: BTreeSet<SeatId>) {
        (self.step, self.agreed, self.seats) = (step, agreed, seats);
        self.missed.retain(|(_, border), _| *border >= agreed);
    }

    /// Forgets whom commits left out: all go back to what is durable.
    pub(super) fn forget_commits(&mut self) {
        self.missed.clear();
    }

    /// Returns whether committed work is in every checkpoint of its stage: its commit came at the border they agree on, or before.
    pub(super) fn is_in_all(&self, seat: SeatId, step: InnerStep) -> bool {
        step < self.missed.get(&(seat, self.agreed)).copied().unwrap_or(self.agreed)
    }

    /// Returns whether work is in the checkpoint of who trained it.
    pub(super) fn is_in_own(&self, seat: SeatId, step: InnerStep) -> bool {
        step < self.step && self.seats.contains(&seat)
    }
}
