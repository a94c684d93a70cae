//! The wire form of messages: a small header and, beside it, the payload of a tensor, never copied into the header.
//!
//! Owns the format and its version. Any bytes decode or are refused; nothing here panics on what a peer sent.

use crate::message::Message;
use crate::sync::say::Say;
use crate::sync::state::StateSay;
use alloc::vec::Vec;
use bytes::Bytes;

/// The version of messages and handshake; peers of different versions do not talk.
pub const WIRE_VERSION: u16 = 4;

/// Largest header. A lease of 1,024 microbatches or a plan of 1,000 members with addresses stays below.
pub const HEADER_BYTES_MAX: usize = 256 * 1024;

/// Largest payload: an uncompressed boundary of the 100B size is 141 MB.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A message as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Version (2 bytes, little endian), then the message in postcard form.
    pub header: Bytes,
    /// The tensor's bytes; empty for a message without one.
    pub payload: Bytes,
}

impl Frame {
    /// Returns the bytes of header and payload together.
    pub fn bytes(&self) -> usize {
        self.header.len() + self.payload.len()
    }
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The header is shorter than a version or longer than the bound.
    #[error("header has {got} bytes, expected 3 to {HEADER_BYTES_MAX}")]
    HeaderLength {
        /// Its size.
        got: usize,
    },
    /// The payload is longer than the bound.
    #[error("payload has {got} bytes, at most {PAYLOAD_BYTES_MAX} are allowed")]
    PayloadLength {
        /// Its size.
        got: usize,
    },
    /// Another version.
    #[error("message has wire version {got}, expected {WIRE_VERSION}")]
    Version {
        /// The version found.
        got: u16,
    },
    /// The header is not a message.
    #[error("header is not a message")]
    Malformed,
    /// Bytes follow the message in the header.
    #[error("{got} bytes follow the message")]
    Trailing {
        /// How many.
        got: usize,
    },
    /// A message that carries no tensor came with a payload.
    #[error("payload of {got} bytes beside a message that has none")]
    UnexpectedPayload {
        /// Its size.
        got: usize,
    },
}

/// Writes a message.
pub fn encode(message: &Message) -> Frame {
    let mut header = Vec::with_capacity(64);
    header.extend(WIRE_VERSION.to_le_bytes());
    let header = postcard::to_extend(message, header).expect("a message of plain fields always serialises");
    assert!(header.len() <= HEADER_BYTES_MAX, "our messages are bounded where they are made");
    let payload = match message {
        Message::Activation(tensor) | Message::Gradient(tensor) => tensor.payload.clone(),
        Message::Sync(Say::Chunk { payload, .. }) | Message::State(StateSay::Chunk { payload, .. }) => {
            payload.clone()
        }
        Message::Sync(_)
        | Message::State(_)
        | Message::Waiting { .. }
        | Message::Roster { .. }
        | Message::Enter { .. }
        | Message::Beat
        | Message::Present { .. }
        | Message::Suspects(_)
        | Message::Frontier(_)
        | Message::Close { .. }
        | Message::Sign { .. }
        | Message::Signed { .. }
        | Message::Leaving { .. }
        | Message::Removed { .. }
        | Message::Diverted { .. }
        | Message::Join(_)
        | Message::Placed { .. }
        | Message::Ready { .. }
        | Message::Lease { .. }
        | Message::Loss { .. }
        | Message::Settled { .. }
        | Message::Receipts(_)
        | Message::Stepped(_)
        | Message::Checkpointed { .. }
        | Message::Drain { .. }
        | Message::Finish { .. }
        | Message::PeerLost { .. }
        | Message::Failed { .. }
        | Message::Refused(_) => Bytes::new(),
    };
    assert!(payload.len() <= PAYLOAD_BYTES_MAX, "our tensors are bounded by the run spec");
    Frame { header: header.into(), payload }
}

/// Reads a message, or says why the bytes are not one.
pub fn decode(frame: &Frame) -> Result<Message, WireError> {
    let Frame { header, payload } = frame;
    if header.len() < 3 || header.len() > HEADER_BYTES_MAX {
        return Err(WireError::HeaderLength { got: header.len() });
    }
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(WireError::PayloadLength { got: payload.len() });
    }
    let version = u16::from_le_bytes([header[0], header[1]]);
    if version != WIRE_VERSION {
        return Err(WireError::Version { got: version });
    }
    let (mut message, rest) =
        postcard::take_from_bytes::<Message>(&header[2..]).map_err(|_| WireError::Malformed)?;
    if !rest.is_empty() {
        return Err(WireError::Trailing { got: rest.len() });
    }
    if let Message::Activation(tensor) | Message::Gradient(tensor) = &mut message {
        tensor.payload = payload.clone();
    } else if let Message::Sync(Say::Chunk { payload: chunk, .. })
    | Message::State(StateSay::Chunk { payload: chunk, .. }) = &mut message
    {
        *chunk = payload.clone();
    } else if !payload.is_empty() {
        return Err(WireError::UnexpectedPayload { got: payload.len() });
    }
    Ok(message)
}
