//! The plan: which peer holds which stage, computed by a pure function, numbered, and never changed.
//!
//! Owns the assignment of peers to stages. Knows nothing of microbatches, and measures nobody.

use crate::ids::{InnerStep, PeerId, PlanNumber, ReplicaId, SeatId, StageId};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A peer's place in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The stage it holds.
    pub stage: StageId,
    /// Which of the stage's replicas it is.
    pub replica: ReplicaId,
}

/// A peer with its place and where it can be dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub peer: PeerId,
    /// What it holds.
    pub place: Place,
    /// Its network address, opaque to the core.
    pub address: Bytes,
    /// This taking of the place.
    pub seat: SeatId,
    /// The first inner step whose microbatches fall to it.
    pub enters: InnerStep,
    /// The first inner step whose microbatches do not fall to it any more, once it has asked to leave.
    pub until: Option<InnerStep>,
}

impl Member {
    /// Returns whether microbatches of an inner step fall to it.
    pub fn works_at(&self, step: InnerStep) -> bool {
        self.enters <= step && self.until.is_none_or(|until| step < until)
    }
}

/// Which peer holds which stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Its number; a later plan replaces an earlier one.
    pub number: PlanNumber,
    /// Who gives out work.
    pub coordinator: PeerId,
    /// The members in the order of their places.
    pub members: Vec<Member>,
    /// How replicas of different speed take turns, each from a step on, in the order of those steps; equal turns before.
    pub turns: Vec<Turns>,
}

/// How the replicas of a stage take turns from a step on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turns {
    /// Which stage.
    pub stage: StageId,
    /// From which step on.
    pub from: InnerStep,
    /// Microbatch i falls to entry i modulo the length.
    pub pattern: Vec<ReplicaId>,
}

impl Plan {
    /// Returns where a peer stands, if it is a member.
    pub fn place_of(&self, peer: PeerId) -> Option<Place> {
        self.members.iter().find(|m| m.peer == peer).map(|m| m.place)
    }

    /// Returns whether no peer has two places, and no place two holders.
    pub fn places_each_once(&self) -> bool {
        let peers: BTreeSet<PeerId> = self.members.iter().map(|member| member.peer).collect();
        let places: BTreeSet<Place> = self.members.iter().map(|member| member.place).collect();
        peers.len() == self.members.len() && places.len() == self.members.len()
    }

    /// Returns a peer's entry, if it is a member.
    pub fn member(&self, peer: PeerId) -> Option<&Member> {
        self.members.iter().find(|m| m.peer == peer)
    }

    /// Returns who holds a place.
    pub fn holder(&self, place: Place) -> Option<&Member> {
        self.members.iter().find(|m| m.place == place)
    }

    /// Takes the number of a later plan.
    pub fn renumber(&mut self) {
        self.number = PlanNumber(self.number.0.saturating_add(1));
    }

    /// Lists the replicas of a stage in replica order.
    pub fn replicas(&self, stage: StageId) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |m| m.place.stage == stage)
    }
}

/// A peer that asked to take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub peer: PeerId,
    /// Its network address, opaque to the core.
    pub address: Bytes,
    /// The stage it asks for, if it does.
    pub stage: Option<StageId>,
}

/// Computes a plan once there are peers for every place, else `None`.
///
/// Those who ask for a stage are served first, in the order of `candidates`; the others fill what is left, the lowest
/// replica of the lowest stage first. Surplus candidates stay out.
pub fn place(
    number: PlanNumber,
    coordinator: PeerId,
    stages: u16,
    replicas: u16,
    candidates: &[Candidate],
) -> Option<Plan> {
    let mut places: BTreeMap<Place, &Candidate> = BTreeMap::new();
    let asking = candidates.iter().filter(|c| c.stage.is_some());
    let rest = candidates.iter().filter(|c| c.stage.is_none());
    for candidate in asking.chain(rest) {
        let first = candidate.stage.map_or(0, |s| s.0);
        let last = candidate.stage.map_or(stages, |s| s.0.saturating_add(1)).min(stages);
        let free = (0..replicas)
            .flat_map(|replica| (first..last).map(move |stage| (stage, replica)))
            .map(|(stage, replica)| Place { stage: StageId(stage), replica: ReplicaId(replica) })
            .find(|place| !places.contains_key(place));
        if let Some(free) = free {
            places.insert(free, candidate);
        }
    }
    let whole = places.len() == usize::from(stages) * usize::from(replicas);
    whole.then(|| plan_of(number, coordinator, (stages, replicas), places))
}

