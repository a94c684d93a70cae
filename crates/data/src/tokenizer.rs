//! Text to token ids and back.
//!
//! Owns the two kinds of tokenizer and their digest. May not know where text comes from.

use std::path::Path;

use crate::config::TokenizerKind;
use crate::error::DataError;

/// Names under which tokenizers keep the token that ends a document, likeliest first.
const END_OF_TEXT: [&str; 7] =
    ["<|endoftext|>", "<|end_of_text|>", "<|eos|>", "<|im_end|>", "</s>", "<eos>", "[EOS]"];

/// Turns text into token ids and back.
pub struct Tokenizer {
    form: Form,
    vocabulary: u32,
    end_of_text: Option<u32>,
    digest: [u8; 32],
}

enum Form {
    Bytes,
    File(Box<tokenizers::Tokenizer>),
}

impl Tokenizer {
    /// Opens a tokenizer.
    ///
    /// # Errors
    ///
    /// A tokenizer file that is missing, unreadable or not a `tokenizer.json`.
    pub fn open(kind: &TokenizerKind) -> Result<Tokenizer, DataError> {
        match kind {
            TokenizerKind::Bytes => Ok(Tokenizer {
                form: Form::Bytes,
                vocabulary: 256,
                end_of_text: None,
                digest: *blake3::hash(b"trestle-data 1 bytes").as_bytes(),
            }),
            TokenizerKind::File(path) => Tokenizer::open_file(path),
        }
    }

    fn open_file(path: &Path) -> Result<Tokenizer, DataError> {
        let refused = |reason: String| DataError::Tokenizer { path: path.to_path_buf(), reason };
        let bytes = std::fs::read(path).map_err(|source| DataError::from_io(path, source))?;
        let mut file =
            tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| refused(error.to_string()))?;
        // Both belong to the use a tokenizer was published with; here they would cut the corpus short.
        file.with_truncation(None).map_err(|error| refused(error.to_string()))?;
        file.with_padding(None);
        // Ids may have gaps, so the highest counts and not their number.
        let highest = file.get_vocab(true).into_values().max();
        let vocabulary = highest.and_then(|id| id.checked_add(1));
        let vocabulary = vocabulary.ok_or_else(|| refused("its vocabulary is empty".to_owned()))?;
        let end_of_text = END_OF_TEXT.iter().find_map(|name| file.token_to_id(name));
        let digest = *blake3::hash(&bytes).as_bytes();
        Ok(Tokenizer { form: Form::File(Box::new(file)), vocabulary, end_of_text, digest })
    }

    /// Gives the number of token ids: one above the highest.
    pub fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// Gives the token that ends a document, where the tokenizer has one.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// Gives the BLAKE3 digest of the tokenizer file, or a fixed one for bytes.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Says whether a token is a byte, so that any content can be read.
    pub(crate) fn takes_any_bytes(&self) -> bool {
        match &self.form {
            Form::Bytes => true,
            Form::File(_) => false,
        }
    }

    /// Turns text into token ids. No begin or end token is added; a special token that is spelled out in the
    /// text is read as that token.
    ///
    /// # Errors
    ///
    /// What a tokenizer file refuses: for one, an unknown word where it has no token for such.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        match &self.form {
            Form::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Form::File(file) => match file.encode_fast(text, false) {
                Ok(encoding) => Ok(encoding.get_ids().to_vec()),
                Err(error) => Err(DataError::Encode { reason: error.to_string() }),
            },
        }
    }

    /// Turns token ids into text for people. What is no text (a cut character, an id outside the vocabulary)
    /// shows as the replacement character.
    pub fn decode(&self, tokens: &[u32]) -> String {
        match &self.form {
            Form::Bytes => {
                let mut text = String::new();
                // Runs of bytes are read together, since a character may be several; an id above 255 ends one.
                for run in tokens.split_inclusive(|&id| id > 255) {
                    let bytes: Vec<u8> = run.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
                    text.push_str(&String::from_utf8_lossy(&bytes));
                    if bytes.len() < run.len() {
                        text.push(char::REPLACEMENT_CHARACTER);
                    }
                }
                text
            }
            Form::File(file) => file.decode(tokens, false).unwrap_or_else(|_| {
                let words = tokens.iter().map(|&id| file.id_to_token(id));
                words.map(|word| word.unwrap_or_else(|| char::REPLACEMENT_CHARACTER.to_string())).collect()
            }),
        }
    }
}

impl core::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Tokenizer").field("vocabulary", &self.vocabulary).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_they_were() {
        let bytes = Tokenizer::open(&TokenizerKind::Bytes).expect("needs no file");
        let text = "a bridge, ein Träger, 橋 🌉\n\0";
        let tokens = bytes.encode(text).expect("bytes take any text");
        assert_eq!(tokens.len(), text.len());
        assert_eq!(bytes.decode(&tokens), text);
        assert_eq!(bytes.vocabulary(), 256);
    }

    #[test]
    fn ids_that_are_no_text_show_as_the_replacement_character() {
        let bytes = Tokenizer::open(&TokenizerKind::Bytes).expect("needs no file");
        assert_eq!(bytes.decode(&[97, 256, 98]), "a\u{fffd}b");
        assert_eq!(bytes.decode(&[97, 0xe2, 0x82]), "a\u{fffd}");
        assert_eq!(bytes.decode(&[]), "");
    }
}
