//! Owns the codec of two bytes a number: the upper half of the f32, rounded to nearest, little endian, in unit order.

use crate::outer::codec::mean::weighted_mean;
use crate::outer::codec::numbers::{check, check_len, from_bf16, to_bf16};
use crate::outer::codec::{Codec, CodecError, Read, Visit};
use crate::outer::layout::{Shard, UNIT_ELEMENTS_MAX};

/// Numbers with eight bits of exponent and seven of fraction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bf16;

impl Codec for Bf16 {
    fn encoded_len(&self, shard: &Shard<'_>) -> usize {
        2 * shard.elements()
    }

    fn encode_units(&self, shard: &Shard<'_>, read: Read<'_>) -> Result<Vec<u8>, CodecError> {
        let mut bytes = vec![0; self.encoded_len(shard)];
        let mut unit = [0.0; UNIT_ELEMENTS_MAX];
        for range in shard.units() {
            let values = &mut unit[..range.len()];
            read(range.clone(), values);
            // The bound is a bf16 itself, so rounding does not cross it.
            check(values, range.start)?;
            let slots = bytes[2 * range.start..2 * range.end].as_chunks_mut::<2>().0;
            for (slot, &value) in slots.iter_mut().zip(&*values) {
                *slot = to_bf16(value).to_le_bytes();
            }
        }
        Ok(bytes)
    }

    fn decode_units(&self, shard: &Shard<'_>, bytes: &[u8], visit: Visit<'_>) -> Result<(), CodecError> {
        check_len(bytes, self.encoded_len(shard))?;
        let mut unit = [0.0; UNIT_ELEMENTS_MAX];
        for range in shard.units() {
            let values = &mut unit[..range.len()];
            let slots = bytes[2 * range.start..2 * range.end].as_chunks::<2>().0;
            for (value, &slot) in values.iter_mut().zip(slots) {
                *value = from_bf16(u16::from_le_bytes(slot));
            }
            check(values, range.start)?;
            visit(range, values);
        }
        Ok(())
    }

    fn reduce(&self, shard: &Shard<'_>, parts: &[(u64, &[u8])]) -> Result<Vec<u8>, (usize, CodecError)> {
        let mean = weighted_mean(self, shard, parts)?;
        Ok(self.encode(shard, &mean).expect("a mean of numbers within the bound is within it"))
    }

    fn mean_units(&self, shard: &Shard<'_>, result: &[u8], visit: Visit<'_>) -> Result<(), CodecError> {
        self.decode_units(shard, result, visit)
    }
}
