//! What a scenario does to a running swarm, and when.
//!
//! Owns the vocabulary. Knows nothing of how a swarm is run.

use trestle_protocol::plan::Place;
use trestle_protocol::time::Span;

/// Something that is done to a swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operator asks for the end at the next border.
    Drain,
    /// Every peer dies at once; only what is durable stays.
    Crash,
    /// One worker dies.
    Kill {
        /// What it holds, or the one that asked for it in that turn.
        place: Place,
    },
}

/// When something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So long after the peers start.
    After(Span),
    /// When so many inner steps of the run are complete.
    Steps(u64),
}

/// The faults of one running of the swarm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// What is done, and when.
    pub planned: Vec<(When, Fault)>,
    /// A stranger who is connected to everyone sends something wrong this often.
    pub stranger_every: Option<Span>,
}

impl Faults {
    /// Returns what is due when `steps` inner steps are complete.
    pub fn at_steps(&self, steps: u64) -> impl Iterator<Item = Fault> + '_ {
        self.planned.iter().filter(move |(when, _)| *when == When::Steps(steps)).map(|(_, fault)| *fault)
    }

    /// Returns what is done at given times after the start.
    pub fn timed(&self) -> impl Iterator<Item = (Span, Fault)> + '_ {
        self.planned.iter().filter_map(|(when, fault)| match when {
            When::After(span) => Some((*span, *fault)),
            When::Steps(_) => None,
        })
    }
}
