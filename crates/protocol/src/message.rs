//! What peers say to each other.
//!
//! Owns the messages and the reasons of refusals. Knows nothing of how they are written or sent.

use crate::ids::{
    Attempt, Digest, InnerStep, MicrobatchId, OuterStep, PeerId, PlanNumber, SeatId, StageId, WeightVersion,
};
use crate::plan::{Place, Plan};
use crate::receipt::Receipt;
use crate::sync::say::Say;
use crate::sync::state::StateSay;
use crate::time::Span;
use crate::work::{Frontier, Needs, Trained};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Microbatches in one lease message.
pub const LEASE_MICROBATCHES_MAX: usize = 1024;

/// Shards on its disk that a peer may name when it joins: two of each place of a stage that was once held here.
pub const HELD_MAX: usize = 64;

/// Longest name, address or reason in a message, in bytes: enough for an error with its path, too little to fill a disk.
pub const TEXT_BYTES_MAX: usize = 2048;

/// A message between two peers of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Worker to coordinator: asks for a place.
    Join(Join),
    /// Coordinator to worker that has no place yet: where it stands, and why it waits.
    Waiting {
        /// Peers that are served before it.
        ahead: u32,
        /// What it waits for.
        why: Wait,
    },
    /// Coordinator to worker: the plan, and where its weights come from.
    Placed {
        /// Who holds what.
        plan: Plan,
        /// Where to start from; a fresh run starts at 0 from the seed.
        start: Start,
        /// How far the run is.
        frontier: Frontier,
    },
    /// Coordinator to all members: a later plan. Work that was with a peer that it no longer names goes to others.
    Roster {
        /// Who holds what from now on.
        plan: Plan,
        /// Steps before this one may have lost work with a peer: their sums take gradients in the order in which they come.
        disturbed_below: InnerStep,
    },
    /// Worker to coordinator: weights are in place, neighbours are connected.
    Ready {
        /// The plan it was placed by.
        plan: PlanNumber,
        /// The outer step whose agreed weights it has from other replicas, if it has them from there.
        holds: Option<OuterStep>,
    },
    /// Coordinator to a worker that joined under way: take part from here on.
    Enter {
        /// The open outer step, to which it contributes what it trains from here on; `None` where replicas do not exchange weights.
        outer: Option<OuterStep>,
        /// The inner step at which it enters: one on the way to the border of that outer step, or the border.
        step: InnerStep,
        /// What its state has beyond the stage's commits: its place's own checkpoint had it, and it is credited for it.
        trained: Vec<Trained>,
    },
    /// Worker to coordinator: it is there.
    Beat,
    /// Worker to coordinator, on a connection made anew: it is a member still, and says again what is not committed.
    Present {
        /// The plan it knows.
        plan: PlanNumber,
        /// Whether it takes part.
        standing: Presence,
    },
    /// Coordinator to members: who may be gone; they get no new work.
    Suspects(Vec<PeerId>),
    /// Coordinator to members: how far the run is.
    Frontier(Frontier),
    /// Coordinator to members: all work of the run is credited; agree for the last time, evaluate and save.
    Close {
        /// The outer step in which to agree, where replicas exchange weights.
        outer: Option<OuterStep>,
    },
    /// Coordinator to members, when one of them is lost: sign for all that was received up to now.
    Sign {
        /// The plan in which that one is missing.
        plan: PlanNumber,
    },
    /// Worker to coordinator: that is done; the receipts were said before this.
    Signed {
        /// Which plan it was asked in.
        plan: PlanNumber,
    },
    /// Worker to coordinator: it has to leave, and would like to hand in what it has.
    Leaving {
        /// How long it can stay.
        notice: Span,
    },
    /// Coordinator to a peer that is no member any longer.
    Removed {
        /// Why.
        why: Removal,
    },
    /// Coordinator to a stage-0 replica: microbatches to feed into the pipeline.
    Lease {
        /// The microbatches, in the order of the agenda.
        microbatches: Vec<MicrobatchId>,
        /// Which try this is.
        attempt: Attempt,
        /// Which stages are to train them.
        needs: Needs,
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
        /// As which taking of its place the sender did it.
        seat: SeatId,
        /// The optimizer step whose sum has it, if the first stage trained it.
        trained: Option<InnerStep>,
    },
    /// Stage to a replica of the next stage: this microbatch falls to it and does not come by this way; it need not be waited
    /// for.
    Diverted {
        /// Which.
        microbatch: MicrobatchId,
    },
    /// Worker to coordinator: work it received from others.
    Receipts(Vec<Receipt>),
    /// Among the replicas of a stage and the coordinator: about an outer step.
    Sync(Say),
    /// Among the replicas of a stage: the state that a newcomer starts from.
    State(StateSay),
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
    /// Whether it can read the text of the run.
    pub text: Text,
    /// Checkpoints that it has on its disk.
    pub held: Vec<Held>,
}

