//! Everything that can be wrong with somebody's data, with a word on what to do about it.
//!
//! Owns the messages. May not know how the checks are made.

use std::io;
use std::path::{Path, PathBuf};

use crate::sample::{SampleId, Split};

/// Says why text could not be opened, or a sample not be given.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A path of the configuration leads nowhere.
    #[error("no such file or folder: {}", .path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
    },
    /// The operating system refused a read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder was given and holds nothing to read.
    #[error("folder {} holds no .txt file", .path.display())]
    NoTextFiles {
        /// The folder.
        path: PathBuf,
    },
    /// Text for a tokenizer file is not UTF-8.
    #[error("{} is not UTF-8: byte {offset} begins no character", .path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the first bad byte lies, counted from 0.
        offset: u64,
    },
    /// There is text in none of the documents.
    #[error("{} holds no text", .path.display())]
    Empty {
        /// The file or folder.
        path: PathBuf,
    },
    /// The length of the generated corpus is out of bounds.
    #[error("a generated corpus of {tokens} tokens is out of bounds (1 to {tokens_max})")]
    GeneratedTokens {
        /// The length as given.
        tokens: u64,
        /// The longest one that is written.
        tokens_max: u64,
    },
    /// The corpus has fewer tokens than a sample.
    #[error("the text has {tokens} tokens, and one sample needs {needed}")]
    TooShort {
        /// Tokens found.
        tokens: u64,
        /// Tokens of one sample: the sequence length and one.
        needed: u64,
    },
    /// A line is not a JSON object.
    #[error("line {line} of {} is not a JSON object: {reason}", .path.display())]
    JsonLine {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What the parser said.
        reason: String,
    },
    /// A line has no text where the configuration says.
    #[error("line {line} of {} has no string in the field \"{field}\"", .path.display())]
    JsonField {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// The field looked for.
        field: String,
    },
    /// A tokenizer file is not one.
    #[error("{} is not a tokenizer: {reason}", .path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// The tokenizer refused a text.
    #[error("the tokenizer refused the text: {reason}")]
    Encode {
        /// What it said.
        reason: String,
    },
    /// A token id has no row in the vocabulary.
    #[error("a vocabulary of {vocabulary} has no place for token id {token}")]
    VocabularyTooSmall {
        /// Size of the vocabulary.
        vocabulary: u32,
        /// The token id without a place.
        token: u32,
    },
    /// The sequence length is out of bounds.
    #[error("a sequence length of {sequence_len} is out of bounds (1 to {sequence_len_max})")]
    SequenceLen {
        /// The length as given.
        sequence_len: usize,
        /// The longest one that is taken.
        sequence_len_max: usize,
    },
    /// The share of held-out samples leaves nothing to train on.
    #[error("{permille} of 1000 samples held out leaves none to train on")]
    HeldOutShare {
        /// The share as given.
        permille: u32,
    },
    /// There are fewer held-out samples than somebody wants to measure on.
    #[error("{held_out} samples are held out, and {needed} are needed")]
    TooFewHeldOut {
        /// How many there are.
        held_out: u64,
        /// How many were asked for.
        needed: u64,
    },
    /// A sample id names nothing.
    #[error("there is no {split} sample {sample} among {samples}")]
    UnknownSample {
        /// The split.
        split: Split,
        /// The id as given.
        sample: SampleId,
        /// How many samples the split has.
        samples: u64,
    },
    /// A microbatch lies beyond the positions that can be counted.
    #[error("microbatch {index} of {size} samples is out of bounds")]
    UnknownMicrobatch {
        /// Its index.
        index: u64,
        /// Its size.
        size: usize,
    },
}

impl DataError {
    /// Names what the operating system refused.
    pub(crate) fn from_io(path: &Path, source: io::Error) -> DataError {
        let path = path.to_path_buf();
        if source.kind() == io::ErrorKind::NotFound {
            return DataError::NotFound { path };
        }
        DataError::Read { path, source }
    }

    /// Says what to do about the error, in one sentence for people.
    pub fn hint(&self) -> &'static str {
        match self {
            DataError::NotFound { .. } => {
                "check the path; it is taken from the folder the program was started in"
            }
            DataError::Read { .. } => "check that it is a plain file and that you may read it",
            DataError::NoTextFiles { .. } => {
                "name the file itself, or give the files in the folder names that end in .txt"
            }
            DataError::NotUtf8 { .. } => {
                "convert the file (`iconv -t UTF-8`), or use the byte tokenizer, which takes any content"
            }
            DataError::Empty { .. } => "give a file with text in it",
            DataError::GeneratedTokens { .. } => "a few million tokens are enough for a demonstration",
            DataError::TooShort { .. } => "give more text, or set a shorter sequence_len",
            DataError::JsonLine { .. } => {
                "JSON lines hold one whole object a line; a file that is one big array must be converted first"
            }
            DataError::JsonField { .. } => "set the field that holds the text, or repair the line",
            DataError::Tokenizer { .. } => {
                "give the tokenizer.json of a Hugging Face model (not tokenizer_config.json, not a .model file)"
            }
            DataError::Encode { .. } => {
                "the tokenizer may lack a token for unknown words; try another one, or the byte tokenizer"
            }
            DataError::VocabularyTooSmall { .. } => {
                "raise the model's vocabulary above the highest token id, or use a smaller tokenizer"
            }
            DataError::SequenceLen { .. } => {
                "set sequence_len to the number of tokens the model reads at once"
            }
            DataError::HeldOutShare { .. } => "set held_out_permille below 1000; 50 is usual",
            DataError::TooFewHeldOut { .. } => {
                "give more text, shorten sequence_len, raise held_out_permille, or measure on fewer samples"
            }
            DataError::UnknownSample { .. } | DataError::UnknownMicrobatch { .. } => {
                "compare the manifest digests: the other side may be training on other data"
            }
        }
    }
}
