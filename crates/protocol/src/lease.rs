//! Leases: which microbatches are out, to whom, and until when.
//!
//! Owns handing work out in the order of the agenda and taking it back when a lease expires. Knows nothing of messages.

use crate::agenda::Agenda;
use crate::ids::{Attempt, InnerStep, MicrobatchId, PeerId, Split};
use crate::index_set::IndexSet;
use crate::time::{Span, Time};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// The first lease of a run: long enough for a device to compile its kernels and take its first memory.
const EXPIRY_FIRST: Span = Span::seconds(300);

/// No lease is shorter, so that a pause of an operating system is not a fault.
const EXPIRY_MIN: Span = Span::seconds(20);

/// A lease expires after this many times the smoothed time from lease to settlement.
const EXPIRY_FACTOR: u64 = 16;

/// Weight of a new sample in the smoothed time, as 1 / 8.
const SMOOTHING_SHIFT: u64 = 3;

/// After so many tries a microbatch is taken to be stuck; each lasts twice as long as the one before.
pub const ATTEMPTS_MAX: u16 = 3;

/// A microbatch that is out.
#[derive(Clone, Copy, Debug)]
struct Lease {
    to: PeerId,
    attempt: Attempt,
    since: Time,
    expires: Time,
}

/// Why a settlement changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsettled {
    /// It was settled before.
    Duplicate,
    /// It was never leased to that peer.
    NotLeased,
}

/// An expired lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Of which microbatch.
    pub microbatch: MicrobatchId,
    /// Who had it.
    pub to: PeerId,
    /// The try that ran out.
    pub attempt: Attempt,
}

/// The leases of a run.
pub struct Leases {
    upcoming: core::iter::Peekable<Box<dyn Iterator<Item = MicrobatchId> + Send>>,
    agenda: Agenda,
    out: BTreeMap<MicrobatchId, Lease>,
    settled_train: IndexSet,
    settled_held_out: IndexSet,
    ahead: usize,
    stop_before: Option<InnerStep>,
    smoothed: Option<Span>,
    highest_step: InnerStep,
    /// One more than the highest training index that was ever out.
    leased_below: u64,
}

impl Leases {
    /// Starts the book at a step; at most `ahead` microbatches are out at one peer.
    ///
    /// The bound is each peer's, because its queue is: a slow replica must not be given what a fast one has room for.
    pub fn new(agenda: Agenda, start: InnerStep, ahead: usize) -> Self {
        let upcoming: Box<dyn Iterator<Item = MicrobatchId> + Send> = Box::new(agenda.from(start));
        Self {
            upcoming: upcoming.peekable(),
            agenda,
            out: BTreeMap::new(),
            settled_train: IndexSet::starting_at(agenda.training_of(start).start),
            settled_held_out: IndexSet::starting_at(agenda.evaluated_before(start)),
            ahead,
            stop_before: None,
            smoothed: None,
            highest_step: start,
            leased_below: agenda.training_of(start).start,
        }
    }

