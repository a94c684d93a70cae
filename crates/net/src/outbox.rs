//! What waits to be sent to one peer, within bounds.
//!
//! Owns the queues of one connection and the choice between control stream and lanes. Knows nothing of streams.

use crate::framing::{
    CONTROL_HEAD_BYTES, ControlHead, PIECE_HEAD_BYTES, PieceHead, STRIPE_BYTES_MIN, piece_bytes,
};
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use trestle_protocol::wire::Frame;

/// How urgent a frame is. Control goes before activations, activations before bulk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Control stream when small, activation lanes when striped.
    Work,
    /// Bulk lanes, whatever the size.
    Bulk,
}

/// Something for a writer of one connection.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// Bytes to write one after the other; the room in the queue is given back when all writers are done with it.
    Chunks { chunks: Vec<Bytes>, hold: Arc<Hold> },
    /// Nothing follows: finish the stream.
    End,
}

/// A frame's room in the queue.
#[derive(Debug)]
pub(crate) struct Hold {
    _bytes: OwnedSemaphorePermit,
    _message: OwnedSemaphorePermit,
}

/// What the writers of one connection take from.
#[derive(Debug)]
pub(crate) struct Queues {
    pub(crate) control: UnboundedReceiver<Outgoing>,
    pub(crate) activation: UnboundedReceiver<Outgoing>,
    pub(crate) bulk: UnboundedReceiver<Outgoing>,
}

/// The queues of one connection. Their bound is the room; the channels themselves have none.
#[derive(Debug)]
pub(crate) struct Outbox {
    control: UnboundedSender<Outgoing>,
    activation: Stripes,
    bulk: Stripes,
    bytes: Arc<Semaphore>,
    messages: Arc<Semaphore>,
    bytes_max: usize,
    messages_max: usize,
}

#[derive(Debug)]
struct Stripes {
    lanes: usize,
    queue: UnboundedSender<Outgoing>,
    /// The next frame's number. Held while its pieces are queued: they have to go out in the order of frames.
    next: Mutex<u64>,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Too much waits.
    Full { bytes: usize, messages: usize },
    /// The connection ends: nothing more is taken.
    Shut,
}

impl Outbox {
    pub(crate) fn new(
        (activation_lanes, bulk_lanes): (usize, usize),
        bytes_max: usize,
        messages_max: usize,
    ) -> (Self, Queues) {
        let bytes_max = bytes_max.min(u32::MAX as usize);
        let (control, control_queue) = unbounded_channel();
        let (activation, activation_queue) = Stripes::new(activation_lanes);
        let (bulk, bulk_queue) = Stripes::new(bulk_lanes);
        let outbox = Self {
            control,
            activation,
            bulk,
            bytes: Arc::new(Semaphore::new(bytes_max)),
            messages: Arc::new(Semaphore::new(messages_max)),
            bytes_max,
            messages_max,
        };
        (outbox, Queues { control: control_queue, activation: activation_queue, bulk: bulk_queue })
    }

    /// Takes room for a frame, or says why there is none.
    pub(crate) fn try_reserve(&self, frame: &Frame) -> Result<Hold, NoRoom> {
        let message = Arc::clone(&self.messages).try_acquire_owned();
        let message = message.map_err(|error| self.no_room(&error))?;
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(self.charge(frame));
        let bytes = bytes.map_err(|error| self.no_room(&error))?;
        Ok(Hold { _bytes: bytes, _message: message })
    }

    /// Waits for room for a frame; `None` when the connection ended meanwhile.
    pub(crate) async fn reserve(&self, frame: &Frame) -> Option<Hold> {
        let message = Arc::clone(&self.messages).acquire_owned().await.ok()?;
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(self.charge(frame)).await.ok()?;
        Some(Hold { _bytes: bytes, _message: message })
    }

    /// Queues a frame for which room was taken; returns the bytes of framing that go with it.
    pub(crate) fn push(&self, frame: Frame, urgency: Urgency, hold: Hold) -> usize {
        match urgency {
            Urgency::Work if frame.payload.len() < STRIPE_BYTES_MIN => self.push_control(frame, hold),
            Urgency::Work => self.activation.push(frame, hold),
            Urgency::Bulk => self.bulk.push(frame, hold),
        }
    }

    /// Takes nothing more, and tells the writers to finish once they have written what waits.
    pub(crate) fn end(&self) {
        self.shut();
        // A writer that is gone has finished already.
        let _ = self.control.send(Outgoing::End);
        self.activation.end();
        self.bulk.end();
    }

    /// Takes nothing more; who waits for room hears that none will come.
    pub(crate) fn shut(&self) {
        self.bytes.close();
        self.messages.close();
    }

    fn push_control(&self, frame: Frame, hold: Hold) -> usize {
        let head = ControlHead { header_bytes: frame.header.len(), payload_bytes: frame.payload.len() };
        let head = Bytes::copy_from_slice(&head.to_bytes());
        let chunks = [head, frame.header, frame.payload].into_iter().filter(|c| !c.is_empty()).collect();
        // Without a writer the connection is gone, and its owner hears of it.
        let _ = self.control.send(Outgoing::Chunks { chunks, hold: Arc::new(hold) });
        CONTROL_HEAD_BYTES
    }

