//! The sections of a run file that stand for themselves: each checked, with its defaults filled in.
//!
//! Owns their bounds and defaults. May not know where the text came from, nor the sections of the layout.

use trestle_protocol::spec::{
    CheckpointSpec, Decay, EvaluationSpec, OptimizerKind, OptimizerSpec, TrainingSpec,
};

use crate::run_file::check::{Absent, Checker, Reals};
use crate::run_file::error::RunFileError;
use crate::run_file::raw::{RawCheckpoint, RawData, RawEvaluation, RawOptimizer, RawTraining};

/// Beyond any run; small enough that steps times microbatches counts in 64 bits.
const STEPS_MAX: u64 = 1 << 40;

/// Evaluation is a sample of the held-out text, not a second run.
const EVALUATION_MICROBATCHES_MAX: u64 = 1 << 16;

/// Usual for models of this kind: a peak that AdamW takes at small and middle width.
const LEARNING_RATE: f64 = 1e-3;

/// Where the text is, as far as the run file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TextSource {
    /// The built-in corpus.
    Generated {
        /// Its length.
        tokens: u64,
    },
    /// A file of text, or a folder of them.
    Text {
        /// Where; may be given on the command line instead.
        path: Option<String>,
    },
    /// A file of JSON lines.
    JsonLines {
        /// Where; may be given on the command line instead.
        path: Option<String>,
        /// The field that holds the text.
        field: String,
    },
}

/// Section `[data]`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataSection {
    /// The text.
    pub(crate) source: TextSource,
    /// The path of a `tokenizer.json`; `None` for bytes.
    pub(crate) tokenizer: Option<String>,
    /// Share of the samples kept from training.
    pub(crate) held_out_permille: u32,
}

/// Checks `[training]`.
pub(crate) fn training(check: &Checker<'_>, raw: &RawTraining) -> Result<TrainingSpec, RunFileError> {
    let steps = check.whole("training.steps", raw.steps, Absent::Refused, 1..=STEPS_MAX)?;
    let warmup = Absent::Means(steps / 20);
    let decays = [("cosine", Decay::Cosine), ("constant", Decay::Constant)];
    Ok(TrainingSpec {
        steps,
        warmup_steps: check.whole("training.warmup_steps", raw.warmup_steps, warmup, 0..=steps)?,
        decay: check.word("training.decay", raw.decay.as_deref(), Decay::Cosine, &decays)?,
        final_ratio: check.real("training.final_ratio", raw.final_ratio, Absent::Means(0.1), Reals::Share)?,
        gradient_clip: check.real(
            "training.gradient_clip",
            raw.gradient_clip,
            Absent::Means(1.0),
            Reals::NotNegative,
        )?,
    })
}

/// Checks `[optimizer]`. Muon's update has the size of AdamW's (its scale is 0.2 times the root of the larger side), so
/// one learning rate serves both unless the file says otherwise.
pub(crate) fn optimizer(check: &Checker<'_>, raw: &RawOptimizer) -> Result<OptimizerSpec, RunFileError> {
    let kinds = [("adamw", OptimizerKind::AdamW), ("muon", OptimizerKind::Muon)];
    let real = |field, given, usual, allowed| check.real(field, given, Absent::Means(usual), allowed);
    let learning_rate = real("optimizer.learning_rate", raw.learning_rate, LEARNING_RATE, Reals::Positive)?;
    Ok(OptimizerSpec {
        kind: check.word("optimizer.kind", raw.kind.as_deref(), OptimizerKind::AdamW, &kinds)?,
        learning_rate,
        beta1: real("optimizer.beta1", raw.beta1, 0.9, Reals::Decay)?,
        beta2: real("optimizer.beta2", raw.beta2, 0.95, Reals::Decay)?,
        epsilon: real("optimizer.epsilon", raw.epsilon, 1e-8, Reals::Positive)?,
        weight_decay: real("optimizer.weight_decay", raw.weight_decay, 0.1, Reals::NotNegative)?,
        muon_learning_rate: real(
            "optimizer.muon_learning_rate",
            raw.muon_learning_rate,
            learning_rate,
            Reals::Positive,
        )?,
        muon_momentum: real("optimizer.muon_momentum", raw.muon_momentum, 0.95, Reals::Decay)?,
    })
}

