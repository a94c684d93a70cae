//! The network as its owner sees it: bind, dial, send, hear, close.
//!
//! Owns nothing but the way in. Knows nothing of why a frame is sent.

use crate::accept;
use crate::address::Address;
use crate::cable;
use crate::config::{Membership, NetConfig};
use crate::counters::Counters;
use crate::error::{BindError, DialError, SendError};
use crate::event::NetEvent;
use crate::greeting::{GREETING_BYTES_MAX, Incarnation};
use crate::link;
use crate::outbox::{NoRoom, Urgency};
use crate::session::Session;
use crate::switchboard::{Phase, Switchboard};
use iroh::SecretKey;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use trestle_protocol::handshake;
use trestle_protocol::ids::PeerId;
use trestle_protocol::spec::RunSpec;
use trestle_protocol::wire::{Frame, HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX};

/// A bound peer; clones are the same one. It works until [`Net::close`].
///
/// Whoever owns it takes its events without pause: while they wait, streams are not read, and peers that send to us
/// come to a halt. So a task that takes events should send with [`Net::send`], which never waits.
#[derive(Clone, Debug)]
pub struct Net {
    board: Arc<Switchboard>,
    address: Address,
}

impl Net {
    /// Binds a socket and begins to accept peers; they and their frames arrive as events.
    ///
    /// # Errors
    ///
    /// The port may be used, the address not this machine's, the spec too large for a handshake.
    pub async fn bind(config: NetConfig) -> Result<(Self, mpsc::Receiver<NetEvent>), BindError> {
        check_spec(&config.membership)?;
        let endpoint = cable::bind(&config).await?;
        let address = cable::own_address(&endpoint, &config).await?;
        let (events, receiver) = mpsc::channel(config.limits.events_max.max(1));
        let board =
            Switchboard::new(endpoint, draw_incarnation(), (config.limits, config.membership), events);
        tokio::spawn(accept::run(Arc::clone(&board)));
        Ok((Self { board, address }, receiver))
    }

    /// Returns the key under which others know this peer.
    pub fn id(&self) -> PeerId {
        self.board.id
    }

    /// Returns where others reach this peer.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Returns the sockets that this peer listens on.
    pub fn bound(&self) -> Vec<SocketAddr> {
        self.board.endpoint.bound_sockets()
    }

    /// Returns the run's spec; `None` for a candidate that has not dialled a member yet.
    pub fn spec(&self) -> Option<RunSpec> {
        match &*self.board.membership.read().expect("no holder panics") {
            Membership::Member(spec) => Some(spec.as_ref().clone()),
            Membership::Candidate { .. } => None,
        }
    }

    /// Connects to a peer, handshake included; at once when it is connected. One try: who wants more, dials again.
    ///
    /// When the connection breaks later, it is made again, up to the bound of redials.
    ///
    /// # Errors
    ///
    /// Says who, where and why; a refusal names the first field in which the runs differ.
    pub async fn dial(&self, peer: PeerId, address: &Address) -> Result<(), DialError> {
        link::dial(&self.board, peer, address).await
    }

    /// Queues a frame for a connected peer, and never waits.
    ///
    /// Frames with payloads below 64 KiB arrive in the order in which they were sent. Larger ones are striped over
    /// lanes, and may arrive before or after any other. Control goes before activations. A frame that was taken may
    /// still be lost with the connection, which is then an event.
    ///
    /// # Errors
    ///
    /// The peer may be disconnected, its queue full, or the frame larger than any peer accepts. Nothing was queued then.
    pub fn send(&self, peer: PeerId, frame: Frame) -> Result<(), SendError> {
        self.send_as(peer, frame, Urgency::Work)
    }

