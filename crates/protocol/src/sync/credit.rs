//! Credit: how many microbatches each replica's contribution stands for, counted from receipts that others signed.
//!
//! Owns the counts, by outer step. Knows nothing of receipts; who calls has checked them.

use crate::ids::{OuterStep, StageId};
use crate::plan::Place;
use alloc::collections::BTreeMap;

/// Microbatches credited to each place for the outer steps that are not yet decided.
#[derive(Clone, Debug, Default)]
pub struct Credit {
    counts: BTreeMap<(OuterStep, Place), u64>,
}

impl Credit {
    /// Counts a microbatch.
    pub fn add(&mut self, outer: OuterStep, place: Place) {
        *self.counts.entry((outer, place)).or_default() += 1;
    }

    /// Returns what a place has earned up to an outer step, since the last that was committed.
    pub fn of(&self, outer: OuterStep, place: Place) -> u64 {
        let until = self.counts.range(..=(outer, LAST));
        until.filter(|((_, at), _)| *at == place).map(|(_, count)| count).sum()
    }

    /// Forgets what a place has earned, whose holder is lost.
    pub fn forget(&mut self, place: Place) {
        self.counts.retain(|(_, at), _| *at != place);
    }

    /// Forgets what is behind a commit, of the places that contributed to it: of another it comes with a later one.
    pub fn committed(&mut self, outer: OuterStep, contributed: impl Fn(Place) -> bool) {
        self.counts.retain(|(at, place), _| *at > outer || !contributed(*place));
    }
}

const LAST: Place = Place { stage: StageId(u16::MAX), replica: crate::ids::ReplicaId(u16::MAX) };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ReplicaId;

    #[test]
    fn credit_of_a_restored_step_stays_for_the_next() {
        let at = |replica| Place { stage: StageId(1), replica: ReplicaId(replica) };
        let mut credit = Credit::default();
        credit.add(OuterStep(0), at(0));
        credit.add(OuterStep(1), at(0));
        credit.add(OuterStep(1), at(1));
        credit.add(OuterStep(2), at(0));
        assert_eq!((credit.of(OuterStep(1), at(0)), credit.of(OuterStep(1), at(1))), (2, 1));
        credit.committed(OuterStep(1), |place| place == at(0));
        assert_eq!(
            (credit.of(OuterStep(2), at(0)), credit.of(OuterStep(2), at(1))),
            (1, 1),
            "1 was left out"
        );
        credit.committed(OuterStep(1), |_| true);
        assert_eq!((credit.of(OuterStep(2), at(0)), credit.of(OuterStep(2), at(1))), (1, 0));
        credit.forget(at(0));
        assert_eq!(credit.of(OuterStep(2), at(0)), 0);
    }
}
