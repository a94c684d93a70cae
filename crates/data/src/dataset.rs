//! The data set: a corpus cut into numbered samples, and the order in which they are trained.
//!
//! Owns what a sample id means. May not know where text comes from, nor who asks for a sample.
//!
//! The corpus is cut from its beginning into windows of `sequence_len + 1` tokens that do not overlap; what
//! is left at the end is not used. The last windows, `held_out_permille` of a thousand, rounded down, are the
//! held-out split, the others the training split. So no token is in both.
//!
//! The whole corpus is held in memory: 1, 2 or 4 bytes a token for a vocabulary of up to 256, 65,536 or more.

use crate::config::{DataConfig, Source};
use crate::corpus;
use crate::error::DataError;
use crate::manifest::{MANIFEST_FORMAT, Manifest, SourceKind};
use crate::markov::MarkovSource;
use crate::permutation::Permutation;
use crate::sample::{Microbatch, SampleId, Split};
use crate::tokenizer::Tokenizer;
use crate::tokens::Tokens;

/// Longest sequence: four times what any model of this kind reads, short enough that no product overflows.
const SEQUENCE_LEN_MAX: usize = 1 << 22;

/// Largest microbatch: far above any that a device holds, so that a wrong number is refused at once.
const MICROBATCH_SAMPLES_MAX: usize = 1 << 16;

/// Gives the tokens of numbered samples. Threads may share it.
#[derive(Debug)]
pub struct Dataset {
    manifest: Manifest,
    tokenizer: Tokenizer,
    tokens: Tokens,
    sequence_len: usize,
    entropy_floor: Option<f64>,
}