/// Checks `[data]`.
pub(crate) fn data(check: &Checker<'_>, raw: &RawData) -> Result<DataSection, RunFileError> {
    let kinds = [("text", Kind::Text), ("jsonl", Kind::JsonLines), ("generated", Kind::Generated)];
    let kind = check.word("data.source", raw.source.as_deref(), Kind::Text, &kinds)?;
    let stray = |field, given: Option<String>, kinds: &str| match given {
        Some(value) => {
            let hint = format!("remove it, or set data.source to {kinds}");
            Err(check.refuse(field, value, format!("nothing, unless data.source is {kinds}"), hint))
        }
        None => Ok(()),
    };
    let quoted = |text: &Option<String>| text.as_ref().map(|text| format!("\"{text}\""));
    if kind != Kind::Generated {
        stray("data.tokens", raw.tokens.map(|tokens| tokens.to_string()), "\"generated\"")?;
    }
    if kind != Kind::JsonLines {
        stray("data.field", quoted(&raw.field), "\"jsonl\"")?;
    }
    let source = match kind {
        Kind::Generated => {
            stray("data.path", quoted(&raw.path), "\"text\" or \"jsonl\"")?;
            stray(
                "data.tokenizer",
                quoted(&raw.tokenizer).filter(|name| name != "\"bytes\""),
                "\"text\" or \"jsonl\"",
            )?;
            let allowed = 1..=(1 << 40);
            TextSource::Generated {
                tokens: check.whole("data.tokens", raw.tokens, Absent::Means(1_000_000), allowed)?,
            }
        }
        Kind::Text => TextSource::Text { path: raw.path.clone() },
        Kind::JsonLines => TextSource::JsonLines {
            path: raw.path.clone(),
            field: raw.field.clone().unwrap_or_else(|| "text".into()),
        },
    };
    let held_out =
        check.whole("data.held_out_permille", raw.held_out_permille, Absent::Means(50), 0..=500)?;
    let tokenizer = raw.tokenizer.clone().filter(|name| name != "bytes");
    Ok(DataSection { source, tokenizer, held_out_permille: held_out })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    JsonLines,
    Generated,
}

/// Checks `[evaluation]`, which needs text that is held out.
pub(crate) fn evaluation(
    check: &Checker<'_>,
    raw: &RawEvaluation,
    held_out_permille: u32,
) -> Result<EvaluationSpec, RunFileError> {
    let usual = if held_out_permille > 0 { 16 } else { 0 };
    let allowed = 0..=EVALUATION_MICROBATCHES_MAX;
    let field = "evaluation.microbatches";
    let microbatches: u32 = check.whole(field, raw.microbatches, Absent::Means(usual), allowed)?;
    if microbatches > 0 && held_out_permille == 0 {
        let hint = "hold some text out, such as data.held_out_permille = 50";
        return Err(check.refuse(
            field,
            microbatches,
            "0, for data.held_out_permille is 0".into(),
            hint.into(),
        ));
    }
    let every = check.whole("evaluation.every", raw.every, Absent::Means(0), 0..=STEPS_MAX)?;
    Ok(EvaluationSpec { every, microbatches })
}

/// Checks `[checkpoint]`.
pub(crate) fn checkpoint(check: &Checker<'_>, raw: &RawCheckpoint) -> Result<CheckpointSpec, RunFileError> {
    Ok(CheckpointSpec {
        every: check.whole("checkpoint.every", raw.every, Absent::Means(100), 0..=STEPS_MAX)?,
    })
}
