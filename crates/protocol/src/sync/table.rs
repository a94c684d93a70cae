//! A table: the replicas of one stage as the coordinator sees them in the open outer step.
//!
//! Owns who is there, who has reached the border, and the claims and votes of the current try. Decides nothing about the
//! outer step as a whole.

use crate::ids::{Attempt, Digest, InnerStep, OuterStep, PeerId, ReplicaId, SeatId};
use crate::message::Message;
use crate::port::Outbox;
use crate::sync::say::{Begin, Round, Say};
use crate::sync::shares::shares;
use crate::time::{Span, Time};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

/// From so many replicas up, each shard has two reducers, whose results must agree.
const REPLICAS_FOR_TWO_REDUCERS: usize = 3;

/// Uplinks that differ by less than this factor count as equal: measurements of one and the same link do.
const UPLINK_RATIO_MIN: u64 = 2;

/// Measurements of each replica before any uplink counts: on a fast link a shard takes so little time that one measurement
/// says more about the scheduler than about the link.
const MEASUREMENTS_MIN: u32 = 3;

/// The highest try that a coordinator that starts again goes on behind. No outer step has so many; a replica that says it
/// has heard of more cannot use up the numbers by which tries are told apart.
const ATTEMPT_HEARD_MAX: Attempt = Attempt(u16::MAX / 2);

/// Whether a replica still takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It does.
    Present,
    /// It is lost.
    Gone,
}

#[derive(Debug)]
struct Chair {
    peer: PeerId,
    seat: SeatId,
    standing: Standing,
    reached: bool,
    /// Inner steps that its snapshot has seen.
    seen: InnerStep,
    heard: Time,
    probed: Option<Time>,
    /// Bytes a second at which others received from it, the latest counting for a quarter.
    uplink: u64,
    /// How often that was measured.
    measured: u32,
}

impl Chair {
    fn measure(&mut self, rate: u64) {
        self.uplink = match self.measured {
            0 => rate,
            1.. => (self.uplink - self.uplink / 4).saturating_add(rate / 4),
        };
        self.measured = self.measured.saturating_add(1);
    }
}

#[derive(Debug)]
struct Try {
    begin: Begin,
    claims: BTreeMap<(u16, ReplicaId), Digest>,
    votes: BTreeMap<ReplicaId, Digest>,
}

/// The replicas of a stage, and how far they are.
#[derive(Debug, Default)]
pub(crate) struct Table {
    chairs: BTreeMap<ReplicaId, Chair>,
    attempts: Attempt,
    disagreed: u16,
    flawed: BTreeSet<ReplicaId>,
    /// The cut of this outer step, and whose each shard is; tries share it, so that contributions stay as they are.
    cut: Option<(Vec<u32>, Vec<ReplicaId>)>,
    current: Option<Try>,
}

impl Table {
    pub(crate) fn seat(&mut self, replica: ReplicaId, peer: PeerId, seat: SeatId) {
        // Of a stage that stood empty nobody knows any more what its last try was about.
        if self.is_deserted() {
            self.close();
        }
        let chair = Chair {
            peer,
            seat,
            standing: Standing::Present,
            reached: false,
            seen: InnerStep(0),
            heard: Time(0),
            probed: None,
            uplink: 0,
            measured: 0,
        };
        self.chairs.insert(replica, chair);
    }

    /// Returns whether the current try counts on what a peer has contributed.
    pub(crate) fn counts_on(&self, peer: PeerId) -> bool {
        self.replica_of(peer).is_some_and(|replica| self.contributes(replica))
    }

    /// Returns whether a replica contributes to the current try.
    pub(crate) fn contributes(&self, replica: ReplicaId) -> bool {
        let mut contributors = self.current.iter().flat_map(|current| &current.begin.contributors);
        contributors.any(|(contributor, _)| *contributor == replica)
    }

