//! Owns how an engine's numbers reach the exchange between replicas and return: master weights and mean gradients, as f32 in
//! slot order, row major. It may not know why they are exchanged, nor with whom.

use tch::{TchError, Tensor};

use crate::engine::Engine;
use crate::engine::transfer::numbers;
use crate::error::ModelError;
use crate::input::InputError;
use crate::parameter::Parameter;

impl Engine {
    /// Returns the shapes of all parameters held, in slot order.
    pub fn exchange_shapes(&self) -> Vec<Vec<usize>> {
        let sizes = |tensor: &Tensor| tensor.size().iter().map(|&size| size as usize).collect();
        self.weights.parameters().iter().map(|parameter| sizes(&parameter.value)).collect()
    }

    /// Returns the master weights.
    ///
    /// # Errors
    /// libtorch's refusals.
    pub fn masters(&self) -> Result<Vec<Vec<f32>>, ModelError> {
        let read = || -> Result<_, TchError> {
            self.weights.parameters().iter().map(|parameter| numbers(&parameter.value)).collect()
        };
        read().map_err(|error| ModelError::from(error).during("reading the weights for an exchange"))
    }

    /// Takes over other master weights. Optimizer, version and gradient sums stay as they are, and graphs in flight keep the
    /// weights of their forward, as they do at a step.
    ///
    /// # Errors
    /// A list that does not fit the shapes (nothing changes then); libtorch's refusals, after which the weights must be
    /// loaded anew.
    pub fn set_masters(&mut self, masters: &[Vec<f32>]) -> Result<(), ModelError> {
        let doing = "taking over exchanged weights";
        let masters = self.tensors("exchanged weights", masters).map_err(|error| error.during(doing))?;
        let sharing = self.sharing();
        let mut take_over = || -> Result<(), TchError> {
            self.weights.unshare(sharing)?;
            tch::no_grad(|| {
                let mut slots = self.weights.values();
                slots.iter_mut().zip(&masters).try_for_each(|(slot, master)| slot.f_copy_(master))
            })?;
            self.weights.refresh(sharing)
        };
        take_over().map_err(|error| ModelError::from(error).during(doing))
    }

    /// Returns the mean gradient that [`Engine::step`] with this many microbatches would use, before clipping: the sums
    /// since the last step over `microbatches`. The sums stay.
    ///
    /// # Errors
    /// No backward since the last step, or no microbatches; libtorch's refusals.
    pub fn gradient_mean(&self, microbatches: u32) -> Result<Vec<Vec<f32>>, ModelError> {
        let version = self.version;
        if microbatches == 0 {
            return Err(InputError::NoMicrobatches { version }.into());
        }
        let sums: Vec<&Tensor> = self.weights.sums().iter().flatten().collect();
        if sums.len() != self.weights.parameters().len() {
            return Err(InputError::NoGradient { version }.into());
        }
        let mean = 1.0 / f64::from(microbatches);
        let read = || -> Result<_, TchError> {
            tch::no_grad(|| sums.iter().map(|sum| numbers(&sum.f_mul_scalar(mean)?)).collect())
        };
        read().map_err(|error| ModelError::from(error).during("reading the gradients for an exchange"))
    }

    /// Takes over a mean gradient in place of the sums, such that [`Engine::step`] with the same number of microbatches uses
    /// it: exactly where that is a power of two, else to the rounding of one product, the same in every engine.
    ///
    /// # Errors
    /// A list that does not fit the shapes, or no microbatches (nothing changes then); libtorch's refusals.
    pub fn set_gradient_mean(&mut self, means: &[Vec<f32>], microbatches: u32) -> Result<(), ModelError> {
        if microbatches == 0 {
            return Err(InputError::NoMicrobatches { version: self.version }.into());
        }
        let doing = "taking over an exchanged gradient";
        let take_over = || -> Result<Vec<Tensor>, ModelError> {
            let means = self.tensors("the exchanged gradient", means)?;
            let factor = f64::from(microbatches);
            Ok(tch::no_grad(|| means.iter().map(|mean| mean.f_mul_scalar(factor)).collect::<Result<_, _>>())?)
        };
        let sums = take_over().map_err(|error| error.during(doing))?;
        self.weights.set_sums(sums);
        Ok(())
    }

    /// Turns a list of numbers for each parameter into tensors of the parameters' shapes, on their device.
    fn tensors(&self, what: &'static str, lists: &[Vec<f32>]) -> Result<Vec<Tensor>, ModelError> {
        let parameters = self.weights.parameters();
        if lists.len() != parameters.len() {
            return Err(ModelError::TensorCount { what, got: lists.len(), expected: parameters.len() });
        }
        let tensor = |(list, parameter): (&Vec<f32>, &Parameter)| {
            let expected = parameter.value.size();
            if list.len() != parameter.value.numel() {
                let (name, got) = (parameter.name.clone(), vec![list.len() as i64]);
                return Err(ModelError::TensorForm { what, name, got, kind: tch::Kind::Float, expected });
            }
            Ok(Tensor::f_from_slice(list)?.f_reshape(&expected)?.f_to_device(self.device)?)
        };
        lists.iter().zip(parameters).map(tensor).collect()
    }
}
