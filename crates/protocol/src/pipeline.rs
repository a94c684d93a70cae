//! A stage's queue: which computation is next, and what is kept until its backward returns.
//!
//! Owns the order of work (backward before forward), the gates of the schedules, and every bound on the queue. Knows
//! nothing of peers' addresses, of messages, or of how a computation is done.

use crate::agenda::{Agenda, Exchanges, Order};
use crate::ids::{Attempt, InnerStep, MicrobatchId, OuterStep, PeerId, ReplicaId, Split, WeightVersion};
use crate::index_set::IndexSet;
use crate::message::Refusal;
use crate::spec::{RunSpec, Schedule};
use alloc::collections::BTreeMap;
use bytes::Bytes;

/// Where a microbatch came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A lease: this is the first stage, which reads tokens.
    Lease,
    /// The peer of the stage before.
    Peer(PeerId),
}

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
    },
    /// An optimizer step.
    Step {
        /// Which.
        step: InnerStep,
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
    },
    /// Going over to what the replicas agreed on.
    Adopt {
        /// In which outer step.
        outer: OuterStep,
    },
}

/// Where the stage stands with the other replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agreement {
    /// In no exchange.
    None,
    /// The exchange goes on; computing goes on until the cut-over.
    Open { outer: OuterStep, cutover: u64 },
    /// It is committed; at the cut-over the stage goes over to it.
    Committed { outer: OuterStep, cutover: u64 },
}

/// What became of an offered tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is in the queue.
    Queued,
    /// It was here already.
    Duplicate,
}

/// A microbatch between its arrival and the end of its work here.
#[derive(Clone, Debug)]
struct Kept {
    origin: Origin,
    attempt: Attempt,
    input: Option<Bytes>,
    version: WeightVersion,
    /// The replica of the next stage that has it; `None` until the forward is done, and at the last stage.
    sent_to: Option<PeerId>,
}

/// What a finished backward leaves to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Where the microbatch came from, and its gradient goes.
    pub origin: Origin,
    /// The try.
    pub attempt: Attempt,
    /// The replica of the next stage whose gradient it was.
    pub from_next: Option<PeerId>,
    /// Versions between its forward and its backward.
    pub staleness: u64,
}

/// The queue of one stage.
#[derive(Debug)]
pub struct Pipeline {
    agenda: Agenda,
    replica: ReplicaId,
    ordered: bool,
    in_flight_max: usize,
    waiting_max: usize,
    version: u64,
    waiting: BTreeMap<Order, Kept>,
    kept: BTreeMap<u64, Kept>,
    gradients: BTreeMap<u64, Option<Bytes>>,
    backwarded: IndexSet,
    evaluated: IndexSet,
    backwarded_in_step: u64,
    busy: Option<Busy>,
    snapshot_due: Option<OuterStep>,
    agreement: Agreement,
    /// Whether the gradient of the current step is already the mean of all replicas.
    gradients_agreed: bool,
    save_due: Option<InnerStep>,
    drain: Option<InnerStep>,
}

