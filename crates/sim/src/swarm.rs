//! The simulated driver: runs a whole swarm of nodes on one thread, one seed and virtual time.
//!
//! Owns the loop of events, the links and what is durable. Takes no decision of the protocol; it carries out actions and
//! reports what happened, as the real driver does, but in an order that the seed alone decides.

use crate::compute::{Compute, Spans};
use crate::connections::{Connections, Ends, Epoch};
use crate::disk::Disk;
use crate::draws::Draws;
use crate::fault::{DiskFate, Fault, Faults};
use crate::lineage::Lineage;
use crate::link::{Link, Links, Look};
use crate::log::{EventLog, Tally};
use crate::losses::Losses;
use crate::peer::{Life, News, Peer};
use crate::queue::Queue;
use crate::stranger::Stranger;
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::io::{self, Write};
use trestle_protocol::durable::{self, StateError};
use trestle_protocol::ids::{Digest, PeerId, StageId};
use trestle_protocol::message::{Held, Outcome};
use trestle_protocol::plan::Place;
use trestle_protocol::port::Input;
use trestle_protocol::receipt::Seals;
use trestle_protocol::spec::RunSpec;
use trestle_protocol::time::{Span, Time};
use trestle_protocol::wire::Frame;

mod actions;
mod births;
mod hearsay;
mod strikes;
mod traffic;

/// How long those may take that have not heard that the run is over: whoever was cut off dials in vain from then on.
const AFTERMATH: Span = Span::seconds(120);

/// The coordinator's place among the peers.
const COORDINATOR: usize = 0;

/// The stranger's: no swarm has as many peers.
const STRANGER: usize = 1 << 20;

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
    /// The links of single peers; workers are counted from 1 in the order of the places that they ask for, and spares behind them.
    pub own_links: BTreeMap<usize, Link>,
    /// How long the devices of each stage compute.
    pub spans: Vec<Spans>,
    /// How long those of single peers compute, at each stage.
    pub own_spans: BTreeMap<usize, Vec<Spans>>,
    /// What a chunk stands for.
    pub weights: Weights,
    /// How receipts are sealed.
    pub seals: Seals,
}

/// How many times its size a chunk's payload weighs on a link, so that swarms can be simulated whose state no memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    /// One of an outer step.
    pub contribution: u64,
    /// One of a state that a newcomer fetches.
    pub state: u64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { contribution: 1, state: 1 }
    }
}

impl SwarmConfig {
    /// Returns how long a peer computes at a stage.
    fn spans_of(&self, peer: usize, stage: StageId) -> Spans {
        let spans = self.own_spans.get(&peer).unwrap_or(&self.spans);
        spans[usize::from(stage.0)]
    }
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
    /// The run.
    pub spec: RunSpec,
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
    /// Whether it was followed what weights consist of.
    pub followed: bool,
    /// What the members that were there at the end held, and what the last checkpoint holds of those who were lost after it.
    pub held: BTreeMap<Place, Holding>,
    /// Of a running that was stuck, the stages whose last durable checkpoint is on no disk that is left: nobody can mend that.
    pub shardless: Vec<StageId>,
    /// What was asked of a worker's compute and should never have been, in words.
    pub broken: Vec<String>,
    /// Of a running that was stuck, or that some did not hear the end of: what each peer did and heard last, in words.
    pub waits: Vec<String>,
}

