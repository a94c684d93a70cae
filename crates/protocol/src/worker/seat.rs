//! A worker's place: the stage it holds, from the first byte of its state to the last word about its work.
//!
//! Owns what the place needs to be ready, what it is told by the coordinator, and its turn in computing. Knows nothing of how
//! a peer joins or leaves.

use crate::event::{Event, TaskKind};
use crate::homes::Homes;
use crate::ids::{Digest, InnerStep, MicrobatchId, OuterStep, PeerId, PlanNumber, SeatId, StageId};
use crate::message::{Message, Presence, Refusal, Start, StepReport};
use crate::pipeline::{Pipeline, Task};
use crate::plan::{self, Place, Plan};
use crate::port::{Action, Outbox, StoreItem, Took};
use crate::route::NEVER;
use crate::sync::blob::Blob;
use crate::sync::group::Group;
use crate::sync::member::{Decision, Member};
use crate::sync::task::{SyncDone, SyncTask};
use crate::time::{Span, Time};
use crate::work::{Frontier, Trained};
use crate::worker::handover::{Handover, Has};
use crate::worker::identity::Identity;
use crate::worker::links::Links;
use crate::worker::placing::step_of;
use crate::worker::tensors::Traffic;
use alloc::string::String;
use bytes::Bytes;

/// How far the place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its state comes from other replicas.
    Fetching,
    /// The driver takes hold of the stage.
    Loading,
    /// The stage is held; the coordinator is still to hear of it.
    Loaded,
    /// The coordinator has heard, and says from where on to take part.
    Ready,
    /// It takes part.
    Working,
}

/// A place that this worker holds.
pub(crate) struct Seat {
    standing: Standing,
    /// Where its state comes from.
    start: Start,
    /// The plan that gave the place.
    placed_by: PlanNumber,
    handover: Handover,
    /// This replica among those of its stage; `None` where there is only one place.
    member: Option<Member>,
    frontier: Frontier,
    traffic: Traffic,
    /// Since when computing stands still for the other replicas.
    standing_since: Option<Time>,
    since_step: Tally,
}

/// What is summed up from one optimizer step to the next.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    began: Time,
    compute: Span,
    serialise: Span,
    sync: Span,
    lost: Span,
    staleness: u64,
    wire_bytes_before: u64,
}

impl Tally {
    fn add(&mut self, took: Took) {
        self.compute = self.compute.saturating_add(took.total);
        self.serialise = self.serialise.saturating_add(took.serialise);
    }
}

impl Seat {
    pub(crate) fn new(
        now: Time,
        who: &Identity,
        member: plan::Member,
        plan: Plan,
        start: Start,
        frontier: Frontier,
        out: &mut Outbox,
    ) -> Self {
        let group = Group::of(&plan, member.place.stage).among(who.spec.pipeline.replicas);
        let exchanges = who.spec.pipeline.replicas > 1;
        let replica = exchanges.then(|| Member::new(member.place.replica, who.coordinator, group));
        let begins = member.enters < NEVER;
        let mut traffic = Traffic::new(member, plan);
        if begins {
            traffic.open(Pipeline::new(
                &who.spec,
                step_of(start),
                traffic.place().stage,
                traffic.place().replica,
            ));
        }
        let mut seat = Self {
            standing: Standing::Loading,
            start,
            placed_by: traffic.plan().number,
            handover: Handover::new(&who.spec, traffic.place(), who.me),
            member: replica,
            frontier,
            traffic,
            standing_since: None,
            since_step: Tally { began: now, ..Tally::default() },
        };
        seat.start_again(now, start, out);
        seat
    }

    /// Takes hold of the stage, from where the coordinator says; with the state of other replicas it goes on from what it has of it.
    pub(crate) fn start_again(&mut self, now: Time, start: Start, out: &mut Outbox) {
        self.start = start;
        match start {
            Start::Fresh | Start::Checkpoint { .. } => {
                self.standing = Standing::Loading;
                self.handover.begin_alone(self.traffic.plan());
                out.push(Action::Load { place: self.place(), start });
            }
            Start::Replicas { outer, digest } => {
                self.handover.aim(now, (outer, digest), self.traffic.plan(), out);
                self.stand();
            }
        }
        self.handover.enrol(self.traffic.plan());
    }

