//! The cost model: payloads of the right size, losses by a formula, no arithmetic; for swarms that no machine could hold.
//!
//! Owns what a stage answers when nothing is computed, and follows what its weights would consist of. Knows nothing of time,
//! which the device of the peer draws.

use crate::compute::{Compute, Fault, Handover, Imported, Updated, Work, cut};
use crate::descent::Descent;
use crate::disk::Disk;
use crate::lineage::{Lineage, Reader, number};
use bytes::Bytes;
use trestle_protocol::agenda::Agenda;
use trestle_protocol::ids::{Digest, InnerStep, MicrobatchId, OuterStep, ReplicaId, Split, StageId};
use trestle_protocol::message::Start;
use trestle_protocol::plan::Place;
use trestle_protocol::port::{Duty, Output};
use trestle_protocol::spec::RunSpec;
use trestle_protocol::sync::blob::Blob;
use trestle_protocol::sync::say::Round;
use trestle_protocol::sync::shares::WHOLE;
use trestle_protocol::sync::task::{Contribution, Counted, SyncDone, SyncTask};
use trestle_protocol::time::Span;

/// What the losses of the formula fall to, nats per token.
const LOSS_FLOOR: f64 = 1.5;

/// Optimizer steps after which half of the way to the floor is behind us.
const LOSS_HALF_STEPS: f64 = 50.0;

/// A stage that answers without computing.
#[derive(Debug)]
pub struct CostModel {
    agenda: Agenda,
    stages: u16,
    place: Place,
    descent: Descent,
    loss_first: f64,
    learning_rate: f64,
    /// One buffer for all messages: they are zeros, of the size that the run spec gives.
    boundary: Bytes,
    sizes: Sizes,
}

/// What travels but between stages, in bytes.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// A stage's pseudo-gradient.
    pub contribution: u64,
    /// What the replicas of each stage share of a newcomer's state.
    pub agreed: Vec<u64>,
    /// What is one replica's own of it.
    pub own: Vec<u64>,
    /// How a shard of a contribution is cut, and such a state.
    pub chunks: Chunks,
}

/// Into how many chunks things are cut; as usual, where nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    /// A shard of a contribution or of its result.
    pub shard: Option<u64>,
    /// Either part of a state.
    pub state: Option<u64>,
}

impl Sizes {
    /// The sizes of a run, whose pseudo-gradients have some bytes: weights, and two moments of each.
    pub fn of(spec: &RunSpec, contribution: u64) -> Self {
        let agreed: Vec<u64> = (0..spec.stages()).map(|stage| spec.stage_bytes(StageId(stage))).collect();
        let own = agreed.iter().map(|weights| 2 * weights).collect();
        Self { contribution, agreed, own, chunks: Chunks::default() }
    }
}

impl CostModel {
    /// Makes the compute of a peer of a run; `boundary` is shared by all peers.
    pub fn new(spec: &RunSpec, boundary: Bytes, sizes: Sizes) -> Self {
        assert_eq!(boundary.len(), spec.boundary_bytes(), "the shared buffer has the boundary's size");
        let agenda = Agenda::new(spec);
        Self {
            agenda,
            stages: spec.stages(),
            place: Place { stage: StageId(0), replica: ReplicaId(0) },
            descent: Descent::new(agenda.exchanges()),
            loss_first: f64::from(spec.model.vocabulary).ln(),
            learning_rate: spec.optimizer.learning_rate,
            boundary,
            sizes,
        }
    }

    /// Falls from the loss of a uniform guess, ln V, towards the floor, as 1 / (1 + steps / half). Held-out and
    /// training microbatches lie a little apart, and each microbatch a little beside its neighbours, so that a log with
    /// losses in the wrong place differs.
    fn loss(&self, work: Work<'_>) -> f32 {
        let gap = (self.loss_first - LOSS_FLOOR) / (1.0 + self.descent.version() as f64 / LOSS_HALF_STEPS);
        let apart = match work.microbatch.split {
            Split::Train => 0.0,
            Split::HeldOut => 0.01,
        };
        let beside = (work.data_index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44) as f64 / f64::from(1 << 24);
        (LOSS_FLOOR + gap + apart + beside) as f32
    }