impl Dataset {
    /// Reads, tokenizes and cuts the text of a configuration. The same configuration and files give the same
    /// manifest everywhere.
    ///
    /// # Errors
    ///
    /// Files that are missing, unreadable, empty, malformed or too short, and bounds that cannot be met; see
    /// [`DataError`].
    pub fn open(config: &DataConfig) -> Result<Dataset, DataError> {
        let sequence_len = config.sequence_len;
        if !(1..=SEQUENCE_LEN_MAX).contains(&sequence_len) {
            return Err(DataError::SequenceLen { sequence_len, sequence_len_max: SEQUENCE_LEN_MAX });
        }
        if config.held_out_permille >= 1000 {
            return Err(DataError::HeldOutShare { permille: config.held_out_permille });
        }
        let tokenizer = Tokenizer::open(&config.tokenizer)?;
        let tokens = corpus::read(&config.source, &tokenizer)?;
        let count = tokens.len() as u64;
        let needed = sequence_len as u64 + 1;
        let windows = count / needed;
        if windows == 0 {
            return Err(DataError::TooShort { tokens: count, needed });
        }
        let held_out_samples = share(windows, config.held_out_permille);
        if held_out_samples == 0 && config.held_out_permille > 0 {
            return Err(DataError::TooFewHeldOut { held_out: 0, needed: 1 });
        }
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            source: source_kind(&config.source),
            tokenizer_digest: tokenizer.digest(),
            vocabulary: tokenizer.vocabulary(),
            tokens: count,
            tokens_digest: tokens.digest(),
            sequence_len: u32::try_from(sequence_len).expect("checked against its bound above"),
            train_samples: windows - held_out_samples,
            held_out_samples,
            seed: config.seed,
            digest: [0; 32],
        }
        .sealed();
        let entropy_floor = entropy_floor(&config.source, &tokenizer, sequence_len);
        Ok(Dataset { manifest, tokenizer, tokens, sequence_len, entropy_floor })
    }

    /// Gives the name of this data set.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Gives the tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Gives the number of token ids: one above the highest.
    pub fn vocabulary(&self) -> u32 {
        self.tokenizer.vocabulary()
    }

    /// Counts the samples of a split.
    pub fn samples(&self, split: Split) -> u64 {
        match split {
            Split::Train => self.manifest.train_samples,
            Split::HeldOut => self.manifest.held_out_samples,
        }
    }

    /// Checks that a model of this vocabulary has a row for every token id.
    ///
    /// # Errors
    ///
    /// [`DataError::VocabularyTooSmall`], with the highest id.
    pub fn check_vocabulary(&self, vocabulary: u32) -> Result<(), DataError> {
        if vocabulary < self.vocabulary() {
            return Err(DataError::VocabularyTooSmall { vocabulary, token: self.vocabulary() - 1 });
        }
        Ok(())
    }

    /// Gives the `sequence_len + 1` tokens of a sample: all but the last are inputs, all but the first targets.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownSample`] for an id at or above the number of samples.
    pub fn sample(&self, split: Split, sample: SampleId) -> Result<Vec<u32>, DataError> {
        let samples = self.samples(split);
        if sample.0 >= samples {
            return Err(DataError::UnknownSample { split, sample, samples });
        }
        let first_window = match split {
            Split::Train => 0,
            Split::HeldOut => self.manifest.train_samples,
        };
        let window = usize::try_from(first_window + sample.0).expect("the corpus is in memory");
        let start = window * (self.sequence_len + 1);
        Ok(self.tokens.range(start..start + self.sequence_len + 1))
    }

    /// Names the sample at a position. Training goes through all samples in a seeded order, then through all of
    /// them in another, and so on for ever. The held-out split is in the order of the text, again and again.
    ///
    /// # Panics
    ///
    /// For a split without samples, which [`Dataset::samples`] tells beforehand.
    pub fn sample_at(&self, split: Split, position: u64) -> SampleId {
        let samples = self.samples(split);
        assert!(samples > 0, "the {split} split has no samples");
        match split {
            Split::Train => {
                let order = Permutation::new(samples, self.manifest.seed, position / samples);
                SampleId(order.at(position % samples))
            }
            Split::HeldOut => SampleId(position % samples),
        }
    }

    /// Counts the whole microbatches of `size` samples in one pass over a split.
    pub fn microbatches(&self, split: Split, size: usize) -> u64 {
        self.samples(split) / (size as u64).max(1)
    }

    /// Gives the samples at positions `index * size` to `index * size + size`.
    ///
    /// # Errors
    ///
    /// Past the end of the held-out split, which is not gone through twice
    /// ([`DataError::TooFewHeldOut`]); a position above 2^64, or a size
    /// of 0 or above 65,536 ([`DataError::UnknownMicrobatch`]).
    pub fn microbatch(&self, split: Split, index: u64, size: usize) -> Result<Microbatch, DataError> {
        let rows = size as u64;
        let unknown = DataError::UnknownMicrobatch { index, size };
        let end = index.checked_add(1).and_then(|next| next.checked_mul(rows));
        let end = end.filter(|_| (1..=MICROBATCH_SAMPLES_MAX).contains(&size)).ok_or(unknown)?;
        match split {
            Split::Train => {}
            Split::HeldOut => {
                let held_out = self.manifest.held_out_samples;
                if end > held_out {
                    return Err(DataError::TooFewHeldOut { held_out, needed: end });
                }
            }
        }
        let mut inputs = Vec::new();
        let mut targets = Vec::new();
        for position in end - rows..end {
            let tokens = self.sample(split, self.sample_at(split, position))?;
            inputs.extend_from_slice(&tokens[..self.sequence_len]);
            targets.extend_from_slice(&tokens[1..]);
        }
        Ok(Microbatch { inputs, targets })
    }

    /// Gives the least mean loss that can be hoped for, in nats a token, where it is known: for the generated
    /// corpus read byte by byte. It counts that the first target of a sample has one predecessor in sight and
    /// not two; see [`MarkovSource::entropy_floor`].
    pub fn entropy_floor(&self) -> Option<f64> {
        self.entropy_floor
    }

    /// Turns text into token ids.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.tokenizer.encode(text)
    }

    /// Turns token ids into text for people.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens)
    }
}

/// Takes thousandths of a number, rounded down, without overflow.
fn share(windows: u64, permille: u32) -> u64 {
    let permille = u64::from(permille);
    windows / 1000 * permille + windows % 1000 * permille / 1000
}

fn source_kind(source: &Source) -> SourceKind {
    match source {
        Source::Generated(_) => SourceKind::Generated,
        Source::Text(_) => SourceKind::Text,
        Source::JsonLines { .. } => SourceKind::JsonLines,
    }
}

fn entropy_floor(source: &Source, tokenizer: &Tokenizer, sequence_len: usize) -> Option<f64> {
    match source {
        Source::Generated(config) if tokenizer.takes_any_bytes() => {
            Some(MarkovSource::new(config.seed).entropy_floor(sequence_len))
        }
        Source::Generated(_) | Source::Text(_) | Source::JsonLines { .. } => None,
    }
}
