//! Owns the way of tokens into a tensor and of a tensor's numbers out of it. It may not know what they mean.

use tch::{Device, Kind, TchError, Tensor};

/// Turns token ids into an i64 tensor of `rows` rows.
pub(crate) fn indices(tokens: &[u32], rows: i64, device: Device) -> Result<Tensor, TchError> {
    let tokens: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
    Tensor::f_from_slice(&tokens)?.f_reshape([rows, -1])?.f_to_device(device)
}

/// Returns a tensor's numbers as f32, row major.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let flat = tensor.f_detach()?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?.f_reshape([-1])?;
    let mut numbers = vec![0.0; flat.numel()];
    flat.f_copy_data(&mut numbers, flat.numel())?;
    Ok(numbers)
}
