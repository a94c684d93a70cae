//! Links: when a message sent now arrives.
//!
//! Owns latency, bandwidth and jitter of all links, and the order in which a link carries what waits. Knows nothing of what
//! a message says, only its size and kind.

use crate::connections::Epoch;
use crate::draws::{Draws, Permille};
use std::collections::{BTreeMap, VecDeque};
use trestle_protocol::time::{Span, Time};
use trestle_protocol::wire::Frame;

/// Who shares the bandwidth of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// Nobody: each pair of peers has a line of its own.
    ByPair,
    /// All that one peer sends, and all that it receives.
    ByPeer,
}

/// What a link is like, in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Time from the last byte sent to the last byte received.
    pub latency: Span,
    /// Bits that leave in a second; 0 does not limit.
    pub bandwidth: u64,
    /// Bits that a peer receives in a second, where peers share; 0 does not limit.
    pub downlink: u64,
    /// Who shares it.
    pub shared: Shared,
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
    /// A part of something large, which gives way to all else, also when it is half sent, as streams of a lower priority
    /// do.
    Bulk,
}

/// A lane: the pair of peers, or the one peer, whose sending takes turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneId(usize, Option<usize>);

impl LaneId {
    /// Returns who sends.
    pub fn from(self) -> usize {
        self.0
    }
}

/// A bulk message that has arrived, or will.
#[derive(Debug)]
pub struct Delivery {
    /// Who sent it.
    pub from: usize,
    /// To whom.
    pub to: usize,
    /// When it arrives.
    pub at: Time,
    /// On which connection it was sent.
    pub epoch: Epoch,
    /// What it is.
    pub frame: Frame,
}

/// When to look whether the first bulk message of a lane has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Which lane.
    pub lane: LaneId,
    /// How often the lane was emptied before.
    generation: u32,
}

/// All links of a swarm.
#[derive(Debug)]
pub struct Links {
    seed: u64,
    common: Link,
    /// Links of single peers, which hold for all they send and receive instead of the common one.
    own: BTreeMap<usize, Link>,
    lanes: BTreeMap<LaneId, Lane>,
    control_last: BTreeMap<(usize, usize), Time>,
    /// When each peer has received all bulk that is on its way, where peers share.
    received: BTreeMap<usize, Time>,
}

/// What one lane has sent and has still to send.
#[derive(Debug)]
struct Lane {
    link: Link,
    /// When all that is urgent has left.
    free: Time,
    /// How long everything urgent took to leave, so far.
    urgent: Span,
    bulk: VecDeque<Load>,
    /// How often `bulk` was emptied; a look that was meant for what was there before sees nothing.
    generation: u32,
    /// Since when the first of `bulk` has been leaving, and `urgent` as it was then.
    since: (Time, Span),
    draws: Draws,
}

#[derive(Debug)]
struct Load {
    to: usize,
    transfer: Span,
    epoch: Epoch,
    /// What it weighs on the link.
    bytes: u64,
    /// What one such message stands for, in messages.
    times: u64,
    frame: Frame,
}

impl Links {
    /// Makes the links of a swarm; those of single peers are named by their numbers.
    pub fn new(seed: u64, common: Link, own: BTreeMap<usize, Link>) -> Self {
        let (lanes, control_last, received) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { seed, common, own, lanes, control_last, received }
    }

    /// Sends `bytes` that do not wait for bulk, and returns when the last of them arrives.
    pub fn send(&mut self, now: Time, from: usize, to: usize, bytes: usize, freight: Freight) -> Time {
        let Link { latency, downlink, shared, jitter, .. } = self.way(from, to);
        let (_, lane) = self.lane(from, to);
        let bytes = bytes as u64;
        let transfer = lane.draws.around(transfer(bytes, lane.link.bandwidth), jitter);
        lane.free = lane.free.max(now) + transfer;
        lane.urgent = lane.urgent.saturating_add(transfer);
        let arrival = lane.free + lane.draws.around(latency, jitter);
        if shared == Shared::ByPeer {
            let received = self.received.entry(to).or_default();
            *received = (*received).max(now) + self::transfer(bytes, downlink);
        }
        match freight {
            Freight::Tensor | Freight::Bulk => arrival,
            Freight::Control => {
                let last = self.control_last.entry((from, to)).or_default();
                *last = (*last).max(arrival);
                *last
            }
        }
    }

