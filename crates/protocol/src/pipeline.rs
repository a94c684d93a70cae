//! A stage's queue: which computation is next, and what is kept until its backward returns.
//!
//! Owns the order of work (backward before forward), the gates of the schedules, what has been trained here, and every bound
//! on the queue. Knows nothing of peers' addresses, of messages, or of how a computation is done.

mod agreeing;
mod agreement;
mod forwards;
pub mod kept;
mod steps;
#[cfg(test)]
mod tests;

use crate::agenda::{Agenda, Exchanges, Order};
use crate::homes::Homes;
use crate::ids::{
    Attempt, InnerStep, MicrobatchId, OuterStep, PeerId, ReplicaId, Split, StageId, WeightVersion,
};
use crate::index_set::IndexSet;
use crate::message::Refusal;
use crate::pipeline::agreement::Agreement;
use crate::pipeline::kept::{Answer, Asker, Kept, Returned, Sent};
use crate::port::Duty;
use crate::spec::{RunSpec, Schedule};
use crate::time::Time;
use crate::work::{Frontier, Needs, Trained};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;

/// A computation that may start now.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// A forward.
    Forward {
        /// Of which microbatch.
        microbatch: MicrobatchId,
        /// The boundary input; the first stage has none.
        input: Option<Bytes>,
    },
    /// A backward.
    Backward {
        /// Of which microbatch.
        microbatch: MicrobatchId,
        /// The boundary input, kept since the forward.
        input: Option<Bytes>,
        /// The gradient of the boundary output; the last stage has none.
        gradient: Option<Bytes>,
        /// Whether the stage trains by it.
        duty: Duty,
    },
    /// An optimizer step.
    Step {
        /// Which.
        step: InnerStep,
        /// Microbatches in its sum.
        microbatches: u32,
    },
    /// A checkpoint at a border.
    Save {
        /// Which.
        border: InnerStep,
    },
    /// A copy of what is to be exchanged with the other replicas.
    Snapshot {
        /// For which outer step.
        outer: OuterStep,
        /// Microbatches in the sum of the present step.
        microbatches: u32,
    },
    /// Going over to what the replicas agreed on.
    Adopt {
        /// In which outer step.
        outer: OuterStep,
    },
}

/// What became of an offered tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is in the queue.
    Queued,
    /// It is under way here already; who offered it gets the answer too.
    Merged,
    /// It is settled everywhere and changes nothing.
    Duplicate,
}

