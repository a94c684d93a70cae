//! The machines of a ring and the messages between them, in virtual time.
//!
//! Owns the loop of events around `Member` and `Arbiter`, and what is durable. Takes no decision of the protocol; whatever
//! happens, the laws are checked after every decision.

use crate::draws::{Draws, Permille};
use crate::exchange::account::{Cutover, Notice, RingConfig, RingOutcome};
use crate::exchange::law::{Law, Violation};
use crate::exchange::replica::{Guise, Replica, ReplicaConfig, Standing};
use crate::exchange::trouble::{Fate, Mischief, StoreMoment, Trouble};
use crate::queue::Queue;
use crate::scenario::settings::Settings;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::Write;
use trestle_model::outer::{Layout, Outer};
use trestle_protocol::agenda::Agenda;
use trestle_protocol::event::Event;
use trestle_protocol::ids::{Digest, InnerStep, OuterStep, PeerId, PlanNumber, StageId};
use trestle_protocol::message::Message;
use trestle_protocol::plan::{self, Place, Plan};
use trestle_protocol::port::{Action, Outbox};
use trestle_protocol::sync::arbiter::{Arbiter, ArbiterConfig, Committed, Weighing};
use trestle_protocol::sync::group::Group;
use trestle_protocol::sync::member::{Decision, Member};
use trestle_protocol::sync::say::Say;
use trestle_protocol::sync::task::{SyncDone, SyncTask};
use trestle_protocol::time::{Span, Time};
use trestle_protocol::wire::{self, Frame};

/// Inner steps of each outer step; what they are does not matter here.
const INNER_STEPS: u64 = 2;
/// Microbatches of an inner step of one replica.
const MICROBATCHES: u64 = 4;
const LATENCY: Span = Span::millis(20);
const LATENCY_JITTER: Permille = Permille(300);
/// How long any arithmetic takes.
const ARITHMETIC: Span = Span::millis(2);
const STORE: Span = Span::millis(5);
/// How much later a delayed message arrives: beyond the first wait for an exchange.
const DELAY: Span = Span::seconds(45);
const RESTART: Span = Span::seconds(2);
/// How soon the transport notices a death, where it does.
const NOTICED: Span = Span::millis(300);
/// How long a message is held back for the next one to overtake it.
const HELD: Span = Span::seconds(3);
/// Wakings of one machine at one moment after which it never sleeps again.
const WAKINGS_MAX: u32 = 50;

enum Happening {
    Arrives { from: usize, to: usize, frame: Frame, kills: bool },
    Border(usize),
    Done(usize, SyncDone),
    Inked { life: u32, committed: Committed },
    Restart,
    Noticed { by: usize, peer: PeerId },
    Release(usize, usize),
}

/// A ring of replicas with their coordinator.
pub struct Ring<'a> {
    config: RingConfig,
    plan: Plan,
    agenda: Agenda,
    replicas: Vec<Replica>,
    arbiter: Option<Arbiter>,
    /// Which life the coordinator lives.
    life: u32,
    durable: Option<Committed>,
    law: Law,
    fate: Fate,
    queue: Queue<Happening>,
    now: Time,
    draws: BTreeMap<(usize, usize), Draws>,
    held: BTreeMap<(usize, usize), Frame>,
    hasher: blake3::Hasher,
    began: BTreeMap<OuterStep, Time>,
    /// Who heard of a death so far is told again when the coordinator starts again.
    dead: Vec<PeerId>,
    wakings: BTreeMap<usize, (Time, u32)>,
    outcome: RingOutcome,
    log: Option<&'a mut dyn Write>,
}

