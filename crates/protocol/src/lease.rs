//! Leases: which microbatches are out, to whom, and until when.
//!
//! Owns handing work out in the order of the agenda and taking it back when a lease expires or its holder is lost. Knows
//! nothing of messages, or of who is credited.

use crate::agenda::Agenda;
use crate::ids::{Attempt, InnerStep, MicrobatchId, PeerId, Split};
use crate::index_set::IndexSet;
use crate::time::{Span, Time};
use crate::work::{Frontier, Needs};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The first lease of a run: long enough for a device to compile its kernels and take its first memory.
const EXPIRY_FIRST: Span = Span::seconds(300);

/// No lease is shorter, so that a pause of an operating system is not a fault.
const EXPIRY_MIN: Span = Span::seconds(20);

/// A lease expires after this many times the smoothed time from lease to settlement.
const EXPIRY_FACTOR: u64 = 16;

/// Weight of a new sample in the smoothed time, as 1 / 8.
const SMOOTHING_SHIFT: u64 = 3;

/// Each try lasts twice as long as the one before, up to so many doublings.
const DOUBLINGS_MAX: u16 = 3;

/// After so many tries a microbatch is taken to be stuck: each outlasts any pause, and peers do come and go, but not so often.
pub const ATTEMPTS_MAX: u16 = 200;

/// A microbatch that is out.
#[derive(Clone, Debug)]
struct Lease {
    to: PeerId,
    attempt: Attempt,
    needs: Needs,
    since: Time,
    expires: Time,
}

/// Why a settlement changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsettled {
    /// It was settled before.
    Duplicate,
    /// It was never leased.
    NotLeased,
}

/// A lease that is to be told to its holder, again or anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// Of which microbatch.
    pub microbatch: MicrobatchId,
    /// Who has it now.
    pub to: PeerId,
    /// The try that begins.
    pub attempt: Attempt,
    /// For which stages.
    pub needs: Needs,
}

/// How far work was handed out: what a coordinator must not forget, or it would hand out twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOut {
    /// Training indices below it.
    pub train_below: u64,
    /// Held-out indices below it.
    pub held_out_below: u64,
}

impl HandedOut {
    fn has(&self, microbatch: MicrobatchId) -> bool {
        match microbatch.split {
            Split::Train => microbatch.index < self.train_below,
            Split::HeldOut => microbatch.index < self.held_out_below,
        }
    }

    fn add(&mut self, microbatch: MicrobatchId) {
        let below = match microbatch.split {
            Split::Train => &mut self.train_below,
            Split::HeldOut => &mut self.held_out_below,
        };
        *below = (*below).max(microbatch.index + 1);
    }
}

/// What is out, by microbatch, and with it how much is out at each peer and when the next lease expires: these are asked for with
/// every event, and what is out grows with the run's replicas.
#[derive(Default)]
struct Out {
    leases: BTreeMap<MicrobatchId, Lease>,
    held: BTreeMap<PeerId, usize>,
    expiries: BTreeSet<(Time, MicrobatchId)>,
    /// What was tried too often.
    stuck: BTreeSet<MicrobatchId>,
}

impl Out {
    fn insert(&mut self, microbatch: MicrobatchId, lease: Lease) {
        self.remove(microbatch);
        *self.held.entry(lease.to).or_default() += 1;
        self.expiries.insert((lease.expires, microbatch));
        if lease.attempt.0 >= ATTEMPTS_MAX {
            self.stuck.insert(microbatch);
        }
        self.leases.insert(microbatch, lease);
    }

    fn remove(&mut self, microbatch: MicrobatchId) -> Option<Lease> {
        let lease = self.leases.remove(&microbatch)?;
        self.expiries.remove(&(lease.expires, microbatch));
        self.stuck.remove(&microbatch);
        if let Some(held) = self.held.get_mut(&lease.to) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&lease.to);
            }
        }
        Some(lease)
    }

    /// Lets nothing expire before a time.
    fn postpone(&mut self, until: Time) {
        for (_, microbatch) in
            self.expiries.extract_if(..(until, MicrobatchId::train(0)), |_| true).collect::<Vec<_>>()
        {
            if let Some(lease) = self.leases.get_mut(&microbatch) {
                lease.expires = until;
                self.expiries.insert((until, microbatch));
            }
        }
    }

    /// Lists what has expired, in the order of the microbatches.
    fn expired(&self, now: Time) -> BTreeSet<MicrobatchId> {
        self.expiries.iter().take_while(|(at, _)| *at <= now).map(|(_, microbatch)| *microbatch).collect()
    }

    /// Returns the first that is out of a split.
    fn first(&self, split: Split) -> Option<u64> {
        let from = MicrobatchId { split, index: 0 };
        let (microbatch, _) = self.leases.range(from..).next()?;
        (microbatch.split == split).then_some(microbatch.index)
    }
}

