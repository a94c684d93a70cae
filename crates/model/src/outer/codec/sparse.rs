//! Owns SparseLoCo's codec (arXiv 2508.15706): of each 64 x 64 chunk of a matrix the 64 largest numbers, 12 bits for where
//! each is and 2 bits for which of four values stands for it. A full unit takes 112 bytes, 0.21875 bit a number.
//!
//! The four values are the means of the chosen numbers in four bins of width 6 sigma / 4 around their mean, one codebook of
//! 16 bytes for all units of a tensor in a shard. Chunks at the edge keep one number in 64, rounded up, and fill whole bytes.
//! Vectors are a vanishing share of a model, and travel as f32.
//!
//! A mean of sparse contributions is sparse no more, so a reducer checks them and passes them on one after the other:
//! how many, their weights, and then each. Every replica computes the mean from that, in that order.

use crate::outer::codec::mean::{add, divide, total};
use crate::outer::codec::numbers::{MAGNITUDE_MAX, check, check_len, get, put};
use crate::outer::codec::packing::{
    Padding, code_bytes, get_codes, get_indices, index_bytes, put_codes, put_indices,
};
use crate::outer::codec::selection::Selection;
use crate::outer::codec::{Codec, CodecError, Read, Visit};
use crate::outer::layout::{CHUNK, Form, Piece, Shard, UNIT_ELEMENTS_MAX};

/// Of how many numbers one is kept.
const KEPT_OF: usize = 64;

/// Entries of a full unit.
const ENTRIES_MAX: usize = UNIT_ELEMENTS_MAX / KEPT_OF;

/// Bytes of a codebook: four f32.
const CODEBOOK_BYTES: usize = 16;

/// Bytes of a result's count of contributors.
const COUNT_BYTES: usize = 4;

/// Bytes of a contributor's weight.
const WEIGHT_BYTES: usize = 8;

// An index of 12 bits reaches every element of a unit and none beyond a full one.
const _: () = assert!(UNIT_ELEMENTS_MAX == 1 << 12 && ENTRIES_MAX == CHUNK);

/// The largest numbers of each chunk, with two bits each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SparseLoCo;

impl Codec for SparseLoCo {
    fn encoded_len(&self, shard: &Shard<'_>) -> usize {
        shard.pieces().map(|piece| piece_bytes(&piece)).sum()
    }

    fn encode_units(&self, shard: &Shard<'_>, read: Read<'_>) -> Result<Vec<u8>, CodecError> {
        let mut bytes = Vec::with_capacity(self.encoded_len(shard));
        let mut selection = Selection::new();
        for piece in shard.pieces() {
            match piece.form() {
                Form::Matrix { .. } => encode_matrix(&piece, read, &mut selection, &mut bytes)?,
                Form::Vector => encode_vector(&piece, read, &mut bytes)?,
            }
        }
        Ok(bytes)
    }

    fn decode_units(&self, shard: &Shard<'_>, bytes: &[u8], visit: Visit<'_>) -> Result<(), CodecError> {
        check_len(bytes, self.encoded_len(shard))?;
        mean_of(shard, &[(1, bytes)], visit)
    }

    fn reduce(&self, shard: &Shard<'_>, parts: &[(u64, &[u8])]) -> Result<Vec<u8>, (usize, CodecError)> {
        for (part, (_, bytes)) in parts.iter().enumerate() {
            self.decode_units(shard, bytes, &mut |_, _| {}).map_err(|reason| (part, reason))?;
        }
        let len = self.encoded_len(shard);
        let mut result = Vec::with_capacity(COUNT_BYTES + parts.len() * (WEIGHT_BYTES + len));
        result.extend((parts.len() as u32).to_le_bytes());
        result.extend(parts.iter().flat_map(|(weight, _)| weight.to_le_bytes()));
        parts.iter().for_each(|(_, bytes)| result.extend_from_slice(bytes));
        Ok(result)
    }

    fn mean_units(&self, shard: &Shard<'_>, result: &[u8], visit: Visit<'_>) -> Result<(), CodecError> {
        mean_of(shard, &contributions(result, self.encoded_len(shard))?, visit)
    }
}

