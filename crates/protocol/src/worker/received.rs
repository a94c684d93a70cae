//! Work that others have done for this place, until receipts are signed for it: what is used, and answers that came when another
//! was used, so that the ledger counts who did the work a second time.
//!
//! Owns who may still answer, and the signing. Knows nothing of how an answer is used.

use crate::ids::{PeerId, SeatId, StageId};
use crate::receipt::{RECEIPT_MICROBATCHES_MAX, Receipt, Seals, Statement};
use crate::work::Trained;
use crate::worker::identity::Identity;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Answers that may still come; of more than that, those of the earliest microbatches are forgotten.
const AWAITED_MAX: usize = 4096;

type Work = BTreeMap<(StageId, PeerId, SeatId), Vec<Trained>>;

/// What was received since receipts were last signed.
#[derive(Debug, Default)]
pub(super) struct Received {
    used: Work,
    late: Work,
    /// Who was asked for a microbatch and may answer though nobody waits for it.
    awaited: BTreeSet<(u64, PeerId)>,
}

impl Received {
    /// Notes work that is used.
    pub(super) fn use_of(&mut self, stage: StageId, (by, seat): (PeerId, SeatId), trained: Trained) {
        self.used.entry((stage, by, seat)).or_default().push(trained);
    }

    /// Notes work that came too late to be used.
    pub(super) fn late(&mut self, stage: StageId, (by, seat): (PeerId, SeatId), trained: Trained) {
        self.late.entry((stage, by, seat)).or_default().push(trained);
    }

    /// Hears that nothing more is waited for of those who were asked for a microbatch; one of them may have answered.
    pub(super) fn over(&mut self, index: u64, asked: &[PeerId], answer: Option<PeerId>) {
        let others = asked.iter().filter(|peer| Some(**peer) != answer);
        self.awaited.extend(others.map(|peer| (index, *peer)));
        while self.awaited.len() > AWAITED_MAX {
            self.awaited.pop_first();
        }
    }

    /// Returns, once, whether a peer still owed an answer that nobody waits for.
    pub(super) fn owed(&mut self, index: u64, by: PeerId) -> bool {
        self.awaited.remove(&(index, by))
    }

    /// Signs for all of it; who was first comes first, since that is credited.
    pub(super) fn sign(&mut self, who: &Identity) -> Vec<Receipt> {
        let (used, late) = (core::mem::take(&mut self.used), core::mem::take(&mut self.late));
        let mut receipts = Vec::new();
        for ((stage, worker, seat), work) in used.into_iter().chain(late) {
            for work in work.chunks(RECEIPT_MICROBATCHES_MAX) {
                let microbatches = work.to_vec();
                let statement = Statement { run: who.run, stage, worker, seat, by: who.me, microbatches };
                receipts.push(match who.seals {
                    Seals::Signed => Receipt::sign(statement, &who.key),
                    Seals::Hashed => Receipt::hash(statement),
                });
            }
        }
        receipts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_those_who_were_asked_may_answer_once() {
        let peers = [1, 2, 3].map(|peer| PeerId([peer; 32]));
        let mut late = Received::default();
        late.over(5, &peers, Some(peers[1]));
        assert!(late.owed(5, peers[0]) && !late.owed(5, peers[0]), "once");
        assert!(!late.owed(5, peers[1]), "its answer is used");
        assert!(!late.owed(6, peers[2]), "of another microbatch");
        (6..6 + AWAITED_MAX as u64).for_each(|index| late.over(index, &peers[..2], Some(peers[1])));
        assert!(!late.owed(5, peers[2]), "too many have come since");
    }
}