#[derive(Clone, Debug)]
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
    pub fn new(spec: &RunSpec, start: InnerStep, replica: ReplicaId) -> Self {
        let agenda = Agenda::new(spec);
        let in_flight_max = spec.pipeline.in_flight_max as usize;
        Self {
            ordered: spec.pipeline.schedule == Schedule::Flush,
            in_flight_max,
            waiting_max: in_flight_max + lease_ahead(spec),
            version: start.0,
            waiting: BTreeMap::new(),
            kept: BTreeMap::new(),
            gradients: BTreeMap::new(),
            backwarded: IndexSet::starting_at(agenda.share_below(agenda.training_of(start).start, replica)),
            evaluated: IndexSet::starting_at(agenda.share_below(agenda.evaluated_before(start), replica)),
            backwarded_in_step: 0,
            busy: None,
            snapshot_due: None,
            agreement: Agreement::None,
            gradients_agreed: false,
            save_due: None,
            drain: None,
            agenda,
            replica,
        }
    }

    /// Returns how many steps the weights have seen.
    pub fn version(&self) -> WeightVersion {
        WeightVersion(self.version)
    }

    /// Returns the bytes of boundary inputs held for backwards to come.
    pub fn kept_bytes(&self) -> usize {
        self.kept.values().filter_map(|k| k.input.as_ref()).map(Bytes::len).sum()
    }

    /// Takes a microbatch to be forwarded.
    pub fn offer(
        &mut self,
        microbatch: MicrobatchId,
        attempt: Attempt,
        origin: Origin,
        input: Option<Bytes>,
    ) -> Result<Offered, Refusal> {
        let order = self.agenda.order(microbatch).ok_or(Refusal::NotDue { microbatch })?;
        if self.agenda.home(microbatch) != self.replica {
            return Err(Refusal::NotDue { microbatch });
        }
        if self.known(microbatch, order, attempt) {
            return Ok(Offered::Duplicate);
        }
        if self.waiting.len() >= self.waiting_max {
            return Err(Refusal::Busy { microbatch });
        }
        let version = WeightVersion(self.version);
        self.waiting.insert(order, Kept { origin, attempt, input, version, sent_to: None });
        Ok(Offered::Queued)
    }

    /// Finds a microbatch that is here or done; a later try renews the mark of the one that is under way.
    fn known(&mut self, microbatch: MicrobatchId, order: Order, attempt: Attempt) -> bool {
        let (done, kept) = match microbatch.split {
            Split::Train => (
                self.backwarded.contains(self.place_of(microbatch.index)),
                self.kept.get_mut(&microbatch.index),
            ),
            Split::HeldOut => (self.evaluated.contains(self.place_of(microbatch.index)), None),
        };
        if done {
            return true;
        }
        let busy = match &mut self.busy {
            Some(Busy::Forward(under_way, kept)) if *under_way == microbatch => Some(kept),
            Some(
                Busy::Forward(..)
                | Busy::Backward(_)
                | Busy::Step
                | Busy::Save
                | Busy::Snapshot(_)
                | Busy::Adopt,
            )
            | None => None,
        };
        let Some(known) = kept.or(busy).or(self.waiting.get_mut(&order)) else { return false };
        known.attempt = known.attempt.max(attempt);
        true
    }

    /// Takes the gradient of a microbatch that was sent to `from`.
    pub fn offer_gradient(
        &mut self,
        microbatch: MicrobatchId,
        from: PeerId,
        gradient: Bytes,
    ) -> Result<Offered, Refusal> {
        let index = match microbatch.split {
            Split::Train => microbatch.index,
            Split::HeldOut => return Err(Refusal::NotOwed { microbatch }),
        };
        let under_way = matches!(self.busy, Some(Busy::Backward(busy)) if busy == index);
        if under_way || self.backwarded.contains(self.place_of(index)) || self.gradients.contains_key(&index)
        {
            return Ok(Offered::Duplicate);
        }
        match self.kept.get(&index) {
            Some(kept) if kept.sent_to == Some(from) => {
                self.gradients.insert(index, Some(gradient));
                Ok(Offered::Queued)
            }
            Some(_) | None => Err(Refusal::NotOwed { microbatch }),
        }
    }

    /// Asks for the state to be saved at a border that no lease crosses.
    pub fn drain(&mut self, border: InnerStep) {
        self.drain = Some(border);
        if self.version == border.0 && !self.agenda.saves_at(border) {
            self.save_due = Some(border);
        }
    }

    /// Returns where an index stands among those of this replica.
    fn place_of(&self, index: u64) -> u64 {
        self.agenda.share_below(index, self.replica)
    }

    /// Starts the next computation, if one may start: what the replicas exchange, then a checkpoint, an optimizer step, a
    /// backward, a forward.
    pub fn start(&mut self) -> Option<Task> {
        if self.busy.is_some() || self.awaits_agreement() {
            return None;
        }
        if let Some(outer) = self.adoption_due() {
            self.busy = Some(Busy::Adopt);
            return Some(Task::Adopt { outer });
        }
        if let Some(outer) = self.snapshot_due.take() {
            self.busy = Some(Busy::Snapshot(outer));
            return Some(Task::Snapshot { outer });
        }
        if let Some(border) = self.save_due.take() {
            self.busy = Some(Busy::Save);
            return Some(Task::Save { border });
        }
        if self.step_due() {
            if self.agenda.exchanges() == Exchanges::Gradients && !self.gradients_agreed {
                let outer = OuterStep(self.version);
                self.busy = Some(Busy::Snapshot(outer));
                return Some(Task::Snapshot { outer });
            }
            self.busy = Some(Busy::Step);
            return Some(Task::Step { step: InnerStep(self.version) });
        }
        self.start_backward().or_else(|| self.start_forward())
    }

    /// Returns whether computing stands still until the replicas have agreed.
    pub fn awaits_agreement(&self) -> bool {
        match self.agreement {
            Agreement::Open { cutover, .. } => self.version >= cutover,
            Agreement::None | Agreement::Committed { .. } => false,
        }
    }

    fn adoption_due(&self) -> Option<OuterStep> {
        match self.agreement {
            Agreement::Committed { outer, cutover } if self.version >= cutover => Some(outer),
            Agreement::None | Agreement::Open { .. } | Agreement::Committed { .. } => None,
        }
    }

    fn step_due(&self) -> bool {
        let evaluation = self.agenda.evaluation_at(InnerStep(self.version));
        let evaluated = || self.evaluated.watermark() >= self.place_of(evaluation.end);
        self.backwarded_in_step == self.agenda.microbatches_per_step()
            && (evaluation.is_empty() || evaluated())
    }

    /// Under `flush`, gradients are summed in the order of the microbatches, so that the sum does not depend on who was
    /// fast; floating-point addition is not associative.
    fn start_backward(&mut self) -> Option<Task> {
        let index = *self.gradients.first_key_value()?.0;
        let full = self.backwarded_in_step == self.agenda.microbatches_per_step();
        if full || (self.ordered && self.place_of(index) != self.backwarded.watermark()) {
            return None;
        }
        let gradient = self.gradients.remove(&index)?;
        let input = self.kept.get(&index)?.input.clone();
        self.busy = Some(Busy::Backward(index));
        Some(Task::Backward { microbatch: MicrobatchId::train(index), input, gradient })
    }

    fn start_forward(&mut self) -> Option<Task> {
        let (&order, kept) = self.waiting.first_key_value()?;
        let microbatch = order.microbatch();
        let full = microbatch.split == Split::Train && self.kept.len() >= self.in_flight_max;
        if full || self.agenda.version_needed(microbatch).is_none_or(|needed| self.version < needed) {
            return None;
        }
        let input = kept.input.clone();
        let kept = self.waiting.remove(&order)?;
        self.busy = Some(Busy::Forward(microbatch, kept));
        Some(Task::Forward { microbatch, input })
    }

    /// Settles a forward. `sent_to` is the next stage's replica that gets the output; `None` at the last stage, whose
    /// backward may start at once.
    pub fn forwarded(&mut self, microbatch: MicrobatchId, sent_to: Option<PeerId>) -> Attempt {
        let Some(Busy::Forward(under_way, mut kept)) = self.busy.take() else {
            panic!("the driver answered a forward of {microbatch} that was not under way");
        };
        assert_eq!(under_way, microbatch, "the driver answers the forward under way");
        let attempt = kept.attempt;
        match microbatch.split {
            Split::HeldOut => {
                self.evaluated.insert(self.place_of(microbatch.index));
            }
            Split::Train => {
                kept.version = WeightVersion(self.version);
                kept.sent_to = sent_to;
                self.kept.insert(microbatch.index, kept);
                if sent_to.is_none() {
                    self.gradients.insert(microbatch.index, None);
                }
            }
        }
        attempt
    }

    /// Settles a backward, and lets the kept input go.
    pub fn backwarded(&mut self, microbatch: MicrobatchId) -> Returned {
        let Some(Busy::Backward(index)) = self.busy.take() else {
            panic!("the driver answered a backward of {microbatch} that was not under way");
        };
        assert_eq!(MicrobatchId::train(index), microbatch, "the driver answers the backward under way");
        let kept = self.kept.remove(&index).expect("a backward under way has its microbatch kept");
        self.backwarded.insert(self.place_of(index));
        self.backwarded_in_step += 1;
        Returned {
            origin: kept.origin,
            attempt: kept.attempt,
            from_next: kept.sent_to,
            staleness: self.version - kept.version.0,
        }
    }

    /// Settles an optimizer step.
    pub fn stepped(&mut self) -> InnerStep {
        assert!(matches!(self.busy.take(), Some(Busy::Step)), "the driver answers the step under way");
        let step = InnerStep(self.version);
        self.version += 1;
        self.backwarded_in_step = 0;
        self.gradients_agreed = false;
        let border = InnerStep(self.version);
        if self.agenda.exchanges() == Exchanges::PseudoGradients {
            self.snapshot_due = self.agenda.outer_at(border);
        }
        if self.agenda.saves_at(border) || self.drain == Some(border) {
            self.save_due = Some(border);
        }
        step
    }

    /// Settles a snapshot: from here on the exchange is open, and computing goes on until the cut-over.
    pub fn snapshotted(&mut self) -> (OuterStep, InnerStep) {
        let Some(Busy::Snapshot(outer)) = self.busy.take() else {
            panic!("the driver answered a snapshot that was not under way");
        };
        let border = InnerStep(self.version);
        let cutover = match self.agenda.exchanges() {
            Exchanges::PseudoGradients if self.drain != Some(border) => self.agenda.cutover_of(border),
            Exchanges::PseudoGradients | Exchanges::Gradients | Exchanges::Nothing => border,
        };
        self.agreement = Agreement::Open { outer, cutover: cutover.0 };
        (outer, border)
    }

    /// Hears that the open exchange is committed.
    pub fn committed(&mut self) {
        if let Agreement::Open { outer, cutover } = self.agreement {
            self.agreement = Agreement::Committed { outer, cutover };
        }
    }

    /// Hears that the open exchange is called off: training goes on as it is.
    pub fn restored(&mut self) {
        self.agreement = Agreement::None;
    }

    /// Settles going over to what was agreed.
    pub fn adopted(&mut self) {
        assert!(matches!(self.busy.take(), Some(Busy::Adopt)), "the driver answers the adoption under way");
        self.agreement = Agreement::None;
        self.gradients_agreed = true;
    }

    /// Settles a checkpoint.
    pub fn saved(&mut self) {
        assert!(matches!(self.busy.take(), Some(Busy::Save)), "the driver answers the checkpoint under way");
    }
}

