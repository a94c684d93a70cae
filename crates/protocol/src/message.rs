//! What peers say to each other.
//!
//! Owns the messages and the reasons of refusals. Knows nothing of how they are written or sent.

use crate::ids::{
    Attempt, Digest, InnerStep, MicrobatchId, OuterStep, PeerId, PlanNumber, StageId, WeightVersion,
};
use crate::plan::Plan;
use crate::receipt::Receipt;
use crate::sync::say::Say;
use crate::time::Span;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Microbatches in one lease message.
pub const LEASE_MICROBATCHES_MAX: usize = 1024;

/// Longest name, address or reason in a message, in bytes: enough for an error with its path, too little to fill a disk.
pub const TEXT_BYTES_MAX: usize = 2048;

/// A message between two peers of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Worker to coordinator: asks for a place.
    Join(Join),
    /// Coordinator to worker: the plan, and the checkpoint to continue from.
    Placed {
        /// Who holds what.
        plan: Plan,
        /// The step to continue from; a fresh run starts at 0 from the seed.
        start: Start,
    },
    /// Worker to coordinator: weights are in place, neighbours are connected.
    Ready {
        /// The plan it is ready for.
        plan: PlanNumber,
    },
    /// Coordinator to a stage-0 replica: microbatches to feed into the pipeline.
    Lease {
        /// The microbatches, in the order of the agenda.
        microbatches: Vec<MicrobatchId>,
        /// Which try this is.
        attempt: Attempt,
        /// How long until they are leased again.
        expires_in: Span,
    },
    /// Stage to next stage: the boundary output of a forward.
    Activation(Tensor),
    /// Stage to previous stage: the gradient of that stage's boundary output.
    Gradient(Tensor),
    /// Last stage to coordinator: the mean cross-entropy of a microbatch, in nats.
    Loss {
        /// Of which microbatch.
        microbatch: MicrobatchId,
        /// The try.
        attempt: Attempt,
        /// The loss.
        loss: f32,
    },
    /// Stage 0 to coordinator: the backward of a microbatch has come back all the way.
    Settled {
        /// Of which microbatch.
        microbatch: MicrobatchId,
        /// The try.
        attempt: Attempt,
    },
    /// Worker to coordinator: work it received from others.
    Receipts(Vec<Receipt>),
    /// Among the replicas of a stage and the coordinator: about an outer step.
    Sync(Say),
    /// Worker to coordinator: an optimizer step is done.
    Stepped(StepReport),
    /// Worker to coordinator: the state after a step is on disk.
    Checkpointed {
        /// The step it continues from.
        step: InnerStep,
        /// Digest of the checkpoint's contents.
        digest: Digest,
        /// How long computing stood still for it.
        took: Span,
    },
    /// Coordinator to worker: save at this border, which no lease crosses.
    Drain {
        /// The step after whose last optimizer update the run stands still.
        border: InnerStep,
    },
    /// Coordinator to worker: the run is over; leave.
    Finish {
        /// Why.
        outcome: Outcome,
    },
    /// Worker to coordinator: a neighbour cannot be reached; what that means for the run is the coordinator's to say.
    PeerLost {
        /// Which neighbour.
        peer: PeerId,
        /// Why, in words.
        reason: String,
    },
    /// Worker to coordinator: it cannot go on.
    Failed {
        /// Why, in words.
        reason: String,
    },
    /// Anyone to anyone: what was said is not accepted.
    Refused(Refusal),
}

/// A request for a place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Join {
    /// Where the peer can be dialled; opaque to the core.
    pub address: Bytes,
    /// The stage it asks for, if it does.
    pub stage: Option<StageId>,
    /// What its device is called.
    pub device: String,
    /// Measured matrix-multiplication peak, FLOP/s; 0 when unknown.
    pub peak_flops: u64,
}

/// Where a worker starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// From the weights that the seed gives.
    Fresh,
    /// From a checkpoint of the stage.
    Checkpoint {
        /// Steps taken before it.
        step: InnerStep,
        /// Digest of its contents.
        digest: Digest,
    },
}

/// A boundary tensor on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// Of which microbatch.
    pub microbatch: MicrobatchId,
    /// The try.
    pub attempt: Attempt,
    /// The stage it is for.
    pub stage: StageId,
    /// The version of the weights that made it.
    pub version: WeightVersion,
    /// Little-endian numbers of the wire format, [microbatch, sequence, k]; sent beside the header.
    #[serde(skip)]
    pub payload: Bytes,
}

/// What a worker did in one inner step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step.
    pub step: InnerStep,
    /// Norm of the stage's gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// Time in forward, backward and optimizer.
    pub compute: Span,
    /// Part of it spent turning tensors into bytes and back.
    pub serialise: Span,
    /// Time in which computing stood still for an outer step: the snapshot, the cut-over, and waiting for the decision.
    pub sync: Span,
    /// Time spent on results that were thrown away.
    pub lost: Span,
    /// Time since the previous step ended.
    pub wall: Span,
    /// Bytes sent since the previous step, as counted under QUIC, headers and acknowledgements included.
    pub wire_bytes: u64,
    /// Largest distance between a forward's weights and its backward's, in versions.
    pub staleness: u64,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Every microbatch of the plan is trained.
    Done,
    /// Stopped on request; continues from this step.
    Stopped {
        /// Steps taken.
        step: InnerStep,
    },
    /// It cannot go on; continues from the last checkpoint.
    Failed {
        /// Why, in words.
        reason: String,
    },
}

