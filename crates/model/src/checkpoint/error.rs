//! Owns the errors of checkpoint files. It may not know how the files are laid out.

use std::io;
use std::path::{Path, PathBuf};

use tch::TchError;

use crate::error::ModelError;

/// Version of the layout; a reader refuses any other.
pub const FORMAT: &str = "1";

/// Why a checkpoint cannot be written, read or taken over. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("{doing} {} failed: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is shorter or longer than its header says.
    #[error("checkpoint {} has {got} bytes, expected {expected}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        got: u64,
        /// The length that its header calls for.
        expected: u64,
    },
    /// The header is no safetensors header of ours.
    #[error("checkpoint {} has no readable header: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file was written in another layout.
    #[error("checkpoint {} has format {found}, expected {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: String,
    },
    /// The content is not what was written.
    #[error("checkpoint {} is corrupt: its content has digest {got}, its label says {expected}", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// Digest of what is there.
        got: String,
        /// Digest of what was written.
        expected: String,
    },
    /// A tensor that the reader needs is not there.
    #[error("checkpoint {} has no tensor {name}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the reader needs.
    #[error("checkpoint {} has tensor {name} with shape {got:?}, expected {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        got: Vec<i64>,
        /// The shape needed.
        expected: Vec<i64>,
    },
    /// Tensors are left that the reader does not know.
    #[error("checkpoint {} has {count} tensors that do not belong here, the first is {name}", path.display())]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// The first of them by name.
        name: String,
        /// How many.
        count: usize,
    },
    /// The writer used a name twice or one of ours.
    #[error("checkpoint {} cannot hold the name {name}: {reason}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// The name of a tensor or label.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A tensor's number format has no place in a checkpoint.
    #[error("tensor {name} of checkpoint {} has the number format {kind}, expected f32, bf16 or i64", path.display())]
    NumberFormat {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its format.
        kind: String,
    },
    /// Copying a tensor from or to its device failed, or the model refused the content.
    #[error("checkpoint {}: {source}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ModelError,
    },
}

impl CheckpointError {
    /// Returns advice for a person, where there is some.
    pub fn hint(&self) -> Option<String> {
        match self {
            CheckpointError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("check the path; a run that has saved nothing yet starts anew".into())
            }
            CheckpointError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("free some disk space; the previous checkpoint is untouched".into())
            }
            CheckpointError::Io { .. } => None,
            CheckpointError::Length { .. }
            | CheckpointError::Header { .. }
            | CheckpointError::Digest { .. } => Some(
                "the file was damaged after it was written; resume from an older checkpoint or a copy".into(),
            ),
            CheckpointError::Format { .. } => {
                Some("read it with the version of trestle that wrote it".into())
            }
            CheckpointError::Missing { .. }
            | CheckpointError::Shape { .. }
            | CheckpointError::Unexpected { .. } => Some(
                "it was written for another model, cut or optimizer; resume with the run file it came from"
                    .into(),
            ),
            CheckpointError::Model { source, .. } => source.hint(),
            CheckpointError::Name { .. } | CheckpointError::NumberFormat { .. } => None,
        }
    }
}

/// Names the act and the file in front of the file system's words.
pub(crate) fn io_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> CheckpointError {
    let path = path.to_path_buf();
    move |source| CheckpointError::Io { doing, path: path.clone(), source }
}

/// Names the file in front of libtorch's words.
pub(crate) fn torch_error(path: &Path) -> impl Fn(TchError) -> CheckpointError {
    let path = path.to_path_buf();
    move |error| CheckpointError::Model {
        path: path.clone(),
        source: ModelError::from(error).during("copying a tensor"),
    }
}