    /// Queues a frame of a given urgency, and never waits; as [`Net::send`].
    ///
    /// # Errors
    ///
    /// As [`Net::send`].
    pub fn send_as(&self, peer: PeerId, frame: Frame, urgency: Urgency) -> Result<(), SendError> {
        let session = self.ready(peer, &frame)?;
        let hold = session.outbox.try_reserve(&frame).map_err(|no_room| match no_room {
            NoRoom::Shut => SendError::NotConnected { peer },
            NoRoom::Full { bytes, messages } => {
                SendError::Full { peer, queued_bytes: bytes, queued_messages: messages, got: frame.bytes() }
            }
        })?;
        push(&session, frame, urgency, hold);
        Ok(())
    }

    /// Queues a frame as soon as the queue to its peer has room.
    ///
    /// # Errors
    ///
    /// As [`Net::send`], except that the queue is never full. The wait ends when the connection does.
    pub async fn send_waiting(&self, peer: PeerId, frame: Frame, urgency: Urgency) -> Result<(), SendError> {
        let session = self.ready(peer, &frame)?;
        let hold = session.outbox.reserve(&frame).await.ok_or(SendError::NotConnected { peer })?;
        push(&session, frame, urgency, hold);
        Ok(())
    }

    /// Returns the peers that are connected.
    pub fn connected(&self) -> Vec<PeerId> {
        self.board.sessions().iter().map(|session| session.peer).collect()
    }

    /// Returns the latest round trip time to a connected peer.
    pub fn round_trip(&self, peer: PeerId) -> Option<Duration> {
        let session = self.board.session(peer)?;
        let paths = session.connection.paths();
        paths.iter().find(|path| path.is_selected()).map(|path| path.rtt())
    }

    /// Returns what crossed the sockets so far.
    pub fn counters(&self) -> Counters {
        self.board.counters()
    }

    /// Sends a peer what waits for it, and closes the connection; both sides then hear that it is lost, and neither
    /// dials again.
    pub async fn disconnect(&self, peer: PeerId) {
        if let Some(session) = self.board.session(peer) {
            session.farewell(self.board.limits.farewell_wait_max).await;
        }
    }

    /// Sends all peers what waits for them, closes all connections, and gives the socket back.
    ///
    /// What was sent before is delivered to peers that acknowledge it within the farewell's bound. Events end once all
    /// clones of this peer are dropped.
    pub async fn close(&self) {
        self.board.closing.send_replace(Phase::Closing);
        let wait_max = self.board.limits.farewell_wait_max;
        let mut farewells = JoinSet::new();
        for session in self.board.sessions() {
            farewells.spawn(async move { session.farewell(wait_max).await });
        }
        while farewells.join_next().await.is_some() {}
        self.board.endpoint.close().await;
    }

    fn ready(&self, peer: PeerId, frame: &Frame) -> Result<Arc<Session>, SendError> {
        let Frame { header, payload } = frame;
        let parts = [("header", header, HEADER_BYTES_MAX), ("payload", payload, PAYLOAD_BYTES_MAX)];
        for (part, bytes, max) in parts {
            if bytes.len() > max {
                return Err(SendError::TooLarge { peer, part, got: bytes.len(), max });
            }
        }
        self.board.session(peer).ok_or(SendError::NotConnected { peer })
    }
}

fn push(session: &Session, frame: Frame, urgency: Urgency, hold: crate::outbox::Hold) {
    let (payload_bytes, header_bytes) = (frame.payload.len(), frame.header.len());
    let framing_bytes = session.outbox.push(frame, urgency, hold);
    session.totals.sent.add(payload_bytes, header_bytes, framing_bytes);
}

fn check_spec(membership: &Membership) -> Result<(), BindError> {
    let Membership::Member(spec) = membership else { return Ok(()) };
    let hello = handshake::hello(spec.digest(), Some(spec));
    let got = handshake::encode(&hello).len();
    if got > GREETING_BYTES_MAX {
        return Err(BindError::SpecTooLarge { got, max: GREETING_BYTES_MAX });
    }
    Ok(())
}

/// Draws from the system's randomness, by way of a key that is used for nothing else.
fn draw_incarnation() -> Incarnation {
    let bytes = SecretKey::generate().to_bytes();
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    Incarnation(u64::from_le_bytes(word))
}
