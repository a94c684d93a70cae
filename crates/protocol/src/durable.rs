//! The coordinator's durable state: the little that must survive it.
//!
//! Owns its form, and the check of what was stored. Knows nothing of where it is stored.

use crate::agenda::Agenda;
use crate::ids::{Digest, InnerStep, ReplicaId, StageId};
use crate::plan::Place;
use crate::spec::RunSpec;
use crate::sync::arbiter::Committed;
use alloc::vec::Vec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The state that survives the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Durable {
    pub(crate) run: Digest,
    pub(crate) checkpoint: Option<Checkpoint>,
    /// The last outer step that was committed, with the quantities that all replicas share after it.
    pub(crate) agreed: Option<Committed>,
}

/// A set of checkpoints, one of each place, that belong together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) step: InnerStep,
    pub(crate) digests: Vec<(Place, Digest)>,
}

impl Checkpoint {
    /// Says whether it is one of a run: within its steps, and with a digest for every place.
    fn fits(&self, spec: &RunSpec) -> bool {
        let stages = (0..spec.stages()).map(StageId);
        let replicas = spec.pipeline.replicas;
        let mut places = stages
            .flat_map(|stage| (0..replicas).map(move |replica| Place { stage, replica: ReplicaId(replica) }));
        self.step.0 <= spec.training.steps && places.all(|place| self.digest_at(place).is_some())
    }

    /// Returns the digest of a place's checkpoint.
    pub(crate) fn digest_at(&self, place: Place) -> Option<Digest> {
        self.digests.iter().find(|(at, _)| *at == place).map(|(_, digest)| *digest)
    }
}

/// Why a stored state cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The bytes are not a coordinator's state.
    #[error("stored coordinator state is not readable ({bytes} bytes)")]
    Unreadable {
        /// How many bytes there were.
        bytes: usize,
    },
    /// It is the state of another run.
    #[error("stored coordinator state is of run {stored}, the run file gives {ours}")]
    OtherRun {
        /// The digest in the state.
        stored: Digest,
        /// The digest of the spec.
        ours: Digest,
    },
}

impl Durable {
    /// Reads what was stored last; `None` is a run that has stored nothing yet.
    ///
    /// Outer steps that were committed after the last checkpoint are forgotten with the inner steps that led to them: the
    /// run repeats both.
    pub(crate) fn read(spec: &RunSpec, state: Option<&[u8]>) -> Result<Self, StateError> {
        let run = spec.digest();
        let Some(bytes) = state else { return Ok(Self { run, checkpoint: None, agreed: None }) };
        let unreadable = StateError::Unreadable { bytes: bytes.len() };
        let mut durable: Durable = postcard::from_bytes(bytes).map_err(|_| unreadable.clone())?;
        if durable.run != run {
            return Err(StateError::OtherRun { stored: durable.run, ours: run });
        }
        if durable.checkpoint.as_ref().is_some_and(|checkpoint| !checkpoint.fits(spec)) {
            return Err(unreadable);
        }
        let agenda = Agenda::new(spec);
        let unfit = |agreed: &Committed| agenda.outer_border(agreed.outer) != Some(agreed.step);
        if durable.agreed.as_ref().is_some_and(unfit) {
            return Err(unreadable);
        }
        let step = durable.step();
        durable.agreed = durable.agreed.filter(|agreed| agreed.step <= step);
        Ok(durable)
    }

    /// Writes it for the disk.
    pub(crate) fn bytes(&self) -> Bytes {
        postcard::to_allocvec(self).expect("plain fields always serialise").into()
    }

    /// Returns the step from which the run can continue.
    pub(crate) fn step(&self) -> InnerStep {
        self.checkpoint.as_ref().map_or(InnerStep(0), |checkpoint| checkpoint.step)
    }
}
