//! Owns the form of what live replicas hand to a newcomer of their stage: a short header, then f32 numbers. It may not know
//! what the numbers mean, who carries them, or in how many chunks.
//!
//! All is little-endian, and nothing is optional:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | which part it is: `tr.agree` or `tr.own` and two spaces, see [`Part`] |
//! | 8 | [`FORMAT`] |
//! | 32 | BLAKE3 digest of the settings that both sides must share |
//! | 32 | BLAKE3 digest of the shapes that both sides must share |
//! | 8 each | counts: one of the agreed part, two of a replica's own |
//! | 32 | BLAKE3 digest of all bytes so far |
//! | 4 each | the numbers; how many follows from settings and shapes |
//!
//! The header's digest covers the header alone: the numbers travel in chunks that have digests already, and to hash a whole
//! stage once more would hold up the replica that trains while it gives.

use crate::error::ModelError;

/// The version of this form.
pub const FORMAT: u64 = 1;

/// The largest count that is believed, 2^48: no run takes as many steps, and none can count beyond u64 from here.
const COUNT_MAX: u64 = 1 << 48;

const DIGEST: usize = 32;

/// What of a replica's state is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What all replicas of a stage share after a commit.
    Agreed,
    /// What one replica has for itself: its inner optimizer's moments.
    Own,
}

impl Part {
    fn magic(self) -> [u8; 8] {
        match self {
            Part::Agreed => *b"tr.agree",
            Part::Own => *b"tr.own  ",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Part::Agreed => "agreed state",
            Part::Own => "replica's own state",
        }
    }
}

/// Why what was handed over is not taken, or cannot be given; the receiver is then as before.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// There are too few bytes, or too many.
    #[error("{} has {got} bytes, expected {expected}", part.word())]
    Length {
        /// Which part was expected.
        part: Part,
        /// Bytes that came.
        got: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// It is another part, or nothing of ours at all.
    #[error("{} begins with \"{}\", expected \"{}\"", part.word(), got.escape_ascii(), expected.escape_ascii())]
    Magic {
        /// Which part was expected.
        part: Part,
        /// How it begins.
        got: [u8; 8],
        /// How it should.
        expected: [u8; 8],
    },
    /// It was written in another form.
    #[error("{} has format {got}, expected {FORMAT}", part.word())]
    Format {
        /// Which part was expected.
        part: Part,
        /// Its format.
        got: u64,
    },
    /// The header is not what was written.
    #[error("{} has a damaged header: its digest is {got}, it says {expected}", part.word())]
    Header {
        /// Which part was expected.
        part: Part,
        /// Digest of what is there.
        got: blake3::Hash,
        /// Digest of what was written.
        expected: blake3::Hash,
    },
    /// It comes from a replica with other settings or of another stage.
    #[error("{} was given under {what} of digest {got}, expected {expected}", part.word())]
    Unlike {
        /// Which part was expected.
        part: Part,
        /// Settings or shapes.
        what: &'static str,
        /// The giver's digest.
        got: blake3::Hash,
        /// The receiver's.
        expected: blake3::Hash,
    },
    /// A count is beyond all reason.
    #[error("{} has {got} {what}, expected at most {COUNT_MAX}", part.word())]
    Count {
        /// Which part was expected.
        part: Part,
        /// What is counted.
        what: &'static str,
        /// The count.
        got: u64,
    },
    /// A number may not be what it is.
    #[error("{} has {value} as element {index} of {list}, expected {expected}", part.word())]
    Number {
        /// Which part was expected.
        part: Part,
        /// The list, or the tensor by its saved name.
        list: String,
        /// Where in the list.
        index: usize,
        /// What it is.
        value: f32,
        /// What it may be.
        expected: &'static str,
    },
    /// libtorch refused.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl HandoverError {
    /// Returns advice for a person, where there is some.
    pub fn hint(&self) -> Option<String> {
        let words = match self {
            HandoverError::Length { .. } | HandoverError::Header { .. } => {
                "it was cut or changed on its way; ask for it again, from another replica of the stage"
            }
            HandoverError::Magic { .. } => "the two parts of a replica's state may have changed places",
            HandoverError::Format { .. } => "use the same version of trestle at all replicas of a stage",
            HandoverError::Unlike { .. } => {
                "only a replica of the same stage, of a run with the same run file, can be taken over from"
            }
            HandoverError::Count { .. } | HandoverError::Number { .. } => {
                "training diverged at the replica that gave it, or it gave it in bad faith; ask another"
            }
            HandoverError::Model(error) => return error.hint(),
        };
        Some(words.to_string())
    }
}