    /// Lists the seats that contribute to the current try, each with the steps that its snapshot has seen.
    pub(crate) fn contributions(&self) -> impl Iterator<Item = (SeatId, InnerStep)> {
        let contributors = self.current.iter().flat_map(|current| &current.begin.contributors);
        contributors.filter_map(|(replica, _)| self.chairs.get(replica).map(|chair| (chair.seat, chair.seen)))
    }

    pub(crate) fn replica_of(&self, peer: PeerId) -> Option<ReplicaId> {
        let mut chairs = self.chairs.iter().filter(|(_, chair)| chair.peer == peer);
        let first = chairs.next()?;
        // Where it was before it may still be its name, for what it has contributed there.
        let present = |(_, chair): &(&ReplicaId, &Chair)| chair.standing == Standing::Present;
        Some(*chairs.find(present).filter(|_| !present(&first)).unwrap_or(first).0)
    }

    pub(crate) fn standing(&self, replica: ReplicaId) -> Standing {
        self.chairs.get(&replica).map_or(Standing::Gone, |chair| chair.standing)
    }

    /// Lists who takes part.
    pub(crate) fn present(&self) -> impl Iterator<Item = (ReplicaId, PeerId)> {
        let present = self.chairs.iter().filter(|(_, chair)| chair.standing == Standing::Present);
        present.map(|(replica, chair)| (*replica, chair.peer))
    }

    pub(crate) fn leave(&mut self, replica: ReplicaId) {
        if let Some(chair) = self.chairs.get_mut(&replica) {
            chair.standing = Standing::Gone;
        }
    }

    /// Returns whether nobody is left; such a stage cannot agree with anyone.
    pub(crate) fn is_deserted(&self) -> bool {
        self.present().next().is_none()
    }

    /// Notes that a replica spoke; gives how long it let a probe wait.
    pub(crate) fn hear(&mut self, replica: ReplicaId, now: Time) -> Option<Span> {
        let chair = self.chairs.get_mut(&replica)?;
        chair.heard = now;
        chair.probed.take().map(|since| now.since(since))
    }

    /// Marks all who are present as asked, where anybody owes something, and lists them: one who has done its part may hold
    /// what another still needs.
    pub(crate) fn ask(&mut self, now: Time) -> Vec<PeerId> {
        let present = |chair: &Chair| chair.standing == Standing::Present;
        let owes = |(replica, chair): (&ReplicaId, &Chair)| {
            let voted = self.current.as_ref().is_some_and(|current| current.votes.contains_key(replica));
            present(chair) && !(chair.reached && voted)
        };
        if !self.chairs.iter().any(owes) {
            return Vec::new();
        }
        let asked = self.chairs.values_mut().filter(|chair| present(chair));
        asked
            .map(|chair| {
                chair.probed.get_or_insert(now);
                chair.peer
            })
            .collect()
    }

    /// Lists those who were asked then and have not spoken since.
    pub(crate) fn silent_since(&self, asked: Time) -> Vec<(ReplicaId, PeerId)> {
        let silent = self.chairs.iter().filter(|(_, chair)| {
            chair.standing == Standing::Present && chair.probed.is_some_and(|at| at <= asked)
        });
        silent.map(|(replica, chair)| (*replica, chair.peer)).collect()
    }

    /// Notes that a replica stands at the border. The tries it has heard of count until the first begins here: they are of
    /// a coordinator before this one.
    pub(crate) fn reached(&mut self, replica: ReplicaId, seen: InnerStep, heard: Attempt) {
        if let Some(chair) = self.chairs.get_mut(&replica) {
            (chair.reached, chair.seen) = (true, seen);
        }
        if self.current.is_none() {
            self.attempts = self.attempts.max(heard.min(ATTEMPT_HEARD_MAX));
        }
    }

    /// Tells a replica again of the try that it may not have heard of.
    pub(crate) fn remind(&self, replica: ReplicaId, out: &mut Outbox) {
        let (Some(current), Some(chair)) = (&self.current, self.chairs.get(&replica)) else { return };
        if !current.votes.contains_key(&replica) {
            out.send(chair.peer, Message::Sync(Say::Begin(current.begin.clone())));
        }
    }