/// The leases of a run.
pub struct Leases {
    upcoming: core::iter::Peekable<Box<dyn Iterator<Item = MicrobatchId> + Send>>,
    agenda: Agenda,
    out: Out,
    /// The last try of what was leased more than once.
    attempts: BTreeMap<MicrobatchId, Attempt>,
    settled_train: IndexSet,
    settled_held_out: IndexSet,
    ahead: usize,
    stop_before: Option<InnerStep>,
    smoothed: Option<Span>,
    /// When a stage last stood still: what was out then says nothing of how long work takes.
    stood_until: Time,
    highest_step: InnerStep,
    handed_out: HandedOut,
}

impl Leases {
    /// Starts at a step; at most `ahead` microbatches are out at one peer.
    ///
    /// The bound is each peer's, because its queue is: a slow replica must not be given what a fast one has room for.
    pub fn new(agenda: Agenda, start: InnerStep, ahead: usize) -> Self {
        let handed_out = HandedOut {
            train_below: agenda.training_of(start).start,
            held_out_below: agenda.evaluated_before(start),
        };
        Self::after(agenda, start, ahead, handed_out)
    }

    /// Starts at a step with some of its work handed out already, by a coordinator before this one; [`Leases::out_again`]
    /// says which of that is still out.
    pub fn after(agenda: Agenda, start: InnerStep, ahead: usize, handed_out: HandedOut) -> Self {
        let upcoming: Box<dyn Iterator<Item = MicrobatchId> + Send> =
            Box::new(agenda.from(start).filter(move |microbatch| !handed_out.has(*microbatch)));
        let step_of = |index: u64| agenda.step_of(MicrobatchId::train(index));
        Self {
            upcoming: upcoming.peekable(),
            agenda,
            out: Out::default(),
            attempts: BTreeMap::new(),
            settled_train: IndexSet::starting_at(agenda.training_of(start).start),
            settled_held_out: IndexSet::starting_at(agenda.evaluated_before(start)),
            ahead,
            stop_before: None,
            smoothed: None,
            stood_until: Time(0),
            highest_step: handed_out.train_below.checked_sub(1).and_then(step_of).unwrap_or(start).max(start),
            handed_out,
        }
    }

    /// Takes the next microbatches of the agenda, as many as may be out. A microbatch for whose stage there is nobody stays.
    pub fn take(
        &mut self,
        now: Time,
        max: usize,
        to: impl Fn(MicrobatchId) -> Option<PeerId>,
    ) -> Vec<(MicrobatchId, PeerId)> {
        let mut taken = Vec::new();
        let expires = now + self.expiry(Attempt(0));
        while taken.len() < max {
            let stop = self.stop_before;
            let ahead = self.ahead;
            let held = &self.out.held;
            let room = |m| to(m).filter(|to| held.get(to).is_none_or(|held| *held < ahead));
            let next = self.upcoming.next_if(|m| {
                room(*m).is_some()
                    && match (self.agenda.step_of(*m), stop) {
                        (Some(step), Some(stop)) => step < stop,
                        (Some(_), None) => true,
                        (None, _) => false,
                    }
            });
            let Some(microbatch) = next else { break };
            let Some(to) = to(microbatch) else { break };
            let (attempt, needs) = (Attempt(0), Needs::All);
            self.out.insert(microbatch, Lease { to, attempt, needs, since: now, expires });
            self.highest_step = self.highest_step.max(self.agenda.step_of(microbatch).unwrap_or_default());
            self.handed_out.add(microbatch);
            taken.push((microbatch, to));
        }
        taken
    }

    /// Returns how many more microbatches of what is to be done again from an index on may be out at a peer. What is out
    /// behind it waits for it, and takes no room from it.
    pub fn room(&self, peer: PeerId, from: u64) -> usize {
        let of = self.agenda.step_of(MicrobatchId::train(from));
        let before = |m: &MicrobatchId| match m.split {
            Split::Train => m.index <= from,
            // An evaluation waits for the steps before its border.
            Split::HeldOut => self.agenda.step_of(*m) <= of,
        };
        let out = self.out.leases.iter().filter(|(m, lease)| lease.to == peer && before(m)).count();
        self.ahead.saturating_sub(out)
    }

