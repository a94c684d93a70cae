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
use alloc::vec::Vec;

/// A step that is so far behind is not waited for: what it lacks was lost with a peer or a coordinator.
const STEPS_LATE_MAX: u64 = 4;

/// The open pages: a few steps, since no step is leased before the one it follows is nearly settled.
#[derive(Debug)]
pub struct Book {
    agenda: Agenda,
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
    pub fn new(agenda: Agenda, step_tokens: u64, start: InnerStep, now: Time) -> Self {
        Self {
            agenda,
            step_tokens,
            open_from: start,
            steps: BTreeMap::new(),
            evaluations: BTreeMap::new(),
            last_summary: now,
            outside: Span(0),
        }
    }

    /// Writes down a loss; gives an event when an evaluation is complete by it. `border_since` is when the last training
    /// microbatch was settled, from which an evaluation has held the run up.
    pub fn loss(
        &mut self,
        now: Time,
        microbatch: MicrobatchId,
        loss: f32,
        border_since: Time,
    ) -> Option<Event> {
        let step = self.agenda.step_of(microbatch)?;
        match microbatch.split {
            Split::Train => {
                if step >= self.open_from {
                    self.steps.entry(step).or_default().losses.entry(microbatch.index).or_insert(loss);
                }
                None
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

    /// Writes down a worker's report.
    pub fn report(&mut self, place: Place, report: StepReport) {
        if report.step >= self.open_from {
            self.steps.entry(report.step).or_default().reports.insert(place, report);
        }
    }

    /// Adds time in which no training could go on.
    pub fn add_outside(&mut self, took: Span) {
        self.outside = self.outside.saturating_add(took);
    }

    /// Closes the steps that are complete, in order: all losses are in, and the reports of all places that `owes` names. A
    /// step that is `STEPS_LATE_MAX` behind `settled`, the first that is not settled, is closed with what is there: what it
    /// lacks was lost with a peer.
    pub fn close(
        &mut self,
        now: Time,
        settled: InnerStep,
        owes: impl Fn(InnerStep, Place) -> Owes,
        places: &[Place],
    ) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some((&step, page)) = self.steps.first_key_value() {
            let reported =
                |place: &&Place| owes(step, **place) == Owes::Nothing || page.reports.contains_key(*place);
            let whole = page.losses.len() as u64 == self.agenda.microbatches_of_all()
                && places.iter().all(|place| reported(&place));
            let late = step.0 + STEPS_LATE_MAX < settled.0;
            if !whole && !late {
                break;
            }
            let Some(page) = self.steps.remove(&step) else { break };
            self.open_from = self.open_from.max(InnerStep(step.0 + 1));
            if !page.losses.is_empty() {
                events.push(self.summary(now, step, page));
            }
        }
        events
    }

    fn summary(&mut self, now: Time, step: InnerStep, page: Page) -> Event {
        let wall = now.since(self.last_summary);
        self.last_summary = now;
        let outside = core::mem::take(&mut self.outside);
        Event::Step(StepSummary {
            step,
            loss: mean(&page.losses),
            tokens: self.step_tokens,
            wall,
            outside: Span(outside.0.min(wall.0)),
            reports: page.reports.into_iter().collect(),
        })
    }
}

/// Whether a place's report of a step is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owes {
    /// It is.
    Report,
    /// It is not: the place is vacant, or was taken later.
    Nothing,
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
        let mut book = Book::new(Agenda::new(&spec()), 32, InnerStep(0), Time(0));
        let place = |stage| Place { stage: StageId(stage), replica: ReplicaId(0) };
        let places = [place(0), place(1), place(2)];
        let owes = |_, at: Place| if at == place(2) { Owes::Nothing } else { Owes::Report };
        let report = StepReport::default();
        for index in [3, 0, 1] {
            assert_eq!(book.loss(Time(1), MicrobatchId::train(index), index as f32, Time(0)), None);
        }
        book.report(place(0), report);
        book.report(place(1), report);
        book.add_outside(Span(4));
        assert_eq!(book.close(Time(2), InnerStep(1), owes, &places), []);
        assert_eq!(book.loss(Time(3), MicrobatchId::train(2), 2.0, Time(0)), None);
        let events = book.close(Time(9), InnerStep(1), owes, &places);
        let [Event::Step(summary)] = &events[..] else { panic!("complete") };
        assert_eq!((summary.loss, summary.wall, summary.outside), (1.5, Span(9), Span(4)));
        book.report(place(1), report);
        assert_eq!(book.loss(Time(10), MicrobatchId::train(0), 1.0, Time(0)), None, "said again");
        assert!(book.steps.is_empty(), "nobody can fill the book with what is long complete");
    }

    #[test]
    fn a_step_that_lacks_something_for_good_is_closed_with_what_is_there() {
        let mut book = Book::new(Agenda::new(&spec()), 32, InnerStep(0), Time(0));
        let places = [Place { stage: StageId(0), replica: ReplicaId(0) }];
        book.loss(Time(1), MicrobatchId::train(0), 3.0, Time(0));
        assert_eq!(book.close(Time(2), InnerStep(STEPS_LATE_MAX), |_, _| Owes::Report, &places), []);
        let events = book.close(Time(2), InnerStep(STEPS_LATE_MAX + 1), |_, _| Owes::Report, &places);
        assert!(matches!(&events[..], [Event::Step(summary)] if summary.loss == 3.0));
    }

    #[test]
    fn an_evaluation_is_the_mean_of_its_own_microbatches() {
        let mut book = Book::new(Agenda::new(&spec()), 32, InnerStep(0), Time(0));
        assert_eq!(book.loss(Time(5), MicrobatchId::held_out(1), 3.0, Time(4)), None);
        let event = book.loss(Time(6), MicrobatchId::held_out(0), 1.0, Time(4));
        let want = Event::Evaluated { step: InnerStep(2), loss: 2.0, microbatches: 2, took: Span(2) };
        assert_eq!(event, Some(want));
    }
}
