//! The book: what the coordinator hears of each inner step and evaluation, until it is complete.
//!
//! Owns sums of losses and times. Knows nothing of leases or of who may report.

use crate::agenda::Agenda;
use crate::event::{Event, StepSummary};
use crate::ids::{InnerStep, MicrobatchId, Split};
use crate::message::StepReport;
use crate::plan::Place;
use crate::time::{Span, Time};
use alloc::collections::BTreeMap;

/// The open pages: a few steps, since no step is leased before the one it follows is nearly settled.
#[derive(Debug)]
pub struct Book {
    agenda: Agenda,
    members: usize,
    step_tokens: u64,
    /// The lowest step that is not complete; what is said of an earlier one comes too late to matter.
    open_from: InnerStep,
    steps: BTreeMap<InnerStep, Page>,
    evaluations: BTreeMap<InnerStep, BTreeMap<u64, f32>>,
    last_summary: Time,
    outside: Span,
}

#[derive(Debug, Default)]
struct Page {
    losses: BTreeMap<u64, f32>,
    reports: BTreeMap<Place, StepReport>,
}

impl Book {
    /// Opens the book when work begins, at a step.
    pub fn new(agenda: Agenda, members: usize, step_tokens: u64, start: InnerStep, now: Time) -> Self {
        Self {
            agenda,
            members,
            step_tokens,
            open_from: start,
            steps: BTreeMap::new(),
            evaluations: BTreeMap::new(),
            last_summary: now,
            outside: Span(0),
        }
    }

    /// Writes down a loss; gives an event when a step or an evaluation is complete by it. `border_since` is when the last
    /// training microbatch was settled, from which an evaluation has held the run up.
    pub fn loss(
        &mut self,
        now: Time,
        microbatch: MicrobatchId,
        loss: f32,
        border_since: Time,
    ) -> Option<Event> {
        let step = self.agenda.step_of(microbatch)?;
        match microbatch.split {
            Split::Train if step < self.open_from => None,
            Split::Train => {
                self.steps.entry(step).or_default().losses.entry(microbatch.index).or_insert(loss);
                self.summary(now, step)
            }
            Split::HeldOut => {
                let want = self.agenda.evaluation_at(step);
                let losses = self.evaluations.entry(step).or_default();
                losses.insert(microbatch.index, loss);
                if (losses.len() as u64) < want.end - want.start {
                    return None;
                }
                let losses = self.evaluations.remove(&step)?;
                let took = now.since(border_since);
                self.outside = self.outside.saturating_add(took);
                Some(Event::Evaluated { step, loss: mean(&losses), microbatches: losses.len() as u64, took })
            }
        }
    }

    /// Writes down a worker's report; gives an event when its step is complete by it.
    pub fn report(&mut self, now: Time, place: Place, report: StepReport) -> Option<Event> {
        if report.step < self.open_from {
            return None;
        }
        self.steps.entry(report.step).or_default().reports.insert(place, report);
        self.summary(now, report.step)
    }

    /// Adds time in which no training could go on.
    pub fn add_outside(&mut self, took: Span) {
        self.outside = self.outside.saturating_add(took);
    }

    fn summary(&mut self, now: Time, step: InnerStep) -> Option<Event> {
        let page = self.steps.get(&step)?;
        let complete = page.losses.len() as u64 == self.agenda.microbatches_of_all()
            && page.reports.len() == self.members;
        if !complete {
            return None;
        }
        let page = self.steps.remove(&step)?;
        self.open_from = self.open_from.max(InnerStep(step.0 + 1));
        let wall = now.since(self.last_summary);
        self.last_summary = now;
        let outside = core::mem::take(&mut self.outside);
        Some(Event::Step(StepSummary {
            step,
            loss: mean(&page.losses),
            tokens: self.step_tokens,
            wall,
            outside: Span(outside.0.min(wall.0)),
            reports: page.reports.into_iter().collect(),
        }))
    }
}

/// Sums in the order of the microbatches, so that the mean does not depend on who reported first.
fn mean(losses: &BTreeMap<u64, f32>) -> f64 {
    losses.values().map(|loss| f64::from(*loss)).sum::<f64>() / losses.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ReplicaId, StageId};
    use crate::spec::tests::spec;

    #[test]
    fn a_step_is_complete_with_all_losses_and_all_reports() {
        let mut book = Book::new(Agenda::new(&spec()), 2, 32, InnerStep(0), Time(0));
        let place = |stage| Place { stage: StageId(stage), replica: ReplicaId(0) };
        let report = StepReport::default();
        for index in [3, 0, 1] {
            assert_eq!(book.loss(Time(1), MicrobatchId::train(index), index as f32, Time(0)), None);
        }
        assert_eq!(book.report(Time(2), place(0), report), None);
        assert_eq!(book.loss(Time(3), MicrobatchId::train(2), 2.0, Time(0)), None);
        book.add_outside(Span(4));
        let Some(Event::Step(summary)) = book.report(Time(9), place(1), report) else { panic!("complete") };
        assert_eq!((summary.loss, summary.wall, summary.outside), (1.5, Span(9), Span(4)));
        assert_eq!(book.report(Time(10), place(1), report), None, "said again");
        assert_eq!(book.loss(Time(10), MicrobatchId::train(0), 1.0, Time(0)), None, "said again");
        assert!(book.steps.is_empty(), "nobody can fill the book with what is long complete");
    }

    #[test]
    fn an_evaluation_is_the_mean_of_its_own_microbatches() {
        let mut book = Book::new(Agenda::new(&spec()), 1, 32, InnerStep(0), Time(0));
        assert_eq!(book.loss(Time(5), MicrobatchId::held_out(1), 3.0, Time(4)), None);
        let event = book.loss(Time(6), MicrobatchId::held_out(0), 1.0, Time(4));
        let want = Event::Evaluated { step: InnerStep(2), loss: 2.0, microbatches: 2, took: Span(2) };
        assert_eq!(event, Some(want));
    }
}
