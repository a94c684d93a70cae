//! The sections that must fit together: the transformer, its cuts into stages, and what crosses them.
//!
//! Owns their bounds, defaults and agreement. May not know data, optimizers or where the text came from.

use trestle_protocol::spec::{BoundaryForm, BoundarySpec, Dtype, PipelineSpec, Retain, Schedule};
use trestle_protocol::wire::PAYLOAD_BYTES_MAX;

use crate::run_file::check::{Absent, Checker, Reals};
use crate::run_file::error::RunFileError;
use crate::run_file::raw::{RawBoundary, RawModel, RawPipeline};

/// Above the sizes of any model in use, and small enough that no count overflows 64 bits.
const WIDTH_MAX: u64 = 1 << 17;
const FFN_WIDTH_MAX: u64 = 1 << 20;
const LAYERS_MAX: u64 = 1 << 12;
const TOKENS_MAX: u64 = 1 << 24;

/// A microbatch beyond this does not fit a boundary message at any useful width.
const MICROBATCH_SIZE_MAX: u64 = 1 << 16;
const MICROBATCHES_PER_STEP_MAX: u64 = 1 << 16;

/// Sixteen times what fills the deepest pipeline in use (64 stages); more only ages activations.
const IN_FLIGHT_MAX: u64 = 1024;
const STALENESS_MAX: u64 = 1024;

/// The precisions and what they are called.
const DTYPES: [(&str, Dtype); 2] = [("f32", Dtype::F32), ("bf16", Dtype::Bf16)];

/// Section `[model]`, checked; the number of token ids may be left to the tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelSection {
    /// Number of token ids, if the file says.
    pub(crate) vocabulary: Option<u32>,
    /// Width of the residual stream.
    pub(crate) width: u32,
    /// Transformer blocks.
    pub(crate) layers: u32,
    /// Query heads.
    pub(crate) heads: u32,
    /// Key and value heads.
    pub(crate) kv_heads: u32,
    /// Width of the feed-forward layer.
    pub(crate) ffn_width: u32,
    /// Tokens in a sample.
    pub(crate) sequence_len: u32,
    /// Base of the rotary embedding.
    pub(crate) rope_theta: f64,
    /// Added under the root in RMSNorm.
    pub(crate) norm_epsilon: f64,
}

/// Checks `[model]`.
pub(crate) fn model(check: &Checker<'_>, raw: &RawModel) -> Result<ModelSection, RunFileError> {
    let vocabulary = match raw.vocabulary {
        Some(given) => Some(check.whole("model.vocabulary", Some(given), Absent::Refused, 2..=TOKENS_MAX)?),
        None => None,
    };
    let width: u32 = check.whole("model.width", raw.width, Absent::Refused, 2..=WIDTH_MAX)?;
    let heads: u32 = check.whole("model.heads", raw.heads, Absent::Refused, 1..=u64::from(width))?;
    let head_hint = "choose heads so that width / heads is even, usually 64 or 128";
    if !width.is_multiple_of(heads) || !(width / heads).is_multiple_of(2) {
        let allowed =
            format!("a number whose double divides model.width = {width}, for the width of a head is even");
        return Err(check.refuse("model.heads", heads, allowed, head_hint.into()));
    }
    let kv_usual = Absent::Means(u64::from(heads));
    let kv_heads: u32 = check.whole("model.kv_heads", raw.kv_heads, kv_usual, 1..=u64::from(heads))?;
    if !heads.is_multiple_of(kv_heads) {
        let hint = format!("1 and {heads} always fit; 8 is usual for large models");
        let allowed = format!("a divisor of model.heads = {heads}");
        return Err(check.refuse("model.kv_heads", kv_heads, allowed, hint));
    }
    Ok(ModelSection {
        vocabulary,
        width,
        layers: check.whole("model.layers", raw.layers, Absent::Refused, 1..=LAYERS_MAX)?,
        heads,
        kv_heads,
        ffn_width: check.whole("model.ffn_width", raw.ffn_width, Absent::Refused, 1..=FFN_WIDTH_MAX)?,
        sequence_len: check.whole("model.sequence_len", raw.sequence_len, Absent::Refused, 1..=TOKENS_MAX)?,
        rope_theta: check.real(
            "model.rope_theta",
            raw.rope_theta,
            Absent::Means(500_000.0),
            Reals::Positive,
        )?,
        norm_epsilon: check.real(
            "model.norm_epsilon",
            raw.norm_epsilon,
            Absent::Means(1e-5),
            Reals::Positive,
        )?,
    })
}

