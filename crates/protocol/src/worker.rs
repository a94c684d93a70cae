//! The worker: holds one stage, and turns messages into computations and computations into messages.
//!
//! Owns a peer's way from joining to leaving, and what it owes its neighbours. Knows nothing of who else works, beyond
//! the plan, and takes no decision about the run as a whole.

use crate::agenda::Agenda;
use crate::event::{Event, TaskKind};
use crate::ids::{Attempt, Digest, InnerStep, MicrobatchId, PeerId, Split, StageId};
use crate::message::{Join, Message, Outcome, Refusal, Start, StepReport, TEXT_BYTES_MAX, Tensor};
use crate::pipeline::{Offered, Origin, Pipeline, Task};
use crate::plan::{self, Place, Plan};
use crate::port::{Action, Input, Outbox, Output, StoreItem, StoredItem, Took};
use crate::receipt::{RECEIPT_MICROBATCHES_MAX, Receipt, Statement};
use crate::route;
use crate::spec::RunSpec;
use crate::sync::group::Group;
use crate::sync::member::{Decision, Member};
use crate::sync::task::{SyncDone, SyncTask};
use crate::time::{Span, Time};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use ed25519_dalek::SigningKey;

/// What a worker starts with.
pub struct WorkerConfig {
    /// The run.
    pub spec: RunSpec,
    /// Its key; the public half is its id.
    pub key: SigningKey,
    /// Who gives out work.
    pub coordinator: PeerId,
    /// What it says when it asks for a place.
    pub join: Join,
}

/// A peer that holds a stage.
pub struct Worker {
    spec: RunSpec,
    run: Digest,
    agenda: Agenda,
    key: SigningKey,
    me: PeerId,
    coordinator: PeerId,
    join: Join,
    phase: Phase,
}

enum Phase {
    /// Waits for the connection to the coordinator, then for a place.
    Joining,
    /// Has a place.
    Seated(Box<Seat>),
    /// Has left.
    Over,
}

struct Seat {
    place: Place,
    plan: Plan,
    loaded: bool,
    ready_said: bool,
    /// Peers of the next stage that are not connected yet.
    unconnected: BTreeSet<PeerId>,
    pipeline: Pipeline,
    /// This replica among those of its stage; `None` where it is the only one.
    member: Option<Member>,
    /// Since when computing stands still for the other replicas.
    standing_since: Option<Time>,
    /// Work received from others and not yet receipted.
    received: BTreeMap<(StageId, PeerId), Vec<u64>>,
    since_step: Tally,
}

/// What is summed up from one optimizer step to the next.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    began: Time,
    compute: Span,
    serialise: Span,
    sync: Span,
    staleness: u64,
    wire_bytes_before: u64,
}

impl Worker {
    /// Makes a worker that asks its coordinator for a place once it is connected.
    pub fn new(config: WorkerConfig) -> Self {
        let WorkerConfig { spec, key, coordinator, join } = config;
        let me = PeerId(key.verifying_key().to_bytes());
        let (run, agenda) = (spec.digest(), Agenda::new(&spec));
        Self { spec, run, agenda, key, me, coordinator, join, phase: Phase::Joining }
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        match input {
            Input::Received { from, message } => self.received(now, from, message, out),
            Input::Connected { peer } => self.connected(peer, out),
            Input::Lost { peer, reason } => self.lost(now, peer, reason, out),
            Input::Sync(done) => self.sync_done(now, done, out),
            Input::Rejected { peer, reason } => out.record(Event::Rejected { peer, reason }),
            Input::Faulted { reason } => self.fail(reason, out),
            Input::Loaded { took, .. } => self.loaded(took, out),
            Input::Forwarded { microbatch, output, took } => self.forwarded(microbatch, output, took, out),
            Input::Backwarded { microbatch, gradient, took } => {
                self.backwarded(microbatch, gradient, took, out)
            }
            Input::Stepped { gradient_norm, learning_rate, took, wire_bytes_total } => {
                self.stepped(now, (gradient_norm, learning_rate), took, wire_bytes_total, out)
            }
            Input::Stored { item, took } => self.stored(item, took, out),
            Input::Drain => self.fail(String::from("stopped by its operator"), out),
            Input::Woke => {
                if let Some(member) = self.member() {
                    member.woke(now, out);
                }
            }
        }
        self.follow_decision(out);
        self.advance(now, out);
    }

