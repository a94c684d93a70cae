//! The ports of a node: what a driver tells it, and what it asks a driver to do.
//!
//! Owns the two vocabularies and the queue of actions. Knows nothing of who drives.

use crate::accounts::Account;
use crate::event::Event;
use crate::ids::{Digest, InnerStep, MicrobatchId, OuterStep, PeerId};
use crate::message::{Message, Outcome, Refusal};
use crate::plan::Place;
use crate::sync::blob::Blob;
use crate::sync::task::{SyncDone, SyncTask};
use crate::time::Span;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;

/// Something that happened to a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A message arrived from a peer that proved its key.
    Received {
        /// Who sent it.
        from: PeerId,
        /// What it says.
        message: Message,
    },
    /// A connection stands.
    Connected {
        /// To whom.
        peer: PeerId,
    },
    /// A connection is gone and could not be renewed, or never stood.
    Lost {
        /// To whom.
        peer: PeerId,
        /// Why, in words.
        reason: String,
    },
    /// Something below the messages was refused.
    Rejected {
        /// The sender, if it proved a key.
        peer: Option<PeerId>,
        /// Why, in words.
        reason: String,
    },
    /// A forward is done.
    Forwarded {
        /// Of which microbatch.
        microbatch: MicrobatchId,
        /// What came out.
        output: Output,
        /// How long it took.
        took: Took,
    },
    /// A backward is done.
    Backwarded {
        /// Of which microbatch.
        microbatch: MicrobatchId,
        /// The gradient of the boundary input; the first stage has none.
        gradient: Option<Bytes>,
        /// How long it took.
        took: Took,
    },
    /// An optimizer step is done.
    Stepped {
        /// Norm of the stage's gradient before clipping.
        gradient_norm: f64,
        /// The learning rate.
        learning_rate: f64,
        /// How long it took.
        took: Took,
        /// Bytes sent since the node began, as counted under QUIC.
        wire_bytes_total: u64,
    },
    /// A task of the outer step is done.
    Sync(SyncDone),
    /// Something is on disk.
    Stored {
        /// What.
        item: StoredItem,
        /// How long it took.
        took: Took,
    },
    /// A checkpoint is in place.
    Loaded {
        /// The step it continues from.
        step: InnerStep,
        /// How long it took.
        took: Took,
    },
    /// A state that other replicas sent cannot be used; answers `Import`. What was held before is as it was.
    Unfit {
        /// Why, in words.
        reason: String,
    },
    /// An effect could not be carried out: the device, the disk or the data failed.
    Faulted {
        /// What and why, in words.
        reason: String,
    },
    /// The state for a newcomer is copied; answers `Export`.
    Exported {
        /// The outer step whose agreed weights were asked for.
        outer: OuterStep,
        /// What all replicas of the stage share.
        agreed: Blob,
        /// What is this replica's own: the moments of its optimizer.
        own: Blob,
        /// How long computing stood still for it.
        took: Took,
    },
    /// The operator asks to stop at the next border.
    Drain,
    /// The machine is going away; leave within the notice.
    Leave {
        /// How long there is.
        notice: Span,
    },
    /// The deadline has come.
    Woke,
}

/// What a forward gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// The boundary tensor for the next stage.
    Boundary(Bytes),
    /// The mean cross-entropy, nats per token; the last stage's output.
    Loss(f32),
}

/// How long an effect took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Took {
    /// In all.
    pub total: Span,
    /// Part of it spent turning tensors into bytes and back.
    pub serialise: Span,
}

/// What has been made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredItem {
    /// A stage's checkpoint.
    Checkpoint {
        /// The step it continues from.
        step: InnerStep,
        /// Digest of its contents.
        digest: Digest,
    },
    /// The coordinator's state.
    Coordinator,
}

