//! The coordinator: gathers peers, makes the plan, leases microbatches, keeps the ledger, and says when a state is durable.
//!
//! Owns the decisions about the run as a whole, and the little state that must survive it. Touches no tensor, and is not
//! in the way of any: activations and gradients go from peer to peer.

use crate::agenda::{Agenda, Exchanges};
use crate::book::Book;
use crate::durable::{Checkpoint, Durable, StateError};
use crate::event::Event;
use crate::ids::{Digest, InnerStep, MicrobatchId, PeerId, PlanNumber, Split, StageId};
use crate::lease::{Leases, Unsettled};
use crate::ledger::Ledger;
use crate::message::{Join, Message, Outcome, Refusal, Start, StepReport, TEXT_BYTES_MAX};
use crate::pipeline::lease_ahead;
use crate::plan::{Candidate, Place, Plan, place};
use crate::port::{Action, Input, Outbox, StoreItem};
use crate::receipt::Receipt;
use crate::running::{Running, Storing};
use crate::spec::RunSpec;
use crate::sync::arbiter::{Arbiter, ArbiterConfig, Weighing};
use crate::sync::say::Say;
use crate::time::{Span, Time};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Peers that may wait for a place, for each place of the plan; more are refused, so that strangers cannot fill memory.
const CANDIDATES_PER_PLACE_MAX: usize = 4;

/// How long a member that another reports as lost may take to say itself what happened, before the report alone decides:
/// a few round trips across an ocean.
const SUSPICION_WAIT: Span = Span::seconds(2);

/// How long a replica may leave a probe unanswered before it counts as lost. Until a run can go on without a peer, losing one
/// ends it, so that a busy machine must not look like a dead one.
const REPLICA_SILENCE: Span = Span::seconds(10);

/// What a coordinator starts with.
pub struct CoordinatorConfig {
    /// The run.
    pub spec: RunSpec,
    /// Its id.
    pub me: PeerId,
}

/// The peer that gives out work.
pub struct Coordinator {
    spec: RunSpec,
    run: Digest,
    agenda: Agenda,
    me: PeerId,
    durable: Durable,
    phase: Phase,
    /// A member that another cannot reach, and until when it may say why itself.
    suspicion: Option<(Time, String)>,
}

enum Phase {
    Gathering(Vec<Candidate>),
    Preparing { plan: Plan, ready: BTreeSet<PeerId> },
    Running(Box<Running>),
    Over,
}

impl Coordinator {
    /// Makes a coordinator that waits for peers; `state` is what it stored last, when it starts again.
    pub fn new(config: CoordinatorConfig, state: Option<&[u8]>) -> Result<Self, StateError> {
        let CoordinatorConfig { spec, me } = config;
        let run = spec.digest();
        let durable = Durable::read(&spec, state)?;
        let agenda = Agenda::new(&spec);
        Ok(Self { spec, run, agenda, me, durable, phase: Phase::Gathering(Vec::new()), suspicion: None })
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        match input {
            Input::Received { from, message } => self.received(now, from, message, out),
            Input::Lost { peer, reason } => self.lost(peer, reason, out),
            Input::Rejected { peer, reason } => out.record(Event::Rejected { peer, reason }),
            Input::Faulted { reason } => self.finish(Outcome::Failed { reason }, out),
            Input::Stored { .. } => self.stored(now, out),
            Input::Drain => self.drain(out),
            Input::Woke | Input::Connected { .. } => {}
            Input::Forwarded { .. }
            | Input::Backwarded { .. }
            | Input::Stepped { .. }
            | Input::Sync(_)
            | Input::Loaded { .. } => {
                panic!("the driver computed for a coordinator, which never asks for it")
            }
        }
        self.agree(now, out);
        self.confirm_suspicion(now, out);
        self.expire(now, out);
        self.lease(now, out);
        self.conclude(out);
    }

    /// Returns when the next lease expires.
    pub fn deadline(&self) -> Option<Time> {
        let suspicion = self.suspicion.as_ref().map(|(until, _)| *until);
        match &self.phase {
            Phase::Running(running) => {
                let agreement = running.arbiter.as_ref().and_then(Arbiter::deadline);
                running.leases.deadline().into_iter().chain(agreement).chain(suspicion).min()
            }
            Phase::Gathering(_) | Phase::Preparing { .. } => suspicion,
            Phase::Over => None,
        }
    }