/// The queue of one stage's replica.
#[derive(Debug)]
pub struct Pipeline {
    agenda: Agenda,
    stage: StageId,
    replica: ReplicaId,
    /// Which training microbatches fall to whom.
    homes: Homes,
    ordered: bool,
    in_flight_max: usize,
    waiting_max: usize,
    version: u64,
    waiting: BTreeMap<Order, Kept>,
    /// What had to make room for earlier work, and is to be refused.
    displaced: Vec<(MicrobatchId, Asker)>,
    /// Forwards whose backward will not run: what the driver holds for it is to be let go.
    abandoned: Vec<u64>,
    kept: BTreeMap<u64, Kept>,
    /// What has come back from the next stage; `None` at the last one.
    gradients: BTreeMap<u64, Option<Bytes>>,
    /// What is in this replica's weights or sums, and since which of its steps.
    trained: BTreeMap<u64, InnerStep>,
    /// Of what falls to this replica, counted in its own order: what is trained, or need not be waited for.
    accounted: IndexSet,
    /// Likewise of what is evaluated.
    evaluated: IndexSet,
    /// Microbatches in the sum of the present step.
    in_sum: u32,
    /// The step from which work is not taken any more: the peer is about to leave.
    until: Option<InnerStep>,
    frontier: Frontier,
    /// Steps below it may have lost work with a peer, so that nobody waits for a certain order.
    disturbed_below: InnerStep,
    busy: Option<Busy>,
    agreement: Agreement,
    save_due: Option<InnerStep>,
    drain: Option<InnerStep>,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of it in a queue")]
enum Busy {
    Forward(MicrobatchId, Kept),
    Backward(u64),
    Step,
    Save,
    Snapshot(OuterStep),
    Adopt,
}

impl Pipeline {
    /// Makes the queue of a stage's replica whose weights have seen `start` steps.
    pub fn new(spec: &RunSpec, start: InnerStep, stage: StageId, replica: ReplicaId) -> Self {
        let agenda = Agenda::new(spec);
        let in_flight_max = spec.pipeline.in_flight_max as usize;
        let homes = Homes::equal(&agenda);
        Self {
            ordered: spec.pipeline.schedule == Schedule::Flush,
            in_flight_max,
            waiting_max: in_flight_max + 2 * lease_ahead(spec) * usize::from(spec.pipeline.replicas),
            version: start.0,
            waiting: BTreeMap::new(),
            displaced: Vec::new(),
            abandoned: Vec::new(),
            kept: BTreeMap::new(),
            gradients: BTreeMap::new(),
            trained: BTreeMap::new(),
            accounted: IndexSet::starting_at(homes.share_below(agenda.training_of(start).start, replica)),
            evaluated: IndexSet::starting_at(agenda.share_below(agenda.evaluated_before(start), replica)),
            in_sum: 0,
            until: None,
            frontier: Frontier::default(),
            disturbed_below: InnerStep(0),
            busy: None,
            agreement: Agreement::new(),
            save_due: None,
            drain: None,
            agenda,
            homes,
            stage,
            replica,
        }
    }

    /// Returns how many steps the weights have seen.
    pub fn version(&self) -> WeightVersion {
        WeightVersion(self.version)
    }

    /// Returns the bytes of boundary inputs and outputs held for backwards to come.
    pub fn kept_bytes(&self) -> usize {
        self.kept.values().map(Kept::bytes).sum()
    }

    /// Returns how many training microbatches wait for their backward, which may be under way.
    pub fn in_flight(&self) -> usize {
        self.kept.len()
    }

    /// Takes a microbatch to be forwarded.
    ///
    /// # Errors
    /// It is not on the agenda, the queue is full, or the peer is about to leave.
    pub fn offer(
        &mut self,
        microbatch: MicrobatchId,
        attempt: Attempt,
        needs: Needs,
        asker: Asker,
        input: Option<Bytes>,
    ) -> Result<Offered, Refusal> {
        let order = self.agenda.order(microbatch).ok_or(Refusal::NotDue { microbatch })?;
        if self.merge(microbatch, order, attempt, &needs, asker) {
            return Ok(Offered::Merged);
        }
        // What is settled has come through at every stage; only a later try can want it again.
        if attempt == Attempt(0) && self.is_settled(microbatch) {
            return Ok(Offered::Duplicate);
        }
        let duty = self.duty(microbatch, &needs);
        let leaves = self.until.is_some_and(|until| order.step() >= until);
        if leaves && duty == Duty::Train {
            return Err(Refusal::Leaves { microbatch });
        }
        if self.waiting.len() >= self.waiting_max {
            // What comes later must not keep out what it waits for.
            let last = self.waiting.last_entry().filter(|last| order < *last.key());
            let (later, kept) = last.ok_or(Refusal::Busy { microbatch })?.remove_entry();
            self.displaced.extend(kept.askers.into_iter().map(|asker| (later.microbatch(), asker)));
        }
        self.waiting.insert(order, Kept::new(asker, attempt, needs, duty, input));
        Ok(Offered::Queued)
    }

    /// Gives, once, what had to make room for earlier work, with who asked for it.
    pub fn take_displaced(&mut self) -> Vec<(MicrobatchId, Asker)> {
        core::mem::take(&mut self.displaced)
    }

