//! What devices can do: peak, memory, bandwidth, and the part of the peak that training has been seen to reach.
//!
//! Owns the built-in profiles, each number with its source, and how long operations take on a device. Knows nothing of stages.

use serde::Serialize;
use trestle_protocol::spec::Dtype;

/// A kind of device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Device {
    /// What a fleet file calls it.
    pub name: String,
    /// Operations a second in bf16, dense, with sums in f32.
    pub bf16_peak: f64,
    /// Operations a second in f32.
    pub f32_peak: f64,
    /// Bytes of memory.
    pub memory: f64,
    /// Bytes a second to and from that memory.
    pub bandwidth: f64,
    /// The part of the peak that the matrix products of large microbatches reach.
    pub reach: f64,
    /// Seconds from one kernel's start to the next where neither has much to do.
    pub launch: f64,
    /// Where these numbers are from.
    pub source: String,
}

/// Kernels of a block's forward: two norms, five products, rotation, attention, the gate, two sums, and what stands between.
const BLOCK_KERNELS: f64 = 20.0;

/// A kernel of PyTorch on a device with its own queue (measured by many; of the order of 5 µs).
const LAUNCH: f64 = 5e-6;

/// What Orion-100B's co-located baseline of 47 % MFU means on an A100: with the forward done again, 4/3 of that.
const REACH_A100: f64 = 0.627;

/// Llama 3 405B on H100, without doing the forward again: 43 % MFU (arXiv 2407.21783, table 4).
const REACH_H100: f64 = 0.43;

struct Row {
    name: &'static str,
    bf16_tera: f64,
    f32_tera: f64,
    memory_giga: f64,
    bandwidth_giga: f64,
    reach: f64,
    source: &'static str,
}

const ROWS: &[Row] = &[
    Row {
        name: "a100-40",
        bf16_tera: 312.0,
        f32_tera: 19.5,
        memory_giga: 40.0,
        bandwidth_giga: 1555.0,
        reach: REACH_A100,
        source: "NVIDIA A100 datasheet (SXM, dense); reach: Orion-100B's co-located baseline",
    },
    Row {
        name: "a100-80",
        bf16_tera: 312.0,
        f32_tera: 19.5,
        memory_giga: 80.0,
        bandwidth_giga: 2039.0,
        reach: REACH_A100,
        source: "NVIDIA A100 datasheet (SXM, dense); reach: Orion-100B's co-located baseline",
    },
    Row {
        name: "h100",
        bf16_tera: 989.4,
        f32_tera: 66.9,
        memory_giga: 80.0,
        bandwidth_giga: 3350.0,
        reach: REACH_H100,
        source: "NVIDIA H100 datasheet (SXM, dense); reach: Llama 3, arXiv 2407.21783",
    },
    Row {
        name: "h200",
        bf16_tera: 989.4,
        f32_tera: 66.9,
        memory_giga: 141.0,
        bandwidth_giga: 4800.0,
        reach: REACH_H100,
        source: "NVIDIA H200 datasheet (SXM, dense); reach: assumed as of the H100",
    },
    Row {
        name: "b200",
        bf16_tera: 2250.0,
        f32_tera: 75.0,
        memory_giga: 180.0,
        bandwidth_giga: 7700.0,
        reach: REACH_H100,
        source: "NVIDIA HGX B200 datasheet (dense, one of eight); reach: assumed as of the H100",
    },
    Row {
        name: "rtx-4090",
        bf16_tera: 165.2,
        f32_tera: 82.6,
        memory_giga: 24.0,
        bandwidth_giga: 1008.0,
        reach: REACH_A100,
        source: "NVIDIA Ada architecture paper (dense, sums in f32); reach: assumed as of the A100",
    },
    Row {
        name: "rtx-5090",
        bf16_tera: 209.5,
        f32_tera: 104.8,
        memory_giga: 32.0,
        bandwidth_giga: 1792.0,
        reach: REACH_A100,
        source: "NVIDIA Blackwell RTX architecture paper (dense, sums in f32); reach: assumed as of the A100",
    },
    Row {
        name: "l4",
        bf16_tera: 121.0,
        f32_tera: 30.3,
        memory_giga: 24.0,
        bandwidth_giga: 300.0,
        reach: REACH_A100,
        source: "NVIDIA L4 datasheet (dense); reach: assumed as of the A100",
    },
    Row {
        name: "t4",
        bf16_tera: 8.1,
        f32_tera: 8.1,
        memory_giga: 16.0,
        bandwidth_giga: 320.0,
        reach: REACH_A100,
        source: "NVIDIA T4 datasheet; it has no bf16, which runs at the rate of f32; reach: assumed as of the A100",
    },
    Row {
        name: "m1",
        bf16_tera: 2.6,
        f32_tera: 2.6,
        memory_giga: 16.0,
        bandwidth_giga: 68.0,
        reach: REACH_A100,
        source: "Apple, M1 (2.6 teraflops, f32); bf16 counted alike; reach: assumed as of the A100",
    },
    Row {
        name: "m1-ultra",
        bf16_tera: 21.0,
        f32_tera: 21.0,
        memory_giga: 128.0,
        bandwidth_giga: 800.0,
        reach: REACH_A100,
        source: "Apple, M1 Ultra (21 teraflops, f32); bf16 counted alike; reach: assumed as of the A100",
    },
    Row {
        name: "m2-ultra",
        bf16_tera: 27.2,
        f32_tera: 27.2,
        memory_giga: 192.0,
        bandwidth_giga: 800.0,
        reach: REACH_A100,
        source: "Apple, M2 Ultra (27.2 teraflops, f32); bf16 counted alike; reach: assumed as of the A100",
    },
    Row {
        name: "cpu-core",
        bf16_tera: 0.096,
        f32_tera: 0.096,
        memory_giga: 8.0,
        bandwidth_giga: 10.0,
        reach: REACH_A100,
        source: "one core with two 256-bit multiply-adds a cycle at 3 GHz; the rest assumed",
    },
];