/// Something for the driver to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Connect and stay connected; answered by `Connected` or `Lost`.
    Dial {
        /// To whom.
        peer: PeerId,
        /// Where, opaque to the core.
        address: Bytes,
    },
    /// Send a message.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        message: Message,
    },
    /// Hold a stage: make its weights from the seed, and if asked read a checkpoint over them; answered by `Loaded`. What was
    /// asked for before it, for the stage that was held until now, is not answered any more.
    Load {
        /// Which stage, as which of its replicas.
        place: Place,
        /// From where.
        start: crate::message::Start,
    },
    /// Copy the state that a newcomer needs, as of the last commit; answered by `Exported`. Computing stands still for it.
    Export {
        /// The outer step that was committed last.
        outer: OuterStep,
    },
    /// Hold a stage with the state that other replicas sent; answered by `Loaded`, or by `Unfit`. What was asked for before it
    /// is not answered any more.
    Import {
        /// Which stage, as which of its replicas.
        place: Place,
        /// What all replicas of the stage share.
        agreed: Bytes,
        /// The moments of one replica's optimizer.
        own: Bytes,
        /// Digest that the agreed weights must have.
        digest: Digest,
    },
    /// Count the weights as having seen these steps; not answered.
    Enter {
        /// The steps.
        step: InnerStep,
    },
    /// Run a forward; answered by `Forwarded`.
    Forward {
        /// Of which microbatch.
        microbatch: MicrobatchId,
        /// The microbatch of the data set whose tokens it reads.
        data_index: u64,
        /// The boundary input; the first stage reads tokens instead.
        input: Option<Bytes>,
    },
    /// Run a backward; answered by `Backwarded`.
    Backward {
        /// Of which microbatch.
        microbatch: MicrobatchId,
        /// The microbatch of the data set whose tokens it reads.
        data_index: u64,
        /// The boundary input, kept since the forward.
        input: Option<Bytes>,
        /// The gradient of the boundary output; the last stage has the loss instead.
        gradient: Option<Bytes>,
        /// Whether the gradient of the weights is added to the sum.
        duty: Duty,
    },
    /// Let go what a forward left for its backward, which will not run, unless the forward runs again; not answered.
    Discard {
        /// Of which microbatch.
        microbatch: MicrobatchId,
    },
    /// Update the weights; answered by `Stepped`.
    Step {
        /// The step.
        step: InnerStep,
        /// Microbatches whose gradients are in the sum; with 0 the weights stay as they are, and only the step counts.
        microbatches: u32,
    },
    /// Compute for the outer step; answered by the `Sync` of the same kind, in the order in which tasks were asked for.
    Sync(SyncTask),
    /// Make durable; answered by `Stored`.
    Store(StoreItem),
    /// Write to the event log.
    Record(Event),
    /// The node is done; send what is queued, then close.
    Finish(Outcome),
}

/// What a backward is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    /// The gradient of the weights is added to the sum.
    Train,
    /// Only the gradient of the input is wanted: the stage's part is trained already.
    Ghost,
}

/// What is to be made durable.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreItem {
    /// The stage's weights, moments and position.
    Checkpoint {
        /// The step it continues from.
        step: InnerStep,
    },
    /// The coordinator's state, to be given back when it starts again, and the ledger for people to read; both together.
    Coordinator {
        /// The state.
        state: Bytes,
        /// Who has trained what.
        accounts: Vec<Account>,
    },
}

/// The actions that wait to be polled, in order.
#[derive(Debug, Default)]
pub struct Outbox(VecDeque<Action>);

impl Outbox {
    /// Adds an action.
    pub fn push(&mut self, action: Action) {
        self.0.push_back(action);
    }

    /// Adds a message.
    pub fn send(&mut self, to: PeerId, message: Message) {
        self.push(Action::Send { to, message });
    }

    /// Adds an event.
    pub fn record(&mut self, event: Event) {
        self.push(Action::Record(event));
    }

    /// Adds an event about a place, where there is one.
    pub fn record_at(&mut self, place: Option<Place>, event: impl FnOnce(Place) -> Event) {
        if let Some(place) = place {
            self.record(event(place));
        }
    }

    /// Refuses what a peer sent: tells it, and records it.
    pub fn refuse(&mut self, peer: PeerId, refusal: Refusal) {
        self.record(Event::Refused { peer, refusal: refusal.clone() });
        self.send(peer, Message::Refused(refusal));
    }

    /// Takes the next action.
    pub fn pop(&mut self) -> Option<Action> {
        self.0.pop_front()
    }
}