/// What a part must look like here: both the giver and the receiver make it from their own state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub(crate) part: Part,
    /// Digest of the settings.
    pub(crate) settings: blake3::Hash,
    /// Digest of the shapes.
    pub(crate) shapes: blake3::Hash,
    /// How many f32 numbers follow the header.
    pub(crate) numbers: usize,
}

impl Form {
    /// Returns the header, with room for the numbers.
    pub(crate) fn begin<const COUNTS: usize>(&self, counts: [u64; COUNTS]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes(COUNTS));
        bytes.extend(self.part.magic());
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend(self.settings.as_bytes());
        bytes.extend(self.shapes.as_bytes());
        counts.iter().for_each(|count| bytes.extend(count.to_le_bytes()));
        let digest = blake3::hash(&bytes);
        bytes.extend(digest.as_bytes());
        bytes
    }

    /// Checks the header and the length, and returns the counts, named for errors by `names`, and the numbers' bytes.
    pub(crate) fn open<'a, const COUNTS: usize>(
        &self,
        bytes: &'a [u8],
        names: [&'static str; COUNTS],
    ) -> Result<([u64; COUNTS], &'a [u8]), HandoverError> {
        let part = self.part;
        let expected = self.bytes(COUNTS);
        let short = || HandoverError::Length { part, got: bytes.len(), expected };
        let mut rest = bytes;
        let (got, expected_magic) = (*take::<8>(&mut rest).ok_or_else(short)?, part.magic());
        if got != expected_magic {
            return Err(HandoverError::Magic { part, got, expected: expected_magic });
        }
        let got = u64::from_le_bytes(*take(&mut rest).ok_or_else(short)?);
        if got != FORMAT {
            return Err(HandoverError::Format { part, got });
        }
        let settings = blake3::Hash::from_bytes(*take::<DIGEST>(&mut rest).ok_or_else(short)?);
        let shapes = blake3::Hash::from_bytes(*take::<DIGEST>(&mut rest).ok_or_else(short)?);
        let mut counts = [0; COUNTS];
        for count in &mut counts {
            *count = u64::from_le_bytes(*take(&mut rest).ok_or_else(short)?);
        }
        let got = blake3::hash(&bytes[..bytes.len() - rest.len()]);
        let digest = blake3::Hash::from_bytes(*take::<DIGEST>(&mut rest).ok_or_else(short)?);
        if got != digest {
            return Err(HandoverError::Header { part, got, expected: digest });
        }
        for (what, got, expected) in [("settings", settings, self.settings), ("shapes", shapes, self.shapes)]
        {
            if got != expected {
                return Err(HandoverError::Unlike { part, what, got, expected });
            }
        }
        if bytes.len() != expected {
            return Err(short());
        }
        for (what, got) in names.into_iter().zip(counts) {
            if got > COUNT_MAX {
                return Err(HandoverError::Count { part, what, got });
            }
        }
        Ok((counts, rest))
    }

    /// Checks that all numbers of a list may be what they are.
    pub(crate) fn check(&self, list: &str, bytes: &[u8], range: Range) -> Result<(), HandoverError> {
        let mut numbers = bytes.as_chunks::<4>().0.iter().map(|&number| f32::from_le_bytes(number));
        let Some((index, value)) = numbers.by_ref().enumerate().find(|(_, number)| !range.holds(*number))
        else {
            return Ok(());
        };
        let (part, list, expected) = (self.part, list.to_string(), range.word());
        Err(HandoverError::Number { part, list, index, value, expected })
    }

    fn bytes(&self, counts: usize) -> usize {
        8 + 8 + DIGEST + DIGEST + 8 * counts + DIGEST + 4 * self.numbers
    }
}

/// Which numbers a list may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    /// All finite ones.
    Finite,
    /// Finite ones that have a square root.
    NotNegative,
}

impl Range {
    fn holds(self, number: f32) -> bool {
        match self {
            Range::Finite => number.is_finite(),
            Range::NotNegative => number.is_finite() && number >= 0.0,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Range::Finite => "a finite number",
            Range::NotNegative => "a finite number that is not negative",
        }
    }
}