/// What a member held at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// What its weights consist of.
    pub weights: Lineage,
    /// What it had trained and not handed in.
    pub owed: Lineage,
    /// Digest of its weights.
    pub digest: Digest,
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
    /// A peer hears of something, if it is still the process that it concerns.
    Heard { to: usize, birth: u32, news: News },
    /// A frame arrives that was sent on a connection; the stranger's came on none that is followed.
    Arrived { from: usize, to: usize, epoch: Option<Epoch>, frame: Frame },
    /// A bulk message may have left.
    Turn(Look),
    /// The coordinator's state has reached the disk.
    Inked { birth: u32, state: Bytes },
    /// The handshake of a call is over.
    Shaken { ends: Ends, call: Epoch },
    /// Nobody waits longer for the answer to a call.
    Unanswered { ends: Ends, call: Epoch },
    /// Nothing was heard on a connection for too long.
    Broken { ends: Ends, epoch: Epoch, reason: &'static str },
    /// A cut may be over.
    Mended(Ends),
    /// A frozen peer may go on.
    Thawed { peer: usize, birth: u32 },
    /// A notice has run out.
    NoticeEnds { peer: usize, birth: u32 },
    /// A peer that died is started again.
    Reborn { peer: usize, disk: DiskFate },
    /// A newcomer asks for a place.
    Came { stage: Option<StageId> },
    /// The scenario acts.
    Struck(Fault),
    /// Churn takes the next worker.
    ChurnTurn,
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
    disks: Vec<Disk>,
    links: Links,
    faults: Faults,
    peers: Vec<Peer>,
    by_id: BTreeMap<PeerId, usize>,
    /// Who holds what, as the coordinator's events say.
    holders: BTreeMap<Place, usize>,
    /// Those of the holders that take part.
    entered: BTreeSet<usize>,
    connections: Connections,
    queue: Queue<Happening>,
    /// When peers want to be woken; of each the last that was noted counts.
    wakes: BinaryHeap<Reverse<(Time, usize)>>,
    /// Peers that died and are still to come back, and newcomers still to come.
    expected: u32,
    /// Inner steps whose faults have struck.
    steps_struck: u64,
    deaths_left: u32,
    happenings: u64,
    stranger: Option<Stranger>,
    noise: Draws,
    churn: Draws,
    progress_at: Time,
    /// How far work was done again since a peer was removed last.
    redone_to: u64,
    /// Since when the coordinator is done.
    over_since: Option<Time>,
    crashed: bool,
    messages: u64,
    wire_bytes: u64,
    kept_bytes_max: usize,
    endings: Vec<Ending>,
    followed: bool,
    /// With whose it is.
    held: BTreeMap<Place, (usize, Holding)>,
    broken: BTreeSet<String>,
    waits: Vec<String>,
    shardless: Vec<StageId>,
}