/// Checks `[boundary]`, given the number of stages and the precision of the computation.
pub(crate) fn boundary(
    check: &Checker<'_>,
    raw: &RawBoundary,
    model: &ModelSection,
    pipeline: &PipelineSpec,
) -> Result<BoundarySpec, RunFileError> {
    let forms =
        [("none", BoundaryForm::None), ("resbm", BoundaryForm::Resbm), ("fused", BoundaryForm::Fused)];
    // A model in one piece has no boundary to narrow.
    let usual = if pipeline.stage_layers.len() == 1 { BoundaryForm::None } else { BoundaryForm::Resbm };
    let form = check.word("boundary.form", raw.form.as_deref(), usual, &forms)?;
    let d = u64::from(model.width);
    let (width_usual, encoder_usual, wire_usual) = match form {
        // The whole hidden state in the precision it has: the run equals the unsplit model.
        BoundaryForm::None => (d, d, pipeline.compute),
        BoundaryForm::Resbm => ((d / 8).max(1), (d / 4).max(1), Dtype::Bf16),
        BoundaryForm::Fused => ((d / 8).max(1), d, Dtype::Bf16),
    };
    let width: u32 = check.whole("boundary.width", raw.width, Absent::Means(width_usual), 1..=WIDTH_MAX)?;
    let refuse_width = |allowed, hint: String| Err(check.refuse("boundary.width", width, allowed, hint));
    if width > model.width {
        return refuse_width(
            format!("at most model.width = {d}"),
            format!("a boundary narrows the model: try {width_usual}"),
        );
    }
    if form == BoundaryForm::None && width != model.width {
        let hint =
            "leave boundary.width out, or set boundary.form to \"resbm\" or \"fused\" for a narrow cut";
        return refuse_width(format!("model.width = {d} with boundary.form \"none\""), hint.into());
    }
    let spec = BoundarySpec {
        form,
        width,
        encoder_width: check.whole(
            "boundary.encoder_width",
            raw.encoder_width,
            Absent::Means(encoder_usual),
            1..=FFN_WIDTH_MAX,
        )?,
        wire: check.word("boundary.wire", raw.wire.as_deref(), wire_usual, &DTYPES)?,
    };
    message_fits(check, model, pipeline, &spec)?;
    Ok(spec)
}

/// A microbatch's boundary tensor is one message, and the wire bounds a message.
fn message_fits(
    check: &Checker<'_>,
    model: &ModelSection,
    pipeline: &PipelineSpec,
    boundary: &BoundarySpec,
) -> Result<(), RunFileError> {
    let sample_bytes =
        u64::from(model.sequence_len) * u64::from(boundary.width) * boundary.wire.bytes() as u64;
    let fits = PAYLOAD_BYTES_MAX as u64 / sample_bytes;
    if u64::from(pipeline.microbatch_size) <= fits {
        return Ok(());
    }
    let allowed = format!(
        "at most {fits}, for a boundary message holds {PAYLOAD_BYTES_MAX} bytes and one sample takes {sample_bytes}"
    );
    let hint = "lower pipeline.microbatch_size, model.sequence_len or boundary.width";
    Err(check.refuse("pipeline.microbatch_size", pipeline.microbatch_size, allowed, hint.into()))
}

