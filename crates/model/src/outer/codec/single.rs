//! Owns the codec that loses nothing: four bytes a number, little endian, in unit order.

use crate::outer::codec::mean::weighted_mean;
use crate::outer::codec::numbers::{check, check_len, get, put};
use crate::outer::codec::{Codec, CodecError, Read, Visit};
use crate::outer::layout::{Shard, UNIT_ELEMENTS_MAX};

/// Numbers as they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Single;

impl Codec for Single {
    fn encoded_len(&self, shard: &Shard<'_>) -> usize {
        4 * shard.elements()
    }

    fn encode_units(&self, shard: &Shard<'_>, read: Read<'_>) -> Result<Vec<u8>, CodecError> {
        let mut bytes = vec![0; self.encoded_len(shard)];
        let mut unit = [0.0; UNIT_ELEMENTS_MAX];
        for range in shard.units() {
            let values = &mut unit[..range.len()];
            read(range.clone(), values);
            check(values, range.start)?;
            put(values, &mut bytes[4 * range.start..4 * range.end]);
        }
        Ok(bytes)
    }

    fn decode_units(&self, shard: &Shard<'_>, bytes: &[u8], visit: Visit<'_>) -> Result<(), CodecError> {
        check_len(bytes, self.encoded_len(shard))?;
        let mut unit = [0.0; UNIT_ELEMENTS_MAX];
        for range in shard.units() {
            let values = &mut unit[..range.len()];
            get(&bytes[4 * range.start..4 * range.end], values);
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
