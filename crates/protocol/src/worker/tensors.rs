//! The traffic of a place: microbatches that come and go, whom they go to, and who is credited for them.
//!
//! Owns the way of a microbatch between two stages, whatever happens to a peer on it. Knows nothing of outer steps or of how
//! a place is taken.

mod sending;
#[cfg(test)]
mod tests;

use crate::event::Event;
use crate::homes::Homes;
use crate::ids::{Attempt, Digest, InnerStep, MicrobatchId, PeerId, SeatId, Split, StageId};
use crate::message::{Message, Refusal, StepReport, Tensor};
use crate::pipeline::kept::{Answer, Asker};
use crate::pipeline::{Offered, Pipeline};
use crate::plan::{Member, Place, Plan};
use crate::port::{Outbox, Output};
use crate::route;
use crate::router::Router;
use crate::router::pace::Weight;
use crate::time::{Span, Time};
use crate::work::{Frontier, Needs, Trained};
use crate::worker::identity::Identity;
use crate::worker::received::Received;
use crate::worker::words::Words;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use bytes::Bytes;

/// How long an answer may take before any was measured: a device compiles its kernels.
const ANSWER_WAIT_FIRST: Span = Span::seconds(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

/// The work of a place.
pub(crate) struct Traffic {
    place: Place,
    seat: SeatId,
    plan: Plan,
    /// The queue; `None` until the place takes part.
    pipeline: Option<Pipeline>,
    disturbed_below: InnerStep,
    suspects: BTreeSet<PeerId>,
    unusable: BTreeSet<PeerId>,
    /// Peers whose connection broke since something was sent to them.
    broken: BTreeSet<PeerId>,
    /// Peers whose connection was won back, to whom all is said again.
    won_back: BTreeSet<PeerId>,
    /// The longest that an answer has taken.
    answer_longest: Option<Span>,
    /// Whose turn it is among the replicas of the next stage, where one does what falls to another.
    router: Router,
    words: Words,
    received: Received,
}

impl Traffic {
    pub(crate) fn new(member: Member, plan: Plan) -> Self {
        let seed = u64::from_le_bytes(core::array::from_fn(|at| member.peer.0[at]));
        let mut router = Router::new(seed, ANSWER_WAIT_FIRST);
        let next = StageId(member.place.stage.0.saturating_add(1));
        plan.replicas(next).for_each(|other| router.enter(other.peer));
        Self {
            router,
            place: member.place,
            seat: member.seat,
            plan,
            pipeline: None,
            disturbed_below: InnerStep(0),
            suspects: BTreeSet::new(),
            unusable: BTreeSet::new(),
            broken: BTreeSet::new(),
            won_back: BTreeSet::new(),
            answer_longest: None,
            words: Words::default(),
            received: Received::default(),
        }
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn seat(&self) -> SeatId {
        self.seat
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn pipeline(&mut self) -> Option<&mut Pipeline> {
        self.pipeline.as_mut()
    }

    pub(crate) fn open(&mut self, mut pipeline: Pipeline) {
        pipeline.disturbed(self.disturbed_below);
        self.pipeline = Some(pipeline);
    }

    pub(crate) fn kept_bytes(&self) -> usize {
        self.pipeline.as_ref().map_or(0, Pipeline::kept_bytes)
    }

    pub(crate) fn in_flight(&self) -> Option<usize> {
        self.pipeline.as_ref().map(Pipeline::in_flight)
    }

    pub(crate) fn suspect(&mut self, suspects: BTreeSet<PeerId>) {
        self.suspects = suspects;
    }

    pub(crate) fn unusable(&mut self, peers: Vec<PeerId>) {
        self.unusable = peers.into_iter().collect();
    }

    pub(crate) fn reached(&mut self, frontier: Frontier) {
        self.words.reached(frontier.train_below);
        let next = self.next();
        let dropped = self.pipeline.as_mut().map(|pipeline| pipeline.reached(frontier));
        for (index, kept) in dropped.unwrap_or_default() {
            self.received.over(index, &kept.asked, kept.answer.map(|answer| answer.from));
            if let Some(Answer { from, seat, trained: Some(step) }) = kept.answer {
                self.received.late(next, (from, seat), Trained { index, step });
            }
        }
    }

    pub(crate) fn connected(&mut self, peer: PeerId) {
        if self.broken.remove(&peer) {
            self.won_back.insert(peer);
        }
        self.unusable.remove(&peer);
    }

    pub(crate) fn lost(&mut self, now: Time, peer: PeerId) {
        self.broken.insert(peer);
        self.router.failed(now, peer);
    }

    /// Takes a later plan; what waits here and falls to others from now on goes back to who asked for it.
    pub(crate) fn enrol(&mut self, who: &Identity, plan: Plan, disturbed_below: InnerStep, out: &mut Outbox) {
        let until = plan.member(who.me).and_then(|member| member.until);
        self.plan = plan;
        let plan = &self.plan;
        self.suspects.retain(|peer| plan.place_of(*peer).is_some());
        self.broken.retain(|peer| plan.place_of(*peer).is_some());
        self.disturbed_below = self.disturbed_below.max(disturbed_below);
        let next = self.next();
        let holds = |peer: &PeerId| self.plan.place_of(*peer).is_some_and(|place| place.stage == next);
        let gone = self.router.peers().filter(|peer| !holds(peer));
        for peer in gone.collect::<Vec<_>>() {
            self.router.leave(peer);
        }
        for member in self.plan.replicas(next).filter(|member| member.enters < route::NEVER) {
            self.router.enter(member.peer);
        }
        let homes = Homes::of(&self.plan, &who.agenda, self.place.stage);
        let Some(pipeline) = &mut self.pipeline else { return };
        pipeline.take_turns(homes);
        pipeline.disturbed(disturbed_below);
        for (microbatch, asker) in pipeline.leave_at(until) {
            out.send(asker.peer(who.coordinator), Message::Refused(Refusal::Leaves { microbatch }));
        }
    }

    pub(crate) fn leased(
        &mut self,
        who: &Identity,
        microbatches: &[MicrobatchId],
        attempt: Attempt,
        needs: &Needs,
        out: &mut Outbox,
    ) {
        let from = who.coordinator;
        if self.place.stage != StageId(0) {
            return out.refuse(from, Refusal::NotYours { peer: from });
        }
        for &microbatch in microbatches {
            // The coordinator has not heard of it yet, and is told of it again.
            if attempt == Attempt(0) && self.words.has_trained(microbatch) {
                out.record(Event::Duplicate { microbatch, from });
                continue;
            }
            let entered = self.pipeline.as_mut().ok_or(Refusal::Busy { microbatch });
            match entered.and_then(|at| at.offer(microbatch, attempt, needs.clone(), Asker::Lease, None)) {
                Ok(Offered::Queued | Offered::Merged) => {}
                Ok(Offered::Duplicate) => out.record(Event::Duplicate { microbatch, from }),
                Err(refusal) => out.refuse(from, refusal),
            }
        }
        self.say_displaced(who, out);
    }

    fn say_displaced(&mut self, who: &Identity, out: &mut Outbox) {
        let displaced = self.pipeline.as_mut().map(Pipeline::take_displaced).unwrap_or_default();
        for (microbatch, asker) in displaced {
            out.send(asker.peer(who.coordinator), Message::Refused(Refusal::Busy { microbatch }));
        }
    }

    /// Takes what a replica of the stage before sends.
    pub(crate) fn activation(
        &mut self,
        who: &Identity,
        from: PeerId,
        tensor: Tensor,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        self.check(who, from, &tensor, Direction::Forward)?;
        let Tensor { microbatch, attempt, needs, payload, .. } = tensor;
        let pipeline = self.pipeline.as_mut().ok_or(Refusal::Busy { microbatch })?;
        let offered = pipeline.offer(microbatch, attempt, needs, Asker::Peer(from), Some(payload));
        self.say_displaced(who, out);
        offered.map(drop)
    }

    /// Takes what a replica of the next stage answers.
    pub(crate) fn gradient(
        &mut self,
        now: Time,
        who: &Identity,
        from: PeerId,
        tensor: Tensor,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let Tensor { microbatch, trained, seat, .. } = tensor;
        if let Err(refusal) = self.check(who, from, &tensor, Direction::Backward) {
            // A peer that was taken for lost has done what others do in its place.
            if matches!(refusal, Refusal::NotMember { .. }) && self.came_late(from, &tensor) {
                out.record(Event::Duplicate { microbatch, from });
            }
            return Err(refusal);
        }
        let pipeline = self.pipeline.as_mut().ok_or(Refusal::NotOwed { microbatch })?;
        let waited = pipeline.waited_for(microbatch.index, from).map(|since| now.since(since));
        match pipeline.offer_gradient(microbatch, Answer { from, seat, trained }, tensor.payload.clone())? {
            Offered::Queued => {
                let owed = pipeline.unanswered().filter(|(_, kept)| kept.was_sent_to(from)).count();
                let free = (who.spec.pipeline.in_flight_max as usize).saturating_sub(owed) as u32;
                if let Some(took) = waited {
                    self.router.settled(from, Weight::Backward, took, free);
                }
                let longest = self.answer_longest.unwrap_or_default();
                self.answer_longest = waited.map(|waited| waited.max(longest)).or(self.answer_longest);
            }
            Offered::Duplicate | Offered::Merged => {
                self.came_late(from, &tensor);
                out.record(Event::Duplicate { microbatch, from });
            }
        }
        Ok(())
    }

    /// Takes an answer that is not used, to be receipted; returns whether its sender was asked for it and owed it still.
    fn came_late(&mut self, from: PeerId, tensor: &Tensor) -> bool {
        let index = tensor.microbatch.index;
        let excused = self.pipeline.as_mut().is_some_and(|pipeline| pipeline.excuse(index, from));
        let owed = self.received.owed(index, from) || excused;
        if let Some(step) = tensor.trained.filter(|_| owed) {
            self.received.late(self.next(), (from, tensor.seat), Trained { index, step });
        }
        owed
    }

    pub(crate) fn diverted(&mut self, from: PeerId, microbatch: MicrobatchId) -> Result<(), Refusal> {
        let place = self.plan.place_of(from).ok_or(Refusal::NotMember { peer: from })?;
        if place.stage.0.checked_add(1) != Some(self.place.stage.0) {
            return Err(Refusal::NotYours { peer: from });
        }
        if let Some(pipeline) = &mut self.pipeline {
            pipeline.diverted(microbatch);
        }
        Ok(())
    }

    fn check(
        &self,
        who: &Identity,
        from: PeerId,
        tensor: &Tensor,
        direction: Direction,
    ) -> Result<(), Refusal> {
        let (microbatch, held) = (tensor.microbatch, self.place.stage);
        if tensor.stage != held {
            return Err(Refusal::WrongStage { microbatch, got: tensor.stage, held });
        }
        // Who has a place and has not entered has no work; an evaluation leaves nothing behind, and is not sent again.
        let works = |member: &&Member| member.enters < route::NEVER || microbatch.split == Split::HeldOut;
        let place = self.plan.member(from).filter(works).ok_or(Refusal::NotMember { peer: from })?.place;
        let neighbour = match direction {
            Direction::Forward => place.stage.0.checked_add(1) == Some(held.0),
            Direction::Backward => held.0.checked_add(1) == Some(place.stage.0),
        };
        if !neighbour || (direction == Direction::Backward && microbatch.split == Split::HeldOut) {
            return Err(Refusal::NotYours { peer: from });
        }
        if let Needs::Only(stages) = &tensor.needs
            && stages.len() > usize::from(who.spec.stages())
        {
            return Err(Refusal::NotDue { microbatch });
        }
        let (got, want) = (tensor.payload.len() as u64, who.spec.boundary_bytes() as u64);
        if got == want { Ok(()) } else { Err(Refusal::TensorLength { microbatch, got, want }) }
    }

    /// Hears that a peer would not take something.
    #[expect(clippy::wildcard_enum_match_arm, reason = "other refusals say nothing of whom to ask")]
    pub(crate) fn refused(&mut self, now: Time, from: PeerId, refusal: &Refusal) {
        let Some(pipeline) = &mut self.pipeline else { return };
        match refusal {
            Refusal::Busy { microbatch } | Refusal::Leaves { microbatch } => {
                pipeline.refused(microbatch.index, from);
                self.router.busy(now, from);
            }
            Refusal::NotMember { .. } | Refusal::NotYours { .. } => {
                let sent = pipeline.unanswered().filter(|(_, kept)| kept.was_sent_to(from));
                let sent: Vec<u64> = sent.map(|(index, _)| index).collect();
                sent.into_iter().for_each(|index| pipeline.refused(index, from));
            }
            _ => {}
        }
    }

    pub(crate) fn forgive(&mut self) {
        if let Some(pipeline) = &mut self.pipeline {
            pipeline.forgive();
        }
    }

    pub(crate) fn forwarded(
        &mut self,
        now: Time,
        who: &Identity,
        microbatch: MicrobatchId,
        output: Output,
        out: &mut Outbox,
    ) {
        let Some(pipeline) = &mut self.pipeline else { return };
        match (output, microbatch.split) {
            (Output::Boundary(payload), Split::Train) => {
                assert_eq!(payload.len(), who.spec.boundary_bytes(), "an output has the boundary's size");
                pipeline.forwarded(microbatch, Some(payload));
            }
            (Output::Boundary(payload), Split::HeldOut) => {
                let sent = pipeline.forwarded(microbatch, Some(payload.clone()));
                // Where nobody is there, the coordinator leases it again when somebody is.
                if let Some(to) = self.choose(now, who, microbatch, &Needs::All, &[]) {
                    self.send_activation(who, microbatch, to, sent, payload, out);
                }
            }
            (Output::Loss(loss), _) => {
                let attempt = pipeline.forwarded(microbatch, None).attempt;
                self.words.loss(microbatch, attempt, loss);
                out.send(who.coordinator, Message::Loss { microbatch, attempt, loss });
            }
        }
        self.dispatch(now, who, out);
    }

    /// Answers all who asked; gives the staleness, and whether it was done for their sake alone.
    pub(crate) fn backwarded(
        &mut self,
        who: &Identity,
        microbatch: MicrobatchId,
        gradient: Option<Bytes>,
        out: &mut Outbox,
    ) -> (u64, bool) {
        let Some(pipeline) = &mut self.pipeline else { return (0, false) };
        let version = pipeline.version();
        let returned = pipeline.backwarded(microbatch);
        let (index, stage) = (microbatch.index, self.place.stage);
        self.received.over(index, &returned.asked, returned.answer.map(|answer| answer.from));
        if let Some(Answer { from, seat, trained: Some(step) }) = returned.answer {
            self.receive(StageId(stage.0 + 1), (from, seat), Trained { index, step });
        }
        let trained = returned.trained;
        for asker in &returned.askers {
            match (asker, &gradient) {
                (Asker::Lease, _) => {
                    let attempt = returned.attempt;
                    self.words.settled(microbatch, attempt, trained);
                    let seat = self.seat;
                    out.send(who.coordinator, Message::Settled { microbatch, attempt, seat, trained });
                }
                (Asker::Peer(previous), Some(payload)) => {
                    assert_eq!(
                        payload.len(),
                        who.spec.boundary_bytes(),
                        "a gradient has the boundary's size"
                    );
                    let Some(member) = self.plan.member(*previous) else { continue };
                    let asked = (member.peer, member.seat);
                    let stage = StageId(stage.0 - 1);
                    if stage == StageId(0) {
                        self.receive(stage, asked, Trained { index, step: InnerStep(0) });
                    }
                    let (attempt, needs) = (returned.attempt, returned.needs.clone());
                    let (payload, seat) = (payload.clone(), self.seat);
                    let tensor =
                        Tensor { microbatch, attempt, stage, seat, version, needs, trained, payload };
                    out.send(*previous, Message::Gradient(tensor));
                }
                (Asker::Peer(_), None) => {
                    panic!("the driver gave no gradient for {microbatch} at an inner stage")
                }
            }
        }
        // Its step may be over, and the next one wait for it.
        if returned.attempt > Attempt(0) {
            self.say_receipts(who, out);
        }
        let ghost = trained.is_none_or(|step| step.0 < version.0);
        (returned.staleness, ghost)
    }

    fn receive(&mut self, stage: StageId, (from, seat): (PeerId, SeatId), trained: Trained) {
        // Who is no member any longer has lost what it did, also where it has a new seat.
        if self.plan.place_of(from).is_none() {
            return;
        }
        self.received.use_of(stage, (from, seat), trained);
    }

    /// Signs for what was received since it was last said.
    pub(crate) fn say_receipts(&mut self, who: &Identity, out: &mut Outbox) {
        let receipts = self.received.sign(who);
        if !receipts.is_empty() {
            self.words.receipts(&receipts);
            out.send(who.coordinator, Message::Receipts(receipts));
        }
    }

    pub(crate) fn say_report(&mut self, who: &Identity, report: StepReport, out: &mut Outbox) {
        self.words.report(report);
        out.send(who.coordinator, Message::Stepped(report));
    }

    pub(crate) fn say_saved(
        &mut self,
        who: &Identity,
        (step, digest): (InnerStep, Digest),
        took: Span,
        out: &mut Outbox,
    ) {
        self.words.saved(step, digest, took);
        out.send(who.coordinator, Message::Checkpointed { step, digest, took });
    }

    pub(crate) fn turn_words(&mut self, known_at: u64) {
        self.words.turn(known_at);
    }

    pub(crate) fn repeat(&mut self, who: &Identity, out: &mut Outbox) {
        self.words.repeat(who.coordinator, self.seat, out);
    }
}
