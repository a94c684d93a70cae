//! The model and the engine of a run.
//!
//! Owns the translation. Decides nothing: every value is the run spec's.

use trestle_model::config::{BoundaryForm, Dtype, ModelConfig, Retain};
use trestle_model::device::DeviceKind;
use trestle_model::engine::EngineConfig;
use trestle_model::optimizer::config::{OptimizerConfig, OptimizerKind};
use trestle_model::outer::{CodecKind, Exchanged, OuterConfig, Ramp, Rule};
use trestle_model::schedule::{ScheduleConfig, ScheduleKind};
use trestle_protocol::agenda::{Agenda, Exchanges};
use trestle_protocol::spec::sync::{OuterRule, SyncCodec};
use trestle_protocol::spec::{self, RunSpec};

/// Gives the shape of a run's model.
pub fn model_config(spec: &RunSpec) -> ModelConfig {
    let model = &spec.model;
    ModelConfig {
        vocabulary: model.vocabulary as usize,
        width: model.width as usize,
        layers: model.layers as usize,
        heads: model.heads as usize,
        kv_heads: model.kv_heads as usize,
        ffn_width: model.ffn_width as usize,
        sequence_len: model.sequence_len as usize,
        rope_theta: model.rope_theta,
        norm_epsilon: model.norm_epsilon,
        boundary: match spec.boundary.form {
            spec::BoundaryForm::None => BoundaryForm::None,
            spec::BoundaryForm::Resbm => BoundaryForm::Resbm,
            spec::BoundaryForm::Fused => BoundaryForm::Fused,
        },
        boundary_width: spec.boundary.width as usize,
        encoder_width: spec.boundary.encoder_width as usize,
        stage_layers: spec.pipeline.stage_layers.iter().map(|n| *n as usize).collect(),
        wire: dtype(spec.boundary.wire),
    }
}

/// Gives the engine of some stages of a run.
pub fn engine_config(spec: &RunSpec, held: std::ops::Range<usize>, device: DeviceKind) -> EngineConfig {
    let training = &spec.training;
    EngineConfig {
        model: model_config(spec),
        held,
        microbatch_size: spec.pipeline.microbatch_size as usize,
        compute: dtype(spec.pipeline.compute),
        retain: match spec.pipeline.retain {
            spec::Retain::Graph => Retain::Graph,
            spec::Retain::Input => Retain::Input,
        },
        optimizer: optimizer_config(spec),
        schedule: ScheduleConfig {
            kind: match training.decay {
                spec::Decay::Constant => ScheduleKind::Constant,
                spec::Decay::Cosine => ScheduleKind::Cosine,
            },
            warmup_steps: training.warmup_steps,
            steps: training.steps,
            floor: training.final_ratio,
        },
        clip: (training.gradient_clip > 0.0).then_some(training.gradient_clip),
        seed: spec.seed,
        device,
    }
}

fn optimizer_config(spec: &RunSpec) -> OptimizerConfig {
    let optimizer = &spec.optimizer;
    OptimizerConfig {
        kind: match optimizer.kind {
            spec::OptimizerKind::AdamW => OptimizerKind::AdamW,
            spec::OptimizerKind::Muon => OptimizerKind::Muon,
        },
        learning_rate: optimizer.learning_rate,
        beta1: optimizer.beta1,
        beta2: optimizer.beta2,
        epsilon: optimizer.epsilon,
        weight_decay: optimizer.weight_decay,
        muon_learning_rate: Some(optimizer.muon_learning_rate),
        muon_momentum: optimizer.muon_momentum,
        muon_dtype: dtype(spec.pipeline.compute),
    }
}

/// The momentum from which it rises, where it does.
const MOMENTUM_RAMP_FROM: f64 = 0.5;

/// Gives the arithmetic of a run's outer steps; `None` where each stage has one replica.
pub fn outer_config(spec: &RunSpec) -> Option<OuterConfig> {
    let exchanged = match Agenda::new(spec).exchanges() {
        Exchanges::Nothing => return None,
        Exchanges::Gradients => Exchanged::Gradients,
        Exchanges::PseudoGradients => Exchanged::Weights,
    };
    let sync = &spec.sync;
    let steps = u64::from(sync.momentum_ramp);
    Some(OuterConfig {
        rule: match sync.rule {
            OuterRule::Mean => Rule::Mean,
            OuterRule::Nesterov => Rule::Nesterov {
                learning_rate: sync.learning_rate,
                momentum: sync.momentum,
                ramp: (steps > 0).then_some(Ramp { from: MOMENTUM_RAMP_FROM, steps }),
            },
            OuterRule::Plain => Rule::Plain { learning_rate: sync.learning_rate },
        },
        codec: match sync.codec {
            SyncCodec::F32 => CodecKind::F32,
            SyncCodec::Bf16 => CodecKind::Bf16,
            SyncCodec::Int8 => CodecKind::Int8,
            SyncCodec::SparseLoCo => CodecKind::SparseLoCo,
        },
        exchanged,
        error_decay: sync.error_decay,
    })
}

/// Translates a number format.
pub fn dtype(dtype: spec::Dtype) -> Dtype {
    match dtype {
        spec::Dtype::F32 => Dtype::F32,
        spec::Dtype::Bf16 => Dtype::Bf16,
    }
}
