//! The course of the contest: who takes part, how fast each is, and what becomes of each task that it is given.
//!
//! Owns the peers as they truly are, drawn from a seed alone, so that all who run the course meet the same. Knows nothing of
//! who chooses among them.

use crate::draws::{Draws, Permille};
use trestle_protocol::router::pace::Weight;
use trestle_protocol::time::Span;

/// Peers of a contest.
pub const PEERS: usize = 96;

/// Reliable peers; 15 % are flaky and 10 % bad.
const RELIABLE: usize = 72;
const FLAKY: usize = 14;

/// Tasks that a peer holds, the one that it computes included.
pub const SLOTS: usize = 5;

/// How long a forward takes a reliable or flaky peer: speeds of 4, 2 and 1, a third of the peers each. A backward takes 2.5
/// times as long, so that a full queue of backwards takes the slowest 50 s and nobody reliable misses the timeout of 60 s.
const FORWARDS: [Span; 3] = [Span::seconds(1), Span::seconds(2), Span::seconds(4)];

/// How long a forward takes a bad peer that does answer: a sixteenth of the best speed.
const FORWARD_BAD: Span = Span::seconds(16);

/// Computations differ by this much from task to task.
const JITTER: Permille = Permille(200);

/// Of a hundred tasks, a flaky peer breaks the connection over so many.
const FAILS_PERCENT: u64 = 10;

/// And loses so many without a word.
const DROPS_PERCENT: u64 = 10;

/// One way between any two peers, give or take half.
const LATENCY: Span = Span::millis(50);
const LATENCY_JITTER: Permille = Permille(500);

/// How a peer treats its tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// It answers all.
    Reliable,
    /// It fails at some and drops some.
    Flaky,
    /// It answers all, after very long.
    Slow,
    /// It takes all, and answers none.
    Silent,
}

/// What becomes of a task at a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is computed and answered.
    Answered,
    /// It is refused at once by a broken connection.
    Failed,
    /// It takes its time and a slot, and no answer comes.
    Dropped,
}

/// A task of the contest: a microbatch of an epoch at one of the layers it passes, forward or backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which microbatch, counted over all epochs.
    pub microbatch: usize,
    /// How many layers it passed before, both ways together.
    pub hop: usize,
}

/// What is true of one peer.
#[derive(Clone, Copy, Debug)]
struct Nature {
    habit: Habit,
    forward: Span,
}

/// The peers as they are.
#[derive(Debug)]
pub struct Course {
    seed: u64,
    layers: usize,
    natures: Vec<Nature>,
    latencies: Draws,
}

impl Course {
    /// Draws the peers: which are reliable is the same in each contest up to their order, as are the speeds.
    pub fn new(seed: u64, layers: usize) -> Self {
        let mut natures: Vec<Nature> = (0..PEERS).map(nature).collect();
        let mut draws = Draws::new(seed, "contest peers", &[]);
        for last in (1..PEERS).rev() {
            natures.swap(last, draws.below(last as u64 + 1) as usize);
        }
        Self { seed, layers, natures, latencies: Draws::new(seed, "contest latency", &[]) }
    }

    /// Returns the layer that each peer begins at: dealt out evenly.
    pub fn deal(&self) -> Vec<usize> {
        (0..PEERS).map(|peer| peer % self.layers).collect()
    }

    /// Returns how many layers a microbatch passes, forward and then backward.
    pub fn hops(&self) -> usize {
        2 * self.layers
    }

    /// Returns the layer of a hop, and what is to be done there.
    pub fn task(&self, hop: usize) -> (usize, Weight) {
        if hop < self.layers { (hop, Weight::Forward) } else { (self.hops() - 1 - hop, Weight::Backward) }
    }

    /// Returns how a peer treats its tasks.
    pub fn habit(&self, peer: usize) -> Habit {
        self.natures[peer].habit
    }

    /// Returns how long a task takes a peer on average.
    pub fn length(&self, peer: usize, weight: Weight) -> Span {
        let forward = self.natures[peer].forward.0;
        Span(forward * weight.units() / Weight::Forward.units())
    }

    /// Returns how long this task takes this peer.
    pub fn drawn_length(&self, peer: usize, step: Step) -> Span {
        let (_, weight) = self.task(step.hop);
        self.draws("contest length", peer, step).around(self.length(peer, weight), JITTER)
    }

    /// Returns what becomes of this task at this peer, however often it is given to it.
    pub fn fate(&self, peer: usize, step: Step) -> Fate {
        match self.habit(peer) {
            Habit::Reliable | Habit::Slow => Fate::Answered,
            Habit::Silent => Fate::Dropped,
            Habit::Flaky => match self.draws("contest fate", peer, step).below(100) {
                draw if draw < FAILS_PERCENT => Fate::Failed,
                draw if draw < FAILS_PERCENT + DROPS_PERCENT => Fate::Dropped,
                _ => Fate::Answered,
            },
        }
    }

    /// Draws how long the next message is on its way.
    pub fn latency(&mut self) -> Span {
        self.latencies.around(LATENCY, LATENCY_JITTER)
    }

    fn draws(&self, purpose: &str, peer: usize, step: Step) -> Draws {
        Draws::new(self.seed, purpose, &[peer as u64, step.microbatch as u64, step.hop as u64])
    }
}

fn nature(number: usize) -> Nature {
    let forward = FORWARDS[number % FORWARDS.len()];
    if number < RELIABLE {
        Nature { habit: Habit::Reliable, forward }
    } else if number < RELIABLE + FLAKY {
        Nature { habit: Habit::Flaky, forward }
    } else if number.is_multiple_of(2) {
        Nature { habit: Habit::Slow, forward: FORWARD_BAD }
    } else {
        Nature { habit: Habit::Silent, forward }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_are_as_the_contest_says() {
        let course = Course::new(1, 4);
        let count = |habit| (0..PEERS).filter(|peer| course.habit(*peer) == habit).count();
        assert_eq!([Habit::Reliable, Habit::Flaky, Habit::Slow, Habit::Silent].map(count), [72, 14, 5, 5]);
        let fast = |forward| {
            let reliable = (0..PEERS).filter(|peer| course.habit(*peer) == Habit::Reliable);
            reliable.filter(|peer| course.length(*peer, Weight::Forward) == forward).count()
        };
        assert_eq!(FORWARDS.map(fast), [24; 3]);
        assert_eq!(course.length(0, Weight::Backward).0 * 2, course.length(0, Weight::Forward).0 * 5);
    }

    #[test]
    fn a_microbatch_goes_there_and_back() {
        let course = Course::new(1, 3);
        let path: Vec<(usize, Weight)> = (0..course.hops()).map(|hop| course.task(hop)).collect();
        let [forward, backward] = [Weight::Forward, Weight::Backward];
        assert_eq!(
            path,
            [(0, forward), (1, forward), (2, forward), (2, backward), (1, backward), (0, backward)]
        );
    }

    #[test]
    fn a_flaky_peer_fails_at_a_tenth_and_drops_a_tenth() {
        let course = Course::new(1, 3);
        let flaky = (0..PEERS).find(|peer| course.habit(*peer) == Habit::Flaky).unwrap();
        let fates: Vec<Fate> =
            (0..2_000).map(|microbatch| course.fate(flaky, Step { microbatch, hop: 0 })).collect();
        for fate in [Fate::Failed, Fate::Dropped] {
            assert!(fates.iter().filter(|one| **one == fate).count().abs_diff(200) < 40);
        }
    }
}
