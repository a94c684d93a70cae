//! The course of a run: what came of it over time, in slices that grow with its length.
//!
//! Owns the slices; their number is bounded, whatever the length of the run. Knows nothing of who trains.

use trestle_protocol::event::{Event, StepSummary};
use trestle_protocol::time::{Span, Time};

/// Slices at most; where more are needed, two become one.
const SLICES_MAX: usize = 480;

/// The width of a slice at first.
const WIDTH_MIN: Span = Span::seconds(1);

/// What came of a slice of time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slice {
    /// Tokens of the inner steps under way, each spread evenly over its length.
    pub tokens: f64,
    /// Seconds of peers that report, since their last reports.
    pub wall: f64,
    /// Of them, those in which they computed.
    pub compute: f64,
    /// Those in which computing stood still for an outer step.
    pub sync: f64,
    /// Those spent on results that were thrown away.
    pub lost: f64,
}

/// What came of a run over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    width: Span,
    slices: Vec<Slice>,
    /// Inner steps that were told.
    steps: u64,
}

impl Default for Course {
    fn default() -> Self {
        Self { width: WIDTH_MIN, slices: Vec::new(), steps: 0 }
    }
}

impl Course {
    /// Returns how long a slice is.
    pub fn width(&self) -> Span {
        self.width
    }

    /// Returns the slices, from the start of virtual time on.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// Returns the sum of all slices.
    pub fn whole(&self) -> Slice {
        self.slices.iter().fold(Slice::default(), |sum, slice| sum.and(slice))
    }

    /// Takes what an event tells of it.
    pub fn take(&mut self, at: Time, event: &Event) {
        if let Event::Step(summary) = event {
            self.stepped(at, summary);
        }
    }

    fn stepped(&mut self, at: Time, summary: &StepSummary) {
        // A coordinator that starts again tells of some steps a second time.
        if summary.step.0 < self.steps {
            return;
        }
        self.steps = summary.step.0 + 1;
        let reports = summary.reports.iter().map(|(_, report)| report);
        let seconds = |span: Span| span.0 as f64 / 1e6;
        let mut all = Slice { tokens: summary.tokens as f64, ..Slice::default() };
        for report in reports {
            all.wall += seconds(report.wall);
            all.compute += seconds(report.compute);
            all.sync += seconds(report.sync);
            all.lost += seconds(report.lost);
        }
        self.spread(at, summary.wall, all);
    }

    /// Spreads something evenly over the time before a moment.
    fn spread(&mut self, until: Time, over: Span, all: Slice) {
        let from = until.0.saturating_sub(over.0);
        self.slice(until);
        let (width, length) = (self.width.0, (until.0 - from).max(1));
        let (first, last) = (from / width, until.0 / width);
        for at in first..=last {
            let (begins, ends) = ((at * width).max(from), ((at + 1) * width).min(until.0));
            let part = if first == last { 1.0 } else { ends.saturating_sub(begins) as f64 / length as f64 };
            let slice = &mut self.slices[at as usize];
            *slice = slice.and(&all.part(part));
        }
    }

    /// Returns the slice of a moment.
    fn slice(&mut self, at: Time) -> &mut Slice {
        while at.0 / self.width.0 >= SLICES_MAX as u64 {
            self.width = self.width.saturating_add(self.width);
            let sum = |pair: &[Slice]| pair.iter().fold(Slice::default(), |sum, slice| sum.and(slice));
            self.slices = self.slices.chunks(2).map(sum).collect();
        }
        let index = (at.0 / self.width.0) as usize;
        if self.slices.len() <= index {
            self.slices.resize(index + 1, Slice::default());
        }
        &mut self.slices[index]
    }
}

impl Slice {
    /// Returns the sum of two.
    pub fn and(&self, other: &Self) -> Self {
        Self {
            tokens: self.tokens + other.tokens,
            wall: self.wall + other.wall,
            compute: self.compute + other.compute,
            sync: self.sync + other.sync,
            lost: self.lost + other.lost,
        }
    }

    fn part(&self, part: f64) -> Self {
        Self {
            tokens: self.tokens * part,
            wall: self.wall * part,
            compute: self.compute * part,
            sync: self.sync * part,
            lost: self.lost * part,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trestle_protocol::ids::InnerStep;

    fn step(number: u64, wall: Span) -> Event {
        Event::Step(StepSummary {
            step: InnerStep(number),
            loss: 1.0,
            tokens: 1000,
            wall,
            outside: Span(0),
            reports: Vec::new(),
        })
    }

    #[test]
    fn tokens_are_spread_over_their_step_and_none_is_lost_as_slices_grow() {
        let mut course = Course::default();
        course.take(Time(2_500_000), &step(0, Span::seconds(2)));
        let tokens = |course: &Course| course.slices().iter().map(|slice| slice.tokens).collect::<Vec<_>>();
        assert_eq!(tokens(&course), [250.0, 500.0, 250.0]);
        for number in 1..2000 {
            course.take(Time(2_500_000 * (number + 1)), &step(number, Span::millis(2_500)));
            // Told a second time, it counts once.
            course.take(Time(2_500_000 * (number + 1)), &step(number, Span::millis(2_500)));
        }
        assert!(course.slices().len() <= SLICES_MAX);
        assert_eq!(course.width(), Span::seconds(16));
        assert!((course.whole().tokens - 2_000_000.0).abs() < 1e-3, "{}", course.whole().tokens);
        // 400 tokens a second, wherever one looks.
        let inner = &tokens(&course)[1..300];
        assert!(inner.iter().all(|tokens| (tokens - 6400.0).abs() < 1e-6), "{inner:?}");
    }
}
