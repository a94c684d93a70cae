//! Seeded draws: the same numbers on every machine, for ever.
//!
//! Owns the stream of random bytes: the extended output of BLAKE3 in key derivation mode, so that every
//! purpose has a stream of its own and none depends on a platform's generator. May not know what is drawn.

/// Draws whole numbers from a stream that is chosen by a purpose and a seed.
pub(crate) struct Draws {
    reader: blake3::OutputReader,
    buffer: [u8; BUFFER_BYTES],
    used: usize,
}

/// Sixteen output blocks: enough to fill the widest vector units, small enough to stay in the first cache.
const BUFFER_BYTES: usize = 1024;

impl Draws {
    /// Begins the stream of `purpose`, a string that stands for one use in this crate alone.
    pub(crate) fn new(purpose: &'static str, seeds: &[u64]) -> Draws {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        for seed in seeds {
            hasher.update(&seed.to_le_bytes());
        }
        Draws { reader: hasher.finalize_xof(), buffer: [0; BUFFER_BYTES], used: BUFFER_BYTES }
    }

    /// Draws a byte.
    pub(crate) fn byte(&mut self) -> u8 {
        if self.used == BUFFER_BYTES {
            self.reader.fill(&mut self.buffer);
            self.used = 0;
        }
        let byte = self.buffer[self.used];
        self.used += 1;
        byte
    }

    /// Draws a number of 64 bits.
    pub(crate) fn word(&mut self) -> u64 {
        let mut bytes = [0; 8];
        for byte in &mut bytes {
            *byte = self.byte();
        }
        u64::from_le_bytes(bytes)
    }

    /// Draws a number below `bound`, each with the same chance; `bound` is 1 to 256.
    ///
    /// A byte is drawn again where taking the remainder would favour the small numbers.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        assert!((1..=256).contains(&bound), "a draw below {bound} does not fit a byte");
        let fair = 256 - 256 % bound;
        loop {
            let byte = usize::from(self.byte());
            if byte < fair {
                return byte % bound;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_repeated_by_its_seed_and_by_nothing_else() {
        let first = |purpose, seeds: &[u64]| Draws::new(purpose, seeds).word();
        assert_eq!(first("a", &[1, 2]), first("a", &[1, 2]));
        assert_ne!(first("a", &[1, 2]), first("b", &[1, 2]));
        assert_ne!(first("a", &[1, 2]), first("a", &[2, 1]));
    }

    #[test]
    fn every_number_below_the_bound_comes_about_as_often() {
        let mut draws = Draws::new("test", &[3]);
        // 150 does not divide 256: a plain remainder would favour the numbers below 106 two to one.
        let mut seen = [0_u32; 150];
        for _ in 0..150_000 {
            seen[draws.below(150)] += 1;
        }
        // Six standard deviations of a binomial count are about 190.
        assert!(seen.iter().all(|&count| count.abs_diff(1000) < 190), "{seen:?}");
    }
}
