//! The router: which replica of the next stage gets a task, by interleaved weighted round robin.
//!
//! Owns that choice and what it rests on: the load, pace and standing of each replica of one stage. Knows nothing of
//! messages, of what a task is, or of who else sends to the same replicas.
//!
//! Each replica has a load. The least loaded is chosen and its load grows by what the task weighs over the replica's
//! throughput times its capacity, so that a replica twice as fast has its turn twice as often (SWARM, arXiv 2301.11913).
//! Nothing is pinned: a task that failed, was refused or is late goes to another replica.

mod capacity;
pub mod pace;
mod standing;

use crate::ids::PeerId;
use crate::router::capacity::capacity;
use crate::router::pace::Weight;
use crate::router::standing::{Ban, Standing};
use crate::sync::patience::Patience;
use crate::time::{Span, Time};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Fixed point of a load: charges of the fastest replicas still differ, and 2^60 charges of the slowest fit in 128 bits.
const LOAD_ONE: u128 = 1 << 64;

/// Newcomers start at this many halves of the highest load. Started at the least load, a newcomer would be every sender's next
/// choice at once, before anybody knows how fast it is.
const NEWCOMER_HALVES: u128 = 3;

/// But no further back than this many backwards of a middling replica with one slot: one replica that is very slow is as far
/// ahead of the others, and newcomers would wait as long as it does.
const NEWCOMER_TURNS_MAX: u128 = 2;

/// A replica's throughput counts as at least this part of the best: one that got better is noticed after some 64 tasks.
const RATE_RATIO_MAX: u64 = 64;

/// The throughput of all replicas while none is known; loads are rescaled when the first is.
const RATE_UNKNOWN: u64 = 1 << 20;

/// Doublings of the wait.
const WAIT_DOUBLINGS_MAX: u32 = 4;

/// A replica's place in the order: by load, then by chance, then by name.
type Turn = (u128, u64, PeerId);

/// How much work was given to a replica, weighed by its throughput, above the one whose turn it was last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load(pub u128);

/// Chooses among the replicas of one stage.
#[derive(Clone, Debug)]
pub struct Router {
    turns: BTreeSet<Turn>,
    peers: BTreeMap<PeerId, (Turn, Standing)>,
    /// How long forwards and backwards took the stage.
    waits: [Patience; 2],
    wait_max: Span,
    /// The load of the replica that was chosen last.
    reached: u128,
    chance: u64,
    /// Waits that ran out since the last answer.
    lates: u32,
}

impl Router {
    /// Begins without replicas. The seed decides among equals; senders with different seeds do not all begin with the same
    /// replica. `wait_max` is how long to wait for an answer until one was measured, and the longest wait after that.
    pub fn new(seed: u64, wait_max: Span) -> Self {
        let waits = [Patience::new(wait_max), Patience::new(wait_max)];
        Self {
            turns: BTreeSet::new(),
            peers: BTreeMap::new(),
            waits,
            wait_max,
            reached: 0,
            chance: seed,
            lates: 0,
        }
    }

    /// Adds a replica, behind all others; one that is here already stays as it is.
    pub fn enter(&mut self, peer: PeerId) {
        if self.peers.contains_key(&peer) {
            return;
        }
        let turn = (self.load_of_newcomer(), self.draw(), peer);
        self.turns.insert(turn);
        self.peers.insert(peer, (turn, Standing::new()));
    }

    /// Forgets a replica.
    pub fn leave(&mut self, peer: PeerId) {
        if let Some((turn, _)) = self.peers.remove(&peer) {
            self.turns.remove(&turn);
        }
    }

