//! The run under way, as the coordinator sees it: what is out, what is credited, what is being made durable.
//!
//! Owns leasing and what is leased again. May not know how a run begins or ends, or what a peer may say.

use crate::agenda::Agenda;
use crate::book::Book;
use crate::durable::Checkpoint;
use crate::event::Event;
use crate::ids::{Attempt, Digest, InnerStep, MicrobatchId, PeerId, StageId};
use crate::lease::{ATTEMPTS_MAX, Leases};
use crate::ledger::Ledger;
use crate::message::{LEASE_MICROBATCHES_MAX, Message};
use crate::plan::{Place, Plan};
use crate::port::Outbox;
use crate::route;
use crate::sync::arbiter::Arbiter;
use crate::time::{Span, Time};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The run under way.
pub(crate) struct Running {
    /// Who holds which place.
    pub(crate) plan: Plan,
    /// Which microbatches are out.
    pub(crate) leases: Leases,
    /// Who is credited with what.
    pub(crate) ledger: Ledger,
    /// What was heard of each step.
    pub(crate) book: Book,
    /// The step at which this session began.
    pub(crate) planned_from: InnerStep,
    /// When the last training microbatch was settled.
    pub(crate) settled_at: Time,
    /// Saved states of places, by border, until all places have saved.
    pub(crate) saves: BTreeMap<InnerStep, BTreeMap<Place, (Digest, Span)>>,
    /// What is being made durable, in the order in which it was asked for.
    pub(crate) storing: VecDeque<Storing>,
    /// Decides the outer steps; `None` where each stage has one replica.
    pub(crate) arbiter: Option<Arbiter>,
    /// The border at which the run stops, once it was asked to.
    pub(crate) drain: Option<InnerStep>,
}

/// What a store is for.
pub(crate) enum Storing {
    /// A checkpoint, and how long the slowest stage stood still for it.
    Checkpoint(Checkpoint, Span),
    /// The commit of an outer step.
    Outer,
}

impl Storing {
    /// Returns the checkpoint, if that is what is stored.
    pub(crate) fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Storing::Checkpoint(checkpoint, _) => Some(checkpoint),
            Storing::Outer => None,
        }
    }
}

impl Running {
    /// Leases what may go out now.
    pub(crate) fn lease(&mut self, now: Time, out: &mut Outbox) {
        let plan = &self.plan;
        let taken = self.leases.take(now, LEASE_MICROBATCHES_MAX, |m| route::choose(plan, StageId(0), m));
        let mut by_peer: BTreeMap<PeerId, Vec<MicrobatchId>> = BTreeMap::new();
        for (microbatch, to) in taken {
            by_peer.entry(to).or_default().push(microbatch);
        }
        let attempt = Attempt(0);
        let expires_in = self.leases.expiry(attempt);
        for (peer, microbatches) in by_peer {
            let (first, count) = (microbatches[0], microbatches.len() as u32);
            out.record(Event::Leased { peer, first, count, attempt });
            out.send(peer, Message::Lease { microbatches, attempt, expires_in });
        }
    }

    /// Leases again what was not settled in time.
    ///
    /// # Errors
    /// A microbatch was leased as often as may be; says which.
    pub(crate) fn expire(&mut self, now: Time, out: &mut Outbox) -> Result<(), String> {
        let expired = self.leases.expire(now);
        let mut stuck = None;
        for lease in expired {
            out.record(Event::LeaseExpired { microbatch: lease.microbatch, attempt: lease.attempt });
            let attempt = Attempt(lease.attempt.0 + 1);
            if attempt.0 >= ATTEMPTS_MAX {
                stuck =
                    Some(format!("{} was leased {ATTEMPTS_MAX} times and never settled", lease.microbatch));
                continue;
            }
            let expires_in = self.leases.expiry(attempt);
            let microbatches = alloc::vec![lease.microbatch];
            out.send(lease.to, Message::Lease { microbatches, attempt, expires_in });
        }
        stuck.map_or(Ok(()), Err)
    }

    /// Adds credit to what a replica's contribution weighs.
    pub(crate) fn weigh(&mut self, agenda: &Agenda, place: Place, indices: &[u64]) {
        let Some(arbiter) = &mut self.arbiter else { return };
        for step in indices.iter().filter_map(|index| agenda.step_of(MicrobatchId::train(*index))) {
            arbiter.credit(step, place);
        }
    }
}
