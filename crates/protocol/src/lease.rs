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

/// The leases of a run.
pub struct Leases {
    upcoming: core::iter::Peekable<Box<dyn Iterator<Item = MicrobatchId> + Send>>,
    agenda: Agenda,
    out: BTreeMap<MicrobatchId, Lease>,
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
            out: BTreeMap::new(),
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
        let mut held = self.held();
        while taken.len() < max {
            let stop = self.stop_before;
            let ahead = self.ahead;
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
            *held.entry(to).or_default() += 1;
            let (attempt, needs) = (Attempt(0), Needs::All);
            self.out.insert(microbatch, Lease { to, attempt, needs, since: now, expires });
            self.highest_step = self.highest_step.max(self.agenda.step_of(microbatch).unwrap_or_default());
            self.handed_out.add(microbatch);
            taken.push((microbatch, to));
        }
        taken
    }

    fn held(&self) -> BTreeMap<PeerId, usize> {
        let mut held: BTreeMap<PeerId, usize> = BTreeMap::new();
        for lease in self.out.values() {
            *held.entry(lease.to).or_default() += 1;
        }
        held
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
        let out = self.out.iter().filter(|(m, lease)| lease.to == peer && before(m)).count();
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
        let out = self.out.get(&microbatch).map(|lease| lease.attempt);
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
        let Some(lease) = self.out.remove(&microbatch) else {
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
        let due = self.out.iter().filter(|(_, lease)| lease.expires <= now);
        let due: Vec<(MicrobatchId, PeerId)> = due.map(|(m, lease)| (*m, lease.to)).collect();
        due.into_iter().map(|(m, holder)| self.renew(now, m, to(m, holder).unwrap_or(holder))).collect()
    }

    /// Leases again all that is out at a peer that is lost, to whom `to` says.
    pub fn lost(
        &mut self,
        now: Time,
        peer: PeerId,
        to: impl Fn(MicrobatchId) -> Option<PeerId>,
    ) -> Vec<Renewed> {
        let of_peer = self.out.iter().filter(|(_, lease)| lease.to == peer).map(|(m, _)| *m);
        let renewed: Vec<(MicrobatchId, Option<PeerId>)> = of_peer.map(|m| (m, to(m))).collect();
        renewed.into_iter().filter_map(|(m, to)| Some(self.renew(now, m, to?))).collect()
    }

    /// Lists the peers at which something is out.
    pub fn holders(&self) -> BTreeSet<PeerId> {
        self.out.values().map(|lease| lease.to).collect()
    }

    /// Returns whether a microbatch is out at a peer.
    pub fn is_held_by(&self, microbatch: MicrobatchId, peer: PeerId) -> bool {
        self.out.get(&microbatch).is_some_and(|lease| lease.to == peer)
    }

    /// Leases to another peer what its holder would not take.
    pub fn move_to(&mut self, now: Time, microbatch: MicrobatchId, to: PeerId) -> Renewed {
        self.renew(now, microbatch, to)
    }

    /// Leases again all held-out microbatches that are out: nobody keeps them, so that one may have been lost with a peer.
    pub fn held_out_again(&mut self, now: Time) -> Vec<Renewed> {
        let held_out = self.out.iter().filter(|(m, _)| m.split == Split::HeldOut);
        let out: Vec<(MicrobatchId, PeerId)> = held_out.map(|(m, lease)| (*m, lease.to)).collect();
        out.into_iter().map(|(m, to)| self.renew(now, m, to)).collect()
    }

    /// Lists what is out at a peer, to be told again as it is.
    pub fn out_at(&self, peer: PeerId) -> Vec<Renewed> {
        let of_peer = self.out.iter().filter(|(_, lease)| lease.to == peer);
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
        let needs = self.out.get(&microbatch).map_or(Needs::All, |lease| lease.needs.clone());
        self.again(now, microbatch, needs, to)
    }

    /// Lets no lease expire for some time: a stage stands still, and trying again would not help.
    pub fn postpone(&mut self, now: Time) {
        let until = now + self.expiry(Attempt(0));
        self.out.values_mut().for_each(|lease| lease.expires = lease.expires.max(until));
    }

    /// Hears that a stage has somebody again for which all that is out had to wait.
    pub fn stood_still(&mut self, now: Time) {
        self.stood_until = now;
    }

    /// Returns a microbatch that was tried too often to be tried again.
    pub fn stuck(&self) -> Option<MicrobatchId> {
        self.out.iter().find(|(_, lease)| lease.attempt.0 >= ATTEMPTS_MAX).map(|(microbatch, _)| *microbatch)
    }

    /// Stops handing out at the next step that has not begun and at whose border replicas agree, and returns that border.
    pub fn stop(&mut self) -> InnerStep {
        let begun = !self.out.is_empty() || !self.settled_train.is_empty();
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
        self.out.values().map(|lease| lease.expires).min()
    }

    /// Returns whether nothing is out.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Returns whether a training microbatch is out.
    pub fn is_out(&self, index: u64) -> bool {
        self.out.contains_key(&MicrobatchId::train(index))
    }

    /// Returns whether a training microbatch is out for the first time.
    pub fn is_first_try(&self, index: u64) -> bool {
        self.out.get(&MicrobatchId::train(index)).is_some_and(|lease| lease.attempt == Attempt(0))
    }

    /// Returns the training microbatches that came back through the whole pipeline at least once.
    pub fn settled(&self) -> &IndexSet {
        &self.settled_train
    }

    /// Returns how far the run is: nothing below is out.
    pub fn frontier(&self) -> Frontier {
        let first = |split| self.out.keys().find(|m| m.split == split).map(|m| m.index);
        let below = |settled: &IndexSet, split| {
            first(split).map_or(settled.watermark(), |index| index.min(settled.watermark()))
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
        let first_try = self.out.iter().filter(|(_, lease)| lease.attempt == Attempt(0));
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