/// Takes a result apart into weights and contributions of `len` bytes each.
fn contributions(result: &[u8], len: usize) -> Result<Vec<(u64, &[u8])>, CodecError> {
    let Some((&count, rest)) = result.split_first_chunk::<COUNT_BYTES>() else {
        return Err(CodecError::Length { got: result.len(), expected: COUNT_BYTES });
    };
    let count = u32::from_le_bytes(count) as usize;
    // Compared before anything is allocated by it.
    let expected = COUNT_BYTES.saturating_add(count.saturating_mul(WEIGHT_BYTES + len));
    check_len(result, expected)?;
    let (weights, rest) = rest.split_at(count * WEIGHT_BYTES);
    let weights: Vec<u64> =
        weights.as_chunks::<WEIGHT_BYTES>().0.iter().map(|&weight| u64::from_le_bytes(weight)).collect();
    let weight: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    if weight == 0 || weight > u128::from(u64::MAX) {
        return Err(CodecError::Contributors { count, weight });
    }
    let parts = (0..count).map(|part| &rest[part * len..(part + 1) * len]);
    Ok(weights.into_iter().zip(parts).collect())
}

fn kept(elements: usize) -> usize {
    elements.div_ceil(KEPT_OF)
}

fn matrix_unit_bytes(elements: usize) -> usize {
    index_bytes(kept(elements)) + code_bytes(kept(elements))
}

fn piece_bytes(piece: &Piece<'_>) -> usize {
    match piece.form() {
        Form::Matrix { .. } => {
            CODEBOOK_BYTES + piece.units().map(|unit| matrix_unit_bytes(unit.len())).sum::<usize>()
        }
        Form::Vector => piece.units().map(|unit| 4 * unit.len()).sum(),
    }
}

fn encode_vector(piece: &Piece<'_>, read: Read<'_>, bytes: &mut Vec<u8>) -> Result<(), CodecError> {
    let mut unit = [0.0; UNIT_ELEMENTS_MAX];
    for range in piece.units() {
        let values = &mut unit[..range.len()];
        read(range.clone(), values);
        check(values, range.start)?;
        let start = bytes.len();
        bytes.resize(start + 4 * range.len(), 0);
        put(values, &mut bytes[start..]);
    }
    Ok(())
}

fn encode_matrix(
    piece: &Piece<'_>,
    read: Read<'_>,
    selection: &mut Selection,
    bytes: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let entries = piece.units().map(|range| kept(range.len())).sum();
    let (mut indices, mut chosen) = (Vec::with_capacity(entries), Vec::with_capacity(entries));
    let mut unit = [0.0; UNIT_ELEMENTS_MAX];
    let mut places = [0; ENTRIES_MAX];
    for range in piece.units() {
        let values = &mut unit[..range.len()];
        read(range.clone(), values);
        check(values, range.start)?;
        let places = &mut places[..kept(range.len())];
        selection.largest(values, places);
        indices.extend_from_slice(places);
        chosen.extend(places.iter().map(|&place| values[usize::from(place)]));
    }
    let bins = Bins::around(&chosen);
    for entry in bins.means(&chosen) {
        bytes.extend(entry.to_le_bytes());
    }
    let mut first = 0;
    for count in piece.units().map(|range| kept(range.len())) {
        let start = bytes.len();
        bytes.resize(start + index_bytes(count) + code_bytes(count), 0);
        let (head, tail) = bytes[start..].split_at_mut(index_bytes(count));
        put_indices(&indices[first..first + count], head);
        put_codes(chosen[first..first + count].iter().map(|&value| bins.code(value)), tail);
        first += count;
    }
    Ok(())
}

/// The borders between the four bins.
#[derive(Clone, Copy, Debug)]
struct Bins {
    borders: [f32; 3],
}

impl Bins {
    /// Lays four bins of width 6 sigma / 4 around the mean of the values, of which there is at least one.
    fn around(values: &[f32]) -> Bins {
        let count = values.len() as f64;
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
        let squares: f64 = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum();
        let width = 6.0 * (squares / count).sqrt() / 4.0;
        Bins { borders: [mean - width, mean, mean + width].map(|border| border as f32) }
    }

    fn code(self, value: f32) -> u8 {
        self.borders.iter().map(|&border| u8::from(value >= border)).sum()
    }

