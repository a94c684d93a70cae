//! Work that was done twice: each seat's part of it is counted once, however often it is told.
//!
//! Owns what has been counted. Knows nothing of credit.

use crate::ids::SeatId;
use alloc::collections::BTreeSet;
use serde::{Deserialize, Serialize};

/// More than the lost seats of any moment can have under way; of more than that, the oldest may be counted again.
const COUNTED_MAX: usize = 16_384;

/// The microbatches of seats that are counted already, as duplicates or as lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Twice(BTreeSet<(SeatId, u64)>);

impl Twice {
    /// Counts a seat's work on a microbatch; returns whether that is new.
    pub(super) fn count(&mut self, seat: SeatId, index: u64) -> bool {
        let new = self.0.insert((seat, index));
        if self.0.len() > COUNTED_MAX {
            self.0.pop_first();
        }
        new
    }

    /// Forgets all, where seats are numbered anew.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_once_and_keeps_the_latest_seats() {
        let mut twice = Twice::default();
        assert!(twice.count(SeatId(1), 7));
        assert!(!twice.count(SeatId(1), 7), "told again");
        assert!(twice.count(SeatId(2), 7), "another's");
        assert!((0..COUNTED_MAX as u64).all(|index| twice.count(SeatId(3), index)));
        assert_eq!(twice.0.len(), COUNTED_MAX);
        assert!(!twice.count(SeatId(3), 0), "what is forgotten is of the oldest seats");
    }
}
