//! The run spec: everything that all peers of a run must agree on, parsed once at the edge and never checked again.
//!
//! Owns the fields, their digest and the search for the first difference. Knows nothing of files, TOML or flags.

use crate::ids::{Digest, StageId};
use crate::spec::sync::{SyncSpec, sync_fields};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

pub mod sync;

/// Everything that all peers of a run agree on; its digest names the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// What people call the run.
    pub name: String,
    /// The seed of the weights and of the sample order.
    pub seed: u64,
    /// The transformer.
    pub model: ModelSpec,
    /// What crosses between stages.
    pub boundary: BoundarySpec,
    /// How the layers and microbatches are laid out.
    pub pipeline: PipelineSpec,
    /// How long, and at what rate.
    pub training: TrainingSpec,
    /// The inner optimizer.
    pub optimizer: OptimizerSpec,
    /// The outer step.
    pub sync: SyncSpec,
    /// What is learnt from.
    pub data: DataSpec,
    /// When the held-out loss is taken.
    pub evaluation: EvaluationSpec,
    /// When the run is made durable.
    pub checkpoint: CheckpointSpec,
}

/// The shape of the transformer (Llama style: RMSNorm, RoPE, grouped-query attention, SwiGLU, untied head).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Number of token ids.
    pub vocabulary: u32,
    /// Width of the residual stream, d.
    pub width: u32,
    /// Number of transformer blocks, all stages together.
    pub layers: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of the feed-forward layer, F.
    pub ffn_width: u32,
    /// Tokens in a sample.
    pub sequence_len: u32,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Added under the root in RMSNorm.
    pub norm_epsilon: f64,
}

/// What kind of bottleneck stands at a stage boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BoundaryForm {
    /// The residual stream itself; k = d.
    None,
    /// An encoder and a decoder beside a truncating identity path (arXiv 2604.11947).
    Resbm,
    /// The same bottleneck fused into the blocks on both sides.
    Fused,
}

/// A number format of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE single precision, 4 bytes.
    F32,
    /// bfloat16, 2 bytes.
    Bf16,
}

impl Dtype {
    /// Returns the size of one number, in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }
}

/// The tensor that crosses between two stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoundarySpec {
    /// The form of the bottleneck.
    pub form: BoundaryForm,
    /// Width on the wire, k.
    pub width: u32,
    /// Width of the hidden layer of encoder and decoder, m.
    pub encoder_width: u32,
    /// Number format on the wire.
    pub wire: Dtype,
}

/// When weights change relative to the microbatches in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Schedule {
    /// All microbatches of an inner step drain before the optimizer step; equals unpipelined training.
    Flush,
    /// No drain: a forward may use weights up to `staleness_max` steps behind its own step.
    Async {
        /// Largest distance, in inner steps, between a microbatch's step and the weights of its forward.
        staleness_max: u32,
    },
}

/// What a stage keeps of a forward until its backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retain {
    /// The autograd graph: faster, by a third of the operations.
    Graph,
    /// Only the boundary input, from which the forward is run again.
    Input,
}

/// How layers and microbatches are laid out over peers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PipelineSpec {
    /// Layers of each stage; the sum is the model's, and there is a boundary between each two.
    pub stage_layers: Vec<u32>,
    /// Peers that hold the same stage.
    pub replicas: u16,
    /// The schedule.
    pub schedule: Schedule,
    /// Samples in a microbatch.
    pub microbatch_size: u32,
    /// Microbatches in an inner step of one replica.
    pub microbatches_per_step: u32,
    /// Training microbatches that may be between their first forward and their last backward.
    pub in_flight_max: u32,
    /// What a stage keeps for the backward.
    pub retain: Retain,
    /// Number format of the computation; the master weights are f32.
    pub compute: Dtype,
}

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decay {
    /// Stays.
    Constant,
    /// Falls along half a cosine to `final_ratio`.
    Cosine,
}

/// How long a run is, and its learning-rate schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingSpec {
    /// Inner steps in the run.
    pub steps: u64,
    /// Steps over which the rate rises from 0.
    pub warmup_steps: u64,
    /// What follows.
    pub decay: Decay,
    /// The last rate over the highest.
    pub final_ratio: f64,
    /// Largest gradient norm of the whole model; 0 does not clip.
    pub gradient_clip: f64,
}

