//! A checkpoint in words: whose it is, what it holds, and that it is whole.
//!
//! Owns the report. May not know how a checkpoint is written.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;
use trestle_model::checkpoint::{self, TensorSummary};
use trestle_protocol::ids::Digest;

use crate::failure::Failure;
use crate::units::{bytes, count};

/// How the names of the optimizer's tensors begin; all others are parameters.
const OPTIMIZER_PREFIXES: [&str; 3] = ["optimizer.", "adamw.", "muon."];

/// What a checkpoint holds.
#[derive(Debug, Serialize)]
pub(crate) struct CheckpointReport {
    bytes: u64,
    digest: String,
    labels: BTreeMap<String, String>,
    parameters: u64,
    optimizer_numbers: u64,
    tensors: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    shape: Vec<usize>,
    dtype: String,
}

impl CheckpointReport {
    /// Reads a checkpoint whole, so that its digest is known to fit.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub(crate) fn of(path: &Path) -> Result<Self, Failure> {
        let summary = checkpoint::inspect(path)?;
        let numbers = |kept: fn(&str) -> bool| -> u64 {
            let tensors = summary.tensors.iter().filter(|(name, _)| kept(name));
            tensors.map(|(_, tensor)| tensor.shape.iter().map(|&size| size as u64).product::<u64>()).sum()
        };
        let entry =
            |(name, TensorSummary { shape, dtype }): (String, TensorSummary)| Entry { name, shape, dtype };
        Ok(Self {
            bytes: summary.bytes,
            digest: Digest(summary.digest).to_hex(),
            parameters: numbers(|name| !is_optimizer(name)),
            optimizer_numbers: numbers(is_optimizer),
            labels: summary.labels,
            tensors: summary.tensors.into_iter().map(entry).collect(),
        })
    }
}

fn is_optimizer(name: &str) -> bool {
    OPTIMIZER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

impl fmt::Display for CheckpointReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "checkpoint   {}, whole: its digest fits", bytes(self.bytes))?;
        writeln!(f, "digest       {}", self.digest)?;
        writeln!(f, "parameters   {}", count(self.parameters))?;
        writeln!(f, "optimizer    {} numbers", count(self.optimizer_numbers))?;
        self.labels.iter().try_for_each(|(name, label)| writeln!(f, "label        {name} = {label}"))?;
        writeln!(f, "\n{:<48} {:>6}  shape", "parameter", "format")?;
        let parameters = self.tensors.iter().filter(|entry| !is_optimizer(&entry.name));
        parameters.into_iter().try_for_each(|Entry { name, shape, dtype }| {
            let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
            writeln!(f, "{name:<48} {dtype:>6}  {}", shape.join(" x "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trestle_model::device::DeviceKind;
    use trestle_model::engine::Engine;
    use trestle_settings::model::engine_config;

    use crate::run_file::RunFile;
    use crate::run_file::source::Override;

    #[test]
    fn a_checkpoint_is_counted_and_a_flipped_bit_is_found() {
        let text = "[model]\nwidth = 16\nlayers = 2\nheads = 2\nffn_width = 32\nsequence_len = 8\n[training]\nsteps = 3";
        let stages = [Override::parse("pipeline.stages=2").unwrap()];
        let file = RunFile::parse(Path::new("small.toml"), text, &stages).unwrap();
        let spec = file.spec(Digest([0; 32]), 256).unwrap();
        let engine = Engine::new(engine_config(&spec, 1..2, DeviceKind::Cpu)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step-00000000.safetensors");
        let labels = BTreeMap::from([("run".to_string(), "small".to_string())]);
        let digest = engine.save(&path, &labels).unwrap();

        let report = CheckpointReport::of(&path).unwrap();
        assert_eq!(report.parameters, engine.config().model.stage_parameters(1));
        assert_eq!(report.digest, Digest(digest).to_hex());
        assert!(report.to_string().contains("label        run = small\n"), "{report}");

        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let failure = CheckpointReport::of(&path).unwrap_err().to_string();
        assert!(failure.starts_with("error: ") && failure.contains("step-00000000.safetensors"), "{failure}");
    }
}
