//! When a replica starts a forward.
//!
//! Owns that gate, and the bounds of what is in flight. Knows nothing of backwards, steps or who asks.

use crate::agenda::Order;
use crate::ids::{Attempt, InnerStep, MicrobatchId, PeerId, Split};
use crate::pipeline::kept::Kept;
use crate::pipeline::{Busy, Pipeline, Task};

impl Pipeline {
    pub(super) fn start_forward(&mut self, below: InnerStep) -> Option<Task> {
        let (lowest, highest) = (self.kept.keys().next().copied(), self.kept.keys().next_back().copied());
        let full = self.kept.len() >= self.in_flight_max;
        // What goes before the bound has one of its own: all that waits at once.
        let crowded = self.kept.len() >= self.in_flight_max + self.waiting_max;
        let may = |(order, kept): (&Order, &Kept)| {
            let microbatch = order.microbatch();
            let before = |kept: Option<u64>| kept.is_some_and(|kept| microbatch.index < kept);
            // What is older than all in flight, or was lost once, is what others wait for.
            let urgent = kept.attempt > Attempt(0) || before(lowest);
            // At that bound too, what comes later must not keep out what it waits for.
            let room = microbatch.split == Split::HeldOut || !full || urgent && (!crowded || before(highest));
            let due = self.agenda.version_needed(microbatch).is_some_and(|needed| self.version >= needed);
            let last = microbatch.split == Split::HeldOut && order.step() == self.agenda.steps();
            order.step() < below && room && due && (!last || self.agreement.is_closed())
        };
        let order = self.waiting.iter().find(|entry| may(*entry)).map(|(order, _)| *order)?;
        let microbatch = order.microbatch();
        let kept = self.waiting.remove(&order)?;
        let input = kept.input.clone();
        if crowded && microbatch.split == Split::Train {
            self.give_way();
        }
        self.busy = Some(Busy::Forward(microbatch, kept));
        Some(Task::Forward { microbatch, input })
    }

    /// Has the latest in flight wait for its forward again, in the place of what starts instead of it.
    fn give_way(&mut self) {
        let Some((index, mut kept)) = self.kept.pop_last() else { return };
        // Whoever gave a gradient has it trained, and gives it again as a ghost.
        self.gradients.remove(&index);
        kept.give_way();
        self.abandoned.push(index);
        let order =
            self.agenda.order(MicrobatchId::train(index)).expect("what is in flight is on the agenda");
        self.waiting.insert(order, kept);
    }

    /// Returns whether a peer was asked for a microbatch that has given way, and is forwarded again before it is asked for again.
    pub(super) fn has_given_way(&self, index: u64, asked: PeerId) -> bool {
        let microbatch = MicrobatchId::train(index);
        let waits = self.agenda.order(microbatch).and_then(|order| self.waiting.get(&order));
        let under_way = match &self.busy {
            Some(Busy::Forward(busy, kept)) if *busy == microbatch => Some(kept),
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
        waits.or(under_way).is_some_and(|kept| kept.was_sent_to(asked))
    }
}
