//! A run file as serde reads it: every field optional, nothing checked but names and types.
//!
//! Owns the names of sections and fields. May not know defaults or bounds.

use serde::Deserialize;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRun {
    pub(crate) name: Option<String>,
    pub(crate) seed: Option<i64>,
    pub(crate) model: RawModel,
    pub(crate) boundary: RawBoundary,
    pub(crate) pipeline: RawPipeline,
    pub(crate) training: RawTraining,
    pub(crate) optimizer: RawOptimizer,
    pub(crate) sync: RawSync,
    pub(crate) data: RawData,
    pub(crate) evaluation: RawEvaluation,
    pub(crate) checkpoint: RawCheckpoint,
}

/// Section `[model]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawModel {
    pub(crate) vocabulary: Option<i64>,
    pub(crate) width: Option<i64>,
    pub(crate) layers: Option<i64>,
    pub(crate) heads: Option<i64>,
    pub(crate) kv_heads: Option<i64>,
    pub(crate) ffn_width: Option<i64>,
    pub(crate) sequence_len: Option<i64>,
    pub(crate) rope_theta: Option<f64>,
    pub(crate) norm_epsilon: Option<f64>,
}

/// Section `[boundary]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawBoundary {
    pub(crate) form: Option<String>,
    pub(crate) width: Option<i64>,
    pub(crate) encoder_width: Option<i64>,
    pub(crate) wire: Option<String>,
}

/// Section `[pipeline]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawPipeline {
    pub(crate) stages: Option<i64>,
    pub(crate) stage_layers: Option<Vec<i64>>,
    pub(crate) replicas: Option<i64>,
    pub(crate) schedule: Option<String>,
    pub(crate) staleness_max: Option<i64>,
    pub(crate) microbatch_size: Option<i64>,
    pub(crate) microbatches_per_step: Option<i64>,
    pub(crate) in_flight_max: Option<i64>,
    pub(crate) retain: Option<String>,
    pub(crate) compute: Option<String>,
}

/// Section `[training]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTraining {
    pub(crate) steps: Option<i64>,
    pub(crate) warmup_steps: Option<i64>,
    pub(crate) decay: Option<String>,
    pub(crate) final_ratio: Option<f64>,
    pub(crate) gradient_clip: Option<f64>,
}

/// Section `[optimizer]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawOptimizer {
    pub(crate) kind: Option<String>,
    pub(crate) learning_rate: Option<f64>,
    pub(crate) beta1: Option<f64>,
    pub(crate) beta2: Option<f64>,
    pub(crate) epsilon: Option<f64>,
    pub(crate) weight_decay: Option<f64>,
    pub(crate) muon_learning_rate: Option<f64>,
    pub(crate) muon_momentum: Option<f64>,
}

/// Section `[sync]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawSync {
    pub(crate) inner_steps: Option<i64>,
    pub(crate) overlap: Option<bool>,
    pub(crate) delay: Option<i64>,
    pub(crate) rule: Option<String>,
    pub(crate) learning_rate: Option<f64>,
    pub(crate) momentum: Option<f64>,
    pub(crate) momentum_ramp: Option<i64>,
    pub(crate) codec: Option<String>,
    pub(crate) error_decay: Option<f64>,
}

/// Section `[data]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawData {
    pub(crate) source: Option<String>,
    pub(crate) tokens: Option<i64>,
    pub(crate) path: Option<String>,
    pub(crate) field: Option<String>,
    pub(crate) tokenizer: Option<String>,
    pub(crate) held_out_permille: Option<i64>,
}

/// Section `[evaluation]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawEvaluation {
    pub(crate) every: Option<i64>,
    pub(crate) microbatches: Option<i64>,
}

/// Section `[checkpoint]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCheckpoint {
    pub(crate) every: Option<i64>,
}
