//! Lineage: of which training microbatches weights consist, counted one by one.
//!
//! Owns the counts, their sums and differences, and how they are written. Knows nothing of how weights come about.

use bytes::Bytes;
use std::collections::BTreeMap;
use trestle_protocol::ids::Digest;

/// How often each training index is in some weights, or in a difference of weights, where it may be less than not at all.
///
/// Weights consist of nearly all indices up to where a run is, once each: what is kept is how far that goes, and what differs from it.
#[derive(Clone, Debug, Default)]
pub struct Lineage {
    /// Indices below are there once, but for what differs.
    whole: u64,
    /// How much more often than that an index is there; never 0.
    apart: BTreeMap<u64, i64>,
    /// Sum of a hash of each index, so that a digest costs no walk over all of them.
    mark: u128,
}

impl PartialEq for Lineage {
    fn eq(&self, other: &Self) -> bool {
        self.mark == other.mark && self.counts().eq(other.counts())
    }
}

impl Eq for Lineage {}

impl Lineage {
    /// Adds an index once.
    pub fn add(&mut self, index: u64) {
        self.add_times(index, 1);
    }

    /// Adds all of another.
    pub fn add_all(&mut self, other: &Lineage) {
        let (low, high) = (self.whole.min(other.whole), self.whole.max(other.whole));
        self.whole = high;
        (0..low).for_each(|index| self.differ(index, 1));
        other.apart.iter().for_each(|(index, times)| self.differ(*index, *times));
        self.mark = self.mark.wrapping_add(other.mark);
        self.tidy();
    }

    /// Takes all of another off.
    pub fn take_off(&mut self, other: &Lineage) {
        let (own, others) = (core::mem::take(&mut self.whole), other.whole);
        (others..own).for_each(|index| self.differ(index, 1));
        (own..others).for_each(|index| self.differ(index, -1));
        other.apart.iter().for_each(|(index, times)| self.differ(*index, -times));
        self.mark = self.mark.wrapping_sub(other.mark);
        self.tidy();
    }

    fn add_times(&mut self, index: u64, times: i64) {
        self.differ(index, times);
        self.mark = self.mark.wrapping_add(hash(index).wrapping_mul(times as u128));
        self.tidy();
    }

    fn differ(&mut self, index: u64, times: i64) {
        let apart = self.apart.entry(index).or_default();
        *apart += times;
        if *apart == 0 {
            self.apart.remove(&index);
        }
    }

    /// Lets what is whole reach as far as it does.
    fn tidy(&mut self) {
        while self.apart.get(&self.whole) == Some(&1) {
            self.apart.remove(&self.whole);
            self.whole += 1;
        }
        while self.whole > 0 && self.apart.get(&(self.whole - 1)) == Some(&-1) {
            self.whole -= 1;
            self.apart.remove(&self.whole);
        }
    }

    /// Returns how often an index is there.
    pub fn times(&self, index: u64) -> i64 {
        i64::from(index < self.whole) + self.apart.get(&index).copied().unwrap_or_default()
    }

    /// Returns each index with how often it is there, where that is not never.
    pub fn counts(&self) -> impl Iterator<Item = (u64, i64)> {
        let beyond = self.apart.range(self.whole..).map(|(index, _)| *index);
        let all = (0..self.whole).chain(beyond);
        all.map(|index| (index, self.times(index))).filter(|(_, times)| *times != 0)
    }

    /// Returns how many there are, each as often as it is there.
    pub fn total(&self) -> i64 {
        self.whole as i64 + self.apart.values().sum::<i64>()
    }

    /// Returns whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.counts().next().is_none()
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
        let counts: Vec<(u64, i64)> = self.counts().collect();
        number(into, counts.len() as u64);
        let mut last = 0;
        for (index, times) in counts {
            number(into, index - last);
            // The sign goes into the lowest bit, so that small numbers stay short.
            number(into, times.unsigned_abs() << 1 | u64::from(times < 0));
            last = index;
        }
    }
}

/// Mixes an index: nobody forges lineages, so that what is far apart for all that occurs is far enough (splitmix64, Steele, Lea and
/// Flood, 2014).
fn hash(index: u64) -> u128 {
    let mix = |seed: u64| {
        let z = index.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    u128::from(mix(1)) << 64 | u128::from(mix(0x5851_f42d_4c95_7f2d))
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
    fn what_is_whole_is_kept_in_little_whatever_it_was_made_of() {
        let mut all = Lineage::default();
        (0..1000).rev().for_each(|index| all.add(index));
        assert_eq!((all.whole, all.apart.len()), (1000, 0));
        let mut without = all.clone();
        without.take_off(&lineage(&[5, 999]));
        assert_eq!((without.times(5), without.times(999), without.total()), (0, 0, 998));
        let mut since = without.clone();
        since.take_off(&all);
        assert_eq!(since.counts().collect::<Vec<_>>(), [(5, -1), (999, -1)]);
        since.add_all(&all);
        assert_eq!(since, without);
        since.add(5);
        since.add(999);
        assert_eq!((since == all, since.whole, since.apart.len()), (true, 1000, 0));
        let mut twice = all.clone();
        twice.add_all(&all);
        assert_eq!((twice.total(), twice.times(0), twice.times(999)), (2000, 2, 2));
        twice.take_off(&all);
        twice.take_off(&all);
        assert!(twice.is_empty());
        assert_eq!(twice.digest(Digest([0; 32])), Lineage::default().digest(Digest([0; 32])));
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
