//! The simulated driver: runs a whole swarm of nodes on one thread, one seed and virtual time.
//!
//! Owns the loop of events, the links and what is durable. Takes no decision of the protocol; it carries out actions and
//! reports what happened, as the real driver does, but in an order that the seed alone decides.

use crate::compute::{Compute, Device, Spans, Work};
use crate::fault::{Fault, Faults};
use crate::link::{Delivery, Freight, LaneId, Link, Links};
use crate::log::{EventLog, Tally};
use crate::losses::Losses;
use crate::peer::{self, Computing, Life, Peer};
use crate::queue::Queue;
use crate::stranger::Stranger;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use trestle_protocol::coordinator::CoordinatorConfig;
use trestle_protocol::durable::StateError;
use trestle_protocol::event::Event;
use trestle_protocol::ids::{Digest, PeerId, ReplicaId, StageId};
use trestle_protocol::message::{Join, Message, Outcome};
use trestle_protocol::node::Node;
use trestle_protocol::plan::Place;
use trestle_protocol::port::{Action, Input, StoreItem, StoredItem, Took};
use trestle_protocol::spec::RunSpec;
use trestle_protocol::sync::say::Say;
use trestle_protocol::time::{Span, Time};
use trestle_protocol::wire::{self, Frame};
use trestle_protocol::worker::WorkerConfig;

/// How long the coordinator's state takes to reach the disk: one small synced write.
const STATE_STORE: Span = Span::millis(5);

/// How long peers take to notice that another is gone, as the transport's idle time limit has it.
const LOSS_NOTICED: Span = Span::seconds(10);

/// Virtual time without a step, evaluation or checkpoint after which a run is taken to be stuck: beyond the three leases
/// (300 s, 600 s, 1,200 s) after which the core itself gives up.
const SILENCE_MAX: Span = Span::seconds(7_200);

/// The coordinator's place among the peers.
const COORDINATOR: usize = 0;

/// Makes what computes for one worker.
pub type ComputeMaker<'a> = dyn Fn(&RunSpec) -> Box<dyn Compute> + 'a;

/// What a swarm is like.
#[derive(Clone, Debug)]
pub struct SwarmConfig {
    /// The run.
    pub spec: RunSpec,
    /// Decides keys, delays and everything else that is drawn.
    pub seed: u64,
    /// All links but those named in `own_links`.
    pub link: Link,
    /// The links of single stages' peers.
    pub own_links: BTreeMap<StageId, Link>,
    /// How long the devices of each stage compute.
    pub spans: Vec<Spans>,
}

/// How a running of the swarm ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every peer left; the coordinator says how.
    Left(Outcome),
    /// Every worker left or died, and the coordinator died.
    Headless,
    /// The scenario let everything die.
    Crashed,
    /// Nothing more happens, or nothing that counts, and peers still wait.
    Stuck,
}

