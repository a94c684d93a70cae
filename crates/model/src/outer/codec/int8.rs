//! Owns the codec of one byte a number: per unit a scale in f32, the largest magnitude over 127, then the numbers over the
//! scale, rounded to nearest. Full units take 8.008 bits a number.
//!
//! A mean of such numbers has no scale of its own, and travels back in bf16.

use crate::outer::codec::bf16::Bf16;
use crate::outer::codec::mean::weighted_mean;
use crate::outer::codec::numbers::{MAGNITUDE_MAX, check, check_len};
use crate::outer::codec::{Codec, CodecError, Read, Visit};
use crate::outer::layout::{Shard, UNIT_ELEMENTS_MAX};

/// Bytes of a unit's scale.
const SCALE_BYTES: usize = 4;

/// The largest integer written; -128 is not, so that the range is symmetric.
const STEPS: f32 = 127.0;

/// 1.5 * 2^23: adding it leaves an integer in the low bits of an f32's fraction, rounded to nearest, ties to even. Every
/// processor does this several numbers at a time, which is not so of a rounding instruction.
const ROUNDING: f32 = 12_582_912.0;

/// Scaled integers of eight bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Int8;

impl Codec for Int8 {
    fn encoded_len(&self, shard: &Shard<'_>) -> usize {
        shard.units().map(|range| SCALE_BYTES + range.len()).sum()
    }

    fn encode_units(&self, shard: &Shard<'_>, read: Read<'_>) -> Result<Vec<u8>, CodecError> {
        let mut bytes = vec![0; self.encoded_len(shard)];
        let mut unit = [0.0; UNIT_ELEMENTS_MAX];
        let mut rest = &mut bytes[..];
        for range in shard.units() {
            let values = &mut unit[..range.len()];
            read(range.clone(), values);
            check(values, range.start)?;
            let (head, tail) = rest.split_at_mut(SCALE_BYTES + range.len());
            encode_unit(values, head);
            rest = tail;
        }
        Ok(bytes)
    }

    fn decode_units(&self, shard: &Shard<'_>, bytes: &[u8], visit: Visit<'_>) -> Result<(), CodecError> {
        check_len(bytes, self.encoded_len(shard))?;
        let mut values = [0.0; UNIT_ELEMENTS_MAX];
        let mut rest = bytes;
        for (unit, range) in shard.units().enumerate() {
            let values = &mut values[..range.len()];
            let (head, tail) = rest.split_at(SCALE_BYTES + range.len());
            decode_unit(head, unit, range.start, values)?;
            visit(range, values);
            rest = tail;
        }
        Ok(())
    }

    fn reduce(&self, shard: &Shard<'_>, parts: &[(u64, &[u8])]) -> Result<Vec<u8>, (usize, CodecError)> {
        let mean = weighted_mean(self, shard, parts)?;
        Ok(Bf16.encode(shard, &mean).expect("a mean of numbers within the bound is within it"))
    }

    fn mean_units(&self, shard: &Shard<'_>, result: &[u8], visit: Visit<'_>) -> Result<(), CodecError> {
        Bf16.decode_units(shard, result, visit)
    }
}

fn encode_unit(values: &[f32], bytes: &mut [u8]) {
    // The largest bit pattern is that of the largest magnitude.
    let largest = values.iter().fold(0, |most: u32, value| most.max(value.abs().to_bits()));
    let scale = f32::from_bits(largest) / STEPS;
    // A scale without a full fraction would not keep the quotients within the range: such units are zero.
    let scale = if scale < f32::MIN_POSITIVE { 0.0 } else { scale };
    let (head, integers) = bytes.split_at_mut(SCALE_BYTES);
    head.copy_from_slice(&scale.to_le_bytes());
    if scale == 0.0 {
        integers.fill(0);
        return;
    }
    for (integer, value) in integers.iter_mut().zip(values) {
        *integer = (value / scale + ROUNDING).to_bits() as u8;
    }
}

fn decode_unit(bytes: &[u8], unit: usize, first: usize, values: &mut [f32]) -> Result<(), CodecError> {
    let (head, integers) = bytes.split_at(SCALE_BYTES);
    let scale = f32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    if !(0.0..=MAGNITUDE_MAX / STEPS).contains(&scale) {
        return Err(CodecError::Scale { unit, value: scale });
    }
    if integers.iter().fold(0, |bad, &integer| bad | u8::from(integer == 0x80)) != 0 {
        let place = integers.iter().position(|&integer| integer == 0x80).expect("found above");
        return Err(CodecError::Integer { index: first + place });
    }
    for (value, &integer) in values.iter_mut().zip(integers) {
        *value = f32::from(integer.cast_signed()) * scale;
    }
    Ok(())
}
