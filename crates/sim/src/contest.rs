//! The contest of routes: the same microbatches over the same peers, with the next peer chosen in different ways.
//!
//! Owns the course of virtual time: who holds what, what is on its way, what is waited for. It drives the router of the core;
//! knows nothing of models, messages or plans, and chooses nobody itself.
//!
//! 96 peers stand at 3 to 8 layers. 500 microbatches an epoch go forward through all layers and back again, each hop to a peer
//! that the sender chooses. When no answer comes in time the sender tries another; whichever answer comes first counts, and the
//! peer that computed it sends the microbatch on. After an epoch there is a merge of 30 s, in which peers are rebalanced.

pub mod balance;
pub mod chooser;
pub mod course;

use crate::contest::balance::{Seen, rebalance};
use crate::contest::chooser::{Chooser, Policy, Sender, Sight, Wanted};
use crate::contest::course::{Course, Fate, PEERS, SLOTS, Step};
use crate::queue::Queue;
use std::collections::VecDeque;
use trestle_protocol::router::pace::Weight;
use trestle_protocol::time::{Span, Time};

/// Microbatches of an epoch.
pub const MICROBATCHES: usize = 500;

/// Epochs of a contest.
pub const EPOCHS: usize = 5;

/// Between two epochs, and after the last.
const MERGE: Span = Span::seconds(30);

/// Microbatches between first forward and last backward: two for each peer, one to compute while the other is on its way.
const IN_FLIGHT_MAX: usize = 2 * PEERS;

/// How long a sender waits that found nobody with room.
const PAUSE: Span = Span::millis(500);

/// Virtual time after which a contest is called off: a hundred times what the best needs.
const TIME_MAX: Span = Span::seconds(200_000);

/// What a contest is run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContestConfig {
    /// Decides the peers, their tasks' fates, and every chance.
    pub seed: u64,
    /// Layers, each of which is a stage of its own.
    pub layers: usize,
    /// Who chooses.
    pub policy: Policy,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContestOutcome {
    /// All epochs and merges.
    pub total: Span,
    /// Each epoch, without its merge.
    pub epochs: Vec<Span>,
    /// Tasks sent.
    pub sent: u64,
    /// Of these: waited for in vain.
    pub late: u64,
    /// Ended by a broken connection.
    pub failed: u64,
    /// Refused for lack of room.
    pub refused: u64,
    /// Answered when another's answer had come already.
    pub duplicates: u64,
    /// Moves of peers between layers.
    pub moves: u64,
}

/// Runs a contest; None if it does not end.
pub fn run_contest(config: ContestConfig) -> Option<ContestOutcome> {
    let mut contest = Contest::new(config);
    (0..EPOCHS).try_for_each(|_| contest.run_epoch())?;
    contest.outcome.total = contest.now.since(Time(0));
    Some(contest.outcome)
}

#[derive(Clone, Copy, Debug)]
enum Happening {
    Arrived(usize),
    Computed { peer: usize },
    Answered { copy: usize, free: u32 },
    Failed(usize),
    Refused(usize),
    Overdue(usize),
    Again { microbatch: usize },
}

/// A task as one peer was given it.
#[derive(Clone, Copy, Debug)]
struct Sending {
    wanted: Wanted,
    peer: usize,
    sent: Time,
    over: bool,
}

#[derive(Clone, Debug, Default)]
struct Microbatch {
    hop: usize,
    holder: Sender,
    /// Peers that had the present task.
    tried: Vec<usize>,
    /// Peers that had no room since the last pause.
    full: Vec<usize>,
    /// The copy that is waited for.
    copy: Option<usize>,
}

#[derive(Debug, Default)]
struct Device {
    backwards: VecDeque<usize>,
    forwards: VecDeque<usize>,
    running: Option<usize>,
    seen: Seen,
}

struct Contest {
    course: Course,
    chooser: Chooser,
    sight: Sight,
    devices: Vec<Device>,
    queue: Queue<Happening>,
    now: Time,
    copies: Vec<Sending>,
    microbatches: Vec<Microbatch>,
    finished: usize,
    layers: usize,
    outcome: ContestOutcome,
}