    fn received(&mut self, now: Time, from: PeerId, message: Message, out: &mut Outbox) {
        let accepted = match message {
            Message::Join(join) => self.joined(from, join, out),
            Message::Ready { plan } => self.ready(now, from, plan, out),
            Message::Loss { microbatch, loss, .. } => self.loss(now, from, microbatch, loss, out),
            Message::Settled { microbatch, .. } => self.settled(now, from, microbatch, out),
            Message::Receipts(receipts) => self.receipts(from, &receipts),
            Message::Stepped(report) => self.stepped(now, from, report, out),
            Message::Checkpointed { step, digest, took } => {
                self.checkpointed(from, step, (digest, took), out)
            }
            Message::Sync(say) => self.replica_said(now, from, say, out),
            Message::PeerLost { peer, reason } => self.neighbour_lost(now, from, peer, &reason),
            Message::Failed { reason } => self.member_failed(from, reason, out),
            Message::Refused(refusal) => {
                out.record(Event::RefusedBy { peer: from, refusal });
                Ok(())
            }
            Message::Placed { .. }
            | Message::Lease { .. }
            | Message::Activation(_)
            | Message::Gradient(_)
            | Message::Drain { .. }
            | Message::Finish { .. } => Err(Refusal::NotYours { peer: from }),
        };
        if let Err(refusal) = accepted {
            out.refuse(from, refusal);
        }
    }

    fn joined(&mut self, from: PeerId, join: Join, out: &mut Outbox) -> Result<(), Refusal> {
        let stages = self.spec.stages();
        let replicas = self.spec.pipeline.replicas;
        bound_length("device", join.device.len())?;
        bound_length("address", join.address.len())?;
        if let Some(stage) = join.stage.filter(|s| s.0 >= stages) {
            return Err(Refusal::NoSuchStage { stage, stages });
        }
        let Phase::Gathering(candidates) = &mut self.phase else { return Err(Refusal::PlanFull) };
        candidates.retain(|c| c.peer != from);
        if candidates.len() >= CANDIDATES_PER_PLACE_MAX * usize::from(stages) * usize::from(replicas) {
            return Err(Refusal::PlanFull);
        }
        out.record(Event::Joined { peer: from, device: join.device, peak_flops: join.peak_flops });
        candidates.push(Candidate { peer: from, address: join.address, stage: join.stage });
        let Some(plan) = place(PlanNumber(1), self.me, stages, replicas, candidates) else { return Ok(()) };
        let surplus: Vec<_> =
            candidates.iter().map(|c| c.peer).filter(|p| plan.place_of(*p).is_none()).collect();
        for peer in surplus {
            out.refuse(peer, Refusal::PlanFull);
        }
        self.announce(plan, out);
        Ok(())
    }

    fn announce(&mut self, plan: Plan, out: &mut Outbox) {
        let members = plan.members.iter().map(|m| (m.peer, m.place)).collect();
        out.record(Event::Planned { plan: plan.number, members });
        for member in &plan.members {
            let start = self.start_of(member.place);
            out.send(member.peer, Message::Placed { plan: plan.clone(), start });
        }
        self.phase = Phase::Preparing { plan, ready: BTreeSet::new() };
    }

    fn start_of(&self, place: Place) -> Start {
        let Some(checkpoint) = &self.durable.checkpoint else { return Start::Fresh };
        let digest = checkpoint.digest_at(place).expect("a durable checkpoint holds every place of the run");
        Start::Checkpoint { step: checkpoint.step, digest }
    }

    fn ready(&mut self, now: Time, from: PeerId, got: PlanNumber, out: &mut Outbox) -> Result<(), Refusal> {
        let start = self.durable_step();
        let Phase::Preparing { plan, ready } = &mut self.phase else {
            return Err(Refusal::NotYours { peer: from });
        };
        if plan.place_of(from).is_none() {
            return Err(Refusal::NotMember { peer: from });
        }
        if plan.number != got {
            return Err(Refusal::StalePlan { got, current: plan.number });
        }
        ready.insert(from);
        if ready.len() < plan.members.len() {
            return Ok(());
        }
        out.record(Event::Started { step: start });
        let plan = plan.clone();
        let arbiter = (self.agenda.exchanges() != Exchanges::Nothing).then(|| {
            let config = ArbiterConfig {
                agenda: self.agenda,
                step_tokens: self.spec.step_tokens(),
                // A gradient is exchanged before anyone has receipted it, and is of as many microbatches everywhere.
                weighing: match self.agenda.exchanges() {
                    Exchanges::Gradients | Exchanges::Nothing => Weighing::Equal,
                    Exchanges::PseudoGradients => Weighing::Receipts,
                },
                silence_min: REPLICA_SILENCE,
            };
            Arbiter::new(config, &plan, start, self.durable.agreed.clone())
        });
        self.phase = Phase::Running(Box::new(Running {
            leases: Leases::new(self.agenda, start, lease_ahead(&self.spec)),
            ledger: Ledger::new(self.run, &self.agenda, self.spec.stages(), start),
            book: Book::new(self.agenda, plan.members.len(), self.spec.step_tokens(), start, now),
            plan,
            planned_from: start,
            settled_at: now,
            saves: BTreeMap::new(),
            storing: VecDeque::new(),
            arbiter,
            drain: None,
        }));
        Ok(())
    }

