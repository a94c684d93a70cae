//! Owns the bound on each stage's gradient: its norm, and the scaling that keeps it. It may not know the other stages'
//! gradients, which lie on other computers: that is why the bound is per stage.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::error::ModelError;
use crate::parameter::Parameter;

/// What became of one stage's gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StageNorm {
    /// The stage.
    pub stage: usize,
    /// Its norm before clipping, of the mean over microbatches.
    pub norm: f64,
    /// What it was multiplied with beside the division by the number of microbatches, at most 1.
    pub scale: f64,
}

/// Returns the bound of one stage's gradient norm: `clip * sqrt(stage_parameters / all_parameters)`.
///
/// If every parameter's gradient is alike in size, all stages together are then bounded by `clip`, and no stage needs to
/// hear from another.
pub fn stage_limit(clip: f64, stage_parameters: u64, all_parameters: u64) -> f64 {
    clip * (stage_parameters as f64 / all_parameters as f64).sqrt()
}

/// Divides the summed gradients by `microbatches` in place and clips each stage to `limit(stage)`, where there is one.
///
/// `gradients` are f32 and in the order of `parameters`. Returns the norms, by stage.
///
/// # Errors
/// A norm that is not finite (nothing is changed then, so the caller can refuse the step); libtorch's refusals.
pub fn average_and_clip(
    parameters: &[Parameter],
    gradients: &mut [Tensor],
    microbatches: u32,
    limit: impl Fn(usize) -> Option<f64>,
) -> Result<Vec<StageNorm>, ModelError> {
    if gradients.len() != parameters.len() {
        return Err(ModelError::TensorCount {
            what: "gradients",
            got: gradients.len(),
            expected: parameters.len(),
        });
    }
    let mean = 1.0 / f64::from(microbatches.max(1));
    let norms = tch::no_grad(|| norms(parameters, gradients))?;
    let mut stages = BTreeMap::new();
    for (stage, norm) in norms.into_iter().map(|(stage, norm)| (stage, norm * mean)) {
        if !norm.is_finite() {
            return Err(ModelError::GradientNotFinite { stage, norm });
        }
        let scale = limit(stage).filter(|&limit| norm > limit).map_or(1.0, |limit| limit / norm);
        stages.insert(stage, StageNorm { stage, norm, scale });
    }
    tch::no_grad(|| scale(parameters, gradients, &stages, mean))?;
    Ok(stages.into_values().collect())
}

/// Returns the norm of everything held: the root of the sum of the stages' squares.
pub fn total_norm(stages: &[StageNorm]) -> f64 {
    stages.iter().map(|stage| stage.norm * stage.norm).sum::<f64>().sqrt()
}

fn norms(parameters: &[Parameter], gradients: &[Tensor]) -> Result<BTreeMap<usize, f64>, ModelError> {
    let mut squares: BTreeMap<usize, f64> = BTreeMap::new();
    if gradients.is_empty() {
        return Ok(squares);
    }
    let each = gradients.iter().map(Tensor::f_norm).collect::<Result<Vec<_>, _>>()?;
    // One read for all: a read each would wait for the device as often.
    let each = Vec::<f64>::try_from(Tensor::f_stack(&each, 0)?.f_to_kind(Kind::Double)?)?;
    for (parameter, norm) in parameters.iter().zip(each) {
        *squares.entry(parameter.stage).or_default() += norm * norm;
    }
    Ok(squares.into_iter().map(|(stage, sum)| (stage, sum.sqrt())).collect())
}

