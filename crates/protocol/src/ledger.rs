//! The ledger: each (microbatch, stage) is credited exactly once, on a receipt that its receiver signed.
//!
//! Owns the sums and the checks of receipts against the plan. Knows nothing of storage.

use crate::agenda::Agenda;
use crate::ids::{Digest, InnerStep, StageId};
use crate::index_set::IndexSet;
use crate::plan::Plan;
use crate::receipt::{Receipt, ReceiptError};
use alloc::vec::Vec;

/// The credits of a run since its start or last resume.
#[derive(Clone, Debug)]
pub struct Ledger {
    run: Digest,
    stages: Vec<IndexSet>,
    duplicates: u64,
}

impl Ledger {
    /// Opens the ledger at a step: what lies before is credited already.
    pub fn new(run: Digest, agenda: &Agenda, stages: u16, start: InnerStep) -> Self {
        let first = agenda.training_of(start).start;
        Self { run, stages: (0..stages).map(|_| IndexSet::starting_at(first)).collect(), duplicates: 0 }
    }

    /// Checks a receipt and credits what is new in it; returns which microbatches those are.
    ///
    /// The receiver of stage 0's work is stage 1, which takes its activations; of every other stage, the stage before,
    /// which takes its gradients. `leased_below` bounds the indices that can have been worked on.
    pub fn credit(
        &mut self,
        receipt: &Receipt,
        plan: &Plan,
        leased_below: u64,
    ) -> Result<Vec<u64>, ReceiptError> {
        receipt.verify(self.run)?;
        let statement = &receipt.statement;
        let stage = statement.stage;
        if plan.place_of(statement.worker).is_none_or(|place| place.stage != stage) {
            return Err(ReceiptError::NotHolder);
        }
        let receiver = StageId(if stage.0 == 0 { 1 } else { stage.0 - 1 });
        if plan.place_of(statement.by).is_none_or(|place| place.stage != receiver) {
            return Err(ReceiptError::NotReceiver);
        }
        if statement.microbatches.iter().any(|index| *index >= leased_below) {
            return Err(ReceiptError::NeverLeased);
        }
        Ok(self.add(stage, &statement.microbatches))
    }

    /// Credits work that the coordinator itself received: that of a pipeline of a single stage.
    pub fn credit_own(&mut self, index: u64) -> Vec<u64> {
        self.add(StageId(0), &[index])
    }

    fn add(&mut self, stage: StageId, indices: &[u64]) -> Vec<u64> {
        let Some(credited) = self.stages.get_mut(usize::from(stage.0)) else { return Vec::new() };
        let new: Vec<u64> = indices.iter().copied().filter(|index| credited.insert(*index)).collect();
        self.duplicates += (indices.len() - new.len()) as u64;
        new
    }

    /// Returns the microbatches credited for each stage.
    pub fn credited(&self) -> Vec<u64> {
        self.stages.iter().map(IndexSet::len).collect()
    }

    /// Returns how often work was receipted that was credited already.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PeerId, PlanNumber, ReplicaId};
    use crate::plan::{Member, Place};
    use crate::receipt::Statement;
    use crate::spec::tests::spec;
    use bytes::Bytes;
    use ed25519_dalek::SigningKey;

    const RUN: Digest = Digest([3; 32]);

    fn key(stage: u8) -> SigningKey {
        SigningKey::from_bytes(&[stage + 1; 32])
    }

    fn id(stage: u8) -> PeerId {
        PeerId(key(stage).verifying_key().to_bytes())
    }

    fn plan() -> Plan {
        let member = |stage: u8| Member {
            peer: id(stage),
            place: Place { stage: StageId(u16::from(stage)), replica: ReplicaId(0) },
            address: Bytes::new(),
        };
        Plan { number: PlanNumber(1), coordinator: id(9), members: (0..3).map(member).collect() }
    }

    fn receipt(stage: u16, worker: u8, by: u8, microbatches: &[u64]) -> Receipt {
        let statement = Statement {
            run: RUN,
            stage: StageId(stage),
            worker: id(worker),
            by: id(by),
            microbatches: microbatches.to_vec(),
        };
        Receipt::sign(statement, &key(by))
    }

    #[test]
    fn work_is_credited_once_and_only_on_its_receivers_word() {
        let mut ledger = Ledger::new(RUN, &Agenda::new(&spec()), 3, InnerStep(0));
        let plan = plan();
        let mut credit = |r: Receipt| ledger.credit(&r, &plan, 4);
        assert_eq!(credit(receipt(1, 1, 0, &[0, 1])), Ok(alloc::vec![0, 1]));
        assert_eq!(credit(receipt(1, 1, 0, &[1, 2, 2])), Ok(alloc::vec![2]));
        assert_eq!(credit(receipt(0, 0, 1, &[0])), Ok(alloc::vec![0]));
        assert_eq!(credit(receipt(1, 1, 2, &[3])), Err(ReceiptError::NotReceiver));
        assert_eq!(credit(receipt(1, 2, 0, &[3])), Err(ReceiptError::NotHolder));
        assert_eq!(credit(receipt(1, 1, 0, &[4])), Err(ReceiptError::NeverLeased));
        assert_eq!(credit(receipt(7, 1, 0, &[0])), Err(ReceiptError::NotHolder));
        assert_eq!((ledger.credited(), ledger.duplicates()), (alloc::vec![1, 3, 0], 2));
    }
}
