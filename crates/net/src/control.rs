//! The control stream's reading side: small frames, in order.
//!
//! Owns nothing but the way from stream to inbox. Knows nothing of what the frames say.

use crate::framing::{CONTROL_HEAD_BYTES, ControlHead, Fault};
use crate::inbox::Inbox;
use crate::stream::{ReadEnd, read_room, read_word};
use bytes::BytesMut;
use iroh::endpoint::RecvStream;
use trestle_protocol::wire::Frame;

/// Reads frames until the stream or the connection ends.
pub(crate) async fn receive(mut stream: RecvStream, inbox: Inbox) -> Result<(), Fault> {
    loop {
        match receive_frame(&mut stream).await {
            Ok(frame) => inbox.deliver(frame, CONTROL_HEAD_BYTES).await,
            Err(ReadEnd::Ended) => return Ok(()),
            Err(ReadEnd::Fault(fault)) => return Err(fault),
        }
    }
}

async fn receive_frame(stream: &mut RecvStream) -> Result<Frame, ReadEnd> {
    let head = ControlHead::from_bytes(read_word(stream).await?)?;
    let room = BytesMut::with_capacity(head.header_bytes + head.payload_bytes);
    let mut payload = read_room(stream, room, head.header_bytes + head.payload_bytes).await?;
    let header = payload.split_to(head.header_bytes).freeze();
    Ok(Frame { header, payload: payload.freeze() })
}
