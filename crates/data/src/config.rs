//! What to read and how to cut it: the parameters from which a data set follows, byte for byte.
//!
//! Owns the names of the choices. May not know how any of them is carried out.

use std::path::PathBuf;

/// Says which text is trained on.
///
/// Between two documents stands the tokenizer's end-of-text token where it has one, else what it makes of a
/// line end. Empty documents are passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The built-in corpus of known entropy; nothing is read from disk.
    Generated(GeneratedConfig),
    /// One file of any name, or a folder: every `.txt` file below it, in the order of their paths. Each
    /// file is a document.
    Text(PathBuf),
    /// One file of JSON objects, one a line; the string in `field` is a document. Blank lines are passed over.
    JsonLines {
        /// The file.
        path: PathBuf,
        /// The name of the field that holds the text.
        field: String,
    },
}

/// Says how much of which generated language to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneratedConfig {
    /// Length of the corpus in bytes.
    pub tokens: u64,
    /// Chooses the language and the text. Not the order of training, which is [`DataConfig::seed`].
    pub seed: u64,
}

/// Says how text becomes token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerKind {
    /// A byte is a token: vocabulary 256, any content.
    Bytes,
    /// A Hugging Face `tokenizer.json`; the text must be UTF-8. Its truncation, padding and begin or end tokens
    /// are left out. A document is read in pieces of at most 1 MiB, cut at line ends, so a tokenizer that puts a
    /// mark before every text puts one before every piece.
    File(PathBuf),
}

/// Says which samples a run trains on, and in which order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataConfig {
    /// The text.
    pub source: Source,
    /// How it becomes token ids.
    pub tokenizer: TokenizerKind,
    /// Tokens the model reads at once. A sample holds one more, since the targets are shifted by one.
    pub sequence_len: usize,
    /// Chooses the order of training.
    pub seed: u64,
    /// Share of the samples that is kept from training, in thousandths, rounded down. 0 keeps none.
    pub held_out_permille: u32,
}
