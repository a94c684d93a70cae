//! Owns the settings of the outer step, and which codec each kind names. It may not know the transaction.

use serde::{Deserialize, Serialize};

use crate::outer::codec::Codec;
use crate::outer::codec::bf16::Bf16;
use crate::outer::codec::int8::Int8;
use crate::outer::codec::single::Single;
use crate::outer::codec::sparse::SparseLoCo;
use crate::outer::error::OuterError;
use crate::outer::rule::Rule;

/// How pseudo-gradients are written as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodecKind {
    /// 32 bits a number; loses nothing.
    F32,
    /// 16 bits a number.
    Bf16,
    /// 8 bits a number and a scale a unit; the mean returns in bf16.
    Int8,
    /// The 64 largest of 4096 numbers with two bits each: 0.21875 bit a number of a matrix.
    SparseLoCo,
}

impl CodecKind {
    /// Returns the codec itself.
    pub fn codec(self) -> &'static dyn Codec {
        match self {
            CodecKind::F32 => &Single,
            CodecKind::Bf16 => &Bf16,
            CodecKind::Int8 => &Int8,
            CodecKind::SparseLoCo => &SparseLoCo,
        }
    }

    /// Returns whether what is decoded is what was encoded.
    pub(crate) fn loss(self) -> Loss {
        match self {
            CodecKind::F32 => Loss::None,
            CodecKind::Bf16 | CodecKind::Int8 | CodecKind::SparseLoCo => Loss::Some,
        }
    }

    /// Returns where the bytes of a contribution come from when it is committed: small ones are kept from the encoding,
    /// large ones are encoded again, which is cheaper than holding half a stage.
    pub(crate) fn sent(self) -> Sent {
        match self {
            CodecKind::F32 | CodecKind::Bf16 | CodecKind::Int8 => Sent::Again,
            CodecKind::SparseLoCo => Sent::Kept,
        }
    }
}

/// Whether a codec loses anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    None,
    Some,
}

/// Whether the bytes of a contribution are kept until it is committed, or made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Kept,
    Again,
}

/// What the replicas exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exchanged {
    /// How far each replica's weights have moved from the anchor.
    Weights,
    /// Each replica's mean gradient, before the optimizer step: there is no anchor, and the result is the mean itself.
    Gradients,
}

/// Everything that decides what an outer step computes; the same for all replicas of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OuterConfig {
    /// How the mean moves the anchor.
    pub rule: Rule,
    /// How contributions travel.
    pub codec: CodecKind,
    /// What a contribution is.
    pub exchanged: Exchanged,
    /// What is left of the error feedback when it joins the next contribution, above 0 to 1: 1 forgets nothing;
    /// SparseLoCo was published with 0.95.
    pub error_decay: f64,
}

impl OuterConfig {
    /// Checks that the settings fit together.
    ///
    /// # Errors
    /// Names the first that does not. Gradients go with the rule [`Rule::Mean`] and the codecs f32 and bf16 alone.
    pub fn validate(&self) -> Result<(), OuterError> {
        self.rule.validate()?;
        if !(self.error_decay > 0.0 && self.error_decay <= 1.0) {
            let value = self.error_decay.to_string();
            let expected = "a number above 0 and at most 1";
            return Err(OuterError::Setting { field: "error_decay", value, expected });
        }
        match (self.exchanged, self.rule, self.codec) {
            (Exchanged::Weights, _, _)
            | (Exchanged::Gradients, Rule::Mean, CodecKind::F32 | CodecKind::Bf16) => Ok(()),
            (Exchanged::Gradients, Rule::Mean, CodecKind::Int8 | CodecKind::SparseLoCo) => {
                let value = format!("{:?}", self.codec);
                Err(OuterError::Setting { field: "codec", value, expected: "f32 or bf16 for gradients" })
            }
            (Exchanged::Gradients, Rule::Nesterov { .. } | Rule::Plain { .. }, _) => {
                let value = format!("{:?}", self.rule);
                Err(OuterError::Setting { field: "rule", value, expected: "mean for gradients" })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_averaged_and_nothing_else() {
        let config =
            |rule, codec, exchanged, error_decay| OuterConfig { rule, codec, exchanged, error_decay };
        let plain = Rule::Plain { learning_rate: 1.0 };
        let (weights, gradients) = (Exchanged::Weights, Exchanged::Gradients);
        let good = [
            config(plain, CodecKind::SparseLoCo, weights, 0.95),
            config(Rule::Mean, CodecKind::F32, gradients, 1.0),
            config(Rule::Mean, CodecKind::Bf16, gradients, 1.0),
        ];
        for config in good {
            assert_eq!(config.validate(), Ok(()), "{config:?}");
            let json = serde_json::to_string(&config).expect("plain data");
            assert_eq!(serde_json::from_str::<OuterConfig>(&json).expect("its own words"), config);
        }
        let bad = [
            (config(plain, CodecKind::F32, gradients, 1.0), "outer rule is Plain"),
            (config(Rule::Mean, CodecKind::Int8, gradients, 1.0), "outer codec is Int8"),
            (config(plain, CodecKind::Int8, weights, 0.0), "outer error_decay is 0"),
            (config(plain, CodecKind::Int8, weights, f64::NAN), "outer error_decay is NaN"),
        ];
        for (config, words) in bad {
            let error = config.validate().expect_err(words);
            assert!(error.to_string().starts_with(words), "{error}");
        }
    }
}
