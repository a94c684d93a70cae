//! The device of a process: chosen once, with its threads set before anything is computed.
//!
//! Owns that choice. May not know what is computed.

use trestle_model::device::{DeviceChoice, DeviceKind, threads};

use crate::failure::Failure;

/// Chooses the device by its name and sets the threads of computation.
pub(crate) fn prepare(name: &str, thread_count: usize) -> Result<DeviceKind, Failure> {
    let fail = |error: trestle_model::device::DeviceError| {
        let failure = Failure::misused(&error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    };
    let choice: DeviceChoice = name.parse().map_err(fail)?;
    threads(thread_count).map_err(fail)?;
    choice.resolve().map_err(fail)
}

/// Returns how many cores this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
