//! Owns Muon (K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024): a momentum per matrix,
//! and the update by its nearest orthogonal matrix. It may not know which matrices it is given, nor the schedule.
//!
//! Legend: n matrices of one shape, r rows, c columns.

use tch::{TchError, Tensor};

use crate::config::Dtype;
use crate::optimizer::config::OptimizerConfig;

/// Coefficients of the odd polynomial `a x + b x³ + c x⁵` that drives singular values towards 1, chosen by Muon's authors
/// for the steepest slope at zero.
const POLYNOMIAL: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);

/// Newton-Schulz steps: singular values end between about 0.7 and 1.2 for all but the smallest.
const STEPS: usize = 5;

/// Root mean square of an update's entries for a matrix of full rank, where AdamW's lie
/// (Moonlight, arXiv 2502.16982, section 2.2).
const UPDATE_RMS: f64 = 0.2;

/// Guards the division by a zero gradient's norm.
const NORM_MIN: f64 = 1e-7;

/// Elements of one batch of matrices: small matrices gain 2 to 5 times by going together, large ones nothing, and the
/// intermediate copies of a batch must stay small beside the weights.
const BATCH_NUMEL_MAX: i64 = 1 << 22;

/// Returns how many matrices of this many elements go into one batch.
pub(crate) fn batch_len(numel: i64) -> usize {
    usize::try_from(BATCH_NUMEL_MAX / numel.max(1)).map_or(1, |count| count.max(1))
}

/// Muon over a few matrices of one shape, computed together.
#[derive(Debug)]
pub(crate) struct Muon {
    /// Running mean of the gradients, f32.
    pub(crate) momentum_nrc: Tensor,
}

impl Muon {
    /// Makes a zero momentum beside `values`, which are matrices of one shape, at least one.
    pub(crate) fn new(values: &[&Tensor]) -> Result<Muon, TchError> {
        let (r, c) = values[0].size2()?;
        let options = (values[0].f_kind()?, values[0].device());
        Ok(Muon { momentum_nrc: Tensor::f_zeros([values.len() as i64, r, c], options)? })
    }

    /// Updates `values` in place:
    /// `m = mu m + (1 - mu) g`, `u = NS((1 - mu) g + mu m)`, `w = (1 - rate decay) w - rate 0.2 sqrt(max(r, c)) u`.
    pub(crate) fn update(
        &mut self,
        values: &[&Tensor],
        gradients: &[&Tensor],
        config: &OptimizerConfig,
        factor: f64,
    ) -> Result<(), TchError> {
        let rate = config.muon_rate() * factor;
        let (_, r, c) = self.momentum_nrc.size3()?;
        let gradient_nrc = Tensor::f_stack(gradients, 0)?;
        let _ = self.momentum_nrc.f_lerp_(&gradient_nrc, 1.0 - config.muon_momentum)?;
        let ahead_nrc = gradient_nrc.f_lerp(&self.momentum_nrc, config.muon_momentum)?;
        drop(gradient_nrc);
        let mut update_nrc = orthogonalised(&ahead_nrc, config.muon_dtype)?;
        let _ = update_nrc.f_mul_scalar_(rate * UPDATE_RMS * (r.max(c) as f64).sqrt())?;
        for (index, value) in values.iter().enumerate() {
            let mut value = value.shallow_clone();
            let _ = value.f_mul_scalar_(1.0 - rate * config.weight_decay)?;
            let _ = value.f_sub_(&update_nrc.f_get(index as i64)?)?;
        }
        Ok(())
    }
}