    /// Gives, once, the training microbatches that were forwarded and will not be backwarded, unless they are forwarded again.
    pub fn take_abandoned(&mut self) -> Vec<u64> {
        core::mem::take(&mut self.abandoned)
    }

    /// Finds a microbatch that is under way here, and notes who else asks for it, and what for.
    fn merge(
        &mut self,
        microbatch: MicrobatchId,
        order: Order,
        attempt: Attempt,
        needs: &Needs,
        asker: Asker,
    ) -> bool {
        let duty = self.duty(microbatch, needs);
        let under_way = match (&mut self.busy, microbatch.split) {
            (Some(Busy::Forward(busy, kept)), _) if *busy == microbatch => Some(kept),
            (Some(Busy::Backward(index)), Split::Train) if *index == microbatch.index => {
                // Its duty is decided; whoever asks gets the answer.
                let kept = self.kept.get_mut(index).expect("a backward under way has its microbatch kept");
                kept.asked(asker, attempt, needs);
                return true;
            }
            _ => None,
        };
        let kept = match microbatch.split {
            Split::Train => self.kept.get_mut(&microbatch.index),
            Split::HeldOut => None,
        };
        let Some(known) = under_way.or(kept).or(self.waiting.get_mut(&order)) else { return false };
        known.asked(asker, attempt, needs);
        known.duty = known.duty.min(duty);
        true
    }

    /// Returns whether this replica trains a microbatch in a try, or has done so or need not.
    fn duty(&self, microbatch: MicrobatchId, needs: &Needs) -> Duty {
        let new = microbatch.split == Split::Train && !self.trained.contains_key(&microbatch.index);
        if new && needs.includes(self.stage) { Duty::Train } else { Duty::Ghost }
    }

    fn is_settled(&self, microbatch: MicrobatchId) -> bool {
        match microbatch.split {
            Split::Train => microbatch.index < self.frontier.train_below,
            Split::HeldOut => microbatch.index < self.frontier.held_out_below,
        }
    }

    /// Takes the gradient of a microbatch that was sent to `from`.
    ///
    /// # Errors
    /// Nothing is owed for it by that peer.
    pub fn offer_gradient(
        &mut self,
        microbatch: MicrobatchId,
        answer: Answer,
        gradient: Bytes,
    ) -> Result<Offered, Refusal> {
        let index = match microbatch.split {
            Split::Train => microbatch.index,
            Split::HeldOut => return Err(Refusal::NotOwed { microbatch }),
        };
        let under_way = matches!(self.busy, Some(Busy::Backward(busy)) if busy == index);
        if under_way || self.gradients.contains_key(&index) {
            return Ok(Offered::Duplicate);
        }
        let known = self.trained.contains_key(&index)
            || self.is_settled(microbatch)
            || self.has_given_way(index, answer.from);
        match self.kept.get_mut(&index) {
            Some(kept) if kept.was_sent_to(answer.from) => {
                kept.answer = Some(answer);
                self.gradients.insert(index, Some(gradient));
                Ok(Offered::Queued)
            }
            Some(_) => Err(Refusal::NotOwed { microbatch }),
            None if known => Ok(Offered::Duplicate),
            None => Err(Refusal::NotOwed { microbatch }),
        }
    }

    /// Hears that one who was asked for a microbatch has lost its seat, and answers; returns whether it owed that.
    pub fn excuse(&mut self, index: u64, by: PeerId) -> bool {
        self.kept.get_mut(&index).is_some_and(|kept| kept.excuse(by))
    }

    /// Hears that a microbatch that falls to this replica does not come here.
    pub fn diverted(&mut self, microbatch: MicrobatchId) {
        let Some(order) = self.agenda.order(microbatch) else { return };
        let forward = matches!(&self.busy, Some(Busy::Forward(busy, _)) if *busy == microbatch);
        if forward || self.waiting.contains_key(&order) {
            return;
        }
        let index = microbatch.index;
        match microbatch.split {
            Split::Train if self.is_home(index) && !self.kept.contains_key(&index) => {
                self.accounted.insert(self.place_of(index));
            }
            Split::HeldOut if self.agenda.home(microbatch) == self.replica => {
                self.evaluated.insert(self.held_out_place_of(index));
            }
            Split::Train | Split::HeldOut => {}
        }
    }