    /// Stands where what is taken from other replicas has come to.
    fn stand(&mut self) {
        let Some(has) = self.handover.stands() else { return };
        self.standing = match (has, self.standing) {
            (_, Standing::Working) => Standing::Working,
            (Has::All, Standing::Ready) => Standing::Ready,
            (Has::All, _) => Standing::Loaded,
            (Has::Loads, _) => Standing::Loading,
            (Has::Part, _) => Standing::Fetching,
        };
    }

    /// Fetches the state again, after what came did not fit.
    pub(crate) fn fetch_again(&mut self, now: Time, reason: String, out: &mut Outbox) {
        if self.standing == Standing::Loading {
            self.handover.start_over(now, reason, self.traffic.plan(), out);
            self.stand();
        }
    }

    pub(crate) fn place(&self) -> Place {
        self.traffic.place()
    }

    pub(crate) fn plan_number(&self) -> PlanNumber {
        self.traffic.plan().number
    }

    pub(crate) fn standing(&self) -> Standing {
        self.standing
    }

    pub(crate) fn is_seat(&self, seat: SeatId) -> bool {
        self.traffic.seat() == seat
    }

    /// Returns whether the coordinator may place this peer anew: on another seat by a later plan, or from a later state on the
    /// same one, while it does not take part yet.
    pub(crate) fn may_be_placed_again(&self, member: &plan::Member, plan: &Plan) -> bool {
        match self.is_seat(member.seat) {
            true => self.standing != Standing::Working,
            false => plan.number > self.plan_number(),
        }
    }

    /// Wants the connections that the place needs. Of two replicas of a stage the earlier dials. A newcomer dials all: to who
    /// was connected to its former process, that connection seems to stand for seconds yet.
    pub(crate) fn link(&self, who: &Identity, links: &mut Links, out: &mut Outbox) {
        let plan = self.traffic.plan();
        let Place { stage, replica } = self.place();
        let near = |place: Place| place.stage.0.abs_diff(stage.0) <= 1;
        let arrives = plan.member(who.me).is_some_and(|member| member.enters >= NEVER);
        links.retain(|peer| peer == who.coordinator || plan.place_of(peer).is_some_and(near));
        for member in plan.members.iter().filter(|member| near(member.place) && member.peer != who.me) {
            let dials = arrives
                || member.place.stage.0 == stage.0 + 1
                || (member.place.stage == stage && member.place.replica > replica);
            links.want(member.peer, dials.then(|| member.address.clone()), out);
        }
    }

    pub(crate) fn loaded(&mut self, now: Time, out: &mut Outbox) {
        if self.standing == Standing::Loading {
            self.standing = Standing::Loaded;
            self.handover.loaded(now, self.traffic.plan(), out);
            self.stand();
        }
    }

    /// Notes that the coordinator hears that the stage is held; gives what it is told.
    pub(crate) fn say_ready(&mut self) -> (PlanNumber, Option<OuterStep>) {
        self.standing = if self.traffic.pipeline().is_some() { Standing::Working } else { Standing::Ready };
        (self.placed_by, self.handover.holds())
    }

    /// Returns whether the state is already taken from there.
    pub(crate) fn starts_from(&self, start: Start) -> bool {
        self.start == start
    }

