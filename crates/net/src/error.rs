//! What can go wrong when a peer binds, dials or sends, in words.

use crate::address::{Address, AddressError};
use std::net::SocketAddr;
use std::time::Duration;
use trestle_protocol::handshake::Mismatch;
use trestle_protocol::ids::PeerId;

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens there.
    #[error("port {} of {} is in use", .address.port(), .address.ip())]
    PortUsed {
        /// The socket address.
        address: SocketAddr,
    },
    /// The system refuses it otherwise.
    #[error("cannot listen on {address}: {reason}")]
    Socket {
        /// The socket address.
        address: SocketAddr,
        /// What the system or the transport says.
        reason: String,
    },
    /// No address at which others could reach this peer was found.
    #[error("listening on {bind}, but no address leads there: {source}")]
    NoAddress {
        /// Where it listens.
        bind: SocketAddr,
        /// Why the addresses found are none.
        source: AddressError,
    },
    /// The run's spec is too large for a handshake.
    #[error("run spec takes {got} bytes in a handshake, at most {max} are allowed")]
    SpecTooLarge {
        /// Its size.
        got: usize,
        /// The bound.
        max: usize,
    },
}

impl BindError {
    /// Says what to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            BindError::PortUsed { .. } => "choose another port, or 0 for any free one",
            BindError::Socket { .. } => "choose an address of this machine; ports below 1024 need privileges",
            BindError::NoAddress { .. } => "name the address at which others see this machine",
            BindError::SpecTooLarge { .. } => "shorten the paths and names in the run file",
        }
    }
}

/// Why a peer could not be dialled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Nobody with that key answers there.
    #[error("peer {peer} does not answer at {address}: {reason}")]
    Unreachable {
        /// The peer.
        peer: PeerId,
        /// Where it was dialled.
        address: Address,
        /// What the transport says.
        reason: String,
    },
    /// The handshake took too long.
    #[error("peer {peer} at {address} did not finish the handshake within {wait:?}")]
    TimedOut {
        /// The peer.
        peer: PeerId,
        /// Where it was dialled.
        address: Address,
        /// The bound.
        wait: Duration,
    },
    /// The peer belongs to another run, or speaks another version. "Here" is this peer.
    #[error("peer {peer} refused us: {mismatch}")]
    Refused {
        /// The peer.
        peer: PeerId,
        /// What differs, seen from this peer.
        mismatch: Mismatch,
    },
    /// The peer sent a run spec that is not the one asked for.
    #[error("peer {peer} sent another run's spec: {mismatch}")]
    OtherRun {
        /// The peer.
        peer: PeerId,
        /// What differs.
        mismatch: Mismatch,
    },
    /// The peer speaks something else.
    #[error("peer {peer} broke the handshake: {reason}")]
    Malformed {
        /// The peer.
        peer: PeerId,
        /// What it did.
        reason: String,
    },
    /// The peer has as many connections as it takes.
    #[error("peer {peer} takes no more peers")]
    Crowded {
        /// The peer.
        peer: PeerId,
    },
    /// A peer cannot dial itself.
    #[error("peer {peer} is this peer")]
    Myself {
        /// The peer.
        peer: PeerId,
    },
    /// This peer is closing.
    #[error("this peer is closed")]
    Closed,
}

impl DialError {
    /// Says what to do about it.
    pub fn hint(&self) -> String {
        match self {
            DialError::Unreachable { .. } | DialError::TimedOut { .. } => {
                "see that the peer runs, and that no firewall stops UDP to its port".to_owned()
            }
            DialError::Refused { mismatch, .. } | DialError::OtherRun { mismatch, .. } => mismatch.hint(),
            DialError::Malformed { .. } => "install the same release of trestle on both peers".to_owned(),
            DialError::Crowded { .. } => {
                "raise the peer's bound on connections, or join elsewhere".to_owned()
            }
            DialError::Myself { .. } => "give each peer its own key".to_owned(),
            DialError::Closed => "bind again".to_owned(),
        }
    }
}

/// Why a frame was not taken for sending. Nothing of it is sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no connection at this moment: never dialled, lost, or being redialled.
    #[error("peer {peer} is not connected")]
    NotConnected {
        /// The peer.
        peer: PeerId,
    },
    /// The queue to this peer is full: it reads more slowly than we write.
    #[error(
        "queue to peer {peer} is full: {queued_bytes} bytes in {queued_messages} messages wait, {got} more came"
    )]
    Full {
        /// The peer.
        peer: PeerId,
        /// Bytes that wait.
        queued_bytes: usize,
        /// Messages that wait.
        queued_messages: usize,
        /// Bytes of this frame.
        got: usize,
    },
    /// The frame is larger than any peer accepts.
    #[error("{part} to peer {peer} has {got} bytes, at most {max} are allowed")]
    TooLarge {
        /// The peer.
        peer: PeerId,
        /// `header` or `payload`.
        part: &'static str,
        /// Its size.
        got: usize,
        /// The bound.
        max: usize,
    },
}
