//! The section `[sync]`: how the replicas of a stage agree, with the defaults that follow from one another.
//!
//! Owns its bounds and defaults. May not know where the text came from.

use trestle_protocol::spec::sync::{OuterRule, SyncCodec, SyncSpec};
use trestle_protocol::spec::{CheckpointSpec, EvaluationSpec};

use crate::run_file::check::{Absent, Checker, Reals};
use crate::run_file::error::RunFileError;
use crate::run_file::raw::RawSync;

/// Rare enough that an exchange hides behind the steps, often enough that a small model does not drift apart.
const INNER_STEPS: u64 = 10;

/// One step in so many is trained on weights that lag behind what is being agreed: each costs some loss, and a fifth hides
/// most exchanges (docs/outer-quality.md).
const DELAY_SHARE: u64 = 5;

/// Outer steps over which momentum may rise.
const MOMENTUM_RAMP_MAX: u64 = 1 << 20;

/// Checks `[sync]`.
pub(crate) fn sync(check: &Checker<'_>, raw: &RawSync) -> Result<SyncSpec, RunFileError> {
    let steps_max = u64::from(u32::MAX);
    let inner_steps: u32 =
        check.whole("sync.inner_steps", raw.inner_steps, Absent::Means(INNER_STEPS), 1..=steps_max)?;
    let rules = [("mean", OuterRule::Mean), ("nesterov", OuterRule::Nesterov), ("plain", OuterRule::Plain)];
    let codecs = [
        ("f32", SyncCodec::F32),
        ("bf16", SyncCodec::Bf16),
        ("int8", SyncCodec::Int8),
        ("sparseloco", SyncCodec::SparseLoCo),
    ];
    // One inner step means that gradients are averaged, as plain data parallelism does.
    let usual = if inner_steps == 1 { SyncCodec::F32 } else { SyncCodec::Bf16 };
    let codec = check.word("sync.codec", raw.codec.as_deref(), usual, &codecs)?;
    let usual = match (inner_steps, codec) {
        (1, _) => OuterRule::Mean,
        (_, SyncCodec::SparseLoCo) => OuterRule::Plain,
        (_, SyncCodec::F32 | SyncCodec::Bf16 | SyncCodec::Int8) => OuterRule::Nesterov,
    };
    let rule = check.word("sync.rule", raw.rule.as_deref(), usual, &rules)?;
    let gradients = inner_steps == 1 && rule == OuterRule::Mean;
    if gradients && matches!(codec, SyncCodec::Int8 | SyncCodec::SparseLoCo) {
        let hint = "raise sync.inner_steps, or use bf16";
        let allowed = "\"f32\" or \"bf16\" with sync.inner_steps = 1, where gradients are exchanged";
        return Err(check.refuse(
            "sync.codec",
            format!("{codec:?}").to_lowercase(),
            allowed.into(),
            hint.into(),
        ));
    }
    let (rate, momentum) = match rule {
        OuterRule::Mean => (1.0, 0.0),
        OuterRule::Nesterov => (0.7, 0.9),
        OuterRule::Plain => (1.0, 0.0),
    };
    let decay = if codec == SyncCodec::SparseLoCo { 0.95 } else { 1.0 };
    Ok(SyncSpec {
        inner_steps,
        delay: delay(check, raw, inner_steps)?,
        rule,
        learning_rate: check.real(
            "sync.learning_rate",
            raw.learning_rate,
            Absent::Means(rate),
            Reals::Positive,
        )?,
        momentum: check.real("sync.momentum", raw.momentum, Absent::Means(momentum), Reals::Decay)?,
        momentum_ramp: check.whole(
            "sync.momentum_ramp",
            raw.momentum_ramp,
            Absent::Means(0),
            0..=MOMENTUM_RAMP_MAX,
        )?,
        codec,
        error_decay: check.real("sync.error_decay", raw.error_decay, Absent::Means(decay), Reals::Part)?,
    })
}

/// Reads for how many inner steps an exchange may go on beside training: a fifth of those between two, unless the file says
/// otherwise or forbids it.
fn delay(check: &Checker<'_>, raw: &RawSync, inner_steps: u32) -> Result<u32, RunFileError> {
    let most = u64::from(inner_steps) - 1;
    match (raw.overlap, raw.delay) {
        (Some(false), Some(delay)) if delay != 0 => {
            let hint = "remove it, or set sync.overlap to true";
            Err(check.refuse("sync.delay", delay, "nothing with sync.overlap = false".into(), hint.into()))
        }
        (Some(false), _) => Ok(0),
        (Some(true), _) if most == 0 => {
            let hint = "raise sync.inner_steps: with one, nothing can be computed beside the exchange";
            Err(check.refuse("sync.overlap", true, "false with sync.inner_steps = 1".into(), hint.into()))
        }
        (Some(true) | None, delay) => {
            let usual = u64::from(inner_steps).div_ceil(DELAY_SHARE).min(most);
            check.whole("sync.delay", delay, Absent::Means(usual), 0..=most)
        }
    }
}

/// Checks that what is evaluated and saved is what the replicas agreed on.
pub(crate) fn borders_meet(
    check: &Checker<'_>,
    sync: &SyncSpec,
    evaluation: &EvaluationSpec,
    checkpoint: &CheckpointSpec,
) -> Result<(), RunFileError> {
    let every = u64::from(sync.inner_steps);
    let fields = [("evaluation.every", evaluation.every), ("checkpoint.every", checkpoint.every)];
    for (field, value) in fields {
        if !value.is_multiple_of(every) {
            let allowed = format!("a multiple of sync.inner_steps = {every}, for there the replicas agree");
            let near = value.next_multiple_of(every);
            return Err(check.refuse(field, value, allowed, format!("for instance: --set {field}={near}")));
        }
    }
    Ok(())
}