    /// Makes the bytes of each shard: its part of what is contributed, and zeros up to its size.
    fn encode(&mut self, shares: &[u32]) -> Result<Vec<Blob>, Fault> {
        let all =
            self.descent.contribute().ok_or_else(|| Fault("nothing to encode without a snapshot".into()))?;
        let shard = |(shard, share): (usize, &u32)| {
            let size =
                (u128::from(self.sizes.contribution) * u128::from(*share) / u128::from(WHOLE)) as usize;
            let mut bytes = Vec::with_capacity(size);
            all.shard(shard, shares.len()).write(&mut bytes);
            if bytes.len() > size {
                let needed = bytes.len();
                return Err(Fault(format!(
                    "a contribution's shard of {size} bytes needs {needed} for what it tells"
                )));
            }
            bytes.resize(size, 0);
            Ok(cut(bytes.into(), self.sizes.chunks.shard))
        };
        shares.iter().enumerate().map(shard).collect()
    }

    fn stage(&mut self, round: Round, results: &[Bytes], counted: Counted) -> Result<SyncDone, Fault> {
        let mut all = Lineage::default();
        let mut heads = Vec::new();
        for (shard, result) in (0..).zip(results) {
            let mut reader = Reader::new(result);
            let (Some(weights), Some(part)) = (reader.digest(), reader.lineage()) else {
                let result = Err((shard, "it tells nothing".into()));
                return Ok(SyncDone::Staged { round, result, took: Span(0) });
            };
            heads.extend(weights.0);
            all.add_all(&part);
        }
        let staged = self.descent.stage(all, Digest::of(&heads), counted);
        let digest = staged.ok_or_else(|| Fault("nothing to stage without a snapshot".into()))?;
        Ok(SyncDone::Staged { round, result: Ok(digest), took: Span(0) })
    }
}

/// Makes of contributions their sum, behind a digest of what each weighs in it, in no fewer bytes than one of them has.
fn reduce(contributions: &[Contribution], chunks: Option<u64>) -> Result<Blob, (ReplicaId, String)> {
    let mut sum = Lineage::default();
    let mut weights = Vec::new();
    for part in contributions {
        let lineage = Reader::new(&part.bytes).lineage();
        let lineage = lineage.ok_or_else(|| (part.from, String::from("it tells nothing")))?;
        let mut said = part.weight.to_le_bytes().to_vec();
        lineage.write(&mut said);
        weights.extend(Digest::of(&said).0);
        sum.add_all(&lineage);
    }
    let mut bytes = Digest::of(&weights).0.to_vec();
    sum.write(&mut bytes);
    let size = contributions.first().map(|part| part.bytes.len()).unwrap_or_default();
    bytes.resize(bytes.len().max(size), 0);
    Ok(cut(bytes.into(), chunks))
}

impl Compute for CostModel {
    fn load(&mut self, place: Place, start: Start, disk: &Disk) -> Result<(), Fault> {
        let exchanges = self.agenda.exchanges();
        self.descent = match start {
            Start::Fresh => Descent::new(exchanges),
            Start::Checkpoint { step, digest, of } => {
                let Place { stage, replica } = of;
                let words = |what: &str| {
                    Fault(format!("checkpoint of stage {stage}, replica {replica} at step {step} {what}"))
                };
                let (found, bytes) = disk.read(of, step).ok_or_else(|| words("is not on this disk"))?;
                if found != digest {
                    return Err(words("has another digest"));
                }
                let read = Descent::from_checkpoint(exchanges, bytes);
                let mut read = read.ok_or_else(|| words("cannot be read"))?;
                if of != place {
                    read.forget_own();
                }
                read
            }
            Start::Replicas { .. } => {
                return Err(Fault("weights of other replicas are not on this disk".into()));
            }
        };
        self.place = place;
        Ok(())
    }

    fn export(&mut self, outer: OuterStep) -> Result<Handover, Fault> {
        let mut agreed = Vec::new();
        number(&mut agreed, outer.0);
        agreed.extend(self.descent.agreed());
        let mut own = format!("moments of {:?} at {}", self.place, self.descent.version()).into_bytes();
        let stage = usize::from(self.place.stage.0);
        agreed.resize(agreed.len().max(self.sizes.agreed[stage] as usize), 0);
        own.resize(own.len().max(self.sizes.own[stage] as usize), 0);
        Ok(Handover { agreed: agreed.into(), own: own.into(), chunks: self.sizes.chunks.state })
    }

