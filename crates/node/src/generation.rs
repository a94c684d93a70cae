//! Which of the seats that a process holds one after the other an answer belongs to.
//!
//! Owns the count and the mark. Knows nothing of what is computed, or of why a seat is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the seats: a worker that loses its place and takes another holds a later one. The driver counts up; the threads
/// that compute leave undone what was asked for an earlier one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generation(Arc<AtomicU64>);

/// Something that belongs to one seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamped<T> {
    pub(crate) generation: u64,
    pub(crate) what: T,
}

impl Generation {
    /// Begins the next seat.
    pub(crate) fn advance(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// Marks something as the present seat's.
    pub(crate) fn stamp<T>(&self, what: T) -> Stamped<T> {
        Stamped { generation: self.0.load(Ordering::Acquire), what }
    }

    /// Gives back what is the present seat's.
    pub(crate) fn current<T>(&self, stamped: Stamped<T>) -> Option<T> {
        (stamped.generation == self.0.load(Ordering::Acquire)).then_some(stamped.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_former_seat_is_dropped() {
        let generation = Generation::default();
        let thread = generation.clone();
        let early = generation.stamp("asked of the first seat");
        assert_eq!(thread.current(early), Some("asked of the first seat"));
        generation.advance();
        let late = generation.stamp("asked of the second");
        assert_eq!((thread.current(early), thread.current(late)), (None, Some("asked of the second")));
    }
}
