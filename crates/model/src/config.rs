//! Owns the shape of a model: its sizes, how its layers are cut into stages, and what crosses each cut.
//!
//! Everything derived from the shape alone (parameter counts, message sizes, operations) is computed here, so that
//! plans and run files can be checked without touching a tensor. It may not know devices, optimizers or peers.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How two neighbouring stages are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoundaryForm {
    /// The whole hidden state crosses; the model equals the unsplit one exactly.
    None,
    /// An encoder before the cut and a decoder after it, beside a truncating identity path.
    Resbm,
    /// The encoder replaces the down projection of the sender's last block, and one matrix feeds the attention of
    /// the receiver's first block.
    Fused,
}

/// The number format of computation or of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// The upper half of single precision: eight exponent bits, seven of fraction.
    Bf16,
}

impl Dtype {
    /// Returns the bytes one number takes.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }

    /// Returns libtorch's name of the format.
    pub fn kind(self) -> tch::Kind {
        match self {
            Dtype::F32 => tch::Kind::Float,
            Dtype::Bf16 => tch::Kind::BFloat16,
        }
    }
}

/// What a stage keeps between the forward and the backward of a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retain {
    /// The autograd graph with all its activations: fastest, and the most memory.
    Graph,
    /// Nothing but what the caller holds (the stage's input): the forward runs again before the backward.
    Input,
}

/// The shape of a model and of its cuts. [`ModelConfig::validate`] says whether the numbers fit together; the other
/// methods assume that they do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Number of distinct tokens (V).
    pub vocabulary: usize,
    /// Width of the hidden state (d).
    pub width: usize,
    /// Number of transformer blocks (L).
    pub layers: usize,
    /// Number of query heads; the head's width is `width / heads`.
    pub heads: usize,
    /// Number of key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of the gated feed-forward network (F).
    pub ffn_width: usize,
    /// Tokens of one sample (S).
    pub sequence_len: usize,
    /// Base of the rotary position frequencies.
    pub rope_theta: f64,
    /// Added to the mean square inside every RMS norm.
    pub norm_epsilon: f64,
    /// How consecutive stages are joined.
    pub boundary: BoundaryForm,
    /// Width of what crosses a cut (k); equals `width` for [`BoundaryForm::None`].
    pub boundary_width: usize,
    /// Inner width of the boundary's encoder and decoder (m); unused by [`BoundaryForm::None`].
    pub encoder_width: usize,
    /// Number of blocks in each stage, first stage first.
    pub stage_layers: Vec<usize>,
    /// Number format of activations and gradients that cross a cut.
    pub wire: Dtype,
}

/// Why a [`ModelConfig`] describes no model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A size is zero or absurdly large.
    #[error("{field} is {value}, expected {least} to {most}")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: usize,
        /// Smallest value taken.
        least: usize,
        /// Largest value taken.
        most: usize,
    },
    /// A real number is not positive and finite.
    #[error("{field} is {value}, expected a positive finite number")]
    NotPositive {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: f64,
    },
    /// One size must divide another and does not.
    #[error("{field} is {value}, which is not a multiple of {of} ({divisor})")]
    NotMultiple {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: usize,
        /// Name of the divisor's field.
        of: &'static str,
        /// What the divisor holds.
        divisor: usize,
    },
    /// Rotary positions turn pairs of coordinates, so a head's width must be even.
    #[error("width / heads is {head_dim}, expected an even number")]
    OddHead {
        /// The head's width.
        head_dim: usize,
    },
    /// The stages do not add up to the model.
    #[error("stage_layers sums to {sum}, expected layers = {layers}")]
    StageSum {
        /// What the stages add up to.
        sum: usize,
        /// Number of blocks in the model.
        layers: usize,
    },
    /// The boundary `none` sends the hidden state whole.
    #[error("boundary_width is {boundary_width} with boundary none, expected width = {width}")]
    BoundaryNotWhole {
        /// What the field holds.
        boundary_width: usize,
        /// Width of the hidden state.
        width: usize,
    },
}

