//! The order of one epoch: a permutation that is computed, not stored.
//!
//! Owns the bijection. May not know what is being put in order.

use crate::draws::Draws;

/// Gives the numbers `0..samples` in a seeded order, one at a time, in constant time and memory.
///
/// A Feistel network over the smallest even number of bits that holds `samples` is a bijection whatever its
/// round function (Luby and Rackoff, 1988). A value that lands at or above `samples` is sent through again
/// until it lands below ("cycle walking", Black and Rogaway, 2002), which keeps the bijection; the network's
/// domain is at most four times `samples`, so four passes are enough on average.
#[derive(Debug, Clone)]
pub struct Permutation {
    samples: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

/// Four rounds suffice for strong round functions; ours is a plain mixer and small domains have few bits,
/// so twice as many.
const ROUNDS: usize = 8;

impl Permutation {
    /// Makes the order of `epoch` under `seed` for a number of samples above 0.
    pub fn new(samples: u64, seed: u64, epoch: u64) -> Permutation {
        assert!(samples > 0, "there is no order of no samples");
        let mut draws = Draws::new("trestle-data 1 order of an epoch", &[seed, epoch, samples]);
        let bits = u64::BITS - (samples - 1).leading_zeros();
        Permutation { samples, half_bits: bits.div_ceil(2), keys: core::array::from_fn(|_| draws.word()) }
    }

    /// Gives the number at `index`, which is below the number of samples.
    pub fn at(&self, index: u64) -> u64 {
        assert!(index < self.samples, "position {index} is outside an epoch of {}", self.samples);
        let mut value = self.pass(index);
        while value >= self.samples {
            value = self.pass(value);
        }
        value
    }

    fn pass(&self, value: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// Mixes 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014). The added constant keeps 0 from
/// being a fixed point.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_comes_exactly_once_whatever_the_size_and_the_epoch() {
        let sizes =
            (1..=70).chain([127, 128, 129, 255, 257, 1000, 4095, 4096, 4097, 65_535, 65_537, 100_003]);
        for samples in sizes {
            for epoch in 0..3 {
                let order = Permutation::new(samples, 42, epoch);
                let mut seen = vec![false; usize::try_from(samples).expect("small")];
                for index in 0..samples {
                    let place = &mut seen[usize::try_from(order.at(index)).expect("small")];
                    assert!(!*place, "{samples} samples, epoch {epoch}: {} came twice", order.at(index));
                    *place = true;
                }
            }
        }
    }

    #[test]
    fn seed_epoch_and_size_each_change_the_order() {
        let order = |samples, seed, epoch| {
            let order = Permutation::new(samples, seed, epoch);
            (0..1000).map(|index| order.at(index)).collect::<Vec<_>>()
        };
        let one = order(1000, 1, 0);
        assert_eq!(one, order(1000, 1, 0));
        assert_ne!(one, order(1000, 2, 0));
        assert_ne!(one, order(1000, 1, 1));
        assert_ne!(one, order(1001, 1, 0));
    }

    #[test]
    fn over_many_epochs_a_sample_is_found_at_every_position_about_as_often() {
        for samples in [2_u64, 3, 7, 10, 16] {
            let epochs = 20_000;
            let mut seen = vec![vec![0_u32; 16]; 16];
            for epoch in 0..epochs {
                let order = Permutation::new(samples, 5, epoch);
                for index in 0..samples {
                    seen[usize::try_from(index).expect("small")]
                        [usize::try_from(order.at(index)).expect("small")] += 1;
                }
            }
            #[expect(clippy::cast_precision_loss, reason = "small counts")]
            let expected = epochs as f64 / samples as f64;
            for row in seen.iter().take(usize::try_from(samples).expect("small")) {
                for &count in row.iter().take(usize::try_from(samples).expect("small")) {
                    // Six standard deviations of a binomial count, so that chance does not fail it.
                    let apart = (f64::from(count) - expected).abs();
                    assert!(apart < 6.0 * expected.sqrt(), "{samples} samples: {count} against {expected}");
                }
            }
        }
    }

    #[test]
    fn the_largest_size_has_an_order() {
        let order = Permutation::new(u64::MAX, 1, 0);
        assert_ne!(order.at(0), order.at(u64::MAX - 1));
    }
}
