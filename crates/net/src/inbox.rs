//! Hands received frames to the owner, no faster than it takes them.
//!
//! Owns the room for one peer's frames that wait. Knows nothing of how they arrived.

use crate::counters::Totals;
use crate::event::{NetEvent, Room};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use trestle_protocol::ids::PeerId;
use trestle_protocol::wire::Frame;

/// One connection's way to the owner.
#[derive(Clone, Debug)]
pub(crate) struct Inbox {
    pub(crate) from: PeerId,
    events: mpsc::Sender<NetEvent>,
    room: Arc<Semaphore>,
    room_max: u32,
    totals: Arc<Totals>,
}

impl Inbox {
    pub(crate) fn new(
        from: PeerId,
        events: mpsc::Sender<NetEvent>,
        room_bytes_max: usize,
        totals: Arc<Totals>,
    ) -> Self {
        let room_max = u32::try_from(room_bytes_max).unwrap_or(u32::MAX);
        Self { from, events, room: Arc::new(Semaphore::new(room_max as usize)), room_max, totals }
    }

    /// Hands over a frame, and waits while the owner has too many; while it waits, its stream is not read.
    pub(crate) async fn deliver(&self, frame: Frame, framing_bytes: usize) {
        let charge = u32::try_from(frame.bytes()).unwrap_or(u32::MAX).min(self.room_max);
        let bytes =
            Arc::clone(&self.room).acquire_many_owned(charge).await.expect("the room is never closed");
        self.totals.received.add(frame.payload.len(), frame.header.len(), framing_bytes);
        let wire_bytes = frame.bytes() + framing_bytes;
        let event = NetEvent::Received { from: self.from, frame, wire_bytes, room: Room::new(bytes) };
        // Without a receiver there is no owner left to tell.
        let _ = self.events.send(event).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn frame(payload_bytes: usize) -> Frame {
        Frame { header: Bytes::new(), payload: vec![0; payload_bytes].into() }
    }

    #[tokio::test]
    async fn frames_that_wait_are_bounded_in_bytes_until_they_are_taken() {
        let (events, mut taken) = mpsc::channel(8);
        let inbox = Inbox::new(PeerId([1; 32]), events, 1000, Arc::new(Totals::default()));
        inbox.deliver(frame(600), 8).await;
        let mut second = Box::pin(inbox.deliver(frame(600), 8));
        tokio::select! {
            biased;
            () = &mut second => panic!("1,200 bytes wait where 1,000 may"),
            () = std::future::ready(()) => {}
        }
        let first = taken.recv().await;
        assert!(matches!(first, Some(NetEvent::Received { wire_bytes: 608, .. })), "{first:?}");
        drop(first);
        second.await;
        drop(taken.recv().await);
        inbox.deliver(frame(5000), 8).await;
        assert!(taken.recv().await.is_some(), "a frame beyond the bound comes alone");
    }
}
