//! Lineage: of which training microbatches weights consist, counted one by one.
//!
//! Owns the counts, their sums and differences, and how they are written. Knows nothing of how weights come about.

use bytes::Bytes;
use std::collections::BTreeMap;
use trestle_protocol::ids::Digest;

/// How often each training index is in some weights, or in a difference of weights, where it may be less than not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    counts: BTreeMap<u64, i64>,
    /// Sum of a hash of each index, so that a digest costs no walk over all of them.
    mark: u128,
}

impl Lineage {
    /// Adds an index once.
    pub fn add(&mut self, index: u64) {
        self.add_times(index, 1);
    }

    /// Adds all of another.
    pub fn add_all(&mut self, other: &Lineage) {
        other.counts.iter().for_each(|(index, times)| self.add_times(*index, *times));
    }

    /// Takes all of another off.
    pub fn take_off(&mut self, other: &Lineage) {
        other.counts.iter().for_each(|(index, times)| self.add_times(*index, -times));
    }

    fn add_times(&mut self, index: u64, times: i64) {
        let count = self.counts.entry(index).or_default();
        *count += times;
        if *count == 0 {
            self.counts.remove(&index);
        }
        self.mark = self.mark.wrapping_add(hash(index).wrapping_mul(times as u128));
    }

    /// Returns how often an index is there.
    pub fn times(&self, index: u64) -> i64 {
        self.counts.get(&index).copied().unwrap_or_default()
    }

    /// Returns each index with how often it is there, where that is not never.
    pub fn counts(&self) -> impl Iterator<Item = (u64, i64)> {
        self.counts.iter().map(|(index, times)| (*index, *times))
    }

    /// Returns how many there are, each as often as it is there.
    pub fn total(&self) -> i64 {
        self.counts.values().sum()
    }

    /// Returns whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Returns the part that falls to one of several shards.
    pub fn shard(&self, shard: usize, shards: usize) -> Lineage {
        let mut part = Lineage::default();
        let falls = |index: u64| index % (shards.max(1) as u64) == shard as u64;
        for (index, times) in self.counts().filter(|(index, _)| falls(*index)) {
            part.add_times(index, times);
        }
        part
    }

    /// Returns a digest that two lineages share if they are the same; `history` tells apart the ways by which they came.
    pub fn digest(&self, history: Digest) -> Digest {
        Digest::of(&[&self.mark.to_le_bytes()[..], &history.0].concat())
    }

    /// Writes it behind what is there already, in few bytes.
    pub fn write(&self, into: &mut Vec<u8>) {
        number(into, self.counts.len() as u64);
        let mut last = 0;
        for (index, times) in self.counts() {
            number(into, index - last);
            // The sign goes into the lowest bit, so that small numbers stay short.
            number(into, times.unsigned_abs() << 1 | u64::from(times < 0));
            last = index;
        }
    }
}

fn hash(index: u64) -> u128 {
    let bytes = *blake3::hash(&index.to_le_bytes()).as_bytes();
    u128::from_le_bytes(bytes[..16].try_into().expect("a digest has 32 bytes"))
}

/// Writes a number in groups of seven bits.
pub fn number(into: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

/// Reads back what was written, from the front.
#[derive(Debug)]
pub struct Reader<'a>(&'a Bytes, usize);

impl<'a> Reader<'a> {
    /// Begins at the front.
    pub fn new(bytes: &'a Bytes) -> Self {
        Self(bytes, 0)
    }

    /// Takes a number.
    pub fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.0.get(self.1)?;
            self.1 += 1;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// Takes a digest.
    pub fn digest(&mut self) -> Option<Digest> {
        let bytes = self.0.get(self.1..self.1 + 32)?;
        self.1 += 32;
        Some(Digest(bytes.try_into().ok()?))
    }

    /// Returns what is left.
    pub fn rest(&self) -> Bytes {
        self.0.slice(self.1..)
    }

    /// Takes a lineage.
    pub fn lineage(&mut self) -> Option<Lineage> {
        let mut lineage = Lineage::default();
        let mut index = 0_u64;
        for _ in 0..self.number()? {
            index = index.checked_add(self.number()?)?;
            let times = self.number()?;
            let size = (times >> 1) as i64;
            lineage.add_times(index, if times & 1 == 1 { -size } else { size });
        }
        Some(lineage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(of: &[u64]) -> Lineage {
        let mut lineage = Lineage::default();
        of.iter().for_each(|index| lineage.add(*index));
        lineage
    }

    #[test]
    fn sums_and_differences_count_each_index() {
        let mut sum = lineage(&[1, 2, 2]);
        sum.add_all(&lineage(&[2, 900]));
        assert_eq!(sum.counts().collect::<Vec<_>>(), [(1, 1), (2, 3), (900, 1)]);
        sum.take_off(&lineage(&[1, 7]));
        assert_eq!(sum.counts().collect::<Vec<_>>(), [(2, 3), (7, -1), (900, 1)]);
        assert_eq!((sum.total(), sum.times(7), sum.times(8)), (3, -1, 0));
        sum.add(7);
        let history = Digest([1; 32]);
        assert_eq!(sum.digest(history), lineage(&[900, 2, 2, 2]).digest(history), "whatever the order");
        assert_ne!(sum.digest(history), lineage(&[900, 2, 2]).digest(history));
        assert_ne!(sum.digest(history), sum.digest(Digest([2; 32])));
    }

    #[test]
    fn what_is_written_reads_back_and_shards_make_the_whole() {
        let mut all = lineage(&[0, 5, 5, 6, 1 << 40]);
        all.take_off(&lineage(&[3, 3]));
        let mut bytes = Vec::new();
        all.write(&mut bytes);
        number(&mut bytes, 300);
        bytes.extend([9; 32]);
        let bytes = Bytes::from(bytes);
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.lineage(), Some(all.clone()));
        assert_eq!((reader.number(), reader.digest()), (Some(300), Some(Digest([9; 32]))));
        assert_eq!((reader.number(), reader.lineage()), (None, None));
        let mut whole = Lineage::default();
        (0..3).for_each(|shard| whole.add_all(&all.shard(shard, 3)));
        assert_eq!(whole, all);
    }
}