    fn durable_step(&self) -> InnerStep {
        self.durable.step()
    }

    fn replica_said(&mut self, now: Time, from: PeerId, say: Say, out: &mut Outbox) -> Result<(), Refusal> {
        let (running, _) = self.running_for(from, None)?;
        let arbiter = running.arbiter.as_mut().ok_or(Refusal::NotYours { peer: from })?;
        arbiter.received(now, from, say, out)
    }

    /// Carries the outer step on, and makes its commit durable.
    fn agree(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        let Some(arbiter) = &mut running.arbiter else { return };
        arbiter.advance(now, out);
        if let Some(committed) = arbiter.take_store() {
            self.durable.agreed = Some(committed);
            // What is asked for later must not undo what is on its way to the disk.
            let coming = running.storing.iter().rev().find_map(Storing::checkpoint);
            let checkpoint = coming.or(self.durable.checkpoint.as_ref()).cloned();
            let state = Durable { checkpoint, ..self.durable.clone() };
            running.storing.push_back(Storing::Outer);
            out.push(Action::Store(StoreItem::Coordinator(state.bytes())));
        }
        let lost = arbiter.take_lost();
        let restored = arbiter.take_restored();
        if let Some(peer) = lost.first() {
            self.lost(*peer, String::from("no answer in an outer step"), out);
        } else if let Some(outer) = restored.filter(|_| self.agenda.exchanges() == Exchanges::Gradients) {
            let reason =
                format!("replicas disagree on the gradient of step {}, tried again in vain", outer.0);
            self.finish(Outcome::Failed { reason }, out);
        }
    }

    /// Gives the running state if `from` is a member that stands where such a message comes from.
    fn running_for(
        &mut self,
        from: PeerId,
        stage: Option<StageId>,
    ) -> Result<(&mut Running, Place), Refusal> {
        let Phase::Running(running) = &mut self.phase else { return Err(Refusal::NotYours { peer: from }) };
        let place = running.plan.place_of(from).ok_or(Refusal::NotMember { peer: from })?;
        if stage.is_some_and(|stage| stage != place.stage) {
            return Err(Refusal::NotYours { peer: from });
        }
        Ok((running, place))
    }

    fn loss(
        &mut self,
        now: Time,
        from: PeerId,
        microbatch: MicrobatchId,
        loss: f32,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let last = StageId(self.spec.stages() - 1);
        let (running, _) = self.running_for(from, Some(last))?;
        if !loss.is_finite() {
            let reason = format!("the loss of {microbatch} is {loss}: training has diverged");
            self.finish(Outcome::Failed { reason }, out);
            return Err(Refusal::LossNotFinite { microbatch });
        }
        match microbatch.split {
            Split::Train if microbatch.index >= running.leases.leased_below() => {
                return Err(Refusal::NotDue { microbatch });
            }
            Split::Train => {}
            Split::HeldOut => match running.leases.settle(now, microbatch, from) {
                Ok(()) => {}
                Err(Unsettled::Duplicate) => {
                    out.record(Event::Duplicate { microbatch, from });
                    return Ok(());
                }
                Err(Unsettled::NotLeased) => return Err(Refusal::NotDue { microbatch }),
            },
        }
        if let Some(event) = running.book.loss(now, microbatch, loss, running.settled_at) {
            out.record(event);
        }
        Ok(())
    }

