//! Owns the reading of libtorch's failures, which come as text. It may not know what was being done.

use tch::{Device, Kind, TchError, Tensor};

/// Returns whether libtorch says that memory ran out.
///
/// The phrases are those of its allocators: c10/core/CPUAllocator.cpp and c10/core/impl/alloc_cpu.cpp,
/// c10/cuda/CUDACachingAllocator.cpp, aten/src/ATen/mps/MPSAllocator.mm, and cuBLAS for its own workspace.
pub(crate) fn is_out_of_memory(error: &TchError) -> bool {
    const PHRASES: [&str; 4] =
        ["out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED"];
    let text = error.to_string();
    PHRASES.iter().any(|phrase| text.contains(phrase))
}

/// Returns libtorch's words on one line, without the C++ stack that it appends and without a full stop.
pub(crate) fn brief(error: &TchError) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("Internal torch error: ").unwrap_or(&text);
    let end = text.find("Exception raised from").or_else(|| text.find("frame #0")).unwrap_or(text.len());
    text[..end].split_whitespace().collect::<Vec<_>>().join(" ").trim_end_matches('.').to_string()
}

/// Returns libtorch's words for refusing a device that it says is not available.
pub(crate) fn refusal(device: Device) -> String {
    match Tensor::f_empty([1], (Kind::Float, device)) {
        Err(error) => brief(&error),
        Ok(_) => "libtorch says that it is not available, and does not say why".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_trace_is_cut_away() {
        let text = "The size of tensor a (3) must match.\nException raised from infer_size at /pytorch/aten:35 (most \
                    recent call first):\nframe #0: c10::Error";
        assert_eq!(brief(&TchError::Torch(text.to_string())), "The size of tensor a (3) must match");
    }

    #[test]
    fn a_wrong_shape_is_no_lack_of_memory() {
        assert!(!is_out_of_memory(&TchError::Torch("mat1 and mat2 shapes cannot be multiplied".to_string())));
    }
}
