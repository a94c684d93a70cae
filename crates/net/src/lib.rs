//! QUIC between the peers of a run: identity, connections, frames, striping, back-pressure.
//!
//! Owns sockets and everything that crosses them. It may not know roles, plans or tensors, nor why a message is sent:
//! a frame is a header and a payload, and a peer is a key.

mod accept;
pub mod address;
mod cable;
pub mod config;
mod congestion;
mod control;
pub mod counters;
pub mod error;
pub mod event;
mod framing;
mod greeting;
mod inbox;
mod lane;
mod link;
pub mod net;
mod outbox;
mod reassembly;
mod session;
mod stream;
mod switchboard;
pub mod ticket;
mod writer;

pub use address::Address;
pub use config::{Limits, Membership, NetConfig};
pub use counters::{Counters, Flow, PeerCounters};
pub use error::{BindError, DialError, SendError};
pub use event::{BreakReason, LostReason, NetEvent, RefusedReason};
pub use net::Net;
pub use outbox::Urgency;
pub use ticket::{Ticket, TicketError};
