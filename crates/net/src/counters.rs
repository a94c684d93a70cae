//! Counts what crosses the sockets, by peer.
//!
//! Owns the counts. Knows nothing of what was sent.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use trestle_protocol::ids::PeerId;

/// What went one way between this peer and another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Frames. Sent ones are counted when they are queued.
    pub messages: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Bytes of their headers.
    pub header_bytes: u64,
    /// Bytes of our framing: lengths, and the heads of stripes.
    pub framing_bytes: u64,
    /// Bytes of UDP payload: all of the above, and what QUIC adds (packet heads, tags, acknowledgements, repeats, probes).
    pub udp_bytes: u64,
    /// UDP datagrams; IPv4 and UDP add 28 bytes to each, IPv6 and UDP 48.
    pub udp_datagrams: u64,
}

/// What went both ways between this peer and another, over all their connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// From this peer to the other.
    pub sent: Flow,
    /// From the other to this one.
    pub received: Flow,
    /// Connections made so far.
    pub connections: u64,
}

/// All counts at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By peer; one that is lost stays.
    pub peers: BTreeMap<PeerId, PeerCounters>,
    /// Connections turned away before or at the handshake.
    pub refused: u64,
}

/// One way's counts while they grow.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    messages: AtomicU64,
    payload_bytes: AtomicU64,
    header_bytes: AtomicU64,
    framing_bytes: AtomicU64,
}

/// A peer's counts while they grow; they outlive its connections.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) sent: Tally,
    pub(crate) received: Tally,
    ended: Mutex<PeerCounters>,
}

/// UDP counts of one connection, both ways: bytes and datagrams sent, bytes and datagrams received.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Udp {
    pub(crate) sent: (u64, u64),
    pub(crate) received: (u64, u64),
}

impl Tally {
    pub(crate) fn add(&self, payload_bytes: usize, header_bytes: usize, framing_bytes: usize) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.payload_bytes.fetch_add(payload_bytes as u64, Ordering::Relaxed);
        self.header_bytes.fetch_add(header_bytes as u64, Ordering::Relaxed);
        self.framing_bytes.fetch_add(framing_bytes as u64, Ordering::Relaxed);
    }

    fn read(&self, flow: &mut Flow) {
        flow.messages = self.messages.load(Ordering::Relaxed);
        flow.payload_bytes = self.payload_bytes.load(Ordering::Relaxed);
        flow.header_bytes = self.header_bytes.load(Ordering::Relaxed);
        flow.framing_bytes = self.framing_bytes.load(Ordering::Relaxed);
    }
}

impl Totals {
    /// Adds the UDP counts of a connection that ended.
    pub(crate) fn end(&self, udp: Udp) {
        let mut ended = self.ended.lock().expect("no holder panics");
        add_udp(&mut ended, udp);
        ended.connections += 1;
    }

    /// Sums up; `live` are the UDP counts of the connection that is up.
    pub(crate) fn read(&self, live: Option<Udp>) -> PeerCounters {
        let mut sum = *self.ended.lock().expect("no holder panics");
        if let Some(udp) = live {
            add_udp(&mut sum, udp);
            sum.connections += 1;
        }
        self.sent.read(&mut sum.sent);
        self.received.read(&mut sum.received);
        sum
    }
}

fn add_udp(sum: &mut PeerCounters, udp: Udp) {
    sum.sent.udp_bytes += udp.sent.0;
    sum.sent.udp_datagrams += udp.sent.1;
    sum.received.udp_bytes += udp.received.0;
    sum.received.udp_datagrams += udp.received.1;
}
