//! Seeded draws: every purpose has a stream of its own, so that a draw more in one place moves nothing in another.
//!
//! Owns the streams. Knows nothing of what is drawn.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use trestle_protocol::time::Span;

/// A stream of numbers that a seed, a purpose and a place name.
#[derive(Debug)]
pub struct Draws(ChaCha8Rng);

/// A share in thousandths: 100 is a tenth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permille(pub u32);

impl Draws {
    /// Opens the stream of a purpose; `place` tells apart those who share a purpose.
    pub fn new(seed: u64, purpose: &str, place: &[u64]) -> Self {
        Self(ChaCha8Rng::from_seed(derive(seed, purpose, place)))
    }

    /// Draws a number below `end`; 0 when `end` is 0. The bias of the remainder is below one in 2^32 for small `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64().checked_rem(end).unwrap_or(0)
    }

    /// Draws bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// Draws a span around `mean`, evenly from `mean - jitter` to `mean + jitter`, in whole microseconds.
    pub fn around(&mut self, mean: Span, jitter: Permille) -> Span {
        let reach = (u128::from(mean.0) * u128::from(jitter.0.min(1000)) / 1000) as u64;
        if reach == 0 {
            return mean;
        }
        Span(mean.0 - reach + self.below(2 * reach + 1))
    }
}

/// Derives 32 bytes, a key or a seed of its own, from a seed, a purpose and a place.
pub fn derive(seed: u64, purpose: &str, place: &[u64]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("trestle simulator 1");
    hasher.update(&seed.to_le_bytes());
    hasher.update(purpose.as_bytes());
    for number in place {
        hasher.update(&number.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_stays_within_its_jitter_and_reaches_both_ends() {
        let mut draws = Draws::new(1, "test", &[]);
        let spans: Vec<u64> = (0..2000).map(|_| draws.around(Span(100), Permille(100)).0).collect();
        assert_eq!((spans.iter().min(), spans.iter().max()), (Some(&90), Some(&110)));
        assert_eq!(draws.around(Span(7), Permille(0)), Span(7));
    }

    #[test]
    fn streams_differ_by_seed_purpose_and_place() {
        let first = |seed, purpose, place: &[u64]| Draws::new(seed, purpose, place).below(u64::MAX);
        let base = first(1, "a", &[1]);
        assert_eq!(base, first(1, "a", &[1]));
        assert!([first(2, "a", &[1]), first(1, "b", &[1]), first(1, "a", &[2])].iter().all(|n| *n != base));
    }
}
