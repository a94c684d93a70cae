//! The bytes around frames: lengths on the control stream, the head of each piece on a lane.
//!
//! Owns both forms and their bounds. Any bytes are read or refused; nothing here panics on what a peer sent.

use trestle_protocol::wire::{HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX};

/// Payloads from this size on are striped over lanes; smaller ones travel on the control stream.
pub(crate) const STRIPE_BYTES_MIN: usize = 64 * 1024;

/// Smallest piece of a frame that has several: below it, heads and wake-ups cost more than lanes win.
pub(crate) const PIECE_BYTES_MIN: usize = 16 * 1024;

/// Largest piece: a lane that lost a packet delays no more than this of its neighbours' frames.
pub(crate) const PIECE_BYTES_MAX: usize = 512 * 1024;

/// Bytes before each frame of the control stream.
pub(crate) const CONTROL_HEAD_BYTES: usize = 8;

/// Bytes before each piece on a lane.
pub(crate) const PIECE_HEAD_BYTES: usize = 24;

/// Why bytes from a peer are no frame of ours. Each closes the connection to that peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("header of {got} bytes, at most {HEADER_BYTES_MAX} are allowed")]
    Header { got: usize },
    #[error("payload of {got} bytes, at most {max} are allowed here")]
    Payload { got: usize, max: usize },
    #[error("pieces of {got} bytes for a payload of {payload}")]
    PieceSize { got: usize, payload: usize },
    #[error("piece {got} of a frame of {pieces} pieces")]
    PieceIndex { got: u32, pieces: u32 },
    #[error("header of {header} bytes beside piece {piece}; only piece 0 has one")]
    StrayHeader { header: usize, piece: u32 },
    #[error("piece {piece} of frame {frame} came twice")]
    Repeated { frame: u64, piece: u32 },
    #[error("piece of frame {frame}, which is complete")]
    Late { frame: u64 },
    #[error("pieces of frame {frame} disagree about its size")]
    Disagreement { frame: u64 },
    #[error("piece of frame {frame} while frame {oldest} is incomplete")]
    Flood { frame: u64, oldest: u64 },
    #[error("lane of kind {got}")]
    LaneKind { got: u8 },
    #[error("more than {max} lanes of one kind")]
    Lanes { max: usize },
    #[error("stream ends inside a frame")]
    Truncated,
}

/// Sizes of a frame on the control stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ControlHead {
    pub(crate) header_bytes: usize,
    pub(crate) payload_bytes: usize,
}

/// Says which part of which striped frame follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PieceHead {
    /// The frame, counted from 0 for each connection and urgency.
    pub(crate) frame: u64,
    /// Bytes of the frame's whole payload.
    pub(crate) payload_bytes: usize,
    /// Bytes of each piece but the last.
    pub(crate) piece_bytes: usize,
    /// Which piece this is.
    pub(crate) piece: u32,
    /// Bytes of the frame's header, which goes before piece 0; 0 beside other pieces.
    pub(crate) header_bytes: usize,
}

impl ControlHead {
    pub(crate) fn to_bytes(self) -> [u8; CONTROL_HEAD_BYTES] {
        let mut bytes = [0; CONTROL_HEAD_BYTES];
        bytes[..4].copy_from_slice(&word(self.header_bytes));
        bytes[4..].copy_from_slice(&word(self.payload_bytes));
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; CONTROL_HEAD_BYTES]) -> Result<Self, Fault> {
        let header_bytes = size(&bytes, 0);
        let payload_bytes = size(&bytes, 4);
        if header_bytes > HEADER_BYTES_MAX {
            return Err(Fault::Header { got: header_bytes });
        }
        if payload_bytes >= STRIPE_BYTES_MIN {
            return Err(Fault::Payload { got: payload_bytes, max: STRIPE_BYTES_MIN - 1 });
        }
        Ok(Self { header_bytes, payload_bytes })
    }
}