impl<'a> Swarm<'a> {
    /// Makes a swarm that has not begun; its log goes to `sink`.
    pub fn new(config: SwarmConfig, maker: &'a ComputeMaker<'a>, sink: &'a mut dyn Write) -> Self {
        let links = Links::new(config.seed, config.link, config.own_links.clone());
        let draws = |purpose| Draws::new(config.seed, purpose, &[]);
        let (noise, churn) = (draws("noise"), draws("churn"));
        Self {
            config,
            maker,
            log: EventLog::new(sink),
            now: Time(0),
            durable: None,
            disks: Vec::new(),
            links,
            faults: Faults::default(),
            peers: Vec::new(),
            by_id: BTreeMap::new(),
            holders: BTreeMap::new(),
            entered: BTreeSet::new(),
            connections: Connections::default(),
            queue: Queue::new(),
            wakes: BinaryHeap::new(),
            expected: 0,
            steps_struck: 0,
            deaths_left: 0,
            happenings: 0,
            stranger: None,
            noise,
            churn,
            progress_at: Time(0),
            redone_to: 0,
            over_since: None,
            crashed: false,
            messages: 0,
            wire_bytes: 0,
            kept_bytes_max: 0,
            endings: Vec::new(),
            followed: false,
            held: BTreeMap::new(),
            broken: BTreeSet::new(),
            waits: Vec::new(),
            shardless: Vec::new(),
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
            if self.expected == 0 && self.peers.iter().all(|peer| peer.life != Life::Up) {
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
            if self.over_since.is_some_and(|since| next.since(since) > AFTERMATH) {
                self.waits = self.describe();
                let outcome = self.log.tally().outcome.clone();
                return Ok(self.end(outcome.map_or(Ending::Headless, Ending::Left)));
            }
            let transport = self.faults.transport;
            self.happenings += 1;
            if next.since(self.progress_at) > transport.silence_max
                || self.happenings > transport.happenings_max
            {
                return Ok(self.end(Ending::Stuck));
            }
            self.now = self.now.max(next);
            match (coming, waking) {
                (Some(at), _) if at <= next => {
                    let Some((_, happening)) = self.queue.pop() else { continue };
                    self.happen(happening)?;
                }
                (_, Some((_, peer))) => self.drive(peer, Input::Woke.into())?,
                (_, None) => {}
            }
        }
    }

    /// Ends the simulation.
    pub fn finish(self) -> SimOutcome {
        let (digest, tally) = self.log.finish();
        SimOutcome {
            spec: self.config.spec,
            digest,
            tally,
            endings: self.endings,
            time: self.now,
            messages: self.messages,
            wire_bytes: self.wire_bytes,
            kept_bytes_max: self.kept_bytes_max,
            followed: self.followed,
            held: self.held.into_iter().map(|(place, (_, holding))| (place, holding)).collect(),
            broken: self.broken.into_iter().collect(),
            waits: self.waits,
            shardless: self.shardless,
        }
    }

    fn begin(&mut self, faults: Faults) -> Result<(), SwarmError> {
        self.log.begins();
        self.queue = Queue::new();
        self.wakes.clear();
        self.links.clear();
        self.connections = Connections::default();
        self.crashed = false;
        self.progress_at = self.now;
        self.over_since = None;
        (self.expected, self.steps_struck, self.happenings) = (0, 0, 0);
        self.holders.clear();
        self.entered.clear();
        self.held.clear();
        for (after, fault) in faults.timed() {
            self.queue.push(self.now + after, Happening::Struck(fault));
        }
        self.stranger = faults.stranger_every.map(|_| Stranger::new(self.config.seed));
        self.faults = faults;
        self.make_peers()?;
        self.plan_churn();
        Ok(())
    }

    fn end(&mut self, ending: Ending) -> Ending {
        if ending == Ending::Stuck {
            self.waits = self.describe();
            self.shardless = self.shardless();
        }
        self.note_broken();
        self.forget_the_lost();
        self.peers.clear();
        self.endings.push(ending.clone());
        ending
    }

    /// Lists the stages of whose last durable checkpoint no peer that is up has a replica's part.
    fn shardless(&self) -> Vec<StageId> {
        let wanted = self.durable_checkpoints();
        let up = self.peers.iter().zip(&self.disks).filter(|(peer, _)| peer.life == Life::Up);
        let held: Vec<Held> = up.flat_map(|(_, disk)| disk.held()).collect();
        let has = |stage: &StageId| wanted.iter().any(|one| one.place.stage == *stage && held.contains(one));
        let stages = (0..self.config.spec.stages()).map(StageId);
        stages.filter(|stage| !wanted.is_empty() && !has(stage)).collect()
    }

    fn durable_checkpoints(&self) -> Vec<Held> {
        let Some(state) = &self.durable else { return Vec::new() };
        durable::checkpoints(&self.config.spec, state).expect("it was stored by this run")
    }

    /// Returns who wants to be woken next. What was noted of a peer that wants otherwise by now is forgotten on the way.
    fn next_deadline(&mut self) -> Option<(Time, usize)> {
        while let Some(Reverse((at, index))) = self.wakes.peek().copied() {
            if self.peers.get(index).and_then(Peer::wakes_at) == Some(at) {
                return Some((at, index));
            }
            self.wakes.pop();
        }
        None
    }

    /// Notes when a peer wants to be woken, after anything that may have changed it.
    fn note_waking(&mut self, index: usize) {
        let at = self.peers[index].wakes_at();
        if let Some(at) = at.filter(|at| self.peers[index].noted != Some(*at)) {
            self.wakes.push(Reverse((at, index)));
        }
        self.peers[index].noted = at;
    }

    fn happen(&mut self, happening: Happening) -> Result<(), SwarmError> {
        match happening {
            Happening::Heard { to, birth, news } if self.peers[to].birth == birth => self.drive(to, news),
            Happening::Heard { .. } => Ok(()),
            Happening::Arrived { from, to, epoch, frame } => self.arrive(from, to, epoch, &frame),
            Happening::Turn(look) => {
                self.turn(look);
                Ok(())
            }
            Happening::Inked { birth, state } => self.inked(birth, state),
            Happening::Shaken { ends, call } => self.shaken(ends, call),
            Happening::Unanswered { ends, call } => self.unanswered(ends, call),
            Happening::Broken { ends, epoch, reason } => self.broken(ends, epoch, reason),
            Happening::Mended(ends) => {
                self.mended(ends);
                Ok(())
            }
            Happening::Thawed { peer, birth } => self.thawed(peer, birth),
            Happening::NoticeEnds { peer, birth } => {
                if self.peers[peer].birth == birth {
                    self.kill(peer);
                }
                Ok(())
            }
            Happening::Reborn { peer, disk } => self.reborn(peer, disk),
            Happening::Came { stage } => {
                self.came(stage);
                Ok(())
            }
            Happening::Struck(fault) => self.struck(fault),
            Happening::ChurnTurn => {
                self.churn_turn();
                Ok(())
            }
            Happening::StrangerTurn => {
                self.stranger_speaks();
                Ok(())
            }
        }
    }

    fn hear(&mut self, to: usize, after: Span, news: News) {
        let birth = self.peers[to].birth;
        self.queue.push(self.now + after, Happening::Heard { to, birth, news });
    }
}
