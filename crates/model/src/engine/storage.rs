//! Owns what of an engine outlives its process: which tensors and labels a checkpoint holds, and how they are taken over.
//! It may not know the file's format, nor when a run saves.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, TchError, Tensor};

use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::{self, Checkpoint};
use crate::codec::raw_bytes;
use crate::engine::Engine;
use crate::error::ModelError;
use crate::input::InputError;

/// Labels that the engine writes itself.
const MODEL: &str = "engine.model";
const STAGES: &str = "engine.stages";
const VERSION: &str = "engine.version";

impl Engine {
    /// Writes weights, optimizer state and version to a file, with the caller's labels, and returns its digest. Labels
    /// that begin with `engine.` or `trestle.` are not the caller's.
    ///
    /// Neither gradient sums nor graphs in flight are saved: call it between a step and the next backward.
    ///
    /// # Errors
    /// See [`checkpoint::write`].
    pub fn save(&self, path: &Path, labels: &BTreeMap<String, String>) -> Result<[u8; 32], CheckpointError> {
        let mut labels = labels.clone();
        for (name, label) in
            [(MODEL, self.model_label()), (STAGES, self.stages_label()), (VERSION, self.version.to_string())]
        {
            if labels.insert(name.to_string(), label).is_some() {
                let reason = "labels that begin with \"engine.\" are the engine's own";
                return Err(CheckpointError::Name {
                    path: path.to_path_buf(),
                    name: name.to_string(),
                    reason,
                });
            }
        }
        let parameters = self.weights.parameters();
        let mut tensors: Vec<(String, Tensor)> =
            parameters.iter().map(|p| (p.name.clone(), p.value.shallow_clone())).collect();
        tensors.extend(self.optimizer.state().map_err(|source| refusal(path, source))?);
        checkpoint::write(path, &tensors, &labels)
    }

    /// Takes over what [`Engine::save`] wrote for the same stages of the same model, and returns the caller's labels.
    /// Graphs in flight and gradient sums are forgotten.
    ///
    /// # Errors
    /// A file that is damaged, or of another model, other stages or another optimizer; the engine is then as before.
    pub fn load(&mut self, path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
        let mut saved = checkpoint::read(path, self.device)?;
        self.check_label(&mut saved, MODEL, &self.model_label())?;
        self.check_label(&mut saved, STAGES, &self.stages_label())?;
        let version = label(&mut saved, VERSION)?;
        let version = version.parse().map_err(|_| mismatch(path, VERSION, version, "a number".into()))?;
        let values = self.take_values(|name, shape| saved.take(name, shape))?;
        let mut state = BTreeMap::new();
        for (name, tensor) in self.optimizer.state().map_err(|source| refusal(path, source))? {
            let found = saved.take(&name, &tensor.size())?;
            state.insert(name, found);
        }
        let labels = std::mem::take(&mut saved.labels);
        saved.finish()?;
        self.optimizer.restore(&state).map_err(|source| refusal(path, source))?;
        self.replace(values).map_err(|error| refusal(path, error.into()))?;
        self.version = version;
        Ok(labels)
    }

    /// Takes over the weights alone from several files, which together hold all stages that this engine holds; so the
    /// checkpoints of a run's stages become one model. Version and optimizer stay as they are; graphs in flight and
    /// gradient sums are forgotten.
    ///
    /// # Errors
    /// A file that is damaged or of another model, or a weight that none of them holds; the engine is then as before.
    pub fn load_weights(&mut self, paths: &[&Path]) -> Result<(), CheckpointError> {
        let mut found = Vec::new();
        for path in paths {
            let mut saved = checkpoint::read(path, Device::Cpu)?;
            self.check_label(&mut saved, MODEL, &self.model_label())?;
            found.push(saved);
        }
        let values = self.take_values(|name, shape| {
            let holder = found.iter_mut().find(|saved| saved.tensors.contains_key(name));
            match holder {
                Some(saved) => saved.take(name, shape),
                None => {
                    let path = paths.first().map(|path| path.to_path_buf()).unwrap_or_default();
                    Err(CheckpointError::Missing { path, name: name.to_string() })
                }
            }
        })?;
        let path = paths.first().copied().unwrap_or(Path::new(""));
        self.replace(values).map_err(|error| refusal(path, error.into()))
    }

    /// Returns the BLAKE3 digest of all weights held: name, shape and f32 bytes of each, in the order of the names. Engines
    /// with the same digest compute the same.
    ///
    /// # Errors
    /// libtorch's refusals.
    pub fn weights_digest(&self) -> Result<[u8; 32], ModelError> {
        let sorted: BTreeMap<&str, &Tensor> =
            self.weights.parameters().iter().map(|p| (p.name.as_str(), &p.value)).collect();
        let mut hasher = blake3::Hasher::new();
        for (name, value) in sorted {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
            let shape = value.size();
            hasher.update(&(shape.len() as u64).to_le_bytes());
            for size in shape {
                hasher.update(&size.to_le_bytes());
            }
            let bytes =
                raw_bytes(value).map_err(|error| ModelError::from(error).during("reading weights"))?;
            hasher.update(&bytes);
        }
        Ok(*hasher.finalize().as_bytes())
    }

    fn take_values(
        &self,
        mut take: impl FnMut(&str, &[i64]) -> Result<Tensor, CheckpointError>,
    ) -> Result<Vec<Tensor>, CheckpointError> {
        self.weights.parameters().iter().map(|p| take(&p.name, &p.value.size())).collect()
    }

    fn replace(&mut self, values: Vec<Tensor>) -> Result<(), TchError> {
        self.graphs.clear();
        self.weights.replace(values)
    }

    fn model_label(&self) -> String {
        serde_json::to_string(&self.config.model).unwrap_or_default()
    }

    fn stages_label(&self) -> String {
        format!("{}..{}", self.config.held.start, self.config.held.end)
    }

    fn check_label(
        &self,
        saved: &mut Checkpoint,
        name: &'static str,
        want: &str,
    ) -> Result<(), CheckpointError> {
        let got = label(saved, name)?;
        if got == want {
            return Ok(());
        }
        Err(mismatch(&saved.path, name, got, want.to_string()))
    }
}

fn label(saved: &mut Checkpoint, name: &'static str) -> Result<String, CheckpointError> {
    saved.labels.remove(name).ok_or_else(|| CheckpointError::Header {
        path: saved.path.clone(),
        reason: format!("it lacks the label {name}"),
    })
}

fn mismatch(path: &Path, field: &'static str, got: String, want: String) -> CheckpointError {
    refusal(path, InputError::Saved { field, got, want }.into())
}

fn refusal(path: &Path, source: ModelError) -> CheckpointError {
    CheckpointError::Model { path: path.to_path_buf(), source }
}
