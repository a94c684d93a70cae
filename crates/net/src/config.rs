//! What a peer sets before it binds: its key, its socket, its run, its bounds.
//!
//! Owns the bounds and their reasons. Knows nothing of where they are read from.

use std::net::SocketAddr;
use std::time::Duration;
use trestle_protocol::ids::Digest;
use trestle_protocol::spec::RunSpec;

/// Longest handshake. Three round trips at 400 ms and a lost packet in each stay below.
pub const HANDSHAKE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Longest silence of a peer that still counts as connected: two heartbeats of 2 s may be lost. The coordinator's own
/// detector removes a silent peer after about as long; a connection that outlives its peer only holds up what is sent to it.
/// The transport allows at most 15 s.
pub const SILENCE_MAX: Duration = Duration::from_secs(6);

/// How old our own dial, or connection, may be and still be kept when the peer dials us: two peers that dial each other at
/// the same moment meet within a round trip. One that dials later has lost us, or listens somewhere else by now.
pub const CROSSING_AGE_MAX: Duration = Duration::from_secs(2);

/// Tries to win a lost peer back: with the waits below they span 13 s, in which a process can restart.
pub const REDIALS_MAX: u32 = 6;

/// Wait before the first redial; it doubles with each.
pub const REDIAL_WAIT_FIRST: Duration = Duration::from_millis(200);

/// Bytes queued for one peer: one boundary of the 100B size uncompressed, or 29 of 2.2 MB.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Messages queued for one peer: receipts and leases of some seconds.
pub const QUEUE_MESSAGES_MAX: usize = 1024;

/// Bytes of half-received messages of one peer, beside the oldest one, and as much again that wait to be taken.
pub const REASSEMBLY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Half-received messages of one peer and urgency: 16 microbatches in flight, four times over.
pub const REASSEMBLY_MESSAGES_MAX: usize = 64;

/// Strangers in the middle of a handshake; others are refused meanwhile.
pub const HANDSHAKES_MAX: usize = 64;

/// Peers connected at a time: a coordinator of 48 stages with 20 replicas stays below.
pub const PEERS_MAX: usize = 1024;

/// Events that wait to be taken.
pub const EVENTS_MAX: usize = 1024;

/// Longest wait for the last words of a closing connection to be acknowledged.
pub const FAREWELL_WAIT_MAX: Duration = Duration::from_secs(3);

/// Which run a peer belongs to, and how much of it it knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Membership {
    /// It has the run's spec: it answers others.
    Member(Box<RunSpec>),
    /// It has a ticket: it learns the spec from the first peer that it dials, and answers nobody before.
    Candidate {
        /// The digest of the spec it wants.
        run_digest: Digest,
    },
}

/// How to bind.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// The Ed25519 secret key that the peer proves to hold.
    pub secret: [u8; 32],
    /// Where to listen; port 0 takes any free one.
    pub bind: SocketAddr,
    /// Further socket addresses at which others reach this peer, behind a router for example.
    pub advertise: Vec<SocketAddr>,
    /// The run.
    pub membership: Membership,
    /// The bounds.
    pub limits: Limits,
}

impl NetConfig {
    /// Makes a configuration with the usual bounds and nothing to advertise.
    pub fn new(secret: [u8; 32], bind: SocketAddr, membership: Membership) -> Self {
        Self { secret, bind, advertise: Vec::new(), membership, limits: Limits::default() }
    }
}

/// Bounds of everything that a peer, or many, could make grow; each default is a constant of this module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest handshake.
    pub handshake_wait_max: Duration,
    /// Longest silence of a connected peer.
    pub silence_max: Duration,
    /// Tries to win a lost peer back.
    pub redials_max: u32,
    /// Wait before the first of them; it doubles with each.
    pub redial_wait_first: Duration,
    /// Bytes queued for one peer.
    pub queue_bytes_max: usize,
    /// Messages queued for one peer.
    pub queue_messages_max: usize,
    /// Bytes of one peer's half-received messages, and as much again of received ones that wait to be taken.
    pub reassembly_bytes_max: usize,
    /// One peer's half-received messages.
    pub reassembly_messages_max: usize,
    /// Strangers in the middle of a handshake.
    pub handshakes_max: usize,
    /// Peers connected at a time.
    pub peers_max: usize,
    /// Events that wait to be taken.
    pub events_max: usize,
    /// Longest wait for the last words of a closing connection.
    pub farewell_wait_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_wait_max: HANDSHAKE_WAIT_MAX,
            silence_max: SILENCE_MAX,
            redials_max: REDIALS_MAX,
            redial_wait_first: REDIAL_WAIT_FIRST,
            queue_bytes_max: QUEUE_BYTES_MAX,
            queue_messages_max: QUEUE_MESSAGES_MAX,
            reassembly_bytes_max: REASSEMBLY_BYTES_MAX,
            reassembly_messages_max: REASSEMBLY_MESSAGES_MAX,
            handshakes_max: HANDSHAKES_MAX,
            peers_max: PEERS_MAX,
            events_max: EVENTS_MAX,
            farewell_wait_max: FAREWELL_WAIT_MAX,
        }
    }
}

impl Limits {
    /// How long an accepting peer waits for a dialler to come back: as long as the dialler may try.
    pub fn return_wait_max(&self) -> Duration {
        let waits = self.redial_wait_first.saturating_mul(2_u32.saturating_pow(self.redials_max) - 1);
        waits.saturating_add(self.handshake_wait_max.saturating_mul(self.redials_max))
    }
}
