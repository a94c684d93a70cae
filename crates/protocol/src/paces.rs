//! Paces: how fast each member computes, from its reports.
//!
//! Owns the moving averages, and what follows from them: the load of each stage, and the turns of its replicas. Decides
//! nothing, and knows nothing of plans that are to come.

use crate::ids::{PeerId, ReplicaId, StageId};
use crate::message::StepReport;
use crate::plan::{Member, Plan};
use crate::rebalance::StageLoad;
use crate::rebalance::turns::turns;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// A new step weighs one part in so many: a device that throttles is noticed within some ten steps.
const SMOOTHING: u64 = 8;

/// Microbatches that must have been measured before a pace counts.
const MEASURED_MIN: u64 = 64;

/// The unit of work, so that a part of a microbatch still counts when old ones fade.
const WORK_ONE: u64 = 1 << 20;

/// Turns of a pattern at most, for each replica: speeds of 1:7 are still told apart.
const TURNS_PER_REPLICA: usize = 4;

/// How much faster than under the present turns a stage must be for other ones: less is noise.
const GAIN: (u64, u64) = (5, 4);

/// Work done, and the time it took, both fading.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    work: u64,
    micros: u64,
    measured: u64,
}

/// The paces of all members.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paces(BTreeMap<PeerId, Pace>);

impl Paces {
    /// Takes a member's report of a step.
    pub(crate) fn learn(&mut self, peer: PeerId, report: &StepReport) {
        if report.microbatches == 0 || report.compute.0 == 0 {
            return;
        }
        let pace = self.0.entry(peer).or_default();
        let fade = |value: u64| value - value / SMOOTHING;
        pace.work = fade(pace.work).saturating_add(u64::from(report.microbatches) * WORK_ONE);
        pace.micros = fade(pace.micros).saturating_add(report.compute.0);
        pace.measured = pace.measured.saturating_add(u64::from(report.microbatches));
    }

    /// Forgets who is no member any longer.
    pub(crate) fn retain(&mut self, plan: &Plan) {
        self.0.retain(|peer, _| plan.place_of(*peer).is_some());
    }

    /// Returns a member's speed in microbatches an hour, once it was measured.
    pub(crate) fn speed(&self, peer: PeerId) -> Option<u64> {
        let pace = self.0.get(&peer).filter(|pace| pace.measured >= MEASURED_MIN)?;
        let hour = 3_600_000_000_u128;
        let whole = u128::from(WORK_ONE) * u128::from(pace.micros.max(1));
        let speed = (u128::from(pace.work) * hour + whole / 2) / whole;
        Some(u64::try_from(speed).unwrap_or(u64::MAX).max(1))
    }

    /// Lists the stages with their members' speeds; one that was not measured counts as the mean of those that were.
    pub(crate) fn loads(&self, plan: &Plan, stages: u16) -> Vec<StageLoad> {
        let known: Vec<u64> = plan.members.iter().filter_map(|member| self.speed(member.peer)).collect();
        let mean = known.iter().sum::<u64>().checked_div(known.len() as u64).unwrap_or(1);
        let load = |stage| {
            let speed = |member: &Member| (member.peer, self.speed(member.peer).unwrap_or(mean));
            StageLoad { stage, members: plan.replicas(stage).map(speed).collect() }
        };
        (0..stages).map(StageId).map(load).collect()
    }

    /// Returns better turns for the replicas of a stage than `present`, if there are any: all are measured, and the stage
    /// would be faster by [`GAIN`].
    pub(crate) fn better_turns(
        &self,
        plan: &Plan,
        stage: StageId,
        present: &[ReplicaId],
    ) -> Option<Vec<ReplicaId>> {
        let weigh = |member: &Member| Some((member.place.replica, self.speed(member.peer)?));
        let weights: Vec<(ReplicaId, u64)> = plan.replicas(stage).map(weigh).collect::<Option<_>>()?;
        let all = |pattern: &[ReplicaId]| pattern.iter().all(|turn| weights.iter().any(|(of, _)| of == turn));
        if weights.len() < 2 || !all(present) {
            return None;
        }
        // Of patterns that are as fast, the shortest.
        let lengths = weights.len()..=weights.len() * TURNS_PER_REPLICA;
        let patterns = lengths.rev().map(|length| turns(&weights, length));
        let better = patterns.max_by_key(|pattern| pace(&weights, pattern))?;
        let faster =
            pace(&weights, &better).saturating_mul(GAIN.1) >= pace(&weights, present).saturating_mul(GAIN.0);
        faster.then_some(better)
    }
}