/// The inner optimizer's rule for hidden matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OptimizerKind {
    /// AdamW for every parameter.
    AdamW,
    /// Muon for two-dimensional hidden matrices, AdamW for the rest.
    Muon,
}

/// The inner optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerSpec {
    /// The rule.
    pub kind: OptimizerKind,
    /// Highest rate of AdamW.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Highest rate of Muon.
    pub muon_learning_rate: f64,
    /// Momentum of Muon.
    pub muon_momentum: f64,
}

/// Where the text comes from, as far as peers must agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DataSource {
    /// The built-in generated corpus; every peer makes it itself.
    Generated {
        /// Tokens in the corpus.
        tokens: u64,
    },
    /// Text that each peer that reads tokens has on its own disk; the manifest's digest says it is the same.
    Local,
}

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tokenizer {
    /// One token a byte.
    Bytes,
    /// A Hugging Face `tokenizer.json`, whose digest the manifest holds.
    File,
}

/// What is learnt from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataSpec {
    /// Where the text comes from.
    pub source: DataSource,
    /// How it becomes tokens.
    pub tokenizer: Tokenizer,
    /// Share of the samples held out of training, in thousandths.
    pub held_out_permille: u32,
    /// Digest of the data manifest.
    pub manifest: Digest,
}

/// When the held-out loss is taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationSpec {
    /// Inner steps between two evaluations; 0 evaluates at the end only.
    pub every: u64,
    /// Microbatches in an evaluation; 0 never evaluates.
    pub microbatches: u32,
}

/// When the run is made durable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointSpec {
    /// Inner steps between two checkpoints; 0 saves at the end only.
    pub every: u64,
}

impl RunSpec {
    /// Returns an upper bound of the bytes of a stage's weights in f32: its blocks (arXiv 2302.13971, section 2.2), an
    /// embedding and a head, and boundaries of any form.
    pub fn stage_bytes(&self, stage: StageId) -> u64 {
        let model = &self.model;
        let layers = self.pipeline.stage_layers.get(usize::from(stage.0)).copied().unwrap_or(0);
        let (width, ffn) = (u64::from(model.width), u64::from(model.ffn_width));
        let block = 4 * width * width + 3 * width * ffn + 8 * width;
        let inner = width + u64::from(self.boundary.width) + u64::from(self.boundary.encoder_width);
        let ends = 2 * u64::from(model.vocabulary) * width + 16 * inner * inner;
        4 * (u64::from(layers) * block + ends)
    }

    /// Returns the digest that names the run: BLAKE3 of the spec's wire form.
    pub fn digest(&self) -> Digest {
        Digest::of(&postcard::to_allocvec(self).expect("a spec of plain fields always serialises"))
    }

    /// Returns the number of stages.
    pub fn stages(&self) -> u16 {
        self.pipeline.stage_layers.len() as u16
    }

    /// Returns the tokens of one microbatch.
    pub fn microbatch_tokens(&self) -> u64 {
        u64::from(self.pipeline.microbatch_size) * u64::from(self.model.sequence_len)
    }

    /// Returns the tokens of one inner step, over all replicas.
    pub fn step_tokens(&self) -> u64 {
        self.microbatch_tokens()
            * u64::from(self.pipeline.microbatches_per_step)
            * u64::from(self.pipeline.replicas)
    }

    /// Returns the bytes of one boundary message: microbatch x sequence x k numbers.
    pub fn boundary_bytes(&self) -> usize {
        self.microbatch_tokens() as usize * self.boundary.width as usize * self.boundary.wire.bytes()
    }

