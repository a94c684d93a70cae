//! Capacity: what free slots are worth, ln(1 + slots) + epsilon, in integers.
//!
//! Owns the formula. Knows nothing of whose slots they are.

/// Fixed point of a capacity.
pub(crate) const ONE: u64 = 1 << 10;

/// Added always, a quarter. A peer without a free slot would otherwise be worth nothing, and when each peer has one slot, and
/// that one is taken, no peer could be chosen. Chosen so, a peer costs 2.8 + 1 times what its last slot costs, which is little
/// enough for it to have its turn again soon after.
const EPSILON: u64 = ONE / 4;

/// ln 2.
const LN_2: u64 = 710;

/// Binary digits of the fraction of a logarithm.
const FRACTION_BITS: u32 = 10;

/// Returns the capacity of a peer with so many free slots. The logarithm makes the first slots count most: a peer with twice
/// the slots is not twice as fast.
pub(crate) fn capacity(free: u32) -> u64 {
    log2(u64::from(free) + 1) * LN_2 / ONE + EPSILON
}

/// Returns the binary logarithm, rounded down: the place of the highest bit, and then a digit from each squaring of what is
/// left between 1 and 2.
fn log2(number: u64) -> u64 {
    let whole = number.ilog2();
    let mut mantissa = (u128::from(number) << 32) >> whole;
    let mut log = u64::from(whole);
    for _ in 0..FRACTION_BITS {
        mantissa = (mantissa * mantissa) >> 32;
        let digit = mantissa >> 33;
        mantissa >>= digit;
        log = log * 2 + digit as u64;
    }
    log
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_right_to_a_hundredth() {
        for (free, thousandths) in [(0, 0), (1, 693), (2, 1_099), (5, 1_792), (9, 2_303), (1_000_000, 13_816)]
        {
            let got = (capacity(free) - EPSILON) * 1_000 / ONE;
            assert!(got.abs_diff(thousandths) <= 2 + thousandths / 1_000, "ln(1 + {free}): {got}");
        }
        assert!(capacity(u32::MAX) > capacity(u32::MAX / 2));
    }

    #[test]
    fn without_a_slot_a_peer_is_worth_something() {
        assert!(capacity(0) > 0 && capacity(0) < capacity(1));
    }
}
