//! Patience: how long to wait for something, learnt from how long it took before.
//!
//! Owns the rule (median plus a multiple of the median absolute deviation) and its bounds. Knows nothing of what is waited
//! for.

use crate::time::Span;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Samples that are remembered: enough for a stable median, few enough to follow a link that changes.
const SAMPLES_MAX: usize = 16;

/// Deviations beyond the median. For a normal distribution one deviation is 0.67 sigma, so that 8 are more than 5 sigma.
const DEVIATIONS: u64 = 8;

/// Added always: the scheduler of a busy machine delays a reply by this much without any fault.
const SLACK: Span = Span::millis(250);

/// Recent durations, and the wait that follows from them.
#[derive(Clone, Debug)]
pub struct Patience {
    samples: VecDeque<u64>,
    first: Span,
}

impl Patience {
    /// Starts without samples; `first` is the wait until there is one.
    pub fn new(first: Span) -> Self {
        Self { samples: VecDeque::new(), first }
    }

    /// Remembers how long it took this time.
    pub fn learn(&mut self, took: Span) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(took.0);
    }

    /// Returns how long to wait: median + 8 deviations, but no more than twice the longest, + slack. The bound matters while
    /// there are few samples, whose deviation says little.
    pub fn wait(&self) -> Span {
        let Some(median) = median(self.samples.iter().copied().collect()) else { return self.first };
        let deviations = self.samples.iter().map(|sample| sample.abs_diff(median)).collect();
        let deviation = median_of_deviations(deviations);
        let longest = self.samples.iter().max().copied().unwrap_or(median);
        let wait = median.saturating_add(deviation.saturating_mul(DEVIATIONS));
        Span(wait.min(longest.saturating_mul(2))).saturating_add(SLACK)
    }
}

fn median_of_deviations(deviations: Vec<u64>) -> u64 {
    median(deviations).unwrap_or(0)
}

fn median(mut samples: Vec<u64>) -> Option<u64> {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_follows_what_was_measured() {
        let mut patience = Patience::new(Span::seconds(30));
        assert_eq!(patience.wait(), Span::seconds(30));
        for took in [100, 110, 90, 100, 105] {
            patience.learn(Span::millis(took));
        }
        assert_eq!(patience.wait(), Span::millis(100 + 8 * 5 + 250));
        let mut second = Patience::new(Span::seconds(30));
        [1, 9].iter().for_each(|took| second.learn(Span::seconds(*took)));
        assert_eq!(
            second.wait(),
            Span::seconds(2 * 9).saturating_add(SLACK),
            "two samples that differ say little"
        );
        (0..SAMPLES_MAX).for_each(|_| patience.learn(Span::seconds(4)));
        assert_eq!(patience.wait(), Span::millis(4_250), "what is long ago is forgotten");
    }
}
