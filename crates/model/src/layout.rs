//! Owns the list of parameters that the modules of a stage ask for while they are declared, and the places where their
//! tensors will be found. It may not know what the modules compute.

use tch::Tensor;

use crate::parameter::{Initial, ParameterSpec, Role};

/// Standard deviation of every matrix at the start, unless its module says otherwise (GPT-2, section 2.3).
pub(crate) const DEVIATION: f64 = 0.02;

/// The place of one parameter among the tensors of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(usize);

impl Slot {
    /// Returns the parameter's tensor.
    pub(crate) fn of(self, weights: &[Tensor]) -> &Tensor {
        &weights[self.0]
    }
}

/// The parameters declared so far, in the order of their slots.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    specs: Vec<ParameterSpec>,
    stage: usize,
}

impl Layout {
    /// Makes what is declared from here on belong to `stage`.
    pub(crate) fn enter(&mut self, stage: usize) {
        self.stage = stage;
    }

    /// Declares a matrix that maps `input` numbers to `output` numbers, stored `[output, input]`.
    pub(crate) fn matrix(
        &mut self,
        name: String,
        output: usize,
        input: usize,
        role: Role,
        deviation: f64,
    ) -> Slot {
        self.add(name, vec![output as i64, input as i64], role, Initial::Normal(deviation))
    }

    /// Declares the gain of an RMS norm.
    pub(crate) fn gain(&mut self, name: String, width: usize) -> Slot {
        self.add(name, vec![width as i64], Role::Norm, Initial::Ones)
    }

    /// Returns the declared parameters.
    pub(crate) fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    fn add(&mut self, name: String, shape: Vec<i64>, role: Role, initial: Initial) -> Slot {
        self.specs.push(ParameterSpec { name, shape, stage: self.stage, role, initial });
        Slot(self.specs.len() - 1)
    }
}