/// Lists the built-in devices.
pub fn built_in() -> Vec<Device> {
    let device = |row: &Row| Device {
        name: row.name.into(),
        bf16_peak: row.bf16_tera * 1e12,
        f32_peak: row.f32_tera * 1e12,
        memory: row.memory_giga * 1e9,
        bandwidth: row.bandwidth_giga * 1e9,
        reach: row.reach,
        launch: LAUNCH,
        source: row.source.into(),
    };
    ROWS.iter().map(device).collect()
}

impl Device {
    /// Returns the operations a second at most in a number format.
    pub fn peak(&self, dtype: Dtype) -> f64 {
        match dtype {
            Dtype::Bf16 => self.bf16_peak,
            Dtype::F32 => self.f32_peak,
        }
    }

    /// Returns the seconds that some operations take in a number format: by the products, by the bytes they go over, or by the
    /// kernels of so many blocks, whichever is most (the roofline of Williams et al. 2009, with a floor).
    pub fn seconds(&self, dtype: Dtype, operations: f64, bytes: f64, blocks: f64) -> f64 {
        let products = operations / (self.peak(dtype) * self.reach);
        products.max(bytes / self.bandwidth).max(blocks * BLOCK_KERNELS * self.launch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_and_numbers_are_possible() {
        let devices = built_in();
        for (at, device) in devices.iter().enumerate() {
            assert!(devices[..at].iter().all(|other| other.name != device.name), "{}", device.name);
            assert!(
                device.reach > 0.0 && device.reach < 1.0 && device.bf16_peak >= device.f32_peak,
                "{device:?}"
            );
        }
    }

    #[test]
    fn the_slowest_of_products_bytes_and_kernels_counts() {
        let device = Device {
            name: "x".into(),
            bf16_peak: 200.0,
            f32_peak: 100.0,
            memory: 1.0,
            bandwidth: 10.0,
            reach: 0.5,
            launch: 0.1,
            source: String::new(),
        };
        assert_eq!(device.seconds(Dtype::F32, 500.0, 1.0, 1.0), 10.0);
        assert_eq!(device.seconds(Dtype::Bf16, 500.0, 1.0, 1.0), 5.0);
        assert_eq!(device.seconds(Dtype::Bf16, 1.0, 100.0, 1.0), 10.0);
        assert_eq!(device.seconds(Dtype::Bf16, 1.0, 1.0, 4.0), 8.0);
    }
}
