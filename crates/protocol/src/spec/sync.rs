//! The part of the run spec that says how replicas agree.
//!
//! Owns its fields. Knows nothing of the rest of the spec.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// How the weights go on from what the replicas have learnt together (the mean pseudo-gradient D).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OuterRule {
    /// To the mean of the replicas. With one inner step, the mean is taken of the gradients, before the optimizer.
    Mean,
    /// Nesterov's momentum on D (DiLoCo, arXiv 2311.08105).
    Nesterov,
    /// Against D, at a rate, without momentum (SparseLoCo, arXiv 2508.15706).
    Plain,
}

/// How a pseudo-gradient is written for its way over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncCodec {
    /// As it is, 4 bytes a parameter.
    F32,
    /// bfloat16, 2 bytes a parameter.
    Bf16,
    /// 8 bits a parameter, with a scale for each block.
    Int8,
    /// The largest of each 64 x 64 chunk, 2 bits each with 12 bits of place (arXiv 2508.15706).
    SparseLoCo,
}

/// The outer step, at which the replicas of a stage agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SyncSpec {
    /// Inner steps between two outer steps, H.
    pub inner_steps: u32,
    /// Inner steps from the border to the cut-over, for which the exchange runs beside training; 0 waits at the border.
    pub delay: u32,
    /// The outer optimizer.
    pub rule: OuterRule,
    /// Its rate.
    pub learning_rate: f64,
    /// Its momentum.
    pub momentum: f64,
    /// Outer steps over which the momentum rises from 0.5.
    pub momentum_ramp: u32,
    /// How pseudo-gradients are written.
    pub codec: SyncCodec,
    /// What is kept, from one outer step to the next, of what was not sent.
    pub error_decay: f64,
}

impl SyncSpec {
    /// Describes an exchange in full precision to the plain mean, waited for at each border.
    pub const fn mean(inner_steps: u32) -> Self {
        Self {
            inner_steps,
            delay: 0,
            rule: OuterRule::Mean,
            learning_rate: 1.0,
            momentum: 0.0,
            momentum_ramp: 0,
            codec: SyncCodec::F32,
            error_decay: 1.0,
        }
    }
}

/// Lists the fields as people write them, with their values.
pub(crate) fn sync_fields(sync: &SyncSpec) -> Vec<(&'static str, String)> {
    let SyncSpec { inner_steps, delay, rule, learning_rate, momentum, momentum_ramp, codec, error_decay } =
        sync;
    vec![
        ("sync.inner_steps", inner_steps.to_string()),
        ("sync.delay", delay.to_string()),
        ("sync.rule", format!("{rule:?}")),
        ("sync.learning_rate", learning_rate.to_string()),
        ("sync.momentum", momentum.to_string()),
        ("sync.momentum_ramp", momentum_ramp.to_string()),
        ("sync.codec", format!("{codec:?}")),
        ("sync.error_decay", error_decay.to_string()),
    ]
}