impl PieceHead {
    pub(crate) fn to_bytes(self) -> [u8; PIECE_HEAD_BYTES] {
        let mut bytes = [0; PIECE_HEAD_BYTES];
        bytes[..8].copy_from_slice(&self.frame.to_le_bytes());
        bytes[8..12].copy_from_slice(&word(self.payload_bytes));
        bytes[12..16].copy_from_slice(&word(self.piece_bytes));
        bytes[16..20].copy_from_slice(&self.piece.to_le_bytes());
        bytes[20..].copy_from_slice(&word(self.header_bytes));
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; PIECE_HEAD_BYTES]) -> Result<Self, Fault> {
        let mut frame = [0; 8];
        frame.copy_from_slice(&bytes[..8]);
        let head = Self {
            frame: u64::from_le_bytes(frame),
            payload_bytes: size(&bytes, 8),
            piece_bytes: size(&bytes, 12),
            piece: u32::try_from(size(&bytes, 16)).expect("four bytes were read"),
            header_bytes: size(&bytes, 20),
        };
        head.check()?;
        Ok(head)
    }

    fn check(self) -> Result<(), Fault> {
        if self.payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(Fault::Payload { got: self.payload_bytes, max: PAYLOAD_BYTES_MAX });
        }
        let whole = self.piece_bytes == self.payload_bytes && self.piece_bytes <= PIECE_BYTES_MAX;
        if !whole && !(PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&self.piece_bytes) {
            return Err(Fault::PieceSize { got: self.piece_bytes, payload: self.payload_bytes });
        }
        if self.header_bytes > HEADER_BYTES_MAX {
            return Err(Fault::Header { got: self.header_bytes });
        }
        let pieces = self.pieces();
        if self.piece >= pieces {
            return Err(Fault::PieceIndex { got: self.piece, pieces });
        }
        if self.piece > 0 && self.header_bytes > 0 {
            return Err(Fault::StrayHeader { header: self.header_bytes, piece: self.piece });
        }
        Ok(())
    }

    /// Returns how many pieces the frame has; one, when it has no payload.
    pub(crate) fn pieces(self) -> u32 {
        let pieces = self.payload_bytes.div_ceil(self.piece_bytes.max(1)).max(1);
        u32::try_from(pieces).expect("payloads are bounded")
    }

    /// Returns the bytes of this piece.
    pub(crate) fn bytes(self) -> usize {
        let start = self.piece as usize * self.piece_bytes;
        self.piece_bytes.min(self.payload_bytes - start)
    }
}

/// Chooses the size of a frame's pieces: one for each lane, within the bounds.
pub(crate) fn piece_bytes(payload_bytes: usize, lanes: usize) -> usize {
    payload_bytes.div_ceil(lanes).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX).min(payload_bytes)
}

fn word(size: usize) -> [u8; 4] {
    u32::try_from(size).expect("sizes are checked against bounds below 4 GiB").to_le_bytes()
}

fn size(bytes: &[u8], at: usize) -> usize {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> PieceHead {
        PieceHead { frame: 3, payload_bytes: 100_000, piece_bytes: 16_384, piece: 0, header_bytes: 40 }
    }

    #[test]
    fn heads_round_trip() {
        assert_eq!(PieceHead::from_bytes(head().to_bytes()), Ok(head()));
        let control = ControlHead { header_bytes: 7, payload_bytes: 9 };
        assert_eq!(ControlHead::from_bytes(control.to_bytes()), Ok(control));
    }

    #[test]
    fn pieces_cover_the_payload() {
        for payload_bytes in [0, 1, 16_384, 16_385, 100_000, 2_200_000, 8 * PIECE_BYTES_MAX + 1] {
            let piece_bytes = piece_bytes(payload_bytes, 8);
            let head = PieceHead { payload_bytes, piece_bytes, header_bytes: 0, ..head() };
            let sum: usize = (0..head.pieces()).map(|piece| PieceHead { piece, ..head }.bytes()).sum();
            assert_eq!(sum, payload_bytes);
            for piece in 0..head.pieces() {
                let head = PieceHead { piece, ..head };
                assert_eq!(PieceHead::from_bytes(head.to_bytes()), Ok(head));
            }
        }
    }

    #[test]
    fn impossible_heads_are_refused() {
        let refuse = |head: PieceHead| PieceHead::from_bytes(head.to_bytes()).expect_err("impossible");
        let huge = PAYLOAD_BYTES_MAX + 1;
        assert!(matches!(refuse(PieceHead { payload_bytes: huge, ..head() }), Fault::Payload { .. }));
        assert!(matches!(refuse(PieceHead { piece_bytes: 0, ..head() }), Fault::PieceSize { .. }));
        assert!(matches!(refuse(PieceHead { piece_bytes: 1, ..head() }), Fault::PieceSize { .. }));
        let wide = PIECE_BYTES_MAX + 1;
        assert!(matches!(refuse(PieceHead { piece_bytes: wide, ..head() }), Fault::PieceSize { .. }));
        assert_eq!(
            refuse(PieceHead { piece: 7, header_bytes: 0, ..head() }),
            Fault::PieceIndex { got: 7, pieces: 7 }
        );
        let header_bytes = HEADER_BYTES_MAX + 1;
        assert!(matches!(refuse(PieceHead { header_bytes, ..head() }), Fault::Header { .. }));
        assert!(matches!(refuse(PieceHead { piece: 1, ..head() }), Fault::StrayHeader { .. }));
        let control = ControlHead { header_bytes: 0, payload_bytes: STRIPE_BYTES_MIN };
        assert!(matches!(ControlHead::from_bytes(control.to_bytes()), Err(Fault::Payload { .. })));
        let control = ControlHead { header_bytes, payload_bytes: 0 };
        assert!(matches!(ControlHead::from_bytes(control.to_bytes()), Err(Fault::Header { .. })));
    }
}