/// How well a peer fits a place of a run that is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It has nothing of the stage, as a newcomer.
    Nothing,
    /// It has nothing of the stage, where it should: it was there before, or nobody knows who was.
    Missing,
    /// It has the checkpoint of another replica of the stage.
    Stage,
    /// It has the place's own checkpoint.
    Own,
}

/// Computes the plan of a run that is resumed, once as many peers are there as there are places and every stage is among what
/// they have on their disks, else `None`.
///
/// Each gets the place whose checkpoint it has, if it can, or one in a stage of which it has another's. A place for which nobody
/// has anything stays vacant: who is left over takes it under way, from the others. A stage of which nobody has anything waits
/// for those who have, unless somebody asks for it who should have something. Where all should, and none has, they are placed
/// as at the start, and will say what they miss.
pub fn place_resumed(
    number: PlanNumber,
    coordinator: PeerId,
    (stages, replicas): (u16, u16),
    candidates: &[Candidate],
    fit: impl Fn(&Candidate, Place) -> Fit,
) -> Option<Plan> {
    let all = || {
        (0..replicas)
            .flat_map(|replica| (0..stages).map(move |stage| (stage, replica)))
            .map(|(stage, replica)| Place { stage: StageId(stage), replica: ReplicaId(replica) })
    };
    if candidates.len() < usize::from(stages) * usize::from(replicas) {
        return None;
    }
    let misses = |candidate: &Candidate| all().map(|place| fit(candidate, place)).max() == Some(Fit::Missing);
    if candidates.iter().all(misses) {
        return place(number, coordinator, stages, replicas, candidates);
    }
    let mut places: BTreeMap<Place, &Candidate> = BTreeMap::new();
    for wanted in [Fit::Own, Fit::Stage] {
        for candidate in candidates {
            let wished = |place: &Place| candidate.stage.is_none_or(|stage| stage == place.stage);
            let placed = places.values().any(|other| other.peer == candidate.peer);
            let mut free = all().filter(|place| !placed && wished(place) && !places.contains_key(place));
            if let Some(place) = free.find(|place| fit(candidate, *place) >= wanted) {
                places.insert(place, candidate);
            }
        }
    }
    // It will say which file it lacks or cannot read.
    for place in all().filter(|place| place.replica == ReplicaId(0)) {
        let held = places.keys().any(|other| other.stage == place.stage);
        let placed = |candidate: &&Candidate| places.values().any(|other| other.peer == candidate.peer);
        let asks = |c: &&Candidate| c.stage == Some(place.stage) && fit(c, place) == Fit::Missing;
        let asking = candidates.iter().find(|candidate| asks(candidate) && !placed(candidate));
        if let Some(candidate) = asking.filter(|_| !held) {
            places.insert(place, candidate);
        }
    }
    let held = (0..stages).all(|stage| places.keys().any(|place| place.stage == StageId(stage)));
    held.then(|| plan_of(number, coordinator, (stages, replicas), places))
}

