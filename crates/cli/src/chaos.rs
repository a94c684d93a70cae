//! Harm done to the workers of a local run on purpose: what, how often, to whom.
//!
//! Owns the words of `--chaos` and the draws. May not touch a process: it says what is due.

use std::str::FromStr;
use std::time::Duration;

use crate::units::time;

/// A frozen worker is stopped for so long, unless the words say otherwise: longer than a silence that is forgiven.
const FREEZE_DEFAULT: Duration = Duration::from_secs(10);

/// A slowed worker is stopped again and again for so long, unless the words say otherwise.
const SLOW_DEFAULT: Duration = Duration::from_secs(30);

/// Harm to one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    /// SIGKILL.
    Kill,
    /// SIGTERM, as from a spot market.
    Term,
    /// Stopped for a while, and let go on.
    Freeze(Duration),
    /// Stopped for moments, again and again.
    Slow(Duration),
}

/// What is to happen to the workers of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Chaos {
    /// Kinds of harm, with how often a minute each happens to each worker.
    rates: Vec<(Harm, f64)>,
    /// The step after which one worker is killed.
    pub(crate) kill_one_at: Option<u64>,
}

/// Why words are not chaos.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChaosError {
    #[error("`{0}` is no kind of chaos, with `=` and a rate behind it")]
    Word(String),
    #[error("chaos `{0}` is unknown")]
    Kind(String),
    #[error("rate `{rate}` of chaos `{kind}` is not a positive number with `/min` behind it")]
    Rate { kind: String, rate: String },
    #[error("chaos `{kind}`: {reason}")]
    Time { kind: String, reason: String },
    #[error("chaos `{0}` takes no time")]
    Timeless(String),
    #[error("step `{0}` of chaos `kill-one-at` is not a whole number")]
    Step(String),
    #[error("chaos `coordinator` cannot be done to `trestle train`: the coordinator is that process itself")]
    Coordinator,
}

impl ChaosError {
    /// Says what to do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            ChaosError::Word(_) | ChaosError::Kind(_) => {
                "kinds are kill, term, freeze, slow and kill-one-at, such as kill=0.2/min,freeze=0.1/min:10s"
            }
            ChaosError::Rate { .. } => "a rate is for each worker, such as 0.2/min",
            ChaosError::Time { .. } => "a time follows the rate behind a colon, such as freeze=0.1/min:10s",
            ChaosError::Timeless(_) => "only freeze and slow last, such as freeze=0.1/min:10s",
            ChaosError::Step(_) => "name the step as a number, such as kill-one-at=120",
            ChaosError::Coordinator => {
                "scripts/chaos.py runs `trestle serve` and its peers as processes and kills any of them"
            }
        }
    }
}

impl FromStr for Chaos {
    type Err = ChaosError;

    fn from_str(text: &str) -> Result<Self, ChaosError> {
        let mut chaos = Self::default();
        for word in text.split(',').map(str::trim) {
            let (kind, value) = word.split_once('=').ok_or_else(|| ChaosError::Word(word.into()))?;
            if kind == "kill-one-at" {
                let step = value.parse().map_err(|_| ChaosError::Step(value.into()))?;
                chaos.kill_one_at = Some(step);
                continue;
            }
            let (rate, lasting) = match value.split_once(':') {
                Some((rate, lasting)) => (rate, Some(lasting)),
                None => (value, None),
            };
            let harm = harm(kind, lasting)?;
            let per_minute = rate.strip_suffix("/min").and_then(|rate| rate.parse::<f64>().ok());
            let per_minute = per_minute.filter(|rate| rate.is_finite() && *rate > 0.0);
            let unfit = || ChaosError::Rate { kind: kind.into(), rate: rate.into() };
            chaos.rates.push((harm, per_minute.ok_or_else(unfit)?));
        }
        Ok(chaos)
    }
}

fn harm(kind: &str, lasting: Option<&str>) -> Result<Harm, ChaosError> {
    let lasts = |default| match lasting {
        None => Ok(default),
        Some(text) => time(text).map_err(|reason| ChaosError::Time { kind: kind.into(), reason }),
    };
    let harm = match kind {
        "kill" => Harm::Kill,
        "term" => Harm::Term,
        "freeze" => return lasts(FREEZE_DEFAULT).map(Harm::Freeze),
        "slow" => return lasts(SLOW_DEFAULT).map(Harm::Slow),
        "coordinator" => return Err(ChaosError::Coordinator),
        unknown => return Err(ChaosError::Kind(unknown.into())),
    };
    if lasting.is_some() { Err(ChaosError::Timeless(kind.into())) } else { Ok(harm) }
}