fn take<'a, const LEN: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; LEN]> {
    let (taken, left) = rest.split_first_chunk::<LEN>()?;
    *rest = left;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form() -> Form {
        let (settings, shapes) = (blake3::hash(b"settings"), blake3::hash(b"shapes"));
        Form { part: Part::Own, settings, shapes, numbers: 3 }
    }

    fn blob(counts: [u64; 2]) -> Vec<u8> {
        let mut bytes = form().begin(counts);
        [1.0f32, -2.0, 0.5].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes
    }

    const NAMES: [&str; 2] = ["steps", "updates"];

    fn refused(form: Form, bytes: &[u8]) -> HandoverError {
        let error = form.open(bytes, NAMES).expect_err("it is malformed");
        assert!(error.hint().is_some(), "{error}");
        error
    }

    #[test]
    fn what_was_written_comes_back() {
        let bytes = blob([7, COUNT_MAX]);
        assert_eq!((bytes.len(), bytes.capacity()), (128 + 12, 128 + 12));
        let (counts, numbers) = form().open(&bytes, NAMES).expect("whole");
        assert_eq!((counts, numbers), ([7, COUNT_MAX], &bytes[128..]));
        assert!(form().check("moments", numbers, Range::Finite).is_ok());
        let error = form().check("moments", numbers, Range::NotNegative).expect_err("-2");
        let words = "replica's own state has -2 as element 1 of moments, expected a finite number that is not negative";
        assert_eq!(error.to_string(), words);
        assert!(error.hint().is_some());
    }

    #[test]
    fn every_length_but_its_own_is_refused() {
        let bytes = blob([7, 8]);
        for length in 0..bytes.len() {
            let error = refused(form(), &bytes[..length]);
            let HandoverError::Length { got, expected: 140, .. } = error else { panic!("{length}: {error}") };
            assert_eq!(got, length);
        }
        let longer = [&bytes[..], &[0; 4]].concat();
        assert!(matches!(refused(form(), &longer), HandoverError::Length { got: 144, expected: 140, .. }));
    }

    #[test]
    fn every_flipped_bit_of_the_header_is_refused() {
        let mut bytes = blob([7, 8]);
        for bit in 0..8 * 128 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = refused(form(), &bytes);
            let (magic, format) = (bit < 64, bit < 128);
            assert!(
                match error {
                    HandoverError::Magic { .. } => magic,
                    HandoverError::Format { .. } => format && !magic,
                    HandoverError::Header { .. } => !format,
                    HandoverError::Length { .. }
                    | HandoverError::Unlike { .. }
                    | HandoverError::Count { .. }
                    | HandoverError::Number { .. }
                    | HandoverError::Model(_) => false,
                },
                "bit {bit}: {error}"
            );
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(form().open(&bytes, NAMES).is_ok());
    }

    #[test]
    fn what_is_whole_but_another_is_refused_by_name() {
        let agreed = Form { part: Part::Agreed, ..form() };
        let error = refused(agreed, &blob([7, 8]));
        assert_eq!(error.to_string(), "agreed state begins with \"tr.own  \", expected \"tr.agree\"");
        let error = refused(Form { settings: blake3::hash(b"others"), ..form() }, &blob([7, 8]));
        assert!(error.to_string().contains("was given under settings of digest"), "{error}");
        let error = refused(Form { shapes: blake3::hash(b"others"), ..form() }, &blob([7, 8]));
        assert!(error.to_string().contains("was given under shapes of digest"), "{error}");
        let error = refused(form(), &blob([7, COUNT_MAX + 1]));
        let words = "replica's own state has 281474976710657 updates, expected at most 281474976710656";
        assert_eq!(error.to_string(), words);
    }

    #[test]
    fn what_is_not_finite_is_named() {
        for (bad, range) in [(f32::NAN, Range::NotNegative), (f32::INFINITY, Range::Finite)] {
            let bytes: Vec<u8> =
                [0.0, -0.0, bad].iter().flat_map(|number: &f32| number.to_le_bytes()).collect();
            let error = form().check("anchor", &bytes, range).expect_err("not finite");
            assert!(matches!(error, HandoverError::Number { index: 2, .. }), "{error}");
            assert!(form().check("anchor", &bytes[..8], range).is_ok());
        }
    }
}
