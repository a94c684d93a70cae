//! Puts striped frames together again, within bounds.
//!
//! Owns the half-received frames of one peer and urgency. Knows nothing of streams: lanes claim room for a piece, fill
//! it, and hand it back.
//!
//! Room is given so that nobody waits for ever. A sender hands out pieces in the order of frames, so each lane carries
//! them in that order; the oldest incomplete frame is therefore never behind a piece that has to wait, and always gets
//! its room. Younger ones get it while the window and the bytes last.

use crate::framing::{Fault, PieceHead};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet};
use trestle_protocol::wire::Frame;

/// Frames that an honest sender can be ahead of the window: its lanes buffer 10 MB, in frames of 64 KiB at least,
/// and bulk lanes may carry smaller ones.
const AHEAD_FRAMES_MAX: u64 = 65_536;

/// The half-received frames of one peer and urgency.
#[derive(Debug)]
pub(crate) struct Reassembly {
    /// The oldest frame that is not delivered.
    oldest: u64,
    /// Younger frames that are.
    delivered: BTreeSet<u64>,
    partial: BTreeMap<u64, Partial>,
    /// Bytes of all frames in `partial`.
    bytes: usize,
    bytes_max: usize,
    messages_max: u64,
}

/// What a lane that has a piece may do.
#[derive(Debug)]
pub(crate) enum Claim {
    /// Read it into this room, which has exactly the piece's capacity.
    Granted(BytesMut),
    /// Wait until a frame is delivered.
    Wait,
}

/// A frame that is complete.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) frame: Frame,
    /// How many pieces it came in.
    pub(crate) pieces: usize,
}

#[derive(Debug)]
struct Partial {
    payload_bytes: usize,
    piece_bytes: usize,
    header: Option<Bytes>,
    rooms: Vec<PieceRoom>,
    missing: usize,
}

#[derive(Debug)]
enum PieceRoom {
    Empty(BytesMut),
    Claimed,
    Full(BytesMut),
}

impl Reassembly {
    pub(crate) fn new(bytes_max: usize, messages_max: usize) -> Self {
        let messages_max = messages_max.max(1) as u64;
        Self {
            oldest: 0,
            delivered: BTreeSet::new(),
            partial: BTreeMap::new(),
            bytes: 0,
            bytes_max,
            messages_max,
        }
    }

    /// Asks for the room of a piece.
    pub(crate) fn claim(&mut self, head: &PieceHead) -> Result<Claim, Fault> {
        let frame = head.frame;
        if frame < self.oldest || self.delivered.contains(&frame) {
            return Err(Fault::Late { frame });
        }
        if frame - self.oldest > self.messages_max.saturating_add(AHEAD_FRAMES_MAX) {
            return Err(Fault::Flood { frame, oldest: self.oldest });
        }
        if !self.partial.contains_key(&frame) {
            if !self.admits(head) {
                return Ok(Claim::Wait);
            }
            self.bytes += head.payload_bytes;
            self.partial.insert(frame, Partial::new(head));
        }
        let partial = self.partial.get_mut(&frame).expect("it was there or was put there");
        if partial.payload_bytes != head.payload_bytes || partial.piece_bytes != head.piece_bytes {
            return Err(Fault::Disagreement { frame });
        }
        let room = &mut partial.rooms[head.piece as usize];
        match std::mem::replace(room, PieceRoom::Claimed) {
            PieceRoom::Empty(bytes) => Ok(Claim::Granted(bytes)),
            taken @ (PieceRoom::Claimed | PieceRoom::Full(_)) => {
                *room = taken;
                Err(Fault::Repeated { frame, piece: head.piece })
            }
        }
    }

    /// Hands back a piece's room, filled, and beside piece 0 the header; returns the frame when it is complete.
    pub(crate) fn fill(&mut self, head: &PieceHead, header: Bytes, piece: BytesMut) -> Option<Whole> {
        assert_eq!(piece.len(), head.bytes(), "a lane fills what it claimed");
        let partial = self.partial.get_mut(&head.frame).expect("a claimed frame stays until it is delivered");
        partial.rooms[head.piece as usize] = PieceRoom::Full(piece);
        if head.piece == 0 {
            partial.header = Some(header);
        }
        partial.missing -= 1;
        if partial.missing > 0 {
            return None;
        }
        Some(partial.join())
    }

