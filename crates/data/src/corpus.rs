//! Reading: from a source to one long row of token ids.
//!
//! Owns files, folders, lines and the joints between documents. May not know samples or splits.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::config::Source;
use crate::error::DataError;
use crate::markov::MarkovSource;
use crate::pieces::{PIECE_BYTES_MAX, PieceError, Pieces};
use crate::tokenizer::Tokenizer;
use crate::tokens::Tokens;

/// Longest line of a JSON lines file: far above any document, and still held in memory with ease.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// Longest generated corpus: it is held in memory, and repeats nothing a model could still learn long before.
const GENERATED_TOKENS_MAX: u64 = 1 << 30;

/// Reads a whole source. Between two documents stands the tokenizer's end-of-text token where it has one,
/// else what it makes of a line end. Empty documents are passed over.
pub(crate) fn read(source: &Source, tokenizer: &Tokenizer) -> Result<Tokens, DataError> {
    let mut joined = Joined { tokenizer, tokens: Tokens::new(tokenizer.vocabulary()), any: Any::None };
    match source {
        Source::Generated(config) => {
            let tokens = config.tokens;
            if !(1..=GENERATED_TOKENS_MAX).contains(&tokens) {
                return Err(DataError::GeneratedTokens { tokens, tokens_max: GENERATED_TOKENS_MAX });
            }
            let length = usize::try_from(tokens).expect("checked against its bound above");
            let text = MarkovSource::new(config.seed).text(length);
            joined.document(text.as_slice(), Path::new("generated"))?;
        }
        Source::Text(path) => {
            let metadata = fs::metadata(path).map_err(|source| DataError::from_io(path, source))?;
            let files = if metadata.is_dir() { text_files(path)? } else { vec![path.clone()] };
            for file in &files {
                joined.document(open(file)?, file)?;
            }
            joined.some(path)?;
        }
        Source::JsonLines { path, field } => {
            json_lines(path, field, &mut joined)?;
            joined.some(path)?;
        }
    }
    joined.tokens.shrink();
    Ok(joined.tokens)
}

fn open(path: &Path) -> Result<File, DataError> {
    File::open(path).map_err(|source| DataError::from_io(path, source))
}

/// Lists every `.txt` file below a folder in the order of their paths, part by part. Folders behind symbolic
/// links are not entered, so that a circle of links ends.
fn text_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(current) = folders.pop() {
        let failed = |source: io::Error| DataError::from_io(&current, source);
        for entry in fs::read_dir(&current).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let is_text = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"));
            if entry.file_type().map_err(failed)?.is_dir() {
                folders.push(path);
            } else if is_text && path.is_file() {
                files.push(path);
            }
        }
    }
    if files.is_empty() {
        return Err(DataError::NoTextFiles { path: folder.to_path_buf() });
    }
    files.sort();
    Ok(files)
}

fn json_lines(path: &Path, field: &str, joined: &mut Joined<'_>) -> Result<(), DataError> {
    let mut reader = BufReader::new(open(path)?);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes);
        let read = read.map_err(|source| DataError::from_io(path, source))?;
        if read == 0 {
            break;
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let refused = |reason: String| DataError::JsonLine { path: path.to_path_buf(), line, reason };
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&bytes).map_err(|error| refused(json_reason(&error)))?;
        let text = object.get(field).and_then(serde_json::Value::as_str);
        let text = text.ok_or_else(|| DataError::JsonField {
            path: path.to_path_buf(),
            line,
            field: field.to_owned(),
        })?;
        joined.document(text.as_bytes(), path)?;
    }
    Ok(())
}

/// Gives what the parser said, without its own line number: each line is parsed by itself.
fn json_reason(error: &serde_json::Error) -> String {
    let (text, column) = (error.to_string(), error.column());
    let reason = text.strip_suffix(&format!(" at line 1 column {column}")).unwrap_or(&text);
    format!("{reason} at column {column}")
}

/// Says whether a document has been joined on yet.
#[derive(Clone, Copy)]
enum Any {
    None,
    Some,
}

/// Joins documents into one row of token ids.
struct Joined<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Tokens,
    any: Any,
}

impl Joined<'_> {
    fn document(&mut self, reader: impl Read, path: &Path) -> Result<(), DataError> {
        if self.tokenizer.takes_any_bytes() { self.bytes(reader, path) } else { self.text(reader, path) }
    }

    fn bytes(&mut self, mut reader: impl Read, path: &Path) -> Result<(), DataError> {
        let mut buffer = vec![0; PIECE_BYTES_MAX];
        let mut started = Any::None;
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(DataError::from_io(path, source)),
            };
            self.begin(&mut started)?;
            self.tokens.extend_bytes(&buffer[..read]);
        }
    }

    fn text(&mut self, reader: impl Read, path: &Path) -> Result<(), DataError> {
        let mut pieces = Pieces::new(reader, PIECE_BYTES_MAX);
        let mut started = Any::None;
        loop {
            let piece = match pieces.next_piece() {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(()),
                Err(PieceError::Read(source)) => return Err(DataError::from_io(path, source)),
                Err(PieceError::NotUtf8(offset)) => {
                    return Err(DataError::NotUtf8 { path: path.to_path_buf(), offset });
                }
            };
            self.begin(&mut started)?;
            let ids = self.tokenizer.encode(&piece)?;
            self.append(&ids)?;
        }
    }

    /// Puts the joint before the first token of every document but the first.
    fn begin(&mut self, started: &mut Any) -> Result<(), DataError> {
        if let (Any::None, Any::Some) = (*started, self.any) {
            let joint = match self.tokenizer.end_of_text() {
                Some(id) => vec![id],
                None => self.tokenizer.encode("\n")?,
            };
            self.append(&joint)?;
        }
        *started = Any::Some;
        self.any = Any::Some;
        Ok(())
    }

    fn append(&mut self, ids: &[u32]) -> Result<(), DataError> {
        let vocabulary = self.tokenizer.vocabulary();
        if let Some(&token) = ids.iter().find(|&&id| id >= vocabulary) {
            return Err(DataError::VocabularyTooSmall { vocabulary, token });
        }
        self.tokens.extend(ids).map_err(|token| DataError::VocabularyTooSmall { vocabulary, token })
    }

    fn some(&self, path: &Path) -> Result<(), DataError> {
        match self.any {
            Any::Some => Ok(()),
            Any::None => Err(DataError::Empty { path: path.to_path_buf() }),
        }
    }
}