    /// Leases a microbatch for another try, for the stages that lack it; gives what its holder is to be told.
    pub fn again(&mut self, now: Time, microbatch: MicrobatchId, needs: Needs, to: PeerId) -> Renewed {
        let attempt = self.next_attempt(microbatch);
        let expires = now + self.expiry(attempt);
        self.out.insert(microbatch, Lease { to, attempt, needs: needs.clone(), since: now, expires });
        Renewed { microbatch, to, attempt, needs }
    }

    /// Notes that a microbatch was out when the coordinator stopped, to whoever holds it.
    pub fn out_again(&mut self, now: Time, microbatch: MicrobatchId, needs: Needs, to: PeerId) {
        let attempt = if needs == Needs::All { Attempt(0) } else { self.next_attempt(microbatch) };
        let expires = now + self.expiry(attempt);
        self.out.insert(microbatch, Lease { to, attempt, needs, since: now, expires });
    }

    /// Notes that a microbatch was settled before the coordinator stopped.
    pub fn settled_before(&mut self, microbatch: MicrobatchId) {
        match microbatch.split {
            Split::Train => self.settled_train.insert(microbatch.index),
            Split::HeldOut => self.settled_held_out.insert(microbatch.index),
        };
    }

    fn next_attempt(&mut self, microbatch: MicrobatchId) -> Attempt {
        let out = self.out.leases.get(&microbatch).map(|lease| lease.attempt);
        let last = out.or(self.attempts.get(&microbatch).copied()).unwrap_or(Attempt(0));
        let attempt = Attempt(last.0.saturating_add(1));
        self.attempts.insert(microbatch, attempt);
        attempt
    }

    /// Settles a microbatch, whoever of the stage brings it.
    ///
    /// # Errors
    /// It is settled already, or was never out.
    pub fn settle(&mut self, now: Time, microbatch: MicrobatchId) -> Result<(), Unsettled> {
        let Some(lease) = self.out.remove(microbatch) else {
            let settled = match microbatch.split {
                Split::Train => &self.settled_train,
                Split::HeldOut => &self.settled_held_out,
            };
            let known = settled.contains(microbatch.index);
            return Err(if known { Unsettled::Duplicate } else { Unsettled::NotLeased });
        };
        // A second try says nothing of how long an undisturbed one takes, nor does one that waited for a stage to have somebody.
        if lease.attempt == Attempt(0) && lease.since >= self.stood_until {
            let sample = now.since(lease.since);
            self.smoothed = Some(match self.smoothed {
                None => sample,
                Some(old) => Span(old.0 - (old.0 >> SMOOTHING_SHIFT) + (sample.0 >> SMOOTHING_SHIFT)),
            });
        }
        self.settled_before(microbatch);
        Ok(())
    }

    /// Leases again what has expired, to whom `to` says now, for twice as long as before.
    pub fn expire(&mut self, now: Time, to: impl Fn(MicrobatchId, PeerId) -> Option<PeerId>) -> Vec<Renewed> {
        let due = self.out.expired(now).into_iter();
        let due: Vec<(MicrobatchId, PeerId)> = due.map(|m| (m, self.out.leases[&m].to)).collect();
        due.into_iter().map(|(m, holder)| self.renew(now, m, to(m, holder).unwrap_or(holder))).collect()
    }

    /// Leases again all that is out at a peer that is lost, to whom `to` says.
    pub fn lost(
        &mut self,
        now: Time,
        peer: PeerId,
        to: impl Fn(MicrobatchId) -> Option<PeerId>,
    ) -> Vec<Renewed> {
        let of_peer = self.out.leases.iter().filter(|(_, lease)| lease.to == peer).map(|(m, _)| *m);
        let renewed: Vec<(MicrobatchId, Option<PeerId>)> = of_peer.map(|m| (m, to(m))).collect();
        renewed.into_iter().filter_map(|(m, to)| Some(self.renew(now, m, to?))).collect()
    }

    /// Lists the peers at which something is out.
    pub fn holders(&self) -> BTreeSet<PeerId> {
        self.out.held.keys().copied().collect()
    }

    /// Returns whether a microbatch is out at a peer.
    pub fn is_held_by(&self, microbatch: MicrobatchId, peer: PeerId) -> bool {
        self.out.leases.get(&microbatch).is_some_and(|lease| lease.to == peer)
    }

    /// Leases to another peer what its holder would not take.
    pub fn move_to(&mut self, now: Time, microbatch: MicrobatchId, to: PeerId) -> Renewed {
        self.renew(now, microbatch, to)
    }

    /// Leases again all held-out microbatches that are out: nobody keeps them, so that one may have been lost with a peer.
    pub fn held_out_again(&mut self, now: Time) -> Vec<Renewed> {
        let held_out = self.out.leases.iter().filter(|(m, _)| m.split == Split::HeldOut);
        let out: Vec<(MicrobatchId, PeerId)> = held_out.map(|(m, lease)| (*m, lease.to)).collect();
        out.into_iter().map(|(m, to)| self.renew(now, m, to)).collect()
    }

