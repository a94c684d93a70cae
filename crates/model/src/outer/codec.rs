//! Owns what every codec of pseudo-gradients has in common: the trait, and why bytes are refused. It may not know what is
//! averaged, nor who sent it.
//!
//! Bytes come from peers and are hostile until decoded: their length is compared before anything is read, every number,
//! index and scale is checked, and nothing is allocated by what they say. The same numbers give the same bytes on any
//! machine: arithmetic is plain f32 (and f64 in one order), without fused operations.

pub(crate) mod bf16;
pub(crate) mod int8;
pub(crate) mod mean;
pub(crate) mod numbers;
pub(crate) mod packing;
pub(crate) mod selection;
pub(crate) mod single;
pub(crate) mod sparse;

use std::ops::Range;

use crate::outer::layout::Shard;

/// Fills in the numbers of one unit; the range is counted from the shard's start.
pub type Read<'a> = &'a mut dyn FnMut(Range<usize>, &mut [f32]);

/// Takes the numbers of one unit; the range is counted from the shard's start.
pub type Visit<'a> = &'a mut dyn FnMut(Range<usize>, &[f32]);

/// One way of writing a shard of a pseudo-gradient as bytes, and of averaging what several replicas wrote.
///
/// Numbers pass unit by unit through callbacks, so that no caller needs a second copy of its shard.
pub trait Codec: Sync {
    /// Returns how many bytes a contribution of this shard takes, whatever its numbers.
    fn encoded_len(&self, shard: &Shard<'_>) -> usize;

    /// Encodes the numbers that `read` supplies, one unit at a time and in order.
    ///
    /// # Errors
    /// A number that no reader would take: not finite, or above 2^60, also after rounding.
    fn encode_units(&self, shard: &Shard<'_>, read: Read<'_>) -> Result<Vec<u8>, CodecError>;

    /// Decodes a contribution, and hands the numbers of each unit to `visit` in order.
    ///
    /// # Errors
    /// Bytes that no [`Codec::encode_units`] writes; some units may have been visited by then.
    fn decode_units(&self, shard: &Shard<'_>, bytes: &[u8], visit: Visit<'_>) -> Result<(), CodecError>;

    /// Reduces contributions `(weight, bytes)`, in the order given, to what all replicas receive.
    ///
    /// The weights' sum is at least 1 and fits u64.
    ///
    /// # Errors
    /// The index of the first contribution that cannot be decoded, and why.
    fn reduce(&self, shard: &Shard<'_>, parts: &[(u64, &[u8])]) -> Result<Vec<u8>, (usize, CodecError)>;

    /// Decodes what [`Codec::reduce`] returned, and hands the mean of each unit to `visit` in order.
    ///
    /// # Errors
    /// Bytes that no [`Codec::reduce`] returns; some units may have been visited by then.
    fn mean_units(&self, shard: &Shard<'_>, result: &[u8], visit: Visit<'_>) -> Result<(), CodecError>;

    /// Encodes a shard's numbers.
    ///
    /// # Errors
    /// Those of [`Codec::encode_units`].
    fn encode(&self, shard: &Shard<'_>, values: &[f32]) -> Result<Vec<u8>, CodecError> {
        assert_eq!(values.len(), shard.elements(), "as many numbers as the shard has elements");
        self.encode_units(shard, &mut |range, into| into.copy_from_slice(&values[range]))
    }

    /// Decodes a contribution into a shard's numbers.
    ///
    /// # Errors
    /// Those of [`Codec::decode_units`]; `into` is then partly overwritten.
    fn decode(&self, shard: &Shard<'_>, bytes: &[u8], into: &mut [f32]) -> Result<(), CodecError> {
        assert_eq!(into.len(), shard.elements(), "as many numbers as the shard has elements");
        self.decode_units(shard, bytes, &mut |range, values| into[range].copy_from_slice(values))
    }
}

/// Why bytes are no shard, or numbers may not become one. Elements, units and entries are counted from the shard's start.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum CodecError {
    /// There are too many bytes or too few.
    #[error("got {got} bytes, expected {expected}")]
    Length {
        /// How many there are.
        got: usize,
        /// How many the shard takes.
        expected: usize,
    },
    /// A number is not finite, or absurdly large.
    #[error("element {index} is {value}, expected a finite number of at most 2^60")]
    Number {
        /// Which element.
        index: usize,
        /// What it is.
        value: f32,
    },
    /// A scale is negative, not finite, or absurdly large.
    #[error(
        "the scale of unit {unit} is {value}, expected a finite number of at least 0 and at most 2^60 / 127"
    )]
    Scale {
        /// Which unit it is for.
        unit: usize,
        /// What it is.
        value: f32,
    },
    /// An eight-bit integer is -128, which no sender writes.
    #[error("element {index} is coded as -128, expected -127 to 127")]
    Integer {
        /// Which element.
        index: usize,
    },
    /// An index points beyond its unit.
    #[error("entry {entry} of unit {unit} has index {index}, expected below {elements}")]
    Index {
        /// Which unit.
        unit: usize,
        /// Which of its entries.
        entry: usize,
        /// Where it points.
        index: usize,
        /// How many elements the unit has.
        elements: usize,
    },
    /// An index repeats or precedes the one before it.
    #[error("entry {entry} of unit {unit} has index {index} after {previous}, expected a larger one")]
    Order {
        /// Which unit.
        unit: usize,
        /// Which of its entries.
        entry: usize,
        /// Where it points.
        index: usize,
        /// Where the entry before it points.
        previous: usize,
    },
    /// Bits that mean nothing are not zero.
    #[error("unit {unit} has bits set after its last entry, expected zeros")]
    Padding {
        /// Which unit.
        unit: usize,
    },
    /// An entry of a codebook is not finite, or absurdly large.
    #[error(
        "entry {entry} of the codebook for unit {unit} on is {value}, expected a finite number of at most 2^60"
    )]
    Codebook {
        /// The first unit it is for.
        unit: usize,
        /// Which entry.
        entry: usize,
        /// What it is.
        value: f32,
    },
    /// A result is said to be of nobody, or of contributors without weight or of more than fits u64.
    #[error("the result's {count} contributors have a total weight of {weight}, expected 1 to 2^64 - 1")]
    Contributors {
        /// How many it names.
        count: usize,
        /// What their weights sum to.
        weight: u128,
    },
}
