//! Owns the parameters' tensors: f32 masters, the leaves that autograd sees, and the sums of gradients.
//!
//! In f32 a leaf shares its master's memory; in bf16 it is a copy, refreshed after each step. A kept graph needs the
//! leaves as they were at its forward. A step therefore updates in place only when no graph holds the current leaves,
//! and otherwise leaves the old memory to those graphs and moves on to fresh tensors.

use tch::{Device, Kind, TchError, Tensor};

use crate::config::Dtype;
use crate::initial::draw;
use crate::parameter::{Parameter, ParameterSpec};

/// Whether a kept graph reads the current leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// None does: memory may be overwritten.
    Sole,
    /// At least one does: memory must stay as it is.
    Shared,
}

/// The tensors of all parameters an engine holds, in slot order.
#[derive(Debug)]
pub(crate) struct Weights {
    parameters: Vec<Parameter>,
    leaves: Vec<Tensor>,
    sums: Vec<Option<Tensor>>,
    compute: Dtype,
    /// Rises whenever the leaves change.
    generation: u64,
}

impl Weights {
    /// Draws the first weights from the seed and the parameters' names.
    pub(crate) fn new(
        specs: &[ParameterSpec],
        seed: u64,
        compute: Dtype,
        device: Device,
    ) -> Result<Weights, TchError> {
        let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
        let parameters = specs
            .iter()
            .map(|spec| {
                let numbers = draw(spec, seed, threads);
                let value = Tensor::f_from_slice(&numbers)?.f_reshape(&spec.shape)?.f_to_device(device)?;
                Ok(Parameter { name: spec.name.clone(), value, stage: spec.stage, role: spec.role })
            })
            .collect::<Result<Vec<_>, TchError>>()?;
        let leaves = parameters.iter().map(|p| leaf(&p.value, compute)).collect::<Result<_, _>>()?;
        let sums = parameters.iter().map(|_| None).collect();
        Ok(Weights { parameters, leaves, sums, compute, generation: 0 })
    }

    /// Returns the masters.
    pub(crate) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Returns the masters' tensors; they share memory with the parameters.
    pub(crate) fn values(&self) -> Vec<Tensor> {
        self.parameters.iter().map(|parameter| parameter.value.shallow_clone()).collect()
    }

    /// Returns what computation reads.
    pub(crate) fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }

    /// Returns handles of the current leaves, for a graph to keep.
    pub(crate) fn handles(&self) -> Vec<Tensor> {
        self.leaves.iter().map(Tensor::shallow_clone).collect()
    }

    /// Adds one microbatch's gradients, in slot order, to the sums. Half a sum is worth nothing: after an error there is
    /// none.
    pub(crate) fn accumulate(&mut self, gradients: Vec<Tensor>) -> Result<(), TchError> {
        let result =
            tch::no_grad(|| self.sums.iter_mut().zip(gradients).try_for_each(|(sum, each)| add(sum, &each)));
        result.inspect_err(|_| self.clear_sums())
    }

    /// Takes the sums, in slot order, or nothing when no gradient came since they were last taken.
    pub(crate) fn take_sums(&mut self) -> Option<Vec<Tensor>> {
        if self.sums.iter().any(Option::is_none) {
            return None;
        }
        Some(self.sums.iter_mut().filter_map(Option::take).collect())
    }

    /// Takes over other masters, in slot order, and forgets the sums. No graph may be in flight.
    pub(crate) fn replace(&mut self, values: Vec<Tensor>) -> Result<(), TchError> {
        tch::no_grad(|| {
            for (parameter, value) in self.parameters.iter_mut().zip(values) {
                parameter.value.f_copy_(&value)?;
            }
            Ok::<(), TchError>(())
        })?;
        self.clear_sums();
        self.refresh(Sharing::Sole)
    }

    /// Prepares the masters for an update in place: where a graph reads their memory, they move to a copy.
    pub(crate) fn unshare(&mut self, sharing: Sharing) -> Result<(), TchError> {
        match (sharing, self.compute) {
            (Sharing::Shared, Dtype::F32) => {
                for parameter in &mut self.parameters {
                    let mut copy = parameter.value.f_empty_like()?;
                    copy.f_copy_(&parameter.value)?;
                    parameter.value = copy;
                }
                Ok(())
            }
            (Sharing::Shared, Dtype::Bf16) | (Sharing::Sole, Dtype::F32 | Dtype::Bf16) => Ok(()),
        }
    }

    /// Returns the number of the current leaves: those of two moments are the same, memory and all, where this is.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes the leaves follow the masters after an update.
    pub(crate) fn refresh(&mut self, sharing: Sharing) -> Result<(), TchError> {
        self.generation += 1;
        tch::no_grad(|| {
            for (leaf_now, parameter) in self.leaves.iter_mut().zip(&self.parameters) {
                match (sharing, self.compute) {
                    (Sharing::Sole, Dtype::F32) => {}
                    (Sharing::Sole, Dtype::Bf16) => leaf_now.f_copy_(&parameter.value)?,
                    (Sharing::Shared, Dtype::F32 | Dtype::Bf16) => {
                        *leaf_now = leaf(&parameter.value, self.compute)?
                    }
                }
            }
            Ok(())
        })
    }

    /// Returns the sums of gradients, in slot order; absent where no gradient came since the last step.
    pub(crate) fn sums(&self) -> &[Option<Tensor>] {
        &self.sums
    }

    /// Takes over sums of gradients, in slot order and of the parameters' shapes.
    pub(crate) fn set_sums(&mut self, sums: Vec<Tensor>) {
        self.sums = sums.into_iter().map(Some).collect();
    }

    fn clear_sums(&mut self) {
        self.sums.iter_mut().for_each(|sum| *sum = None);
    }

    /// Returns the bytes of masters, of separate leaves, and of gradient sums.
    pub(crate) fn bytes(&self) -> (u64, u64, u64) {
        let count =
            |tensors: &mut dyn Iterator<Item = &Tensor>| tensors.map(|t| t.numel() as u64).sum::<u64>();
        let masters = 4 * count(&mut self.parameters.iter().map(|parameter| &parameter.value));
        let leaves = match self.compute {
            Dtype::F32 => 0,
            Dtype::Bf16 => masters / 2,
        };
        (masters, leaves, 4 * count(&mut self.sums.iter().flatten()))
    }
}

/// Adds a gradient of any format to a sum. The first becomes the sum: no zeros to make and none to add to.
fn add(sum: &mut Option<Tensor>, gradient: &Tensor) -> Result<(), TchError> {
    match sum {
        Some(sum) => sum.f_add_(gradient).map(drop),
        None => {
            *sum = Some(gradient.f_to_kind(Kind::Float)?.f_contiguous()?);
            Ok(())
        }
    }
}

fn leaf(value: &Tensor, compute: Dtype) -> Result<Tensor, TchError> {
    value.f_detach()?.f_to_kind(compute.kind())?.f_set_requires_grad(true)
}
