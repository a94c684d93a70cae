//! The rebalancing call of the contest: peers move from the fastest layer to the slowest while that helps.
//!
//! Owns the rule, a simple one that is the same for all who compete. Knows only what was seen of each peer's work.

use trestle_protocol::time::Span;

/// Moves after an epoch: few, since each makes a peer fetch a layer's weights.
const MOVES_MAX: usize = 4;

/// A move must raise the throughput of the slowest layer by this many percent, or it is noise.
const GAIN_PERCENT_MIN: f64 = 5.0;

/// What was seen of a peer in an epoch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Work that it answered.
    pub units: u64,
    /// Time for which it computed.
    pub busy: Span,
}

impl Seen {
    /// Work a second; 0 of a peer that answered nothing.
    fn rate(self) -> f64 {
        if self.units == 0 { 0.0 } else { self.units as f64 / self.busy.as_secs_f64() }
    }
}

/// Moves peers between layers, and returns who went where.
pub fn rebalance(seen: &[Seen], at: &mut [usize], layers: usize) -> Vec<(usize, usize)> {
    let mut moves = Vec::new();
    while moves.len() < MOVES_MAX {
        let Some((peer, to)) = best_move(seen, at, layers) else { break };
        at[peer] = to;
        moves.push((peer, to));
    }
    moves
}

fn best_move(seen: &[Seen], at: &[usize], layers: usize) -> Option<(usize, usize)> {
    let mut rates = vec![0.0; layers];
    for (peer, layer) in at.iter().enumerate() {
        rates[*layer] += seen[peer].rate();
    }
    let by_rate = |a: &usize, b: &usize| rates[*a].total_cmp(&rates[*b]);
    let (slowest, fastest) = (0..layers).min_by(by_rate).zip((0..layers).max_by(by_rate))?;
    let others = (0..layers).filter(|layer| *layer != slowest && *layer != fastest);
    let third = others.map(|layer| rates[layer]).fold(f64::INFINITY, f64::min);
    let least_after = |peer: usize| {
        let rate = seen[peer].rate();
        (rates[slowest] + rate).min(rates[fastest] - rate).min(third)
    };
    let candidates = (0..at.len()).filter(|peer| at[*peer] == fastest && seen[*peer].units > 0);
    let peer = candidates.max_by(|a, b| least_after(*a).total_cmp(&least_after(*b)))?;
    let gains = least_after(peer) > rates[slowest] * (1.0 + GAIN_PERCENT_MIN / 100.0);
    gains.then_some((peer, slowest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(units: &[u64]) -> Vec<Seen> {
        units.iter().map(|units| Seen { units: *units, busy: Span::seconds(1) }).collect()
    }

    #[test]
    fn the_slowest_layer_is_helped_until_it_no_longer_pays() {
        let mut at = [0, 0, 0, 0, 1, 1];
        assert_eq!(rebalance(&seen(&[4, 2, 1, 1, 2, 1]), &mut at, 2), [(1, 1)]);
        assert_eq!(at, [0, 1, 0, 0, 1, 1]);
        assert_eq!(rebalance(&seen(&[4, 4]), &mut [0, 1], 2), [], "nor is a layer emptied");
    }
}
