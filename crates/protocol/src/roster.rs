//! The roster: who of the members is there and who may be gone, who waits for a place, and who is on the way into one.
//!
//! Owns that knowledge. Takes nobody in and removes nobody: it says who is due.

use crate::durable::Checkpoint;
use crate::ids::{PeerId, ReplicaId, StageId};
use crate::message::{Held, Join, Start, Text, Wait};
use crate::plan::{Candidate, Member, Place, Plan};
use crate::route::NEVER;
use crate::suspicion::{Level, Suspicion};
use crate::time::{Span, Time};
use crate::worker::BEAT;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Peers that may wait for a place while the run goes on: spares for every place of the largest published run.
const CANDIDATES_MAX: usize = 256;

/// A coordinator that starts again waits so long for its members to find it, beyond what it waits for any word.
const REVIVAL_GRACE: Span = Span::seconds(20);

/// A coordinator that was not called for so long was itself stopped or starved: members say something twice a second. Their
/// silence is then its own.
const SLEPT: Span = Span::seconds(3);

/// When nobody at all was heard for so long, it is this peer that hears nothing: members say something twice a second.
const DEAF: Span = Span::seconds(3);

/// But when nobody was heard for so long, they are gone.
const ALONE: Span = Span::seconds(60);

/// How far a newcomer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Where its weights come from.
    pub(crate) start: Start,
    /// Whether it has them.
    pub(crate) stands: Stands,
    /// When it has to have them.
    pub(crate) by: Time,
}

impl Arrival {
    /// Returns whether a newcomer's state is behind what the stage has now.
    pub(crate) fn is_behind(&self, start: &Start) -> bool {
        self.start != *start
    }

    /// Begins anew.
    pub(crate) fn begin(&mut self, start: Start) {
        (self.start, self.stands) = (start, Stands::Fetches);
    }
}

/// Whether a newcomer has what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stands {
    /// Its weights are on their way.
    Fetches,
    /// It can enter.
    Ready,
}

/// A peer that waits for a place.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) candidate: Candidate,
    pub(crate) text: Text,
    pub(crate) held: Vec<Held>,
    /// What it was told last.
    told: Option<(u32, Wait)>,
}

/// A member whose standing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It may be gone.
    Suspected(PeerId),
    /// It was heard again.
    Trusted(PeerId),
    /// It is gone.
    Lost(PeerId),
}

/// Who is there.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    watch: BTreeMap<PeerId, Suspicion>,
    /// When any of them was heard last.
    heard_any: Time,
    suspects: BTreeSet<PeerId>,
    waiting: Vec<Waiting>,
    arriving: BTreeMap<PeerId, Arrival>,
    stalled: BTreeSet<StageId>,
    /// Members that a coordinator which started again has not heard yet.
    unheard: BTreeSet<PeerId>,
    /// Members that asked to leave, and when they go at the latest.
    leaving: BTreeMap<PeerId, Time>,
    seats: u32,
}

impl Roster {
    /// Starts to watch the members of a plan; `heard` is when each is taken to have been heard last.
    pub(crate) fn new(plan: &Plan, seats: u32, heard: Time) -> Self {
        let mut roster = Self { seats, heard_any: heard, ..Self::default() };
        plan.members.iter().for_each(|member| roster.watch(member.peer, heard));
        roster
    }

    /// Starts as a coordinator that was started again: its members are still to find it.
    pub(crate) fn revived(plan: &Plan, seats: u32, now: Time) -> Self {
        let mut roster = Self::new(plan, seats, now + REVIVAL_GRACE);
        roster.unheard = plan.members.iter().map(|member| member.peer).collect();
        roster
    }

    /// Returns whether every member is there, as far as can be said: none is suspected, and all have been heard.
    pub(crate) fn is_complete(&self) -> bool {
        self.unheard.is_empty() && self.suspects.is_empty()
    }

    /// Starts to watch a member.
    pub(crate) fn watch(&mut self, peer: PeerId, heard: Time) {
        let mut suspicion = Suspicion::new(BEAT);
        suspicion.heard(heard);
        self.watch.insert(peer, suspicion);
    }

    /// Returns the number of the last seat that was given away.
    pub(crate) fn seats(&self) -> u32 {
        self.seats
    }

    /// Gives the number of a new seat.
    pub(crate) fn next_seat(&mut self) -> u32 {
        self.seats = self.seats.saturating_add(1);
        self.seats
    }

