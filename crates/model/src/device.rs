//! Owns the choice of a device: parsing its name, saying what is seen and why the rest is not, thread counts, and the
//! measured peak of a matrix multiplication and of a copy. It may not know what is computed on it.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind, TchError, Tensor};

use crate::config::Dtype;
use crate::cuda;
use crate::failure::{brief, refusal};

/// Environment that a process must find when it starts, as `(name, value)`; whoever starts a worker sets it.
///
/// OpenMP's threads spin while they wait unless `OMP_WAIT_POLICY` says otherwise, and the variable is read once, when the
/// library loads. With several workers on one machine the spinning takes the cores that the others need: measured 4 to
/// 22 s instead of 0.35 s a step on 2 cores.
pub const ENVIRONMENT: &[(&str, &str)] = &[("OMP_WAIT_POLICY", "PASSIVE")];

/// More threads than any machine in sight has cores.
pub const THREADS_MAX: usize = 4096;

/// libtorch holds the index in eight bits with a sign (c10/core/Device.h).
const CUDA_INDEX_MAX: usize = 127;

/// A device that computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by its index.
    Cuda(usize),
    /// The GPU of an Apple chip.
    Mps,
}

impl DeviceKind {
    /// Returns libtorch's name of the device.
    pub fn device(self) -> Device {
        match self {
            DeviceKind::Cpu => Device::Cpu,
            DeviceKind::Cuda(index) => {
                cuda::load();
                Device::Cuda(index)
            }
            DeviceKind::Mps => Device::Mps,
        }
    }

    /// Checks that the device can be used in this process.
    ///
    /// # Errors
    /// [`DeviceError::Absent`] with the reason.
    pub fn check(self) -> Result<DeviceKind, DeviceError> {
        let seen = match self {
            DeviceKind::Cpu => Ok(()),
            DeviceKind::Cuda(index) => cuda::check(index),
            DeviceKind::Mps => mps_reason(),
        };
        seen.map(|()| self).map_err(|reason| DeviceError::Absent { device: self, reason })
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceKind::Cpu => write!(f, "cpu"),
            DeviceKind::Cuda(index) => write!(f, "cuda:{index}"),
            DeviceKind::Mps => write!(f, "mps"),
        }
    }
}

/// What a person asked for: one device, or the best there is.
///
/// Its text is `auto`, `cpu`, `cuda` (the first), `cuda:1` or `mps`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first CUDA device, else MPS, else the processor.
    #[default]
    Auto,
    /// This one, or an error.
    Only(DeviceKind),
}

impl DeviceChoice {
    /// Returns the device to use.
    ///
    /// # Errors
    /// The one asked for cannot be used; the reason is named. `auto` never fails.
    pub fn resolve(self) -> Result<DeviceKind, DeviceError> {
        match self {
            DeviceChoice::Only(kind) => kind.check(),
            DeviceChoice::Auto => Ok([DeviceKind::Cuda(0), DeviceKind::Mps]
                .into_iter()
                .find(|kind| kind.check().is_ok())
                .unwrap_or(DeviceKind::Cpu)),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<DeviceChoice, DeviceError> {
        let unknown = || DeviceError::Unknown { text: text.to_string() };
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Only(DeviceKind::Cpu)),
            "mps" => Ok(DeviceChoice::Only(DeviceKind::Mps)),
            "cuda" => Ok(DeviceChoice::Only(DeviceKind::Cuda(0))),
            other => {
                let index = other.strip_prefix("cuda:").ok_or_else(unknown)?;
                // Digits alone: `parse` would take a leading plus sign too.
                if !index.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(unknown());
                }
                let index =
                    index.parse().ok().filter(|&index| index <= CUDA_INDEX_MAX).ok_or_else(unknown)?;
                Ok(DeviceChoice::Only(DeviceKind::Cuda(index)))
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => write!(f, "auto"),
            DeviceChoice::Only(kind) => write!(f, "{kind}"),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = DeviceError;

    fn try_from(text: String) -> Result<DeviceChoice, DeviceError> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        choice.to_string()
    }
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The text names no device.
    #[error("device \"{text}\" is unknown, expected auto, cpu, cuda, cuda:INDEX or mps")]
    Unknown {
        /// What was written.
        text: String,
    },
    /// The device is not there, or libtorch cannot reach it.
    #[error("device {device} cannot be used: {reason}")]
    Absent {
        /// The device asked for.
        device: DeviceKind,
        /// Why.
        reason: String,
    },
    /// The thread count makes no sense.
    #[error("thread count is {got}, expected 1 to {THREADS_MAX}")]
    Threads {
        /// What was asked for.
        got: usize,
    },
    /// A measurement on the device failed.
    #[error("measuring {device} failed: {message}")]
    Measure {
        /// The device.
        device: DeviceKind,
        /// libtorch's words.
        message: String,
    },
}

impl DeviceError {
    /// Returns advice for a person, where there is some.
    pub fn hint(&self) -> Option<String> {
        match self {
            DeviceError::Unknown { .. } => Some("device = \"auto\" takes the best one there is".to_string()),
            DeviceError::Absent { .. } => {
                let usable: Vec<String> = devices()
                    .iter()
                    .filter(|seen| seen.absent.is_none())
                    .map(|seen| seen.kind.to_string())
                    .collect();
                Some(format!("usable here: {}; or set device = \"auto\"", usable.join(", ")))
            }
            DeviceError::Threads { .. } => {
                Some("one thread a worker is best when each core has a worker".to_string())
            }
            DeviceError::Measure { .. } => None,
        }
    }
}

/// One device, usable or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSeen {
    /// The device.
    pub kind: DeviceKind,
    /// Why it cannot be used; nothing if it can.
    pub absent: Option<String>,
}