/// Returns how many microbatches an hour a stage does under a pattern: the replica with the most turns for its speed sets it.
fn pace(weights: &[(ReplicaId, u64)], pattern: &[ReplicaId]) -> u64 {
    let length = pattern.len() as u64;
    let one = |(replica, speed): &(ReplicaId, u64)| {
        let turns = pattern.iter().filter(|turn| *turn == replica).count() as u64;
        speed.saturating_mul(length).checked_div(turns)
    };
    weights.iter().filter_map(one).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{InnerStep, PlanNumber, SeatId};
    use crate::plan::Place;
    use crate::time::Span;
    use bytes::Bytes;

    fn plan() -> Plan {
        let member = |replica: u16| Member {
            peer: PeerId([replica as u8; 32]),
            place: Place { stage: StageId(0), replica: ReplicaId(replica) },
            address: Bytes::new(),
            seat: SeatId(u32::from(replica)),
            enters: InnerStep(0),
            until: None,
        };
        Plan {
            number: PlanNumber(1),
            coordinator: PeerId([9; 32]),
            members: (0..3).map(member).collect(),
            turns: Vec::new(),
        }
    }

    fn paces(millis: [u64; 3]) -> Paces {
        let mut paces = Paces::default();
        for _ in 0..16 {
            for (replica, millis) in (0..).zip(millis) {
                let report = StepReport {
                    microbatches: 4,
                    compute: Span::millis(4 * millis),
                    ..StepReport::default()
                };
                paces.learn(PeerId([replica; 32]), &report);
            }
        }
        paces
    }

    const EQUAL: [ReplicaId; 3] = [ReplicaId(0), ReplicaId(1), ReplicaId(2)];

    #[test]
    fn speeds_are_measured_and_one_that_is_not_counts_as_the_mean() {
        let mut paces = paces([1_000, 500, 250]);
        let speeds = |paces: &Paces| -> Vec<u64> {
            paces.loads(&plan(), 1)[0].members.iter().map(|(_, speed)| *speed).collect()
        };
        assert_eq!(speeds(&paces), [3_600, 7_200, 14_400]);
        paces.0.remove(&PeerId([2; 32]));
        assert_eq!(speeds(&paces), [3_600, 7_200, 5_400]);
    }

    #[test]
    fn replicas_of_different_speed_take_turns_in_proportion_and_noise_changes_nothing() {
        let better = paces([400, 200, 100]).better_turns(&plan(), StageId(0), &EQUAL).expect("7 / 3 as fast");
        let count = |replica| better.iter().filter(|turn| **turn == ReplicaId(replica)).count();
        assert_eq!(
            [count(0), count(1), count(2)],
            [1, 2, 4],
            "of all patterns up to 12 turns the one that fits"
        );
        assert_eq!(paces([400, 200, 100]).better_turns(&plan(), StageId(0), &better), None, "once");
        assert_eq!(paces([110, 100, 90]).better_turns(&plan(), StageId(0), &EQUAL), None);
        assert!(paces([100, 100, 100]).better_turns(&plan(), StageId(0), &better).is_some(), "and back");
    }

    /// A pattern of eight turns for two replicas would have them at 3:5.
    #[test]
    fn one_of_two_replicas_that_is_twice_as_fast_takes_two_turns_of_three() {
        let mut plan = plan();
        plan.members.truncate(2);
        let equal = &EQUAL[..2];
        let fast = ReplicaId(1);
        let better = paces([200, 100, 0]).better_turns(&plan, StageId(0), equal).expect("half as fast again");
        assert_eq!(better, [fast, ReplicaId(0), fast]);
        assert_eq!(paces([130, 100, 0]).better_turns(&plan, StageId(0), equal), None, "noise");
    }

    #[test]
    fn turns_wait_until_everyone_is_measured() {
        let mut paces = paces([400, 200, 100]);
        paces.0.remove(&PeerId([1; 32]));
        assert_eq!(paces.better_turns(&plan(), StageId(0), &EQUAL), None);
    }
}