/// Microbatches that the coordinator leases ahead of what is settled, to each replica: all that may be in flight, and the
/// whole next step behind it, so that the first stage never waits for a lease at a border.
pub fn lease_ahead(spec: &RunSpec) -> usize {
    spec.pipeline.in_flight_max as usize + spec.pipeline.microbatches_per_step as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec;
    use alloc::vec::Vec;

    const NEXT: PeerId = PeerId([2; 32]);

    fn bytes() -> Option<Bytes> {
        Some(Bytes::from_static(b"input"))
    }

    fn train(index: u64) -> MicrobatchId {
        MicrobatchId::train(index)
    }

    fn offer(pipeline: &mut Pipeline, microbatch: MicrobatchId) -> Result<Offered, Refusal> {
        pipeline.offer(microbatch, Attempt(0), Origin::Peer(PeerId([1; 32])), bytes())
    }

    /// Runs every forward that may start, and returns their indices.
    fn forwards(pipeline: &mut Pipeline) -> Vec<u64> {
        let mut done = Vec::new();
        while let Some(task) = pipeline.start() {
            let Task::Forward { microbatch, .. } = task else { panic!("{task:?} is not a forward") };
            pipeline.forwarded(microbatch, Some(NEXT));
            done.push(microbatch.index);
        }
        done
    }

    fn gradient(pipeline: &mut Pipeline, index: u64) {
        assert_eq!(pipeline.offer_gradient(train(index), NEXT, Bytes::new()), Ok(Offered::Queued));
    }

    fn backward(pipeline: &mut Pipeline) -> Option<u64> {
        match pipeline.start()? {
            Task::Backward { microbatch, input, .. } => {
                assert_eq!(input, bytes(), "the boundary input is kept until the backward");
                pipeline.backwarded(microbatch);
                Some(microbatch.index)
            }
            task @ (Task::Forward { .. }
            | Task::Step { .. }
            | Task::Save { .. }
            | Task::Snapshot { .. }
            | Task::Adopt { .. }) => panic!("{task:?} is not a backward"),
        }
    }

    #[test]
    fn backward_goes_before_forward_and_in_order_under_flush() {
        let mut pipeline = Pipeline::new(&spec(), InnerStep(0), ReplicaId(0));
        (0..3).for_each(|i| assert_eq!(offer(&mut pipeline, train(i)), Ok(Offered::Queued)));
        assert_eq!(forwards(&mut pipeline), [0, 1, 2]);
        offer(&mut pipeline, train(3)).unwrap();
        gradient(&mut pipeline, 1);
        assert_eq!(pipeline.start(), None, "1 waits for 0, and 3 for room");
        gradient(&mut pipeline, 0);
        assert_eq!([backward(&mut pipeline), backward(&mut pipeline)], [Some(0), Some(1)]);
        assert_eq!(forwards(&mut pipeline), [3]);
    }

    #[test]
    fn async_takes_gradients_as_they_come_and_does_not_wait_for_the_step() {
        let mut spec = spec();
        spec.pipeline.schedule = Schedule::Async { staleness_max: 1 };
        let mut pipeline = Pipeline::new(&spec, InnerStep(0), ReplicaId(0));
        (0..5).for_each(|i| drop(offer(&mut pipeline, train(i))));
        assert_eq!(forwards(&mut pipeline), [0, 1, 2]);
        gradient(&mut pipeline, 2);
        assert_eq!(backward(&mut pipeline), Some(2));
        gradient(&mut pipeline, 0);
        gradient(&mut pipeline, 1);
        assert_eq!([backward(&mut pipeline), backward(&mut pipeline)], [Some(0), Some(1)]);
        assert_eq!(forwards(&mut pipeline), [3, 4], "4 belongs to the next step");
    }

    #[test]
    fn a_step_waits_for_its_gradients_and_for_the_evaluation_at_its_border() {
        let mut spec = spec();
        spec.evaluation.every = 1;
        let mut pipeline = Pipeline::new(&spec, InnerStep(1), ReplicaId(0));
        for index in 4..8 {
            offer(&mut pipeline, train(index)).unwrap();
            assert_eq!(forwards(&mut pipeline), [index]);
            gradient(&mut pipeline, index);
            assert_eq!(backward(&mut pipeline), Some(index));
        }
        assert_eq!(pipeline.start(), None, "the evaluation at border 1 is not done");
        for index in 0..2 {
            offer(&mut pipeline, MicrobatchId::held_out(index)).unwrap();
        }
        for _ in 0..2 {
            let Some(Task::Forward { microbatch, .. }) = pipeline.start() else {
                panic!("evaluation is due")
            };
            pipeline.forwarded(microbatch, Some(NEXT));
        }
        assert_eq!(pipeline.start(), Some(Task::Step { step: InnerStep(1) }));
        assert_eq!(pipeline.stepped(), InnerStep(1));
        assert_eq!(pipeline.start(), Some(Task::Save { border: InnerStep(2) }));
    }

    #[test]
    fn what_is_known_is_a_duplicate_and_what_is_not_owed_is_refused() {
        let mut pipeline = Pipeline::new(&spec(), InnerStep(0), ReplicaId(0));
        offer(&mut pipeline, train(0)).unwrap();
        assert_eq!(offer(&mut pipeline, train(0)), Ok(Offered::Duplicate));
        let nothing = pipeline.offer_gradient(train(0), NEXT, Bytes::new());
        assert_eq!(nothing, Err(Refusal::NotOwed { microbatch: train(0) }));
        forwards(&mut pipeline);
        let stranger = pipeline.offer_gradient(train(0), PeerId([7; 32]), Bytes::new());
        assert_eq!(stranger, Err(Refusal::NotOwed { microbatch: train(0) }));
        gradient(&mut pipeline, 0);
        assert_eq!(pipeline.offer_gradient(train(0), NEXT, Bytes::new()), Ok(Offered::Duplicate));
        backward(&mut pipeline);
        assert_eq!(offer(&mut pipeline, train(0)), Ok(Offered::Duplicate), "done is done");
        assert_eq!(pipeline.kept_bytes(), 0);
        let beyond = train(1_000);
        assert_eq!(offer(&mut pipeline, beyond), Err(Refusal::NotDue { microbatch: beyond }));
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut spec = spec();
        spec.training.steps = 1_000;
        let mut pipeline = Pipeline::new(&spec, InnerStep(0), ReplicaId(0));
        let taken = (0..100).filter(|i| offer(&mut pipeline, train(*i)).is_ok()).count();
        assert_eq!(taken, 3 + (3 + 4));
        assert_eq!(forwards(&mut pipeline).len(), 3, "no more in flight than the run file allows");
        assert_eq!(pipeline.kept_bytes(), 3 * 5);
    }
}
