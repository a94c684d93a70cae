//! Shares: how much of the parameters each replica reduces, so that no uplink is waited for longer than need be.
//!
//! Owns the solution of one small optimisation. Knows nothing of who measured the uplinks.

use alloc::vec;
use alloc::vec::Vec;

/// What the shares of a round sum to.
pub const WHOLE: u32 = 65_536;

/// The least share of a replica that reduces at all, over an equal one. Uplinks change, and others measure them, who may
/// err: no measurement leaves a replica with next to nothing, and its work to the rest.
const SHARE_MIN: f64 = 0.25;

/// Halvings of the interval in which the solution lies: beyond the precision of a share.
const HALVINGS: u32 = 80;

/// Returns the share of each of n replicas, in 1/65,536, from their uplinks in any one unit.
///
/// Replica i uploads its parameters once, and each of its share's parameters to the n - 2 others: minimises the largest
/// (1 + (n - 2) w_i) / b_i with the shares w summing to 1 (butterfly all-reduce, as in arXiv 2106.10207) and none below a
/// quarter of an equal one. An uplink of 0 means a replica that only takes part as a client: its share is 0, unless all are.
pub fn shares(uplinks: &[u64]) -> Vec<u32> {
    let n = uplinks.len();
    let fastest = uplinks.iter().copied().max().unwrap_or(0);
    if n <= 2 || fastest == 0 || uplinks.iter().all(|uplink| *uplink == fastest) {
        return rounded(&vec![1.0; n]);
    }
    let speeds: Vec<f64> = uplinks.iter().map(|uplink| *uplink as f64 / fastest as f64).collect();
    let (others, least) = ((n - 2) as f64, SHARE_MIN / n as f64);
    let weight_at =
        |xi: f64, speed: f64| if speed > 0.0 { ((xi * speed - 1.0) / others).max(least) } else { 0.0 };
    let weights_at = |xi: f64| -> Vec<f64> { speeds.iter().map(|speed| weight_at(xi, *speed)).collect() };
    let (mut low, mut high) = (0.0, 1.0 + others);
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        if weights_at(middle).iter().sum::<f64>() < 1.0 { low = middle } else { high = middle }
    }
    rounded(&weights_at(high))
}

/// Returns whether these are a cut into so many shards at most, without gap.
pub fn is_cut(shares: &[u32], shards_max: usize) -> bool {
    let whole = shares.iter().try_fold(0_u32, |sum, share| sum.checked_add(*share));
    whole == Some(WHOLE) && (1..=shards_max).contains(&shares.len())
}

/// Scales weights to whole shares by the borders between them, so that the sum is exact.
fn rounded(weights: &[f64]) -> Vec<u32> {
    let sum: f64 = weights.iter().sum();
    let (mut shares, mut running, mut border) = (Vec::with_capacity(weights.len()), 0.0, 0);
    for (at, weight) in weights.iter().enumerate() {
        running += weight;
        let last = at + 1 == weights.len();
        let next = if last { WHOLE } else { ((running / sum * f64::from(WHOLE)) as u32).min(WHOLE) };
        shares.push(next - border);
        border = next;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_uplinks_share_equally_and_all_is_given_out() {
        assert_eq!(shares(&[5, 5, 5, 5]), [16_384; 4]);
        assert_eq!(shares(&[0, 0]), [32_768; 2]);
        assert_eq!(shares(&[7]), [65_536]);
        for uplinks in [&[1, 2, 3][..], &[100, 1, 1, 1], &[3, 0, 9, 4, 4], &[u64::MAX, 1, 1]] {
            assert_eq!(shares(uplinks).iter().sum::<u32>(), WHOLE, "{uplinks:?}");
        }
    }

    #[test]
    fn the_slowest_upload_is_as_fast_as_it_can_be() {
        let uplinks = [4_u64, 2, 1, 3];
        let cost = |shares: &[u32]| {
            let upload = |(share, uplink): (&u32, &u64)| {
                (1.0 + 2.0 * f64::from(*share) / f64::from(WHOLE)) / *uplink as f64
            };
            shares.iter().zip(&uplinks).map(upload).fold(0.0, f64::max)
        };
        let best = shares(&uplinks);
        assert!(
            cost(&best) < 1.126,
            "{best:?}: bound by the slowest's own upload and the share that is left to it"
        );
        assert!(cost(&[WHOLE / 4; 4]) > 1.4);
    }

    #[test]
    fn however_slow_one_is_a_quarter_of_an_equal_share_is_left_to_it() {
        for uplinks in [&[1_000_000_u64, 1, 1_000_000, 1_000_000][..], &[1, 1, 1, u64::MAX], &[9, 1, 2]] {
            let shares = shares(uplinks);
            let least = WHOLE / 4 / uplinks.len() as u32;
            assert!(shares.iter().all(|share| *share >= least), "{shares:?}, least {least}");
            assert_eq!(shares.iter().sum::<u32>(), WHOLE);
        }
    }

    #[test]
    fn a_client_reduces_nothing() {
        assert_eq!(shares(&[10, 0, 10])[1], 0);
    }
}