    /// Returns the mean of the values in each bin; zero where there is none.
    fn means(self, values: &[f32]) -> [f32; 4] {
        let (mut sums, mut counts) = ([0.0; 4], [0u32; 4]);
        for &value in values {
            let bin = usize::from(self.code(value));
            sums[bin] += f64::from(value);
            counts[bin] += 1;
        }
        std::array::from_fn(|bin| (sums[bin] / f64::from(counts[bin].max(1))) as f32)
    }
}

/// Hands the weighted mean of contributions to `visit`, unit by unit. Each has the length that the shard takes.
fn mean_of(shard: &Shard<'_>, parts: &[(u64, &[u8])], visit: Visit<'_>) -> Result<(), CodecError> {
    let total = total(parts.iter().map(|&(weight, _)| weight));
    let mut sums = [0.0; UNIT_ELEMENTS_MAX];
    // All contributions are laid out alike, so one place in the bytes serves for all.
    let (mut place, mut unit) = (0, 0);
    for piece in shard.pieces() {
        let codebooks = match piece.form() {
            Form::Matrix { .. } => {
                let read = |(_, bytes): &(u64, &[u8])| codebook(&bytes[place..place + CODEBOOK_BYTES], unit);
                let codebooks = parts.iter().map(read).collect::<Result<Vec<_>, _>>()?;
                place += CODEBOOK_BYTES;
                codebooks
            }
            Form::Vector => Vec::new(),
        };
        for range in piece.units() {
            let sums = &mut sums[..range.len()];
            sums.fill(0.0);
            let len = match piece.form() {
                Form::Matrix { .. } => matrix_unit_bytes(range.len()),
                Form::Vector => 4 * range.len(),
            };
            for (part, &(weight, bytes)) in parts.iter().enumerate() {
                let (weight, bytes) = (weight as f32, &bytes[place..place + len]);
                match piece.form() {
                    Form::Matrix { .. } => add_entries(sums, weight, bytes, &codebooks[part], unit)?,
                    Form::Vector => add_dense(sums, weight, bytes, range.start)?,
                }
            }
            divide(sums, total);
            visit(range, sums);
            place += len;
            unit += 1;
        }
    }
    Ok(())
}

fn codebook(bytes: &[u8], unit: usize) -> Result<[f32; 4], CodecError> {
    let mut entries = [0.0; 4];
    get(bytes, &mut entries);
    match entries.iter().position(|entry| entry.is_nan() || entry.abs() > MAGNITUDE_MAX) {
        Some(entry) => Err(CodecError::Codebook { unit, entry, value: entries[entry] }),
        None => Ok(entries),
    }
}

fn add_entries(
    sums: &mut [f32],
    weight: f32,
    bytes: &[u8],
    codebook: &[f32; 4],
    unit: usize,
) -> Result<(), CodecError> {
    let (mut indices, mut codes) = ([0; ENTRIES_MAX], [0; ENTRIES_MAX]);
    let count = kept(sums.len());
    let (indices, codes) = (&mut indices[..count], &mut codes[..count]);
    let (head, tail) = bytes.split_at(index_bytes(count));
    match (get_indices(head, indices), get_codes(tail, codes)) {
        (Padding::Zero, Padding::Zero) => {}
        (Padding::Set, _) | (_, Padding::Set) => return Err(CodecError::Padding { unit }),
    }
    let weighted = codebook.map(|value| weight * value);
    let mut least = 0;
    for (entry, (&index, &code)) in indices.iter().zip(&*codes).enumerate() {
        let index = usize::from(index);
        if index < least {
            return Err(CodecError::Order { unit, entry, index, previous: least - 1 });
        }
        let Some(sum) = sums.get_mut(index) else {
            return Err(CodecError::Index { unit, entry, index, elements: sums.len() });
        };
        *sum += weighted[usize::from(code)];
        least = index + 1;
    }
    Ok(())
}

fn add_dense(sums: &mut [f32], weight: f32, bytes: &[u8], first: usize) -> Result<(), CodecError> {
    let mut values = [0.0; UNIT_ELEMENTS_MAX];
    let values = &mut values[..sums.len()];
    get(bytes, values);
    check(values, first)?;
    add(sums, weight, values);
    Ok(())
}
