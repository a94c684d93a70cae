//! Events: what a node did and saw, the only thing that dashboards, replays and benchmarks read.
//!
//! Owns the vocabulary of the event log. Knows nothing of files or of who reads it.

use crate::accounts::Account;
use crate::ids::{
    Attempt, Digest, InnerStep, MicrobatchId, OuterStep, PeerId, PlanNumber, ReplicaId, StageId,
};
use crate::message::{Outcome, Refusal, Removal, StepReport, Wait};
use crate::plan::Place;
use crate::time::Span;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Something that happened at one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A peer asked for a place.
    Joined {
        /// Who.
        peer: PeerId,
        /// What its device is called.
        device: String,
        /// Its measured peak, FLOP/s.
        peak_flops: u64,
    },
    /// A plan was made.
    Planned {
        /// Its number.
        plan: PlanNumber,
        /// Who holds what.
        members: Vec<(PeerId, Place)>,
    },
    /// All members are ready; work begins.
    Started {
        /// At this step.
        step: InnerStep,
    },
    /// Microbatches were leased.
    Leased {
        /// To whom.
        peer: PeerId,
        /// The first in the order of the agenda.
        first: MicrobatchId,
        /// How many.
        count: u32,
        /// Which try.
        attempt: Attempt,
    },
    /// A lease ran out before its work was settled.
    LeaseExpired {
        /// The microbatch.
        microbatch: MicrobatchId,
        /// The try that ran out.
        attempt: Attempt,
    },
    /// A computation ended.
    Computed {
        /// Which.
        task: TaskKind,
        /// On which microbatch, if on one.
        microbatch: Option<MicrobatchId>,
        /// How long it took.
        took: Span,
    },
    /// Something arrived that was there already; it changes nothing.
    Duplicate {
        /// Of which microbatch.
        microbatch: MicrobatchId,
        /// From whom.
        from: PeerId,
    },
    /// An inner step is complete at all stages.
    Step(StepSummary),
    /// The held-out loss at a border.
    Evaluated {
        /// The border.
        step: InnerStep,
        /// Mean cross-entropy, nats per token.
        loss: f64,
        /// Microbatches it is the mean of.
        microbatches: u64,
        /// Time for which no training microbatch was in flight because of it.
        took: Span,
    },
    /// A worker's state is on disk.
    Saved {
        /// The step it continues from.
        step: InnerStep,
        /// Its digest.
        digest: Digest,
    },
    /// All stages are saved and the coordinator's state says so: the run can continue from here.
    Durable {
        /// The step it continues from.
        step: InnerStep,
        /// The longest time a stage stood still for it.
        took: Span,
    },
    /// An outer step is decided for all stages.
    Outer(OuterSummary),
    /// This replica goes on from the committed weights.
    Agreed {
        /// The outer step.
        outer: OuterStep,
        /// Digest of the stage's weights, the same at all its replicas.
        digest: Digest,
    },
    /// This replica goes on as before the outer step.
    Restored {
        /// The outer step.
        outer: OuterStep,
    },
    /// What a replica contributed or reduced cannot be used.
    Flawed {
        /// The outer step.
        outer: OuterStep,
        /// Whose it is.
        replica: ReplicaId,
        /// Why, in words.
        reason: String,
    },
    /// Two reducers of a shard gave different results, or replicas voted for different weights (then `shard` is one past
    /// the last).
    Disagreed {
        /// The outer step.
        outer: OuterStep,
        /// The stage.
        stage: StageId,
        /// The shard.
        shard: u16,
    },
    /// A replica did not answer, and the others go on without it.
    Excluded {
        /// The outer step.
        outer: OuterStep,
        /// Who.
        peer: PeerId,
        /// The stage it held.
        stage: StageId,
    },
    /// The sum of the ledger at the end.
    Ledger {
        /// Training microbatches of the plan since the start or the last resume.
        planned: u64,
        /// Credited for each stage.
        credited: Vec<u64>,
        /// Receipts for work that was credited already.
        duplicates: u64,
        /// Done again at each stage because it was lost with a peer; part of `credited`.
        redone: Vec<u64>,
        /// Who has trained what.
        accounts: Vec<Account>,
    },
    /// A peer that asked for a place has none yet.
    Waiting {
        /// Who; ourselves, in our own log.
        peer: PeerId,
        /// Peers that are served before it.
        ahead: u32,
        /// What it waits for.
        why: Wait,
    },
    /// A peer took a place while the run goes on.
    Seated {
        /// Who.
        peer: PeerId,
        /// Which place.
        place: Place,
        /// The inner step from which microbatches fall to it.
        enters: InnerStep,
    },
    /// A member may be gone: it gets no new work.
    Suspected {
        /// Who.
        peer: PeerId,
        /// Its place.
        place: Place,
    },
    /// A suspect was heard again.
    Trusted {
        /// Who.
        peer: PeerId,
        /// Its place.
        place: Place,
    },
    /// A member asked to leave.
    Leaving {
        /// Who.
        peer: PeerId,
        /// Its place.
        place: Place,
        /// How long it can stay.
        notice: Span,
    },
    /// A member is no member any longer; its place is free.
    Removed {
        /// Who.
        peer: PeerId,
        /// Its place.
        place: Place,
        /// Why.
        why: Removal,
        /// Microbatches whose credit was lost with it, because no commit held them yet.
        lost: u64,
    },
    /// A stage has no replica left and stands still; the others go on as far as they can.
    Stalled {
        /// Which.
        stage: StageId,
        /// The step of its last durable checkpoint, from which a peer that has it can go on.
        durable: InnerStep,
    },
    /// A stage that stood still has a replica again.
    Resumed {
        /// Which.
        stage: StageId,
    },
    /// Work goes to another replica than before.
    Rerouted {
        /// Of which microbatch.
        microbatch: MicrobatchId,
        /// The replica that does not answer.
        from: PeerId,
        /// The one that is asked in its place.
        to: PeerId,
    },
    /// Microbatches whose work at some stages was lost are leased again for those.
    Redo {
        /// How many.
        count: u64,
        /// The first.
        first: MicrobatchId,
    },
    /// Something a peer sent was refused.
    Refused {
        /// The sender.
        peer: PeerId,
        /// Why.
        refusal: Refusal,
    },
    /// Something below the messages was refused: bytes that are no message, a peer of another run.
    Rejected {
        /// The sender, if it proved a key.
        peer: Option<PeerId>,
        /// Why, in words.
        reason: String,
    },
    /// We were refused by a peer.
    RefusedBy {
        /// By whom.
        peer: PeerId,
        /// Why.
        refusal: Refusal,
    },
    /// A connection is gone and could not be renewed.
    PeerLost {
        /// To whom.
        peer: PeerId,
        /// The stage it held, if it was a member.
        stage: Option<StageId>,
        /// Why, in words.
        reason: String,
    },
    /// The run stops at a border, on request.
    Draining {
        /// The border.
        border: InnerStep,
    },
    /// The run is over for this node.
    Finished {
        /// How.
        outcome: Outcome,
    },
}

