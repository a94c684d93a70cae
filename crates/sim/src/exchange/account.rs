//! What a ring is like, and what came of it.
//!
//! Owns the two records. Knows nothing of how a ring is run.

use crate::exchange::replica::{Guise, Standing};
use crate::exchange::trouble::Mischief;
use std::collections::BTreeMap;
use trestle_model::outer::OuterConfig;
use trestle_protocol::ids::{Digest, OuterStep, ReplicaId};
use trestle_protocol::time::{Span, Time};

/// How those who are left hear of a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// From the transport, after a moment.
    Lost,
    /// Only by asking and hearing nothing.
    Silence,
}

/// When replicas go over to what they agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cutover {
    /// They wait for it.
    AtOnce,
    /// They train on meanwhile.
    Late,
}

/// What a ring is like.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Decides all that is drawn.
    pub seed: u64,
    /// How many replicas.
    pub replicas: u16,
    /// How many outer steps.
    pub steps: u64,
    /// The arithmetic.
    pub outer: OuterConfig,
    /// The tensors of the stage.
    pub shapes: Vec<Vec<usize>>,
    /// When weights change.
    pub cutover: Cutover,
    /// How deaths are noticed.
    pub notice: Notice,
    /// Who lies, and how.
    pub guises: BTreeMap<ReplicaId, Guise>,
    /// The outer step from which on nobody lies any more.
    pub honest_from: OuterStep,
    /// What goes wrong.
    pub mischief: Mischief,
    /// Virtual time in which all must be done.
    pub time_max: Span,
}

/// What came of a ring.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RingOutcome {
    /// BLAKE3 over all messages, with their times.
    pub digest: Option<Digest>,
    /// Messages sent.
    pub messages: u64,
    /// The messages sent before each outer step was decided.
    pub sent_before: Vec<u64>,
    /// How many times the coordinator stored something.
    pub stores: u64,
    /// Who contributed to each outer step that was committed, with their weights.
    pub contributors: BTreeMap<OuterStep, Vec<(ReplicaId, u64)>>,
    /// How long each outer step took from the first replica at its border to the last that knew the decision.
    pub took: Vec<Span>,
    /// How each replica stands at the end.
    pub standings: Vec<Standing>,
    /// Outer steps that replicas restored, summed over replicas.
    pub restored: u64,
    /// Results, or votes, that differed.
    pub disagreed: u64,
    /// Contributions or results that were found flawed, and why.
    pub flawed: Vec<(ReplicaId, String)>,
    /// Messages that were refused.
    pub refused: u64,
    /// When all was done.
    pub time: Time,
}