    /// Hears how far the run is; gives back what was under way here and is settled without this replica.
    pub fn reached(&mut self, frontier: Frontier) -> Vec<(u64, Kept)> {
        self.frontier = frontier;
        let settled = |microbatch: MicrobatchId, kept: &Kept| {
            let below = match microbatch.split {
                Split::Train => frontier.train_below,
                Split::HeldOut => frontier.held_out_below,
            };
            microbatch.index < below && kept.attempt == Attempt(0)
        };
        self.waiting.retain(|order, kept| !settled(order.microbatch(), kept));
        let busy = match self.busy {
            Some(Busy::Backward(index)) => Some(index),
            Some(Busy::Forward(..) | Busy::Step | Busy::Save | Busy::Snapshot(_) | Busy::Adopt) | None => {
                None
            }
        };
        let over =
            |index: &u64, kept: &mut Kept| Some(*index) != busy && settled(MicrobatchId::train(*index), kept);
        let dropped: Vec<(u64, Kept)> = self.kept.extract_if(.., over).collect();
        self.abandoned.extend(dropped.iter().map(|(index, _)| *index));
        let kept = &self.kept;
        self.gradients.retain(|index, _| kept.contains_key(index));
        dropped
    }

    /// Hears that steps below this one may have lost work with a peer.
    pub fn disturbed(&mut self, below: InnerStep) {
        self.disturbed_below = self.disturbed_below.max(below);
    }

    /// Takes no work of this step and later ones any more, or all again; gives back what waits of them, with who asked for it.
    pub fn leave_at(&mut self, until: Option<InnerStep>) -> Vec<(MicrobatchId, Asker)> {
        self.until = until;
        let Some(until) = until else { return Vec::new() };
        let back = |order: &Order, kept: &Kept| order.step() >= until && kept.duty == Duty::Train;
        let waiting = self.waiting.extract_if(.., |order, kept| back(order, kept));
        waiting
            .flat_map(|(order, kept)| kept.askers.into_iter().map(move |by| (order.microbatch(), by)))
            .collect()
    }

    /// Asks for the state to be saved at a border that no lease crosses.
    pub fn drain(&mut self, border: InnerStep) {
        self.drain = Some(border);
        if self.version == border.0 && !self.agenda.saves_at(border) {
            // What is saved is what all replicas have agreed on there.
            self.agreement.go_over_at(border);
            self.save_due = Some(border);
        }
    }

    /// Returns where a training index stands among those that fall to this replica.
    fn place_of(&self, index: u64) -> u64 {
        self.homes.share_below(index, self.replica)
    }

    /// Returns where a held-out index stands among those that fall to this replica.
    fn held_out_place_of(&self, index: u64) -> u64 {
        self.agenda.share_below(index, self.replica)
    }

    fn is_home(&self, index: u64) -> bool {
        self.homes.home(index) == Some(self.replica)
    }

    /// Takes the turns of a later plan, which differ from those before only in steps that are still to come.
    pub fn take_turns(&mut self, homes: Homes) {
        self.homes = homes;
    }

    /// Starts the next computation, if one may start: what the replicas exchange, then a checkpoint, an optimizer step, a
    /// backward, a forward.
    pub fn start(&mut self) -> Option<Task> {
        if self.busy.is_some() {
            return None;
        }
        if self.awaits_agreement() {
            // The others do not come to this border before they have what was lost on its way to it.
            let behind = InnerStep(self.version);
            return self.start_backward(behind).or_else(|| self.start_forward(behind));
        }
        if let Some(task) = self.start_exchange() {
            return Some(task);
        }
        if let Some(border) = self.save_due.take() {
            self.busy = Some(Busy::Save);
            return Some(Task::Save { border });
        }
        if self.step_due() {
            return Some(self.start_step());
        }
        let any = InnerStep(u64::MAX);
        self.start_backward(any).or_else(|| self.start_forward(any))
    }

