//! A rehearsal: outer steps without training, one after another, to measure and to test how replicas agree.
//!
//! Owns the two roles of it, around the same transaction that a run uses. Peers may be lost on the way: the others go on.
//! Knows nothing of what is exchanged.

use crate::agenda::Agenda;
use crate::durable::Durable;
use crate::event::Event;
use crate::ids::{Attempt, InnerStep, MicrobatchId, OuterStep, PeerId, PlanNumber, StageId};
use crate::message::{Join, Message, Outcome, Refusal, Start};
use crate::plan::{Candidate, Plan, place};
use crate::port::{Action, Input, Outbox, StoreItem};
use crate::spec::RunSpec;
use crate::sync::arbiter::{Arbiter, ArbiterConfig, Weighing};
use crate::sync::group::Group;
use crate::sync::member::{Decision, Member};
use crate::sync::task::{SyncDone, SyncTask};
use crate::time::{Span, Time};
use crate::work::{Frontier, Needs};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// A replica that does not answer for so long is lost: nothing but the exchange keeps it from answering.
const SILENCE_MIN: Span = Span::millis(500);

/// Peers that may wait for a place beyond those that there are.
const SURPLUS_MAX: usize = 16;

/// The peer that gathers replicas and judges their outer steps.
#[derive(Debug)]
pub struct Host {
    spec: RunSpec,
    agenda: Agenda,
    me: PeerId,
    candidates: Vec<Candidate>,
    plan: Option<Plan>,
    waiting: BTreeSet<PeerId>,
    arbiter: Option<Arbiter>,
    over: bool,
}

impl Host {
    /// Makes a host of as many outer steps as the spec has.
    pub fn new(spec: RunSpec, me: PeerId) -> Self {
        let agenda = Agenda::new(&spec);
        let (candidates, waiting) = (Vec::new(), BTreeSet::new());
        Self { spec, agenda, me, candidates, plan: None, waiting, arbiter: None, over: false }
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        if self.over {
            return;
        }
        match input {
            Input::Received { from, message } => {
                if let Err(refusal) = self.received(now, from, message, out) {
                    out.refuse(from, refusal);
                }
            }
            Input::Lost { peer, reason } => {
                out.record(Event::PeerLost { peer, stage: None, reason });
                self.candidates.retain(|candidate| candidate.peer != peer);
                self.waiting.remove(&peer);
                if let Some(arbiter) = &mut self.arbiter {
                    arbiter.lost(peer);
                }
            }
            Input::Stored { .. } => {
                if let Some(arbiter) = &mut self.arbiter {
                    arbiter.stored(now, out);
                }
            }
            Input::Rejected { peer, reason } => out.record(Event::Rejected { peer, reason }),
            Input::Faulted { reason } => self.finish(Outcome::Failed { reason }, out),
            Input::Drain | Input::Leave { .. } => self.finish(Outcome::Stopped { step: InnerStep(0) }, out),
            Input::Connected { .. }
            | Input::Forwarded { .. }
            | Input::Backwarded { .. }
            | Input::Stepped { .. }
            | Input::Sync(_)
            | Input::Exported { .. }
            | Input::Unfit { .. }
            | Input::Loaded { .. }
            | Input::Woke => {}
        }
        self.advance(now, out);
    }

    /// Returns when to be woken.
    pub fn deadline(&self) -> Option<Time> {
        self.arbiter.as_ref().and_then(Arbiter::deadline)
    }

    fn received(
        &mut self,
        now: Time,
        from: PeerId,
        message: Message,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        match (message, &mut self.arbiter) {
            (Message::Join(join), _) => self.joined(from, join, out),
            (Message::Ready { .. }, Some(_)) => {
                if self.waiting.remove(&from) && self.waiting.is_empty() {
                    self.start(out);
                }
                Ok(())
            }
            (Message::Sync(say), Some(arbiter)) => arbiter.received(now, from, say, out),
            (Message::Failed { reason }, Some(arbiter)) => {
                out.record(Event::PeerLost {
                    peer: from,
                    stage: None,
                    reason: reason.chars().take(256).collect(),
                });
                arbiter.lost(from);
                Ok(())
            }
            (Message::PeerLost { .. }, Some(_)) => Ok(()),
            (Message::Refused(refusal), _) => {
                out.record(Event::RefusedBy { peer: from, refusal });
                Ok(())
            }
            (_, _) => Err(Refusal::NotYours { peer: from }),
        }
    }

