//! The cost model: payloads of the right size, losses by a formula, no arithmetic; for swarms that no machine could hold.
//!
//! Owns what a stage answers when nothing is computed. Knows nothing of time, which the device of the peer draws.

use crate::compute::{Compute, Fault, Updated, Work};
use bytes::Bytes;
use trestle_protocol::ids::{Digest, InnerStep, ReplicaId, Split, StageId};
use trestle_protocol::message::Start;
use trestle_protocol::plan::Place;
use trestle_protocol::port::Output;
use trestle_protocol::spec::RunSpec;
use trestle_protocol::sync::blob::Blob;
use trestle_protocol::sync::shares::WHOLE;
use trestle_protocol::sync::task::{SyncDone, SyncTask};
use trestle_protocol::time::Span;

/// What the losses of the formula fall to, nats per token.
const LOSS_FLOOR: f64 = 1.5;

/// Optimizer steps after which half of the way to the floor is behind us.
const LOSS_HALF_STEPS: f64 = 50.0;

/// A stage that answers without computing.
#[derive(Debug)]
pub struct CostModel {
    stages: u16,
    place: Place,
    version: u64,
    loss_first: f64,
    learning_rate: f64,
    /// One buffer for all messages: they are zeros, of the size that the run spec gives.
    boundary: Bytes,
    /// Size of a pseudo-gradient as it travels.
    contribution: u64,
}

impl CostModel {
    /// Makes the compute of a peer of a run whose pseudo-gradients have `contribution` bytes; `boundary` is shared by all
    /// peers.
    pub fn new(spec: &RunSpec, boundary: Bytes, contribution: u64) -> Self {
        assert_eq!(boundary.len(), spec.boundary_bytes(), "the shared buffer has the boundary's size");
        Self {
            stages: spec.stages(),
            place: Place { stage: StageId(0), replica: ReplicaId(0) },
            version: 0,
            loss_first: f64::from(spec.model.vocabulary).ln(),
            learning_rate: spec.optimizer.learning_rate,
            boundary,
            contribution,
        }
    }

    /// Falls from the loss of a uniform guess, ln V, towards the floor, as 1 / (1 + steps / half). Held-out and
    /// training microbatches lie a little apart, and each microbatch a little beside its neighbours, so that a log with
    /// losses in the wrong place differs.
    fn loss(&self, work: Work<'_>) -> f32 {
        let gap = (self.loss_first - LOSS_FLOOR) / (1.0 + self.version as f64 / LOSS_HALF_STEPS);
        let apart = match work.microbatch.split {
            Split::Train => 0.0,
            Split::HeldOut => 0.01,
        };
        let beside = (work.data_index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44) as f64 / f64::from(1 << 24);
        (LOSS_FLOOR + gap + apart + beside) as f32
    }

    fn digest(place: Place, step: InnerStep) -> Digest {
        let (stage, replica) = (u64::from(place.stage.0), u64::from(place.replica.0));
        digest("checkpoint", &[stage, replica, step.0])
    }

    /// Makes the bytes of each shard: zeros that begin with what tells them from all others.
    fn shards(&self, outer: u64, shares: &[u32]) -> Vec<Blob> {
        let Place { stage, replica } = self.place;
        let shard = |(shard, share): (usize, &u32)| {
            let bytes = (u128::from(self.contribution) * u128::from(*share) / u128::from(WHOLE)) as usize;
            let place = [outer, u64::from(stage.0), u64::from(replica.0), shard as u64];
            let mut whole = vec![0; bytes];
            whole.iter_mut().zip(digest("contribution", &place).0).for_each(|(into, byte)| *into = byte);
            Blob::new(whole.into())
        };
        shares.iter().enumerate().map(shard).collect()
    }
}

/// Derives a digest that stands for what would be computed.
fn digest(what: &str, of: &[u64]) -> Digest {
    let numbers = of.iter().flat_map(|number| number.to_le_bytes());
    Digest::of(&what.bytes().chain(numbers).collect::<Vec<u8>>())
}

impl Compute for CostModel {
    fn load(&mut self, place: Place, start: Start) -> Result<(), Fault> {
        self.place = place;
        let Place { stage, .. } = place;
        self.version = match start {
            Start::Fresh => 0,
            Start::Checkpoint { step, digest } if digest == Self::digest(place, step) => step.0,
            Start::Checkpoint { step, digest } => {
                return Err(Fault(format!(
                    "checkpoint of stage {stage} at step {step} has not digest {digest}"
                )));
            }
        };
        Ok(())
    }

    fn forward(&mut self, work: Work<'_>) -> Result<Output, Fault> {
        let last = self.place.stage.0 + 1 == self.stages;
        Ok(if last { Output::Loss(self.loss(work)) } else { Output::Boundary(self.boundary.clone()) })
    }

    fn backward(&mut self, _: Work<'_>, _: Option<&Bytes>) -> Result<Option<Bytes>, Fault> {
        Ok((self.place.stage.0 > 0).then(|| self.boundary.clone()))
    }

    fn step(&mut self, _: u32) -> Result<Updated, Fault> {
        self.version += 1;
        Ok(Updated { gradient_norm: 1.0 / self.version as f64, learning_rate: self.learning_rate })
    }

    fn save(&mut self, step: InnerStep) -> Result<Digest, Fault> {
        Ok(Self::digest(self.place, step))
    }

    fn agree(&mut self, task: SyncTask) -> Result<(SyncDone, u64), Fault> {
        let (whole, took) = (self.contribution, Span(0));
        let sum =
            |parts: &mut dyn Iterator<Item = &Bytes>| parts.map(|bytes| bytes.len() as u64).sum::<u64>();
        Ok(match task {
            SyncTask::Snapshot { outer } => (SyncDone::Snapshotted { outer, took }, whole),
            SyncTask::Adopt { outer } => (SyncDone::Adopted { outer, took }, whole),
            SyncTask::Restore { outer } => (SyncDone::Restored { outer, took }, 0),
            SyncTask::Commit { outer } => (SyncDone::Committed { outer, took }, whole),
            SyncTask::Encode { outer, shares } => {
                let shards = self.shards(outer.0, &shares);
                (SyncDone::Encoded { outer, shares, shards, took }, whole)
            }
            SyncTask::Reduce { round, shard, contributions, .. } => {
                let bytes = sum(&mut contributions.iter().map(|part| &part.bytes));
                let first = contributions.first().map(|part| part.bytes.len()).unwrap_or_default();
                let mut hasher = blake3::Hasher::new();
                for part in &contributions {
                    hasher.update(&part.weight.to_le_bytes()).update(&part.bytes[..first.min(32)]);
                }
                let mut reduced = vec![0; first];
                reduced.iter_mut().zip(hasher.finalize().as_bytes()).for_each(|(into, byte)| *into = *byte);
                (SyncDone::Reduced { round, shard, result: Ok(Blob::new(reduced.into())), took }, bytes)
            }
            SyncTask::Stage { round, results, .. } => {
                let bytes = sum(&mut results.iter());
                let heads: Vec<u8> =
                    results.iter().flat_map(|result| result.iter().take(32).copied()).collect();
                (SyncDone::Staged { round, result: Ok(Digest::of(&heads)), took }, bytes)
            }
        })
    }
}
