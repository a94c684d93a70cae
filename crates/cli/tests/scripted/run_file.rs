//! The run file of a script's run, for processes.
//!
//! Owns the fields that scripts set; what they set otherwise is seen when the run specs are compared.

use trestle_protocol::spec::{BoundarySpec, ModelSpec, PipelineSpec, RunSpec, TrainingSpec};

/// Writes the run file from which `trestle` makes this run spec.
pub(crate) fn run_file(spec: &RunSpec) -> String {
    let RunSpec { name, seed, .. } = spec;
    let ModelSpec { vocabulary, width, layers, heads, kv_heads, ffn_width, sequence_len, rope_theta, .. } =
        spec.model;
    let BoundarySpec { width: boundary_width, encoder_width, .. } = spec.boundary;
    let PipelineSpec { replicas, microbatch_size, microbatches_per_step, in_flight_max, .. } = spec.pipeline;
    let (stages, inner_steps, delay) = (spec.stages(), spec.sync.inner_steps, spec.sync.delay);
    let TrainingSpec { steps, warmup_steps, final_ratio, .. } = spec.training;
    let learning_rate = spec.optimizer.learning_rate;
    format!(
        r#"
name = "{name}"
seed = {seed}

[model]
vocabulary = {vocabulary}
width = {width}
layers = {layers}
heads = {heads}
kv_heads = {kv_heads}
ffn_width = {ffn_width}
sequence_len = {sequence_len}
rope_theta = {rope_theta:?}

[boundary]
width = {boundary_width}
encoder_width = {encoder_width}

[pipeline]
stages = {stages}
replicas = {replicas}
microbatch_size = {microbatch_size}
microbatches_per_step = {microbatches_per_step}
in_flight_max = {in_flight_max}

[training]
steps = {steps}
warmup_steps = {warmup_steps}
decay = "constant"
final_ratio = {final_ratio:?}

[optimizer]
learning_rate = {learning_rate:?}

[sync]
inner_steps = {inner_steps}
delay = {delay}
rule = "mean"
codec = "f32"

[data]
source = "generated"
tokens = 100_000

[evaluation]
every = 0
microbatches = 0

[checkpoint]
every = 0
"#
    )
}