    /// Returns whether a replica has said that it stands at the border.
    pub(crate) fn has_reached(&self, replica: ReplicaId) -> bool {
        self.chairs.get(&replica).is_some_and(|chair| chair.reached)
    }

    /// Returns whether all who are present stand at the border.
    pub(crate) fn is_assembled(&self) -> bool {
        let mut present = self.chairs.values().filter(|chair| chair.standing == Standing::Present).peekable();
        present.peek().is_some() && present.all(|chair| chair.reached)
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.current.is_some()
    }

    pub(crate) fn attempts(&self) -> Attempt {
        self.attempts
    }

    pub(crate) fn contributors(&self) -> Vec<(ReplicaId, u64)> {
        self.current.as_ref().map(|current| current.begin.contributors.clone()).unwrap_or_default()
    }

    pub(crate) fn claim(&mut self, attempt: Attempt, shard: u16, replica: ReplicaId, blob: Digest) {
        let Some(current) = self.current_at(attempt) else { return };
        let reduces = current.begin.reducers.get(usize::from(shard)).is_some_and(|of| of.contains(&replica));
        if reduces {
            current.claims.insert((shard, replica), blob);
        }
    }

    pub(crate) fn vote(
        &mut self,
        attempt: Attempt,
        replica: ReplicaId,
        vote: Digest,
        rates: &[(ReplicaId, u64)],
    ) {
        let Some(current) = self.current_at(attempt) else { return };
        if current.votes.insert(replica, vote).is_some() {
            return;
        }
        for (from, rate) in rates.iter().filter(|(from, _)| *from != replica) {
            if let Some(chair) = self.chairs.get_mut(from) {
                chair.measure(*rate);
            }
        }
    }

    /// Returns how many claims and votes of the current try have come.
    pub(crate) fn heard(&self) -> usize {
        self.current.as_ref().map_or(0, |current| current.claims.len() + current.votes.len())
    }

    /// Notes that a contribution is worth nothing; returns whether that is new.
    pub(crate) fn flaw(&mut self, attempt: Attempt, contributor: ReplicaId) -> bool {
        self.current_at(attempt).is_some()
            && self.chairs.contains_key(&contributor)
            && self.flawed.insert(contributor)
    }

    fn current_at(&mut self, attempt: Attempt) -> Option<&mut Try> {
        self.current.as_mut().filter(|current| current.begin.round.attempt == attempt)
    }

    /// Returns a shard on which two reducers differ; a shard beyond the last where votes differ.
    pub(crate) fn disagreement(&self) -> Option<u16> {
        let current = self.current.as_ref()?;
        for ((shard, replica), blob) in &current.claims {
            let differs = |((of, by), other): (&(u16, ReplicaId), &Digest)| {
                of == shard && by != replica && other != blob
            };
            if current.claims.iter().any(differs) {
                return Some(*shard);
            }
        }
        let first = current.votes.values().next()?;
        let differ = current.votes.values().any(|vote| vote != first);
        // With all votes in, it can be said who is alone with his.
        let all = self.present().all(|(replica, _)| current.votes.contains_key(&replica));
        (differ && all).then_some(current.begin.reducers.len() as u16)
    }

    /// Lists those whose vote is not that of more than half of all who voted; nobody where no vote has so many.
    pub(crate) fn minority(&self) -> Vec<PeerId> {
        let Some(current) = &self.current else { return Vec::new() };
        let count = |vote: &Digest| current.votes.values().filter(|other| *other == vote).count();
        let Some(most) = current.votes.values().find(|vote| 2 * count(vote) > current.votes.len()) else {
            return Vec::new();
        };
        let alone =
            self.present().filter(|(replica, _)| current.votes.get(replica).is_some_and(|vote| vote != most));
        alone.map(|(_, peer)| peer).collect()
    }

    pub(crate) fn disagreed(&mut self) -> u16 {
        self.disagreed += 1;
        self.disagreed
    }