    fn joined(&mut self, from: PeerId, join: Join, out: &mut Outbox) -> Result<(), Refusal> {
        let replicas = self.spec.pipeline.replicas;
        if self.plan.is_some() || self.candidates.len() >= usize::from(replicas) + SURPLUS_MAX {
            return Err(Refusal::PlanFull);
        }
        self.candidates.retain(|candidate| candidate.peer != from);
        out.record(Event::Joined { peer: from, device: join.device, peak_flops: 0 });
        self.candidates.push(Candidate { peer: from, address: join.address, stage: None });
        let Some(plan) = place(PlanNumber(1), self.me, 1, replicas, &self.candidates) else { return Ok(()) };
        let config = ArbiterConfig {
            agenda: self.agenda,
            step_tokens: self.spec.step_tokens(),
            weighing: Weighing::Equal,
            silence_min: SILENCE_MIN,
        };
        self.arbiter = Some(Arbiter::new(config, &plan, InnerStep(0), None));
        for member in &plan.members {
            self.waiting.insert(member.peer);
            let (start, frontier) = (Start::Fresh, Frontier::default());
            out.send(member.peer, Message::Placed { plan: plan.clone(), start, frontier });
        }
        self.plan = Some(plan);
        Ok(())
    }

    /// Lets all begin, now that each is connected to each.
    fn start(&self, out: &mut Outbox) {
        out.record(Event::Started { step: InnerStep(0) });
        for member in self.plan.iter().flat_map(|plan| &plan.members) {
            let microbatches = vec![MicrobatchId::train(0)];
            let (attempt, expires_in) = (Attempt(0), Span(u64::MAX));
            out.send(member.peer, Message::Lease { microbatches, attempt, needs: Needs::All, expires_in });
        }
    }

    fn advance(&mut self, now: Time, out: &mut Outbox) {
        let Some(arbiter) = &mut self.arbiter else { return };
        arbiter.advance(now, &|_| false, out);
        if let Some(committed) = arbiter.take_store() {
            let (run, agreed) = (self.spec.digest(), Some(committed));
            let state = Durable { run, checkpoint: None, agreed, session: None }.bytes();
            out.push(Action::Store(StoreItem::Coordinator { state, accounts: Vec::new() }));
        }
        // Who is lost is on record already; the others go on.
        let _ = arbiter.take_lost();
        let done = self.agenda.outer_border(arbiter.open()).is_none();
        if done {
            self.finish(Outcome::Done, out);
        } else if !arbiter.has_members() {
            self.finish(Outcome::Failed { reason: String::from("every replica is lost") }, out);
        }
    }

    fn finish(&mut self, outcome: Outcome, out: &mut Outbox) {
        self.over = true;
        for member in self.plan.iter().flat_map(|plan| &plan.members) {
            out.send(member.peer, Message::Finish { outcome: outcome.clone() });
        }
        out.record(Event::Finished { outcome: outcome.clone() });
        out.push(Action::Finish(outcome));
    }
}

/// A replica that exchanges and does not train.
#[derive(Debug)]
pub struct Guest {
    agenda: Agenda,
    me: PeerId,
    host: PeerId,
    join: Join,
    plan: Option<Plan>,
    member: Option<Member>,
    unconnected: BTreeSet<PeerId>,
    next: OuterStep,
    over: bool,
}

impl Guest {
    /// Makes a replica that asks its host for a place once it is connected.
    pub fn new(spec: &RunSpec, me: PeerId, host: PeerId, join: Join) -> Self {
        let (agenda, unconnected) = (Agenda::new(spec), BTreeSet::new());
        Self {
            agenda,
            me,
            host,
            join,
            plan: None,
            member: None,
            unconnected,
            next: OuterStep(0),
            over: false,
        }
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        if self.over {
            return;
        }
        match input {
            Input::Received { from, message } => {
                if let Err(refusal) = self.received(now, from, message, out) {
                    out.refuse(from, refusal);
                }
            }
            Input::Connected { peer } if peer == self.host && self.plan.is_none() => {
                out.send(peer, Message::Join(self.join.clone()));
            }
            Input::Connected { peer } => {
                if self.unconnected.remove(&peer) && self.unconnected.is_empty() {
                    self.ready(out);
                }
            }
            Input::Loaded { .. } => {
                if self.unconnected.is_empty() {
                    self.ready(out);
                }
            }
            Input::Lost { peer, reason } if peer == self.host => {
                self.finish(Outcome::Failed { reason: format!("host {peer} is lost: {reason}") }, out);
            }
            Input::Lost { peer, reason } => {
                out.record(Event::PeerLost { peer, stage: None, reason });
                if let Some(member) = &mut self.member {
                    member.lost(now, peer, out);
                }
            }
            Input::Sync(done) => self.sync_done(now, done, out),
            Input::Rejected { peer, reason } => out.record(Event::Rejected { peer, reason }),
            Input::Faulted { reason } => {
                out.send(self.host, Message::Failed { reason: reason.clone() });
                self.finish(Outcome::Failed { reason }, out);
            }
            Input::Drain | Input::Leave { .. } => self.finish(Outcome::Stopped { step: InnerStep(0) }, out),
            Input::Woke => {
                if let Some(member) = &mut self.member {
                    member.woke(now, out);
                }
            }
            Input::Forwarded { .. }
            | Input::Backwarded { .. }
            | Input::Stepped { .. }
            | Input::Exported { .. }
            | Input::Unfit { .. }
            | Input::Stored { .. } => {}
        }
        if let Some((outer, Decision::Excluded)) = self.member.as_mut().and_then(Member::take_decision) {
            let reason = format!("the others went on without this replica at outer step {}", outer.0);
            self.finish(Outcome::Failed { reason }, out);
        }
    }

