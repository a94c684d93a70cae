//! Standing: what a router knows of one replica, and what follows from it.
//!
//! Owns pace, free slots, back-pressure and bans. Knows nothing of the other replicas, nor of whose turn it is.

use crate::router::pace::{Pace, Weight};
use crate::time::{Span, Time};

/// Free slots of a peer that has not said how many it has: it gets one task, and the next when it has answered.
const FREE_FIRST: u32 = 1;

/// The first ban. A connection that broke is usually back, or known to be gone, after one or two seconds.
const BAN_FIRST: Span = Span::seconds(2);

/// Doublings of a ban, up to 64 s: a peer that comes back after a restart must not wait much longer than the restart took.
const BAN_DOUBLINGS_MAX: u32 = 5;

/// How long a peer that said it is busy is left alone, while nothing is known of its pace.
const BUSY_FIRST: Span = Span::seconds(1);

/// Whether a peer may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ban {
    /// It may.
    None,
    /// Not before this moment.
    Until(Time),
}

/// What is known of one replica.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pace: Pace,
    free: u32,
    busy_until: Option<Time>,
    failures: u32,
    ban: Ban,
    turns: u64,
    /// What the last turn cost.
    charged: u128,
}

impl Standing {
    /// Begins with a peer of which nothing is known.
    pub(crate) fn new() -> Self {
        Self {
            pace: Pace::default(),
            free: FREE_FIRST,
            busy_until: None,
            failures: 0,
            ban: Ban::None,
            turns: 0,
            charged: 0,
        }
    }

    pub(crate) fn rate(&self) -> Option<u64> {
        self.pace.rate()
    }

    pub(crate) fn ban(&self) -> Ban {
        self.ban
    }

    /// Whether the peer has had no turn since it came, or came back.
    pub(crate) fn is_new(&self) -> bool {
        self.turns == 0
    }

    /// Returns the slots that are free as far as is known: what the peer said last, less what it was sent since.
    pub(crate) fn free(&self, now: Time) -> u32 {
        match self.busy_until {
            Some(until) if now < until => 0,
            Some(_) => self.free.max(1),
            None => self.free,
        }
    }

    /// Takes a slot for a task that is being sent.
    pub(crate) fn charge(&mut self, now: Time, cost: u128) {
        let free = self.free(now);
        if self.busy_until.is_some_and(|until| until <= now) {
            self.busy_until = None;
        }
        self.free = free.saturating_sub(1);
        self.turns += 1;
        self.charged = cost;
    }

    pub(crate) fn settled(&mut self, weight: Weight, took: Span, free: u32) {
        self.pace.did(weight, took);
        self.free = free;
        self.busy_until = None;
        self.failures = self.failures.saturating_sub(1);
    }

    /// Leaves the peer alone for as long as it takes over a forward. Returns what the refused turn cost.
    pub(crate) fn busy(&mut self, now: Time) -> u128 {
        self.free = 0;
        self.busy_until = Some(now + self.pace.expected(Weight::Forward).unwrap_or(BUSY_FIRST));
        core::mem::take(&mut self.charged)
    }

    /// Bans the peer. What fails while it is banned failed for the same reason, and lengthens nothing.
    pub(crate) fn failed(&mut self, now: Time) {
        if matches!(self.ban, Ban::Until(until) if now < until) {
            return;
        }
        let doublings = self.failures.min(BAN_DOUBLINGS_MAX);
        self.ban = Ban::Until(now + Span(BAN_FIRST.0 << doublings));
        self.failures = doublings + 1;
    }

    /// Ends a ban; the slots that the peer once had are in doubt.
    pub(crate) fn readmit(&mut self) {
        (self.ban, self.free, self.busy_until, self.turns) = (Ban::None, FREE_FIRST, None, 0);
    }

    /// Counts the time that was lost, and takes one slot for free again, so that a peer that answers nothing is asked now and
    /// then, as rarely as its pace then says.
    pub(crate) fn late(&mut self, waited: Span) {
        self.pace.wasted(waited);
        self.free = self.free.max(1);
    }
}