    /// Returns the replicas in the order of their names.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.peers.keys().copied()
    }

    /// Chooses the replica for a task and charges it. `avoiding` are those that had this task already.
    ///
    /// The least loaded replica with a free slot; if none has one, the least loaded. None if all that are left are banned:
    /// then [`Router::back_at`] says when to ask again.
    pub fn choose(&mut self, now: Time, weight: Weight, avoiding: &[PeerId]) -> Option<PeerId> {
        self.readmit(now);
        let (mut passed, mut chosen) = (Vec::new(), None);
        for turn in &self.turns {
            let (_, _, peer) = *turn;
            let (_, standing) = &self.peers[&peer];
            let free = standing.free(now);
            if standing.ban() != Ban::None || avoiding.contains(&peer) || capacity(free) == 0 {
                continue;
            }
            if free > 0 {
                chosen = Some(*turn);
                break;
            }
            passed.push(*turn);
        }
        let (reached, _, peer) = chosen.or(passed.first().copied())?;
        // A replica that is full saves up no turns: it would be given all of them at once later.
        for (load, chance, full) in passed {
            self.place((load.max(reached), chance, full));
        }
        self.reached = self.reached.max(reached);
        self.charge(now, peer, weight, reached);
        Some(peer)
    }

    fn charge(&mut self, now: Time, peer: PeerId, weight: Weight, load: u128) {
        let rate = self.rate(peer);
        let Some((_, standing)) = self.peers.get_mut(&peer) else { return };
        let worth = u128::from(rate) * u128::from(capacity(standing.free(now)));
        let cost = cost(weight, worth);
        standing.charge(now, cost);
        let turn = (load + cost, self.draw(), peer);
        self.place(turn);
    }

    /// Takes the answer to a task: how long it took since it was sent, and how many slots the replica then had free.
    ///
    /// An answer that comes after [`Router::late`] is told too, and whole: without it a wait that is too short stays so.
    pub fn settled(&mut self, peer: PeerId, weight: Weight, took: Span, free: u32) {
        if self.peers.contains_key(&peer) {
            self.waits[weight as usize].learn(took);
            self.lates = 0;
            self.measure(peer, |standing| standing.settled(weight, took, free));
        }
    }

    /// Takes a refusal for lack of room. The replica counts as full until it answers something, or for the time of a forward;
    /// its turn is given back, since it did no work.
    pub fn busy(&mut self, now: Time, peer: PeerId) {
        let Some(((load, chance, _), standing)) = self.peers.get_mut(&peer) else { return };
        let before = load.saturating_sub(standing.busy(now)).max(self.reached);
        let turn = (before, *chance, peer);
        self.place(turn);
    }

    /// Takes a hard failure: a broken connection, a malformed answer. The replica is banned for a while, longer each time.
    pub fn failed(&mut self, now: Time, peer: PeerId) {
        self.with(peer, |standing| standing.failed(now));
    }

    /// Takes it that no answer came within the wait. The replica is not banned; its throughput falls by what was waited.
    pub fn late(&mut self, peer: PeerId, waited: Span) {
        if self.peers.contains_key(&peer) {
            self.lates = (self.lates + 1).min(WAIT_DOUBLINGS_MAX);
            self.measure(peer, |standing| standing.late(waited));
        }
    }

    /// Returns how long to wait for an answer before another replica is tried, never longer than the router was begun with.
    ///
    /// It rests on the round trips of the whole stage: a replica that needs longer is late, since others would have answered by
    /// then. It doubles with each wait in a row that ran out, whoever was waited for, so that a stage that became slower for
    /// all is measured again.
    pub fn wait(&self, weight: Weight) -> Span {
        let wait = self.waits[weight as usize].wait().0.saturating_mul(1 << self.lates);
        Span(wait).min(self.wait_max)
    }

    /// Returns a replica's load.
    pub fn load(&self, peer: PeerId) -> Option<Load> {
        self.peers.get(&peer).map(|((load, ..), _)| Load(load.saturating_sub(self.reached)))
    }

    /// Returns when the first ban ends.
    pub fn back_at(&self) -> Option<Time> {
        let bans = self.peers.values().filter_map(|(_, standing)| match standing.ban() {
            Ban::None => None,
            Ban::Until(until) => Some(until),
        });
        bans.min()
    }

    fn with(&mut self, peer: PeerId, change: impl FnOnce(&mut Standing)) {
        if let Some((_, standing)) = self.peers.get_mut(&peer) {
            change(standing);
        }
    }

    /// Lets a replica's throughput be measured. The first measurement of all replaces the guess by which loads grew so far.
    fn measure(&mut self, peer: PeerId, change: impl FnOnce(&mut Standing)) {
        let known = self.peers.values().any(|(_, standing)| standing.rate().is_some());
        self.with(peer, change);
        let (rate, _) = self.rates();
        if known {
            return;
        }
        let rescale = |load: u128| load.saturating_mul(u128::from(RATE_UNKNOWN)) / u128::from(rate);
        self.reached = rescale(self.reached);
        self.peers.values_mut().for_each(|((load, ..), _)| *load = rescale(*load));
        self.turns = self.peers.values().map(|(turn, _)| *turn).collect();
    }

    /// Lets those whose ban has ended come back as newcomers: their load stood still meanwhile.
    fn readmit(&mut self, now: Time) {
        let ended = |ban| matches!(ban, Ban::Until(until) if until <= now);
        let back: Vec<PeerId> =
            self.peers.iter().filter(|(_, (_, s))| ended(s.ban())).map(|(peer, _)| *peer).collect();
        for peer in back {
            let turn = (self.load_of_newcomer(), self.draw(), peer);
            self.with(peer, Standing::readmit);
            self.place(turn);
        }
    }

    fn place(&mut self, turn: Turn) {
        let Some((old, _)) = self.peers.get_mut(&turn.2) else { return };
        self.turns.remove(old);
        self.turns.insert(turn);
        *old = turn;
    }

    fn load_of_newcomer(&self) -> u128 {
        let old = self.peers.values().filter(|(_, standing)| !standing.is_new());
        let highest = old.map(|((load, ..), _)| load.saturating_sub(self.reached)).max().unwrap_or(0);
        let (median, _) = self.rates();
        let turn = cost(Weight::Backward, u128::from(median) * u128::from(capacity(1)));
        self.reached + (highest * NEWCOMER_HALVES / 2).min(turn * NEWCOMER_TURNS_MAX)
    }

    /// Returns a replica's throughput; the median of the stage while it has none of its own.
    fn rate(&self, peer: PeerId) -> u64 {
        let (median, best) = self.rates();
        let own = self.peers.get(&peer).and_then(|(_, standing)| standing.rate());
        own.unwrap_or(median).max(best / RATE_RATIO_MAX).max(1)
    }

    /// Returns the median and the best throughput of those measured.
    fn rates(&self) -> (u64, u64) {
        let mut rates: Vec<u64> = self.peers.values().filter_map(|(_, standing)| standing.rate()).collect();
        rates.sort_unstable();
        let median = rates.get(rates.len() / 2).copied().unwrap_or(RATE_UNKNOWN);
        (median, rates.last().copied().unwrap_or(RATE_UNKNOWN))
    }

    /// Draws the next number of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
    fn draw(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.chance ^ (self.chance >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// What a task adds to the load of a replica that is worth so much, throughput times capacity.
fn cost(weight: Weight, worth: u128) -> u128 {
    u128::from(weight.units()) * u128::from(capacity::ONE) * LOAD_ONE / worth
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::pace::Weight::{Backward, Forward};

    const WAIT_MAX: Span = Span::seconds(20);
    const SLOTS: u32 = 5;

    fn peer(number: u8) -> PeerId {
        PeerId([number; 32])
    }

    fn router(peers: u8) -> Router {
        let mut router = Router::new(7, WAIT_MAX);
        (0..peers).for_each(|number| router.enter(peer(number)));
        router
    }

    /// Sends tasks of which each is answered at once, after as long as the table says; returns who had how many.
    fn serve(router: &mut Router, tasks: usize, weight: Weight, millis: &[u64]) -> Vec<usize> {
        let mut counts = alloc::vec![0; millis.len()];
        for _ in 0..tasks {
            let chosen = router.choose(Time(0), weight, &[]).unwrap();
            let number = usize::from(chosen.0[0]);
            counts[number] += 1;
            router.settled(chosen, weight, Span::millis(millis[number]), SLOTS);
        }
        counts
    }

    #[test]
    fn fast_peers_get_proportionally_more() {
        for weight in [Forward, Backward] {
            let mut router = router(3);
            serve(&mut router, 60, weight, &[400, 200, 100]);
            let counts = serve(&mut router, 700, weight, &[400, 200, 100]);
            let near = counts.iter().zip([100_usize, 200, 400]).all(|(got, want)| got.abs_diff(want) <= 4);
            assert!(near, "{counts:?}");
        }
    }

    #[test]
    fn the_turns_are_interleaved() {
        let mut router = router(2);
        serve(&mut router, 50, Forward, &[300, 100]);
        for _ in 0..20 {
            let counts = serve(&mut router, 4, Forward, &[300, 100]);
            assert!(counts[0].abs_diff(1) <= 1 && counts[1] >= 2, "{counts:?}");
        }
    }

    #[test]
    fn a_backward_weighs_two_and_a_half_forwards() {
        let mut router = router(2);
        serve(&mut router, 40, Forward, &[100, 100]);
        let mut tasks = [0_usize; 2];
        for _ in 0..700 {
            // Whoever has had less work is chosen; the second is only ever given backwards.
            let next = router.turns.first().unwrap().2;
            let weight = if next == peer(0) { Forward } else { Backward };
            let chosen = router.choose(Time(0), weight, &[]).unwrap();
            let took = Span::millis(50 * weight.units());
            router.settled(chosen, weight, took, SLOTS);
            tasks[usize::from(chosen.0[0])] += 1;
        }
        assert!(tasks[0].abs_diff(500) <= 5 && tasks[1].abs_diff(200) <= 5, "{tasks:?}");
    }

    #[test]
    fn all_peers_with_one_slot_do_not_stall() {
        let mut router = router(4);
        let mut counts = [0; 4];
        for _ in 0..40 {
            let chosen = router.choose(Time(0), Forward, &[]).expect("a full stage still has a route");
            counts[usize::from(chosen.0[0])] += 1;
        }
        assert_eq!(counts, [10; 4], "and takes turns");
        for number in 0..4 {
            router.busy(Time(0), peer(number));
        }
        assert!(
            router.choose(Time(0), Forward, &[]).is_some(),
            "also where all have said that they are busy"
        );
    }

    #[test]
    fn more_free_slots_bring_more_work() {
        let mut router = router(2);
        let mut counts = [0_usize; 2];
        for _ in 0..400 {
            let chosen = router.choose(Time(0), Forward, &[]).unwrap();
            let number = usize::from(chosen.0[0]);
            counts[number] += 1;
            router.settled(chosen, Forward, Span::millis(100), [1, 5][number]);
        }
        let (one, five) = (capacity(1) as usize, capacity(5) as usize);
        assert!(counts[1].abs_diff(400 * five / (one + five)) <= 5, "{counts:?}");
    }

    #[test]
    fn a_full_peer_is_passed_over_and_saves_up_no_turns() {
        let mut router = router(3);
        serve(&mut router, 30, Forward, &[100; 3]);
        router.settled(peer(0), Forward, Span::millis(100), 0);
        for _ in 0..60 {
            let chosen = router.choose(Time(0), Forward, &[]).unwrap();
            assert_ne!(chosen, peer(0));
            router.settled(chosen, Forward, Span::millis(100), SLOTS);
        }
        router.settled(peer(0), Forward, Span::millis(100), SLOTS);
        let counts = serve(&mut router, 9, Forward, &[100; 3]);
        assert!(counts[0] <= 4, "twenty turns were missed, and not made up for: {counts:?}");
    }

    #[test]
    fn newcomers_are_not_flooded() {
        let mut router = router(3);
        serve(&mut router, 300, Forward, &[100; 3]);
        router.enter(peer(3));
        let mut order = Vec::new();
        for _ in 0..24 {
            let chosen = router.choose(Time(0), Forward, &[]).unwrap();
            order.push(chosen);
            if chosen != peer(3) {
                router.settled(chosen, Forward, Span::millis(100), SLOTS);
            }
        }
        let first = order.iter().position(|chosen| *chosen == peer(3)).expect("a newcomer has its turn");
        assert!((3..9).contains(&first), "after all others have had one: {first}");
        assert_eq!(
            order.iter().filter(|chosen| **chosen == peer(3)).count(),
            1,
            "one task until it has answered"
        );
        router.settled(peer(3), Forward, Span::millis(100), SLOTS);
        let counts = serve(&mut router, 400, Forward, &[100; 4]);
        assert!(counts.iter().all(|count| count.abs_diff(100) <= 3), "then it is one of them: {counts:?}");
    }

    #[test]
    fn many_newcomers_do_not_push_each_other_back() {
        for (millis, what) in [(100, "all are alike"), (10_000, "one is slow and far ahead")] {
            let mut router = router(2);
            serve(&mut router, 100, Forward, &[100, millis]);
            (2..22).for_each(|number| router.enter(peer(number)));
            let loads: Vec<Load> = (2..22).map(|number| router.load(peer(number)).unwrap()).collect();
            assert!(loads.iter().all(|load| *load == loads[0]), "{what}");
            let counts = serve(&mut router, 50, Forward, &[100; 22]);
            assert!(counts[2..].iter().all(|count| *count > 0), "{what}: {counts:?}");
        }
    }

    #[test]
    fn busy_is_not_a_ban() {
        let mut router = router(2);
        serve(&mut router, 40, Forward, &[100, 100]);
        router.busy(Time(0), peer(0));
        for _ in 0..6 {
            assert_eq!(router.choose(Time(1), Forward, &[]), Some(peer(1)));
            router.settled(peer(1), Forward, Span::millis(100), SLOTS);
        }
        assert_eq!(router.choose(Time(1), Forward, &[peer(1)]), Some(peer(0)), "who else, if not a full one");
        router.busy(Time(1), peer(0));
        let later = Time(1) + Span::millis(100);
        let chosen: Vec<_> = (0..2).map(|_| router.choose(later, Forward, &[]).unwrap()).collect();
        assert!(chosen.contains(&peer(0)), "the time of a forward later it is one of them again: {chosen:?}");
        router.busy(later, peer(0));
        router.settled(peer(0), Forward, Span::millis(100), SLOTS);
        let counts = serve(&mut router, 10, Forward, &[100, 100]);
        assert!(counts[0] >= 4, "and so it is once it has answered: {counts:?}");
    }

    #[test]
    fn a_failed_peer_comes_back_after_its_lease() {
        let mut router = router(2);
        serve(&mut router, 40, Forward, &[100, 100]);
        let (mut now, mut bans) = (Time(0), Vec::new());
        for _ in 0..9 {
            router.failed(now, peer(0));
            router.failed(now + Span(1), peer(0));
            assert_eq!(router.choose(now, Forward, &[peer(1)]), None);
            let back = router.back_at().unwrap();
            assert_eq!(router.choose(back - Span(1), Forward, &[peer(1)]), None);
            assert_eq!(router.choose(back, Forward, &[peer(1)]), Some(peer(0)));
            bans.push(back.since(now).0 / 1_000_000);
            now = back;
        }
        assert_eq!(bans, [2, 4, 8, 16, 32, 64, 64, 64, 64], "longer each time, within a bound");
        (0..6).for_each(|_| router.settled(peer(0), Forward, Span::millis(100), SLOTS));
        router.failed(now, peer(0));
        assert_eq!(router.back_at(), Some(now + Span::seconds(2)), "answers make up for failures");
    }

    #[test]
    fn a_peer_that_was_banned_comes_back_as_a_newcomer() {
        let mut router = router(3);
        serve(&mut router, 40, Forward, &[100; 3]);
        router.failed(Time(0), peer(0));
        for _ in 0..200 {
            let chosen = router.choose(Time(0), Forward, &[]).unwrap();
            router.settled(chosen, Forward, Span::millis(100), SLOTS);
        }
        let back = router.back_at().unwrap();
        let order: Vec<_> = (0..2).map(|_| router.choose(back, Forward, &[]).unwrap()).collect();
        assert!(!order.contains(&peer(0)), "{order:?}");
    }

    #[test]
    fn a_late_peer_is_slower_and_not_banned() {
        let mut router = router(2);
        serve(&mut router, 40, Forward, &[100, 100]);
        let (before, other) = (router.rate(peer(0)), router.rate(peer(1)));
        router.late(peer(0), Span::seconds(1));
        assert!(router.rate(peer(0)) < before / 2 && router.rate(peer(1)) == other);
        assert_eq!(router.back_at(), None);
        assert_eq!(router.choose(Time(0), Forward, &[peer(1)]), Some(peer(0)));
    }

    #[test]
    fn a_silent_peer_is_asked_now_and_then() {
        let mut router = router(2);
        serve(&mut router, 40, Forward, &[100, 100]);
        for _ in 0..3 {
            let mut asked = 0;
            for _ in 0..1_000 {
                let chosen = router.choose(Time(0), Forward, &[]).unwrap();
                if chosen == peer(0) {
                    asked += 1;
                    router.late(chosen, Span::seconds(1));
                } else {
                    router.settled(chosen, Forward, Span::millis(100), SLOTS);
                }
            }
            assert!((5..40).contains(&asked), "of a thousand tasks: {asked}");
        }
    }

    #[test]
    fn the_wait_follows_the_round_trips() {
        let mut router = router(2);
        assert_eq!(router.wait(Forward), WAIT_MAX);
        serve(&mut router, 60, Forward, &[1_500, 1_500]);
        assert_eq!(router.wait(Forward), Span::millis(1_750));
        assert_eq!(router.wait(Backward), WAIT_MAX, "backwards have a wait of their own");
        let waits = [1, 2, 3, 4, 5, 6].map(|number| {
            router.late(peer(number % 2), Span::millis(1_750));
            router.wait(Forward).0 / 1_000
        });
        assert_eq!(
            waits,
            [3_500, 7_000, 14_000, 20_000, 20_000, 20_000],
            "longer while nothing comes, within a bound"
        );
        (0..16).for_each(|_| router.settled(peer(0), Forward, Span::seconds(3), SLOTS));
        assert_eq!(router.wait(Forward), Span::millis(3_250), "answers that came too late are learnt from");
    }

    #[test]
    fn one_slow_peer_does_not_lengthen_the_wait() {
        let mut router = router(8);
        let counts = serve(&mut router, 400, Forward, &[16_000, 500, 500, 500, 500, 500, 500, 500]);
        assert!(counts[0] > 1);
        assert!(router.wait(Forward) < Span::seconds(2));
    }

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let order = |seed| {
            let mut router = Router::new(seed, WAIT_MAX);
            (0..8).for_each(|number| router.enter(peer(number)));
            (0..64).map(|_| router.choose(Time(0), Forward, &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1)[..8], order(2)[..8], "two senders do not begin with the same replica");
    }

    #[test]
    fn who_has_left_is_not_chosen() {
        let mut router = router(2);
        router.leave(peer(0));
        assert_eq!(router.choose(Time(0), Forward, &[]), Some(peer(1)));
        assert_eq!(router.choose(Time(0), Forward, &[peer(1)]), None);
        router.settled(peer(0), Forward, Span(1), 1);
        router.busy(Time(0), peer(0));
        assert_eq!((router.load(peer(0)), router.peers().count()), (None, 1));
        router.leave(peer(1));
        assert_eq!(router.choose(Time(0), Forward, &[]), None);
    }
}
