//! A peer's clock, which may run fast or slow, and ahead of that of others.
//!
//! Owns the way from virtual time to what the peer is told, and back. Knows nothing of who reads it.

use trestle_protocol::time::{Span, Time};

/// Parts per million.
const MILLION: i128 = 1_000_000;

/// A clock that never goes back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Virtual time from which on it goes as it does now, and what it showed then.
    since: (Time, Time),
    /// By how much it is too fast; negative when it is too slow.
    ppm: i64,
}

impl Clock {
    /// Lets it run off from now on, after a leap ahead.
    pub fn run_off(&mut self, now: Time, ppm: i64, ahead: Span) {
        *self = Self { since: (now, self.shows(now) + ahead), ppm };
    }

    /// Returns what it shows.
    pub fn shows(&self, now: Time) -> Time {
        let (then, showed) = self.since;
        let passed = i128::from(now.since(then).0) * (MILLION + i128::from(self.ppm)) / MILLION;
        showed + Span(u64::try_from(passed.max(0)).unwrap_or(u64::MAX))
    }

    /// Returns the first moment at which it shows a time.
    pub fn when(&self, shown: Time) -> Time {
        let (then, showed) = self.since;
        let wanted = i128::from(shown.since(showed).0) * MILLION;
        let rate = (MILLION + i128::from(self.ppm)).max(1);
        let passed = (wanted + rate - 1) / rate;
        then + Span(u64::try_from(passed).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_runs_off_and_the_way_back_is_exact() {
        let mut clock = Clock::default();
        assert_eq!((clock.shows(Time(77)), clock.when(Time(77))), (Time(77), Time(77)));
        for ppm in [-900_000, -700, 0, 333, 500_000] {
            clock.run_off(Time(1_000), ppm, Span(50));
            assert!(clock.shows(Time(1_000)) >= Time(1_050), "it never goes back");
            for shown in [1_200, 1_201, 99_999, 1_000_003].map(Time) {
                let when = clock.when(shown);
                assert!(clock.shows(when) >= shown && clock.shows(when - Span(1)) < shown, "{ppm} {shown}");
            }
            clock = Clock::default();
        }
        clock.run_off(Time(0), 100, Span(0));
        assert_eq!(clock.shows(Time(10_000_000)), Time(10_001_000));
    }
}