/// Returns, in f32, the matrices with the same singular vectors and singular values near 1.
fn orthogonalised(x_nrc: &Tensor, dtype: Dtype) -> Result<Tensor, TchError> {
    let (_, r, c) = x_nrc.size3()?;
    let (a, b, c5) = POLYNOMIAL;
    // The smaller Gram matrix is that of the short side.
    let turned = r > c;
    let x_nsl = if turned { x_nrc.f_transpose(1, 2)? } else { x_nrc.shallow_clone() };
    let norm_n11 = x_nsl.f_norm_scalaropt_dim(2, [1, 2], true)?.f_clamp_min(NORM_MIN)?;
    let mut x_nsl = x_nsl.f_div(&norm_n11)?.f_to_kind(dtype.kind())?;
    for _ in 0..STEPS {
        let gram_nss = x_nsl.f_bmm(&x_nsl.f_transpose(1, 2)?)?;
        let weight_nss = gram_nss.f_baddbmm(&gram_nss, &gram_nss, b, c5)?;
        x_nsl = x_nsl.f_baddbmm(&weight_nss, &x_nsl, a, 1.0)?;
    }
    let x_nrc = if turned { x_nsl.f_transpose(1, 2)? } else { x_nsl };
    x_nrc.f_to_kind(Dtype::F32.kind())
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn uneven(shape: &[i64], seed: f64) -> Tensor {
        let numel: i64 = shape.iter().product();
        ((Tensor::arange(numel, (Kind::Double, Device::Cpu)) + seed) * 12.9898)
            .sin()
            .f_mul_scalar(43.758)
            .expect("scale")
            .sin()
            .to_kind(Kind::Float)
            .reshape(shape)
    }

    /// The update of one matrix as the paper writes it, in double precision and without a batch.
    struct Reference {
        value: Tensor,
        momentum: Tensor,
    }

    impl Reference {
        fn update(&mut self, gradient: &Tensor, rate: f64, momentum: f64, decay: f64) {
            let gradient = gradient.to_kind(Kind::Double);
            self.momentum = &self.momentum * momentum + &gradient * (1.0 - momentum);
            let ahead = &gradient * (1.0 - momentum) + &self.momentum * momentum;
            let (r, c) = ahead.size2().expect("a matrix");
            let mut x = if r > c { ahead.tr() } else { ahead };
            x = &x / x.norm();
            for _ in 0..5 {
                let gram = x.matmul(&x.tr());
                let weight: Tensor = &gram * 4.7750 - gram.matmul(&gram) * 2.0315;
                x = &x * 3.4445 - weight.matmul(&x);
            }
            let update = if r > c { x.tr() } else { x };
            let scale = 0.2 * (r.max(c) as f64).sqrt();
            self.value = &self.value * (1.0 - rate * decay) - update * (rate * scale);
        }
    }

    #[test]
    fn the_update_follows_the_paper_wide_square_and_tall() {
        let config = OptimizerConfig { learning_rate: 2e-2, ..OptimizerConfig::default() };
        for shape in [[24, 40], [32, 32], [40, 24], [1, 9]] {
            let values: Vec<Tensor> = (0..3).map(|index| uneven(&shape, f64::from(index) * 0.37)).collect();
            let borrowed: Vec<&Tensor> = values.iter().collect();
            let mut references: Vec<Reference> = values
                .iter()
                .map(|value| Reference {
                    value: value.to_kind(Kind::Double),
                    momentum: value.to_kind(Kind::Double) * 0.0,
                })
                .collect();
            let mut muon = Muon::new(&borrowed).expect("matrices");
            for step in 1..=4 {
                let factor = f64::from(step) / 4.0;
                let gradients: Vec<Tensor> =
                    (0..3).map(|index| uneven(&shape, f64::from(10 * step + index)) * 0.01).collect();
                muon.update(&borrowed, &gradients.iter().collect::<Vec<_>>(), &config, factor)
                    .expect("update");
                for (reference, gradient) in references.iter_mut().zip(&gradients) {
                    reference.update(gradient, 2e-2 * factor, 0.95, 0.1);
                }
            }
            for (reference, value) in references.iter().zip(&values) {
                let apart = (value.to_kind(Kind::Double) - &reference.value).abs().max().double_value(&[]);
                assert!(apart < 2e-5, "{shape:?}: {apart}");
            }
        }
    }

    /// What five steps make of a singular value that has this share of the matrix's norm.
    fn driven(share: f64) -> f64 {
        (0..5).fold(share, |x, _| 3.4445 * x - 4.7750 * x.powi(3) + 2.0315 * x.powi(5))
    }

    #[test]
    fn singular_values_are_driven_to_one_and_vectors_stay() {
        for (dtype, tolerance) in [(Dtype::F32, 2e-5), (Dtype::Bf16, 0.1)] {
            for shape in [[2, 48, 80], [2, 80, 48]] {
                let x_nrc = uneven(&shape, 0.5);
                let y_nrc = orthogonalised(&x_nrc, dtype).expect("matrices");
                assert_eq!((y_nrc.size(), y_nrc.kind()), (shape.to_vec(), Kind::Float));
                for index in 0..2 {
                    let (x_rc, y_rc) =
                        (x_nrc.get(index).to_kind(Kind::Double), y_nrc.get(index).to_kind(Kind::Double));
                    let (u, values, v) = x_rc.svd(true, true);
                    let norm = x_rc.norm().double_value(&[]);
                    let shares = Vec::<f64>::try_from(values / norm).expect("one dimension");
                    let want: Vec<f64> = shares.iter().map(|&share| driven(share)).collect();
                    let near_one = shares.iter().zip(&want).filter(|&(&share, _)| share > 0.02);
                    assert!(near_one.into_iter().all(|(_, value)| (0.6..1.25).contains(value)), "{want:?}");
                    // In the singular vectors of x, y is diagonal and holds the values that the polynomial makes.
                    let apart = u.tr().matmul(&y_rc).matmul(&v) - Tensor::from_slice(&want).diag(0);
                    let apart = apart.abs().max().double_value(&[]);
                    assert!(apart < tolerance, "{dtype:?} {shape:?}: {apart}");
                }
            }
        }
    }

    #[test]
    fn a_zero_gradient_moves_nothing() {
        let value = uneven(&[8, 8], 0.1);
        let before = value.copy();
        let config = OptimizerConfig { weight_decay: 0.0, ..OptimizerConfig::default() };
        let mut muon = Muon::new(&[&value]).expect("a matrix");
        muon.update(&[&value], &[&value.zeros_like()], &config, 1.0).expect("update");
        assert_eq!(value, before);
    }

    #[test]
    fn an_update_has_the_size_of_adamws() {
        let value = Tensor::zeros([64, 96], (Kind::Float, Device::Cpu));
        let config = OptimizerConfig { learning_rate: 1.0, ..OptimizerConfig::default() };
        let mut muon = Muon::new(&[&value]).expect("a matrix");
        muon.update(&[&value], &[&uneven(&[64, 96], 0.2)], &config, 1.0).expect("update");
        let rms = value.square().mean(Kind::Double).sqrt().double_value(&[]);
        assert!((0.15..0.25).contains(&rms), "{rms}");
    }

    #[test]
    fn a_batch_holds_at_least_one_matrix_and_a_bounded_number_of_elements() {
        assert_eq!(batch_len(i64::MAX), 1);
        assert_eq!(batch_len(BATCH_NUMEL_MAX), 1);
        assert_eq!(batch_len(BATCH_NUMEL_MAX / 8), 8);
        assert_eq!(batch_len(0), BATCH_NUMEL_MAX as usize);
    }
}
