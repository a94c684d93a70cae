//! What is said of a microbatch on its way: which stages are to train it, and which optimizer step has it.
//!
//! Owns the two values. Knows nothing of queues, routes or credit.

use crate::ids::{InnerStep, StageId};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Which stages a try of a microbatch is for. Each stage runs its forward and backward; only these add its gradient to their
/// sums, the others compute it as a *ghost*, because their part is credited already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Needs {
    /// Every stage.
    All,
    /// These stages, in ascending order: what they had trained was lost with a peer.
    Only(Vec<StageId>),
}

impl Needs {
    /// Returns whether a stage is to train it.
    pub fn includes(&self, stage: StageId) -> bool {
        match self {
            Needs::All => true,
            Needs::Only(stages) => stages.contains(&stage),
        }
    }

    /// Adds the stages of another try of the same microbatch.
    pub fn join(&mut self, other: &Needs) {
        match (&mut *self, other) {
            (Needs::All, _) => {}
            (_, Needs::All) => *self = Needs::All,
            (Needs::Only(ours), Needs::Only(theirs)) => {
                ours.extend(theirs);
                ours.sort_unstable();
                ours.dedup();
            }
        }
    }
}

/// A microbatch with the optimizer step of the worker that has its gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Trained {
    /// Index of the training microbatch.
    pub index: u64,
    /// The step whose sum it is in: it is part of any copy of the weights that has seen more steps.
    pub step: InnerStep,
}

/// How far the run is: all below is settled, so that nothing below will still come to a replica by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontier {
    /// Training indices.
    pub train_below: u64,
    /// Held-out indices.
    pub held_out_below: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn two_tries_need_what_either_needs() {
        let only = |stages: &[u16]| Needs::Only(stages.iter().copied().map(StageId).collect());
        let mut needs = only(&[1, 3]);
        needs.join(&only(&[3, 2]));
        assert_eq!(needs, Needs::Only(vec![StageId(1), StageId(2), StageId(3)]));
        assert!(needs.includes(StageId(2)) && !needs.includes(StageId(0)));
        needs.join(&Needs::All);
        assert!(needs.includes(StageId(0)));
    }
}