    /// Does as the coordinator says.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a member hears only these words of its coordinator here"
    )]
    pub(crate) fn ordered(
        &mut self,
        now: Time,
        who: &Identity,
        links: &mut Links,
        message: Message,
        out: &mut Outbox,
    ) {
        match message {
            Message::Roster { plan, .. } if !plan.places_each_once() => {
                out.refuse(who.coordinator, Refusal::NotYours { peer: who.coordinator });
            }
            Message::Roster { plan, disturbed_below } if plan.number >= self.plan_number() => {
                self.enrol(who, plan, disturbed_below, out);
                self.link(who, links, out);
            }
            Message::Enter { outer, step, trained } => self.enter(who, (outer, step), &trained, out),
            Message::Suspects(suspects) => self.traffic.suspect(suspects.into_iter().collect()),
            Message::Frontier(frontier) => {
                self.frontier = frontier;
                self.traffic.reached(frontier);
            }
            Message::Close { outer } => {
                if let Some(pipeline) = self.traffic.pipeline() {
                    pipeline.close(outer);
                }
            }
            Message::Sign { plan } => {
                self.traffic.say_receipts(who, out);
                out.send(who.coordinator, Message::Signed { plan });
            }
            Message::Lease { microbatches, attempt, needs, .. } => {
                self.traffic.leased(who, &microbatches, attempt, &needs, out);
            }
            Message::Drain { border } => {
                if let Some(pipeline) = self.traffic.pipeline() {
                    pipeline.drain(border);
                }
            }
            other => drop(other),
        }
        self.traffic.dispatch(now, who, out);
    }

    /// Takes a later plan.
    fn enrol(&mut self, who: &Identity, plan: Plan, disturbed_below: InnerStep, out: &mut Outbox) {
        // Without ourselves in it, another message says why.
        if plan.member(who.me).is_none_or(|member| member.seat != self.traffic.seat()) {
            return;
        }
        let group = Group::of(&plan, self.place().stage).among(who.spec.pipeline.replicas);
        if let Some(member) = &mut self.member {
            member.regroup(group);
        }
        self.traffic.enrol(who, plan, disturbed_below, out);
        self.handover.enrol(self.traffic.plan());
    }

    fn enter(
        &mut self,
        who: &Identity,
        (outer, step): (Option<OuterStep>, InnerStep),
        trained: &[Trained],
        out: &mut Outbox,
    ) {
        if self.standing != Standing::Ready {
            return out.refuse(who.coordinator, Refusal::NotYours { peer: who.coordinator });
        }
        out.push(Action::Enter { step });
        let Place { stage, replica } = self.place();
        let mut pipeline = Pipeline::new(&who.spec, step, stage, replica);
        pipeline.take_turns(Homes::of(self.traffic.plan(), &who.agenda, stage));
        let enters = self.traffic.plan().member(who.me).map_or(step, |member| member.enters);
        pipeline.expects_from(enters.max(step));
        pipeline.reached(self.frontier);
        pipeline.has_trained(trained);
        // Before the border it comes there as the others do.
        if let Some(outer) = outer.filter(|outer| who.agenda.outer_of(step) != Some(*outer)) {
            pipeline.enter(outer);
        }
        self.traffic.open(pipeline);
        self.handover.entered();
        self.standing = Standing::Working;
    }

    /// Takes a message of another member.
    #[expect(clippy::wildcard_enum_match_arm, reason = "members say nothing else to each other")]
    pub(crate) fn heard(
        &mut self,
        now: Time,
        who: &Identity,
        from: PeerId,
        message: Message,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        match message {
            Message::Activation(tensor) => self.traffic.activation(who, from, tensor, out),
            Message::Gradient(tensor) => self.traffic.gradient(now, who, from, tensor, out),
            Message::Diverted { microbatch } => self.traffic.diverted(from, microbatch),
            Message::Sync(say) => match &mut self.member {
                Some(member) => member.received(now, from, say, out),
                None => Err(Refusal::NotYours { peer: from }),
            },
            Message::State(say) => self.state_said(now, from, say, out),
            _ => Err(Refusal::NotYours { peer: from }),
        }
    }

    fn state_said(
        &mut self,
        now: Time,
        from: PeerId,
        say: crate::sync::state::StateSay,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        if self.traffic.plan().place_of(from).map(|place| place.stage) != Some(self.place().stage) {
            return Err(Refusal::NotYours { peer: from });
        }
        self.handover.received(now, from, say, out)?;
        self.stand();
        Ok(())
    }

    pub(crate) fn exported(
        &mut self,
        outer: OuterStep,
        agreed: Blob,
        own: Blob,
        took: Took,
        out: &mut Outbox,
    ) {
        self.since_step.sync = self.since_step.sync.saturating_add(took.total);
        self.handover.exported(outer, agreed, own, out);
    }

    pub(crate) fn connected(&mut self, peer: PeerId) {
        self.traffic.connected(peer);
    }

    /// Hears that a connection is gone; gives the stage of its peer.
    pub(crate) fn lost(&mut self, now: Time, peer: PeerId, out: &mut Outbox) -> Option<StageId> {
        if let Some(member) = &mut self.member {
            member.lost(now, peer, out);
        }
        self.traffic.lost(now, peer);
        self.traffic.plan().place_of(peer).map(|place| place.stage)
    }

    pub(crate) fn refused(&mut self, now: Time, from: PeerId, refusal: &Refusal, out: &mut Outbox) {
        self.handover.refused(now, from, refusal, self.traffic.plan(), out);
        self.stand();
        self.traffic.refused(now, from, refusal);
    }

    pub(crate) fn sync_done(&mut self, now: Time, done: SyncDone, out: &mut Outbox) {
        let Some(done) = self.handover.sync_done(now, done, self.traffic.plan(), out) else {
            return self.stand();
        };
        let Some(member) = self.member.as_mut() else { return };
        let Some(pipeline) = self.traffic.pipeline() else { return };
        let (task, took) = done.task();
        out.record(Event::Computed { task, microbatch: None, took });
        match &done {
            SyncDone::Snapshotted { .. } => {
                self.since_step.sync = self.since_step.sync.saturating_add(took);
                let (outer, step) = pipeline.snapshotted();
                member.reached(now, outer, step, out);
            }
            SyncDone::Adopted { .. } => {
                self.since_step.sync = self.since_step.sync.saturating_add(took);
                pipeline.adopted();
            }
            SyncDone::Committed { .. } => {
                pipeline.committed();
                let passed = member.take_passed();
                if let Some(agreed) = member.agreed() {
                    self.handover.committed(agreed, passed, out);
                }
                self.traffic.turn_words(0);
            }
            SyncDone::Restored { .. } => pipeline.restored(),
            SyncDone::Encoded { .. } | SyncDone::Reduced { .. } | SyncDone::Staged { .. } => {}
        }
        member.done(now, done, out);
    }

    pub(crate) fn take_decision(&mut self) -> Option<(OuterStep, Decision)> {
        self.member.as_mut().and_then(Member::take_decision)
    }

    pub(crate) fn forwarded(
        &mut self,
        now: Time,
        who: &Identity,
        microbatch: MicrobatchId,
        output: crate::port::Output,
        took: Took,
        out: &mut Outbox,
    ) {
        self.since_step.add(took);
        let task = TaskKind::Forward;
        out.record(Event::Computed { task, microbatch: Some(microbatch), took: took.total });
        self.traffic.forwarded(now, who, microbatch, output, out);
    }

    pub(crate) fn backwarded(
        &mut self,
        who: &Identity,
        microbatch: MicrobatchId,
        gradient: Option<Bytes>,
        took: Took,
        out: &mut Outbox,
    ) {
        self.since_step.add(took);
        let task = TaskKind::Backward;
        out.record(Event::Computed { task, microbatch: Some(microbatch), took: took.total });
        let (staleness, ghost) = self.traffic.backwarded(who, microbatch, gradient, out);
        self.since_step.staleness = self.since_step.staleness.max(staleness);
        if ghost {
            self.since_step.lost = self.since_step.lost.saturating_add(took.total);
        }
    }

    pub(crate) fn stepped(
        &mut self,
        now: Time,
        who: &Identity,
        (gradient_norm, learning_rate, wire_bytes_total): (f64, f64, u64),
        took: Took,
        out: &mut Outbox,
    ) {
        let Some(pipeline) = self.traffic.pipeline() else { return };
        self.since_step.add(took);
        out.record(Event::Computed { task: TaskKind::Step, microbatch: None, took: took.total });
        let (step, microbatches) = pipeline.stepped();
        let tally = core::mem::take(&mut self.since_step);
        self.since_step = Tally { began: now, wire_bytes_before: wire_bytes_total, ..Tally::default() };
        self.traffic.say_receipts(who, out);
        let report = StepReport {
            step,
            gradient_norm,
            learning_rate,
            microbatches,
            compute: tally.compute,
            serialise: tally.serialise,
            sync: tally.sync,
            lost: tally.lost,
            wall: now.since(tally.began),
            wire_bytes: wire_bytes_total.saturating_sub(tally.wire_bytes_before),
            staleness: tally.staleness,
        };
        if step < who.agenda.steps() {
            self.traffic.say_report(who, report, out);
        }
    }

    pub(crate) fn saved(
        &mut self,
        who: &Identity,
        step: InnerStep,
        digest: Digest,
        took: Took,
        out: &mut Outbox,
    ) {
        let Some(pipeline) = self.traffic.pipeline() else { return };
        pipeline.saved();
        out.record(Event::Computed { task: TaskKind::Save, microbatch: None, took: took.total });
        out.record(Event::Saved { step, digest });
        self.traffic.say_receipts(who, out);
        self.traffic.say_saved(who, (step, digest), took.total, out);
        if self.member.is_none() {
            self.traffic.turn_words(who.agenda.training_of(step).start);
        }
    }

    /// Says again all that a coordinator may have missed or forgotten.
    pub(crate) fn repeat(&mut self, who: &Identity, out: &mut Outbox) {
        let standing = match self.standing {
            Standing::Working => Presence::Works,
            Standing::Fetching | Standing::Loading | Standing::Loaded | Standing::Ready => Presence::Waits,
        };
        out.send(who.coordinator, Message::Present { plan: self.plan_number(), standing });
        match self.standing {
            Standing::Ready | Standing::Working => {
                let (plan, holds) = (self.placed_by, self.handover.holds());
                out.send(who.coordinator, Message::Ready { plan, holds });
            }
            Standing::Fetching | Standing::Loading | Standing::Loaded => {}
        }
        self.traffic.repeat(who, out);
    }

    pub(crate) fn deadline(&self, now: Time) -> Option<Time> {
        let member = self.member.as_ref().and_then(Member::deadline);
        let late = self.traffic.deadline(now);
        member.into_iter().chain(self.handover.deadline()).chain(late).min()
    }

    pub(crate) fn woke(&mut self, now: Time, who: &Identity, links: &Links, out: &mut Outbox) {
        if let Some(member) = &mut self.member {
            member.woke(now, out);
        }
        self.handover.woke(now, self.traffic.plan(), out);
        self.stand();
        self.traffic.unusable(links.unusable(now));
        self.traffic.dispatch(now, who, out);
    }

    /// Says that it is there, with what it has not said yet.
    pub(crate) fn beat(&mut self, who: &Identity, out: &mut Outbox) {
        self.traffic.say_receipts(who, out);
        self.traffic.forgive();
        out.send(who.coordinator, Message::Beat);
    }

    /// Asks for the next computation, if one may start.
    pub(crate) fn advance(&mut self, now: Time, who: &Identity, out: &mut Outbox) {
        if self.standing != Standing::Working {
            return;
        }
        let Some(pipeline) = self.traffic.pipeline() else { return };
        match (pipeline.awaits_agreement(), self.standing_since) {
            (true, None) => self.standing_since = Some(now),
            (false, Some(since)) => {
                self.standing_since = None;
                self.since_step.sync = self.since_step.sync.saturating_add(now.since(since));
            }
            (true, Some(_)) | (false, None) => {}
        }
        let task = pipeline.start();
        for index in pipeline.take_abandoned() {
            out.push(Action::Discard { microbatch: MicrobatchId::train(index) });
        }
        let Some(task) = task else { return };
        let agenda = who.agenda;
        out.push(match task {
            Task::Forward { microbatch, input } => {
                Action::Forward { microbatch, data_index: agenda.data_index(microbatch), input }
            }
            Task::Backward { microbatch, input, gradient, duty } => {
                let data_index = agenda.data_index(microbatch);
                Action::Backward { microbatch, data_index, input, gradient, duty }
            }
            Task::Step { step, microbatches } => Action::Step { step, microbatches },
            Task::Save { border } => Action::Store(StoreItem::Checkpoint { step: border }),
            Task::Snapshot { outer, microbatches } => {
                Action::Sync(SyncTask::Snapshot { outer, microbatches })
            }
            Task::Adopt { outer } => Action::Sync(SyncTask::Adopt { outer }),
        });
    }

    pub(crate) fn kept_bytes(&self) -> usize {
        self.traffic.kept_bytes()
    }

    pub(crate) fn in_flight(&self) -> Option<usize> {
        self.traffic.in_flight()
    }
}
