//! A group: the replicas of one stage that take part in its outer steps.
//!
//! Owns who they are. Knows nothing of what they exchange.

use crate::ids::{PeerId, ReplicaId, StageId};
use crate::plan::Plan;
use crate::sync::say::Begin;
use crate::sync::shares::is_cut;
use alloc::collections::BTreeMap;

/// The replicas of a stage, in replica order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Who each replica is.
    pub members: BTreeMap<ReplicaId, PeerId>,
    /// Shards that a cut may have: it was made for as many replicas as there were, and stays when one is lost.
    pub shards_max: usize,
}

impl Group {
    /// Takes a stage's replicas from a plan in which every place is taken.
    pub fn of(plan: &Plan, stage: StageId) -> Self {
        let members: BTreeMap<ReplicaId, PeerId> =
            plan.replicas(stage).map(|member| (member.place.replica, member.peer)).collect();
        Self { shards_max: members.len(), members }
    }

    /// Says how many places the stage has, of which some may be vacant.
    pub fn among(self, places: u16) -> Self {
        Self { shards_max: usize::from(places), ..self }
    }

    /// Returns which replica a peer is.
    pub fn replica_of(&self, peer: PeerId) -> Option<ReplicaId> {
        self.members.iter().find(|(_, member)| **member == peer).map(|(replica, _)| *replica)
    }

    /// Returns whether a round names only members, each in its order, and cuts the parameters without gap.
    pub fn admits(&self, begin: &Begin) -> bool {
        let known = |replica: &ReplicaId| self.members.contains_key(replica);
        let Begin { contributors, shares, reducers, .. } = begin;
        let weights = contributors.iter().try_fold(0_u64, |sum, (_, weight)| sum.checked_add(*weight));
        let reduced = |of: &[ReplicaId]| (1..=2).contains(&of.len()) && of.iter().all(known);
        contributors.iter().all(|(replica, weight)| known(replica) && *weight > 0)
            && contributors.is_sorted_by(|(a, _), (b, _)| a < b)
            && weights.is_some_and(|sum| sum > 0)
            && is_cut(shares, self.shards_max)
            && shares.len() == reducers.len()
            && reducers.iter().all(|of| reduced(of))
    }
}
