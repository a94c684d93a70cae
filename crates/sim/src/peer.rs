//! A simulated peer: a node of the core, what computes for it, and whether it still lives.
//!
//! Owns one peer's key, device and effects. Knows nothing of links or of the other peers.

use crate::clock::Clock;
use crate::compute::{Compute, Device, Fault, Handover, Imported, Spans, Work, cut};
use crate::disk::Disk;
use crate::draws::derive;
use ed25519_dalek::SigningKey;
use std::collections::{BTreeSet, VecDeque};
use trestle_protocol::ids::{Digest, InnerStep, MicrobatchId, OuterStep, PeerId, Split};
use trestle_protocol::message::Start;
use trestle_protocol::node::Node;
use trestle_protocol::plan::Place;
use trestle_protocol::port::{Duty, Input, StoredItem, Took};
use trestle_protocol::sync::task::SyncTask;
use trestle_protocol::time::{Span, Time};

/// What the last inputs of a peer are remembered for: to say what a peer that waits heard last.
const RECENT: usize = 6;

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

/// Something that a peer is to hear.
#[derive(Debug)]
pub struct News {
    /// For the answer to a computation, how often a stage was taken hold of before it was asked for: whoever takes hold of one
    /// anew hears no answer to what was asked before.
    pub hold: Option<u32>,
    /// What happened.
    pub input: Input,
}

impl From<Input> for News {
    fn from(input: Input) -> Self {
        Self { hold: None, input }
    }
}

/// A peer.
pub struct Peer {
    /// Its id.
    pub id: PeerId,
    /// Its part of the core.
    pub node: Node,
    /// Whether it takes part.
    pub life: Life,
    /// How often a process with this key was started before; what an earlier one began does not reach a later one.
    pub birth: u32,
    /// When it wants to be woken, by its own clock.
    pub deadline: Option<Time>,
    /// When the swarm has noted that it wants to be woken.
    pub noted: Option<Time>,
    /// Its clock.
    pub clock: Clock,
    /// Until when it handles and sends nothing.
    pub frozen_until: Option<Time>,
    /// What happened to it meanwhile.
    pub waiting: VecDeque<News>,
    /// Until when its disk is full.
    pub disk_full_until: Time,
    /// Bytes it has sent.
    pub wire_bytes: u64,
    /// What it heard last, with the time.
    pub recent: VecDeque<(Time, &'static str)>,
    /// What computes for it; the coordinator computes nothing.
    pub worker: Option<Computing>,
}

impl Peer {
    /// Makes a peer that has heard nothing yet.
    pub fn new(id: PeerId, node: Node, worker: Option<Computing>) -> Self {
        Self {
            id,
            node,
            life: Life::Up,
            birth: 0,
            deadline: None,
            noted: None,
            clock: Clock::default(),
            frozen_until: None,
            waiting: VecDeque::new(),
            disk_full_until: Time(0),
            wire_bytes: 0,
            recent: VecDeque::new(),
            worker,
        }
    }

    /// Returns whether it lives and is not frozen.
    pub fn is_responsive(&self) -> bool {
        self.life == Life::Up && self.frozen_until.is_none()
    }

    /// Returns when it wants to be woken.
    pub fn wakes_at(&self) -> Option<Time> {
        let deadline = self.deadline.filter(|_| self.is_responsive())?;
        Some(self.clock.when(deadline))
    }

    /// Returns whether some news still concerns it.
    pub fn is_concerned(&self, news: &News) -> bool {
        news.hold.is_none_or(|hold| self.worker.as_ref().is_some_and(|worker| worker.holds == hold))
    }

    /// Remembers what it heard.
    pub fn heard(&mut self, now: Time, what: &'static str) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((now, what));
    }
}

/// The compute of a worker and the device that it runs on.
pub struct Computing {
    /// What it answers.
    pub compute: Box<dyn Compute>,
    /// How long it takes.
    pub device: Device,
    /// When what goes on beside computing, one task after another, is done.
    pub beside_free: Time,
    /// Which place it holds, once it was told.
    pub place: Option<Place>,
    /// How often it took hold of a stage.
    pub holds: u32,
    /// Until when it is slower, and by what factor.
    pub slow: Option<(Time, u64)>,
    /// Training microbatches that were forwarded and wait for their backward: a device has their graphs in its memory.
    graphs: BTreeSet<u64>,
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
    /// Makes the compute of a worker that holds nothing yet.
    pub fn new(compute: Box<dyn Compute>, device: Device, now: Time) -> Self {
        Self { compute, device, beside_free: now, place: None, holds: 0, slow: None, graphs: BTreeSet::new() }
    }

