//! What both sides of the comparison share.

/// Streams of the hand-made striping; as many as this crate has lanes.
pub(crate) const STREAMS: usize = 8;

/// Bytes of an acknowledgement.
pub(crate) const ACK_BYTES: usize = 16;

/// Where everything listens.
pub(crate) const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 0);