fn scale(
    parameters: &[Parameter],
    gradients: &mut [Tensor],
    stages: &BTreeMap<usize, StageNorm>,
    mean: f64,
) -> Result<(), ModelError> {
    for (parameter, gradient) in parameters.iter().zip(gradients) {
        let factor = stages[&parameter.stage].scale * mean;
        if factor < 1.0 {
            let _ = gradient.f_mul_scalar_(factor)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::parameter::Role;

    /// Gradients of norm 5 in stage 0 (two tensors), 2 in stage 3.
    fn held() -> (Vec<Parameter>, Vec<Tensor>) {
        let gradients = vec![
            Tensor::from_slice(&[3.0f32, 0.0]),
            Tensor::from_slice(&[0.0f32, 2.0]),
            Tensor::from_slice(&[-4.0f32]),
        ];
        let stages = [0, 3, 0];
        let parameters = stages.iter().zip(&gradients).map(|(&stage, gradient)| Parameter {
            name: format!("p{stage}"),
            value: gradient.zeros_like(),
            stage,
            role: Role::Hidden,
        });
        (parameters.collect(), gradients)
    }

    fn close(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-6
    }

    #[test]
    fn a_stage_has_the_root_of_its_share() {
        assert!(close(stage_limit(1.0, 25, 100), 0.5));
        assert!(close(stage_limit(2.0, 100, 100), 2.0));
        let squares: f64 = [10, 20, 70].map(|count| stage_limit(1.5, count, 100).powi(2)).iter().sum();
        assert!(close(squares.sqrt(), 1.5));
    }

    #[test]
    fn only_the_stage_above_its_limit_is_scaled() {
        let (parameters, mut gradients) = held();
        let norms = average_and_clip(&parameters, &mut gradients, 1, |_| Some(2.5)).expect("finite");
        assert_eq!(norms.len(), 2);
        assert!(close(norms[0].norm, 5.0) && close(norms[0].scale, 0.5) && norms[0].stage == 0);
        assert!(close(norms[1].norm, 2.0) && norms[1].scale == 1.0 && norms[1].stage == 3);
        assert_eq!(gradients[0], Tensor::from_slice(&[1.5f32, 0.0]));
        assert_eq!(gradients[1], Tensor::from_slice(&[0.0f32, 2.0]));
        assert_eq!(gradients[2], Tensor::from_slice(&[-2.0f32]));
        assert!(close(total_norm(&norms), 29.0_f64.sqrt()));
    }

    #[test]
    fn the_limit_bears_on_the_mean_over_microbatches() {
        let (parameters, mut gradients) = held();
        let norms = average_and_clip(&parameters, &mut gradients, 4, |_| Some(1.0)).expect("finite");
        assert!(close(norms[0].norm, 1.25) && close(norms[0].scale, 0.8));
        assert!(close(norms[1].norm, 0.5) && norms[1].scale == 1.0);
        assert!(close(gradients[2].double_value(&[0]), -0.8));
        assert!(close(gradients[1].double_value(&[1]), 0.5));
    }

    #[test]
    fn without_a_limit_only_the_mean_is_taken() {
        let (parameters, mut gradients) = held();
        let norms = average_and_clip(&parameters, &mut gradients, 2, |_| None).expect("finite");
        assert!(norms.iter().all(|norm| norm.scale == 1.0));
        assert!(close(gradients[0].double_value(&[0]), 1.5));
    }

    #[test]
    fn what_is_not_finite_is_refused_and_changes_nothing() {
        for bad in [f32::NAN, f32::INFINITY] {
            let (parameters, mut gradients) = held();
            gradients[1] = Tensor::from_slice(&[bad, 2.0]);
            let error =
                average_and_clip(&parameters, &mut gradients, 4, |_| Some(1.0)).expect_err("not finite");
            assert!(matches!(error, ModelError::GradientNotFinite { stage: 3, .. }), "{error}");
            assert_eq!(gradients[0], Tensor::from_slice(&[3.0f32, 0.0]));
        }
    }

    #[test]
    fn lists_of_another_length_are_refused() {
        let (parameters, mut gradients) = held();
        let error =
            average_and_clip(&parameters, &mut gradients[..2], 1, |_| None).expect_err("one is lacking");
        assert_eq!(error.to_string(), "gradients has 2 tensors, expected 3");
        let nothing = average_and_clip(&[], &mut [], 1, |_| None).expect("nothing held");
        assert_eq!(total_norm(&nothing), 0.0);
        assert_eq!(Device::Cpu, gradients[0].device());
    }
}
