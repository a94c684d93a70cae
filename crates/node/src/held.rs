//! Which checkpoints a peer has on its disk: what it says when it asks for a place, and what it starts from when it gets one.
//!
//! Owns the files that belong together, their common digest, and the listing. Knows nothing of which of them a run wants.

use std::path::PathBuf;

use trestle_model::checkpoint::{self, CheckpointError};
use trestle_protocol::ids::{Digest, InnerStep};
use trestle_protocol::message::{HELD_MAX, Held};
use trestle_protocol::plan::Place;
use trestle_protocol::spec::RunSpec;

use crate::directory::Directory;

/// The label of a checkpoint that names its run.
pub(crate) const RUN: &str = "run";

/// Checkpoints of a place that are named; a run goes on from the last or the one before.
const NAMED_OF_A_PLACE: usize = 2;

/// The files of one checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) weights: PathBuf,
    /// What outer steps go on from; `None` where a stage has one replica.
    pub(crate) outer: Option<PathBuf>,
}

/// Names the files of a place's checkpoint.
pub(crate) fn files(directory: &Directory, spec: &RunSpec, place: Place, step: InnerStep) -> Files {
    let outer = (spec.pipeline.replicas > 1).then(|| directory.outer(place, step));
    Files { weights: directory.checkpoint(place, step), outer }
}

impl Files {
    /// Reads the files whole, and gives the digest that names them.
    pub(crate) fn digest(&self) -> Result<Digest, CheckpointError> {
        self.inspect().map(|(digest, _)| digest)
    }

    /// Gives the digest and the name of the run.
    fn inspect(&self) -> Result<(Digest, Option<String>), CheckpointError> {
        let mut weights = checkpoint::inspect(&self.weights)?;
        let run = weights.labels.remove(RUN);
        let digest = match &self.outer {
            Some(outer) => both(weights.digest, checkpoint::inspect(outer)?.digest),
            None => Digest(weights.digest),
        };
        Ok((digest, run))
    }
}

/// Names two files that belong together.
pub(crate) fn both(checkpoint: [u8; 32], outer: [u8; 32]) -> Digest {
    Digest::of(&[checkpoint, outer].concat())
}

/// Lists the run's checkpoints on this disk, the latest two of each place, those of the latest steps first. What is damaged
/// or of another run is as good as not there.
pub(crate) fn list(directory: &Directory, spec: &RunSpec) -> Vec<Held> {
    let run = spec.digest().to_hex();
    let mut named: Vec<(InnerStep, Place)> = directory
        .places()
        .into_iter()
        .flat_map(|(place, steps)| steps.into_iter().take(NAMED_OF_A_PLACE).map(move |step| (step, place)))
        .collect();
    named.sort_by(|(step, place), (other_step, other)| other_step.cmp(step).then(place.cmp(other)));
    let whole = named.into_iter().filter_map(|(step, place)| {
        let (digest, of) = files(directory, spec, place, step).inspect().ok()?;
        (of.as_ref() == Some(&run)).then_some(Held { place, step, digest })
    });
    whole.take(HELD_MAX).collect()
}
