//! Those who compete: four ways of choosing the peer of the next layer.
//!
//! Owns how each chooses, and what each may know. Knows nothing of virtual time's course; the contest tells what happened.

use crate::contest::course::{Course, Fate, PEERS, SLOTS, Step};
use crate::draws::{Draws, derive};
use std::collections::BTreeMap;
use trestle_protocol::ids::PeerId;
use trestle_protocol::router::Router;
use trestle_protocol::router::pace::Weight;
use trestle_protocol::time::{Span, Time};

/// How long an answer is waited for by whoever measures nothing, and by the router before it has measured.
pub const TIMEOUT: Span = Span::seconds(60);

/// Who competes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// By chance, in proportion to free slots, which it knows of each peer at each moment. Waits 60 s.
    FreeSlots,
    /// The router of the core, which knows what it is told.
    Router(Experience, Deadline),
    /// Knows each peer's speed and queue, and what will become of each task; takes whoever is done first.
    Oracle,
}

/// Whose answers a router learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Experience {
    /// One router a layer, for all who send to it.
    Shared,
    /// Each sender has a router of its own, and learns from what it sent itself.
    Own,
}

/// How long an answer is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deadline {
    /// 60 s.
    Fixed,
    /// As long as the router says.
    Measured,
}

/// All, in the order of tables.
pub const POLICIES: [Policy; 6] = [
    Policy::FreeSlots,
    Policy::Router(Experience::Shared, Deadline::Fixed),
    Policy::Router(Experience::Shared, Deadline::Measured),
    Policy::Router(Experience::Own, Deadline::Fixed),
    Policy::Router(Experience::Own, Deadline::Measured),
    Policy::Oracle,
];

/// Who sends a task: a peer, or the coordinator, who sends to the first layer.
pub type Sender = Option<usize>;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Who asks.
    pub sender: Sender,
    /// The task.
    pub step: Step,
    /// Where it is to be done.
    pub layer: usize,
    /// And what it is.
    pub weight: Weight,
}

/// What is true of the peers now; only those who may know it look.
#[derive(Clone, Debug)]
pub struct Sight {
    /// The layer of each peer.
    pub layers: Vec<usize>,
    /// Tasks that each peer holds.
    pub held: Vec<usize>,
    /// Tasks that each peer holds or will when they arrive.
    pub given: Vec<usize>,
    /// How long those take.
    pub backlog: Vec<Span>,
}

/// One competitor, for all senders.
#[derive(Debug)]
pub struct Chooser {
    policy: Policy,
    seed: u64,
    draws: Draws,
    routers: BTreeMap<(Sender, usize), Router>,
    names: BTreeMap<PeerId, usize>,
}

impl Chooser {
    /// Begins without any experience.
    pub fn new(policy: Policy, seed: u64) -> Self {
        let draws = Draws::new(seed, "contest choice", &[]);
        let names = (0..PEERS).map(|peer| (name(seed, peer), peer)).collect();
        Self { policy, seed, draws, routers: BTreeMap::new(), names }
    }

    /// Chooses a peer of the layer that is not among those to avoid; None if there is none to be had now.
    pub fn choose(
        &mut self,
        now: Time,
        wanted: Wanted,
        avoiding: &[usize],
        course: &Course,
        sight: &Sight,
    ) -> Option<usize> {
        let here = (0..PEERS).filter(|peer| sight.layers[*peer] == wanted.layer);
        let mut candidates = here.filter(|peer| !avoiding.contains(peer));
        match self.policy {
            Policy::FreeSlots => self.by_free_slots(&candidates.collect::<Vec<_>>(), sight),
            Policy::Router(..) => {
                let avoiding: Vec<PeerId> = avoiding.iter().map(|peer| name(self.seed, *peer)).collect();
                let chosen = self.router(wanted, &sight.layers).choose(now, wanted.weight, &avoiding)?;
                self.names.get(&chosen).copied()
            }
            Policy::Oracle => {
                let done_at =
                    |peer: usize| sight.backlog[peer].saturating_add(course.length(peer, wanted.weight));
                let mut best: Option<usize> = None;
                for peer in candidates.by_ref() {
                    let takes = course.fate(peer, wanted.step) == Fate::Answered && sight.given[peer] < SLOTS;
                    if takes && best.is_none_or(|best| done_at(peer) < done_at(best)) {
                        best = Some(peer);
                    }
                }
                best
            }
        }
    }

    /// Returns how long to wait for the answer.
    pub fn wait(&mut self, wanted: Wanted, sight: &Sight) -> Span {
        match self.policy {
            Policy::FreeSlots | Policy::Router(_, Deadline::Fixed) | Policy::Oracle => TIMEOUT,
            Policy::Router(_, Deadline::Measured) => self.router(wanted, &sight.layers).wait(wanted.weight),
        }
    }

    /// Tells the sender's router what came of a task; others do not learn.
    pub fn tell(&mut self, wanted: Wanted, peer: usize, news: impl FnOnce(&mut Router, PeerId)) {
        let name = name(self.seed, peer);
        let key = (self.learner(wanted.sender), wanted.layer);
        if let Some(router) = self.routers.get_mut(&key) {
            news(router, name);
        }
    }

    /// Follows a peer to another layer: there it is a newcomer, and it begins to send anew.
    pub fn moved(&mut self, peer: usize, to: usize) {
        let name = name(self.seed, peer);
        self.routers.retain(|(sender, _), _| *sender != Some(peer));
        for ((_, layer), router) in &mut self.routers {
            if *layer == to { router.enter(name) } else { router.leave(name) }
        }
    }

    fn by_free_slots(&mut self, candidates: &[usize], sight: &Sight) -> Option<usize> {
        let free = |peer: usize| (SLOTS - sight.held[peer]) as u64;
        let total = candidates.iter().map(|peer| free(*peer)).sum();
        let mut draw = self.draws.below(total);
        candidates.iter().copied().find(|peer| {
            let here = draw < free(*peer);
            draw = draw.saturating_sub(free(*peer));
            here
        })
    }

    /// Returns whose router a sender uses; with shared experience all use the coordinator's.
    fn learner(&self, sender: Sender) -> Sender {
        match self.policy {
            Policy::Router(Experience::Own, _) => sender,
            Policy::FreeSlots | Policy::Router(Experience::Shared, _) | Policy::Oracle => None,
        }
    }

    fn router(&mut self, wanted: Wanted, layers: &[usize]) -> &mut Router {
        let (sender, layer) = (self.learner(wanted.sender), wanted.layer);
        let seed = self.seed;
        self.routers.entry((sender, layer)).or_insert_with(|| {
            let place = sender.map_or(0, |peer| peer as u64 + 1);
            let mut router = Router::new(
                Draws::new(seed, "contest router", &[place, layer as u64]).below(u64::MAX),
                TIMEOUT,
            );
            let here = (0..PEERS).filter(|peer| layers[*peer] == layer);
            here.for_each(|peer| router.enter(name(seed, peer)));
            router
        })
    }
}

fn name(seed: u64, peer: usize) -> PeerId {
    PeerId(derive(seed, "contest name", &[peer as u64]))
}