    /// Returns when to be woken: when what was said about an outer step is said again.
    pub fn deadline(&self) -> Option<Time> {
        self.seat().and_then(|seat| seat.member.as_ref()).and_then(Member::deadline)
    }

    fn member(&mut self) -> Option<&mut Member> {
        match &mut self.phase {
            Phase::Seated(seat) => seat.member.as_mut(),
            Phase::Joining | Phase::Over => None,
        }
    }

    fn sync_done(&mut self, now: Time, done: SyncDone, out: &mut Outbox) {
        let Phase::Seated(seat) = &mut self.phase else { return };
        let member = seat.member.as_mut().expect("the core asks for an outer step only among replicas");
        let (task, took) = done.task();
        out.record(Event::Computed { task, microbatch: None, took });
        match &done {
            SyncDone::Snapshotted { .. } => {
                seat.since_step.sync = seat.since_step.sync.saturating_add(took);
                let (outer, step) = seat.pipeline.snapshotted();
                member.reached(now, outer, step, out);
            }
            SyncDone::Adopted { .. } => {
                seat.since_step.sync = seat.since_step.sync.saturating_add(took);
                seat.pipeline.adopted();
            }
            SyncDone::Committed { .. } => seat.pipeline.committed(),
            SyncDone::Restored { .. } => seat.pipeline.restored(),
            SyncDone::Encoded { .. } | SyncDone::Reduced { .. } | SyncDone::Staged { .. } => {}
        }
        member.done(now, done, out);
    }

    /// Leaves when the others have gone on; commit and restore reach the pipeline when the driver has carried them out.
    fn follow_decision(&mut self, out: &mut Outbox) {
        let Some((outer, decision)) = self.member().and_then(Member::take_decision) else { return };
        match decision {
            Decision::Committed | Decision::Restored => {}
            Decision::Excluded => {
                let step = outer.0;
                self.fail(format!("the other replicas went on without this one at outer step {step}"), out);
            }
        }
    }

    fn connected(&mut self, peer: PeerId, out: &mut Outbox) {
        match &mut self.phase {
            Phase::Joining if peer == self.coordinator => {
                out.send(peer, Message::Join(self.join.clone()));
            }
            Phase::Seated(seat) => {
                if seat.unconnected.remove(&peer) {
                    self.say_ready(out);
                }
            }
            Phase::Joining | Phase::Over => {}
        }
    }

    fn lost(&mut self, now: Time, peer: PeerId, reason: String, out: &mut Outbox) {
        if let Some(member) = self.member() {
            member.lost(now, peer, out);
        }
        let stage = self.seat().and_then(|seat| seat.plan.place_of(peer)).map(|place| place.stage);
        out.record(Event::PeerLost { peer, stage, reason: reason.clone() });
        if peer == self.coordinator {
            self.finish(Outcome::Failed { reason: format!("coordinator {peer} is lost: {reason}") }, out);
        } else if stage.is_some() {
            out.send(self.coordinator, Message::PeerLost { peer, reason: bounded(reason) });
        }
    }