    fn settled(
        &mut self,
        now: Time,
        from: PeerId,
        microbatch: MicrobatchId,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let (stages, agenda) = (self.spec.stages(), self.agenda);
        let (running, _) = self.running_for(from, Some(StageId(0)))?;
        if microbatch.split == Split::HeldOut {
            return Err(Refusal::NotYours { peer: from });
        }
        match running.leases.settle(now, microbatch, from) {
            Ok(()) => {
                running.settled_at = now;
                if stages == 1 {
                    let place = Place { stage: StageId(0), replica: agenda.home(microbatch) };
                    let new = running.ledger.credit_own(microbatch.index);
                    running.weigh(&agenda, place, &new);
                }
                Ok(())
            }
            Err(Unsettled::Duplicate) => {
                out.record(Event::Duplicate { microbatch, from });
                Ok(())
            }
            Err(Unsettled::NotLeased) => Err(Refusal::NotDue { microbatch }),
        }
    }

    fn receipts(&mut self, from: PeerId, receipts: &[Receipt]) -> Result<(), Refusal> {
        let agenda = self.agenda;
        let (running, _) = self.running_for(from, None)?;
        for receipt in receipts {
            if receipt.statement.by != from {
                return Err(Refusal::NotYours { peer: from });
            }
            let leased_below = running.leases.leased_below();
            let new =
                running.ledger.credit(receipt, &running.plan, leased_below).map_err(Refusal::Receipt)?;
            if let Some(place) = running.plan.place_of(receipt.statement.worker) {
                running.weigh(&agenda, place, &new);
            }
        }
        Ok(())
    }

    fn stepped(
        &mut self,
        now: Time,
        from: PeerId,
        report: StepReport,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let (agenda, replicas) = (self.agenda, u64::from(self.spec.pipeline.replicas));
        let (running, place) = self.running_for(from, None)?;
        let worked = agenda.microbatches_per_step().saturating_sub(1) * replicas;
        let last = agenda.training_of(report.step).start + worked + u64::from(place.replica.0);
        if report.step >= agenda.steps() || last >= running.leases.leased_below() {
            return Err(Refusal::NotYours { peer: from });
        }
        if let Some(event) = running.book.report(now, place, report) {
            out.record(event);
        }
        Ok(())
    }

    fn checkpointed(
        &mut self,
        from: PeerId,
        step: InnerStep,
        saved: (Digest, Span),
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let agenda = self.agenda;
        let durable = self.durable_step();
        let (running, place) = self.running_for(from, None)?;
        let expected = agenda.saves_at(step) || running.drain == Some(step);
        let reached = agenda.training_of(step).start <= running.leases.leased_below();
        if !expected || !reached || (step < durable) {
            return Err(Refusal::NotYours { peer: from });
        }
        let members = running.plan.members.len();
        let saves = running.saves.entry(step).or_default();
        saves.insert(place, saved);
        if saves.len() < members {
            return Ok(());
        }
        let saves = running.saves.remove(&step).unwrap_or_default();
        let took = saves.values().map(|(_, took)| *took).max().unwrap_or_default();
        if agenda.evaluation_at(step).is_empty() {
            running.book.add_outside(took);
        }
        let checkpoint = Checkpoint {
            step,
            digests: saves.iter().map(|(place, (digest, _))| (*place, *digest)).collect(),
        };
        running.storing.push_back(Storing::Checkpoint(checkpoint.clone(), took));
        let state = Durable { checkpoint: Some(checkpoint), ..self.durable.clone() };
        out.push(Action::Store(StoreItem::Coordinator(state.bytes())));
        Ok(())
    }

    fn stored(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        match (running.storing.pop_front(), &mut running.arbiter) {
            (Some(Storing::Checkpoint(checkpoint, took)), _) => {
                out.record(Event::Durable { step: checkpoint.step, took });
                self.durable.checkpoint = Some(checkpoint);
            }
            (Some(Storing::Outer), Some(arbiter)) => arbiter.stored(now, out),
            (Some(Storing::Outer), None) | (None, _) => {}
        }
    }

    fn member_failed(&mut self, from: PeerId, reason: String, out: &mut Outbox) -> Result<(), Refusal> {
        bound_length("reason", reason.len())?;
        let place =
            self.plan().and_then(|plan| plan.place_of(from)).ok_or(Refusal::NotMember { peer: from })?;
        let reason = format!("peer {from} of stage {} failed: {reason}", place.stage);
        self.finish(Outcome::Failed { reason }, out);
        Ok(())
    }

