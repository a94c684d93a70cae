//! Exact reads from a stream, with the two ways in which they end.
//!
//! Owns the difference between a stream that ends between frames, one that ends inside a frame, and a connection that
//! is gone. Knows nothing of frames.

use crate::framing::Fault;
use bytes::{BufMut, BytesMut};
use iroh::endpoint::{ReadExactError, RecvStream};
use tokio::io::AsyncReadExt;

/// Why a read brought nothing.
#[derive(Debug)]
pub(crate) enum ReadEnd {
    /// The stream is finished, or the connection is gone.
    Ended,
    /// The peer broke the rules.
    Fault(Fault),
}

impl From<Fault> for ReadEnd {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Reads a head of `N` bytes; a stream may end before it, but not inside it.
pub(crate) async fn read_word<const N: usize>(stream: &mut RecvStream) -> Result<[u8; N], ReadEnd> {
    let mut word = [0; N];
    match stream.read_exact(&mut word).await {
        Ok(()) => Ok(word),
        Err(ReadExactError::FinishedEarly(0) | ReadExactError::ReadError(_)) => Err(ReadEnd::Ended),
        Err(ReadExactError::FinishedEarly(_)) => Err(ReadEnd::Fault(Fault::Truncated)),
    }
}

/// Reads until `room` holds exactly `bytes`; within its capacity nothing is allocated.
pub(crate) async fn read_room(
    stream: &mut RecvStream,
    mut room: BytesMut,
    bytes: usize,
) -> Result<BytesMut, ReadEnd> {
    while room.len() < bytes {
        let missing = bytes - room.len();
        match stream.read_buf(&mut (&mut room).limit(missing)).await {
            Ok(0) => return Err(ReadEnd::Fault(Fault::Truncated)),
            Ok(_) => {}
            Err(_) => return Err(ReadEnd::Ended),
        }
    }
    Ok(room)
}
