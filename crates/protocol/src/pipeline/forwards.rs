//! When a replica starts a forward.
//!
//! Owns that gate, and the bounds of what is in flight. Knows nothing of backwards, steps or who asks.

use crate::agenda::Order;
use crate::ids::{Attempt, InnerStep, Split};
use crate::pipeline::kept::Kept;
use crate::pipeline::{Busy, Pipeline, Task};

impl Pipeline {
    pub(super) fn start_forward(&mut self, below: InnerStep) -> Option<Task> {
        let lowest = self.kept.keys().next().copied();
        let full = self.kept.len() >= self.in_flight_max;
        // What goes before the bound has one of its own: all that waits at once.
        let crowded = self.kept.len() >= self.in_flight_max + self.waiting_max;
        let may = |(order, kept): (&Order, &Kept)| {
            let microbatch = order.microbatch();
            // What is older than all in flight, or was lost once, is what others wait for.
            let urgent = kept.attempt > Attempt(0) || lowest.is_some_and(|lowest| microbatch.index < lowest);
            let room = microbatch.split == Split::HeldOut || !full || urgent && !crowded;
            let due = self.agenda.version_needed(microbatch).is_some_and(|needed| self.version >= needed);
            let last = microbatch.split == Split::HeldOut && order.step() == self.agenda.steps();
            order.step() < below && room && due && (!last || self.agreement.is_closed())
        };
        let order = self.waiting.iter().find(|entry| may(*entry)).map(|(order, _)| *order)?;
        let microbatch = order.microbatch();
        let kept = self.waiting.remove(&order)?;
        let input = kept.input.clone();
        self.busy = Some(Busy::Forward(microbatch, kept));
        Some(Task::Forward { microbatch, input })
    }
}
