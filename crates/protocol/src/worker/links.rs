//! The connections of a worker: whom it dials, who cannot be reached, and when it tries again.
//!
//! Owns that knowledge. Knows nothing of what is said over a connection.

use crate::ids::PeerId;
use crate::port::{Action, Outbox};
use crate::time::{Span, Time};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;

/// A connection that broke may come back within so long; only then its peer's work goes to others. Doing work twice costs
/// more than this wait.
pub const GRACE: Span = Span::millis(1_500);

/// The first wait before a peer is dialled again; it doubles with each try.
const REDIAL_FIRST: Span = Span::millis(500);

/// The longest such wait: a coordinator that starts again is found within it.
const REDIAL_MAX: Span = Span::seconds(8);

#[derive(Clone, Debug)]
struct Link {
    /// Where to dial; `None` where the other side dials.
    address: Option<Bytes>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Never connected yet.
    New,
    /// It stands.
    Up,
    /// It is gone, since when, and how often it was dialled in vain.
    Down { since: Time, tries: u32, dial_at: Time },
}

/// All connections that matter.
#[derive(Debug, Default)]
pub struct Links {
    links: BTreeMap<PeerId, Link>,
}

impl Links {
    /// Wants a connection; dials at once unless there is one or the other side dials.
    pub fn want(&mut self, peer: PeerId, address: Option<Bytes>, out: &mut Outbox) {
        let link = self.links.entry(peer).or_insert(Link { address: None, state: State::New });
        if let Some(address) = address {
            let news = link.address.as_ref() != Some(&address);
            link.address = Some(address.clone());
            if news && link.state != State::Up {
                out.push(Action::Dial { peer, address });
            }
        }
    }

    /// Forgets all but those that are still wanted.
    pub fn retain(&mut self, wanted: impl Fn(PeerId) -> bool) {
        self.links.retain(|peer, _| wanted(*peer));
    }

    /// Hears that a connection stands.
    pub fn connected(&mut self, peer: PeerId) {
        let link = self.links.entry(peer).or_insert(Link { address: None, state: State::New });
        link.state = State::Up;
    }

    /// Hears that a connection is gone, or could not be made.
    pub fn lost(&mut self, now: Time, peer: PeerId) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        let (since, tries) = match link.state {
            State::Down { since, tries, .. } => (since, tries + 1),
            State::New | State::Up => (now, 0),
        };
        let wait = Span((REDIAL_FIRST.0 << tries.min(8)).min(REDIAL_MAX.0));
        link.state = State::Down { since, tries, dial_at: now + wait };
    }

    /// Returns whether work may be sent to a peer: it is connected, or was until a moment ago.
    pub fn is_usable(&self, now: Time, peer: PeerId) -> bool {
        match self.links.get(&peer).map(|link| link.state) {
            Some(State::Down { since, .. }) => now.since(since) < GRACE,
            Some(State::New | State::Up) | None => true,
        }
    }

    /// Returns whether every peer that is dialled was reached, or found unreachable.
    pub fn is_settled(&self) -> bool {
        self.links.values().all(|link| link.address.is_none() || link.state != State::New)
    }

    /// Returns since when a peer cannot be reached.
    pub fn down_since(&self, peer: PeerId) -> Option<Time> {
        match self.links.get(&peer)?.state {
            State::Down { since, .. } => Some(since),
            State::New | State::Up => None,
        }
    }

    /// Dials again those whose time has come.
    pub fn woke(&mut self, now: Time, out: &mut Outbox) {
        for (peer, link) in &mut self.links {
            let State::Down { since, tries, dial_at } = link.state else { continue };
            let Some(address) = link.address.clone().filter(|_| dial_at <= now) else { continue };
            // The answer sets the next time; one that never comes must not end the trying.
            link.state = State::Down { since, tries, dial_at: now + REDIAL_MAX + REDIAL_MAX };
            out.push(Action::Dial { peer: *peer, address });
        }
    }

    /// Returns when to call [`Links::woke`], or to look again who is usable.
    pub fn deadline(&self, now: Time) -> Option<Time> {
        let times = self.links.values().flat_map(|link| match link.state {
            State::Down { since, dial_at, .. } => {
                let grace = Some(since + GRACE).filter(|at| *at > now);
                let dial = link.address.is_some().then_some(dial_at);
                [grace, dial]
            }
            State::New | State::Up => [None, None],
        });
        times.flatten().min()
    }

    /// Lists the peers that cannot be reached now.
    pub fn unusable(&self, now: Time) -> Vec<PeerId> {
        self.links.keys().copied().filter(|peer| !self.is_usable(now, *peer)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerId = PeerId([1; 32]);

    fn dials(out: &mut Outbox) -> usize {
        core::iter::from_fn(|| out.pop()).filter(|action| matches!(action, Action::Dial { .. })).count()
    }

    #[test]
    fn a_lost_peer_is_dialled_again_ever_more_rarely_and_used_again_when_it_is_back() {
        let mut links = Links::default();
        let mut out = Outbox::default();
        links.want(PEER, Some(Bytes::from_static(b"there")), &mut out);
        links.want(PEER, Some(Bytes::from_static(b"there")), &mut out);
        assert_eq!(dials(&mut out), 1);
        links.connected(PEER);
        let mut now = Time(10_000_000);
        links.lost(now, PEER);
        assert!(links.is_usable(now + Span::millis(1_499), PEER) && !links.is_usable(now + GRACE, PEER));
        let mut waits = Vec::new();
        for _ in 0..7 {
            let before = now;
            loop {
                now = links.deadline(now).expect("it tries again").max(now + Span(1));
                links.woke(now, &mut out);
                if dials(&mut out) == 1 {
                    break;
                }
            }
            waits.push(now.since(before).0 / 1_000);
            links.lost(now, PEER);
        }
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 8_000, 8_000]);
        links.connected(PEER);
        assert!(links.is_usable(now, PEER) && links.deadline(now).is_none());
    }

    #[test]
    fn who_dials_us_is_not_dialled() {
        let mut links = Links::default();
        let mut out = Outbox::default();
        links.want(PEER, None, &mut out);
        assert!(links.is_settled(), "it is not for us to reach it");
        links.lost(Time(5), PEER);
        links.woke(Time(1_000_000_000), &mut out);
        assert_eq!(dials(&mut out), 0);
        assert_eq!(links.unusable(Time(1_000_000_000)), [PEER]);
    }
}