    fn received(&mut self, now: Time, from: PeerId, message: Message, out: &mut Outbox) {
        let from_coordinator = from == self.coordinator;
        match message {
            Message::Placed { plan, start } if from_coordinator => self.placed(now, plan, start, out),
            Message::Lease { microbatches, attempt, .. } if from_coordinator => {
                self.leased(&microbatches, attempt, out)
            }
            Message::Drain { border } if from_coordinator => {
                if let Phase::Seated(seat) = &mut self.phase {
                    seat.pipeline.drain(border);
                }
            }
            Message::Finish { outcome } if from_coordinator => self.finish(outcome, out),
            Message::Activation(tensor) => self.tensor_received(from, tensor, Direction::Forward, out),
            Message::Gradient(tensor) => self.tensor_received(from, tensor, Direction::Backward, out),
            Message::Sync(say) => {
                let heard = match self.member() {
                    Some(member) => member.received(now, from, say, out),
                    None => Err(Refusal::NotYours { peer: from }),
                };
                if let Err(refusal) = heard {
                    out.refuse(from, refusal);
                }
            }
            Message::Refused(refusal) => self.refused(from, refusal, out),
            Message::Placed { .. }
            | Message::Lease { .. }
            | Message::Drain { .. }
            | Message::Finish { .. }
            | Message::Join(_)
            | Message::Ready { .. }
            | Message::Loss { .. }
            | Message::Settled { .. }
            | Message::Receipts(_)
            | Message::Stepped(_)
            | Message::Checkpointed { .. }
            | Message::PeerLost { .. }
            | Message::Failed { .. } => out.refuse(from, Refusal::NotYours { peer: from }),
        }
    }

    /// A refusal from the coordinator before we are seated ends the attempt to join; any other is only recorded.
    fn refused(&mut self, from: PeerId, refusal: Refusal, out: &mut Outbox) {
        out.record(Event::RefusedBy { peer: from, refusal: refusal.clone() });
        if from == self.coordinator && matches!(self.phase, Phase::Joining) {
            self.finish(Outcome::Failed { reason: format!("coordinator {from} refused: {refusal}") }, out);
        }
    }

    fn placed(&mut self, now: Time, plan: Plan, start: Start, out: &mut Outbox) {
        let Some(place) = plan.place_of(self.me) else {
            return out.refuse(self.coordinator, Refusal::NotMember { peer: self.me });
        };
        if let Phase::Seated(seat) = &self.phase {
            let current = seat.plan.number;
            return out.refuse(self.coordinator, Refusal::StalePlan { got: plan.number, current });
        }
        let step = match start {
            Start::Fresh => InnerStep(0),
            Start::Checkpoint { step, .. } => step,
        };
        if let Err(refusal) = self.check_plan(&plan, place, step) {
            return out.refuse(self.coordinator, refusal);
        }
        let mut unconnected = BTreeSet::new();
        for member in plan.replicas(StageId(place.stage.0 + 1)) {
            unconnected.insert(member.peer);
            out.push(Action::Dial { peer: member.peer, address: member.address.clone() });
        }
        // Of two replicas the earlier dials, so that one connection joins them.
        let later = |member: &&plan::Member| member.place.replica > place.replica;
        for member in plan.replicas(place.stage).filter(later) {
            unconnected.insert(member.peer);
            out.push(Action::Dial { peer: member.peer, address: member.address.clone() });
        }
        let group = Group::of(&plan, place.stage);
        let member = (group.members.len() > 1).then(|| Member::new(place.replica, self.coordinator, group));
        out.push(Action::Load { place, start });
        self.phase = Phase::Seated(Box::new(Seat {
            place,
            plan,
            loaded: false,
            ready_said: false,
            unconnected,
            pipeline: Pipeline::new(&self.spec, step, place.replica),
            member,
            standing_since: None,
            received: BTreeMap::new(),
            since_step: Tally { began: now, ..Tally::default() },
        }));
    }

