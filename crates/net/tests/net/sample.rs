//! A run spec for those who need any.

use trestle_protocol::ids::Digest;
use trestle_protocol::spec::sync::SyncSpec;
use trestle_protocol::spec::{
    BoundaryForm, BoundarySpec, CheckpointSpec, DataSource, DataSpec, Decay, Dtype, EvaluationSpec,
    ModelSpec, OptimizerKind, OptimizerSpec, PipelineSpec, Retain, RunSpec, Schedule, Tokenizer,
    TrainingSpec,
};

pub(crate) fn spec() -> RunSpec {
    RunSpec {
        name: "net".to_owned(),
        seed: 7,
        model: ModelSpec {
            vocabulary: 256,
            width: 64,
            layers: 4,
            heads: 4,
            kv_heads: 2,
            ffn_width: 160,
            sequence_len: 32,
            rope_theta: 10_000.0,
            norm_epsilon: 1e-5,
        },
        boundary: BoundarySpec { form: BoundaryForm::None, width: 64, encoder_width: 16, wire: Dtype::Bf16 },
        pipeline: PipelineSpec {
            stage_layers: vec![2, 2],
            replicas: 1,
            schedule: Schedule::Flush,
            microbatch_size: 2,
            microbatches_per_step: 4,
            in_flight_max: 2,
            retain: Retain::Graph,
            compute: Dtype::F32,
        },
        training: TrainingSpec {
            steps: 10,
            warmup_steps: 1,
            decay: Decay::Cosine,
            final_ratio: 0.1,
            gradient_clip: 1.0,
        },
        optimizer: OptimizerSpec {
            kind: OptimizerKind::AdamW,
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            muon_learning_rate: 0.02,
            muon_momentum: 0.95,
        },
        sync: SyncSpec::mean(1),
        data: DataSpec {
            source: DataSource::Generated { tokens: 10_000 },
            tokenizer: Tokenizer::Bytes,
            held_out_permille: 50,
            manifest: Digest([3; 32]),
        },
        evaluation: EvaluationSpec { every: 0, microbatches: 2 },
        checkpoint: CheckpointSpec { every: 0 },
    }
}
