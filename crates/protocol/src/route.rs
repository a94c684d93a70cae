//! The route: which replica of the next stage gets a microbatch.
//!
//! Owns that choice. Knows nothing of queues; a microbatch is not pinned by it, any replica can take the work over.

use crate::ids::{MicrobatchId, PeerId, StageId};
use crate::plan::Plan;
use alloc::vec::Vec;

/// Chooses the replica of `stage` for a microbatch: its home replica, by index.
///
/// With one replica a stage there is one route. Every replica computes the same choice from the plan alone.
pub fn choose(plan: &Plan, stage: StageId, microbatch: MicrobatchId) -> Option<PeerId> {
    let replicas: Vec<PeerId> = plan.replicas(stage).map(|m| m.peer).collect();
    let home = microbatch.index.checked_rem(replicas.len() as u64)?;
    replicas.get(home as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PlanNumber, ReplicaId};
    use crate::plan::{Member, Place};
    use bytes::Bytes;

    #[test]
    fn microbatches_take_turns_and_an_empty_stage_has_no_route() {
        let member = |id: u8, replica: u16| Member {
            peer: PeerId([id; 32]),
            place: Place { stage: StageId(1), replica: ReplicaId(replica) },
            address: Bytes::new(),
        };
        let plan = Plan {
            number: PlanNumber(1),
            coordinator: PeerId([0; 32]),
            members: alloc::vec![member(5, 0), member(6, 1)],
        };
        let chosen = |index| choose(&plan, StageId(1), MicrobatchId::train(index));
        assert_eq!([chosen(0), chosen(1), chosen(2)].map(|p| p.unwrap().0[0]), [5, 6, 5]);
        assert_eq!(choose(&plan, StageId(2), MicrobatchId::train(0)), None);
    }
}