    /// Checks what is later taken for granted: our stage exists, the next one is held, and the run does not start behind
    /// its end.
    fn check_plan(&self, plan: &Plan, place: Place, step: InnerStep) -> Result<(), Refusal> {
        let stages = self.spec.stages();
        let stage = place.stage;
        if stage.0 >= stages {
            return Err(Refusal::NoSuchStage { stage, stages });
        }
        let next = StageId(stage.0 + 1);
        if next.0 < stages && plan.replicas(next).next().is_none() {
            return Err(Refusal::StageEmpty { stage: next });
        }
        let steps = self.agenda.steps();
        if step > steps { Err(Refusal::StepBeyond { step, steps }) } else { Ok(()) }
    }

    fn loaded(&mut self, took: Took, out: &mut Outbox) {
        out.record(Event::Computed { task: TaskKind::Load, microbatch: None, took: took.total });
        if let Phase::Seated(seat) = &mut self.phase {
            seat.loaded = true;
        }
        self.say_ready(out);
    }

    fn say_ready(&mut self, out: &mut Outbox) {
        let Phase::Seated(seat) = &mut self.phase else { return };
        if seat.loaded && seat.unconnected.is_empty() && !seat.ready_said {
            seat.ready_said = true;
            out.send(self.coordinator, Message::Ready { plan: seat.plan.number });
        }
    }

    fn leased(&mut self, microbatches: &[MicrobatchId], attempt: Attempt, out: &mut Outbox) {
        let coordinator = self.coordinator;
        let Phase::Seated(seat) = &mut self.phase else {
            return out.refuse(coordinator, Refusal::NotYours { peer: coordinator });
        };
        if seat.place.stage != StageId(0) {
            return out.refuse(coordinator, Refusal::NotYours { peer: coordinator });
        }
        for &microbatch in microbatches {
            match seat.pipeline.offer(microbatch, attempt, Origin::Lease, None) {
                Ok(Offered::Queued) => {}
                Ok(Offered::Duplicate) => out.record(Event::Duplicate { microbatch, from: coordinator }),
                Err(refusal) => out.refuse(coordinator, refusal),
            }
        }
    }

    fn tensor_received(&mut self, from: PeerId, tensor: Tensor, direction: Direction, out: &mut Outbox) {
        let microbatch = tensor.microbatch;
        let want = self.spec.boundary_bytes();
        let Phase::Seated(seat) = &mut self.phase else {
            return out.refuse(from, Refusal::NotYours { peer: from });
        };
        let offered = seat.check_tensor(from, &tensor, direction, want).and_then(|()| match direction {
            Direction::Forward => {
                seat.pipeline.offer(microbatch, tensor.attempt, Origin::Peer(from), Some(tensor.payload))
            }
            Direction::Backward => seat.pipeline.offer_gradient(microbatch, from, tensor.payload),
        });
        match offered {
            Ok(Offered::Queued) => {}
            Ok(Offered::Duplicate) => out.record(Event::Duplicate { microbatch, from }),
            Err(refusal) => out.refuse(from, refusal),
        }
    }

    fn forwarded(&mut self, microbatch: MicrobatchId, output: Output, took: Took, out: &mut Outbox) {
        let coordinator = self.coordinator;
        let boundary_bytes = self.spec.boundary_bytes();
        let Phase::Seated(seat) = &mut self.phase else { return };
        seat.since_step.add(took);
        out.record(Event::Computed {
            task: TaskKind::Forward,
            microbatch: Some(microbatch),
            took: took.total,
        });
        match output {
            Output::Boundary(payload) => {
                assert_eq!(payload.len(), boundary_bytes, "a stage's output has the boundary's size");
                let stage = StageId(seat.place.stage.0 + 1);
                let next = route::choose(&seat.plan, stage, microbatch);
                let next = next.expect("a stage that gives a boundary has a next stage in the plan");
                let version = seat.pipeline.version();
                let attempt = seat.pipeline.forwarded(microbatch, Some(next));
                out.send(next, Message::Activation(Tensor { microbatch, attempt, stage, version, payload }));
            }
            Output::Loss(loss) => {
                let attempt = seat.pipeline.forwarded(microbatch, None);
                out.send(coordinator, Message::Loss { microbatch, attempt, loss });
            }
        }
    }

