//! Owns AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2): its two moments per parameter and the update. It may
//! not know which parameters it is given, nor the schedule.

use tch::{Device, Kind, TchError, Tensor};

use crate::optimizer::config::OptimizerConfig;
use crate::optimizer::script::{AdamwNumbers, FusedAdamw};

/// AdamW over parameters that share one weight decay.
#[derive(Debug)]
pub(crate) struct Adamw {
    kernel: Kernel,
    decay: f64,
    /// Running means of the gradients and of their squares, f32, one of each per parameter.
    pub(crate) first: Vec<Tensor>,
    pub(crate) second: Vec<Tensor>,
}

/// How the update runs on this device.
#[derive(Debug)]
enum Kernel {
    /// One call for all parameters, with a scalar on the device that holds the step.
    Fused(FusedAdamw, Tensor),
    /// A handful of tensor operations per parameter.
    Plain,
}

impl Adamw {
    /// Makes zero moments beside `values`.
    pub(crate) fn new(values: &[&Tensor], decay: f64) -> Result<Adamw, TchError> {
        let device = values.first().map_or(Device::Cpu, |value| value.device());
        let kernel = match device {
            Device::Cpu | Device::Cuda(_) => {
                Kernel::Fused(FusedAdamw::load()?, Tensor::f_zeros([], (Kind::Float, device))?)
            }
            Device::Mps | Device::Vulkan => Kernel::Plain,
        };
        let zeros = || values.iter().map(|value| value.f_zeros_like()).collect::<Result<Vec<_>, _>>();
        Ok(Adamw { kernel, decay, first: zeros()?, second: zeros()? })
    }

    /// Updates `values` in place; `step` counts this update too, so it starts at 1.
    pub(crate) fn update(
        &mut self,
        values: &[&Tensor],
        gradients: &[&Tensor],
        config: &OptimizerConfig,
        factor: f64,
        step: u64,
    ) -> Result<(), TchError> {
        if values.is_empty() {
            return Ok(());
        }
        let numbers = AdamwNumbers {
            rate: config.learning_rate * factor,
            beta1: config.beta1,
            beta2: config.beta2,
            decay: self.decay,
            epsilon: config.epsilon,
        };
        match &mut self.kernel {
            Kernel::Fused(fused, steps) => {
                let _ = steps.f_fill_(step as f64)?;
                fused.update(values, gradients, &self.first, &self.second, steps, numbers)
            }
            Kernel::Plain => {
                for (index, (value, gradient)) in values.iter().zip(gradients).enumerate() {
                    plain(value, gradient, &mut self.first[index], &mut self.second[index], numbers, step)?;
                }
                Ok(())
            }
        }
    }
}

fn plain(
    value: &Tensor,
    gradient: &Tensor,
    first: &mut Tensor,
    second: &mut Tensor,
    numbers: AdamwNumbers,
    step: u64,
) -> Result<(), TchError> {
    let AdamwNumbers { rate, beta1, beta2, decay, epsilon } = numbers;
    let correction = |beta: f64| 1.0 - beta.powf(step as f64);
    let mut value = value.shallow_clone();
    let _ = first.f_lerp_(gradient, 1.0 - beta1)?;
    let _ = second.f_lerp_(&gradient.f_square()?, 1.0 - beta2)?;
    let mut root = second.f_sqrt()?;
    let _ = root.f_div_scalar_(correction(beta2).sqrt())?.f_add_scalar_(epsilon)?;
    let mut change = first.f_div(&root)?;
    let _ = change.f_mul_scalar_(rate / correction(beta1))?;
    value.f_mul_scalar_(1.0 - rate * decay)?.f_sub_(&change).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Algorithm 2, one number at a time, in double precision.
    struct Reference {
        value: Vec<f64>,
        first: Vec<f64>,
        second: Vec<f64>,
    }

    impl Reference {
        fn new(value: &Tensor) -> Reference {
            let value = numbers(value);
            Reference { first: vec![0.0; value.len()], second: vec![0.0; value.len()], value }
        }

        fn update(&mut self, gradient: &[f64], config: &OptimizerConfig, rate: f64, decay: f64, step: i32) {
            for (index, &g) in gradient.iter().enumerate() {
                let (m, v) = (&mut self.first[index], &mut self.second[index]);
                *m = config.beta1 * *m + (1.0 - config.beta1) * g;
                *v = config.beta2 * *v + (1.0 - config.beta2) * g * g;
                let m_hat = *m / (1.0 - config.beta1.powi(step));
                let v_hat = *v / (1.0 - config.beta2.powi(step));
                let value = &mut self.value[index];
                *value -= rate * (m_hat / (v_hat.sqrt() + config.epsilon) + decay * *value);
            }
        }
    }

    fn numbers(tensor: &Tensor) -> Vec<f64> {
        Vec::<f64>::try_from(tensor.to_kind(Kind::Double).reshape([-1])).expect("one dimension")
    }

    /// Numbers without a pattern that any layout mistake would keep.
    fn uneven(shape: &[i64], seed: f64) -> Tensor {
        let numel: i64 = shape.iter().product();
        ((Tensor::arange(numel, (Kind::Double, Device::Cpu)) + seed) * 12.9898)
            .sin()
            .to_kind(Kind::Float)
            .reshape(shape)
    }

    fn compare(adamw: &mut Adamw, values: &[Tensor], decay: f64) {
        let config = OptimizerConfig { learning_rate: 3e-2, ..OptimizerConfig::default() };
        let borrowed: Vec<&Tensor> = values.iter().collect();
        let mut references: Vec<Reference> = values.iter().map(Reference::new).collect();
        for step in 1..=7 {
            let factor = f64::from(step) / 7.0;
            let gradients: Vec<Tensor> = values
                .iter()
                .map(|value| uneven(&value.size(), f64::from(step)) * 0.1 / f64::from(step))
                .collect();
            adamw
                .update(
                    &borrowed,
                    &gradients.iter().collect::<Vec<_>>(),
                    &config,
                    factor,
                    step.try_into().expect("small"),
                )
                .expect("update");
            for (reference, gradient) in references.iter_mut().zip(&gradients) {
                reference.update(&numbers(gradient), &config, config.learning_rate * factor, decay, step);
            }
        }
        for (reference, value) in references.iter().zip(values) {
            for (want, got) in reference.value.iter().zip(numbers(value)) {
                assert!((want - got).abs() <= 2e-6 * want.abs().max(0.1), "{got} is not {want}");
            }
        }
    }

    fn values() -> Vec<Tensor> {
        vec![uneven(&[5, 7], 0.3), uneven(&[33], 0.7), uneven(&[1], 0.1), uneven(&[64, 130], 0.9)]
    }

    #[test]
    fn the_fused_kernel_follows_the_paper() {
        for decay in [0.0, 0.1] {
            let values = values();
            let mut adamw = Adamw::new(&values.iter().collect::<Vec<_>>(), decay).expect("kernel");
            assert!(matches!(adamw.kernel, Kernel::Fused(..)));
            compare(&mut adamw, &values, decay);
        }
    }

    #[test]
    fn the_plain_operations_follow_the_paper() {
        for decay in [0.0, 0.1] {
            let values = values();
            let mut adamw = Adamw::new(&values.iter().collect::<Vec<_>>(), decay).expect("kernel");
            adamw.kernel = Kernel::Plain;
            compare(&mut adamw, &values, decay);
        }
    }

    #[test]
    fn nothing_to_update_is_no_error() {
        let mut adamw = Adamw::new(&[], 0.1).expect("kernel");
        assert!(adamw.update(&[], &[], &OptimizerConfig::default(), 1.0, 1).is_ok());
    }
}
