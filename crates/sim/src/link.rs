//! Links: when a message sent now arrives.
//!
//! Owns latency, bandwidth and jitter of every directed pair of peers. Knows nothing of what a message says, only its
//! size and whether it carries a tensor.

use crate::draws::{Draws, Permille};
use std::collections::BTreeMap;
use trestle_protocol::time::{Span, Time};

/// What a link is like, in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Time from the last byte sent to the last byte received.
    pub latency: Span,
    /// Bits that leave in a second; 0 does not limit.
    pub bandwidth: u64,
    /// How far each message's transfer and latency may lie from the mean.
    pub jitter: Permille,
}

/// What a link carries, as far as its order is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freight {
    /// A message without a tensor: these arrive in the order in which they were sent.
    Control,
    /// A message with a tensor, which goes over several streams and may overtake or be overtaken.
    Tensor,
}

/// All links of a swarm.
#[derive(Debug)]
pub struct Links {
    seed: u64,
    common: Link,
    /// Links of single peers, which hold for all they send and receive instead of the common one.
    own: BTreeMap<usize, Link>,
    lanes: BTreeMap<(usize, usize), Lane>,
}

/// One direction of one link.
#[derive(Debug)]
struct Lane {
    link: Link,
    free: Time,
    control_last: Time,
    draws: Draws,
}

impl Links {
    /// Makes the links of a swarm.
    pub fn new(seed: u64, common: Link, own: BTreeMap<usize, Link>) -> Self {
        Self { seed, common, own, lanes: BTreeMap::new() }
    }

    /// Sends `bytes` and returns when the last of them arrives.
    pub fn send(&mut self, now: Time, from: usize, to: usize, bytes: usize, freight: Freight) -> Time {
        let lane = self.lane(from, to);
        let Link { latency, bandwidth, jitter } = lane.link;
        let transfer = (bytes as u128 * 8_000_000).checked_div(u128::from(bandwidth)).unwrap_or(0);
        let transfer = Span(u64::try_from(transfer).unwrap_or(u64::MAX));
        lane.free = lane.free.max(now) + lane.draws.around(transfer, jitter);
        let arrival = lane.free + lane.draws.around(latency, jitter);
        match freight {
            Freight::Tensor => arrival,
            Freight::Control => {
                lane.control_last = lane.control_last.max(arrival);
                lane.control_last
            }
        }
    }

    /// Returns how long a handshake takes: three ways of the latency.
    pub fn handshake(&mut self, from: usize, to: usize) -> Span {
        let latency = self.lane(from, to).link.latency;
        latency.saturating_add(latency).saturating_add(latency)
    }

    fn lane(&mut self, from: usize, to: usize) -> &mut Lane {
        let slowest = |a: Link, b: Link| if b.latency > a.latency { b } else { a };
        let link = match (self.own.get(&from), self.own.get(&to)) {
            (Some(a), Some(b)) => slowest(*a, *b),
            (Some(link), None) | (None, Some(link)) => *link,
            (None, None) => self.common,
        };
        let seed = self.seed;
        self.lanes.entry((from, to)).or_insert_with(|| Lane {
            link,
            free: Time(0),
            control_last: Time(0),
            draws: Draws::new(seed, "link", &[from as u64, to as u64]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(jitter: u32) -> Links {
        let link = Link { latency: Span::millis(40), bandwidth: 8_000_000, jitter: Permille(jitter) };
        Links::new(3, link, BTreeMap::new())
    }

    #[test]
    fn a_message_takes_its_turn_its_transfer_and_the_latency() {
        let mut links = links(0);
        let mut send = |now| links.send(Time(now), 0, 1, 1_000_000, Freight::Tensor);
        assert_eq!([send(0), send(0), send(5_000_000)], [Time(1_040_000), Time(2_040_000), Time(6_040_000)]);
        assert_eq!(links.send(Time(0), 1, 0, 1_000_000, Freight::Tensor), Time(1_040_000), "other direction");
    }

    #[test]
    fn tensors_overtake_each_other_and_control_messages_do_not() {
        let mut links = links(900);
        let mut send =
            |freight| -> Vec<Time> { (0..200).map(|i| links.send(Time(i), 0, 1, 10, freight)).collect() };
        assert!(!send(Freight::Tensor).is_sorted());
        assert!(send(Freight::Control).is_sorted());
    }

    #[test]
    fn a_peer_with_a_link_of_its_own_uses_it_both_ways() {
        let far = Link { latency: Span::seconds(1), bandwidth: 0, jitter: Permille(0) };
        let near = Link { latency: Span(10), bandwidth: 0, jitter: Permille(0) };
        let mut links = Links::new(1, near, BTreeMap::from([(2, far)]));
        let mut send = |from, to| links.send(Time(0), from, to, 1 << 20, Freight::Tensor);
        assert_eq!([send(0, 1), send(0, 2), send(2, 1)], [Time(10), Time(1_000_000), Time(1_000_000)]);
    }
}