/// Lists every device that libtorch sees, and of each kind that it does not see the reason.
pub fn devices() -> Vec<DeviceSeen> {
    // An absent device stands for all of its kind.
    let cuda = cuda::count().max(1);
    let kinds = (0..cuda).map(DeviceKind::Cuda).chain([DeviceKind::Mps, DeviceKind::Cpu]);
    kinds
        .map(|kind| {
            let absent = match kind.check() {
                Ok(_) => None,
                Err(DeviceError::Absent { reason, .. }) => Some(reason),
                Err(
                    other @ (DeviceError::Unknown { .. }
                    | DeviceError::Threads { .. }
                    | DeviceError::Measure { .. }),
                ) => Some(other.to_string()),
            };
            DeviceSeen { kind, absent }
        })
        .collect()
}

/// Sets how many threads one operation may use, and one for running operations side by side.
///
/// Call it once at the start of every process that computes, before the first operation, and start the process with
/// [`ENVIRONMENT`]. libtorch's own default is one thread a core in each process, which several workers on one machine
/// must not use.
///
/// # Errors
/// A count of 0 or above [`THREADS_MAX`].
pub fn threads(count: usize) -> Result<(), DeviceError> {
    static SIDE_BY_SIDE: OnceLock<()> = OnceLock::new();
    let taken = i32::try_from(count).ok().filter(|_| (1..=THREADS_MAX).contains(&count));
    tch::set_num_threads(taken.ok_or(DeviceError::Threads { got: count })?);
    // libtorch refuses to set this one a second time.
    SIDE_BY_SIDE.get_or_init(|| tch::set_num_interop_threads(1));
    Ok(())
}

/// Returns the rate of a large square matrix multiplication, in operations (multiplications and additions) a second.
///
/// The best of several runs within about 0.3 s, with the threads set at the time: what a stage could reach if it did
/// nothing else, so MFU is counted against it.
///
/// # Errors
/// The device is absent, has too little memory, or has no arithmetic of this format.
pub fn measure_peak(kind: DeviceKind, dtype: Dtype) -> Result<f64, DeviceError> {
    kind.check()?;
    tch::no_grad(|| best_rate(kind, dtype))
        .map_err(|error| DeviceError::Measure { device: kind, message: brief(&error) })
}

/// Returns the rate at which the device goes over its memory, in bytes read or written a second.
///
/// The best of several copies of 256 MiB within about 0.3 s, each of which reads and writes as much.
///
/// # Errors
/// The device is absent, or has too little memory.
pub fn measure_bandwidth(kind: DeviceKind) -> Result<f64, DeviceError> {
    kind.check()?;
    tch::no_grad(|| best_copy(kind))
        .map_err(|error| DeviceError::Measure { device: kind, message: brief(&error) })
}

/// Numbers of a side of the square that is copied: 256 MiB in f32, more than any cache.
const COPIED: i64 = 8192;

