//! The coordinator's durable state: the little that must survive it.
//!
//! Owns its form, and the check of what was stored. Knows nothing of where it is stored.

use crate::agenda::Agenda;
use crate::ids::{Digest, InnerStep, StageId};
use crate::ledger::Ledger;
use crate::message::Held;
use crate::plan::{Fit, Place, Plan};
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
    /// The run under way, which a coordinator that starts again goes on with.
    pub(crate) session: Option<Session>,
}

/// The run under way, as far as it cannot be asked of the members.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) plan: Plan,
    /// The step at which it began.
    pub(crate) planned_from: InnerStep,
    /// Work of steps below this one may have been handed out.
    pub(crate) reserved: InnerStep,
    /// The number of the last seat that was given away.
    pub(crate) seats: u32,
    /// Credit as of the last commit, checkpoint or change of the plan; what came after it the members say again.
    pub(crate) ledger: Ledger,
    /// The border at which the run was asked to stop.
    pub(crate) drain: Option<InnerStep>,
}

/// A set of checkpoints, at least one of each stage, that belong together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) step: InnerStep,
    pub(crate) digests: Vec<(Place, Digest)>,
}

impl Checkpoint {
    /// Says whether it is one of a run: within its steps, and with a digest for every stage.
    fn fits(&self, spec: &RunSpec) -> bool {
        let mut stages = (0..spec.stages()).map(StageId);
        self.step.0 <= spec.training.steps && stages.all(|stage| self.of_stage(stage).next().is_some())
    }

    /// Returns the checkpoint that a place goes on from, of those that a peer has on its disk: its own, or that of another
    /// replica of its stage. A peer that names none is taken to have its own.
    pub(crate) fn for_place(&self, place: Place, held: &[Held]) -> Option<(Place, Digest)> {
        let own = self.digests.iter().find(|(at, _)| *at == place).copied();
        let there = |(at, digest): &(Place, Digest)| self.is_among(held, *at, *digest);
        let on_disk = own.filter(there).or_else(|| self.of_stage(place.stage).find(there));
        on_disk.or(own).or_else(|| self.of_stage(place.stage).next())
    }

    /// Says how well a peer fits a place by what it has on its disk; it never knows of anything [`Missing`](Fit::Missing).
    pub(crate) fn fit(&self, place: Place, held: &[Held]) -> Fit {
        let mut there = self.of_stage(place.stage).filter(|(at, digest)| self.is_among(held, *at, *digest));
        match there.by_ref().map(|(at, _)| at == place).max() {
            Some(true) => Fit::Own,
            Some(false) => Fit::Stage,
            None => Fit::Nothing,
        }
    }

    fn is_among(&self, held: &[Held], place: Place, digest: Digest) -> bool {
        held.iter().any(|held| held.place == place && held.step == self.step && held.digest == digest)
    }

    /// Lists the checkpoints of a stage's replicas.
    pub(crate) fn of_stage(&self, stage: StageId) -> impl Iterator<Item = (Place, Digest)> + '_ {
        self.digests.iter().copied().filter(move |(at, _)| at.stage == stage)
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

/// Lists the checkpoints that a stored state goes on from.
///
/// # Errors
/// The state is not one of this run.
pub fn checkpoints(spec: &RunSpec, state: &[u8]) -> Result<Vec<Held>, StateError> {
    let checkpoint = Durable::read(spec, Some(state))?.checkpoint;
    let held = checkpoint.into_iter().flat_map(|Checkpoint { step, digests }| {
        digests.into_iter().map(move |(place, digest)| Held { place, step, digest })
    });
    Ok(held.collect())
}

impl Durable {
    /// Reads what was stored last; `None` is a run that has stored nothing yet.
    pub(crate) fn read(spec: &RunSpec, state: Option<&[u8]>) -> Result<Self, StateError> {
        let run = spec.digest();
        let Some(bytes) = state else {
            return Ok(Self { run, checkpoint: None, agreed: None, session: None });
        };
        let unreadable = StateError::Unreadable { bytes: bytes.len() };
        let durable: Durable = postcard::from_bytes(bytes).map_err(|_| unreadable.clone())?;
        if durable.run != run {
            return Err(StateError::OtherRun { stored: durable.run, ours: run });
        }
        if durable.checkpoint.as_ref().is_some_and(|checkpoint| !checkpoint.fits(spec)) {
            return Err(unreadable);
        }
        let agenda = Agenda::new(spec);
        let unfit = |agreed: &Committed| agenda.outer_border_or_end(agreed.outer) != Some(agreed.step);
        if durable.agreed.as_ref().is_some_and(unfit) {
            return Err(unreadable);
        }
        let total = agenda.train_microbatches();
        let fits = |session: &Session| {
            session.ledger.stages() == spec.stages()
                && session.ledger.is_sound(total)
                && session.plan.members.iter().all(|member| member.place.stage.0 < spec.stages())
        };
        if !durable.session.as_ref().is_none_or(fits) {
            return Err(unreadable);
        }
        Ok(durable)
    }

    /// Forgets the outer steps that were committed after the last checkpoint, because nobody who took part in the run is there
    /// any more: they are repeated with the inner steps that led to them.
    pub(crate) fn go_back(&mut self) {
        let step = self.step();
        if self.agreed.as_ref().is_some_and(|agreed| agreed.step > step) {
            self.agreed = None;
        }
    }

    /// Writes it for the disk.
    pub(crate) fn bytes(&self) -> Bytes {
        postcard::to_allocvec(self).expect("plain fields always serialise").into()
    }

    /// Returns the step from which the run can continue when everyone is gone.
    pub(crate) fn step(&self) -> InnerStep {
        self.checkpoint.as_ref().map_or(InnerStep(0), |checkpoint| checkpoint.step)
    }
}