    fn backwarded(
        &mut self,
        microbatch: MicrobatchId,
        gradient: Option<Bytes>,
        took: Took,
        out: &mut Outbox,
    ) {
        let coordinator = self.coordinator;
        let boundary_bytes = self.spec.boundary_bytes();
        let Phase::Seated(seat) = &mut self.phase else { return };
        seat.since_step.add(took);
        out.record(Event::Computed {
            task: TaskKind::Backward,
            microbatch: Some(microbatch),
            took: took.total,
        });
        let version = seat.pipeline.version();
        let returned = seat.pipeline.backwarded(microbatch);
        seat.since_step.staleness = seat.since_step.staleness.max(returned.staleness);
        let attempt = returned.attempt;
        if let Some(next) = returned.from_next {
            let stage = StageId(seat.place.stage.0 + 1);
            seat.received.entry((stage, next)).or_default().push(microbatch.index);
        }
        match (returned.origin, gradient) {
            (Origin::Lease, _) => out.send(coordinator, Message::Settled { microbatch, attempt }),
            (Origin::Peer(previous), Some(payload)) => {
                assert_eq!(payload.len(), boundary_bytes, "a boundary's gradient has the boundary's size");
                let stage = StageId(seat.place.stage.0 - 1);
                if stage == StageId(0) {
                    seat.received.entry((stage, previous)).or_default().push(microbatch.index);
                }
                out.send(
                    previous,
                    Message::Gradient(Tensor { microbatch, attempt, stage, version, payload }),
                );
            }
            (Origin::Peer(_), None) => {
                panic!("the driver gave no gradient for {microbatch} at an inner stage")
            }
        }
    }

    fn stepped(
        &mut self,
        now: Time,
        (gradient_norm, learning_rate): (f64, f64),
        took: Took,
        wire_bytes_total: u64,
        out: &mut Outbox,
    ) {
        let (run, me, coordinator) = (self.run, self.me, self.coordinator);
        let Phase::Seated(seat) = &mut self.phase else { return };
        seat.since_step.add(took);
        out.record(Event::Computed { task: TaskKind::Step, microbatch: None, took: took.total });
        let step = seat.pipeline.stepped();
        let tally = core::mem::take(&mut seat.since_step);
        seat.since_step = Tally { began: now, wire_bytes_before: wire_bytes_total, ..Tally::default() };
        let receipts = seat.receipts(run, me, &self.key);
        if !receipts.is_empty() {
            out.send(coordinator, Message::Receipts(receipts));
        }
        let report = StepReport {
            step,
            gradient_norm,
            learning_rate,
            compute: tally.compute,
            serialise: tally.serialise,
            sync: tally.sync,
            lost: Span(0),
            wall: now.since(tally.began),
            wire_bytes: wire_bytes_total.saturating_sub(tally.wire_bytes_before),
            staleness: tally.staleness,
        };
        out.send(coordinator, Message::Stepped(report));
    }

    fn stored(&mut self, item: StoredItem, took: Took, out: &mut Outbox) {
        let coordinator = self.coordinator;
        let Phase::Seated(seat) = &mut self.phase else { return };
        let StoredItem::Checkpoint { step, digest } = item else {
            panic!("the driver stored {item:?}, which a worker never asks for");
        };
        seat.pipeline.saved();
        out.record(Event::Computed { task: TaskKind::Save, microbatch: None, took: took.total });
        out.record(Event::Saved { step, digest });
        out.send(coordinator, Message::Checkpointed { step, digest, took: took.total });
    }