/// Whether a peer can read the text of the run, as the first and the last stage have to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Text {
    /// It can, also where the run makes its text from the seed.
    Here,
    /// It was told of none: it can hold an inner stage only.
    Missing,
}

/// A place's checkpoint on a peer's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Whose it was.
    pub place: Place,
    /// Steps taken before it.
    pub step: InnerStep,
    /// Digest of its contents.
    pub digest: Digest,
}

/// Whether a member that connects anew takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// It computes.
    Works,
    /// It waits for its state, or to be told to enter.
    Waits,
}

/// Why a peer that asked for a place has none yet; the code is the variant's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Wait {
    /// The run begins when every place has a peer.
    #[error("the run begins when every place of the plan has a peer")]
    AwaitsPeers,
    /// Every place is taken; it is the spare for the next that is free.
    #[error("every place is taken, it takes the next that is free")]
    NoVacancy,
    /// The stage it asks for has no free place.
    #[error("the stage it asks for has no free place")]
    StageTaken,
    /// Places are free, but in each the weights are with peers or on disks that are not here.
    #[error("the free place needs a checkpoint that this peer does not have")]
    NoShard,
    /// The run is about to end.
    #[error("the run is about to end")]
    Closing,
    /// Replicas that average each step's gradient take nobody in under way.
    #[error("replicas that average gradients take nobody in before the next start of the run")]
    NotUnderWay,
    /// The coordinator has started again, and waits for the members that went on without it.
    #[error("the coordinator has started again and waits for the members of the run to find it")]
    AwaitsMembers,
}

/// Why a peer is no member any longer; the code is the variant's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Removal {
    /// Nothing was heard of it for too long.
    #[error("nothing was heard of it for too long")]
    Silent,
    /// Its connection is gone.
    #[error("its connection is gone")]
    Disconnected,
    /// It was started anew, without what it held.
    #[error("it was started anew")]
    Restarted,
    /// It left, as it had said.
    #[error("it left")]
    Left,
    /// Its device, disk or data failed.
    #[error("it failed")]
    Failed,
    /// The other replicas went on from other weights than its own.
    #[error("the other replicas of its stage went on without it")]
    Excluded,
    /// Another stage needs it more; it is placed there when it asks again.
    #[error("another stage needs it more")]
    Moved,
    /// It was given a place, and did not get ready for it.
    #[error("it did not get ready in time")]
    Unready,
    /// It is in no plan that the coordinator knows.
    #[error("it is in no plan that the coordinator knows")]
    Unknown,
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
        /// Whose checkpoint it is: its own place's, or another replica's, of which then only the agreed weights are taken
        /// over, and not what that replica had trained since.
        of: Place,
    },
    /// From the weights that the live replicas of the stage agreed on, which they send.
    Replicas {
        /// The outer step that they committed last.
        outer: OuterStep,
        /// Digest of the weights that they agreed on.
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
    /// The seat of its sender: a peer that was lost and came back is credited for nothing that its former seat did.
    pub seat: SeatId,
    /// The version of the weights that made it.
    pub version: WeightVersion,
    /// Which stages are to train the microbatch in this try.
    pub needs: Needs,
    /// For a gradient: the optimizer step of its sender whose sum has the microbatch, if the sender trained it.
    pub trained: Option<InnerStep>,
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
    /// Microbatches in its sum.
    pub microbatches: u32,
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
    /// This peer has left, and the run goes on without it.
    Left,
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
    /// The peer is about to leave and takes no work that it could not hand in.
    #[error("about to leave, {microbatch} is not taken")]
    Leaves {
        /// The microbatch.
        microbatch: MicrobatchId,
    },
    /// A request for a state that is not held, because the stage has gone on or has not begun.
    #[error("the agreed state of outer step {} is not held here", .outer.0)]
    NoState {
        /// The outer step.
        outer: OuterStep,
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
    /// More entries than the protocol allows.
    #[error("field `{field}` has {got} entries, at most {max} are allowed")]
    TooMany {
        /// The field.
        field: String,
        /// How many.
        got: u64,
        /// The bound.
        max: u64,
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