    /// Holds a stage; gives what the node hears, and after how long.
    pub fn load(&mut self, place: Place, start: Start, disk: &Disk) -> (Span, Input) {
        let result = self.compute.load(place, start, disk);
        self.place = Some(place);
        self.graphs.clear();
        let step = match start {
            Start::Fresh | Start::Replicas { .. } => InnerStep(0),
            Start::Checkpoint { step, .. } => step,
        };
        self.answer(|spans| spans.load, result, |(), took| Input::Loaded { step, took })
    }

    /// Copies the state for a newcomer; gives what the node hears, and after how long.
    pub fn export(&mut self, outer: OuterStep) -> (Span, Input) {
        let result = self.compute.export(outer);
        let bytes = result.as_ref().map_or(0, |state| state.agreed.len() as u64 + state.own.len() as u64);
        self.answer(
            |spans| spans.copy.span(bytes),
            result,
            |Handover { agreed, own, chunks }, took| Input::Exported {
                outer,
                agreed: cut(agreed, chunks),
                own: cut(own, chunks),
                took,
            },
        )
    }

    /// Holds a stage with the state that others sent; gives what the node hears, and after how long.
    pub fn import(&mut self, place: Place, state: &Handover, digest: Digest) -> (Span, Input) {
        let result = self.compute.import(place, state, digest);
        self.place = Some(place);
        self.graphs.clear();
        self.answer(
            |spans| spans.load,
            result,
            |imported, took| match imported {
                Imported::Held(step) => Input::Loaded { step, took },
                Imported::Unfit(reason) => Input::Unfit { reason },
            },
        )
    }

    /// Runs a forward; gives what the node hears, and after how long.
    pub fn forward(&mut self, work: Work<'_>) -> (Span, Input) {
        let microbatch = work.microbatch;
        let result = self.compute.forward(work);
        if microbatch.split == Split::Train {
            self.graphs.insert(microbatch.index);
        }
        self.answer(
            |spans| spans.forward,
            result,
            |output, took| Input::Forwarded { microbatch, output, took },
        )
    }

    /// Runs a backward; gives what the node hears, and after how long.
    pub fn backward(&mut self, work: Work<'_>, gradient: Option<&bytes::Bytes>, duty: Duty) -> (Span, Input) {
        let microbatch: MicrobatchId = work.microbatch;
        let result = self.compute.backward(work, gradient, duty);
        self.graphs.remove(&microbatch.index);
        self.answer(
            |spans| spans.backward,
            result,
            |gradient, took| Input::Backwarded { microbatch, gradient, took },
        )
    }

    /// Lets go what a forward left for its backward.
    pub fn discard(&mut self, microbatch: MicrobatchId) {
        self.compute.discard(microbatch);
        self.graphs.remove(&microbatch.index);
    }

    /// Returns how many forwards wait for their backward on the device.
    pub fn graphs(&self) -> usize {
        self.graphs.len()
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
    pub fn save(&mut self, step: InnerStep, disk: &mut Disk) -> (Span, Input) {
        let result = self.compute.save(step, disk);
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
        let took = self.lasts(rate.span(bytes));
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
        let total = self.lasts(mean(&self.device.spans));
        let input = match result {
            Ok(value) => input(value, Took { total, serialise: Span(0) }),
            Err(Fault(reason)) => Input::Faulted { reason },
        };
        (total, input)
    }

    /// Draws how long something takes, now that the device is as slow as it is.
    fn lasts(&mut self, mean: Span) -> Span {
        let factor = self.slow.map_or(1, |(_, factor)| factor);
        self.device.draw(Span(mean.0.saturating_mul(factor)))
    }
}