    /// Returns whether the current try cannot end: somebody it counts on is lost or flawed, and the rest cannot do without.
    pub(crate) fn is_broken(&self) -> bool {
        let Some(current) = &self.current else { return false };
        let begin = &current.begin;
        let sound = |replica: &ReplicaId| {
            self.standing(*replica) == Standing::Present && !self.flawed.contains(replica)
        };
        let everyone = begin.contributors.iter().map(|(replica, _)| replica);
        if everyone.chain(begin.reducers.iter().flatten()).all(sound) {
            return false;
        }
        // A reducer takes nobody else's result, so that each who is left must have come to its own.
        let shards = (0_u16..).zip(&begin.reducers);
        let mut done = shards.map(|(shard, of)| {
            let mut left = of.iter().filter(|by| sound(by)).peekable();
            left.peek().is_some() && left.all(|by| current.claims.contains_key(&(shard, *by)))
        });
        let flawed = begin.contributors.iter().any(|(replica, _)| self.flawed.contains(replica));
        flawed || !done.all(|done| done)
    }

    /// Returns the vote of all who are present, when they are of one mind.
    pub(crate) fn agreed_vote(&self) -> Option<Digest> {
        let current = self.current.as_ref()?;
        if self.disagreement().is_some() || self.is_deserted() {
            return None;
        }
        let mut votes = self.present().map(|(replica, _)| current.votes.get(&replica).copied());
        let first = votes.next()??;
        votes.all(|vote| vote == Some(first)).then_some(first)
    }

    /// Opens the next try; returns whether it could: somebody can contribute, and the number of the try is a new one.
    pub(crate) fn begin(
        &mut self,
        outer: OuterStep,
        weights: &BTreeMap<ReplicaId, u64>,
        out: &mut Outbox,
    ) -> bool {
        let able: Vec<ReplicaId> = self
            .present()
            .map(|(replica, _)| replica)
            .filter(|replica| !self.flawed.contains(replica))
            .collect();
        let weighed = able.iter().map(|replica| (*replica, weights.get(replica).copied().unwrap_or(0)));
        let contributors: Vec<(ReplicaId, u64)> = weighed.filter(|(_, weight)| *weight > 0).collect();
        let Some(attempt) = self.attempts.0.checked_add(1).filter(|_| !contributors.is_empty()) else {
            return false;
        };
        let (shares, owners) = match self.cut.take() {
            Some(cut) => cut,
            None => (shares(&self.uplinks(&able)), able.clone()),
        };
        let reducers =
            owners.iter().map(|owner| reducers_of(*owner, &able, usize::from(self.disagreed))).collect();
        self.attempts = Attempt(attempt);
        let round = Round { outer, attempt: self.attempts };
        let begin = Begin { round, contributors, shares: shares.clone(), reducers };
        self.cut = Some((shares, owners));
        for (_, peer) in self.present() {
            out.send(peer, Message::Sync(Say::Begin(begin.clone())));
        }
        self.current = Some(Try { begin, claims: BTreeMap::new(), votes: BTreeMap::new() });
        true
    }

    /// Returns the measured uplinks, or equal ones: while any replica was measured less than [`MEASUREMENTS_MIN`] times, and
    /// where the fastest is less than [`UPLINK_RATIO_MIN`] times as fast as the slowest. However slow one is, it keeps the
    /// part of an equal share that [`shares`] leaves to each.
    fn uplinks(&self, replicas: &[ReplicaId]) -> Vec<u64> {
        let chairs: Vec<&Chair> = replicas.iter().filter_map(|replica| self.chairs.get(replica)).collect();
        let known = chairs.iter().all(|chair| chair.measured >= MEASUREMENTS_MIN);
        let uplinks: Vec<u64> = chairs.iter().map(|chair| chair.uplink).collect();
        let (slowest, fastest) = (uplinks.iter().min().copied(), uplinks.iter().max().copied());
        let differ = slowest
            .zip(fastest)
            .is_some_and(|(slowest, fastest)| slowest > 0 && fastest / slowest >= UPLINK_RATIO_MIN);
        if known && differ { uplinks } else { vec![1; replicas.len()] }
    }