    /// Under `flush`, gradients are summed in the order of the microbatches, so that the sum does not depend on who was
    /// fast; floating-point addition is not associative. Where work was lost with a peer, no order is waited for, nor with what
    /// is not waited for itself: it is of steps before this replica came.
    fn start_backward(&mut self, below: InnerStep) -> Option<Task> {
        let full = self.worked();
        let may = |index: &u64| {
            let Some(kept) = self.kept.get(index) else { return false };
            let step = self.agenda.step_of(MicrobatchId::train(*index)).unwrap_or_default();
            match kept.duty {
                _ if step >= below => false,
                Duty::Ghost => true,
                // What was lost once has no step of its own to wait for.
                Duty::Train if full && step >= InnerStep(self.version) => false,
                Duty::Train => {
                    let free = !self.ordered || step < self.disturbed_below || kept.attempt > Attempt(0);
                    free || !self.is_home(*index) || self.place_of(*index) <= self.accounted.watermark()
                }
            }
        };
        let index = self.gradients.keys().copied().find(may)?;
        let gradient = self.gradients.remove(&index)?;
        let kept = self.kept.get(&index)?;
        let (input, duty) = (kept.input.clone(), kept.duty);
        self.busy = Some(Busy::Backward(index));
        Some(Task::Backward { microbatch: MicrobatchId::train(index), input, gradient, duty })
    }

    /// Settles a forward; `output` is kept for the next stage, until its gradient is here. At the last stage
    /// the backward may start at once.
    pub fn forwarded(&mut self, microbatch: MicrobatchId, output: Option<Bytes>) -> Sent {
        let Some(Busy::Forward(under_way, mut kept)) = self.busy.take() else {
            panic!("the driver answered a forward of {microbatch} that was not under way");
        };
        assert_eq!(under_way, microbatch, "the driver answers the forward under way");
        let sent = Sent { attempt: kept.attempt, needs: kept.needs.clone() };
        // It was settled without this replica while the forward ran: nobody answers for it any more.
        let over = kept.attempt == Attempt(0) && self.is_settled(microbatch);
        match microbatch.split {
            Split::HeldOut => {
                if self.agenda.home(microbatch) == self.replica {
                    self.evaluated.insert(self.held_out_place_of(microbatch.index));
                }
            }
            Split::Train if over => self.abandoned.push(microbatch.index),
            Split::Train => {
                kept.version = WeightVersion(self.version);
                if output.is_none() {
                    self.gradients.insert(microbatch.index, None);
                }
                kept.output = output;
                self.kept.insert(microbatch.index, kept);
            }
        }
        sent
    }

    /// Lists the training microbatches whose gradient the next stage owes.
    pub fn unanswered(&self) -> impl Iterator<Item = (u64, &Kept)> {
        let owed = |index: &u64, kept: &Kept| kept.output.is_some() && !self.gradients.contains_key(index);
        let busy = matches!(&self.busy, Some(Busy::Backward(_)));
        let under_way =
            move |index: u64| busy && matches!(self.busy, Some(Busy::Backward(at)) if at == index);
        self.kept
            .iter()
            .filter(move |(index, kept)| owed(index, kept) && !under_way(**index))
            .map(|(i, kept)| (*i, kept))
    }

    /// Notes that the output of a microbatch goes to a replica of the next stage; gives it, and what is said with it.
    pub fn resend(&mut self, index: u64, to: PeerId, now: Time) -> Option<(Sent, Bytes)> {
        let kept = self.kept.get_mut(&index)?;
        let output = kept.output.clone()?;
        kept.sent(to, now);
        Some((kept.words(), output))
    }