/// Why a message, or a peer, is not accepted; the code is the variant's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Every place of the plan is taken.
    #[error("every place of the plan is taken")]
    PlanFull,
    /// The stage asked for does not exist.
    #[error("stage {stage} does not exist, the run has {stages}")]
    NoSuchStage {
        /// The stage asked for.
        stage: StageId,
        /// How many there are.
        stages: u16,
    },
    /// A plan in which nobody holds a stage.
    #[error("nobody holds stage {stage} in the plan")]
    StageEmpty {
        /// The stage.
        stage: StageId,
    },
    /// A plan that starts behind the end of the run.
    #[error("plan starts at step {step}, the run has {steps}")]
    StepBeyond {
        /// The step of the plan.
        step: InnerStep,
        /// How many there are.
        steps: InnerStep,
    },
    /// Sent by a peer that is not in the plan.
    #[error("peer {peer} is not in the plan")]
    NotMember {
        /// The sender.
        peer: PeerId,
    },
    /// Sent to or by a peer whose role never takes or sends it.
    #[error("peer {peer} sent a message that is not its to send")]
    NotYours {
        /// The sender.
        peer: PeerId,
    },
    /// A tensor for another stage.
    #[error("tensor of {microbatch} is for stage {got}, we hold {held}")]
    WrongStage {
        /// Of which microbatch.
        microbatch: MicrobatchId,
        /// The stage it is for.
        got: StageId,
        /// The stage we hold.
        held: StageId,
    },
    /// A tensor of the wrong size.
    #[error("tensor of {microbatch} has {got} bytes, expected {want}")]
    TensorLength {
        /// Of which microbatch.
        microbatch: MicrobatchId,
        /// Its size.
        got: u64,
        /// The size that the run spec gives.
        want: u64,
    },
    /// A microbatch that the agenda does not hold, or far from where the run is.
    #[error("microbatch {microbatch} is not due")]
    NotDue {
        /// The microbatch.
        microbatch: MicrobatchId,
    },
    /// A gradient of a microbatch that was never sent on, or not to that peer.
    #[error("nothing is owed for {microbatch}")]
    NotOwed {
        /// The microbatch.
        microbatch: MicrobatchId,
    },
    /// The queue is full.
    #[error("queue is full, {microbatch} is not taken")]
    Busy {
        /// The microbatch.
        microbatch: MicrobatchId,
    },
    /// A loss that is not a number.
    #[error("loss of {microbatch} is not finite")]
    LossNotFinite {
        /// Of which microbatch.
        microbatch: MicrobatchId,
    },
    /// A receipt that does not hold.
    #[error("{0}")]
    Receipt(crate::receipt::ReceiptError),
    /// A message about a plan that is not the current one.
    #[error("plan {got:?} is not the current plan {current:?}")]
    StalePlan {
        /// The plan of the message.
        got: PlanNumber,
        /// The current plan.
        current: PlanNumber,
    },
    /// A replica that says it stands at the border of an outer step, at an inner step that is none.
    #[error("inner step {step} is not the border of outer step {}", .outer.0)]
    NotAtBorder {
        /// The outer step.
        outer: OuterStep,
        /// The inner step.
        step: InnerStep,
    },
    /// A message about an outer step that is not open yet.
    #[error("outer step {} is not open, the run is at {}", .got.0, .open.0)]
    OuterAhead {
        /// The outer step of the message.
        got: OuterStep,
        /// The one that is open.
        open: OuterStep,
    },
    /// A round that names strangers, no contributors, or cuts the parameters with a gap.
    #[error("round of outer step {} does not fit the plan", .outer.0)]
    BeginUnfit {
        /// The outer step.
        outer: OuterStep,
    },
    /// An offer of a shard that does not exist, or whose chunks do not add up to its length, or of another one than before in
    /// the same try.
    #[error("offer of shard {shard} with {bytes} bytes does not add up")]
    OfferUnfit {
        /// The shard.
        shard: u16,
        /// The length it states.
        bytes: u64,
    },
    /// A request for a blob, or a part of one, that is not held here.
    #[error("blob {blob} is not held here")]
    NotHeld {
        /// The blob.
        blob: Digest,
    },
    /// A chunk whose bytes are not those of the manifest.
    #[error("chunk {chunk} of blob {blob} has another digest than was offered")]
    ChunkFalse {
        /// The blob.
        blob: Digest,
        /// The chunk.
        chunk: u32,
    },
    /// A name, address or reason that is longer than the protocol allows.
    #[error("field `{field}` has {got} bytes, at most {max} are allowed")]
    FieldLength {
        /// The field.
        field: String,
        /// Its size.
        got: u64,
        /// The bound.
        max: u64,
    },
}