/// Makes the plan of an assignment. Each plan that is made so gives seats of its own, also where the one before never began.
fn plan_of(
    number: PlanNumber,
    coordinator: PeerId,
    (stages, replicas): (u16, u16),
    places: BTreeMap<Place, &Candidate>,
) -> Plan {
    let places_of_all = u32::from(stages) * u32::from(replicas);
    let first = number.0.saturating_sub(1).wrapping_mul(places_of_all).wrapping_add(1);
    let member = |((place, candidate), at): ((Place, &Candidate), u32)| Member {
        peer: candidate.peer,
        place,
        address: candidate.address.clone(),
        seat: SeatId(first.wrapping_add(at)),
        enters: InnerStep(0),
        until: None,
    };
    let members = places.into_iter().zip(0..).map(member).collect();
    Plan { number, coordinator, members, turns: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn candidate(id: u8, stage: Option<u16>) -> Candidate {
        Candidate { peer: PeerId([id; 32]), address: Bytes::new(), stage: stage.map(StageId) }
    }

    fn stages_of(plan: &Plan) -> Vec<(u8, u16, u16)> {
        plan.members.iter().map(|m| (m.peer.0[0], m.place.stage.0, m.place.replica.0)).collect()
    }

    #[test]
    fn wishes_come_first_and_the_rest_fill_up() {
        let asked = [candidate(1, None), candidate(2, Some(0)), candidate(3, None)];
        let plan = place(PlanNumber(1), PeerId([9; 32]), 3, 1, &asked).unwrap();
        assert_eq!(stages_of(&plan), [(2, 0, 0), (1, 1, 0), (3, 2, 0)]);
    }

    #[test]
    fn a_plan_places_each_peer_once() {
        let asked = [candidate(1, None), candidate(2, None)];
        let plan = place(PlanNumber(1), PeerId([9; 32]), 2, 1, &asked).unwrap();
        assert!(plan.places_each_once());
        let member = |at: usize, peer: usize| Member { peer: asked[peer].peer, ..plan.members[at].clone() };
        let of = |members: Vec<Member>| Plan { members, ..plan.clone() };
        assert!(!of(vec![member(0, 0), member(1, 0)]).places_each_once(), "a peer has two places");
        assert!(!of(vec![member(0, 0), member(0, 1)]).places_each_once(), "a place has two holders");
    }

    #[test]
    fn a_plan_waits_until_every_place_is_taken() {
        let asked = [candidate(1, None), candidate(2, Some(0)), candidate(3, Some(0))];
        assert_eq!(place(PlanNumber(1), PeerId([9; 32]), 3, 1, &asked), None);
    }

    #[test]
    fn who_resumes_gets_the_place_whose_checkpoint_it_has_and_who_has_none_waits() {
        let asked: Vec<_> = (1..=4).map(|id| candidate(id, None)).collect();
        // Peer 4 has that of (1, 1), peer 2 that of (0, 0), peer 3 another's of stage 0; peer 1 has lost its disk.
        let fit =
            |candidate: &Candidate, place: Place| match (candidate.peer.0[0], place.stage.0, place.replica.0)
            {
                (4, 1, 1) | (2, 0, 0) => Fit::Own,
                (4, 1, _) | (2, 0, _) | (3, 0, _) => Fit::Stage,
                _ => Fit::Nothing,
            };
        let plan = place_resumed(PlanNumber(1), PeerId([9; 32]), (2, 2), &asked, fit).unwrap();
        assert_eq!(stages_of(&plan), [(2, 0, 0), (3, 0, 1), (4, 1, 1)]);
        assert_eq!(
            place_resumed(PlanNumber(1), PeerId([9; 32]), (2, 2), &asked[..3], fit),
            None,
            "others may come"
        );
        let strangers = |_: &Candidate, _: Place| Fit::Nothing;
        assert_eq!(
            place_resumed(PlanNumber(1), PeerId([9; 32]), (2, 2), &asked, strangers),
            None,
            "those who have something may come"
        );
        let nobody = |_: &Candidate, _: Place| Fit::Missing;
        let plan = place_resumed(PlanNumber(1), PeerId([9; 32]), (2, 2), &asked, nobody).unwrap();
        assert_eq!(plan.members.len(), 4, "nobody says anything");
        let stage =
            |_: &Candidate, place: Place| if place.stage == StageId(0) { Fit::Stage } else { Fit::Nothing };
        assert_eq!(
            place_resumed(PlanNumber(1), PeerId([9; 32]), (2, 2), &asked, stage),
            None,
            "stage 1 is nowhere"
        );
    }

    #[test]
    fn first_replicas_of_all_stages_come_before_second_ones() {
        let asked: Vec<_> = (1..=4).map(|id| candidate(id, None)).collect();
        let plan = place(PlanNumber(1), PeerId([9; 32]), 2, 2, &asked).unwrap();
        assert_eq!(stages_of(&plan), [(1, 0, 0), (3, 0, 1), (2, 1, 0), (4, 1, 1)]);
        assert_eq!(plan.replicas(StageId(1)).count(), 2);
    }
}