    /// Asks for the next computation, if one may start.
    fn advance(&mut self, now: Time, out: &mut Outbox) {
        let agenda = self.agenda;
        let Phase::Seated(seat) = &mut self.phase else { return };
        if !seat.loaded {
            return;
        }
        match (seat.pipeline.awaits_agreement(), seat.standing_since) {
            (true, None) => seat.standing_since = Some(now),
            (false, Some(since)) => {
                seat.standing_since = None;
                seat.since_step.sync = seat.since_step.sync.saturating_add(now.since(since));
            }
            (true, Some(_)) | (false, None) => {}
        }
        let Some(task) = seat.pipeline.start() else { return };
        out.push(match task {
            Task::Forward { microbatch, input } => {
                Action::Forward { microbatch, data_index: agenda.data_index(microbatch), input }
            }
            Task::Backward { microbatch, input, gradient } => {
                Action::Backward { microbatch, data_index: agenda.data_index(microbatch), input, gradient }
            }
            Task::Step { step } => Action::Step { step, microbatches: agenda.microbatches_per_step() as u32 },
            Task::Save { border } => Action::Store(StoreItem::Checkpoint { step: border }),
            Task::Snapshot { outer } => Action::Sync(SyncTask::Snapshot { outer }),
            Task::Adopt { outer } => Action::Sync(SyncTask::Adopt { outer }),
        });
    }

    fn fail(&mut self, reason: String, out: &mut Outbox) {
        let reason = bounded(reason);
        out.send(self.coordinator, Message::Failed { reason: reason.clone() });
        self.finish(Outcome::Failed { reason }, out);
    }

    fn finish(&mut self, outcome: Outcome, out: &mut Outbox) {
        self.phase = Phase::Over;
        out.record(Event::Finished { outcome: outcome.clone() });
        out.push(Action::Finish(outcome));
    }

    fn seat(&self) -> Option<&Seat> {
        match &self.phase {
            Phase::Seated(seat) => Some(seat),
            Phase::Joining | Phase::Over => None,
        }
    }

    /// Returns the bytes of boundary inputs kept for backwards to come.
    pub fn kept_bytes(&self) -> usize {
        self.seat().map_or(0, |seat| seat.pipeline.kept_bytes())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

/// Cuts a text to what a message may hold, between two characters.
fn bounded(mut text: String) -> String {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

impl Seat {
    fn check_tensor(
        &self,
        from: PeerId,
        tensor: &Tensor,
        direction: Direction,
        want: usize,
    ) -> Result<(), Refusal> {
        let microbatch = tensor.microbatch;
        let held = self.place.stage;
        if tensor.stage != held {
            return Err(Refusal::WrongStage { microbatch, got: tensor.stage, held });
        }
        let Some(place) = self.plan.place_of(from) else {
            return Err(Refusal::NotMember { peer: from });
        };
        let neighbour = match direction {
            Direction::Forward => place.stage.0.checked_add(1) == Some(held.0),
            Direction::Backward => held.0.checked_add(1) == Some(place.stage.0),
        };
        if !neighbour || (direction == Direction::Backward && microbatch.split == Split::HeldOut) {
            return Err(Refusal::NotYours { peer: from });
        }
        if tensor.payload.len() != want {
            return Err(Refusal::TensorLength {
                microbatch,
                got: tensor.payload.len() as u64,
                want: want as u64,
            });
        }
        Ok(())
    }

    fn receipts(&mut self, run: Digest, me: PeerId, key: &SigningKey) -> Vec<Receipt> {
        let received = core::mem::take(&mut self.received);
        let mut receipts = Vec::new();
        for ((stage, worker), indices) in received {
            for indices in indices.chunks(RECEIPT_MICROBATCHES_MAX) {
                let microbatches = indices.to_vec();
                receipts.push(Receipt::sign(Statement { run, stage, worker, by: me, microbatches }, key));
            }
        }
        receipts
    }
}

impl Tally {
    fn add(&mut self, took: Took) {
        self.compute = self.compute.saturating_add(took.total);
        self.serialise = self.serialise.saturating_add(took.serialise);
    }
}
