//! Owns the optimizer's settings and their defaults. It may not know how an update is computed.

use serde::{Deserialize, Serialize};

use crate::config::Dtype;
use crate::error::ModelError;

/// The rule that updates the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW for every parameter.
    AdamW,
    /// Muon for the matrices inside blocks and boundaries, AdamW for embedding, head and norms.
    Muon,
}

/// The optimizer's settings; what a run file leaves out takes its value in [`OptimizerConfig::default`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// The rule.
    pub kind: OptimizerKind,
    /// AdamW's learning rate at its peak; the schedule multiplies it.
    pub learning_rate: f64,
    /// Decay of the mean gradient.
    pub beta1: f64,
    /// Decay of the mean squared gradient.
    pub beta2: f64,
    /// Added to the root of the mean squared gradient.
    pub epsilon: f64,
    /// Decoupled weight decay of every matrix, under AdamW and Muon alike: each step takes the share
    /// `learning_rate * weight_decay` off. The gains of norms do not decay.
    pub weight_decay: f64,
    /// Muon's learning rate at its peak; `learning_rate` where it is absent, because Muon's updates are scaled to the
    /// root mean square of AdamW's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub muon_learning_rate: Option<f64>,
    /// Decay of Muon's mean gradient (Nesterov).
    pub muon_momentum: f64,
    /// Number format of Muon's Newton-Schulz steps. bf16 is several times faster on devices with bf16 matrix units and as
    /// good in practice; f32 is the exact reference, and faster on processors without such units.
    pub muon_dtype: Dtype,
}

impl Default for OptimizerConfig {
    /// AdamW as Llama was trained (arXiv 2302.13971, section 2.3: betas 0.9 and 0.95, decay 0.1) with a rate for small
    /// models; Muon's momentum from its author's reference code.
    fn default() -> OptimizerConfig {
        OptimizerConfig {
            kind: OptimizerKind::AdamW,
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            muon_learning_rate: None,
            muon_momentum: 0.95,
            muon_dtype: Dtype::F32,
        }
    }
}

impl OptimizerConfig {
    /// Checks that the numbers make an optimizer.
    ///
    /// # Errors
    /// Names the first field outside its range, and its value.
    pub fn validate(&self) -> Result<(), ModelError> {
        positive("learning_rate", self.learning_rate)?;
        positive("epsilon", self.epsilon)?;
        fraction("beta1", self.beta1)?;
        fraction("beta2", self.beta2)?;
        fraction("muon_momentum", self.muon_momentum)?;
        if let Some(rate) = self.muon_learning_rate {
            positive("muon_learning_rate", rate)?;
        }
        if !(0.0..f64::INFINITY).contains(&self.weight_decay) {
            let (field, value) = ("weight_decay", self.weight_decay);
            return Err(ModelError::Setting { field, value, expected: "a finite number of at least 0" });
        }
        Ok(())
    }

    /// Returns Muon's learning rate at its peak.
    pub fn muon_rate(&self) -> f64 {
        self.muon_learning_rate.unwrap_or(self.learning_rate)
    }
}

fn positive(field: &'static str, value: f64) -> Result<(), ModelError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(ModelError::Setting { field, value, expected: "a finite number above 0" })
}

fn fraction(field: &'static str, value: f64) -> Result<(), ModelError> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(ModelError::Setting { field, value, expected: "a number from 0 to below 1" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_run_file_may_leave_all_out() {
        assert!(OptimizerConfig::default().validate().is_ok());
        let empty: OptimizerConfig = serde_json::from_str("{}").expect("all fields have defaults");
        assert_eq!(empty, OptimizerConfig::default());
        let muon: OptimizerConfig = serde_json::from_str(r#"{"kind": "muon"}"#).expect("a known rule");
        assert_eq!((muon.kind, muon.muon_rate()), (OptimizerKind::Muon, 1e-3));
        let words = serde_json::from_str::<OptimizerConfig>(r#"{"learningrate": 1}"#)
            .expect_err("a typo")
            .to_string();
        assert!(words.contains("learningrate"), "{words}");
    }

    #[test]
    fn numbers_outside_their_range_are_named() {
        let good = OptimizerConfig::default();
        let bad = [
            (OptimizerConfig { learning_rate: 0.0, ..good.clone() }, "learning_rate is 0"),
            (OptimizerConfig { learning_rate: f64::INFINITY, ..good.clone() }, "learning_rate is inf"),
            (OptimizerConfig { epsilon: -1.0, ..good.clone() }, "epsilon is -1"),
            (OptimizerConfig { beta1: 1.0, ..good.clone() }, "beta1 is 1"),
            (OptimizerConfig { beta2: f64::NAN, ..good.clone() }, "beta2 is NaN"),
            (OptimizerConfig { weight_decay: -0.1, ..good.clone() }, "weight_decay is -0.1"),
            (OptimizerConfig { muon_learning_rate: Some(-1.0), ..good.clone() }, "muon_learning_rate is -1"),
            (OptimizerConfig { muon_momentum: 1.5, ..good }, "muon_momentum is 1.5"),
        ];
        for (config, words) in bad {
            let error = config.validate().expect_err(words);
            assert!(error.to_string().starts_with(words), "{error}");
            assert!(error.hint().is_some());
        }
    }
}
