//! Turns: a fixed pattern in which the replicas of a stage take microbatches, in proportion to their weights.
//!
//! Owns the pattern, which every peer computes alike from the same weights. Knows nothing of who measured them.

use crate::ids::ReplicaId;
use alloc::vec;
use alloc::vec::Vec;

/// Returns a pattern of turns; microbatch i falls to `turns[i % turns.len()]`.
///
/// Each replica has at least one turn, weight 0 counts as 1, and the pattern grows beyond `length` if there are more
/// replicas. The other turns are shared by the weights as Webster's method shares seats; where the weights divide
/// `length`, it is exact. The turns of a replica are spread evenly: smooth weighted round robin, as in nginx. The order
/// of the arguments is without effect; a replica is named once. Costs `length` times the replicas.
pub fn turns(weights: &[(ReplicaId, u64)], length: usize) -> Vec<ReplicaId> {
    let mut weights = weights.to_vec();
    weights.sort_unstable();
    let counts = counts(&weights, length);
    let total: i64 = counts.iter().sum();
    let mut credits = vec![0; counts.len()];
    let mut turns = Vec::new();
    for _ in 0..total {
        credits.iter_mut().zip(&counts).for_each(|(credit, count)| *credit += count);
        let next = first_greatest(&credits, |a, b| a > b);
        if let (Some((replica, _)), Some(credit)) = (weights.get(next), credits.get_mut(next)) {
            *credit -= total;
            turns.push(*replica);
        }
    }
    turns
}

/// Shares the turns: one for each, then always one to the replica with the greatest weight / (2 count + 1).
fn counts(weights: &[(ReplicaId, u64)], length: usize) -> Vec<i64> {
    let mut counts = vec![1_i64; weights.len()];
    let extra = if weights.is_empty() { 0 } else { length.saturating_sub(weights.len()) };
    for _ in 0..extra {
        let claims: Vec<(u128, u128)> = weights
            .iter()
            .zip(&counts)
            .map(|((_, weight), count)| (u128::from((*weight).max(1)), count.unsigned_abs().into()))
            .collect();
        let greater = |a: &(u128, u128), b: &(u128, u128)| a.0 * (2 * b.1 + 1) > b.0 * (2 * a.1 + 1);
        counts[first_greatest(&claims, greater)] += 1;
    }
    counts
}

/// Returns where the greatest is, the first of equals; 0 if there is none.
fn first_greatest<T>(items: &[T], greater: impl Fn(&T, &T) -> bool) -> usize {
    (1..items.len()).fold(0, |best, at| if greater(&items[at], &items[best]) { at } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rebalance::tests::Draws;

    fn pattern(weights: &[u64], length: usize) -> Vec<u16> {
        let weights: Vec<_> = (0..).map(ReplicaId).zip(weights.iter().copied()).collect();
        turns(&weights, length).into_iter().map(|replica| replica.0).collect()
    }

    fn shares(weights: &[u64], length: usize) -> Vec<usize> {
        let pattern = pattern(weights, length);
        (0..weights.len()).map(|r| pattern.iter().filter(|turn| usize::from(**turn) == r).count()).collect()
    }

    #[test]
    fn weights_become_turns() {
        assert_eq!(pattern(&[1, 2, 4], 7), [2, 1, 2, 0, 2, 1, 2]);
        assert_eq!(pattern(&[3, 3], 4), [0, 1, 0, 1]);
        assert_eq!(pattern(&[7], 3), [0, 0, 0]);
        assert_eq!(pattern(&[], 3), []);
        for (weights, length, expected) in [
            (&[1_000, 2_000, 4_000][..], 14, &[2, 4, 8][..]),
            (&[1, 1, 1], 2, &[1, 1, 1]),
            (&[0, 9], 10, &[1, 9]),
            (&[0, 0, 0], 6, &[2, 2, 2]),
            (&[1, 1_000_000], 8, &[1, 7]),
            (&[u64::MAX, u64::MAX / 3], 8, &[6, 2]),
        ] {
            assert_eq!(shares(weights, length), expected, "{weights:?} over {length}");
        }
    }

    #[test]
    fn every_peer_computes_the_same_pattern() {
        let weights = [(ReplicaId(0), 5), (ReplicaId(1), 5), (ReplicaId(4), 9)];
        let mut turned = weights;
        turned.rotate_left(1);
        assert_eq!(turns(&weights, 20), turns(&turned, 20));
    }

    #[test]
    fn turns_are_in_proportion_and_spread() {
        let mut draws = Draws(7);
        for case in 0..300 {
            let replicas = draws.within(1, 8) as usize;
            let weights: Vec<u64> = (0..replicas).map(|_| 1 << draws.within(0, 3)).collect();
            let length = draws.within(1, 64) as usize;
            let (pattern, shares) = (pattern(&weights, length), shares(&weights, length));
            assert_eq!(pattern.len(), length.max(replicas), "case {case}");
            assert!(shares.iter().all(|share| *share >= 1), "case {case}: {shares:?}");
            for (a, b) in (0..replicas).flat_map(|a| (0..replicas).map(move |b| (a, b))) {
                let ordered =
                    weights[a] < weights[b] || shares[a].abs_diff(shares[b]) <= 1 || shares[a] > shares[b];
                assert!(ordered, "case {case}: {weights:?} became {shares:?}");
            }
            for (replica, share) in shares.iter().enumerate() {
                let twice = pattern.iter().chain(&pattern).map(|turn| usize::from(*turn) == replica);
                let (mut gap, mut widest) = (0, 0);
                for mine in twice {
                    gap = if mine { 0 } else { gap + 1 };
                    widest = widest.max(gap);
                }
                let even = pattern.len().div_ceil(*share);
                assert!(widest < 2 * even, "case {case}: {replica} waits {widest} turns in {pattern:?}");
            }
        }
    }
}