    /// Lists what is out at a peer, to be told again as it is.
    pub fn out_at(&self, peer: PeerId) -> Vec<Renewed> {
        let of_peer = self.out.leases.iter().filter(|(_, lease)| lease.to == peer);
        of_peer
            .map(|(microbatch, lease)| Renewed {
                microbatch: *microbatch,
                to: lease.to,
                attempt: lease.attempt,
                needs: lease.needs.clone(),
            })
            .collect()
    }

    fn renew(&mut self, now: Time, microbatch: MicrobatchId, to: PeerId) -> Renewed {
        let needs = self.out.leases.get(&microbatch).map_or(Needs::All, |lease| lease.needs.clone());
        self.again(now, microbatch, needs, to)
    }

    /// Lets no lease expire for some time: a stage stands still, and trying again would not help.
    pub fn postpone(&mut self, now: Time) {
        let until = now + self.expiry(Attempt(0));
        self.out.postpone(until);
    }

    /// Hears that a stage has somebody again for which all that is out had to wait.
    pub fn stood_still(&mut self, now: Time) {
        self.stood_until = now;
    }

    /// Returns a microbatch that was tried too often to be tried again.
    pub fn stuck(&self) -> Option<MicrobatchId> {
        self.out.stuck.first().copied()
    }

    /// Stops handing out at the next step that has not begun and at whose border replicas agree, and returns that border.
    pub fn stop(&mut self) -> InnerStep {
        let begun = !self.is_empty() || !self.settled_train.is_empty();
        let border = if begun { InnerStep(self.highest_step.0 + 1) } else { self.highest_step };
        let border = self.agenda.stop_at_or_after(border.min(self.agenda.steps()));
        self.stop_before = Some(border);
        border
    }

    /// Goes on with a stop that was decided before.
    pub fn stop_at(&mut self, border: InnerStep) {
        self.stop_before = Some(border);
    }

    /// Returns how long a try lasts.
    pub fn expiry(&self, attempt: Attempt) -> Span {
        let base = self.smoothed.map_or(EXPIRY_FIRST, |s| Span((s.0 * EXPIRY_FACTOR).max(EXPIRY_MIN.0)));
        Span(base.0 << attempt.0.min(DOUBLINGS_MAX))
    }

    /// Returns when the next lease expires.
    pub fn deadline(&self) -> Option<Time> {
        self.out.expiries.first().map(|(at, _)| *at)
    }

    /// Returns whether nothing is out.
    pub fn is_empty(&self) -> bool {
        self.out.leases.is_empty()
    }

    /// Returns whether a training microbatch is out.
    pub fn is_out(&self, index: u64) -> bool {
        self.out.leases.contains_key(&MicrobatchId::train(index))
    }

    /// Returns whether a training microbatch is out for the first time.
    pub fn is_first_try(&self, index: u64) -> bool {
        self.out.leases.get(&MicrobatchId::train(index)).is_some_and(|lease| lease.attempt == Attempt(0))
    }

    /// Returns the training microbatches that came back through the whole pipeline at least once.
    pub fn settled(&self) -> &IndexSet {
        &self.settled_train
    }

    /// Returns how far the run is: nothing below is out.
    pub fn frontier(&self) -> Frontier {
        let below = |settled: &IndexSet, split| {
            self.out.first(split).map_or(settled.watermark(), |index| index.min(settled.watermark()))
        };
        Frontier {
            train_below: below(&self.settled_train, Split::Train),
            held_out_below: below(&self.settled_held_out, Split::HeldOut),
        }
    }

    /// Returns the highest step of which work is handed out.
    pub fn highest_step(&self) -> InnerStep {
        self.highest_step
    }

    /// Returns the step behind the lowest that is out for the first time: little of it has begun.
    pub fn next_to_begin(&self) -> InnerStep {
        let first_try = self.out.leases.iter().filter(|(_, lease)| lease.attempt == Attempt(0));
        let begun = first_try.filter_map(|(microbatch, _)| self.agenda.step_of(*microbatch)).min();
        begun.map_or(self.highest_step, |begun| InnerStep(begun.0 + 1))
    }

    /// Returns how far work is handed out.
    pub fn handed_out(&self) -> HandedOut {
        self.handed_out
    }

    /// Returns the training index below which everything has been leased, settled or not.
    pub fn leased_below(&self) -> u64 {
        self.handed_out.train_below
    }
}

#[cfg(test)]
mod tests;