    /// Begins to listen anew, after the listener itself was not there.
    pub(crate) fn slept(&mut self, now: Time) {
        for peer in self.watch.keys().copied().collect::<Vec<_>>() {
            self.watch(peer, now);
        }
    }

    /// Hears a member.
    pub(crate) fn heard(&mut self, now: Time, peer: PeerId) {
        if !self.watch.contains_key(&peer) {
            return;
        }
        if now.since(self.heard_any) >= DEAF && now > self.heard_any {
            // Everyone was silent: it was this peer that heard nothing, and their silence begins anew.
            self.slept(now);
        }
        self.heard_any = now;
        self.unheard.remove(&peer);
        if let Some(suspicion) = self.watch.get_mut(&peer) {
            suspicion.heard(now);
        }
    }

    /// Hears that a connection to a peer is gone.
    pub(crate) fn disconnected(&mut self, now: Time, peer: PeerId) {
        if let Some(suspicion) = self.watch.get_mut(&peer) {
            suspicion.disconnected(now);
        }
        self.waiting.retain(|waiting| waiting.candidate.peer != peer);
    }

    /// Lists what has changed since it was asked last.
    pub(crate) fn changes(&mut self, now: Time) -> Vec<Change> {
        let mut changes = Vec::new();
        let silence = now.since(self.heard_any);
        let deaf = self.watch.len() > 1 && (DEAF..ALONE).contains(&silence);
        for (&peer, suspicion) in &self.watch {
            let suspected = self.suspects.contains(&peer);
            match suspicion.level(now) {
                Level::Trusted if suspected => changes.push(Change::Trusted(peer)),
                Level::Suspect if !suspected => changes.push(Change::Suspected(peer)),
                Level::Lost if !deaf => changes.push(Change::Lost(peer)),
                Level::Lost | Level::Trusted | Level::Suspect => {}
            }
        }
        for change in &changes {
            match change {
                Change::Suspected(peer) => drop(self.suspects.insert(*peer)),
                Change::Trusted(peer) => drop(self.suspects.remove(peer)),
                Change::Lost(_) => {}
            }
        }
        changes
    }

    /// Returns when [`Roster::changes`] has something to say if nothing is heard, or a leaver's or newcomer's time is over.
    pub(crate) fn deadline(&self, now: Time) -> Option<Time> {
        let changes = self.watch.values().filter_map(|suspicion| suspicion.next_change(now));
        let alone = Some(self.heard_any + ALONE).filter(|at| *at > now && self.watch.len() > 1);
        let changes = changes.chain(alone);
        let fetching = self.arriving.values().filter(|arrival| arrival.stands == Stands::Fetches);
        let unready = fetching.map(|arrival| arrival.by);
        changes.chain(self.leaving.values().copied()).chain(unready).min()
    }

    /// Returns whether a member may be gone.
    pub(crate) fn is_suspect(&self, peer: PeerId) -> bool {
        self.suspects.contains(&peer)
    }

    /// Returns whether any member may be gone.
    pub(crate) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Lists the members that may be gone.
    pub(crate) fn suspects(&self) -> Vec<PeerId> {
        self.suspects.iter().copied().collect()
    }

    /// Forgets a member.
    pub(crate) fn forget(&mut self, peer: PeerId) {
        self.watch.remove(&peer);
        self.unheard.remove(&peer);
        self.suspects.remove(&peer);
        self.arriving.remove(&peer);
        self.leaving.remove(&peer);
    }

    /// Notes that a member asked to leave.
    pub(crate) fn leaves(&mut self, peer: PeerId, by: Time) {
        self.leaving.insert(peer, by);
    }

    /// Lists the members that asked to leave.
    pub(crate) fn leaving(&self) -> Vec<(PeerId, Time)> {
        self.leaving.iter().map(|(peer, by)| (*peer, *by)).collect()
    }

    /// Notes that a newcomer is on its way into a place, and when it has to be ready.
    pub(crate) fn arrives(&mut self, peer: PeerId, start: Start, by: Time) {
        self.arriving.insert(peer, Arrival { start, stands: Stands::Fetches, by });
    }

    /// Lists the newcomers that hold a place for too long without getting ready.
    pub(crate) fn unready(&self, now: Time) -> Vec<PeerId> {
        let unready = self.arriving.iter().filter(|(_, arrival)| arrival.stands == Stands::Fetches);
        unready.filter(|(_, arrival)| arrival.by <= now).map(|(peer, _)| *peer).collect()
    }

