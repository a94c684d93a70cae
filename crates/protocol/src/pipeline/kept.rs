//! A microbatch between its arrival at a stage and the end of its work there.
//!
//! Owns what is kept of it, who asked for it and who was asked. Knows nothing of the queue that it is in.

use crate::ids::{Attempt, InnerStep, PeerId, SeatId, WeightVersion};
use crate::port::Duty;
use crate::time::Time;
use crate::work::Needs;
use alloc::vec::Vec;
use bytes::Bytes;

/// Peers that may ask for one microbatch: the first, and those that took over from it.
const ASKERS_MAX: usize = 8;

/// Who wants a microbatch's work, and gets its gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// The coordinator, by a lease: this is the first stage, which reads tokens.
    Lease,
    /// A peer of the stage before.
    Peer(PeerId),
}

impl Asker {
    /// Returns to whom an answer goes.
    pub(crate) fn peer(self, coordinator: PeerId) -> PeerId {
        match self {
            Asker::Lease => coordinator,
            Asker::Peer(peer) => peer,
        }
    }
}

/// A microbatch here.
#[derive(Clone, Debug)]
pub struct Kept {
    pub(crate) askers: Vec<Asker>,
    pub(crate) attempt: Attempt,
    pub(crate) needs: Needs,
    pub(crate) duty: Duty,
    pub(crate) input: Option<Bytes>,
    /// The version of the weights of its forward.
    pub(crate) version: WeightVersion,
    /// What goes to the next stage; `None` until the forward is done, and at the last stage.
    pub(crate) output: Option<Bytes>,
    /// Whom of the next stage it was sent to, and when; the last is the one that is waited for.
    pub(crate) sent_to: Vec<(PeerId, Time)>,
    /// All it was ever sent to: whoever answers is heard, also one that is not waited for any more.
    pub(crate) asked: Vec<PeerId>,
    /// Whom it had gone to when it gave way to earlier work.
    pub(crate) before: Option<PeerId>,
    /// Who of the next stage would not take it now.
    pub(crate) refused_by: Vec<PeerId>,
    /// Whose gradient is used.
    pub(crate) answer: Option<Answer>,
}

impl Kept {
    pub(crate) fn new(
        asker: Asker,
        attempt: Attempt,
        needs: Needs,
        duty: Duty,
        input: Option<Bytes>,
    ) -> Self {
        Self {
            askers: alloc::vec![asker],
            attempt,
            needs,
            duty,
            input,
            version: WeightVersion(0),
            output: None,
            sent_to: Vec::new(),
            asked: Vec::new(),
            before: None,
            refused_by: Vec::new(),
            answer: None,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.input.iter().chain(&self.output).map(Bytes::len).sum()
    }

    /// Notes that somebody asks, again or too.
    pub(crate) fn asked(&mut self, asker: Asker, attempt: Attempt, needs: &Needs) {
        self.attempt = self.attempt.max(attempt);
        self.needs.join(needs);
        self.askers.retain(|known| *known != asker);
        if self.askers.len() == ASKERS_MAX {
            self.askers.remove(0);
        }
        self.askers.push(asker);
    }

    pub(crate) fn sent(&mut self, to: PeerId, now: Time) {
        self.sent_to.retain(|(peer, _)| *peer != to);
        self.sent_to.push((to, now));
        if !self.asked.contains(&to) {
            self.asked.push(to);
        }
    }

    pub(crate) fn was_sent_to(&self, peer: PeerId) -> bool {
        self.asked.contains(&peer)
    }

    /// Lets a peer owe its answer no longer; returns whether it did.
    pub(crate) fn excuse(&mut self, peer: PeerId) -> bool {
        self.asked.extract_if(.., |asked| *asked == peer).count() > 0
    }

    /// Lets the output go, which the forward gives again and which is to be sent again then.
    pub(crate) fn give_way(&mut self) {
        self.before = self.waits_for().map(|(peer, _)| peer).or(self.before);
        (self.output, self.answer) = (None, None);
        self.sent_to.clear();
    }

    /// Returns who is waited for, and since when.
    pub(crate) fn waits_for(&self) -> Option<(PeerId, Time)> {
        self.sent_to.last().copied()
    }

    /// Returns what a message to the next stage says of it.
    pub(crate) fn words(&self) -> Sent {
        Sent { attempt: self.attempt, needs: self.needs.clone() }
    }
}

/// What a message about a microbatch says beside its tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The try.
    pub attempt: Attempt,
    /// Which stages are to train it.
    pub needs: Needs,
}

/// Who of the next stage gave a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The peer.
    pub from: PeerId,
    /// The seat in which it did it.
    pub seat: SeatId,
    /// The step in which it trained the microbatch, if it did.
    pub trained: Option<InnerStep>,
}

/// What a finished backward leaves to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Who asked for the microbatch, and gets its gradient.
    pub askers: Vec<Asker>,
    /// The try.
    pub attempt: Attempt,
    /// Which stages were to train it.
    pub needs: Needs,
    /// The step of this replica that has it, if it trained it now or before.
    pub trained: Option<InnerStep>,
    /// Whose gradient was used.
    pub answer: Option<Answer>,
    /// All of the next stage who were asked for it.
    pub asked: Vec<PeerId>,
    /// Versions between its forward and its backward.
    pub staleness: u64,
}
