//! The cost model: payloads of the right size, losses by a formula, no arithmetic; for swarms that no machine could hold.
//!
//! Owns what a stage answers when nothing is computed. Knows nothing of time, which the device of the peer draws.

use crate::compute::{Compute, Fault, Updated, Work};
use bytes::Bytes;
use trestle_protocol::ids::{Digest, InnerStep, Split, StageId};
use trestle_protocol::message::Start;
use trestle_protocol::port::Output;
use trestle_protocol::spec::RunSpec;

/// What the losses of the formula fall to, nats per token.
const LOSS_FLOOR: f64 = 1.5;

/// Optimizer steps after which half of the way to the floor is behind us.
const LOSS_HALF_STEPS: f64 = 50.0;

/// A stage that answers without computing.
#[derive(Debug)]
pub struct CostModel {
    stages: u16,
    stage: StageId,
    version: u64,
    loss_first: f64,
    learning_rate: f64,
    /// One buffer for all messages: they are zeros, of the size that the run spec gives.
    boundary: Bytes,
}

impl CostModel {
    /// Makes the compute of a peer of a run; `boundary` is shared by all peers.
    pub fn new(spec: &RunSpec, boundary: Bytes) -> Self {
        assert_eq!(boundary.len(), spec.boundary_bytes(), "the shared buffer has the boundary's size");
        Self {
            stages: spec.stages(),
            stage: StageId(0),
            version: 0,
            loss_first: f64::from(spec.model.vocabulary).ln(),
            learning_rate: spec.optimizer.learning_rate,
            boundary,
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

    fn digest(&self, stage: StageId, step: InnerStep) -> Digest {
        let mut bytes = b"cost model checkpoint".to_vec();
        bytes.extend(stage.0.to_le_bytes());
        bytes.extend(step.0.to_le_bytes());
        Digest::of(&bytes)
    }
}

impl Compute for CostModel {
    fn load(&mut self, stage: StageId, start: Start) -> Result<(), Fault> {
        self.stage = stage;
        self.version = match start {
            Start::Fresh => 0,
            Start::Checkpoint { step, digest } if digest == self.digest(stage, step) => step.0,
            Start::Checkpoint { step, digest } => {
                return Err(Fault(format!(
                    "checkpoint of stage {stage} at step {step} has not digest {digest}"
                )));
            }
        };
        Ok(())
    }

    fn forward(&mut self, work: Work<'_>) -> Result<Output, Fault> {
        let last = self.stage.0 + 1 == self.stages;
        Ok(if last { Output::Loss(self.loss(work)) } else { Output::Boundary(self.boundary.clone()) })
    }

    fn backward(&mut self, _: Work<'_>, _: Option<&Bytes>) -> Result<Option<Bytes>, Fault> {
        Ok((self.stage.0 > 0).then(|| self.boundary.clone()))
    }

    fn step(&mut self, _: u32) -> Result<Updated, Fault> {
        self.version += 1;
        Ok(Updated { gradient_norm: 1.0 / self.version as f64, learning_rate: self.learning_rate })
    }

    fn save(&mut self, step: InnerStep) -> Result<Digest, Fault> {
        Ok(self.digest(self.stage, step))
    }
}
