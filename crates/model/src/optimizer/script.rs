//! Owns the way to ATen's fused AdamW kernel.
//!
//! The Rust bindings carry no `_fused_adamw_`: their generator leaves out functions that return nothing. libtorch itself
//! finds every ATen function by name when it runs TorchScript, so the call is three lines of that language, packed here
//! into the archive that libtorch loads (a zip file with the source and an empty module's pickle). It may not know what
//! the tensors mean.

use std::io::{Cursor, Write};

use tch::{CModule, IValue, TchError, Tensor};
use zip::CompressionMethod;
use zip::write::{FileOptions, ZipWriter};

const SOURCE: &str = "\
class Kernels(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  def adamw(self: __torch__.Kernels,
    values: List[Tensor],
    gradients: List[Tensor],
    first: List[Tensor],
    second: List[Tensor],
    steps: List[Tensor],
    rate: float,
    beta1: float,
    beta2: float,
    decay: float,
    epsilon: float) -> NoneType:
    torch._fused_adamw_(values, gradients, first, second, annotate(List[Tensor], []), steps, lr=rate, beta1=beta1, \
beta2=beta2, weight_decay=decay, eps=epsilon, amsgrad=False, maximize=False)
    return None
";

/// An instance of `Kernels` whose only attribute is `training = True` (pickle protocol 2).
const INSTANCE: &[u8] = b"\x80\x02c__torch__\nKernels\n)\x81}X\x08\x00\x00\x00training\x88sb.";

/// An empty tuple (pickle protocol 2).
const CONSTANTS: &[u8] = b"\x80\x02).";

/// The numbers of one AdamW update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AdamwNumbers {
    pub(crate) rate: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) decay: f64,
    pub(crate) epsilon: f64,
}

/// libtorch's fused kernel, ready to be called.
#[derive(Debug)]
pub(crate) struct FusedAdamw {
    module: CModule,
}

impl FusedAdamw {
    /// Loads the kernel.
    ///
    /// # Errors
    /// libtorch has no such function.
    pub(crate) fn load() -> Result<FusedAdamw, TchError> {
        let archive = archive()?;
        Ok(FusedAdamw { module: CModule::load_data(&mut archive.as_slice())? })
    }

    /// Updates all `values`, `first` and `second` in place with one call: on the processor one pass over memory per
    /// tensor, on CUDA a few launches for all. `steps` counts this update too, so it starts at 1.
    ///
    /// # Errors
    /// libtorch's refusals: unlike lists, shapes or devices.
    pub(crate) fn update(
        &self,
        values: &[&Tensor],
        gradients: &[&Tensor],
        first: &[Tensor],
        second: &[Tensor],
        steps: &Tensor,
        numbers: AdamwNumbers,
    ) -> Result<(), TchError> {
        let borrowed =
            |tensors: &[&Tensor]| tensors.iter().map(|tensor| tensor.shallow_clone()).collect::<Vec<_>>();
        let owned = |tensors: &[Tensor]| tensors.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
        let AdamwNumbers { rate, beta1, beta2, decay, epsilon } = numbers;
        let arguments = [
            IValue::TensorList(borrowed(values)),
            IValue::TensorList(borrowed(gradients)),
            IValue::TensorList(owned(first)),
            IValue::TensorList(owned(second)),
            IValue::TensorList(values.iter().map(|_| steps.shallow_clone()).collect()),
            IValue::Double(rate),
            IValue::Double(beta1),
            IValue::Double(beta2),
            IValue::Double(decay),
            IValue::Double(epsilon),
        ];
        self.module.method_is("adamw", &arguments).map(drop)
    }
}

fn archive() -> Result<Vec<u8>, TchError> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = FileOptions::default().compression_method(CompressionMethod::Stored);
    let files: [(&str, &[u8]); 4] = [
        ("kernels/data.pkl", INSTANCE),
        ("kernels/code/__torch__.py", SOURCE.as_bytes()),
        ("kernels/constants.pkl", CONSTANTS),
        // The format version that bears on how the source is read.
        ("kernels/version", b"3\n"),
    ];
    for (name, content) in files {
        zip.start_file(name, stored)?;
        zip.write_all(content)?;
    }
    Ok(zip.finish()?.into_inner())
}
