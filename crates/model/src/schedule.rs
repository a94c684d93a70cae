//! Owns how the learning rate moves over the optimizer steps of a run. It may not know which optimizer follows it.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// What the rate does after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Stays at its peak.
    Constant,
    /// Falls along half a cosine to `floor` at step `steps`, and stays there.
    Cosine,
}

/// The course of the learning rate, as a factor of its peak.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// What the rate does after its warm-up.
    #[serde(default = "default_kind")]
    pub kind: ScheduleKind,
    /// Optimizer steps of linear warm-up; 0 starts at the peak.
    #[serde(default)]
    pub warmup_steps: u64,
    /// Optimizer steps of the whole run, warm-up included; the cosine ends here.
    pub steps: u64,
    /// Factor at which the cosine ends, 0 to 1.
    #[serde(default = "default_floor")]
    pub floor: f64,
}

fn default_kind() -> ScheduleKind {
    ScheduleKind::Cosine
}

fn default_floor() -> f64 {
    0.1
}

impl ScheduleConfig {
    /// Returns a schedule that stays at its peak from the first step.
    pub fn constant(steps: u64) -> ScheduleConfig {
        ScheduleConfig { kind: ScheduleKind::Constant, warmup_steps: 0, steps, floor: 1.0 }
    }

    /// Checks that the numbers make a schedule.
    ///
    /// # Errors
    /// Names the first field outside its range, and its value.
    pub fn validate(&self) -> Result<(), ModelError> {
        if self.steps == 0 {
            return Err(ModelError::Setting { field: "steps", value: 0.0, expected: "at least 1" });
        }
        if self.warmup_steps > self.steps {
            let value = self.warmup_steps as f64;
            return Err(ModelError::Setting {
                field: "warmup_steps",
                value,
                expected: "at most the number of steps",
            });
        }
        if !(0.0..=1.0).contains(&self.floor) {
            return Err(ModelError::Setting {
                field: "floor",
                value: self.floor,
                expected: "a number from 0 to 1",
            });
        }
        Ok(())
    }

    /// Returns the factor for the update that makes version `step + 1` out of version `step`, between 0 and 1.
    ///
    /// During warm-up `(step + 1) / warmup_steps`, so that the first update already moves and the last one of the warm-up
    /// has the peak. Then for the cosine `floor + (1 - floor) (1 + cos(pi p)) / 2` with
    /// `p = (step - warmup_steps) / (steps - warmup_steps)`, at most 1 (SGDR, arXiv 1608.03983, equation 5, one cycle).
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return (step + 1) as f64 / self.warmup_steps as f64;
        }
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Cosine if step >= self.steps => self.floor,
            ScheduleKind::Cosine => {
                let progress = (step - self.warmup_steps) as f64 / (self.steps - self.warmup_steps) as f64;
                self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (PI * progress).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine() -> ScheduleConfig {
        ScheduleConfig { kind: ScheduleKind::Cosine, warmup_steps: 4, steps: 12, floor: 0.1 }
    }

    #[test]
    fn the_cosine_follows_its_table() {
        let table = [
            (0, 0.25),
            (1, 0.5),
            (3, 1.0),
            (4, 1.0),
            (6, 0.868_198),
            (8, 0.55),
            (10, 0.231_802),
            (11, 0.134_254),
            (12, 0.1),
            (1000, 0.1),
        ];
        for (step, factor) in table {
            assert!((cosine().factor(step) - factor).abs() < 1e-6, "step {step}: {}", cosine().factor(step));
        }
    }

    #[test]
    fn the_constant_warms_up_and_stays() {
        let schedule = ScheduleConfig { kind: ScheduleKind::Constant, ..cosine() };
        let factors: Vec<f64> = [0, 1, 2, 3, 4, 11, 12, 99].map(|step| schedule.factor(step)).to_vec();
        assert_eq!(factors, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(ScheduleConfig::constant(5).factor(0), 1.0);
    }

    #[test]
    fn a_run_that_only_warms_up_divides_by_nothing() {
        let schedule = ScheduleConfig { warmup_steps: 12, ..cosine() };
        assert!(schedule.validate().is_ok());
        assert_eq!((schedule.factor(11), schedule.factor(12)), (1.0, 0.1));
    }

    #[test]
    fn numbers_outside_their_range_are_named() {
        let bad = [
            (ScheduleConfig { steps: 0, ..cosine() }, "steps is 0, expected at least 1"),
            (
                ScheduleConfig { warmup_steps: 13, ..cosine() },
                "warmup_steps is 13, expected at most the number of steps",
            ),
            (ScheduleConfig { floor: 1.5, ..cosine() }, "floor is 1.5, expected a number from 0 to 1"),
            (ScheduleConfig { floor: f64::NAN, ..cosine() }, "floor is NaN, expected a number from 0 to 1"),
        ];
        for (schedule, words) in bad {
            assert_eq!(schedule.validate().expect_err("out of range").to_string(), words);
        }
        assert!(cosine().validate().is_ok());
    }
}
