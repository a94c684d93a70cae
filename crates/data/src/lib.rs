//! Text to numbered samples: tokenizers, the seeded order of training, the manifest that names it all.
//!
//! Owns: what a sample id means, which samples are held out, in which order they are trained, and the
//! built-in generated corpus whose entropy per token is known. May not know tensors, peers or stages.
//!
//! ```
//! use trestle_data::{DataConfig, Dataset, Source, Split, TokenizerKind};
//!
//! let config = DataConfig {
//!     source: Source::Generated(trestle_data::GeneratedConfig { tokens: 10_000, seed: 1 }),
//!     tokenizer: TokenizerKind::Bytes,
//!     sequence_len: 64,
//!     seed: 7,
//!     held_out_permille: 50,
//! };
//! let dataset = Dataset::open(&config)?;
//! let batch = dataset.microbatch(Split::Train, 0, 4)?;
//! assert_eq!(batch.inputs.len(), 4 * 64);
//! # Ok::<(), trestle_data::DataError>(())
//! ```

mod config;
mod corpus;
mod dataset;
mod draws;
mod error;
mod manifest;
mod markov;
mod permutation;
mod pieces;
mod sample;
mod tokenizer;
mod tokens;

pub use config::{DataConfig, GeneratedConfig, Source, TokenizerKind};
pub use dataset::Dataset;
pub use error::DataError;
pub use manifest::{MANIFEST_FORMAT, Manifest, SourceKind};
pub use markov::MarkovSource;
pub use permutation::Permutation;
pub use sample::{Microbatch, SampleId, Split};
pub use tokenizer::Tokenizer;
