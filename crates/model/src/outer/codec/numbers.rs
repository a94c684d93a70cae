//! Owns the way of f32 numbers to bytes and back, and the bound that each has to keep. It may not know shards.

use crate::outer::codec::CodecError;

/// The largest magnitude that may travel, 2^60: no sum of such numbers, weighted by integers that together fit u64,
/// leaves the range of f32, so no contribution can turn a mean into an infinity.
pub(crate) const MAGNITUDE_MAX: f32 = (1u64 << 60) as f32;

/// Refuses numbers that are not finite or too large; `first` is the place of the first in its shard.
///
/// Compares bit patterns, which are in the order of the magnitudes and put infinities and NaN above all of them.
pub(crate) fn check(values: &[f32], first: usize) -> Result<(), CodecError> {
    let is_bad = |value: &f32| value.abs().to_bits() > MAGNITUDE_MAX.to_bits();
    // Without an early exit, so that it takes several numbers at a time.
    if values.iter().fold(0, |bad, value| bad | u32::from(is_bad(value))) == 0 {
        return Ok(());
    }
    let place = values.iter().position(is_bad).expect("found above");
    Err(CodecError::Number { index: first + place, value: values[place] })
}

/// Refuses another count of bytes.
pub(crate) fn check_len(bytes: &[u8], expected: usize) -> Result<(), CodecError> {
    if bytes.len() == expected { Ok(()) } else { Err(CodecError::Length { got: bytes.len(), expected }) }
}

/// Writes numbers into four bytes each.
pub(crate) fn put(values: &[f32], bytes: &mut [u8]) {
    for (slot, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *slot = value.to_le_bytes();
    }
}

/// Reads numbers of four bytes each, as they are.
pub(crate) fn get(bytes: &[u8], values: &mut [f32]) {
    for (value, &slot) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(slot);
    }
}

/// Rounds to the nearest bf16, ties to even, and returns its bits. The number is finite.
pub(crate) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Returns the number that a bf16's bits stand for.
pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_or_too_large_is_named() {
        assert_eq!(check(&[0.0, -MAGNITUDE_MAX, MAGNITUDE_MAX, f32::MIN_POSITIVE, -0.0], 0), Ok(()));
        for bad in [f32::INFINITY, f32::NEG_INFINITY, MAGNITUDE_MAX * 1.000_001, -f32::MAX] {
            let error = CodecError::Number { index: 12, value: bad };
            assert_eq!(check(&[1.0, 2.0, bad, bad], 10), Err(error));
        }
        for bad in [f32::NAN, -f32::NAN] {
            let refused = check(&[bad], 3).expect_err("no number");
            assert!(matches!(refused, CodecError::Number { index: 3, .. }), "{refused}");
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_and_ties_to_even() {
        let cases = [
            (1.0, 0x3f80),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (-0.0, 0x8000),
            (f32::from_bits(0xbf80_7fff), 0xbf80),
        ];
        for (value, bits) in cases {
            assert_eq!(to_bf16(value), bits, "{value}");
        }
        assert_eq!(from_bf16(0x3f81), 1.0078125);
    }

    #[test]
    fn the_bound_survives_rounding() {
        assert_eq!(from_bf16(to_bf16(MAGNITUDE_MAX)), MAGNITUDE_MAX);
    }
}