    /// A frame larger than the whole queue takes all of it.
    fn charge(&self, frame: &Frame) -> u32 {
        u32::try_from(frame.bytes().min(self.bytes_max)).expect("the bound fits")
    }

    fn no_room(&self, error: &TryAcquireError) -> NoRoom {
        match error {
            TryAcquireError::Closed => NoRoom::Shut,
            TryAcquireError::NoPermits => NoRoom::Full {
                bytes: self.bytes_max - self.bytes.available_permits(),
                messages: self.messages_max - self.messages.available_permits(),
            },
        }
    }
}

impl Stripes {
    fn new(lanes: usize) -> (Self, UnboundedReceiver<Outgoing>) {
        let (queue, receiver) = unbounded_channel();
        (Self { lanes, queue, next: Mutex::new(0) }, receiver)
    }

    fn push(&self, frame: Frame, hold: Hold) -> usize {
        let Frame { header, payload } = frame;
        let piece_bytes = piece_bytes(payload.len(), self.lanes);
        let hold = Arc::new(hold);
        let mut next = self.next.lock().expect("no holder panics");
        let first = PieceHead {
            frame: *next,
            payload_bytes: payload.len(),
            piece_bytes,
            piece: 0,
            header_bytes: header.len(),
        };
        *next += 1;
        for piece in 0..first.pieces() {
            let head = if piece == 0 { first } else { PieceHead { piece, header_bytes: 0, ..first } };
            let start = piece as usize * piece_bytes;
            let mut chunks = vec![Bytes::copy_from_slice(&head.to_bytes())];
            if piece == 0 && !header.is_empty() {
                chunks.push(header.clone());
            }
            if head.bytes() > 0 {
                chunks.push(payload.slice(start..start + head.bytes()));
            }
            // Without a writer the connection is gone, and its owner hears of it.
            let _ = self.queue.send(Outgoing::Chunks { chunks, hold: Arc::clone(&hold) });
        }
        first.pieces() as usize * PIECE_HEAD_BYTES
    }

    fn end(&self) {
        for _ in 0..self.lanes {
            let _ = self.queue.send(Outgoing::End);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload_bytes: usize) -> Frame {
        Frame { header: Bytes::from_static(b"head"), payload: vec![7; payload_bytes].into() }
    }

    fn written(queue: &mut UnboundedReceiver<Outgoing>) -> Vec<usize> {
        let mut sizes = Vec::new();
        while let Ok(outgoing) = queue.try_recv() {
            match outgoing {
                Outgoing::Chunks { chunks, .. } => sizes.push(chunks.iter().map(Bytes::len).sum()),
                Outgoing::End => sizes.push(0),
            }
        }
        sizes
    }

    #[test]
    fn small_frames_go_to_control_and_large_ones_are_striped() {
        let (outbox, mut queues) = Outbox::new((8, 4), 1 << 30, 10);
        let mut push = |payload_bytes, urgency| {
            let frame = frame(payload_bytes);
            let hold = outbox.try_reserve(&frame).expect("room");
            outbox.push(frame, urgency, hold);
            (written(&mut queues.control), written(&mut queues.activation), written(&mut queues.bulk))
        };
        assert_eq!(push(0, Urgency::Work), (vec![8 + 4], vec![], vec![]));
        assert_eq!(push(STRIPE_BYTES_MIN - 1, Urgency::Work).0, [8 + 4 + STRIPE_BYTES_MIN - 1]);
        let (control, activation, bulk) = push(2_200_000, Urgency::Work);
        assert!(control.is_empty() && bulk.is_empty());
        assert_eq!(activation.len(), 8);
        assert_eq!(activation.iter().sum::<usize>(), 2_200_000 + 4 + 8 * PIECE_HEAD_BYTES);
        assert_eq!(push(3, Urgency::Bulk), (vec![], vec![], vec![PIECE_HEAD_BYTES + 4 + 3]));
    }

    #[test]
    fn room_is_bounded_in_bytes_and_in_messages() {
        let (outbox, _queues) = Outbox::new((8, 4), 1000, 2);
        let first = outbox.try_reserve(&frame(900)).expect("room");
        let full = outbox.try_reserve(&frame(100)).expect_err("1,008 bytes");
        assert_eq!(full, NoRoom::Full { bytes: 904, messages: 2 });
        let second = outbox.try_reserve(&frame(10)).expect("room");
        let full = outbox.try_reserve(&frame(0)).expect_err("3 messages");
        assert_eq!(full, NoRoom::Full { bytes: 918, messages: 2 });
        drop((first, second));
        outbox.try_reserve(&frame(1_000_000)).expect("an empty queue takes any frame");
        outbox.end();
        assert_eq!(outbox.try_reserve(&frame(0)).expect_err("the end"), NoRoom::Shut);
    }
}
