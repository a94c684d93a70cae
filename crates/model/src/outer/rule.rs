//! Owns how the mean pseudo-gradient of the replicas moves the weights they share. It may not know how the mean came about.

use serde::{Deserialize, Serialize};

use crate::outer::error::OuterError;

/// The rule of the outer step: from the committed weights, the anchor, and the mean pseudo-gradient
/// `D = sum(w_r (anchor - weights_r)) / sum(w_r)` to the next anchor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Rule {
    /// `anchor - D`: the mean of the replicas' weights.
    Mean,
    /// `m <- momentum m + D`, then `anchor - learning_rate (D + momentum m)` (DiLoCo, arXiv 2311.08105, algorithm 1 with
    /// the outer optimizer of its section 3).
    Nesterov {
        /// The outer learning rate; 0.7 in the paper.
        learning_rate: f64,
        /// The outer momentum; 0.9 in the paper.
        momentum: f64,
        /// How the momentum begins; at once where it is absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ramp: Option<Ramp>,
    },
    /// `anchor - learning_rate D` (SparseLoCo, arXiv 2508.15706: error feedback takes the momentum's part).
    Plain {
        /// The outer learning rate; 0.4 to 1.0 in the paper.
        learning_rate: f64,
    },
}

/// A momentum that grows linearly over the first outer steps (Streaming DiLoCo, arXiv 2501.18512, uses 0.5 to 0.9 over 20).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ramp {
    /// The momentum of the first outer step.
    pub from: f64,
    /// Outer steps until it has its full value.
    pub steps: u64,
}

/// A rule with the numbers of one outer step filled in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Update {
    Mean,
    Nesterov { learning_rate: f32, momentum: f32 },
    Plain { learning_rate: f32 },
}

impl Rule {
    /// Checks that the numbers make a rule.
    ///
    /// # Errors
    /// Names the first field outside its range.
    pub fn validate(&self) -> Result<(), OuterError> {
        match *self {
            Rule::Mean => Ok(()),
            Rule::Nesterov { learning_rate, momentum, ramp } => {
                positive(learning_rate)?;
                fraction("momentum", momentum)?;
                ramp.map_or(Ok(()), |ramp| fraction("ramp.from", ramp.from))
            }
            Rule::Plain { learning_rate } => positive(learning_rate),
        }
    }

    /// Returns whether the rule remembers anything between outer steps.
    pub(crate) fn memory(&self) -> Memory {
        match self {
            Rule::Mean | Rule::Plain { .. } => Memory::None,
            Rule::Nesterov { .. } => Memory::Momentum,
        }
    }

    /// Returns the arithmetic of the outer step that follows `committed` others.
    pub(crate) fn update(&self, committed: u64) -> Update {
        match *self {
            Rule::Mean => Update::Mean,
            Rule::Nesterov { learning_rate, momentum, ramp } => Update::Nesterov {
                learning_rate: learning_rate as f32,
                momentum: momentum_at(momentum, ramp, committed) as f32,
            },
            Rule::Plain { learning_rate } => Update::Plain { learning_rate: learning_rate as f32 },
        }
    }
}

/// What a rule remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Nothing.
    None,
    /// One number a parameter.
    Momentum,
}

impl Update {
    /// Moves the weights, and the momentum with them, by the mean pseudo-gradient.
    ///
    /// `momentum` is empty for rules without one; the other slices are of one length.
    pub(crate) fn apply(self, weights: &mut [f32], momentum: &mut [f32], mean: &[f32]) {
        match self {
            Update::Mean => {
                for (weight, d) in weights.iter_mut().zip(mean) {
                    *weight -= d;
                }
            }
            Update::Nesterov { learning_rate, momentum: mu } => {
                for ((weight, m), d) in weights.iter_mut().zip(momentum).zip(mean) {
                    *m = mu * *m + d;
                    *weight -= learning_rate * (d + mu * *m);
                }
            }
            Update::Plain { learning_rate } => {
                for (weight, d) in weights.iter_mut().zip(mean) {
                    *weight -= learning_rate * d;
                }
            }
        }
    }
}

fn momentum_at(momentum: f64, ramp: Option<Ramp>, committed: u64) -> f64 {
    match ramp {
        Some(Ramp { from, steps }) if committed < steps => {
            from + (momentum - from) * committed as f64 / steps as f64
        }
        Some(_) | None => momentum,
    }
}

fn positive(value: f64) -> Result<(), OuterError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    let expected = "a finite number above 0";
    Err(OuterError::Setting { field: "learning_rate", value: value.to_string(), expected })
}

fn fraction(field: &'static str, value: f64) -> Result<(), OuterError> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(OuterError::Setting { field, value: value.to_string(), expected: "a number from 0 to below 1" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAMP: Rule =
        Rule::Nesterov { learning_rate: 0.5, momentum: 0.75, ramp: Some(Ramp { from: 0.25, steps: 4 }) };

    #[test]
    fn the_momentum_climbs_its_ramp_and_stays() {
        let at = |committed| match RAMP.update(committed) {
            Update::Nesterov { momentum, .. } => momentum,
            Update::Mean | Update::Plain { .. } => panic!("the rule is Nesterov's"),
        };
        assert_eq!([0, 1, 2, 3, 4, 5, u64::MAX].map(at), [0.25, 0.375, 0.5, 0.625, 0.75, 0.75, 0.75]);
    }

    #[test]
    fn each_rule_follows_its_formula() {
        let run = |rule: Rule| {
            let (mut weights, mut momentum) = (vec![10.0], vec![2.0]);
            rule.update(4).apply(&mut weights, &mut momentum, &[4.0]);
            (weights[0], momentum[0])
        };
        assert_eq!(run(Rule::Mean), (6.0, 2.0));
        assert_eq!(run(Rule::Plain { learning_rate: 0.5 }), (8.0, 2.0));
        // m = 0.75 * 2 + 4 = 5.5; 10 - 0.5 (4 + 0.75 * 5.5) = 5.9375.
        assert_eq!(run(RAMP), (5.9375, 5.5));
    }

    #[test]
    fn settings_outside_their_range_are_named() {
        let nesterov = |learning_rate, momentum, from| Rule::Nesterov {
            learning_rate,
            momentum,
            ramp: Some(Ramp { from, steps: 1 }),
        };
        let cases = [
            (Rule::Plain { learning_rate: 0.0 }, "outer learning_rate is 0,"),
            (nesterov(f64::NAN, 0.9, 0.5), "outer learning_rate is NaN,"),
            (nesterov(0.7, 1.0, 0.5), "outer momentum is 1,"),
            (nesterov(0.7, 0.9, -0.5), "outer ramp.from is -0.5,"),
        ];
        for (rule, words) in cases {
            let error = rule.validate().expect_err(words);
            assert!(error.to_string().starts_with(words), "{error}");
        }
        assert_eq!(nesterov(0.7, 0.9, 0.5).validate(), Ok(()));
    }
}
