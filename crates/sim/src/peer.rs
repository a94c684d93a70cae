//! A simulated peer: a node of the core, what computes for it, and whether it still lives.
//!
//! Owns one peer's key, device and effects. Knows nothing of links or of the other peers.

use crate::compute::{Compute, Device, Fault, Spans, Work};
use crate::draws::derive;
use ed25519_dalek::SigningKey;
use trestle_protocol::ids::{InnerStep, MicrobatchId, PeerId};
use trestle_protocol::message::Start;
use trestle_protocol::node::Node;
use trestle_protocol::plan::Place;
use trestle_protocol::port::{Input, StoredItem, Took};
use trestle_protocol::sync::task::SyncTask;
use trestle_protocol::time::{Span, Time};

/// Whether a peer takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It works.
    Up,
    /// It has left, as the protocol lets it.
    Left,
    /// It died.
    Down,
}

/// A peer.
pub struct Peer {
    /// Its id.
    pub id: PeerId,
    /// Its part of the core.
    pub node: Node,
    /// Whether it takes part.
    pub life: Life,
    /// When it wants to be woken.
    pub deadline: Option<Time>,
    /// Bytes it has sent.
    pub wire_bytes: u64,
    /// What computes for it; the coordinator computes nothing.
    pub worker: Option<Computing>,
}

/// The compute of a worker and the device that it runs on.
pub struct Computing {
    /// What it answers.
    pub compute: Box<dyn Compute>,
    /// How long it takes.
    pub device: Device,
    /// When what goes on beside computing, one task after another, is done.
    pub beside_free: Time,
}

/// Derives the key of a peer from the seed.
pub fn key(seed: u64, peer: usize) -> SigningKey {
    SigningKey::from_bytes(&derive(seed, "key", &[peer as u64]))
}

/// Returns the id that belongs to a key.
pub fn id(key: &SigningKey) -> PeerId {
    PeerId(key.verifying_key().to_bytes())
}

impl Computing {
    /// Holds a stage; gives what the node hears, and after how long.
    pub fn load(&mut self, place: Place, start: Start) -> (Span, Input) {
        let result = self.compute.load(place, start);
        let step = match start {
            Start::Fresh => InnerStep(0),
            Start::Checkpoint { step, .. } => step,
        };
        self.answer(|spans| spans.load, result, |(), took| Input::Loaded { step, took })
    }

    /// Runs a forward; gives what the node hears, and after how long.
    pub fn forward(&mut self, work: Work<'_>) -> (Span, Input) {
        let microbatch = work.microbatch;
        let result = self.compute.forward(work);
        self.answer(
            |spans| spans.forward,
            result,
            |output, took| Input::Forwarded { microbatch, output, took },
        )
    }

    /// Runs a backward; gives what the node hears, and after how long.
    pub fn backward(&mut self, work: Work<'_>, gradient: Option<&bytes::Bytes>) -> (Span, Input) {
        let microbatch: MicrobatchId = work.microbatch;
        let result = self.compute.backward(work, gradient);
        self.answer(
            |spans| spans.backward,
            result,
            |gradient, took| Input::Backwarded { microbatch, gradient, took },
        )
    }

    /// Updates the weights; gives what the node hears, and after how long.
    pub fn step(&mut self, microbatches: u32, wire_bytes_total: u64) -> (Span, Input) {
        let result = self.compute.step(microbatches);
        self.answer(
            |spans| spans.step,
            result,
            |updated, took| Input::Stepped {
                gradient_norm: updated.gradient_norm,
                learning_rate: updated.learning_rate,
                took,
                wire_bytes_total,
            },
        )
    }

    /// Writes a checkpoint; gives what the node hears, and after how long.
    pub fn save(&mut self, step: InnerStep) -> (Span, Input) {
        let result = self.compute.save(step);
        self.answer(
            |spans| spans.save,
            result,
            |digest, took| Input::Stored { item: StoredItem::Checkpoint { step, digest }, took },
        )
    }

    /// Carries out a task of an outer step; gives what the node hears, and after how long. A snapshot or an adoption keeps
    /// the device busy; what else there is to do waits for its turn beside it.
    pub fn agree(&mut self, now: Time, task: SyncTask) -> (Span, Input) {
        let spans = self.device.spans;
        let beside = match &task {
            SyncTask::Snapshot { .. } | SyncTask::Adopt { .. } => false,
            SyncTask::Encode { .. }
            | SyncTask::Reduce { .. }
            | SyncTask::Stage { .. }
            | SyncTask::Commit { .. }
            | SyncTask::Restore { .. } => true,
        };
        let (done, bytes) = match self.compute.agree(task) {
            Ok(answer) => answer,
            Err(Fault(reason)) => return (Span(0), Input::Faulted { reason }),
        };
        let rate = if beside { spans.beside } else { spans.copy };
        let took = self.device.draw(rate.span(bytes));
        let begins = if beside { self.beside_free.max(now) } else { now };
        if beside {
            self.beside_free = begins + took;
        }
        ((begins + took).since(now), Input::Sync(done.timed(took)))
    }

    fn answer<T>(
        &mut self,
        mean: impl Fn(&Spans) -> Span,
        result: Result<T, Fault>,
        input: impl FnOnce(T, Took) -> Input,
    ) -> (Span, Input) {
        let total = self.device.draw(mean(&self.device.spans));
        let input = match result {
            Ok(value) => input(value, Took { total, serialise: Span(0) }),
            Err(Fault(reason)) => Input::Faulted { reason },
        };
        (total, input)
    }
}
