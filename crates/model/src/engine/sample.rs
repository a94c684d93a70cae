//! Owns the choice of a next token from logits. It may not know where they come from.

use crate::initial::{mix, uniform};

/// Chooses a token: the likeliest at temperature 0, else drawn from `softmax(logits / temperature)`.
///
/// `index` numbers the draws of one seed. A draw that rounding leaves over goes to the last token that can be drawn.
pub(crate) fn choose(logits: &[f32], temperature: f64, seed: u64, index: u64) -> u32 {
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = token;
        }
    }
    if temperature == 0.0 {
        return best as u32;
    }
    let top = f64::from(logits[best]);
    let weights: Vec<f64> = logits.iter().map(|&l| ((f64::from(l) - top) / temperature).exp()).collect();
    let mut left = uniform(mix(seed, index)) * weights.iter().sum::<f64>();
    let mut chosen = best;
    for (token, weight) in weights.into_iter().enumerate() {
        if weight > 0.0 {
            chosen = token;
            left -= weight;
            if left <= 0.0 {
                break;
            }
        }
    }
    chosen as u32
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn temperature_zero_takes_the_likeliest() {
        assert_eq!(choose(&[0.0, 3.0, 2.9], 0.0, 1, 0), 1);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0, f32::ln(3.0), f32::NEG_INFINITY];
        let mut counts = [0; 3];
        for index in 0..4000 {
            counts[choose(&logits, 1.0, 5, index) as usize] += 1;
        }
        // Expected 1000 and 3000, standard deviation 27.
        assert!((900..1100).contains(&counts[0]), "{counts:?}");
        assert_eq!(counts[2], 0);
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens() {
        let draws =
            |seed| (0..50).map(|index| choose(&[0.1, 0.2, 0.3, 0.4], 1.0, seed, index)).collect::<Vec<_>>();
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }
}
