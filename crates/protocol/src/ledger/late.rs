//! Words of work that come when who did it has lost its seat.
//!
//! Owns what they are worth: what a commit holds is in the stage's weights whoever leaves, and would be there twice if it were
//! done again. Knows nothing of how a seat is lost.

use crate::ids::{InnerStep, PeerId, SeatId, StageId};
use crate::ledger::Ledger;
use crate::receipt::{ReceiptError, Statement};
use crate::work::Trained;

impl Ledger {
    /// Credits what a commit holds of a lost seat's work, and counts the rest as done in vain.
    ///
    /// # Errors
    /// The worker never had that seat, or has lost some of the work with it.
    pub(super) fn credit_late(&mut self, statement: &Statement) -> Result<(), ReceiptError> {
        let Statement { stage, seat, worker, .. } = *statement;
        let known = self.seats.get(&seat).filter(|of| of.peer == worker && of.stage == stage);
        let below = known.ok_or(ReceiptError::NotHolder)?.committed_below;
        let mut lost = false;
        for trained in &statement.microbatches {
            let page = self.pages.get(usize::from(stage.0));
            if page.and_then(|page| page.whose(trained.index)) == Some(seat) {
                continue;
            }
            if let Some(held) = self.held_of(stage, seat, *trained, below) {
                self.add(stage, seat, held);
            } else {
                lost = true;
                self.done_twice(stage, seat, trained.index);
            }
        }
        if lost { Err(ReceiptError::OldSeat) } else { Ok(()) }
    }

    /// Counts what came back to a peer at the first stage in a seat that it has lost since: others do it in its place. Who never had
    /// that seat has done nothing.
    pub fn returned_late(&mut self, worker: PeerId, seat: SeatId, index: u64) {
        let first = StageId(0);
        if self.seats.get(&seat).is_some_and(|had| had.peer == worker && had.stage == first) {
            self.done_twice(first, seat, index);
        }
    }

    /// Returns the work with its step, where that is below one; the step of the first stage's is known from its return.
    fn held_of(
        &mut self,
        stage: StageId,
        seat: SeatId,
        attested: Trained,
        below: InnerStep,
    ) -> Option<Trained> {
        let trained = match stage {
            StageId(0) => self.first.take_returned(attested.index, seat),
            StageId(_) => Some(attested),
        };
        trained.filter(|trained| trained.step < below)
    }
}