    /// Lets a bulk message of a connection, whose payload stands for so many of its size, wait for its turn; returns when to look for it
    /// with [`Links::turn`], if nothing waits there before it.
    pub fn queue(
        &mut self,
        now: Time,
        (from, to): (usize, usize),
        epoch: Epoch,
        (frame, times): (Frame, u64),
    ) -> Option<(Look, Time)> {
        let (id, lane) = self.lane(from, to);
        let Link { bandwidth, jitter, .. } = lane.link;
        let bytes = frame.header.len() as u64 + frame.payload.len() as u64 * times;
        let transfer = lane.draws.around(transfer(bytes, bandwidth), jitter);
        let load = Load { to, transfer, epoch, bytes, times, frame };
        let urgent = lane.urgent_until(now);
        // What stands for more gives way, as the small messages that it stands for would.
        let place = lane.bulk.iter().position(|other| other.times > times).unwrap_or(lane.bulk.len());
        if place > 0 {
            lane.bulk.insert(place, load);
            return None;
        }
        if let Some(first) = lane.bulk.front_mut() {
            let (since, urgent_then) = lane.since;
            let left = now.since(since).0.saturating_sub(urgent.0 - urgent_then.0);
            first.transfer = Span(first.transfer.0.saturating_sub(left));
            lane.generation += 1;
        }
        lane.bulk.push_front(load);
        lane.since = (now, urgent);
        Some((Look { lane: id, generation: lane.generation }, lane.free.max(now) + transfer))
    }

    /// Looks whether the first bulk message of a lane has left; gives it if so, and when to look again.
    pub fn turn(&mut self, now: Time, look: Look) -> (Option<Delivery>, Option<Time>) {
        let id = look.lane;
        let Some(lane) = self.lanes.get_mut(&id).filter(|lane| lane.generation == look.generation) else {
            return (None, None);
        };
        let Some(first) = lane.bulk.front() else { return (None, None) };
        let urgent = lane.urgent_until(now);
        let (since, urgent_then) = lane.since;
        let left = Span(now.since(since).0.saturating_sub(urgent.0 - urgent_then.0));
        if left < first.transfer {
            return (None, Some(lane.free.max(now) + Span(first.transfer.0 - left.0)));
        }
        lane.since = (now, urgent);
        let sent = lane.bulk.pop_front();
        let next = lane.bulk.front().map(|next| lane.free.max(now) + next.transfer);
        let delivery = sent.map(|Load { to, epoch, frame, bytes, .. }| {
            let Link { latency, downlink, shared, jitter, .. } = self.way(id.from(), to);
            let lane = self.lanes.get_mut(&id).expect("it was just looked at");
            let mut at = now + lane.draws.around(latency, jitter);
            if shared == Shared::ByPeer {
                let transfer = transfer(bytes, downlink);
                let received = self.received.entry(to).or_default();
                *received = (*received).max(Time(at.0.saturating_sub(transfer.0))) + transfer;
                at = at.max(*received);
            }
            Delivery { from: id.from(), to, at, epoch, frame }
        });
        (delivery, next)
    }

    /// Forgets what waits, as when the peers die.
    pub fn clear(&mut self) {
        self.lanes.values_mut().for_each(Lane::clear);
    }

    /// Forgets what waits at one peer, as when it dies.
    pub fn clear_from(&mut self, peer: usize) {
        self.lanes.iter_mut().filter(|(id, _)| id.from() == peer).for_each(|(_, lane)| lane.clear());
    }