    /// Returns how far a newcomer is.
    pub(crate) fn arrival(&mut self, peer: PeerId) -> Option<&mut Arrival> {
        self.arriving.get_mut(&peer)
    }

    /// Returns whether a peer is a newcomer that takes its state over from other replicas.
    pub(crate) fn fetches_from_replicas(&self, peer: PeerId) -> bool {
        let arrival = self.arriving.get(&peer);
        arrival.is_some_and(|arrival| matches!(arrival.start, Start::Replicas { .. }))
    }

    /// Lists the newcomers that can enter.
    pub(crate) fn ready(&self) -> Vec<PeerId> {
        let ready = self.arriving.iter().filter(|(_, arrival)| arrival.stands == Stands::Ready);
        ready.map(|(peer, _)| *peer).collect()
    }

    /// Lists the newcomers.
    pub(crate) fn arriving(&self) -> Vec<PeerId> {
        self.arriving.keys().copied().collect()
    }

    /// Notes that a newcomer has entered.
    pub(crate) fn entered(&mut self, peer: PeerId) {
        self.arriving.remove(&peer);
    }

    /// Notes that a stage has nobody who works; returns whether that is new.
    pub(crate) fn stalls(&mut self, stage: StageId) -> bool {
        self.stalled.insert(stage)
    }

    /// Notes that a stage has somebody again; returns whether it had stood still.
    pub(crate) fn resumes(&mut self, stage: StageId) -> bool {
        self.stalled.remove(&stage)
    }