    /// Makes ready for the next outer step.
    pub(crate) fn close(&mut self) {
        self.chairs.retain(|_, chair| chair.standing == Standing::Present);
        for chair in self.chairs.values_mut() {
            (chair.reached, chair.probed) = (false, None);
        }
        self.attempts = Attempt(0);
        self.disagreed = 0;
        self.flawed.clear();
        self.cut = None;
        self.current = None;
    }
}

/// Returns who reduces a shard: its owner, or who comes after it in the circle; and the one after that where there are
/// enough. Each disagreement turns the circle on by one.
fn reducers_of(owner: ReplicaId, able: &[ReplicaId], turned: usize) -> Vec<ReplicaId> {
    let at = able.iter().position(|replica| *replica >= owner).unwrap_or(0) + turned;
    let count = if able.len() >= REPLICAS_FOR_TWO_REDUCERS { 2 } else { 1 };
    (0..count).map(|offset| able[(at + offset) % able.len()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Action;
    use crate::sync::shares::WHOLE;

    const X: Digest = Digest([1; 32]);

    fn table(replicas: u16) -> Table {
        let mut table = Table::default();
        for replica in 0..replicas {
            let (peer, seat) = (PeerId([replica as u8 + 1; 32]), SeatId(u32::from(replica)));
            table.seat(ReplicaId(replica), peer, seat);
        }
        table
    }

    fn begin(table: &mut Table) -> Begin {
        let weights = table.present().map(|(replica, _)| (replica, 1)).collect();
        let mut out = Outbox::default();
        assert!(table.begin(OuterStep(0), &weights, &mut out));
        let Some(Action::Send { message: Message::Sync(Say::Begin(begin)), .. }) = out.pop() else {
            panic!("all are told of the round")
        };
        begin
    }

    /// Lets replica 0 and 1 say, in as many rounds, at which rates they received from the others.
    fn measure(table: &mut Table, rounds: usize, rates: &[u64]) {
        for _ in 0..rounds {
            let attempt = begin(table).round.attempt;
            for voter in [0, 1] {
                let rates: Vec<_> = (0..).map(ReplicaId).zip(rates.iter().copied()).collect();
                table.vote(attempt, ReplicaId(voter), X, &rates);
                table.vote(attempt, ReplicaId(voter), X, &[(ReplicaId(2), 1), (ReplicaId(3), 1)]);
            }
            table.close();
        }
    }

    #[test]
    fn shares_are_equal_until_each_replica_was_measured_often_enough() {
        let mut table = table(4);
        let equal = [WHOLE / 4; 4];
        measure(&mut table, 2, &[900, 900, 100, 900]);
        assert_eq!(
            begin(&mut table).shares,
            equal,
            "two measurements of replicas 0 and 1, four of the others"
        );
        table.close();
        measure(&mut table, 1, &[900, 900, 100, 900]);
        let shares = begin(&mut table).shares;
        assert!(shares[2] < shares[0], "{shares:?}");
    }

    #[test]
    fn shares_are_equal_where_uplinks_are_nearly_so() {
        let mut table = table(4);
        measure(&mut table, 5, &[1_999, 1_999, 1_000, 1_500]);
        assert_eq!(begin(&mut table).shares, [WHOLE / 4; 4]);
        table.close();
        measure(&mut table, 40, &[2_100, 2_100, 1_000, 1_500]);
        assert!(begin(&mut table).shares[2] < WHOLE / 4);
    }

    #[test]
    fn nobody_is_left_with_less_than_a_quarter_of_an_equal_share() {
        let mut table = table(4);
        measure(&mut table, 5, &[1 << 40, 1 << 40, 1, 1 << 40]);
        let shares = begin(&mut table).shares;
        assert_eq!((shares[2], shares.iter().sum()), (WHOLE / 16, WHOLE), "{shares:?}");
        table.close();
        measure(&mut table, 5, &[u64::MAX, u64::MAX, 0, u64::MAX]);
        assert!(begin(&mut table).shares.iter().all(|share| *share >= WHOLE / 16));
    }

    #[test]
    fn nobody_measures_himself_or_in_a_try_that_is_over() {
        let mut table = table(3);
        for _ in 0..4 {
            let attempt = begin(&mut table).round.attempt;
            let all: Vec<_> =
                [(0, 9_000), (1, 100), (2, 100)].map(|(of, rate)| (ReplicaId(of), rate)).to_vec();
            table.vote(Attempt(attempt.0 + 1), ReplicaId(1), X, &all);
            table.vote(attempt, ReplicaId(0), X, &all);
        }
        let measured: Vec<_> = table.chairs.values().map(|chair| (chair.measured, chair.uplink)).collect();
        assert_eq!(measured, [(0, 0), (4, 100), (4, 100)]);
    }

    #[test]
    fn the_cut_of_an_outer_step_stays_whatever_is_measured_meanwhile() {
        let mut table = table(4);
        measure(&mut table, 5, &[900, 900, 900, 900]);
        let first = begin(&mut table);
        for (voter, rate) in [(0, 1), (1, 1), (3, 1)] {
            table.vote(first.round.attempt, ReplicaId(voter), X, &[(ReplicaId(2), rate)]);
        }
        assert_eq!(begin(&mut table).shares, first.shares);
        table.close();
        assert_ne!(begin(&mut table).shares, first.shares, "the next one has its own");
    }

    #[test]
    fn a_try_without_a_number_of_its_own_does_not_begin() {
        let mut table = table(2);
        table.attempts = Attempt(u16::MAX);
        let weights = BTreeMap::from([(ReplicaId(0), 1)]);
        let mut out = Outbox::default();
        assert!(!table.begin(OuterStep(0), &weights, &mut out));
        assert_eq!(out.pop(), None);
    }

    #[test]
    fn the_try_counts_on_a_contributor_even_when_it_is_gone() {
        let mut table = table(2);
        table.reached(ReplicaId(0), InnerStep(7), Attempt(0));
        begin(&mut table);
        table.leave(ReplicaId(0));
        assert!(table.counts_on(PeerId([1; 32])) && !table.counts_on(PeerId([9; 32])));
        let seen: Vec<_> = table.contributions().collect();
        assert_eq!(seen, [(SeatId(0), InnerStep(7)), (SeatId(1), InnerStep(0))]);
        table.close();
        assert!(!table.counts_on(PeerId([1; 32])) && table.replica_of(PeerId([1; 32])).is_none());
    }

    #[test]
    fn who_is_alone_with_his_vote_is_known_when_all_have_voted() {
        let other = Digest([2; 32]);
        let mut table = table(3);
        let attempt = begin(&mut table).round.attempt;
        table.vote(attempt, ReplicaId(0), X, &[]);
        table.vote(attempt, ReplicaId(2), other, &[]);
        assert_eq!((table.disagreement(), table.minority()), (None, Vec::new()));
        table.vote(attempt, ReplicaId(1), other, &[]);
        assert_eq!((table.disagreement(), table.minority()), (Some(3), vec![PeerId([1; 32])]));
    }

    #[test]
    fn each_disagreement_turns_the_circle_of_reducers() {
        let able: Vec<ReplicaId> = [0, 2, 5].map(ReplicaId).to_vec();
        let of = |owner, turned| {
            reducers_of(ReplicaId(owner), &able, turned).iter().map(|r| r.0).collect::<Vec<_>>()
        };
        assert_eq!([of(0, 0), of(2, 0), of(5, 0)], [[0, 2], [2, 5], [5, 0]]);
        assert_eq!([of(0, 1), of(5, 1), of(5, 4)], [[2, 5], [0, 2], [0, 2]]);
        assert_eq!([of(1, 0), of(6, 0)], [[2, 5], [0, 2]], "whose owner is lost falls to the next");
        assert_eq!(reducers_of(ReplicaId(1), &able[..2], 0), [ReplicaId(2)], "two replicas have one each");
    }
}
