//! The route: which replica of a stage a microbatch falls to.
//!
//! Owns that choice, which every peer computes from the plan alone. Knows nothing of queues; a microbatch is not pinned by
//! it, any replica can take the work over.

use crate::agenda::Agenda;
use crate::homes::Homes;
use crate::ids::{InnerStep, MicrobatchId, PeerId, Split, StageId};
use crate::plan::{Member, Place, Plan};
use crate::work::Needs;
use alloc::vec::Vec;

/// Chooses the replica of `stage` for a microbatch among those that are `usable`.
///
/// It falls to its home replica, by index. Where that one is missing or not usable, the others take turns, so that its work
/// is spread over them and theirs stays where it was. Members that work at the microbatch's step come before those that are
/// about to leave or have just come. `None` where nobody is usable.
pub fn choose(
    plan: &Plan,
    agenda: &Agenda,
    stage: StageId,
    microbatch: MicrobatchId,
    usable: impl Fn(PeerId) -> bool,
) -> Option<PeerId> {
    let step = agenda.step_of(microbatch)?;
    let replica = match microbatch.split {
        Split::Train => Homes::of(plan, agenda, stage).home(microbatch.index)?,
        Split::HeldOut => agenda.home(microbatch),
    };
    let home = plan.holder(Place { stage, replica }).filter(|member| member.works_at(step));
    if let Some(home) = home.filter(|home| usable(home.peer)) {
        return Some(home.peer);
    }
    let entered = |member: &&Member| member.enters < NEVER && usable(member.peer);
    let mut others: Vec<&Member> = plan.replicas(stage).filter(entered).collect();
    if others.iter().any(|member| member.works_at(step)) {
        others.retain(|member| member.works_at(step));
    }
    let turn = microbatch.index.checked_div(agenda.replicas())?.checked_rem(others.len() as u64)?;
    others.get(turn as usize).map(|member| member.peer)
}

/// Chooses the replica of `stage` for a microbatch that passes again, for the sake of some stages.
///
/// At those it falls to its home as ever, which may have trained it. The others only pass it on as a ghost, and take turns: what
/// one lost replica had is all of one home, and would go through one replica of each stage, one after the other.
pub fn choose_again(
    plan: &Plan,
    agenda: &Agenda,
    stage: StageId,
    microbatch: MicrobatchId,
    needs: &Needs,
    usable: impl Fn(PeerId) -> bool,
) -> Option<PeerId> {
    if needs.includes(stage) {
        return choose(plan, agenda, stage, microbatch, usable);
    }
    let there = plan.replicas(stage).filter(|member| member.enters < NEVER && usable(member.peer));
    let there: Vec<PeerId> = there.map(|member| member.peer).collect();
    let turn = microbatch.index.checked_div(agenda.replicas())?.checked_rem(there.len() as u64)?;
    there.get(turn as usize).copied()
}

/// Stands for the step from which a member works that has not entered yet.
pub const NEVER: InnerStep = InnerStep(u64::MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PlanNumber, ReplicaId, SeatId};
    use crate::spec::tests::spec;
    use bytes::Bytes;

    fn plan() -> Plan {
        let member = |replica: u16| Member {
            peer: PeerId([replica as u8; 32]),
            place: Place { stage: StageId(1), replica: ReplicaId(replica) },
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

    fn agenda() -> Agenda {
        let mut spec = spec();
        spec.pipeline.replicas = 3;
        Agenda::new(&spec)
    }

    fn routes(plan: &Plan, gone: &[u8]) -> Vec<Option<u8>> {
        let usable = |peer: PeerId| !gone.contains(&peer.0[0]);
        let to = |index| choose(plan, &agenda(), StageId(1), MicrobatchId::train(index), usable);
        (0..9).map(|index| to(index).map(|peer| peer.0[0])).collect()
    }

    #[test]
    fn microbatches_take_turns_and_an_empty_stage_has_no_route() {
        assert_eq!(routes(&plan(), &[]), [0, 1, 2, 0, 1, 2, 0, 1, 2].map(Some));
        assert_eq!(choose(&plan(), &agenda(), StageId(2), MicrobatchId::train(0), |_| true), None);
        assert_eq!(routes(&plan(), &[0, 1, 2]), [None; 9]);
    }

    #[test]
    fn the_work_of_one_that_is_gone_is_spread_and_the_rest_stays() {
        let want = [0, 0, 2, 0, 2, 2, 0, 0, 2].map(Some);
        assert_eq!(routes(&plan(), &[1]), want);
        let mut without = plan();
        without.members.remove(1);
        assert_eq!(routes(&without, &[]), want, "whether the plan says so or not");
    }

    #[test]
    fn what_passes_again_takes_turns_where_it_is_only_passed_on() {
        let again = |index, needs: &Needs| {
            let to =
                choose_again(&plan(), &agenda(), StageId(1), MicrobatchId::train(index), needs, |_| true);
            to.map(|peer| peer.0[0])
        };
        let elsewhere = Needs::Only([StageId(0)].into());
        // All of these are of home 0.
        assert_eq!([0, 3, 6, 9].map(|index| again(index, &elsewhere)), [0, 1, 2, 0].map(Some));
        let here = Needs::Only([StageId(1)].into());
        assert_eq!([0, 3, 6].map(|index| again(index, &here)), [Some(0); 3]);
    }

    #[test]
    fn nothing_falls_to_one_that_has_not_entered_or_is_leaving() {
        let mut plan = plan();
        plan.members[1].enters = NEVER;
        assert_eq!(routes(&plan, &[])[1], Some(0));
        plan.members[1].enters = InnerStep(0);
        plan.members[1].until = Some(InnerStep(0));
        assert_eq!(routes(&plan, &[])[1], Some(0));
        assert_eq!(routes(&plan, &[0, 2])[1], Some(1), "unless there is nobody else");
        plan.members[1].enters = NEVER;
        assert_eq!(routes(&plan, &[0, 2])[1], None);
    }
}