    /// Returns whether any stage stands still.
    pub(crate) fn stands_still(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// Returns whether a stage stands still.
    pub(crate) fn is_stalled(&self, stage: StageId) -> bool {
        self.stalled.contains(&stage)
    }

    /// Lets a peer wait for a place, in place of what it said before; returns whether there is room.
    pub(crate) fn waits(&mut self, peer: PeerId, join: Join) -> bool {
        let candidate = Candidate { peer, address: join.address, stage: join.stage };
        let told = self.waiting.iter().find(|waiting| waiting.candidate.peer == peer).map(|_| ());
        self.waiting.retain(|waiting| waiting.candidate.peer != peer);
        if self.waiting.len() >= CANDIDATES_MAX {
            return false;
        }
        let waiting = Waiting { candidate, text: join.text, held: join.held, told: None };
        match told {
            // Who asks again keeps its turn.
            Some(()) => self.waiting.insert(0, waiting),
            None => self.waiting.push(waiting),
        }
        true
    }

    /// Lists who waits, first come first.
    pub(crate) fn waiting(&self) -> &[Waiting] {
        &self.waiting
    }

    /// Takes a peer out of those who wait.
    pub(crate) fn take(&mut self, peer: PeerId) -> Option<Waiting> {
        let at = self.waiting.iter().position(|waiting| waiting.candidate.peer == peer)?;
        Some(self.waiting.remove(at))
    }

    /// Lists what each who waits is to be told, where that is news.
    pub(crate) fn news(&mut self, why: impl Fn(&Waiting) -> Wait) -> Vec<(PeerId, u32, Wait)> {
        let mut news = Vec::new();
        for (ahead, waiting) in (0..).zip(&mut self.waiting) {
            let word = (ahead, why(waiting));
            if waiting.told != Some(word) {
                waiting.told = Some(word);
                news.push((waiting.candidate.peer, word.0, word.1));
            }
        }
        news
    }
}

/// Lists the vacant places of a plan, the lowest first.
pub(crate) fn vacancies(plan: &Plan, stages: u16, replicas: u16) -> Vec<Place> {
    let places = (0..stages).flat_map(|stage| {
        (0..replicas).map(move |replica| Place { stage: StageId(stage), replica: ReplicaId(replica) })
    });
    places.filter(|place| plan.holder(*place).is_none()).collect()
}

/// Returns the checkpoint of a stage that a peer has on its disk, if it is the one that the run goes on from.
pub(crate) fn shard(checkpoint: Option<&Checkpoint>, stage: StageId, held: &[Held]) -> Option<Start> {
    let checkpoint = checkpoint?;
    let found = checkpoint.of_stage(stage).find(|(place, digest)| {
        held.iter().any(|held| held.place == *place && held.step == checkpoint.step && held.digest == *digest)
    });
    found.map(|(of, digest)| Start::Checkpoint { step: checkpoint.step, digest, of })
}

/// Returns whether a coordinator that was not called for so long was itself not there.
pub(crate) fn has_slept(slept: Span) -> bool {
    slept >= SLEPT
}

/// Returns whether a member takes part already.
pub(crate) fn has_entered(member: &Member) -> bool {
    member.enters < NEVER
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{InnerStep, PlanNumber, SeatId};
    use bytes::Bytes;

    fn member(stage: u16, replica: u16) -> Member {
        Member {
            peer: PeerId([stage as u8 * 8 + replica as u8 + 1; 32]),
            place: Place { stage: StageId(stage), replica: ReplicaId(replica) },
            address: Bytes::new(),
            seat: SeatId(0),
            enters: InnerStep(0),
            until: None,
        }
    }

    fn join() -> Join {
        let (text, held) = (Text::Here, Vec::new());
        Join { address: Bytes::new(), stage: None, device: "d".into(), peak_flops: 0, text, held }
    }

    #[test]
    fn vacant_is_what_nobody_holds() {
        let members = alloc::vec![member(0, 0), member(0, 1), member(1, 1)];
        let (number, coordinator) = (PlanNumber(1), PeerId([0; 32]));
        let plan = Plan { number, coordinator, members, turns: Vec::new() };
        let vacant: Vec<_> = vacancies(&plan, 3, 2).iter().map(|at| (at.stage.0, at.replica.0)).collect();
        assert_eq!(vacant, [(1, 0), (2, 0), (2, 1)]);
    }

    #[test]
    fn who_waits_is_told_once_and_keeps_its_turn() {
        let mut roster = Roster::default();
        let (a, b) = (PeerId([1; 32]), PeerId([2; 32]));
        assert!(roster.waits(a, join()) && roster.waits(b, join()));
        let why = |_: &Waiting| Wait::NoVacancy;
        assert_eq!(roster.news(why), [(a, 0, Wait::NoVacancy), (b, 1, Wait::NoVacancy)]);
        assert_eq!(roster.news(why), []);
        roster.waits(a, join());
        assert_eq!(roster.news(why), [(a, 0, Wait::NoVacancy)], "it may not have heard it");
        roster.take(a);
        assert_eq!(roster.news(why), [(b, 0, Wait::NoVacancy)]);
    }

    #[test]
    fn silence_makes_suspects_then_losses_and_a_word_makes_it_good() {
        let plan = Plan {
            number: PlanNumber(1),
            coordinator: PeerId([0; 32]),
            members: alloc::vec![member(0, 0)],
            turns: Vec::new(),
        };
        let peer = plan.members[0].peer;
        let mut roster = Roster::new(&plan, 1, Time(0));
        (1..20).for_each(|second| roster.heard(Time(second * 1_000_000), peer));
        assert_eq!(roster.changes(Time(19_500_000)), []);
        let suspect_at = roster.deadline(Time(19_500_000)).expect("silence is noticed");
        assert_eq!(roster.changes(suspect_at), [Change::Suspected(peer)]);
        assert_eq!(roster.changes(suspect_at), []);
        assert!(roster.is_suspect(peer));
        roster.heard(suspect_at, peer);
        assert_eq!(roster.changes(suspect_at), [Change::Trusted(peer)]);
        let later = suspect_at + Span::seconds(60);
        assert_eq!(roster.changes(later), [Change::Lost(peer)]);
        roster.slept(later);
        assert_eq!(roster.changes(later), [], "it was the listener that was away");
    }

    #[test]
    fn silence_of_everyone_is_ones_own_until_it_lasts() {
        let members = alloc::vec![member(0, 0), member(0, 1)];
        let (number, coordinator) = (PlanNumber(1), PeerId([0; 32]));
        let plan = Plan { number, coordinator, members, turns: Vec::new() };
        let peers = [plan.members[0].peer, plan.members[1].peer];
        let mut roster = Roster::new(&plan, 2, Time(0));
        for second in 1..20 {
            peers.iter().for_each(|peer| roster.heard(Time(second * 1_000_000), *peer));
        }
        let lost = |changes: Vec<Change>| changes.iter().filter(|c| matches!(c, Change::Lost(_))).count();
        assert_eq!(lost(roster.changes(Time(49_000_000))), 0);
        roster.heard(Time(49_000_000), peers[0]);
        assert_eq!(lost(roster.changes(Time(50_000_000))), 0, "the other has its silence before it");
        assert_eq!(lost(roster.changes(Time(150_000_000))), 2);
    }
}