    fn neighbour_lost(&mut self, now: Time, from: PeerId, peer: PeerId, reason: &str) -> Result<(), Refusal> {
        bound_length("reason", reason.len())?;
        let Some(plan) = self.plan() else { return Err(Refusal::NotYours { peer: from }) };
        let (Some(reporter), Some(place)) = (plan.place_of(from), plan.place_of(peer)) else {
            return Err(Refusal::NotMember { peer: from });
        };
        let (here, there) = (reporter.stage, place.stage);
        let reason = format!("stage {here} cannot reach peer {peer} of stage {there}: {reason}");
        self.suspicion.get_or_insert((now + SUSPICION_WAIT, reason));
        Ok(())
    }

    fn confirm_suspicion(&mut self, now: Time, out: &mut Outbox) {
        if let Some((_, reason)) = self.suspicion.take_if(|(until, _)| *until <= now) {
            self.finish(Outcome::Failed { reason }, out);
        }
    }

    fn lost(&mut self, peer: PeerId, reason: String, out: &mut Outbox) {
        let place = self.plan().and_then(|plan| plan.place_of(peer));
        out.record(Event::PeerLost { peer, stage: place.map(|place| place.stage), reason: reason.clone() });
        if let Phase::Gathering(candidates) = &mut self.phase {
            candidates.retain(|c| c.peer != peer);
        }
        if let Some(Place { stage, replica }) = place {
            let reason = match self.spec.pipeline.replicas {
                1 => format!("stage {stage} has no live replica: peer {peer} is lost ({reason})"),
                _ => format!("replica {replica} of stage {stage} is lost: peer {peer} ({reason})"),
            };
            self.finish(Outcome::Failed { reason }, out);
        }
    }

    fn plan(&self) -> Option<&Plan> {
        match &self.phase {
            Phase::Preparing { plan, .. } => Some(plan),
            Phase::Running(running) => Some(&running.plan),
            Phase::Gathering(_) | Phase::Over => None,
        }
    }

    fn drain(&mut self, out: &mut Outbox) {
        let step = self.durable_step();
        let Phase::Running(running) = &mut self.phase else {
            return self.finish(Outcome::Stopped { step }, out);
        };
        if running.drain.is_some() {
            return;
        }
        let border = running.leases.stop();
        if border == self.agenda.steps() {
            return;
        }
        running.drain = Some(border);
        out.record(Event::Draining { border });
        for member in &running.plan.members {
            out.send(member.peer, Message::Drain { border });
        }
    }

    fn expire(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        if let Err(reason) = running.expire(now, out) {
            self.finish(Outcome::Failed { reason }, out);
        }
    }

    fn lease(&mut self, now: Time, out: &mut Outbox) {
        if let Phase::Running(running) = &mut self.phase {
            running.lease(now, out);
        }
    }

    /// Ends the run when nothing is out and the last border it was to reach is durable.
    fn conclude(&mut self, out: &mut Outbox) {
        let durable = self.durable_step();
        let Phase::Running(running) = &self.phase else { return };
        if !running.leases.is_empty() || !running.storing.is_empty() {
            return;
        }
        let stages = usize::from(self.spec.stages());
        let planned =
            self.agenda.training_of(durable).start - self.agenda.training_of(running.planned_from).start;
        let credited = running.ledger.credited();
        let event = Event::Ledger { planned, credited, duplicates: running.ledger.duplicates() };
        assert!(stages > 0, "a run has stages");
        if durable == self.agenda.steps() {
            out.record(event);
            self.finish(Outcome::Done, out);
        } else if running.drain == Some(durable) {
            out.record(event);
            self.finish(Outcome::Stopped { step: durable }, out);
        }
    }

    fn finish(&mut self, outcome: Outcome, out: &mut Outbox) {
        let peers: Vec<PeerId> = match &self.phase {
            Phase::Gathering(candidates) => candidates.iter().map(|c| c.peer).collect(),
            Phase::Preparing { plan, .. } => plan.members.iter().map(|m| m.peer).collect(),
            Phase::Running(running) => running.plan.members.iter().map(|m| m.peer).collect(),
            Phase::Over => return,
        };
        for peer in peers {
            out.send(peer, Message::Finish { outcome: outcome.clone() });
        }
        self.phase = Phase::Over;
        out.record(Event::Finished { outcome: outcome.clone() });
        out.push(Action::Finish(outcome));
    }
}

fn bound_length(field: &str, got: usize) -> Result<(), Refusal> {
    if got <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(Refusal::FieldLength { field: field.to_string(), got: got as u64, max: TEXT_BYTES_MAX as u64 })
}
