//! The data set of a run, as one peer can read it.
//!
//! Owns what a peer has on its own disk beside what the run spec says. Knows nothing of how text is read.

use std::path::PathBuf;

use trestle_data::{DataConfig, GeneratedConfig, Source, TokenizerKind};
use trestle_protocol::spec::{self, RunSpec};

/// Where this peer has the text that a run reads, if it has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalData {
    /// A text file, a folder of text files, or a file of JSON lines.
    pub path: Option<PathBuf>,
    /// The field of each JSON line that holds the text; without it, the text is read as it is.
    pub field: Option<String>,
    /// A `tokenizer.json`, for runs that use one.
    pub tokenizer: Option<PathBuf>,
}

/// What a run needs from this peer's disk and was not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingData {
    /// The text.
    #[error("the run reads text from each peer's own disk, and none is given here")]
    Text,
    /// The tokenizer.
    #[error("the run uses a tokenizer file, and none is given here")]
    Tokenizer,
}

impl MissingData {
    /// Says what to do about it.
    pub fn hint(self) -> &'static str {
        match self {
            MissingData::Text => "name the same text with `--data FILE`",
            MissingData::Tokenizer => "name the same tokenizer.json with `--tokenizer FILE`",
        }
    }
}

/// Gives the data set of a run as this peer can read it.
pub fn data_config(spec: &RunSpec, local: &LocalData) -> Result<DataConfig, MissingData> {
    let source = match spec.data.source {
        spec::DataSource::Generated { tokens } => {
            Source::Generated(GeneratedConfig { tokens, seed: spec.seed })
        }
        spec::DataSource::Local => {
            let path = local.path.clone().ok_or(MissingData::Text)?;
            match local.field.clone() {
                Some(field) => Source::JsonLines { path, field },
                None => Source::Text(path),
            }
        }
    };
    let tokenizer = match spec.data.tokenizer {
        spec::Tokenizer::Bytes => TokenizerKind::Bytes,
        spec::Tokenizer::File => TokenizerKind::File(local.tokenizer.clone().ok_or(MissingData::Tokenizer)?),
    };
    Ok(DataConfig {
        source,
        tokenizer,
        sequence_len: spec.model.sequence_len as usize,
        seed: spec.seed,
        held_out_permille: spec.data.held_out_permille,
    })
}