    /// Returns how long a handshake takes: three ways of the latency.
    pub fn handshake(&mut self, from: usize, to: usize) -> Span {
        let latency = self.way(from, to).latency;
        latency.saturating_add(latency).saturating_add(latency)
    }

    /// Returns what the way from one peer to another is like.
    fn way(&self, from: usize, to: usize) -> Link {
        let slowest = |a: Link, b: Link| if b.latency > a.latency { b } else { a };
        let link = match (self.own.get(&from), self.own.get(&to)) {
            (Some(a), Some(b)) => slowest(*a, *b),
            (Some(link), None) | (None, Some(link)) => *link,
            (None, None) => self.common,
        };
        if link.shared == Shared::ByPair {
            return link;
        }
        // What peers have for all others is each one's own, on either end.
        let (mine, others) = (self.own_or_common(from), self.own_or_common(to));
        Link { bandwidth: mine.bandwidth, downlink: others.downlink, ..link }
    }

    fn own_or_common(&self, peer: usize) -> Link {
        self.own.get(&peer).copied().unwrap_or(self.common)
    }

    fn lane(&mut self, from: usize, to: usize) -> (LaneId, &mut Lane) {
        let link = self.way(from, to);
        let seed = self.seed;
        let (id, place) = match link.shared {
            Shared::ByPair => (LaneId(from, Some(to)), vec![from as u64, to as u64]),
            Shared::ByPeer => (LaneId(from, None), vec![from as u64]),
        };
        let lane = self.lanes.entry(id).or_insert_with(|| Lane {
            link,
            free: Time(0),
            urgent: Span(0),
            bulk: VecDeque::new(),
            generation: 0,
            since: (Time(0), Span(0)),
            draws: Draws::new(seed, "link", &place),
        });
        (id, lane)
    }
}

impl Lane {
    fn clear(&mut self) {
        self.bulk.clear();
        self.generation += 1;
    }

    /// Returns for how long, up to now, the lane was busy with what is urgent.
    fn urgent_until(&self, now: Time) -> Span {
        Span(self.urgent.0 - self.free.since(now).0)
    }
}

