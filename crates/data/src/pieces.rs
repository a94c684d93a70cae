//! A document read piece by piece, so that a long one need not be held whole.
//!
//! Owns where a document is cut and the check that it is UTF-8. May not know tokenizers.

use std::io::{self, Read};

/// Longest piece. Tokenizers need some hundred bytes of working memory a byte of text, so a piece costs about
/// 100 MiB at worst; pieces this long make the cuts rare.
pub(crate) const PIECE_BYTES_MAX: usize = 1 << 20;

/// Says why a piece could not be had.
#[derive(Debug)]
pub(crate) enum PieceError {
    /// The reader failed.
    Read(io::Error),
    /// A byte begins no character; it lies at this offset in the document.
    NotUtf8(u64),
}

/// Cuts a document into pieces of text.
///
/// A piece ends after the last line end that is followed by something other than white space, where
/// tokenizers cut anyway; a stretch without one is cut between two characters. The cuts depend on the text
/// alone, not on how the reader hands it out.
pub(crate) struct Pieces<R> {
    reader: R,
    bytes_max: usize,
    pending: Vec<u8>,
    offset: u64,
    ended: bool,
}

impl<R: Read> Pieces<R> {
    /// Begins a document. `bytes_max` is at least the four bytes of the longest character.
    pub(crate) fn new(reader: R, bytes_max: usize) -> Pieces<R> {
        assert!(bytes_max >= 4, "a piece of {bytes_max} bytes may be too short for a character");
        Pieces { reader, bytes_max, pending: Vec::new(), offset: 0, ended: false }
    }

    /// Gives the next piece, which is never empty, or `None` at the end.
    pub(crate) fn next_piece(&mut self) -> Result<Option<String>, PieceError> {
        let wanted = self.bytes_max - self.pending.len();
        if !self.ended {
            let room = u64::try_from(wanted).unwrap_or(u64::MAX);
            let read = self.reader.by_ref().take(room).read_to_end(&mut self.pending);
            self.ended = read.map_err(PieceError::Read)? < wanted;
        }
        if self.pending.is_empty() {
            return Ok(None);
        }
        let rest = self.pending.split_off(if self.ended { self.pending.len() } else { self.cut()? });
        let bytes = core::mem::replace(&mut self.pending, rest);
        let cut_bytes = bytes.len();
        let text = String::from_utf8(bytes).map_err(|error| self.bad_byte(error.utf8_error()))?;
        self.offset += u64::try_from(cut_bytes).unwrap_or(u64::MAX);
        Ok(Some(text))
    }

    fn cut(&self) -> Result<usize, PieceError> {
        let line_end =
            self.pending.windows(2).rposition(|pair| pair[0] == b'\n' && !pair[1].is_ascii_whitespace());
        if let Some(at) = line_end {
            return Ok(at + 1);
        }
        match core::str::from_utf8(&self.pending) {
            Ok(_) => Ok(self.pending.len()),
            Err(error) if error.error_len().is_none() => Ok(error.valid_up_to()),
            Err(error) => Err(self.bad_byte(error)),
        }
    }

    fn bad_byte(&self, error: core::str::Utf8Error) -> PieceError {
        PieceError::NotUtf8(self.offset + u64::try_from(error.valid_up_to()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &[u8], bytes_max: usize) -> Result<Vec<String>, PieceError> {
        let mut pieces = Pieces::new(text, bytes_max);
        let mut all = Vec::new();
        while let Some(piece) = pieces.next_piece()? {
            all.push(piece);
        }
        Ok(all)
    }

    #[test]
    fn a_piece_ends_at_a_line_end_before_text() {
        let all = pieces(b"one\ntwo\n\n three\nfour", 16).expect("plain text");
        assert_eq!(all, ["one\n", "two\n\n three\n", "four"]);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let text = "aé€🚂".repeat(20);
        let all = pieces(text.as_bytes(), 7).expect("plain text");
        assert_eq!(all.concat(), text);
        assert!(all.iter().all(|piece| !piece.is_empty() && piece.len() <= 7));
    }

    #[test]
    fn a_document_as_long_as_a_piece_loses_nothing() {
        for length in 1..40 {
            let text = "abc\n".repeat(length);
            assert_eq!(pieces(text.as_bytes(), 8).expect("plain text").concat(), text);
        }
    }

    #[test]
    fn a_bad_byte_is_named_by_its_place_in_the_document() {
        let mut text = b"line\n".repeat(10);
        text[33] = 0xff;
        let Err(PieceError::NotUtf8(offset)) = pieces(&text, 8) else { panic!("0xff is no character") };
        assert_eq!(offset, 33);
        let Err(PieceError::NotUtf8(offset)) = pieces(b"abc\xe2\x82", 100) else { panic!("cut short") };
        assert_eq!(offset, 3);
    }
}