impl ConfigError {
    /// Returns advice for the person who wrote the configuration.
    pub fn hint(&self) -> String {
        match self {
            ConfigError::OutOfRange { field, least, most, .. } => {
                format!("set {field} between {least} and {most}")
            }
            ConfigError::NotPositive { field, .. } => {
                format!("set {field} above zero; rope_theta = 500000 and norm_epsilon = 1e-5 are usual")
            }
            ConfigError::NotMultiple { field, of, divisor, .. } => {
                format!("choose {field} as a multiple of {divisor}, or change {of}")
            }
            ConfigError::OddHead { .. } => {
                "choose heads so that width / heads is even, usually 64 or 128".into()
            }
            ConfigError::StageSum { .. } => {
                "give every stage its number of blocks in stage_layers, so that they add up to layers".into()
            }
            ConfigError::BoundaryNotWhole { .. } => {
                "set boundary_width = width, or choose boundary = \"resbm\" or \"fused\" for a narrow cut"
                    .into()
            }
        }
    }
}

/// Above the sizes of any model in use, and small enough that no count below overflows 64 bits.
const WIDTH_MAX: usize = 1 << 17;
const FFN_WIDTH_MAX: usize = 1 << 20;
const LAYERS_MAX: usize = 1 << 12;
const TOKENS_MAX: usize = 1 << 24;

