//! What the network tells its owner.
//!
//! Owns the events and the reasons in them. Knows nothing of what anyone does about them.

use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use trestle_protocol::handshake::Mismatch;
use trestle_protocol::ids::PeerId;
use trestle_protocol::wire::Frame;

/// Something that happened on the network, in order for each peer.
///
/// Between [`NetEvent::Connected`] and the [`NetEvent::Interrupted`] or [`NetEvent::Lost`] that ends it, frames of the
/// control stream arrive complete and in the order in which they were sent. Striped frames arrive complete, in any order
/// among themselves and beside the control stream.
#[derive(Debug)]
pub enum NetEvent {
    /// A peer is connected: it proved its key, and is of the same run.
    Connected {
        /// The peer.
        peer: PeerId,
    },
    /// A frame arrived.
    Received {
        /// Who sent it.
        from: PeerId,
        /// The frame.
        frame: Frame,
        /// Its bytes with our framing, without what QUIC, UDP and IP add.
        wire_bytes: usize,
        /// Its room among the frames that wait to be taken; given back when dropped.
        room: Room,
    },
    /// A connection broke, and its dialler tries to win the peer back.
    ///
    /// What was sent to the peer and not answered may not have arrived. [`NetEvent::Connected`] or [`NetEvent::Lost`]
    /// follows.
    Interrupted {
        /// The peer.
        peer: PeerId,
        /// What broke it.
        reason: BreakReason,
    },
    /// A peer is gone, until someone dials again.
    Lost {
        /// The peer.
        peer: PeerId,
        /// Why.
        reason: LostReason,
    },
    /// Someone was turned away at the handshake; no connected peer notices.
    Refused {
        /// The key it proved.
        from: PeerId,
        /// Why.
        reason: RefusedReason,
    },
}

/// Room that a received frame takes among those that wait; whoever takes the event drops it.
#[derive(Debug)]
pub struct Room {
    _bytes: OwnedSemaphorePermit,
}

impl Room {
    pub(crate) fn new(bytes: OwnedSemaphorePermit) -> Self {
        Self { _bytes: bytes }
    }
}

/// What broke a connection that may come back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BreakReason {
    /// Nothing was heard for too long.
    #[error("nothing heard for {silence_max:?}")]
    Silent {
        /// The bound.
        silence_max: Duration,
    },
    /// The peer was started anew, and came back before its silence was noticed.
    #[error("peer started anew")]
    Restarted,
    /// The peer lost us first, and connected again.
    #[error("peer connected again")]
    Reconnected,
    /// The transport gave up.
    #[error("{detail}")]
    Transport {
        /// What it says.
        detail: String,
    },
}

/// Why a peer is gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LostReason {
    /// It said goodbye, or we did.
    #[error("closed")]
    Closed,
    /// It broke the rules, and we closed the connection.
    #[error("broke the rules: {detail}")]
    Misbehaved {
        /// What it did.
        detail: String,
    },
    /// It says that we broke the rules, and closed the connection.
    #[error("expelled us: {detail}")]
    ExpelledUs {
        /// What it says.
        detail: String,
    },
    /// It did not come back after the connection broke.
    #[error("did not come back after {redials} redials: {last}")]
    Gone {
        /// How often it was redialled; 0 where the other side had to.
        redials: u32,
        /// What the last try, or the break, said.
        last: String,
    },
}

/// Why someone was turned away at the handshake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedReason {
    /// It is of another run, or speaks another version.
    #[error("{0}")]
    Mismatch(Mismatch),
    /// It speaks something else.
    #[error("broke the handshake: {detail}")]
    Malformed {
        /// What it did.
        detail: String,
    },
    /// It did not finish in time.
    #[error("did not finish the handshake within {wait:?}")]
    TimedOut {
        /// The bound.
        wait: Duration,
    },
    /// There are as many peers as we take.
    #[error("{connected} peers are connected, which is the most we take")]
    Crowded {
        /// How many.
        connected: usize,
    },
}
