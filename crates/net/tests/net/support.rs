//! What the tests of this crate share: bound peers on loopback, and waits that end in words.

use crate::sample::spec;
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use trestle_net::{Limits, Membership, Net, NetConfig, NetEvent};
use trestle_protocol::ids::PeerId;
use trestle_protocol::wire::Frame;

/// Far longer than anything here takes; reaching it is a failure, not a wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A bound peer and its events.
pub(crate) struct Peer {
    pub(crate) net: Net,
    pub(crate) events: mpsc::Receiver<NetEvent>,
}

pub(crate) fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn secret(seed: u8) -> [u8; 32] {
    [seed; 32]
}

pub(crate) fn config(seed: u8) -> NetConfig {
    NetConfig::new(secret(seed), any_port(), Membership::Member(Box::new(spec())))
}

/// Bounds with which a silent peer is noticed, and given up, within seconds.
pub(crate) fn hasty() -> Limits {
    Limits {
        silence_max: Duration::from_secs(1),
        handshake_wait_max: Duration::from_secs(1),
        redial_wait_first: Duration::from_millis(50),
        ..Limits::default()
    }
}

pub(crate) async fn bind(config: NetConfig) -> Peer {
    let (net, events) = Net::bind(config).await.expect("loopback has free ports");
    Peer { net, events }
}

pub(crate) async fn member(seed: u8) -> Peer {
    bind(config(seed)).await
}

/// Binds two members and connects them; the first dials.
pub(crate) async fn pair() -> (Peer, Peer) {
    let (mut a, mut b) = (member(1).await, member(2).await);
    a.dial(&b).await;
    b.expect_connected(a.net.id()).await;
    (a, b)
}

pub(crate) fn frame(header: &[u8], payload: Vec<u8>) -> Frame {
    Frame { header: Bytes::copy_from_slice(header), payload: payload.into() }
}

/// Bytes that differ from place to place and from seed to seed, so that a piece out of place is seen.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

impl Peer {
    pub(crate) fn id(&self) -> PeerId {
        self.net.id()
    }

    pub(crate) async fn dial(&mut self, other: &Peer) {
        self.net.dial(other.id(), other.net.address()).await.expect("both are of one run");
        self.expect_connected(other.id()).await;
    }

    pub(crate) async fn next(&mut self) -> NetEvent {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.expect("an event comes").expect("the peer is bound")
    }

    pub(crate) async fn expect_connected(&mut self, other: PeerId) {
        let event = self.next().await;
        let NetEvent::Connected { peer } = event else { panic!("expected {other} connected, got {event:?}") };
        assert_eq!(peer, other);
    }

    pub(crate) async fn expect_frame(&mut self) -> (PeerId, Frame) {
        let event = self.next().await;
        let NetEvent::Received { from, frame, .. } = event else { panic!("expected a frame, got {event:?}") };
        (from, frame)
    }
}
