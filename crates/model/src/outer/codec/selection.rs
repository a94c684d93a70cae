//! Owns the choice of a unit's largest numbers. It may not know how they are written.
//!
//! Which numbers are chosen is a matter of their magnitudes' bits and, among equals, of the lower index, so it is the same
//! on every machine and for every way of searching.

use crate::outer::layout::UNIT_ELEMENTS_MAX;

/// Groups whose largest members bound the choice from below. Many more than are chosen make the bound tight; few make it
/// cheap to find. Measured best of 128, 256 and 512 for 64 of 4096.
const GROUPS: usize = 256;

/// Working memory of the search, used again for every unit.
#[derive(Debug)]
pub(crate) struct Selection {
    /// Each candidate's magnitude above its inverted index: the larger key is chosen first.
    candidates: Vec<u64>,
    ranked: Vec<u64>,
}

impl Selection {
    pub(crate) fn new() -> Selection {
        let room = || Vec::with_capacity(UNIT_ELEMENTS_MAX);
        Selection { candidates: room(), ranked: room() }
    }

    /// Writes the indices of the `indices.len()` largest magnitudes, in ascending order. There are at least as many values,
    /// at least one is chosen, and all are finite.
    pub(crate) fn largest(&mut self, values: &[f32], indices: &mut [u16]) {
        let count = indices.len();
        self.collect(values, floor(values, count));
        self.ranked.clone_from(&self.candidates);
        let (_, &mut last, _) = self.ranked.select_nth_unstable_by(count - 1, |left, right| right.cmp(left));
        let chosen = self.candidates.iter().filter(|&&key| key >= last);
        for (slot, key) in indices.iter_mut().zip(chosen) {
            *slot = !(*key as u32) as u16;
        }
    }

    /// Lists the values whose magnitude is at least `floor`, in the order of their indices.
    fn collect(&mut self, values: &[f32], floor: i32) {
        /// Values looked at together: few enough that most such blocks hold no candidate.
        const BLOCK: usize = 16;
        self.candidates.clear();
        for (block, values) in values.chunks(BLOCK).enumerate() {
            if values.iter().fold(false, |any, value| any | (magnitude(value) >= floor)) {
                for (place, value) in values.iter().enumerate() {
                    if magnitude(value) >= floor {
                        let index = (block * BLOCK + place) as u32;
                        self.candidates.push((magnitude(value) as u64) << 32 | u64::from(!index));
                    }
                }
            }
        }
    }
}

/// Returns a number's magnitude as an integer in the same order; signed, because that is what the oldest vector units
/// compare.
fn magnitude(value: &f32) -> i32 {
    value.abs().to_bits() as i32
}

/// Returns a magnitude that at least `count` values reach: the `count`-th largest of the groups' maxima, for each of those
/// is a value of its own.
fn floor(values: &[f32], count: usize) -> i32 {
    if values.len() < UNIT_ELEMENTS_MAX || count > GROUPS {
        return 0;
    }
    let mut maxima = [0; GROUPS];
    for row in values.chunks_exact(GROUPS) {
        for (most, value) in maxima.iter_mut().zip(row) {
            *most = magnitude(value).max(*most);
        }
    }
    *maxima.select_nth_unstable_by(count - 1, |left, right| right.cmp(left)).1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sorts everything.
    fn reference(values: &[f32], count: usize) -> Vec<u16> {
        let mut order: Vec<u16> = (0..values.len() as u16).collect();
        order.sort_by(|&left, &right| {
            let by = |index: u16| values[usize::from(index)].abs();
            by(right).total_cmp(&by(left)).then(left.cmp(&right))
        });
        order.truncate(count);
        order.sort_unstable();
        order
    }

    fn check(values: &[f32], count: usize) {
        let mut indices = vec![0; count];
        let mut selection = Selection::new();
        // Twice: nothing may be left of the unit before.
        for _ in 0..2 {
            selection.largest(values, &mut indices);
            assert_eq!(indices, reference(values, count));
        }
    }

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next() * next() * next()).collect()
    }

    #[test]
    fn the_largest_are_those_of_a_full_sort() {
        for seed in 0..20 {
            check(&noise(4096, seed), 64);
            check(&noise(64 * 31, seed), 31);
            check(&noise(7, seed), 1);
        }
    }

    #[test]
    fn among_equals_the_first_are_chosen() {
        check(&[0.0; 4096], 64);
        check(&[-1.5; 4096], 64);
        let stepped: Vec<f32> = noise(4096, 3).iter().map(|value| (value * 4.0).round() / 4.0).collect();
        check(&stepped, 64);
        let mut few = vec![0.0; 4096];
        few[4095] = f32::MIN_POSITIVE / 2.0;
        few[17] = -1e30;
        check(&few, 64);
    }

    #[test]
    fn a_row_or_a_column_may_hold_all() {
        let mut row = noise(4096, 1);
        row[640..704].iter_mut().for_each(|value| *value += 10.0);
        check(&row, 64);
        let mut column = noise(4096, 2);
        column.iter_mut().skip(5).step_by(64).for_each(|value| *value -= 10.0);
        check(&column, 64);
    }
}
