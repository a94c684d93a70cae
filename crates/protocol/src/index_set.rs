//! A set of indices that fills up nearly in order: a watermark and what lies beyond it.
//!
//! Owns that one container. Its memory is what is out of order, not what is done.

use alloc::collections::BTreeSet;
use serde::{Deserialize, Serialize};

/// A set of `u64` that holds everything below its watermark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexSet {
    start: u64,
    watermark: u64,
    beyond: BTreeSet<u64>,
}

impl IndexSet {
    /// Makes a set that holds everything below `start`, which `len` does not count.
    pub fn starting_at(start: u64) -> Self {
        Self { start, watermark: start, beyond: BTreeSet::new() }
    }

    /// Returns whether an index is in the set.
    pub fn contains(&self, index: u64) -> bool {
        index < self.watermark || self.beyond.contains(&index)
    }

    /// Adds an index; returns whether it is new.
    pub fn insert(&mut self, index: u64) -> bool {
        if self.contains(index) {
            return false;
        }
        self.beyond.insert(index);
        while self.beyond.remove(&self.watermark) {
            self.watermark += 1;
        }
        true
    }

    /// Returns the lowest index that is not in the set.
    pub fn watermark(&self) -> u64 {
        self.watermark
    }

    /// Returns whether it is one that [`IndexSet::insert`] can have made, as a set that was read from a disk may not be.
    pub fn is_sound(&self) -> bool {
        self.start <= self.watermark && self.beyond.first().is_none_or(|index| *index > self.watermark)
    }

    /// Returns the index that it started at.
    pub fn starting(&self) -> u64 {
        self.start
    }

    /// Lists what is missing below an index, lowest first.
    pub fn missing_below(&self, end: u64) -> impl Iterator<Item = u64> + '_ {
        (self.watermark..end).filter(|index| !self.beyond.contains(index))
    }

    /// Returns how many indices were added.
    pub fn len(&self) -> u64 {
        self.watermark - self.start + self.beyond.len() as u64
    }

    /// Returns whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_follows_what_is_complete() {
        let mut set = IndexSet::starting_at(10);
        assert!(set.insert(12) && set.insert(11) && !set.insert(12) && !set.insert(3));
        assert_eq!((set.watermark(), set.len()), (10, 2));
        assert!(set.insert(10));
        assert_eq!((set.watermark(), set.len(), set.beyond.len()), (13, 3, 0));
        assert!(set.is_sound());
        let unsound = IndexSet { start: 5, watermark: 4, beyond: BTreeSet::new() };
        assert!(!unsound.is_sound());
        assert!(!set.is_empty() && set.contains(9) && !set.contains(13));
        assert!(set.insert(15));
        assert_eq!(set.missing_below(17).collect::<alloc::vec::Vec<_>>(), [13, 14, 16]);
    }
}
