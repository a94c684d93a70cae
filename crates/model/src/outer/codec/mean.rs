//! Owns the weighted mean of contributions. It may not know how they are encoded.

use crate::outer::codec::numbers::MAGNITUDE_MAX;
use crate::outer::codec::{Codec, CodecError};
use crate::outer::layout::Shard;

/// Returns `sum(w x) / sum(w)` over the contributions `(w, x)` in the order given, accumulated in f32.
///
/// # Errors
/// The index of the first contribution that `codec` cannot decode, and why.
pub(crate) fn weighted_mean(
    codec: &dyn Codec,
    shard: &Shard<'_>,
    parts: &[(u64, &[u8])],
) -> Result<Vec<f32>, (usize, CodecError)> {
    let mut sums = vec![0.0; shard.elements()];
    for (part, &(weight, bytes)) in parts.iter().enumerate() {
        let weight = weight as f32;
        codec
            .decode_units(shard, bytes, &mut |range, values| add(&mut sums[range], weight, values))
            .map_err(|reason| (part, reason))?;
    }
    divide(&mut sums, total(parts.iter().map(|&(weight, _)| weight)));
    Ok(sums)
}

/// Returns the sum of the weights as the divisor of a mean.
pub(crate) fn total(weights: impl Iterator<Item = u64>) -> f32 {
    weights.sum::<u64>() as f32
}

/// Adds `weight * values` to `sums`.
pub(crate) fn add(sums: &mut [f32], weight: f32, values: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += weight * value;
    }
}

/// Divides sums by the total weight. Rounding may carry a mean of numbers at the bound beyond it, where no reader would
/// take it, so it is held there.
pub(crate) fn divide(sums: &mut [f32], total: f32) {
    for sum in sums {
        *sum = (*sum / total).clamp(-MAGNITUDE_MAX, MAGNITUDE_MAX);
    }
}