/// Draws when harm comes next, to whom and which; the same from the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Draws {
    chaos: Chaos,
    state: u64,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Due {
    /// After this long.
    pub(crate) wait: Duration,
    /// To the worker of this number.
    pub(crate) victim: usize,
    pub(crate) harm: Harm,
}

impl Draws {
    pub(crate) fn new(chaos: Chaos, seed: u64) -> Self {
        Self { chaos, state: seed }
    }

    /// Draws the next harm among so many workers; `None` where none is asked for. Waits are exponential, so that harm comes
    /// independently of what happened before.
    pub(crate) fn next(&mut self, workers: usize) -> Option<Due> {
        let per_worker: f64 = self.chaos.rates.iter().map(|(_, rate)| rate).sum();
        if per_worker <= 0.0 || workers == 0 {
            return None;
        }
        let minutes = -(1.0 - self.unit()).ln() / (per_worker * workers as f64);
        let victim = ((self.unit() * workers as f64) as usize).min(workers - 1);
        let mut at = self.unit() * per_worker;
        let chosen = self.chaos.rates.iter().find(|(_, rate)| {
            at -= rate;
            at < 0.0
        });
        let (harm, _) = *chosen.or(self.chaos.rates.last())?;
        Some(Due { wait: Duration::from_secs_f64(minutes * 60.0), victim, harm })
    }

    /// Draws one of so many workers.
    pub(crate) fn one_of(&mut self, workers: usize) -> usize {
        ((self.unit() * workers as f64) as usize).min(workers.saturating_sub(1))
    }

    /// Draws from 0 to below 1 (SplitMix64, Steele et al. 2014).
    fn unit(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_what_happens_how_often_and_for_how_long() {
        let chaos: Chaos =
            "kill=0.05/min, freeze=0.1/min:20s,slow=1/min,term=2/min,kill-one-at=120".parse().unwrap();
        assert_eq!(
            chaos.rates,
            [
                (Harm::Kill, 0.05),
                (Harm::Freeze(Duration::from_secs(20)), 0.1),
                (Harm::Slow(SLOW_DEFAULT), 1.0),
                (Harm::Term, 2.0)
            ]
        );
        assert_eq!(chaos.kill_one_at, Some(120));
    }

    #[test]
    fn what_is_no_chaos_is_named_with_a_hint() {
        for (words, fragment) in [
            ("", "`` is no kind"),
            ("kill", "`kill` is no kind"),
            ("maim=1/min", "`maim` is unknown"),
            ("kill=1", "rate `1` of chaos `kill`"),
            ("kill=0/min", "rate `0/min`"),
            ("kill=-1/min", "rate `-1/min`"),
            ("kill=nan/min", "rate `nan/min`"),
            ("freeze=1/min:soon", "`soon` is not a length of time"),
            ("kill=1/min:10s", "`kill` takes no time"),
            ("kill-one-at=early", "step `early`"),
            ("kill=1/min,coordinator=1/min", "is that process itself"),
        ] {
            let error = words.parse::<Chaos>().unwrap_err();
            assert!(error.to_string().contains(fragment), "{words}: {error}");
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn draws_repeat_with_the_seed_and_come_as_often_as_asked() {
        let chaos: Chaos = "kill=3/min,freeze=1/min".parse().unwrap();
        let drawn = |seed| {
            let mut draws = Draws::new(chaos.clone(), seed);
            (0..4000).map(|_| draws.next(5).unwrap()).collect::<Vec<Due>>()
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        let all = drawn(7);
        let mean = all.iter().map(|due| due.wait.as_secs_f64()).sum::<f64>() / all.len() as f64;
        assert!((mean / 3.0 - 1.0).abs() < 0.1, "20 a minute among five workers: {mean} s between them");
        let kills = all.iter().filter(|due| due.harm == Harm::Kill).count() as f64 / all.len() as f64;
        assert!((kills / 0.75 - 1.0).abs() < 0.05, "{kills}");
        assert!((0..5).all(|worker| all.iter().filter(|due| due.victim == worker).count() > 600));
        assert_eq!(Draws::new(Chaos::default(), 1).next(5), None);
    }
}