fn transfer(bytes: u64, bandwidth: u64) -> Span {
    let transfer = (u128::from(bytes) * 8_000_000).checked_div(u128::from(bandwidth)).unwrap_or(0);
    Span(u64::try_from(transfer).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connections::{Connections, Dialled, Ends};
    use bytes::Bytes;

    const LINK: Link = Link {
        latency: Span::millis(40),
        bandwidth: 8_000_000,
        downlink: 0,
        shared: Shared::ByPair,
        jitter: Permille(0),
    };

    fn links(jitter: u32) -> Links {
        Links::new(3, Link { jitter: Permille(jitter), ..LINK }, BTreeMap::new())
    }

    fn epoch() -> Epoch {
        match Connections::default().dial(0, Ends::new(0, 1)) {
            Dialled::Begun(epoch) | Dialled::Stands(epoch) => epoch,
            Dialled::Joined => panic!("nobody dialled before"),
        }
    }

    fn frame(bytes: usize) -> Frame {
        Frame { header: Bytes::new(), payload: vec![0; bytes].into() }
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
        let far = Link { latency: Span::seconds(1), bandwidth: 0, ..LINK };
        let near = Link { latency: Span(10), bandwidth: 0, ..LINK };
        let mut links = Links::new(1, near, BTreeMap::from([(2, far)]));
        let mut send = |from, to| links.send(Time(0), from, to, 1 << 20, Freight::Tensor);
        assert_eq!([send(0, 1), send(0, 2), send(2, 1)], [Time(10), Time(1_000_000), Time(1_000_000)]);
    }

    #[test]
    fn bulk_gives_way_and_loses_nothing_of_what_is_sent() {
        let mut links = links(0);
        let (lane, look) =
            links.queue(Time(0), (0, 1), epoch(), (frame(2_000_000), 1)).expect("the lane was idle");
        assert_eq!(look, Time(2_000_000));
        assert_eq!(
            links.queue(Time(0), (0, 1), epoch(), (frame(1_000_000), 1)),
            None,
            "it waits behind the first"
        );
        let urgent = links.send(Time(500_000), 0, 1, 1_000_000, Freight::Tensor);
        assert_eq!(urgent, Time(1_540_000), "as if there were no bulk");
        let (early, again) = links.turn(Time(2_000_000), lane);
        assert!(early.is_none());
        assert_eq!(again, Some(Time(3_000_000)), "the second that the tensor took");
        let (first, next) = links.turn(Time(3_000_000), lane);
        assert_eq!(first.map(|first| first.at), Some(Time(3_040_000)));
        assert_eq!(next, Some(Time(4_000_000)));
        let (second, last) = links.turn(Time(4_000_000), lane);
        assert_eq!((second.map(|second| second.at), last), (Some(Time(4_040_000)), None));
    }

    #[test]
    fn what_stands_for_much_gives_way_to_what_stands_for_less() {
        let shared = Link { shared: Shared::ByPeer, ..LINK };
        let mut links = Links::new(3, shared, BTreeMap::new());
        let (first, at) = links.queue(Time(0), (0, 1), epoch(), (frame(1_000_000), 8)).expect("idle");
        assert_eq!(at, Time(8_000_000));
        // After a quarter of it.
        let small = (frame(1_000_000), 1);
        let (look, at) = links.queue(Time(2_000_000), (0, 2), epoch(), small).expect("it goes before");
        assert_eq!(at, Time(3_000_000));
        assert_eq!(links.queue(Time(2_500_000), (0, 1), epoch(), (frame(500_000), 8)), None);
        assert!(matches!(links.turn(Time(8_000_000), first), (None, None)), "it was put off");
        let (sent, next) = links.turn(at, look);
        assert_eq!((sent.map(|sent| sent.to), next), (Some(2), Some(Time(9_000_000))));
        let (sent, next) = links.turn(Time(9_000_000), look);
        assert_eq!((sent.map(|sent| sent.at), next), (Some(Time(9_040_000)), Some(Time(13_000_000))));
    }

    #[test]
    fn who_dies_sends_no_more_and_its_next_process_begins_anew() {
        let mut links = links(0);
        let (before, at) = links.queue(Time(0), (0, 1), epoch(), (frame(1_000_000), 1)).expect("idle");
        links.clear_from(0);
        let (after, later) =
            links.queue(Time(0), (0, 1), epoch(), (frame(2_000_000), 1)).expect("idle again");
        assert!(matches!(links.turn(at, before), (None, None)), "it was meant for what is gone");
        assert_eq!(links.turn(later, after).0.map(|sent| sent.at), Some(Time(2_040_000)));
    }

    #[test]
    fn what_a_peer_sends_and_receives_is_shared_where_peers_share() {
        let shared = Link { shared: Shared::ByPeer, downlink: 4_000_000, latency: Span(0), ..LINK };
        let mut links = Links::new(3, shared, BTreeMap::new());
        assert_eq!(links.send(Time(0), 0, 1, 1_000_000, Freight::Tensor), Time(1_000_000));
        assert_eq!(links.send(Time(0), 0, 2, 1_000_000, Freight::Tensor), Time(2_000_000), "one uplink");
        let (two, three) =
            ([2, 3]).map(|from| links.queue(Time(0), (from, 4), epoch(), (frame(1_000_000), 1))).into();
        let mut arrival = |lane: Option<(Look, Time)>| {
            let (lane, at) = lane.expect("idle");
            links.turn(at, lane).0.map(|delivery| delivery.at)
        };
        assert_eq!(arrival(two), Some(Time(2_000_000)), "a downlink at half the rate");
        assert_eq!(arrival(three), Some(Time(4_000_000)), "behind the other");
    }
}