    /// Forgets a frame that was delivered, so that others get its room.
    pub(crate) fn retire(&mut self, frame: u64) {
        let partial = self.partial.remove(&frame).expect("a complete frame stays until it is delivered");
        self.bytes -= partial.payload_bytes;
        self.delivered.insert(frame);
        while self.delivered.remove(&self.oldest) {
            self.oldest += 1;
        }
    }

    fn admits(&self, head: &PieceHead) -> bool {
        let in_window = head.frame - self.oldest < self.messages_max;
        head.frame == self.oldest || (in_window && self.bytes + head.payload_bytes <= self.bytes_max)
    }
}

impl Partial {
    fn new(head: &PieceHead) -> Self {
        let pieces = head.pieces();
        let mut rest = BytesMut::with_capacity(head.payload_bytes);
        let mut rooms = Vec::with_capacity(pieces as usize);
        for piece in 0..pieces {
            let bytes = PieceHead { piece, ..*head }.bytes();
            let after = rest.split_off(bytes);
            rooms.push(PieceRoom::Empty(std::mem::replace(&mut rest, after)));
        }
        Self {
            payload_bytes: head.payload_bytes,
            piece_bytes: head.piece_bytes,
            header: None,
            rooms,
            missing: pieces as usize,
        }
    }

    /// Joins the pieces; they lie side by side, so nothing is copied.
    fn join(&mut self) -> Whole {
        let pieces = self.rooms.len();
        let mut payload = BytesMut::new();
        for room in self.rooms.drain(..) {
            match room {
                PieceRoom::Full(bytes) => payload.unsplit(bytes),
                PieceRoom::Empty(_) | PieceRoom::Claimed => unreachable!("no piece is missing"),
            }
        }
        let header = self.header.take().expect("piece 0 is there");
        Whole { frame: Frame { header, payload: payload.freeze() }, pieces }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::PIECE_BYTES_MIN;

    const PIECE: usize = PIECE_BYTES_MIN;

    fn head(frame: u64, piece: u32, payload_bytes: usize) -> PieceHead {
        PieceHead { frame, payload_bytes, piece_bytes: PIECE.min(payload_bytes), piece, header_bytes: 0 }
    }

    fn granted(reassembly: &mut Reassembly, head: &PieceHead) -> BytesMut {
        match reassembly.claim(head).expect("a fair claim") {
            Claim::Granted(room) => room,
            Claim::Wait => panic!("room is there"),
        }
    }

    fn fill(reassembly: &mut Reassembly, head: &PieceHead) -> Option<Whole> {
        let mut room = granted(reassembly, head);
        assert_eq!(room.capacity(), head.bytes());
        room.resize(head.bytes(), u8::try_from(head.piece).expect("few pieces"));
        reassembly.fill(head, Bytes::from_static(b"head"), room)
    }

    #[test]
    fn pieces_in_any_order_make_the_frame_without_a_copy() {
        let mut reassembly = Reassembly::new(1 << 20, 4);
        let payload = 2 * PIECE + 5;
        let first = granted(&mut reassembly, &head(0, 0, payload));
        let at = first.as_ptr();
        assert!(fill(&mut reassembly, &head(0, 2, payload)).is_none());
        assert!(fill(&mut reassembly, &head(0, 1, payload)).is_none());
        let mut first = first;
        first.resize(PIECE, 0);
        let whole = reassembly.fill(&head(0, 0, payload), Bytes::from_static(b"h"), first).expect("complete");
        assert_eq!(whole.frame.header, "h");
        let expected = [vec![0; PIECE], vec![1; PIECE], vec![2; 5]].concat();
        assert_eq!(whole.frame.payload, expected);
        assert_eq!(whole.frame.payload.as_ptr(), at);
        reassembly.retire(0);
        assert_eq!(reassembly.bytes, 0);
    }

    #[test]
    fn a_frame_without_payload_is_one_piece() {
        let mut reassembly = Reassembly::new(1, 1);
        let whole = fill(&mut reassembly, &head(0, 0, 0)).expect("complete");
        assert!(whole.frame.payload.is_empty());
    }

    #[test]
    fn faults_are_named() {
        let mut reassembly = Reassembly::new(1 << 20, 4);
        let payload = 3 * PIECE;
        drop(granted(&mut reassembly, &head(0, 0, payload)));
        let again = reassembly.claim(&head(0, 0, payload)).expect_err("twice");
        assert_eq!(again, Fault::Repeated { frame: 0, piece: 0 });
        let other = reassembly.claim(&head(0, 1, payload - 1)).expect_err("another size");
        assert_eq!(other, Fault::Disagreement { frame: 0 });
        let whole = fill(&mut reassembly, &head(1, 0, 10));
        assert!(whole.is_some());
        reassembly.retire(1);
        assert_eq!(reassembly.claim(&head(1, 0, 10)).expect_err("complete"), Fault::Late { frame: 1 });
        let far = reassembly.claim(&head(1_000_000, 0, 10)).expect_err("far ahead");
        assert_eq!(far, Fault::Flood { frame: 1_000_000, oldest: 0 });
    }

    #[test]
    fn room_is_bounded_and_the_oldest_always_gets_it() {
        let mut reassembly = Reassembly::new(100, 3);
        let waits = |reassembly: &mut Reassembly, head: &PieceHead| {
            matches!(reassembly.claim(head).expect("a fair claim"), Claim::Wait)
        };
        assert!(fill(&mut reassembly, &head(1, 0, 90)).is_some());
        assert!(waits(&mut reassembly, &head(2, 0, 11)), "bytes are used up");
        assert!(waits(&mut reassembly, &head(3, 0, 1)), "outside the window");
        assert!(fill(&mut reassembly, &head(0, 0, 5000)).is_some(), "the oldest gets room beyond the bound");
        reassembly.retire(0);
        assert!(waits(&mut reassembly, &head(4, 0, 1)), "outside the window of 1, 2, 3");
        reassembly.retire(1);
        assert!(fill(&mut reassembly, &head(4, 0, 1)).is_some());
        assert!(fill(&mut reassembly, &head(2, 0, 11)).is_some());
        assert_eq!(reassembly.bytes, 12);
    }

    /// Any interleaving of lanes that each keep the sender's order ends with all frames delivered.
    #[test]
    fn lanes_never_wait_for_ever() {
        for seed in 0_u64..200 {
            let mut draw = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = |below: usize| {
                draw ^= draw << 13;
                draw ^= draw >> 7;
                draw ^= draw << 17;
                usize::try_from(draw % below as u64).expect("below a usize")
            };
            let mut lanes = vec![std::collections::VecDeque::new(); 3];
            let frames = 20;
            for frame in 0..frames {
                let payload = 1 + next(4 * PIECE);
                for piece in 0..head(frame, 0, payload).pieces() {
                    lanes[next(3)].push_back(head(frame, piece, payload));
                }
            }
            let mut reassembly = Reassembly::new(5 * PIECE, 3);
            let mut delivered = 0;
            while delivered < frames {
                let start = next(3);
                let moved = (0..3).map(|i| (start + i) % 3).find(|&lane| {
                    let Some(head) = lanes[lane].front().copied() else { return false };
                    let Claim::Granted(mut room) = reassembly.claim(&head).expect("fair") else {
                        return false;
                    };
                    lanes[lane].pop_front();
                    room.resize(head.bytes(), 0);
                    if reassembly.fill(&head, Bytes::new(), room).is_some() {
                        reassembly.retire(head.frame);
                        delivered += 1;
                    }
                    true
                });
                assert!(moved.is_some(), "seed {seed}: all lanes wait after {delivered} frames");
            }
        }
    }
}