    fn import(&mut self, place: Place, state: &Handover, digest: Digest) -> Result<Imported, Fault> {
        let mut reader = Reader::new(&state.agreed);
        let outer = reader.number().map(OuterStep);
        let step = outer.and_then(|outer| self.agenda.outer_border(outer));
        let descent = Descent::from_agreed(self.agenda.exchanges(), &reader.rest(), digest);
        let (Some(step), Some(descent)) = (step, descent) else {
            return Ok(Imported::Unfit("the weights have another digest than was agreed".into()));
        };
        (self.place, self.descent) = (place, descent);
        Ok(Imported::Held(step))
    }

    fn enter(&mut self, step: InnerStep) {
        self.descent.enter(step.0);
    }

    fn forward(&mut self, work: Work<'_>) -> Result<Output, Fault> {
        let last = self.place.stage.0 + 1 == self.stages;
        Ok(if last { Output::Loss(self.loss(work)) } else { Output::Boundary(self.boundary.clone()) })
    }

    fn backward(&mut self, work: Work<'_>, _: Option<&Bytes>, duty: Duty) -> Result<Option<Bytes>, Fault> {
        match duty {
            Duty::Train => self.descent.train(work.microbatch.index),
            Duty::Ghost => {}
        }
        Ok((self.place.stage.0 > 0).then(|| self.boundary.clone()))
    }

    fn discard(&mut self, _: MicrobatchId) {}

    fn step(&mut self, microbatches: u32) -> Result<Updated, Fault> {
        self.descent.step(microbatches);
        let gradient_norm = 1.0 / self.descent.version() as f64;
        Ok(Updated { gradient_norm, learning_rate: self.learning_rate })
    }

    fn save(&mut self, step: InnerStep, disk: &mut Disk) -> Result<Digest, Fault> {
        let bytes = self.descent.checkpoint(self.place);
        let digest = Digest::of(&bytes);
        disk.write(self.place, step, digest, bytes);
        Ok(digest)
    }

    fn agree(&mut self, task: SyncTask) -> Result<(SyncDone, u64), Fault> {
        let (whole, took) = (self.sizes.contribution, Span(0));
        let sum =
            |parts: &mut dyn Iterator<Item = &Bytes>| parts.map(|bytes| bytes.len() as u64).sum::<u64>();
        Ok(match task {
            SyncTask::Snapshot { outer, microbatches } => {
                self.descent.snapshot(microbatches);
                (SyncDone::Snapshotted { outer, took }, whole)
            }
            SyncTask::Adopt { outer } => {
                let adopted = self.descent.adopt();
                adopted.ok_or_else(|| Fault("a gradient is adopted that was never exchanged".into()))?;
                (SyncDone::Adopted { outer, took }, whole)
            }
            SyncTask::Restore { outer } => {
                self.descent.restore();
                (SyncDone::Restored { outer, took }, 0)
            }
            SyncTask::Commit { outer } => {
                self.descent.commit().ok_or_else(|| Fault("a commit without anything staged".into()))?;
                (SyncDone::Committed { outer, took }, whole)
            }
            SyncTask::Encode { outer, shares } => {
                let shards = self.encode(&shares)?;
                (SyncDone::Encoded { outer, shares, shards, took }, whole)
            }
            SyncTask::Reduce { round, shard, contributions, .. } => {
                let bytes = sum(&mut contributions.iter().map(|part| &part.bytes));
                (
                    SyncDone::Reduced {
                        round,
                        shard,
                        result: reduce(&contributions, self.sizes.chunks.shard),
                        took,
                    },
                    bytes,
                )
            }
            SyncTask::Stage { round, results, counted, .. } => {
                let bytes = sum(&mut results.iter());
                (self.stage(round, &results, counted)?, bytes)
            }
        })
    }

    fn descent(&self) -> Option<&Descent> {
        Some(&self.descent)
    }
}