    /// Takes the next microbatches of the agenda, as many as may be out.
    pub fn take(
        &mut self,
        now: Time,
        max: usize,
        to: impl Fn(MicrobatchId) -> Option<PeerId>,
    ) -> Vec<(MicrobatchId, PeerId)> {
        let mut taken = Vec::new();
        let expires = now + self.expiry(Attempt(0));
        let mut held: BTreeMap<PeerId, usize> = BTreeMap::new();
        for lease in self.out.values() {
            *held.entry(lease.to).or_default() += 1;
        }
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
            self.out.insert(microbatch, Lease { to, attempt: Attempt(0), since: now, expires });
            self.highest_step = self.highest_step.max(self.agenda.step_of(microbatch).unwrap_or_default());
            if microbatch.split == Split::Train {
                self.leased_below = self.leased_below.max(microbatch.index + 1);
            }
            taken.push((microbatch, to));
        }
        taken
    }

    /// Settles a microbatch.
    pub fn settle(&mut self, now: Time, microbatch: MicrobatchId, by: PeerId) -> Result<(), Unsettled> {
        let settled = match microbatch.split {
            Split::Train => &mut self.settled_train,
            Split::HeldOut => &mut self.settled_held_out,
        };
        if settled.contains(microbatch.index) {
            return Err(Unsettled::Duplicate);
        }
        let trained_by_another = |lease: &Lease| microbatch.split == Split::Train && lease.to != by;
        match self.out.get(&microbatch) {
            None => return Err(Unsettled::NotLeased),
            Some(lease) if trained_by_another(lease) => return Err(Unsettled::NotLeased),
            Some(lease) => {
                let sample = now.since(lease.since);
                self.smoothed = Some(match self.smoothed {
                    None => sample,
                    Some(old) => Span(old.0 - (old.0 >> SMOOTHING_SHIFT) + (sample.0 >> SMOOTHING_SHIFT)),
                });
            }
        }
        self.out.remove(&microbatch);
        settled.insert(microbatch.index);
        Ok(())
    }

    /// Leases again what has expired, for twice as long as before; the caller tells the holder.
    pub fn expire(&mut self, now: Time) -> Vec<Expired> {
        let mut expired = Vec::new();
        let base = self.expiry(Attempt(0));
        for (&microbatch, lease) in self.out.iter_mut().filter(|(_, lease)| lease.expires <= now) {
            expired.push(Expired { microbatch, to: lease.to, attempt: lease.attempt });
            lease.attempt = Attempt(lease.attempt.0.saturating_add(1));
            lease.expires = now + Span(base.0 << lease.attempt.0.min(ATTEMPTS_MAX));
        }
        expired
    }

    /// Stops handing out at the next step that has not begun and at whose border replicas agree, and returns that border.
    pub fn stop(&mut self) -> InnerStep {
        let begun = !self.out.is_empty() || !self.settled_train.is_empty();
        let border = if begun { InnerStep(self.highest_step.0 + 1) } else { self.highest_step };
        let border = self.agenda.stop_at_or_after(border.min(self.agenda.steps()));
        self.stop_before = Some(border);
        border
    }

    /// Returns how long a try lasts.
    pub fn expiry(&self, attempt: Attempt) -> Span {
        let base = self.smoothed.map_or(EXPIRY_FIRST, |s| Span((s.0 * EXPIRY_FACTOR).max(EXPIRY_MIN.0)));
        Span(base.0 << attempt.0.min(ATTEMPTS_MAX))
    }

    /// Returns when the next lease expires.
    pub fn deadline(&self) -> Option<Time> {
        self.out.values().map(|lease| lease.expires).min()
    }

    /// Returns whether training microbatches are out.
    pub fn training_out(&self) -> bool {
        self.out.last_key_value().is_some_and(|(m, _)| m.split == Split::Train)
    }

    /// Returns whether nothing is out.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Returns the steps whose training microbatches are all settled.
    pub fn settled_steps(&self) -> InnerStep {
        InnerStep(self.settled_train.watermark() / self.agenda.microbatches_of_all())
    }

    /// Returns the training index below which everything has been leased, settled or not.
    pub fn leased_below(&self) -> u64 {
        self.leased_below
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec;

    const PEER: PeerId = PeerId([1; 32]);

    fn leases(ahead: usize) -> Leases {
        // Two steps of four microbatches, one evaluation of two at the end.
        Leases::new(Agenda::new(&spec()), InnerStep(0), ahead)
    }

    fn take(leases: &mut Leases, now: u64) -> Vec<MicrobatchId> {
        leases.take(Time(now), 100, |_| Some(PEER)).into_iter().map(|(m, _)| m).collect()
    }

    #[test]
    fn no_more_is_out_than_allowed_and_everything_comes_once() {
        let mut leases = leases(3);
        let mut seen: Vec<MicrobatchId> = Vec::new();
        loop {
            let taken = take(&mut leases, 0);
            assert!(leases.out.len() <= 3);
            if taken.is_empty() {
                break;
            }
            seen.extend(&taken);
            for microbatch in taken {
                assert_eq!(leases.settle(Time(5), microbatch, PEER), Ok(()));
                assert_eq!(leases.settle(Time(5), microbatch, PEER), Err(Unsettled::Duplicate));
            }
        }
        assert_eq!(seen, Agenda::new(&spec()).from(InnerStep(0)).collect::<Vec<_>>());
    }

    #[test]
    fn a_slow_peer_is_given_no_more_than_its_queue_holds() {
        let (fast, slow) = (PeerId([1; 32]), PeerId([2; 32]));
        let mut leases = leases(2);
        let mut out_at_slow = 0;
        for _ in 0..10 {
            let taken =
                leases.take(Time(0), 100, |m| Some(if m.index.is_multiple_of(2) { fast } else { slow }));
            for (microbatch, to) in taken {
                if to == fast {
                    leases.settle(Time(1), microbatch, fast).unwrap();
                } else {
                    out_at_slow += 1;
                }
            }
        }
        assert_eq!(out_at_slow, 2, "the fast one waits rather than the slow one's queue overflow");
    }

    #[test]
    fn an_expired_lease_goes_out_again_and_lasts_longer() {
        let mut leases = leases(1);
        let microbatch = take(&mut leases, 0)[0];
        let deadline = leases.deadline().unwrap();
        assert!(leases.expire(deadline - Span(1)).is_empty());
        let expired = leases.expire(deadline);
        assert_eq!(expired, [Expired { microbatch, to: PEER, attempt: Attempt(0) }]);
        assert_eq!(leases.deadline().unwrap().since(deadline), Span(2 * EXPIRY_FIRST.0));
    }

    #[test]
    fn what_was_not_leased_to_a_peer_is_not_settled_by_it() {
        let mut leases = leases(1);
        let microbatch = take(&mut leases, 0)[0];
        assert_eq!(leases.settle(Time(1), microbatch, PeerId([2; 32])), Err(Unsettled::NotLeased));
        assert_eq!(leases.settle(Time(1), MicrobatchId::train(7), PEER), Err(Unsettled::NotLeased));
    }

    #[test]
    fn a_stop_lets_the_begun_step_end() {
        let mut leases = leases(2);
        let begun = take(&mut leases, 0);
        assert_eq!(leases.stop(), InnerStep(1));
        let mut trained = begun.clone();
        for m in begun {
            leases.settle(Time(1), m, PEER).unwrap();
        }
        loop {
            let more = take(&mut leases, 1);
            if more.is_empty() {
                break;
            }
            trained.extend(&more);
            more.into_iter().for_each(|m| leases.settle(Time(2), m, PEER).unwrap());
        }
        assert_eq!(trained, (0..4).map(MicrobatchId::train).collect::<Vec<_>>());
        assert_eq!((leases.settled_steps(), leases.is_empty()), (InnerStep(1), true));
    }
}
