//! Owns the way of a tensor to bytes and back: little-endian numbers in row-major order, nothing else.
//!
//! What crosses a stage boundary is checked here both ways: its length, and that every number is finite. It may not know
//! who sent the bytes or what they mean.

use tch::{Device, TchError, Tensor};

use crate::config::Dtype;
use crate::failure::brief;

// libtorch stores numbers in the machine's order, and the bytes here are its storage as it lies.
const _: () = assert!(cfg!(target_endian = "little"), "the wire is little-endian");

/// Why bytes are no tensor, or a tensor may not become bytes.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The byte count does not fit the shape.
    #[error("got {got} bytes, expected {expected} for shape {shape:?} in {dtype:?}")]
    Length {
        /// Bytes given.
        got: usize,
        /// Bytes that the shape takes.
        expected: usize,
        /// The expected shape.
        shape: Vec<i64>,
        /// The expected number format.
        dtype: Dtype,
    },
    /// The shape itself is impossible.
    #[error("shape {shape:?} has a negative size or too many elements")]
    Shape {
        /// The shape asked for.
        shape: Vec<i64>,
    },
    /// A number is infinite or not a number.
    #[error("element {index} of {numel} is {value}, expected a finite number ({count} such elements)")]
    NotFinite {
        /// Where the first one is, in row-major order.
        index: usize,
        /// How many elements there are.
        numel: usize,
        /// What it is.
        value: f32,
        /// How many are not finite.
        count: usize,
    },
    /// libtorch refused to copy.
    #[error("copying a tensor failed: {message}")]
    Torch {
        /// libtorch's words.
        message: String,
    },
}

impl CodecError {
    /// Returns advice for a person, where there is some.
    pub fn hint(&self) -> Option<String> {
        match self {
            CodecError::NotFinite { .. } => Some(
                "training diverged on the sending side; lower the learning rate, lengthen the warm-up, or set clip = 1.0"
                    .to_string(),
            ),
            CodecError::Length { .. } => {
                Some("both sides must use the same run file: boundary width, microbatch and wire format".to_string())
            }
            CodecError::Shape { .. } | CodecError::Torch { .. } => None,
        }
    }
}

impl From<TchError> for CodecError {
    fn from(error: TchError) -> CodecError {
        CodecError::Torch { message: brief(&error) }
    }
}

/// Turns a tensor of any float format on any device into `numel * dtype.bytes()` little-endian bytes.
///
/// # Errors
/// A number that is not finite after rounding to `dtype`; libtorch's refusals.
pub fn encode(tensor: &Tensor, dtype: Dtype) -> Result<Vec<u8>, CodecError> {
    let bytes = raw_bytes(&tensor.detach().f_to_kind(dtype.kind())?)?;
    refuse_not_finite(&bytes, dtype)?;
    Ok(bytes)
}

/// Turns little-endian bytes into a tensor of this shape and format on `device`.
///
/// # Errors
/// A wrong byte count, an impossible shape, a number that is not finite; libtorch's refusals (memory, device).
pub fn decode(bytes: &[u8], shape: &[i64], dtype: Dtype, device: Device) -> Result<Tensor, CodecError> {
    let expected = bytes_of(shape, dtype)?;
    if bytes.len() != expected {
        return Err(CodecError::Length { got: bytes.len(), expected, shape: shape.to_vec(), dtype });
    }
    refuse_not_finite(bytes, dtype)?;
    let tensor = Tensor::f_from_data_size(bytes, shape, dtype.kind())?;
    Ok(tensor.f_to_device(device)?)
}

/// Copies a tensor's numbers in row-major order, in their own format and without looking at them.
///
/// # Errors
/// libtorch's refusals.
pub fn raw_bytes(tensor: &Tensor) -> Result<Vec<u8>, TchError> {
    let mut bytes = vec![0; tensor.numel() * tensor.f_kind()?.elt_size_in_bytes()];
    // Copies from any device and puts any layout in row-major order first.
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

fn bytes_of(shape: &[i64], dtype: Dtype) -> Result<usize, CodecError> {
    shape
        .iter()
        .try_fold(dtype.bytes(), |product, &size| product.checked_mul(usize::try_from(size).ok()?))
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .ok_or_else(|| CodecError::Shape { shape: shape.to_vec() })
}

/// Both formats are infinite or not a number exactly when all eight exponent bits are set.
fn refuse_not_finite(bytes: &[u8], dtype: Dtype) -> Result<(), CodecError> {
    let (count, numel) = match dtype {
        Dtype::F32 => (f32_numbers(bytes).filter(|number| !number.is_finite()).count(), bytes.len() / 4),
        Dtype::Bf16 => (bf16_numbers(bytes).filter(|number| !number.is_finite()).count(), bytes.len() / 2),
    };
    if count == 0 {
        return Ok(());
    }
    let first = match dtype {
        Dtype::F32 => f32_numbers(bytes).enumerate().find(|(_, number)| !number.is_finite()),
        Dtype::Bf16 => bf16_numbers(bytes).enumerate().find(|(_, number)| !number.is_finite()),
    };
    let (index, value) = first.expect("counted above");
    Err(CodecError::NotFinite { index, numel, value, count })
}

fn f32_numbers(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|&number| f32::from_le_bytes(number))
}

