//! The outer step alone: the replicas of one stage and their coordinator, outer step after outer step, in virtual time, with
//! something going wrong at any message.
//!
//! Owns the way from a description of such a ring to its outcome. Knows nothing of pipelines.

pub mod account;
pub mod law;
pub mod replica;
pub mod ring;
pub mod trouble;

use crate::exchange::account::{RingConfig, RingOutcome};
use crate::exchange::law::Violation;
use crate::exchange::ring::Ring;
use std::io::Write;

/// Runs a ring to its end.
///
/// # Errors
/// The first law that is broken, or that nothing goes on.
pub fn run_ring(config: RingConfig) -> Result<RingOutcome, Violation> {
    Ring::new(config, None)?.run()
}

/// Runs a ring as [`run_ring`] does, and writes every message to `log`, for a person to read.
///
/// # Errors
/// As [`run_ring`].
pub fn run_ring_logged(config: RingConfig, log: &mut dyn Write) -> Result<RingOutcome, Violation> {
    Ring::new(config, Some(log))?.run()
}