impl ModelConfig {
    /// Checks that the numbers describe a model.
    ///
    /// # Errors
    /// Names the first field that does not fit, and its value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        range("vocabulary", self.vocabulary, 2, TOKENS_MAX)?;
        range("width", self.width, 2, WIDTH_MAX)?;
        range("layers", self.layers, 1, LAYERS_MAX)?;
        range("heads", self.heads, 1, self.width)?;
        range("kv_heads", self.kv_heads, 1, self.heads)?;
        range("ffn_width", self.ffn_width, 1, FFN_WIDTH_MAX)?;
        range("sequence_len", self.sequence_len, 1, TOKENS_MAX)?;
        range("boundary_width", self.boundary_width, 1, self.width)?;
        range("encoder_width", self.encoder_width, 1, FFN_WIDTH_MAX)?;
        range("stage_layers' length", self.stage_layers.len(), 1, self.layers)?;
        positive("rope_theta", self.rope_theta)?;
        positive("norm_epsilon", self.norm_epsilon)?;
        multiple("width", self.width, "heads", self.heads)?;
        multiple("heads", self.heads, "kv_heads", self.kv_heads)?;
        if !self.head_dim().is_multiple_of(2) {
            return Err(ConfigError::OddHead { head_dim: self.head_dim() });
        }
        for &layers in &self.stage_layers {
            range("stage_layers' entry", layers, 1, self.layers)?;
        }
        let sum = self.stage_layers.iter().sum();
        if sum != self.layers {
            return Err(ConfigError::StageSum { sum, layers: self.layers });
        }
        match self.boundary {
            BoundaryForm::None if self.boundary_width != self.width => {
                Err(ConfigError::BoundaryNotWhole { boundary_width: self.boundary_width, width: self.width })
            }
            BoundaryForm::None | BoundaryForm::Resbm | BoundaryForm::Fused => Ok(()),
        }
    }

    /// Returns the number of stages.
    pub fn stages(&self) -> usize {
        self.stage_layers.len()
    }

    /// Returns the width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    /// Returns the blocks that a stage holds, as indices into the whole model.
    pub fn stage_blocks(&self, stage: usize) -> Range<usize> {
        let first = self.stage_layers[..stage].iter().sum();
        first..first + self.stage_layers[stage]
    }

    /// Returns the parameters of the same model without cuts:
    /// `2Vd + L(2d² + 2d·kv_heads·head_dim + 3dF + 2d) + d`.
    pub fn dense_parameters(&self) -> u64 {
        let (d, v) = (self.width as u64, self.vocabulary as u64);
        2 * v * d + self.layers as u64 * self.block_parameters() + d
    }

    /// Returns what all boundaries together add to (or, for narrow fused encoders, take from) the dense model.
    pub fn boundary_parameters(&self) -> i64 {
        let cuts = self.stages() as i64 - 1;
        cuts * (self.encoder_parameters() + self.decoder_parameters())
    }

    /// Returns the parameters of the model as built, boundaries included.
    pub fn parameters(&self) -> u64 {
        self.dense_parameters().strict_add_signed(self.boundary_parameters())
    }

    /// Returns the parameters of one stage: the encoder belongs to the stage that sends, the decoder to the stage that
    /// receives, the embedding to the first, the final norm and the head to the last.
    pub fn stage_parameters(&self, stage: usize) -> u64 {
        let (d, v) = (self.width as u64, self.vocabulary as u64);
        let mut count = self.stage_layers[stage] as u64 * self.block_parameters();
        if stage == 0 {
            count += v * d;
        } else {
            count = count.strict_add_signed(self.decoder_parameters());
        }
        if stage + 1 == self.stages() {
            count + v * d + d
        } else {
            count.strict_add_signed(self.encoder_parameters())
        }
    }

    /// Returns the bytes of one boundary message, either way: `B·S·k` numbers of the wire's format.
    pub fn boundary_bytes(&self, microbatch_size: usize) -> usize {
        microbatch_size * self.sequence_len * self.boundary_width * self.wire.bytes()
    }

    /// Returns the operations that training one token takes, forward and backward, without any recomputation:
    /// `6·(N − Vd) + 6·L·S·d`.
    ///
    /// `N` is the model as built. The embedding table is left out because looking a row up multiplies nothing; the
    /// second term is attention under a causal mask (half of the usual `12·L·S·d`).
    pub fn train_flops_per_token(&self) -> f64 {
        (0..self.stages()).map(|stage| self.stage_train_flops_per_token(stage)).sum()
    }

    /// Returns one stage's share of [`ModelConfig::train_flops_per_token`].
    pub fn stage_train_flops_per_token(&self, stage: usize) -> f64 {
        let embedding = if stage == 0 { (self.vocabulary * self.width) as u64 } else { 0 };
        let multiplied = (self.stage_parameters(stage) - embedding) as f64;
        6.0 * multiplied
            + 6.0 * self.stage_layers[stage] as f64 * self.sequence_len as f64 * self.width as f64
    }

    fn block_parameters(&self) -> u64 {
        let (d, f) = (self.width as u64, self.ffn_width as u64);
        let kv = (self.kv_heads * self.head_dim()) as u64;
        2 * d * d + 2 * d * kv + 3 * d * f + 2 * d
    }

    fn encoder_parameters(&self) -> i64 {
        let (d, k, m) = (self.width as i64, self.boundary_width as i64, self.encoder_width as i64);
        let f = self.ffn_width as i64;
        match self.boundary {
            BoundaryForm::None => 0,
            BoundaryForm::Resbm => d + m * d + k * m,
            BoundaryForm::Fused => f * m + m * k - f * d,
        }
    }

    fn decoder_parameters(&self) -> i64 {
        let (d, k, m) = (self.width as i64, self.boundary_width as i64, self.encoder_width as i64);
        match self.boundary {
            BoundaryForm::None => 0,
            BoundaryForm::Resbm => k * m + m * d,
            BoundaryForm::Fused => k * d,
        }
    }
}

fn range(field: &'static str, value: usize, least: usize, most: usize) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::OutOfRange { field, value, least, most })
}

fn positive(field: &'static str, value: f64) -> Result<(), ConfigError> {
    if value.is_finite() && value > 0.0 { Ok(()) } else { Err(ConfigError::NotPositive { field, value }) }
}

fn multiple(field: &'static str, value: usize, of: &'static str, divisor: usize) -> Result<(), ConfigError> {
    if value.is_multiple_of(divisor) {
        return Ok(());
    }
    Err(ConfigError::NotMultiple { field, value, of, divisor })
}