    /// Returns when to be woken.
    pub fn deadline(&self) -> Option<Time> {
        self.member.as_ref().and_then(Member::deadline)
    }

    fn received(
        &mut self,
        now: Time,
        from: PeerId,
        message: Message,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let from_host = from == self.host;
        match (message, &mut self.member) {
            (Message::Placed { plan, start, .. }, None) if from_host => self.placed(plan, start, out),
            (Message::Lease { .. }, Some(_)) if from_host => {
                if self.next == OuterStep(0) {
                    self.snapshot(out);
                }
                Ok(())
            }
            (Message::Sync(say), Some(member)) => member.received(now, from, say, out),
            (Message::Finish { outcome }, _) if from_host => {
                self.finish(outcome, out);
                Ok(())
            }
            (Message::Refused(refusal), _) => {
                out.record(Event::RefusedBy { peer: from, refusal: refusal.clone() });
                if from_host && self.plan.is_none() {
                    self.finish(Outcome::Failed { reason: format!("host {from} refused: {refusal}") }, out);
                }
                Ok(())
            }
            (_, _) => Err(Refusal::NotYours { peer: from }),
        }
    }

    fn placed(&mut self, plan: Plan, start: Start, out: &mut Outbox) -> Result<(), Refusal> {
        let place = plan.place_of(self.me).ok_or(Refusal::NotMember { peer: self.me })?;
        // Of two replicas the earlier dials, so that one connection joins them.
        for member in plan.members.iter().filter(|member| member.place.replica > place.replica) {
            self.unconnected.insert(member.peer);
            out.push(Action::Dial { peer: member.peer, address: member.address.clone() });
        }
        self.member = Some(Member::new(place.replica, self.host, Group::of(&plan, StageId(0))));
        self.plan = Some(plan);
        out.push(Action::Load { place, start });
        Ok(())
    }

    fn ready(&self, out: &mut Outbox) {
        if let Some(plan) = &self.plan {
            out.send(self.host, Message::Ready { plan: plan.number, holds: None });
        }
    }

    fn snapshot(&mut self, out: &mut Outbox) {
        let outer = self.next;
        if self.agenda.outer_border(outer).is_some() {
            self.next = OuterStep(outer.0 + 1);
            out.push(Action::Sync(SyncTask::Snapshot { outer, microbatches: 0 }));
        }
    }

    fn sync_done(&mut self, now: Time, done: SyncDone, out: &mut Outbox) {
        let Some(member) = &mut self.member else { return };
        let (task, took) = done.task();
        out.record(Event::Computed { task, microbatch: None, took });
        match &done {
            SyncDone::Snapshotted { outer, .. } => {
                let border = self.agenda.outer_border(*outer);
                member.reached(now, *outer, border.expect("a snapshot is asked for at a border"), out);
            }
            SyncDone::Committed { outer, .. } => out.push(Action::Sync(SyncTask::Adopt { outer: *outer })),
            SyncDone::Restored { .. } | SyncDone::Adopted { .. } => self.snapshot(out),
            SyncDone::Encoded { .. } | SyncDone::Reduced { .. } | SyncDone::Staged { .. } => {
                member.done(now, done, out);
            }
        }
    }

    fn finish(&mut self, outcome: Outcome, out: &mut Outbox) {
        self.over = true;
        out.record(Event::Finished { outcome: outcome.clone() });
        out.push(Action::Finish(outcome));
    }
}