impl Contest {
    fn new(config: ContestConfig) -> Self {
        let course = Course::new(config.seed, config.layers);
        let sight = Sight {
            layers: course.deal(),
            held: vec![0; PEERS],
            given: vec![0; PEERS],
            backlog: vec![Span(0); PEERS],
        };
        Self {
            chooser: Chooser::new(config.policy, config.seed),
            course,
            sight,
            devices: std::iter::repeat_with(Device::default).take(PEERS).collect(),
            queue: Queue::new(),
            now: Time(0),
            copies: Vec::new(),
            microbatches: Vec::new(),
            finished: 0,
            layers: config.layers,
            outcome: ContestOutcome::default(),
        }
    }

    fn run_epoch(&mut self) -> Option<()> {
        let begun = self.now;
        let end = self.finished + MICROBATCHES;
        while self.finished < end {
            while self.microbatches.len() < end && self.microbatches.len() - self.finished < IN_FLIGHT_MAX {
                self.microbatches.push(Microbatch::default());
                self.dispatch(self.microbatches.len() - 1);
            }
            let (at, happening) = self.queue.pop()?;
            self.now = at;
            self.handle(happening);
            if at.since(Time(0)) > TIME_MAX {
                return None;
            }
        }
        self.outcome.epochs.push(self.now.since(begun));
        self.merge();
        Some(())
    }

    /// Lets the merge pass. What is still computed or waited for in vain goes on meanwhile.
    fn merge(&mut self) {
        let until = self.now + MERGE;
        while self.queue.next_at().is_some_and(|at| at <= until) {
            let Some((at, happening)) = self.queue.pop() else { break };
            self.now = at;
            self.handle(happening);
        }
        self.now = until;
        let seen: Vec<Seen> =
            self.devices.iter_mut().map(|device| std::mem::take(&mut device.seen)).collect();
        for (peer, to) in rebalance(&seen, &mut self.sight.layers, self.layers) {
            self.chooser.moved(peer, to);
            self.outcome.moves += 1;
        }
    }

    fn handle(&mut self, happening: Happening) {
        match happening {
            Happening::Arrived(copy) => self.arrived(copy),
            Happening::Computed { peer } => self.computed(peer),
            Happening::Answered { copy, free } => self.answered(copy, free),
            Happening::Failed(copy) => {
                self.outcome.failed += 1;
                let (now, peer) = (self.now, self.copies[copy].peer);
                self.chooser.tell(self.copies[copy].wanted, peer, |router, name| router.failed(now, name));
                self.give_up(copy);
            }
            Happening::Refused(copy) => self.refused(copy),
            Happening::Overdue(copy) => self.overdue(copy),
            Happening::Again { microbatch } => self.dispatch(microbatch),
        }
    }

    /// Sends a microbatch to the next peer, or waits for room.
    fn dispatch(&mut self, microbatch: usize) {
        let state = &mut self.microbatches[microbatch];
        let (layer, weight) = self.course.task(state.hop);
        let step = Step { microbatch, hop: state.hop };
        let wanted = Wanted { sender: state.holder, step, layer, weight };
        if self.sight.layers.iter().enumerate().all(|(peer, at)| *at != layer || state.tried.contains(&peer))
        {
            state.tried.clear();
        }
        let avoiding = [&state.tried[..], &state.full[..]].concat();
        let Some(peer) = self.chooser.choose(self.now, wanted, &avoiding, &self.course, &self.sight) else {
            state.full.clear();
            self.queue.push(self.now + PAUSE, Happening::Again { microbatch });
            return;
        };
        let copy = self.copies.len();
        state.copy = Some(copy);
        self.outcome.sent += 1;
        self.copies.push(Sending { wanted, peer, sent: self.now, over: false });
        self.count_given(peer, weight);
        let wait = self.chooser.wait(wanted, &self.sight);
        let latency = self.course.latency();
        self.queue.push(self.now + latency, Happening::Arrived(copy));
        self.queue.push(self.now + wait, Happening::Overdue(copy));
    }

    fn count_given(&mut self, peer: usize, weight: Weight) {
        self.sight.given[peer] += 1;
        self.sight.backlog[peer] = self.sight.backlog[peer].saturating_add(self.course.length(peer, weight));
    }