/// Checks `[pipeline]`, given the number of layers.
pub(crate) fn pipeline(
    check: &Checker<'_>,
    raw: &RawPipeline,
    layers: u32,
) -> Result<PipelineSpec, RunFileError> {
    let stage_layers = stage_layers(check, raw, layers)?;
    let replicas: u16 =
        check.whole("pipeline.replicas", raw.replicas, Absent::Means(1), 1..=u64::from(u16::MAX))?;
    let whole = |field, given, usual, most| -> Result<u32, RunFileError> {
        check.whole(field, given, Absent::Means(usual), 1..=most)
    };
    let per_step = raw.microbatches_per_step;
    let microbatches_per_step =
        whole("pipeline.microbatches_per_step", per_step, 4, MICROBATCHES_PER_STEP_MAX)?;
    // As many as stages keep every stage busy; one more hides a message on its way.
    let in_flight_usual = (stage_layers.len() as u64 + 1).min(IN_FLIGHT_MAX);
    let in_flight_max = whole("pipeline.in_flight_max", raw.in_flight_max, in_flight_usual, IN_FLIGHT_MAX)?;
    let retains = [("graph", Retain::Graph), ("input", Retain::Input)];
    Ok(PipelineSpec {
        stage_layers,
        replicas,
        schedule: schedule(check, raw, in_flight_max, microbatches_per_step)?,
        microbatch_size: whole("pipeline.microbatch_size", raw.microbatch_size, 4, MICROBATCH_SIZE_MAX)?,
        microbatches_per_step,
        in_flight_max,
        retain: check.word("pipeline.retain", raw.retain.as_deref(), Retain::Graph, &retains)?,
        compute: check.word("pipeline.compute", raw.compute.as_deref(), Dtype::F32, &DTYPES)?,
    })
}

fn schedule(
    check: &Checker<'_>,
    raw: &RawPipeline,
    in_flight_max: u32,
    microbatches_per_step: u32,
) -> Result<Schedule, RunFileError> {
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Flush,
        Async,
    }
    let kinds = [("flush", Kind::Flush), ("async", Kind::Async)];
    let field = "pipeline.staleness_max";
    match (check.word("pipeline.schedule", raw.schedule.as_deref(), Kind::Flush, &kinds)?, raw.staleness_max)
    {
        (Kind::Flush, None) => Ok(Schedule::Flush),
        (Kind::Flush, Some(given)) => {
            let hint = "remove it, or set pipeline.schedule to \"async\"";
            Err(check.refuse(field, given, "nothing with pipeline.schedule \"flush\"".into(), hint.into()))
        }
        (Kind::Async, given) => {
            // A full pipeline reaches this many steps ahead, so this is the least that never makes it wait.
            let usual = u64::from(in_flight_max.div_ceil(microbatches_per_step));
            let staleness_max = check.whole(field, given, Absent::Means(usual), 1..=STALENESS_MAX)?;
            Ok(Schedule::Async { staleness_max })
        }
    }
}

/// Reads the layers of each stage, or shares the layers out over a number of stages: the first ones get what is left
/// over, since the last one holds the head as well.
fn stage_layers(check: &Checker<'_>, raw: &RawPipeline, layers: u32) -> Result<Vec<u32>, RunFileError> {
    let Some(given) = &raw.stage_layers else {
        let stages: u32 =
            check.whole("pipeline.stages", raw.stages, Absent::Means(1), 1..=u64::from(layers))?;
        return Ok((0..stages).map(|stage| layers / stages + u32::from(stage < layers % stages)).collect());
    };
    let field = "pipeline.stage_layers";
    let shown = format!("{given:?}");
    if raw.stages.is_some_and(|stages| stages != given.len() as i64) {
        let stages = raw.stages.unwrap_or_default();
        let allowed = format!("one entry for each of pipeline.stages = {stages}");
        return Err(check.refuse(field, shown, allowed, "say either stages or stage_layers".into()));
    }
    let counted: Option<Vec<u32>> =
        given.iter().map(|&count| u32::try_from(count).ok().filter(|count| *count > 0)).collect();
    let sum = |counted: &Vec<u32>| counted.iter().map(|&count| u64::from(count)).sum::<u64>();
    match counted {
        Some(counted) if sum(&counted) == u64::from(layers) => Ok(counted),
        Some(counted) => {
            let allowed =
                format!("numbers that add up to model.layers = {layers} (these make {})", sum(&counted));
            let hint = format!(
                "try `stages = {}` instead, which shares the layers out evenly",
                counted.len().max(1)
            );
            Err(check.refuse(field, shown, allowed, hint))
        }
        None => {
            let hint = "every stage holds at least one layer";
            Err(check.refuse(field, shown, "whole numbers above 0".into(), hint.into()))
        }
    }
}