/// A bf16 is the upper half of an f32.
fn bf16_numbers(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<2>().0.iter().map(|&[low, high]| f32::from_le_bytes([0, 0, low, high]))
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn sample() -> Tensor {
        Tensor::from_slice(&[1.0f32, -2.5, 3.0e-3, 0.0, 1.0e30, -7.0]).reshape([2, 3])
    }

    #[test]
    fn single_precision_comes_back_bit_for_bit() {
        let bytes = encode(&sample(), Dtype::F32).expect("finite");
        assert_eq!(bytes[..8], [0, 0, 128, 63, 0, 0, 32, 192]);
        let back = decode(&bytes, &[2, 3], Dtype::F32, Device::Cpu).expect("same shape");
        assert_eq!(back, sample());
    }

    #[test]
    fn half_width_rounds_once_and_then_stays() {
        let bytes = encode(&sample(), Dtype::Bf16).expect("finite");
        assert_eq!(bytes.len(), 12);
        assert_eq!(bytes[..4], [128, 63, 32, 192]);
        let back = decode(&bytes, &[2, 3], Dtype::Bf16, Device::Cpu).expect("same shape");
        assert_eq!(back.kind(), Kind::BFloat16);
        assert_eq!(encode(&back, Dtype::Bf16).expect("finite"), bytes);
        assert_eq!(back.to_kind(Kind::Float), sample().to_kind(Kind::BFloat16).to_kind(Kind::Float));
    }

    #[test]
    fn a_transposed_tensor_is_sent_in_row_major_order() {
        let turned = encode(&sample().transpose(0, 1), Dtype::F32).expect("finite");
        let back = decode(&turned, &[3, 2], Dtype::F32, Device::Cpu).expect("same shape");
        assert_eq!(back.transpose(0, 1), sample());
    }

    #[test]
    fn a_leaf_that_requires_a_gradient_is_sent_too() {
        let leaf = sample().set_requires_grad(true);
        assert_eq!(encode(&leaf, Dtype::F32).expect("finite").len(), 24);
    }

    #[test]
    fn a_wrong_length_is_refused() {
        for length in [0, 23, 25, 48] {
            let error = decode(&vec![0; length], &[2, 3], Dtype::F32, Device::Cpu).expect_err("length");
            assert_eq!(error.to_string(), format!("got {length} bytes, expected 24 for shape [2, 3] in F32"));
        }
    }

    #[test]
    fn an_impossible_shape_is_refused() {
        for shape in [vec![-1, 3], vec![i64::MAX, 2], vec![1 << 32, 1 << 32]] {
            let refused = decode(&[], &shape, Dtype::F32, Device::Cpu);
            assert!(matches!(refused, Err(CodecError::Shape { .. })), "{shape:?}: {refused:?}");
        }
    }

    #[test]
    fn what_is_not_finite_is_refused_both_ways() {
        for (bad, dtype) in
            [(f32::NAN, Dtype::F32), (f32::INFINITY, Dtype::Bf16), (f32::NEG_INFINITY, Dtype::F32)]
        {
            let tensor = Tensor::from_slice(&[1.0, bad, bad]);
            let error = encode(&tensor, dtype).expect_err("not finite");
            assert!(matches!(error, CodecError::NotFinite { index: 1, numel: 3, count: 2, .. }), "{error}");
            let bytes = raw_bytes(&tensor.to_kind(dtype.kind())).expect("copy");
            let error = decode(&bytes, &[3], dtype, Device::Cpu).expect_err("not finite");
            assert!(matches!(error, CodecError::NotFinite { index: 1, count: 2, .. }), "{error}");
        }
    }

    #[test]
    fn what_overflows_by_rounding_is_refused() {
        let error = encode(&Tensor::from_slice(&[f32::MAX]), Dtype::Bf16).expect_err("rounds to infinity");
        assert!(matches!(error, CodecError::NotFinite { value: f32::INFINITY, .. }), "{error}");
    }

    #[test]
    fn an_empty_tensor_is_no_bytes() {
        let empty = Tensor::zeros([0, 4], (Kind::Float, Device::Cpu));
        assert!(encode(&empty, Dtype::F32).expect("empty").is_empty());
        assert_eq!(decode(&[], &[0, 4], Dtype::F32, Device::Cpu).expect("empty").size(), [0, 4]);
    }
}