    fn count_gone(&mut self, peer: usize, weight: Weight) {
        self.sight.given[peer] -= 1;
        self.sight.backlog[peer].0 -= self.course.length(peer, weight).0;
    }

    fn arrived(&mut self, copy: usize) {
        let Sending { wanted, peer, .. } = self.copies[copy];
        let fails = self.course.fate(peer, wanted.step) == Fate::Failed;
        if fails || self.sight.held[peer] == SLOTS {
            self.count_gone(peer, wanted.weight);
            let back = self.now + self.course.latency();
            self.queue.push(back, if fails { Happening::Failed(copy) } else { Happening::Refused(copy) });
            return;
        }
        self.sight.held[peer] += 1;
        let device = &mut self.devices[peer];
        match wanted.weight {
            Weight::Forward => device.forwards.push_back(copy),
            Weight::Backward => device.backwards.push_back(copy),
        }
        self.start(peer);
    }

    fn start(&mut self, peer: usize) {
        let device = &mut self.devices[peer];
        if device.running.is_some() {
            return;
        }
        let Some(copy) = device.backwards.pop_front().or_else(|| device.forwards.pop_front()) else { return };
        device.running = Some(copy);
        let length = self.course.drawn_length(peer, self.copies[copy].wanted.step);
        device.seen.busy = device.seen.busy.saturating_add(length);
        self.queue.push(self.now + length, Happening::Computed { peer });
    }

    fn computed(&mut self, peer: usize) {
        let Some(copy) = self.devices[peer].running.take() else { return };
        let wanted = self.copies[copy].wanted;
        self.sight.held[peer] -= 1;
        self.count_gone(peer, wanted.weight);
        if self.course.fate(peer, wanted.step) == Fate::Answered {
            self.devices[peer].seen.units += wanted.weight.units();
            let free = (SLOTS - self.sight.held[peer]) as u32;
            let back = self.now + self.course.latency();
            self.queue.push(back, Happening::Answered { copy, free });
        }
        self.start(peer);
    }

    fn answered(&mut self, copy: usize, free: u32) {
        let Sending { wanted, peer, sent, .. } = self.copies[copy];
        let took = self.now.since(sent);
        self.chooser.tell(wanted, peer, |router, name| router.settled(name, wanted.weight, took, free));
        self.copies[copy].over = true;
        let hops = self.course.hops();
        let state = &mut self.microbatches[wanted.step.microbatch];
        if state.hop != wanted.step.hop {
            self.outcome.duplicates += 1;
            return;
        }
        *state = Microbatch { hop: state.hop + 1, holder: Some(peer), ..Microbatch::default() };
        if state.hop == hops {
            self.finished += 1;
        } else {
            self.dispatch(wanted.step.microbatch);
        }
    }

    fn refused(&mut self, copy: usize) {
        self.outcome.refused += 1;
        let (now, Sending { wanted, peer, .. }) = (self.now, self.copies[copy]);
        self.chooser.tell(wanted, peer, |router, name| router.busy(now, name));
        self.copies[copy].over = true;
        if self.is_waited_for(copy) {
            let microbatch = wanted.step.microbatch;
            self.microbatches[microbatch].full.push(peer);
            self.dispatch(microbatch);
        }
    }

    fn overdue(&mut self, copy: usize) {
        let Sending { wanted, peer, sent, over, .. } = self.copies[copy];
        if over {
            return;
        }
        self.outcome.late += 1;
        let waited = self.now.since(sent);
        self.chooser.tell(wanted, peer, |router, name| router.late(name, waited));
        self.give_up(copy);
    }

    /// Tries another peer, unless the microbatch has gone on without this copy.
    fn give_up(&mut self, copy: usize) {
        let Sending { wanted, peer, .. } = self.copies[copy];
        self.copies[copy].over = true;
        if self.is_waited_for(copy) {
            let state = &mut self.microbatches[wanted.step.microbatch];
            state.tried.push(peer);
            state.full.clear();
            self.dispatch(wanted.step.microbatch);
        }
    }

    fn is_waited_for(&self, copy: usize) -> bool {
        let Sending { wanted, .. } = self.copies[copy];
        let state = &self.microbatches[wanted.step.microbatch];
        state.hop == wanted.step.hop && state.copy == Some(copy)
    }
}