/// A kind of computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TaskKind {
    /// A stage's forward.
    Forward,
    /// A stage's backward.
    Backward,
    /// An optimizer step.
    Step,
    /// Writing a checkpoint.
    Save,
    /// Reading a checkpoint.
    Load,
    /// Copying the weights for an outer step.
    Snapshot,
    /// Encoding a pseudo-gradient.
    Encode,
    /// Reducing a shard.
    Reduce,
    /// Making the next weights beside the current ones.
    Stage,
    /// Making what is staged current.
    Commit,
    /// Forgetting what is staged.
    Restore,
    /// Going over to the committed weights.
    Adopt,
    /// Copying the state that a newcomer starts from.
    Export,
}

/// How an outer step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// All replicas go on from the same weights.
    Committed,
    /// All go on as before it.
    Restored,
}

/// An outer step, over all stages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OuterSummary {
    /// Which.
    pub outer: OuterStep,
    /// Inner steps at its border.
    pub step: InnerStep,
    /// How it ended.
    pub verdict: Verdict,
    /// From the first replica at the border to the decision.
    pub took: Span,
    /// The most tries that a stage needed.
    pub attempts: Attempt,
    /// Who contributed to each stage, with its weight.
    pub contributors: Vec<(StageId, Vec<(ReplicaId, u64)>)>,
    /// Digest of each stage's weights; empty when restored.
    pub digests: Vec<(StageId, Digest)>,
}

/// An inner step, over all stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepSummary {
    /// The step.
    pub step: InnerStep,
    /// Mean training cross-entropy, nats per token.
    pub loss: f64,
    /// Training tokens in it.
    pub tokens: u64,
    /// Time since the previous step was complete.
    pub wall: Span,
    /// Part of it that was not training: evaluation and checkpoints.
    pub outside: Span,
    /// What each member reports.
    pub reports: Vec<(Place, StepReport)>,
}