impl<'a> Ring<'a> {
    /// Makes a ring in which nothing has happened yet; every message is written to `log`, if there is one.
    ///
    /// # Errors
    /// Settings that make no ring.
    pub fn new(config: RingConfig, log: Option<&'a mut dyn Write>) -> Result<Self, Violation> {
        let mut settings = Settings { stages: 1, ..Settings::default() };
        settings.spec.pipeline.replicas = config.replicas;
        settings.spec.pipeline.microbatches_per_step = MICROBATCHES as u32;
        settings.spec.sync.inner_steps = INNER_STEPS as u32;
        settings.spec.training.steps = INNER_STEPS * config.steps;
        let asked: Vec<plan::Candidate> = (0..config.replicas)
            .map(|replica| PeerId([replica as u8 + 1; 32]))
            .map(|peer| plan::Candidate { peer, address: Bytes::new(), stage: None })
            .collect();
        let plan = plan::place(PlanNumber(1), PeerId([0xcc; 32]), 1, config.replicas, &asked)
            .ok_or_else(|| Violation("a ring has at least one replica".into()))?;
        let (replicas, reference) = replicas(&config, &plan)?;
        Ok(Self {
            law: Law::new(reference, config.outer.error_decay),
            fate: Fate::new(config.seed, config.mischief),
            config,
            plan,
            agenda: Agenda::new(&settings.run_spec()),
            replicas,
            arbiter: None,
            life: 0,
            durable: None,
            queue: Queue::new(),
            now: Time(0),
            draws: BTreeMap::new(),
            held: BTreeMap::new(),
            hasher: blake3::Hasher::new(),
            began: BTreeMap::new(),
            dead: Vec::new(),
            wakings: BTreeMap::new(),
            outcome: RingOutcome::default(),
            log,
        })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// The first law that is broken, or that nothing goes on.
    pub fn run(mut self) -> Result<RingOutcome, Violation> {
        self.start_coordinator();
        for index in 0..self.replicas.len() {
            self.train(index);
        }
        while !self.is_over() {
            let waking = self.next_deadline();
            let (coming, woken) = (self.queue.next_at(), waking.map(|(at, _)| at));
            let Some(next) = coming.into_iter().chain(woken).min() else {
                return Err(self.stuck("nothing more happens"));
            };
            self.now = self.now.max(next);
            if self.now > Time(0) + self.config.time_max {
                return Err(self.stuck("it takes too long"));
            }
            match waking {
                Some((at, machine)) if coming.is_none_or(|coming| at < coming) => self.wake(machine)?,
                Some(_) | None => {
                    if let Some((_, happening)) = self.queue.pop() {
                        self.happen(happening)?;
                    }
                }
            }
        }
        let survivors: Vec<&Replica> =
            self.replicas.iter().filter(|replica| replica.standing == Standing::Up).collect();
        self.law.ends(self.config.steps, &survivors)?;
        Ok(RingOutcome {
            digest: Some(Digest(*self.hasher.finalize().as_bytes())),
            contributors: self.law.contributors(),
            standings: self.replicas.iter().map(|replica| replica.standing).collect(),
            time: self.now,
            ..self.outcome
        })
    }

    fn is_over(&self) -> bool {
        let mut up = self.replicas.iter().filter(|replica| replica.standing == Standing::Up);
        up.all(|replica| replica.next.0 >= self.config.steps)
    }

    fn stuck(&self, words: &str) -> Violation {
        let at: Vec<String> = self
            .replicas
            .iter()
            .map(|replica| format!("{:?} at {}", replica.standing, replica.next.0))
            .collect();
        Violation(format!("{words} at {}: replicas are {}", self.now, at.join(", ")))
    }

    fn coordinator(&self) -> usize {
        self.replicas.len()
    }

    fn start_coordinator(&mut self) {
        let config = ArbiterConfig {
            agenda: self.agenda,
            step_tokens: 1,
            weighing: Weighing::Receipts,
            silence_min: Span::seconds(1),
        };
        self.arbiter = Some(Arbiter::new(config, &self.plan, InnerStep(0), self.durable.clone()));
    }

    fn train(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        replica.train();
        let at = self.now + replica.training();
        self.queue.push(at, Happening::Border(index));
    }

    fn next_deadline(&self) -> Option<(Time, usize)> {
        let up = self.replicas.iter().enumerate().filter(|(_, replica)| replica.standing == Standing::Up);
        let members = up.filter_map(|(index, replica)| Some((replica.member.deadline()?, index)));
        let arbiter = self.arbiter.as_ref().and_then(Arbiter::deadline).map(|at| (at, self.coordinator()));
        members.chain(arbiter).min()
    }

    fn wake(&mut self, machine: usize) -> Result<(), Violation> {
        let (at, times) = self.wakings.entry(machine).or_default();
        *times = if *at == self.now { *times + 1 } else { 0 };
        *at = self.now;
        if *times > WAKINGS_MAX {
            return Err(self.stuck(&format!("machine {machine} never sleeps again")));
        }
        let mut out = Outbox::default();
        if machine == self.coordinator() {
            return self.advance(out);
        }
        self.replicas[machine].member.woke(self.now, &mut out);
        self.act(machine, out)
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        match happening {
            Happening::Arrives { from, to, frame, kills } => {
                if kills {
                    self.die(to);
                }
                self.hear(from, to, &frame)
            }
            Happening::Border(index) => self.reach(index),
            Happening::Done(index, done) => self.computed(index, done),
            Happening::Inked { life, committed } => self.inked(life, committed),
            Happening::Restart => {
                self.start_coordinator();
                let by = self.coordinator();
                for peer in self.dead.clone() {
                    self.queue.push(self.now + NOTICED, Happening::Noticed { by, peer });
                }
                Ok(())
            }
            Happening::Noticed { by, peer } => {
                let mut out = Outbox::default();
                if by == self.coordinator() {
                    let Some(arbiter) = &mut self.arbiter else { return Ok(()) };
                    arbiter.lost(peer);
                    return self.advance(out);
                }
                if self.replicas[by].standing != Standing::Up {
                    return Ok(());
                }
                self.replicas[by].member.lost(self.now, peer, &mut out);
                self.act(by, out)
            }
            Happening::Release(from, to) => {
                if let Some(frame) = self.held.remove(&(from, to)) {
                    self.queue.push(self.now, Happening::Arrives { from, to, frame, kills: false });
                }
                Ok(())
            }
        }
    }

    fn reach(&mut self, index: usize) -> Result<(), Violation> {
        let replica = &mut self.replicas[index];
        if replica.standing != Standing::Up {
            return Ok(());
        }
        let (outer, id) = (replica.next, replica.id);
        replica.snapshot();
        if self.config.cutover == Cutover::Late {
            replica.train();
        }
        self.began.entry(outer).or_insert(self.now);
        if let Some(arbiter) = &mut self.arbiter {
            // The first replica has done some of the last one's work.
            let (first, last) = (id.0 == 0, usize::from(id.0) + 1 == self.replicas.len());
            let credit = INNER_STEPS * MICROBATCHES + u64::from(first) - u64::from(last);
            for _ in 0..credit {
                arbiter.credit(InnerStep(outer.0 * INNER_STEPS), Place { stage: StageId(0), replica: id });
            }
        }
        let mut out = Outbox::default();
        let border = InnerStep((outer.0 + 1) * INNER_STEPS);
        self.replicas[index].member.reached(self.now, outer, border, &mut out);
        self.act(index, out)
    }

    fn hear(&mut self, from: usize, to: usize, frame: &Frame) -> Result<(), Violation> {
        let message = wire::decode(frame).map_err(|error| Violation(error.to_string()))?;
        let from = self.id_of(from);
        let mut out = Outbox::default();
        let heard = match (message, to == self.coordinator()) {
            (Message::Sync(say), true) => {
                let Some(arbiter) = &mut self.arbiter else { return Ok(()) };
                arbiter.received(self.now, from, say, &mut out)
            }
            (Message::Sync(say), false) if self.replicas[to].standing == Standing::Up => {
                for say in self.replicas[to].answer(&say) {
                    self.send(to, from, say);
                }
                self.replicas[to].member.received(self.now, from, say, &mut out)
            }
            (_, _) => return Ok(()),
        };
        if heard.is_err() {
            self.outcome.refused += 1;
        }
        if to == self.coordinator() { self.advance(out) } else { self.act(to, out) }
    }

    /// Lets the coordinator go on, and makes durable what it asks for.
    fn advance(&mut self, mut out: Outbox) -> Result<(), Violation> {
        let Some(arbiter) = &mut self.arbiter else { return Ok(()) };
        // What a dead replica owes is done by nobody here, where there is no pipeline: no border waits for it.
        arbiter.advance(self.now, &|_| false, &mut out);
        let lost = arbiter.take_lost();
        arbiter.take_restored();
        let to_store = arbiter.take_store();
        // A coordinator removes whom its arbiter takes for lost, and says so to whoever of them still speaks.
        for index in 0..self.replicas.len() {
            if lost.contains(&self.id_of(index)) && self.replicas[index].standing == Standing::Up {
                self.replicas[index].standing = Standing::Excluded;
            }
        }
        self.act(self.coordinator(), out)?;
        if let (Some(committed), Some(_)) = (to_store, &self.arbiter) {
            let moment = self.fate.of_store(self.outcome.stores);
            self.outcome.stores += 1;
            match moment {
                Some(StoreMoment::Before) => self.die(self.coordinator()),
                Some(StoreMoment::After) => {
                    self.law.becomes_durable(&committed)?;
                    self.durable = Some(committed);
                    self.die(self.coordinator());
                }
                None => {
                    self.queue.push(self.now + STORE, Happening::Inked { life: self.life, committed });
                }
            }
        }
        Ok(())
    }

    fn inked(&mut self, life: u32, committed: Committed) -> Result<(), Violation> {
        if life != self.life {
            return Ok(());
        }
        let mut out = Outbox::default();
        self.law.becomes_durable(&committed)?;
        self.durable = Some(committed);
        if let Some(arbiter) = &mut self.arbiter {
            arbiter.stored(self.now, &mut out);
        }
        self.advance(out)
    }

    /// Carries out what a machine asks for, unless it dies of it.
    fn act(&mut self, machine: usize, mut out: Outbox) -> Result<(), Violation> {
        while let Some(action) = out.pop() {
            if !self.is_alive(machine) {
                return Ok(());
            }
            match action {
                Action::Send { to, message: Message::Sync(say) } => self.send(machine, to, say),
                Action::Sync(task) => self.compute(machine, task)?,
                Action::Record(event) => self.record(event),
                Action::Send { .. }
                | Action::Dial { .. }
                | Action::Load { .. }
                | Action::Export { .. }
                | Action::Import { .. }
                | Action::Enter { .. }
                | Action::Forward { .. }
                | Action::Backward { .. }
                | Action::Discard { .. }
                | Action::Step { .. }
                | Action::Store(_)
                | Action::Finish(_) => {
                    return Err(Violation(format!("machine {machine} asks for what is no exchange's")));
                }
            }
        }
        if machine < self.coordinator() { self.follow(machine) } else { Ok(()) }
    }

    fn follow(&mut self, index: usize) -> Result<(), Violation> {
        match self.replicas[index].member.take_decision() {
            Some((_, Decision::Excluded)) => self.replicas[index].standing = Standing::Excluded,
            Some((_, Decision::Committed | Decision::Restored)) | None => {}
        }
        Ok(())
    }

    fn record(&mut self, event: Event) {
        self.note(&|| format!("{event:?}"));
        if let Event::Disagreed { .. } = event {
            self.outcome.disagreed += 1;
        } else if let Event::Outer(_) = event {
            self.outcome.sent_before.push(self.outcome.messages);
        } else if let Event::Flawed { replica, reason, .. } = event {
            self.outcome.flawed.push((replica, reason));
        }
    }

    fn compute(&mut self, index: usize, task: SyncTask) -> Result<(), Violation> {
        let replica = &mut self.replicas[index];
        let done = replica.carry_out(task).map_err(|fault| Violation(fault.0))?;
        match &done {
            SyncDone::Encoded { outer, .. } => {
                if let Some((shares, shards)) = &replica.encoded {
                    self.law.encodes(*outer, replica.id, shares.clone(), shards.clone());
                }
            }
            SyncDone::Committed { outer, .. } => self.law.commits(*outer, replica)?,
            SyncDone::Restored { outer, .. } => self.law.restores(*outer, replica)?,
            SyncDone::Snapshotted { .. }
            | SyncDone::Reduced { .. }
            | SyncDone::Staged { .. }
            | SyncDone::Adopted { .. } => {}
        }
        replica.free = replica.free.max(self.now) + ARITHMETIC;
        self.queue.push(replica.free, Happening::Done(index, done));
        Ok(())
    }

    fn computed(&mut self, index: usize, done: SyncDone) -> Result<(), Violation> {
        if self.replicas[index].standing != Standing::Up {
            return Ok(());
        }
        let decided = match &done {
            SyncDone::Committed { outer, .. } => {
                self.replicas[index].adopt();
                Some(*outer)
            }
            SyncDone::Restored { outer, .. } => {
                self.outcome.restored += 1;
                Some(*outer)
            }
            SyncDone::Snapshotted { .. }
            | SyncDone::Encoded { .. }
            | SyncDone::Reduced { .. }
            | SyncDone::Staged { .. }
            | SyncDone::Adopted { .. } => None,
        };
        let mut out = Outbox::default();
        self.replicas[index].member.done(self.now, done, &mut out);
        self.act(index, out)?;
        let Some(outer) = decided else { return Ok(()) };
        let took = self.now.since(self.began.get(&outer).copied().unwrap_or_default());
        self.outcome.took.resize(self.outcome.took.len().max(outer.0 as usize + 1), Span(0));
        self.outcome.took[outer.0 as usize] = took;
        self.replicas[index].next = OuterStep(outer.0 + 1);
        if self.replicas[index].next.0 < self.config.steps {
            self.train(index);
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: PeerId, say: Say) {
        let say = if from < self.replicas.len() { self.replicas[from].disguise(say) } else { say };
        if let Say::Begin(begin) = &say {
            self.law.begins(begin);
        }
        let Some(to) = (0..=self.coordinator()).find(|index| self.id_of(*index) == to) else { return };
        let number = self.outcome.messages;
        self.outcome.messages += 1;
        let fate = self.fate.of_message(number);
        self.note(&|| format!("{number}: {from} -> {to} {fate:?} {say:?}"));
        let frame = wire::encode(&Message::Sync(say));
        self.hasher.update(&self.now.0.to_le_bytes()).update(&[from as u8, to as u8]);
        self.hasher.update(&frame.header).update(&frame.payload);
        let seed = self.config.seed;
        let draws = self
            .draws
            .entry((from, to))
            .or_insert_with(|| Draws::new(seed, "ring", &[from as u64, to as u64]));
        let at = self.now + draws.around(LATENCY, LATENCY_JITTER);
        let mut arrives =
            |at, frame, kills| self.queue.push(at, Happening::Arrives { from, to, frame, kills });
        if let Some(held) = self.held.remove(&(from, to)) {
            arrives(at + Span(1), held, false);
        }
        match fate {
            None => arrives(at, frame, false),
            Some(Trouble::Drop) => {}
            Some(Trouble::Delay) => arrives(at + DELAY, frame, false),
            Some(Trouble::Duplicate) => {
                arrives(at, frame.clone(), false);
                arrives(at + LATENCY, frame, false);
            }
            Some(Trouble::Swap) => {
                self.held.insert((from, to), frame);
                self.queue.push(self.now + HELD, Happening::Release(from, to));
            }
            Some(Trouble::SenderDies) => self.die(from),
            Some(Trouble::ReceiverDies) => arrives(at, frame, true),
            Some(Trouble::CoordinatorDies) => {
                arrives(at, frame, false);
                self.die(self.coordinator());
            }
        }
    }

    fn note(&mut self, words: &dyn Fn() -> String) {
        if let Some(log) = &mut self.log {
            // Who reads it sees where it ends.
            drop(writeln!(log, "{} {}", self.now, words()));
        }
    }

    fn is_alive(&self, machine: usize) -> bool {
        match self.replicas.get(machine) {
            Some(replica) => replica.standing == Standing::Up,
            None => self.arbiter.is_some(),
        }
    }

    /// Lets a machine die; the last replica does not.
    fn die(&mut self, machine: usize) {
        if machine == self.coordinator() {
            if self.arbiter.take().is_some() {
                self.life += 1;
                self.queue.push(self.now + RESTART, Happening::Restart);
            }
            return;
        }
        let up = self.replicas.iter().filter(|replica| replica.standing == Standing::Up).count();
        if up < 2 || self.replicas[machine].standing != Standing::Up {
            return;
        }
        self.replicas[machine].standing = Standing::Dead;
        let peer = self.replicas[machine].peer;
        match self.config.notice {
            Notice::Silence => {}
            Notice::Lost => {
                self.dead.push(peer);
                for by in 0..=self.coordinator() {
                    self.queue.push(self.now + NOTICED, Happening::Noticed { by, peer });
                }
            }
        }
    }

    fn id_of(&self, machine: usize) -> PeerId {
        self.replicas.get(machine).map_or(self.plan.coordinator, |replica| replica.peer)
    }
}

/// Makes the replicas, and one state more that does each commit again; `None` where a shard may come to have one reducer that
/// lies, which nobody sees.
fn replicas(config: &RingConfig, plan: &Plan) -> Result<(Vec<Replica>, Option<Outer>), Violation> {
    let layout = Layout::new(&config.shapes);
    let mut draws = Draws::new(config.seed, "weights", &[]);
    let weights: Vec<f32> =
        (0..layout.elements()).map(|_| (draws.below(2001) as f32 - 1000.0) * 1e-3).collect();
    let outer = || {
        let outer = Outer::new(config.outer.clone(), layout.clone(), weights.clone());
        outer.map_err(|error| Violation(error.to_string()))
    };
    let group = Group::of(plan, StageId(0));
    let mut replicas = Vec::new();
    for (id, peer) in group.members.clone() {
        let member = Member::new(id, plan.coordinator, group.clone());
        let guise = config.guises.get(&id).copied().unwrap_or(Guise::Honest);
        let (honest_from, seed) = (config.honest_from, config.seed);
        replicas.push(Replica::new(ReplicaConfig {
            id,
            peer,
            member,
            outer: outer()?,
            guise,
            honest_from,
            seed,
        }));
    }
    let alone = config.replicas < 3 || config.mischief != Mischief::None;
    let wrong = |guise: &Guise| {
        matches!(guise, Guise::WrongResults | Guise::WrongResultsRightClaims | Guise::WrongVotes)
    };
    let unseen = alone && config.guises.values().any(wrong);
    Ok((replicas, if unseen { None } else { Some(outer()?) }))
}
