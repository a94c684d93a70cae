//! Homes: to which replica of a stage each training microbatch falls.
//!
//! Owns that arithmetic, for the turns of a plan. Knows nothing of who holds a place.

use crate::agenda::Agenda;
use crate::ids::{InnerStep, ReplicaId, StageId};
use crate::plan::Plan;
use alloc::vec;
use alloc::vec::Vec;

/// The turns of a stage's replicas over the whole run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Homes {
    /// From which index on which pattern holds; the first from 0.
    parts: Vec<(u64, Vec<ReplicaId>)>,
}

impl Homes {
    /// Derives them from a plan: equal turns, until the plan says otherwise.
    pub fn of(plan: &Plan, agenda: &Agenda, stage: StageId) -> Self {
        let mut homes = Self::equal(agenda);
        for turns in plan.turns.iter().filter(|turns| turns.stage == stage && !turns.pattern.is_empty()) {
            homes.parts.push((agenda.training_of(turns.from).start, turns.pattern.clone()));
        }
        homes
    }

    /// Gives each replica equal turns.
    pub fn equal(agenda: &Agenda) -> Self {
        Self { parts: vec![(0, (0..agenda.replicas() as u16).map(ReplicaId).collect())] }
    }

    /// Returns the replica that an index falls to.
    pub fn home(&self, index: u64) -> Option<ReplicaId> {
        let (_, pattern) = self.parts.iter().rev().find(|(first, _)| *first <= index)?;
        pattern.get(index.checked_rem(pattern.len() as u64)? as usize).copied()
    }

    /// Returns how many indices below `end` fall to a replica.
    pub fn share_below(&self, end: u64, replica: ReplicaId) -> u64 {
        let ends = self.parts.iter().skip(1).map(|(first, _)| *first).chain([u64::MAX]);
        let parts = self.parts.iter().zip(ends);
        let share = |((first, pattern), until): (&(u64, Vec<ReplicaId>), u64)| {
            let until = until.min(end);
            if until <= *first { 0 } else { count(pattern, until, replica) - count(pattern, *first, replica) }
        };
        parts.map(share).sum()
    }

    /// Returns the pattern that holds at a step.
    pub fn pattern_at(&self, agenda: &Agenda, step: InnerStep) -> &[ReplicaId] {
        let index = agenda.training_of(step).start;
        self.parts.iter().rev().find(|(first, _)| *first <= index).map_or(&[], |(_, pattern)| pattern)
    }
}

/// Counts the turns of a replica below an index, if a pattern held from 0.
fn count(pattern: &[ReplicaId], end: u64, replica: ReplicaId) -> u64 {
    let length = pattern.len() as u64;
    let (rounds, rest) = (end.checked_div(length).unwrap_or(0), end.checked_rem(length).unwrap_or(0));
    let of = |turns: &[ReplicaId]| turns.iter().filter(|turn| **turn == replica).count() as u64;
    rounds * of(pattern) + of(&pattern[..rest as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PeerId, PlanNumber};
    use crate::plan::Turns;
    use crate::spec::tests::spec;

    #[test]
    fn shares_are_what_counting_gives_whatever_the_turns() {
        let mut spec = spec();
        spec.pipeline.replicas = 3;
        spec.training.steps = 9;
        let agenda = Agenda::new(&spec);
        let turns = |from, pattern: &[u16]| Turns {
            stage: StageId(1),
            from: InnerStep(from),
            pattern: pattern.iter().copied().map(ReplicaId).collect(),
        };
        let other = Turns { stage: StageId(0), ..turns(0, &[2]) };
        let plan = Plan {
            number: PlanNumber(1),
            coordinator: PeerId([0; 32]),
            members: Vec::new(),
            turns: vec![turns(2, &[2, 1, 2, 0, 2]), other, turns(5, &[1, 0])],
        };
        let homes = Homes::of(&plan, &agenda, StageId(1));
        let mut counted = [0; 3];
        for index in 0..agenda.train_microbatches() {
            for replica in 0..3 {
                assert_eq!(
                    homes.share_below(index, ReplicaId(replica)),
                    counted[usize::from(replica)],
                    "{index}"
                );
            }
            let home = homes.home(index).expect("somebody");
            counted[usize::from(home.0)] += 1;
            if index < agenda.training_of(InnerStep(2)).start {
                assert_eq!(home, ReplicaId((index % 3) as u16));
            }
        }
        assert!(counted[2] > 0 && counted.iter().sum::<u64>() == agenda.train_microbatches());
        assert_eq!(homes.pattern_at(&agenda, InnerStep(6)), [1, 0].map(ReplicaId));
    }
}
