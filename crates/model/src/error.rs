//! Owns the errors of a model: what failed, for whom, with which values, and what to do about it.
//!
//! It may not know how a caller recovers.

use tch::TchError;

use crate::codec::CodecError;
use crate::config::ConfigError;
use crate::device::DeviceError;
use crate::failure::{brief, is_out_of_memory};
use crate::input::InputError;

/// Why building, running or updating a model failed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The model's shape is impossible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What the caller handed over does not fit the model.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Bytes from outside are no tensor of the expected kind, or a tensor must not leave as it is.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The device has no memory left.
    #[error("out of memory during {what}: {message}")]
    OutOfMemory {
        /// What was being done.
        what: String,
        /// libtorch's words.
        message: String,
    },
    /// Any other refusal of libtorch.
    #[error("libtorch failed during {what}: {message}")]
    Torch {
        /// What was being done.
        what: String,
        /// libtorch's words, without its stack trace.
        message: String,
    },
    /// A setting of the optimizer, the schedule or the clip lies outside its range.
    #[error("{field} is {value}, expected {expected}")]
    Setting {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: f64,
        /// The values taken.
        expected: &'static str,
    },
    /// The gradient of a stage is not a number or not finite, so no update was made.
    #[error("gradient norm of stage {stage} is {norm}, expected a finite number")]
    GradientNotFinite {
        /// The stage.
        stage: usize,
        /// Its gradient's norm.
        norm: f64,
    },
    /// A list of tensors does not match the parameters, one for one.
    #[error("{what} has {got} tensors, expected {expected}")]
    TensorCount {
        /// Which list.
        what: &'static str,
        /// How many it has.
        got: usize,
        /// How many parameters there are.
        expected: usize,
    },
    /// A tensor in a list does not match its parameter.
    #[error("{what} of {name} has shape {got:?} in {kind:?}, expected {expected:?} in Float")]
    TensorForm {
        /// Which list.
        what: &'static str,
        /// The parameter.
        name: String,
        /// The tensor's shape.
        got: Vec<i64>,
        /// The tensor's number format, in libtorch's words.
        kind: tch::Kind,
        /// The parameter's shape.
        expected: Vec<i64>,
    },
    /// A saved state lacks a tensor.
    #[error("saved state has no tensor {name}")]
    StateMissing {
        /// The tensor's name.
        name: String,
    },
    /// A saved tensor has another shape.
    #[error("saved tensor {name} has shape {got:?}, expected {expected:?}")]
    StateShape {
        /// The tensor's name.
        name: String,
        /// The shape found.
        got: Vec<i64>,
        /// The shape of what it should restore.
        expected: Vec<i64>,
    },
}

impl ModelError {
    /// Says what was being done when libtorch failed; other errors name it already and stay as they are.
    #[must_use]
    pub fn during(self, doing: impl Into<String>) -> ModelError {
        match self {
            ModelError::OutOfMemory { message, .. } => {
                ModelError::OutOfMemory { what: doing.into(), message }
            }
            ModelError::Torch { message, .. } => ModelError::Torch { what: doing.into(), message },
            other @ (ModelError::Config(_)
            | ModelError::Input(_)
            | ModelError::Device(_)
            | ModelError::Codec(_)
            | ModelError::Setting { .. }
            | ModelError::GradientNotFinite { .. }
            | ModelError::TensorCount { .. }
            | ModelError::TensorForm { .. }
            | ModelError::StateMissing { .. }
            | ModelError::StateShape { .. }) => other,
        }
    }

    /// Returns advice for a person, where there is some.
    pub fn hint(&self) -> Option<String> {
        let words = match self {
            ModelError::Config(error) => return Some(error.hint()),
            ModelError::Input(error) => return Some(error.hint()),
            ModelError::Device(error) => return error.hint(),
            ModelError::Codec(error) => return error.hint(),
            ModelError::OutOfMemory { .. } => {
                "set a smaller microbatch, or retain = \"input\" to recompute activations instead of keeping them; \
                 more stages with fewer blocks each need less memory too"
            }
            ModelError::Setting { field, expected, .. } => return Some(format!("set {field} to {expected}")),
            ModelError::GradientNotFinite { .. } => {
                "the weights are as before the step; lower the learning rate, lengthen the warm-up, or set clip = 1.0"
            }
            ModelError::StateMissing { .. } | ModelError::StateShape { .. } => {
                "the checkpoint was written for another model, cut or optimizer; resume with the run file it came from"
            }
            ModelError::Torch { .. } | ModelError::TensorCount { .. } | ModelError::TensorForm { .. } => {
                return None;
            }
        };
        Some(words.to_string())
    }
}

impl From<TchError> for ModelError {
    fn from(error: TchError) -> ModelError {
        let (what, message) = ("a tensor operation".to_string(), brief(&error));
        if is_out_of_memory(&error) {
            return ModelError::OutOfMemory { what, message };
        }
        ModelError::Torch { what, message }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn exhausted_memory_is_recognised_and_hinted() {
        let texts = [
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB",
            "MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1.00 GB, max allowed: 18.13 GB)",
            "[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to \
             allocate 4 bytes. Error code 12 (Cannot allocate memory)",
        ];
        for text in texts {
            let error =
                ModelError::from(TchError::Torch(text.to_string())).during("the forward of microbatch 3");
            assert!(matches!(error, ModelError::OutOfMemory { .. }), "{error}");
            assert!(error.to_string().contains("microbatch 3"), "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("retain = \"input\"")));
        }
        let error = ModelError::from(TchError::Torch("size mismatch".to_string()));
        assert!(matches!(error, ModelError::Torch { .. }));
    }

    #[test]
    fn an_impossible_allocation_is_an_error_and_no_crash() {
        let refused = Tensor::f_empty([1_i64 << 55], (Kind::Float, Device::Cpu)).map_err(ModelError::from);
        assert!(matches!(refused, Err(ModelError::OutOfMemory { .. })), "{refused:?}");
    }

    #[test]
    fn other_errors_keep_their_own_words() {
        let error = ModelError::StateMissing { name: "adamw.first.x".into() };
        assert_eq!(error.during("loading").to_string(), "saved state has no tensor adamw.first.x");
    }
}
