//! Pace: how much work a peer does in how much time, and what a task weighs.
//!
//! Owns the two moving averages whose ratio is a throughput. Knows nothing of peers, queues or deadlines.

use crate::time::Span;

/// What kind of task is asked for; it decides what the task weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// A forward.
    Forward,
    /// A backward.
    Backward,
}

impl Weight {
    /// Returns the work in a task: a backward weighs 2.5 forwards, written 2:5 in integers. The backward of a matrix product
    /// is two products, and half as much again goes to recomputing and to the optimizer (SWARM, arXiv 2301.11913).
    pub const fn units(self) -> u64 {
        match self {
            Self::Forward => 2,
            Self::Backward => 5,
        }
    }
}

/// What a sample weighs in the moving averages: one part in ten (SWARM, arXiv 2301.11913).
const ALPHA_PARTS: u128 = 10;

/// Fixed point of both averages; it keeps three digits of the shortest spans and smallest tasks.
const ONE: u128 = 1 << 20;

/// Work units a microsecond are written in this many parts: a forward in 1,000 s is still 2,199 of them.
const RATE_ONE: u128 = 1 << 40;

/// The least work that counts: one unit in the latest sample. A peer that answered nothing yet might have answered next.
const WORK_MIN: u128 = ONE / ALPHA_PARTS;

/// Moving averages of work and of the time it took. Both start at zero, so that the bias of a young average, a factor of
/// 1 - 0.9^n, is the same in both and cancels in their ratio.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    work: u128,
    time: u128,
}

impl Pace {
    /// Counts a task that was answered.
    pub(crate) fn did(&mut self, weight: Weight, took: Span) {
        self.sample(weight.units(), took);
    }

    /// Counts time that brought nothing.
    pub(crate) fn wasted(&mut self, waited: Span) {
        self.sample(0, waited);
    }

    fn sample(&mut self, units: u64, span: Span) {
        let blend = |old: u128, new: u64| (old * (ALPHA_PARTS - 1) + u128::from(new) * ONE) / ALPHA_PARTS;
        self.work = blend(self.work, units);
        self.time = blend(self.time, span.0.max(1));
    }

    /// Returns the throughput, at least 1; None without a sample. The average of work over the average of time, and not the
    /// average of ratios: a task that was waited for ten times as long as usual must weigh as much as ten usual ones.
    pub(crate) fn rate(&self) -> Option<u64> {
        let rate = (self.work.max(WORK_MIN) * RATE_ONE).checked_div(self.time)?;
        Some(u64::try_from(rate).unwrap_or(u64::MAX).max(1))
    }

    /// Returns how long a task takes on average; None without an answer.
    pub(crate) fn expected(&self, weight: Weight) -> Option<Span> {
        let span = (self.time * u128::from(weight.units())).checked_div(self.work)?;
        Some(Span(u64::try_from(span).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(tasks: &[(Weight, u64)]) -> Pace {
        let mut pace = Pace::default();
        tasks.iter().for_each(|(weight, millis)| pace.did(*weight, Span::millis(*millis)));
        pace
    }

    #[test]
    fn a_young_average_has_no_bias() {
        let [once, often] =
            [1, 60].map(|count| after(&alloc::vec![(Weight::Forward, 400); count]).rate().unwrap());
        assert!(once.abs_diff(often) <= often / 1_000, "{once} {often}");
        assert_eq!(Pace::default().rate(), None);
    }

    #[test]
    fn a_backward_may_take_two_and_a_half_times_as_long() {
        let (forward, backward) = (after(&[(Weight::Forward, 400)]), after(&[(Weight::Backward, 1_000)]));
        assert!(forward.rate().unwrap().abs_diff(backward.rate().unwrap()) < 10);
        assert!(forward.expected(Weight::Backward).unwrap().0.abs_diff(1_000_000) < 10);
    }

    #[test]
    fn a_sample_weighs_a_tenth() {
        let mut tasks = alloc::vec![(Weight::Forward, 100); 200];
        let before = after(&tasks).rate().unwrap();
        tasks.push((Weight::Forward, 1_100));
        assert!(
            after(&tasks).rate().unwrap().abs_diff(before / 2) <= before / 1_000,
            "0.9 x 100 + 0.1 x 1,100 = 200"
        );
    }

    #[test]
    fn waiting_in_vain_slows_and_is_never_zero() {
        let mut pace = after(&[(Weight::Forward, 100)]);
        let mut before = pace.rate().unwrap();
        for _ in 0..3 {
            pace.wasted(Span::seconds(1));
            assert!(pace.rate().unwrap() < before * 9 / 10);
            before = pace.rate().unwrap();
        }
        (0..1_000).for_each(|_| pace.wasted(Span::seconds(60)));
        let rate = pace.rate().unwrap() as u128;
        assert!(rate.abs_diff(RATE_ONE / 600_000_000) <= 1, "one unit in ten such waits: {rate}");
        let mut silent = Pace::default();
        silent.wasted(Span::seconds(60));
        assert!(u128::from(silent.rate().unwrap()).abs_diff(RATE_ONE / 60_000_000) <= 1);
    }
}
