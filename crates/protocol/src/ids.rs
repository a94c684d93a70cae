//! Identifiers: newtypes, so that no two kinds of number can be exchanged by mistake.
//!
//! Owns what names a peer, a place in the plan, and a piece of work. Knows nothing of what is done with them.

use alloc::string::String;
use core::fmt;
use serde::{Deserialize, Serialize};

/// A peer's identity: its Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerId(#[serde(with = "legible")] pub [u8; 32]);

/// A BLAKE3 digest of something that two peers must agree on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(#[serde(with = "legible")] pub [u8; 32]);

/// A pipeline stage, counted from 0 at the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StageId(pub u16);

/// One of the peers that hold the same stage, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId(pub u16);

/// An optimizer step of the run, counted from 0; also the number of steps taken before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InnerStep(pub u64);

/// A synchronisation of the replicas of a stage, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OuterStep(pub u64);

/// How many optimizer steps a stage's weights have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WeightVersion(pub u64);

/// The number of a plan; a later plan replaces an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PlanNumber(pub u32);

/// A peer's taking of a place, counted over the run: who loses its place and takes one again has another seat, so that what
/// was credited to the first is not mistaken for the second's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SeatId(pub u32);

/// How often a microbatch has been leased before this time; fences late results of an earlier try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attempt(pub u16);

/// Which part of the corpus a microbatch is drawn from, and so whether it trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Split {
    /// Forward only: its loss is reported and nothing learns from it. Ordered before training at a border.
    HeldOut,
    /// Forward, backward, and a share of an optimizer step.
    Train,
}

/// A microbatch of the run; it names its tokens for ever, so that anyone can rebuild it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MicrobatchId {
    /// The part of the corpus.
    pub split: Split,
    /// The place in that part's order, counted over the whole run.
    pub index: u64,
}

impl MicrobatchId {
    /// Names a training microbatch.
    pub const fn train(index: u64) -> Self {
        Self { split: Split::Train, index }
    }

    /// Names a held-out microbatch.
    pub const fn held_out(index: u64) -> Self {
        Self { split: Split::HeldOut, index }
    }
}

impl fmt::Display for MicrobatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.split {
            Split::Train => write!(f, "train:{}", self.index),
            Split::HeldOut => write!(f, "held-out:{}", self.index),
        }
    }
}

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SeatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for InnerStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many hexadecimal digits of a key or digest people are shown.
const SHORT_HEX_DIGITS: usize = 10;

impl PeerId {
    /// Returns the whole key in hexadecimal.
    pub fn to_hex(&self) -> String {
        hex(&self.0, 64)
    }
}

impl Digest {
    /// Hashes bytes with BLAKE3.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Returns the whole digest in hexadecimal.
    pub fn to_hex(&self) -> String {
        hex(&self.0, 64)
    }
}

fn hex(bytes: &[u8], digits: usize) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let nibbles = bytes.iter().flat_map(|b| [b >> 4, b & 15]);
    nibbles.take(digits).map(|n| char::from(DIGITS[usize::from(n)])).collect()
}

/// 32 bytes as they are on the wire, and as hexadecimal digits wherever people read, such as in event logs.
mod legible {
    use alloc::string::String;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&super::hex(bytes, 64))
        } else {
            bytes.serialize(serializer)
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        if !deserializer.is_human_readable() {
            return <[u8; 32]>::deserialize(deserializer);
        }
        let text = String::deserialize(deserializer)?;
        super::unhex(&text).ok_or_else(|| D::Error::custom("expected 64 hexadecimal digits"))
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0, SHORT_HEX_DIGITS))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({self})")
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0, SHORT_HEX_DIGITS))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn people_see_the_head_of_a_key() {
        let mut key = [0; 32];
        key[0] = 0xab;
        key[31] = 0x01;
        assert_eq!(PeerId(key).to_string(), "ab00000000");
        assert!(PeerId(key).to_hex().starts_with("ab00") && PeerId(key).to_hex().ends_with("01"));
        assert_eq!(PeerId(key).to_hex().len(), 64);
    }

    #[test]
    fn a_key_reads_back_from_its_digits_and_nothing_else_does() {
        let key = PeerId(core::array::from_fn(|i| i as u8 * 7));
        assert_eq!(unhex(&key.to_hex()), Some(key.0));
        for bad in ["", "ab", &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }

    #[test]
    fn held_out_work_sorts_before_training() {
        assert!(MicrobatchId::held_out(9) < MicrobatchId::train(0));
        assert_eq!(MicrobatchId::train(7).to_string(), "train:7");
    }
}
