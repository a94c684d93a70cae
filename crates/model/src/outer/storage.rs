//! Owns what of an outer step outlives its process: the committed state in a checkpoint. It may not know the file's format,
//! nor when a run saves. It is the one file of the outer step that handles libtorch's tensors, because checkpoints do.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Tensor};

use crate::checkpoint::error::{CheckpointError, torch_error};
use crate::checkpoint::{self, Checkpoint};
use crate::codec::raw_bytes;
use crate::error::ModelError;
use crate::input::InputError;
use crate::outer::Outer;
use crate::outer::codec::numbers;

/// Labels that the outer step writes itself.
const CONFIG: &str = "outer.config";
const LAYOUT: &str = "outer.layout";
const COMMITTED: &str = "outer.committed";

/// Tensors of the committed state, each of one dimension in unit order; absent where empty.
const ANCHOR: &str = "outer.anchor";
const MOMENTUM: &str = "outer.momentum";
const OWED: &str = "outer.owed";

impl Outer {
    /// Writes the committed state to a file, with the caller's labels, and returns the file's digest. Labels that begin with
    /// `outer.` or `trestle.` are not the caller's. A transaction in flight is not saved.
    ///
    /// # Errors
    /// See [`checkpoint::write`].
    pub fn save(&self, path: &Path, labels: &BTreeMap<String, String>) -> Result<[u8; 32], CheckpointError> {
        let mut labels = labels.clone();
        for (name, label) in self.own_labels() {
            if labels.insert(name.to_string(), label).is_some() {
                let reason = "labels that begin with \"outer.\" are the outer step's own";
                let (path, name) = (path.to_path_buf(), name.to_string());
                return Err(CheckpointError::Name { path, name, reason });
            }
        }
        let lists = [(ANCHOR, self.anchor()), (MOMENTUM, self.momentum()), (OWED, self.owed())];
        let present = lists.into_iter().filter(|(_, values)| !values.is_empty());
        let tensors = present
            .map(|(name, values)| Ok((name.to_string(), Tensor::f_from_slice(values)?)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(torch_error(path))?;
        checkpoint::write(path, &tensors, &labels)
    }

    /// Takes over what [`Outer::save`] wrote under the same settings for a stage of the same shapes, and returns the
    /// caller's labels. A transaction in flight is dropped.
    ///
    /// # Errors
    /// A file that is damaged, or of other settings or shapes; all is then as before.
    pub fn load(&mut self, path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
        let mut saved = checkpoint::read(path, Device::Cpu)?;
        let [config, layout, _] = self.own_labels();
        for (name, want) in [config, layout] {
            let got = label(&mut saved, name)?;
            if got != want {
                return Err(mismatch(path, name, got, want));
            }
        }
        let committed = label(&mut saved, COMMITTED)?;
        let committed =
            committed.parse().map_err(|_| mismatch(path, COMMITTED, committed, "a number".into()))?;
        let anchor = take(&mut saved, ANCHOR, self.anchor().len())?;
        let momentum = take(&mut saved, MOMENTUM, self.momentum().len())?;
        let owes = saved.tensors.contains_key(OWED);
        let owed = take(&mut saved, OWED, if owes { self.layout().elements() } else { 0 })?;
        let labels = std::mem::take(&mut saved.labels);
        saved.finish()?;
        self.replace(anchor, momentum, owed, committed);
        Ok(labels)
    }

    fn own_labels(&self) -> [(&'static str, String); 3] {
        let config = serde_json::to_string(self.config()).unwrap_or_default();
        let layout = blake3::Hash::from_bytes(self.layout().digest()).to_hex().to_string();
        [(CONFIG, config), (LAYOUT, layout), (COMMITTED, self.committed().to_string())]
    }
}

fn label(saved: &mut Checkpoint, name: &'static str) -> Result<String, CheckpointError> {
    saved.labels.remove(name).ok_or_else(|| CheckpointError::Header {
        path: saved.path.clone(),
        reason: format!("it lacks the label {name}"),
    })
}

/// Takes a list out; one of no length is not in the file.
fn take(saved: &mut Checkpoint, name: &str, len: usize) -> Result<Vec<f32>, CheckpointError> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let tensor = saved.take(name, &[len as i64])?;
    let bytes = raw_bytes(&tensor).map_err(torch_error(&saved.path))?;
    let mut values = vec![0.0; len];
    numbers::get(&bytes, &mut values);
    Ok(values)
}

fn mismatch(path: &Path, field: &'static str, got: String, want: String) -> CheckpointError {
    let source = ModelError::from(InputError::Saved { field, got, want });
    CheckpointError::Model { path: path.to_path_buf(), source }
}