    /// Lists every field as people write it in a run file, with its value.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let RunSpec {
            name,
            seed,
            model,
            boundary,
            pipeline,
            training,
            optimizer,
            sync,
            data,
            evaluation,
            checkpoint,
        } = self;
        let mut fields = vec![("name", name.clone()), ("seed", seed.to_string())];
        fields.extend(model_fields(model));
        fields.extend(boundary_fields(boundary));
        fields.extend(pipeline_fields(pipeline));
        fields.extend(training_fields(training));
        fields.extend(optimizer_fields(optimizer));
        fields.extend(sync_fields(sync));
        fields.extend(data_fields(data));
        let EvaluationSpec { every, microbatches } = evaluation;
        fields.push(("evaluation.every", every.to_string()));
        fields.push(("evaluation.microbatches", microbatches.to_string()));
        let CheckpointSpec { every } = checkpoint;
        fields.push(("checkpoint.every", every.to_string()));
        fields
    }

    /// Finds the first field, in the order of the run file, in which another spec differs from this one.
    pub fn first_difference(&self, other: &RunSpec) -> Option<Difference> {
        let mine = self.fields();
        let theirs = other.fields();
        mine.into_iter()
            .zip(theirs)
            .find(|((_, a), (_, b))| a != b)
            .map(|((field, ours), (_, theirs))| Difference { field: field.to_string(), ours, theirs })
    }
}

/// The first field in which two run specs differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The field, as written in a run file.
    pub field: String,
    /// The value of the peer that compares.
    pub ours: String,
    /// The value of the other peer.
    pub theirs: String,
}

fn model_fields(model: &ModelSpec) -> Vec<(&'static str, String)> {
    let ModelSpec {
        vocabulary,
        width,
        layers,
        heads,
        kv_heads,
        ffn_width,
        sequence_len,
        rope_theta,
        norm_epsilon,
    } = model;
    vec![
        ("model.vocabulary", vocabulary.to_string()),
        ("model.width", width.to_string()),
        ("model.layers", layers.to_string()),
        ("model.heads", heads.to_string()),
        ("model.kv_heads", kv_heads.to_string()),
        ("model.ffn_width", ffn_width.to_string()),
        ("model.sequence_len", sequence_len.to_string()),
        ("model.rope_theta", rope_theta.to_string()),
        ("model.norm_epsilon", norm_epsilon.to_string()),
    ]
}

fn boundary_fields(boundary: &BoundarySpec) -> Vec<(&'static str, String)> {
    let BoundarySpec { form, width, encoder_width, wire } = boundary;
    vec![
        ("boundary.form", format!("{form:?}")),
        ("boundary.width", width.to_string()),
        ("boundary.encoder_width", encoder_width.to_string()),
        ("boundary.wire", format!("{wire:?}")),
    ]
}

fn pipeline_fields(pipeline: &PipelineSpec) -> Vec<(&'static str, String)> {
    let PipelineSpec {
        stage_layers,
        replicas,
        schedule,
        microbatch_size,
        microbatches_per_step,
        in_flight_max,
        retain,
        compute,
    } = pipeline;
    vec![
        ("pipeline.stage_layers", format!("{stage_layers:?}")),
        ("pipeline.replicas", replicas.to_string()),
        ("pipeline.schedule", format!("{schedule:?}")),
        ("pipeline.microbatch_size", microbatch_size.to_string()),
        ("pipeline.microbatches_per_step", microbatches_per_step.to_string()),
        ("pipeline.in_flight_max", in_flight_max.to_string()),
        ("pipeline.retain", format!("{retain:?}")),
        ("pipeline.compute", format!("{compute:?}")),
    ]
}

fn training_fields(training: &TrainingSpec) -> Vec<(&'static str, String)> {
    let TrainingSpec { steps, warmup_steps, decay, final_ratio, gradient_clip } = training;
    vec![
        ("training.steps", steps.to_string()),
        ("training.warmup_steps", warmup_steps.to_string()),
        ("training.decay", format!("{decay:?}")),
        ("training.final_ratio", final_ratio.to_string()),
        ("training.gradient_clip", gradient_clip.to_string()),
    ]
}

fn optimizer_fields(optimizer: &OptimizerSpec) -> Vec<(&'static str, String)> {
    let OptimizerSpec {
        kind,
        learning_rate,
        beta1,
        beta2,
        epsilon,
        weight_decay,
        muon_learning_rate,
        muon_momentum,
    } = optimizer;
    vec![
        ("optimizer.kind", format!("{kind:?}")),
        ("optimizer.learning_rate", learning_rate.to_string()),
        ("optimizer.beta1", beta1.to_string()),
        ("optimizer.beta2", beta2.to_string()),
        ("optimizer.epsilon", epsilon.to_string()),
        ("optimizer.weight_decay", weight_decay.to_string()),
        ("optimizer.muon_learning_rate", muon_learning_rate.to_string()),
        ("optimizer.muon_momentum", muon_momentum.to_string()),
    ]
}