    /// Returns since when the gradient of a microbatch is owed by a peer.
    pub fn waited_for(&self, index: u64, from: PeerId) -> Option<Time> {
        let sent_to = &self.kept.get(&index)?.sent_to;
        sent_to.iter().find(|(peer, _)| *peer == from).map(|(_, since)| *since)
    }

    /// Waits only for what falls to this replica from a step on: before it nothing does.
    pub fn expects_from(&mut self, step: InnerStep) {
        let trained = self.place_of(self.agenda.training_of(step).start);
        self.accounted = IndexSet::starting_at(trained);
        self.evaluated = IndexSet::starting_at(self.held_out_place_of(self.agenda.evaluated_before(step)));
    }

    /// Notes what is in this replica's weights from before it took its place.
    pub fn has_trained(&mut self, trained: &[Trained]) {
        self.trained.extend(trained.iter().map(|trained| (trained.index, trained.step)));
    }

    /// Notes that a replica of the next stage would not take a microbatch.
    pub fn refused(&mut self, index: u64, by: PeerId) {
        if let Some(kept) = self.kept.get_mut(&index) {
            kept.sent_to.retain(|(peer, _)| *peer != by);
            kept.refused_by.push(by);
        }
    }

    /// Lets those who would not take a microbatch be asked again.
    pub fn forgive(&mut self) {
        self.kept.values_mut().for_each(|kept| kept.refused_by.clear());
    }

    /// Settles a backward, and lets the kept input go.
    pub fn backwarded(&mut self, microbatch: MicrobatchId) -> Returned {
        let Some(Busy::Backward(index)) = self.busy.take() else {
            panic!("the driver answered a backward of {microbatch} that was not under way");
        };
        assert_eq!(MicrobatchId::train(index), microbatch, "the driver answers the backward under way");
        let kept = self.kept.remove(&index).expect("a backward under way has its microbatch kept");
        match kept.duty {
            Duty::Ghost => {}
            Duty::Train => {
                self.trained.insert(index, InnerStep(self.version));
                self.in_sum += 1;
                if self.is_home(index) {
                    self.accounted.insert(self.place_of(index));
                }
            }
        }
        // A ghost of what falls to this replica, and is trained elsewhere, need not be waited for either.
        if self.is_home(index) && !kept.needs.includes(self.stage) {
            self.accounted.insert(self.place_of(index));
        }
        Returned {
            askers: kept.askers,
            attempt: kept.attempt,
            needs: kept.needs,
            trained: self.trained.get(&index).copied(),
            answer: kept.answer,
            asked: kept.asked,
            staleness: self.version.saturating_sub(kept.version.0),
        }
    }

    /// Settles a checkpoint.
    pub fn saved(&mut self) {
        assert!(matches!(self.busy.take(), Some(Busy::Save)), "the driver answers the checkpoint under way");
    }

    /// Returns what the replicas exchange.
    fn exchanges(&self) -> Exchanges {
        self.agenda.exchanges()
    }
}

/// Microbatches that the coordinator leases ahead of what is settled, to each replica: all that may be in flight, and the
/// whole next step behind it, so that the first stage never waits for a lease at a border.
pub fn lease_ahead(spec: &RunSpec) -> usize {
    spec.pipeline.in_flight_max as usize + spec.pipeline.microbatches_per_step as usize
}

/// Checkpoints of a place that its holder keeps: the one that the coordinator's state names, the one that is being written, and
/// twice those of the steps that it may be ahead, since others may be behind by as many.
pub fn checkpoints_kept(spec: &RunSpec) -> usize {
    let steps = spec.checkpoint.every.max(1) as usize;
    let apart = steps.saturating_mul(spec.pipeline.microbatches_per_step.max(1) as usize);
    2 + 2 * lease_ahead(spec).div_ceil(apart)
}
