//! A stranger: connected to everyone, a member of nothing, who repeats what it overhears, twists it, or speaks rubbish.
//!
//! Owns what such a peer says. Knows nothing of what it does to those who listen.

use crate::draws::Draws;
use bytes::Bytes;
use std::collections::VecDeque;
use trestle_protocol::wire::Frame;

/// Frames it remembers; enough that old and new ones mix.
const OVERHEARD_MAX: usize = 64;

/// Longest rubbish, in bytes.
const RUBBISH_BYTES_MAX: u64 = 300;

/// What it remembers, and what it will say next.
#[derive(Debug)]
pub struct Stranger {
    draws: Draws,
    overheard: VecDeque<Frame>,
}

impl Stranger {
    /// Makes the stranger of a seed.
    pub fn new(seed: u64) -> Self {
        Self { draws: Draws::new(seed, "stranger", &[]), overheard: VecDeque::new() }
    }

    /// Hears what others say to each other.
    pub fn hear(&mut self, frame: &Frame) {
        if self.overheard.len() == OVERHEARD_MAX {
            self.overheard.pop_front();
        }
        self.overheard.push_back(frame.clone());
    }

    /// Says something to one of `listeners`.
    pub fn speak(&mut self, listeners: usize) -> (usize, Frame) {
        let to = self.draws.below(listeners as u64) as usize;
        let chosen = self.draws.below(self.overheard.len() as u64) as usize;
        let known = self.overheard.get(chosen).cloned();
        let frame = match (self.draws.below(4), known) {
            (0 | 1, Some(frame)) => frame,
            (2, Some(frame)) => self.twist(&frame),
            (_, _) => self.rubbish(),
        };
        (to, frame)
    }

    /// Changes one byte of the header, and cuts the payload short every other time.
    fn twist(&mut self, frame: &Frame) -> Frame {
        let mut header = frame.header.to_vec();
        let at = self.draws.below(header.len() as u64) as usize;
        if let Some(byte) = header.get_mut(at) {
            *byte ^= 1 << self.draws.below(8);
        }
        let kept = frame.payload.len() >> self.draws.below(2);
        Frame { header: header.into(), payload: frame.payload.slice(..kept) }
    }

    fn rubbish(&mut self) -> Frame {
        let (header, payload) = (self.draws.below(RUBBISH_BYTES_MAX), self.draws.below(RUBBISH_BYTES_MAX));
        let mut bytes = |count: u64| Bytes::from(self.draws.bytes(count as usize));
        Frame { header: bytes(header), payload: bytes(payload) }
    }
}