/// Why a simulation could not be run.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// The event log cannot be written.
    #[error("event log cannot be written: {0}")]
    Log(#[from] io::Error),
    /// The durable state does not fit the run.
    #[error("coordinator cannot start again: {0}")]
    State(#[from] StateError),
    /// The model or its data cannot be made.
    #[error("model cannot be made: {0}")]
    Compute(#[from] crate::compute::Fault),
}

/// What a whole simulation gives.
#[derive(Clone, Debug, PartialEq)]
pub struct SimOutcome {
    /// BLAKE3 over the lines of the event log.
    pub digest: Digest,
    /// The sums of the log.
    pub tally: Tally,
    /// How each running ended.
    pub endings: Vec<Ending>,
    /// Virtual time at the end.
    pub time: Time,
    /// Messages sent.
    pub messages: u64,
    /// Bytes of headers and payloads sent.
    pub wire_bytes: u64,
    /// The most bytes of boundary inputs that one worker kept.
    pub kept_bytes_max: usize,
}

impl SimOutcome {
    /// Returns the losses, the latest of each step and border.
    pub fn losses(&self) -> Losses {
        let Tally { losses, evaluations, .. } = &self.tally;
        Losses { steps: losses.iter().copied().collect(), evaluations: evaluations.iter().copied().collect() }
    }
}

/// Something that will happen.
enum Happening {
    /// A peer hears of something.
    Heard { to: usize, input: Input },
    /// A frame arrives.
    Arrived { from: usize, to: usize, frame: Frame },
    /// A bulk message may have left.
    Turn(LaneId),
    /// The coordinator's state has reached the disk.
    Inked { state: Bytes },
    /// The scenario acts.
    Struck(Fault),
    /// The stranger speaks.
    StrangerTurn,
}

/// A swarm, with what outlives its peers.
pub struct Swarm<'a> {
    config: SwarmConfig,
    maker: &'a ComputeMaker<'a>,
    log: EventLog<'a>,
    now: Time,
    durable: Option<Bytes>,
    links: Links,
    faults: Faults,
    peers: Vec<Peer>,
    by_id: BTreeMap<PeerId, usize>,
    connected: BTreeSet<(usize, usize)>,
    queue: Queue<Happening>,
    stranger: Option<Stranger>,
    progress_at: Time,
    crashed: bool,
    messages: u64,
    wire_bytes: u64,
    kept_bytes_max: usize,
    endings: Vec<Ending>,
}

impl<'a> Swarm<'a> {
    /// Makes a swarm that has not begun; its log goes to `sink`.
    pub fn new(config: SwarmConfig, maker: &'a ComputeMaker<'a>, sink: &'a mut dyn Write) -> Self {
        let replicas = config.spec.pipeline.replicas;
        let peers_of = |stage: &StageId| {
            let first = seat(replicas, Place { stage: *stage, replica: ReplicaId(0) });
            first..first + usize::from(replicas)
        };
        let own = config.own_links.iter().flat_map(|(stage, link)| peers_of(stage).map(|peer| (peer, *link)));
        let links = Links::new(config.seed, config.link, own.collect());
        Self {
            config,
            maker,
            log: EventLog::new(sink),
            now: Time(0),
            durable: None,
            links,
            faults: Faults::default(),
            peers: Vec::new(),
            by_id: BTreeMap::new(),
            connected: BTreeSet::new(),
            queue: Queue::new(),
            stranger: None,
            progress_at: Time(0),
            crashed: false,
            messages: 0,
            wire_bytes: 0,
            kept_bytes_max: 0,
            endings: Vec::new(),
        }
    }

    /// Returns whether there is a state to continue from.
    pub fn is_durable(&self) -> bool {
        self.durable.is_some()
    }

    /// Starts every peer, from the durable state if there is one, and runs until all have left or died.
    ///
    /// # Errors
    /// The log cannot be written, or a peer cannot be made.
    pub fn run(&mut self, faults: Faults) -> Result<Ending, SwarmError> {
        self.begin(faults)?;
        loop {
            if self.crashed {
                return Ok(self.end(Ending::Crashed));
            }
            if self.peers.iter().all(|peer| peer.life != Life::Up) {
                let outcome = self.log.tally().outcome.clone();
                return Ok(self.end(outcome.map_or(Ending::Headless, Ending::Left)));
            }
            let waking = self.next_deadline();
            let coming = self.queue.next_at();
            let next = match (coming, waking) {
                (Some(at), Some((deadline, _))) => at.min(deadline),
                (Some(at), None) | (None, Some((at, _))) => at,
                (None, None) => return Ok(self.end(Ending::Stuck)),
            };
            if next.since(self.progress_at) > SILENCE_MAX {
                return Ok(self.end(Ending::Stuck));
            }
            self.now = self.now.max(next);
            match (coming, waking) {
                (Some(at), _) if at <= next => {
                    let Some((_, happening)) = self.queue.pop() else { continue };
                    self.happen(happening)?;
                }
                (_, Some((_, peer))) => self.drive(peer, Input::Woke)?,
                (_, None) => {}
            }
        }
    }

    /// Ends the simulation.
    pub fn finish(self) -> SimOutcome {
        let (digest, tally) = self.log.finish();
        SimOutcome {
            digest,
            tally,
            endings: self.endings,
            time: self.now,
            messages: self.messages,
            wire_bytes: self.wire_bytes,
            kept_bytes_max: self.kept_bytes_max,
        }
    }

    fn begin(&mut self, faults: Faults) -> Result<(), SwarmError> {
        self.log.begins();
        self.queue = Queue::new();
        self.links.clear();
        self.connected.clear();
        self.crashed = false;
        self.progress_at = self.now;
        for (after, fault) in faults.timed() {
            self.queue.push(self.now + after, Happening::Struck(fault));
        }
        self.stranger = faults.stranger_every.map(|_| Stranger::new(self.config.seed));
        self.faults = faults;
        self.peers = self.make_peers()?;
        self.by_id = self.peers.iter().enumerate().map(|(index, peer)| (peer.id, index)).collect();
        for worker in 1..self.peers.len() {
            self.connect(worker, COORDINATOR);
        }
        Ok(())
    }

    fn end(&mut self, ending: Ending) -> Ending {
        self.peers.clear();
        self.endings.push(ending.clone());
        ending
    }

    fn make_peers(&self) -> Result<Vec<Peer>, SwarmError> {
        let SwarmConfig { spec, seed, spans, .. } = &self.config;
        assert_eq!(spans.len(), usize::from(spec.stages()), "each stage has its spans");
        let coordinator = peer::id(&peer::key(*seed, COORDINATOR));
        let config = CoordinatorConfig { spec: spec.clone(), me: coordinator };
        let node = Node::coordinator(config, self.durable.as_deref())?;
        let new = |id, node, worker| Peer { id, node, life: Life::Up, deadline: None, wire_bytes: 0, worker };
        let mut peers = vec![new(coordinator, node, None)];
        for (stage, spans) in (0..spec.stages()).map(StageId).zip(spans) {
            for _ in 0..spec.pipeline.replicas {
                let index = peers.len();
                let key = peer::key(*seed, index);
                let id = peer::id(&key);
                let device = format!("simulated device {index}");
                let join = Join {
                    address: Bytes::copy_from_slice(&id.0),
                    stage: Some(stage),
                    device,
                    peak_flops: 0,
                };
                let node = Node::worker(WorkerConfig { spec: spec.clone(), key, coordinator, join });
                let device = Device::new(*seed, index, *spans);
                let worker = Computing { compute: (self.maker)(spec), device, beside_free: self.now };
                peers.push(new(id, node, Some(worker)));
            }
        }
        Ok(peers)
    }

    fn next_deadline(&self) -> Option<(Time, usize)> {
        let waiting = self.peers.iter().enumerate().filter(|(_, peer)| peer.life == Life::Up);
        waiting.filter_map(|(index, peer)| Some((peer.deadline?, index))).min()
    }

    fn happen(&mut self, happening: Happening) -> Result<(), SwarmError> {
        match happening {
            Happening::Heard { to, input } => self.drive(to, input),
            Happening::Arrived { from, to, frame } => {
                let from = self.id_of(from);
                let input = match wire::decode(&frame) {
                    Ok(message) => Input::Received { from, message },
                    Err(error) => Input::Rejected { peer: Some(from), reason: error.to_string() },
                };
                self.drive(to, input)
            }
            Happening::Turn(lane) => {
                self.turn(lane);
                Ok(())
            }
            Happening::Inked { state } => {
                if self.peers[COORDINATOR].life == Life::Up {
                    self.durable = Some(state);
                }
                let took = Took { total: STATE_STORE, serialise: Span(0) };
                self.drive(COORDINATOR, Input::Stored { item: StoredItem::Coordinator, took })
            }
            Happening::Struck(Fault::Drain) => self.drive(COORDINATOR, Input::Drain),
            Happening::Struck(Fault::Crash) => {
                self.crashed = true;
                Ok(())
            }
            Happening::Struck(Fault::Kill { place }) => {
                self.kill(seat(self.config.spec.pipeline.replicas, place));
                Ok(())
            }
            Happening::StrangerTurn => {
                self.stranger_speaks();
                Ok(())
            }
        }
    }

    /// Tells a node what happened, and carries out what it answers.
    fn drive(&mut self, index: usize, input: Input) -> Result<(), SwarmError> {
        let now = self.now;
        if self.peers[index].life != Life::Up {
            return Ok(());
        }
        self.peers[index].node.handle(now, input);
        while let Some(action) = self.peers[index].node.poll() {
            self.act(index, action)?;
        }
        let peer = &mut self.peers[index];
        peer.deadline = peer.node.deadline();
        self.kept_bytes_max = self.kept_bytes_max.max(peer.node.kept_bytes());
        Ok(())
    }

    fn act(&mut self, index: usize, action: Action) -> Result<(), SwarmError> {
        match action {
            Action::Dial { peer, .. } => match self.by_id.get(&peer) {
                Some(&other) => self.connect(index, other),
                None => self.hear(index, Span(0), Input::Lost { peer, reason: "no such peer".into() }),
            },
            Action::Send { to, message } => self.send(index, to, &message),
            Action::Load { place, start } => self.compute(index, |worker, _| worker.load(place, start)),
            Action::Forward { microbatch, data_index, input } => {
                let work = Work { microbatch, data_index, input: input.as_ref() };
                self.compute(index, |worker, _| worker.forward(work));
            }
            Action::Backward { microbatch, data_index, input, gradient } => {
                let work = Work { microbatch, data_index, input: input.as_ref() };
                self.compute(index, |worker, _| worker.backward(work, gradient.as_ref()));
            }
            Action::Step { microbatches, .. } => {
                self.compute(index, |worker, wire_bytes| worker.step(microbatches, wire_bytes));
            }
            Action::Sync(task) => {
                let now = self.now;
                self.compute(index, |worker, _| worker.agree(now, task));
            }
            Action::Store(StoreItem::Checkpoint { step }) => {
                self.compute(index, |worker, _| worker.save(step));
            }
            Action::Store(StoreItem::Coordinator(state)) => {
                self.queue.push(self.now + STATE_STORE, Happening::Inked { state });
            }
            Action::Record(event) => self.record(index, &event)?,
            Action::Finish(outcome) => {
                self.leave(index);
                if index == COORDINATOR {
                    self.log.ended(&outcome);
                }
            }
        }
        Ok(())
    }

    fn compute(&mut self, index: usize, work: impl FnOnce(&mut Computing, u64) -> (Span, Input)) {
        let peer = &mut self.peers[index];
        let worker = peer.worker.as_mut().expect("only a worker asks for computation");
        let (took, input) = work(worker, peer.wire_bytes);
        self.hear(index, took, input);
    }

    fn hear(&mut self, to: usize, after: Span, input: Input) {
        self.queue.push(self.now + after, Happening::Heard { to, input });
    }

    fn send(&mut self, from: usize, to: PeerId, message: &Message) {
        let frame = wire::encode(message);
        let (bytes, freight) = (frame.bytes(), freight(message));
        self.messages += 1;
        self.wire_bytes += bytes as u64;
        self.peers[from].wire_bytes += bytes as u64;
        // A stranger is sent refusals and is no peer of ours.
        let Some(&to) = self.by_id.get(&to) else { return };
        if let Some(stranger) = &mut self.stranger {
            stranger.hear(&frame);
        }
        match freight {
            Freight::Bulk => {
                if let Some((lane, at)) = self.links.queue(self.now, from, to, frame) {
                    self.queue.push(at, Happening::Turn(lane));
                }
            }
            Freight::Control | Freight::Tensor => {
                let at = self.links.send(self.now, from, to, bytes, freight);
                self.queue.push(at, Happening::Arrived { from, to, frame });
            }
        }
    }

    fn turn(&mut self, lane: LaneId) {
        if self.peers[lane.from()].life != Life::Up {
            return;
        }
        let (delivery, next) = self.links.turn(self.now, lane);
        if let Some(Delivery { from, to, at, frame }) = delivery {
            self.queue.push(at, Happening::Arrived { from, to, frame });
        }
        if let Some(next) = next {
            self.queue.push(next, Happening::Turn(lane));
        }
    }

    fn connect(&mut self, dialler: usize, other: usize) {
        let took = self.links.handshake(dialler, other);
        let (peer, accepted) = (self.peers[other].id, self.peers[dialler].id);
        if self.peers[other].life != Life::Up {
            return self.hear(dialler, LOSS_NOTICED, Input::Lost { peer, reason: "no answer".into() });
        }
        self.connected.insert((dialler, other));
        self.hear(dialler, took, Input::Connected { peer });
        self.hear(other, took, Input::Connected { peer: accepted });
    }

    /// Lets a peer close its connections, behind all that it has sent, and take no more part.
    fn leave(&mut self, index: usize) {
        self.peers[index].life = Life::Left;
        let peer = self.peers[index].id;
        for other in self.neighbours(index) {
            let at = self.links.send(self.now, index, other, 0, Freight::Control);
            let input = Input::Lost { peer, reason: "closed".into() };
            self.queue.push(at, Happening::Heard { to: other, input });
        }
    }

    /// Lets a peer die, which the others notice after a while.
    fn kill(&mut self, victim: usize) {
        self.peers[victim].life = Life::Down;
        let peer = self.peers[victim].id;
        for other in self.neighbours(victim) {
            self.hear(other, LOSS_NOTICED, Input::Lost { peer, reason: "nothing heard".into() });
        }
    }

    fn neighbours(&self, index: usize) -> Vec<usize> {
        let touching = self.connected.iter().filter(|(a, b)| *a == index || *b == index);
        touching.map(|(a, b)| if *a == index { *b } else { *a }).collect()
    }

    fn record(&mut self, index: usize, event: &Event) -> Result<(), SwarmError> {
        self.log.record(self.now, self.peers[index].id, event)?;
        match event {
            Event::Step(summary) => {
                self.progress_at = self.now;
                for fault in self.faults.at_steps(summary.step.0 + 1) {
                    self.queue.push(self.now, Happening::Struck(fault));
                }
            }
            Event::Started { .. } => {
                self.progress_at = self.now;
                self.queue_stranger();
            }
            Event::Evaluated { .. } | Event::Durable { .. } | Event::Outer(_) => self.progress_at = self.now,
            Event::Joined { .. }
            | Event::Planned { .. }
            | Event::Leased { .. }
            | Event::LeaseExpired { .. }
            | Event::Computed { .. }
            | Event::Duplicate { .. }
            | Event::Saved { .. }
            | Event::Agreed { .. }
            | Event::Restored { .. }
            | Event::Flawed { .. }
            | Event::Disagreed { .. }
            | Event::Excluded { .. }
            | Event::Ledger { .. }
            | Event::Refused { .. }
            | Event::Rejected { .. }
            | Event::RefusedBy { .. }
            | Event::PeerLost { .. }
            | Event::Draining { .. }
            | Event::Finished { .. } => {}
        }
        Ok(())
    }

    fn queue_stranger(&mut self) {
        if let Some(every) = self.faults.stranger_every {
            self.queue.push(self.now + every, Happening::StrangerTurn);
        }
    }

    fn stranger_speaks(&mut self) {
        let Some(stranger) = &mut self.stranger else { return };
        let (to, frame) = stranger.speak(self.peers.len());
        let from = self.peers.len();
        let freight = if frame.payload.is_empty() { Freight::Control } else { Freight::Tensor };
        let at = self.links.send(self.now, from, to, frame.bytes(), freight);
        self.queue.push(at, Happening::Arrived { from, to, frame });
        self.queue_stranger();
    }

    /// Returns the id at a place; the place behind the last peer is the stranger's.
    fn id_of(&self, index: usize) -> PeerId {
        match self.peers.get(index) {
            Some(peer) => peer.id,
            None => peer::id(&peer::key(self.config.seed, index)),
        }
    }
}

/// Returns which peer asks for a place: the coordinator comes first, then stage after stage.
fn seat(replicas: u16, place: Place) -> usize {
    1 + usize::from(place.stage.0) * usize::from(replicas) + usize::from(place.replica.0)
}

fn freight(message: &Message) -> Freight {
    match message {
        Message::Activation(_) | Message::Gradient(_) => Freight::Tensor,
        Message::Sync(Say::Chunk { .. }) => Freight::Bulk,
        Message::Sync(_)
        | Message::Join(_)
        | Message::Placed { .. }
        | Message::Ready { .. }
        | Message::Lease { .. }
        | Message::Loss { .. }
        | Message::Settled { .. }
        | Message::Receipts(_)
        | Message::Stepped(_)
        | Message::Checkpointed { .. }
        | Message::Drain { .. }
        | Message::Finish { .. }
        | Message::PeerLost { .. }
        | Message::Failed { .. }
        | Message::Refused(_) => Freight::Control,
    }
}