fn data_fields(data: &DataSpec) -> Vec<(&'static str, String)> {
    let DataSpec { source, tokenizer, held_out_permille, manifest } = data;
    vec![
        ("data.source", format!("{source:?}")),
        ("data.tokenizer", format!("{tokenizer:?}")),
        ("data.held_out_permille", held_out_permille.to_string()),
        ("data.manifest", manifest.to_hex()),
    ]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Three stages, two steps of four microbatches, one evaluation of two at the end.
    pub(crate) fn spec() -> RunSpec {
        RunSpec {
            name: "test".into(),
            seed: 1,
            model: ModelSpec {
                vocabulary: 16,
                width: 8,
                layers: 3,
                heads: 2,
                kv_heads: 1,
                ffn_width: 16,
                sequence_len: 4,
                rope_theta: 10_000.0,
                norm_epsilon: 1e-5,
            },
            boundary: BoundarySpec {
                form: BoundaryForm::Resbm,
                width: 4,
                encoder_width: 4,
                wire: Dtype::Bf16,
            },
            pipeline: PipelineSpec {
                stage_layers: vec![1, 1, 1],
                replicas: 1,
                schedule: Schedule::Flush,
                microbatch_size: 2,
                microbatches_per_step: 4,
                in_flight_max: 3,
                retain: Retain::Input,
                compute: Dtype::F32,
            },
            training: TrainingSpec {
                steps: 2,
                warmup_steps: 0,
                decay: Decay::Constant,
                final_ratio: 1.0,
                gradient_clip: 1.0,
            },
            optimizer: OptimizerSpec {
                kind: OptimizerKind::AdamW,
                learning_rate: 1e-3,
                beta1: 0.9,
                beta2: 0.95,
                epsilon: 1e-8,
                weight_decay: 0.1,
                muon_learning_rate: 1e-2,
                muon_momentum: 0.95,
            },
            sync: SyncSpec::mean(10),
            data: DataSpec {
                source: DataSource::Generated { tokens: 1000 },
                tokenizer: Tokenizer::Bytes,
                held_out_permille: 50,
                manifest: Digest([0; 32]),
            },
            evaluation: EvaluationSpec { every: 0, microbatches: 2 },
            checkpoint: CheckpointSpec { every: 0 },
        }
    }

    #[test]
    fn a_boundary_message_is_microbatch_times_sequence_times_k() {
        assert_eq!(spec().boundary_bytes(), 2 * 4 * 4 * 2);
    }

    #[test]
    fn the_first_difference_is_named_in_the_order_of_the_run_file() {
        let ours = spec();
        let mut theirs = spec();
        theirs.checkpoint.every = 9;
        theirs.boundary.width = 2;
        let difference = ours.first_difference(&theirs).unwrap();
        assert_eq!(
            (difference.field.as_str(), difference.ours.as_str(), difference.theirs.as_str()),
            ("boundary.width", "4", "2")
        );
        assert_eq!(ours.first_difference(&ours.clone()), None);
    }

    #[test]
    fn every_field_is_listed_and_changes_the_digest() {
        let changes: [fn(&mut RunSpec); 12] = [
            |s| s.name.push('x'),
            |s| s.seed += 1,
            |s| s.model.rope_theta += 1.0,
            |s| s.boundary.form = BoundaryForm::Fused,
            |s| s.boundary.wire = Dtype::F32,
            |s| s.pipeline.schedule = Schedule::Async { staleness_max: 1 },
            |s| s.pipeline.retain = Retain::Graph,
            |s| s.training.decay = Decay::Cosine,
            |s| s.optimizer.kind = OptimizerKind::Muon,
            |s| s.sync.inner_steps += 1,
            |s| s.data.source = DataSource::Local,
            |s| s.evaluation.microbatches += 1,
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut other = spec();
            change(&mut other);
            assert_ne!(spec().digest(), other.digest(), "change {i}");
            assert!(spec().first_difference(&other).is_some(), "change {i}");
        }
    }
}