fn best_copy(kind: DeviceKind) -> Result<f64, TchError> {
    let from = Tensor::f_ones([COPIED, COPIED], (Kind::Float, kind.device()))?;
    let mut to = from.f_zeros_like()?;
    finish(kind, &to)?;
    let (start, mut best, mut runs) = (Instant::now(), f64::MAX, 0);
    while runs < PEAK_RUNS_MIN || start.elapsed() < PEAK_TIME {
        let run = Instant::now();
        to.f_copy_(&from)?;
        finish(kind, &to)?;
        best = best.min(run.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(2.0 * 4.0 * (COPIED * COPIED) as f64 / best)
}

const PEAK_TIME: Duration = Duration::from_millis(300);
const PEAK_RUNS_MIN: u32 = 3;

fn best_rate(kind: DeviceKind, dtype: Dtype) -> Result<f64, TchError> {
    // Large enough to fill the device, small enough for several runs within the time.
    let n: i64 = match kind {
        DeviceKind::Cpu => 1024,
        DeviceKind::Mps => 4096,
        DeviceKind::Cuda(_) => 8192,
    };
    // Uneven numbers: a GPU fed with equal ones draws less power and clocks higher than training ever does.
    let a = Tensor::f_arange(n * n, (Kind::Float, kind.device()))?
        .f_sin_()?
        .f_reshape([n, n])?
        .f_to_kind(dtype.kind())?;
    let mut product = a.f_matmul(&a)?;
    finish(kind, &product)?;
    let (start, mut best, mut runs) = (Instant::now(), f64::MAX, 0);
    while runs < PEAK_RUNS_MIN || start.elapsed() < PEAK_TIME {
        let run = Instant::now();
        product = a.f_matmul_out(&product, &a)?;
        finish(kind, &product)?;
        best = best.min(run.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(2.0 * (n as f64).powi(3) / best)
}

/// Waits until the device has computed what was asked of it.
fn finish(kind: DeviceKind, product: &Tensor) -> Result<(), TchError> {
    match kind {
        DeviceKind::Cpu => Ok(()),
        DeviceKind::Cuda(index) => {
            Cuda::synchronize(i64::try_from(index).unwrap_or(0));
            Ok(())
        }
        // Reading one number back waits for all before it.
        DeviceKind::Mps => product.f_double_value(&[0, 0]).map(drop),
    }
}

fn mps_reason() -> Result<(), String> {
    if tch::utils::has_mps() {
        return Ok(());
    }
    Err(if cfg!(target_os = "macos") {
        refusal(Device::Mps)
    } else {
        "MPS is for macOS on Apple chips".to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_printed() {
        let table = [
            ("auto", DeviceChoice::Auto, "auto"),
            ("cpu", DeviceChoice::Only(DeviceKind::Cpu), "cpu"),
            ("mps", DeviceChoice::Only(DeviceKind::Mps), "mps"),
            ("cuda", DeviceChoice::Only(DeviceKind::Cuda(0)), "cuda:0"),
            ("cuda:7", DeviceChoice::Only(DeviceKind::Cuda(7)), "cuda:7"),
        ];
        for (text, choice, printed) in table {
            assert_eq!(text.parse::<DeviceChoice>().expect(text), choice);
            assert_eq!(choice.to_string(), printed);
            assert_eq!(printed.parse::<DeviceChoice>().expect(printed), choice);
        }
    }

    #[test]
    fn other_names_are_refused() {
        for text in [
            "",
            "gpu",
            "CPU",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:1 ",
            "cuda:x",
            "cuda:128",
            "cuda:99999999999999999999",
            "cpu:0",
        ] {
            let error = text.parse::<DeviceChoice>().expect_err(text);
            assert!(error.to_string().starts_with(&format!("device \"{text}\" is unknown")), "{error}");
            assert!(error.hint().is_some());
        }
        assert!(serde_json::from_str::<DeviceChoice>("\"cuda:1\"").is_ok());
        assert!(serde_json::from_str::<DeviceChoice>("\"gpu\"").is_err());
    }

    #[test]
    fn the_processor_is_always_there_and_whatever_is_not_says_why() {
        assert!(DeviceChoice::Auto.resolve().is_ok());
        let seen = devices();
        assert!(seen.contains(&DeviceSeen { kind: DeviceKind::Cpu, absent: None }));
        for device in seen {
            let resolved = DeviceChoice::Only(device.kind).resolve();
            assert_eq!(resolved.is_ok(), device.absent.is_none());
            if let Err(error) = resolved {
                let reason = device.absent.expect("just compared");
                assert!(reason.len() > 10 && error.to_string().ends_with(&reason), "{error}");
                assert!(error.hint().is_some_and(|hint| hint.contains("cpu")));
            }
        }
    }

    #[test]
    fn a_device_far_beyond_the_last_is_absent() {
        let error = DeviceChoice::Only(DeviceKind::Cuda(4000)).resolve().expect_err("no machine has so many");
        assert!(matches!(error, DeviceError::Absent { device: DeviceKind::Cuda(4000), .. }), "{error}");
    }

    #[test]
    fn impossible_thread_counts_are_refused() {
        for count in [0, THREADS_MAX + 1, usize::MAX] {
            assert!(matches!(threads(count), Err(DeviceError::Threads { got }) if got == count));
        }
    }

    #[test]
    fn threads_are_set_and_may_be_set_again() {
        for count in [2, 1] {
            threads(count).expect("possible");
            assert_eq!(tch::get_num_threads(), count as i32);
            assert_eq!(tch::get_num_interop_threads(), 1);
        }
    }

    #[test]
    fn a_peak_is_a_plausible_rate() {
        let rate = measure_peak(DeviceKind::Cpu, Dtype::F32).expect("the processor multiplies");
        assert!((1e8..1e16).contains(&rate), "{rate}");
        assert!(measure_peak(DeviceKind::Cuda(4000), Dtype::F32).is_err());
        let bytes = measure_bandwidth(DeviceKind::Cpu).expect("the processor copies");
        assert!((1e8..1e13).contains(&bytes), "{bytes} bytes a second");
        assert!(measure_bandwidth(DeviceKind::Cuda(4000)).is_err());
    }
}
