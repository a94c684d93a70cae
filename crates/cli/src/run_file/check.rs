//! Checks of single fields: whole numbers, real numbers and words, each with its bounds and its default.
//!
//! Owns how a refusal is worded. May not know any field by name.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::run_file::error::RunFileError;
use crate::run_file::source::Written;

/// What a field holds when the file does not say.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Absent<T> {
    /// An error: it has no default.
    Refused,
    /// The same as if it held this.
    Means(T),
}

/// The real numbers that a field may hold; never infinite, never "not a number".
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reals {
    /// Above 0.
    Positive,
    /// 0 or above.
    NotNegative,
    /// From 0 to 1, both included.
    Share,
    /// Above 0, to 1, included.
    Part,
    /// From 0, included, to 1, excluded.
    Decay,
}

impl Reals {
    fn holds(self, value: f64) -> bool {
        let fits = match self {
            Reals::Positive => value > 0.0,
            Reals::NotNegative => value >= 0.0,
            Reals::Share => (0.0..=1.0).contains(&value),
            Reals::Part => value > 0.0 && value <= 1.0,
            Reals::Decay => (0.0..1.0).contains(&value),
        };
        fits && value.is_finite()
    }

    fn words(self) -> &'static str {
        match self {
            Reals::Positive => "a number above 0",
            Reals::NotNegative => "a number not below 0",
            Reals::Share => "a number from 0 to 1",
            Reals::Part => "a number above 0 and not above 1",
            Reals::Decay => "a number from 0 to below 1",
        }
    }
}

/// Checks the fields of one run file.
#[derive(Debug)]
pub(crate) struct Checker<'a> {
    /// Where the fields stand.
    pub(crate) written: &'a Written,
}

impl Checker<'_> {
    /// Checks a whole number. `T` must be able to hold all of `allowed`.
    pub(crate) fn whole<T: TryFrom<u64>>(
        &self,
        field: &'static str,
        given: Option<i64>,
        absent: Absent<u64>,
        allowed: RangeInclusive<u64>,
    ) -> Result<T, RunFileError> {
        let words = || format!("a whole number from {} to {}", allowed.start(), allowed.end());
        let value = match (given, absent) {
            (Some(value), _) => u64::try_from(value).ok().filter(|value| allowed.contains(value)),
            (None, Absent::Means(value)) => Some(value),
            (None, Absent::Refused) => return Err(self.missing(field, words())),
        };
        let value = value.ok_or_else(|| {
            let given = given.unwrap_or_default();
            self.refuse(field, given, words(), format!("for instance: --set {field}={}", allowed.start()))
        })?;
        Ok(T::try_from(value).ok().expect("the type holds all that is allowed"))
    }

    /// Checks a real number.
    pub(crate) fn real(
        &self,
        field: &'static str,
        given: Option<f64>,
        absent: Absent<f64>,
        allowed: Reals,
    ) -> Result<f64, RunFileError> {
        let value = match (given, absent) {
            (Some(value), _) | (None, Absent::Means(value)) => value,
            (None, Absent::Refused) => return Err(self.missing(field, allowed.words().into())),
        };
        if allowed.holds(value) {
            return Ok(value);
        }
        Err(self.refuse(field, value, allowed.words().into(), "docs/run-file.md says what is usual".into()))
    }

    /// Checks a word that stands for a choice.
    pub(crate) fn word<T: Copy>(
        &self,
        field: &'static str,
        given: Option<&str>,
        default: T,
        choices: &[(&str, T)],
    ) -> Result<T, RunFileError> {
        let Some(given) = given else { return Ok(default) };
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == given) {
            return Ok(*choice);
        }
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let hint = match choices.iter().find(|(word, _)| word.eq_ignore_ascii_case(given)) {
            Some((word, _)) => format!("write it in lower case: \"{word}\""),
            None => "docs/run-file.md says what each choice means".into(),
        };
        Err(self.refuse(field, format!("\"{given}\""), words.join(" or "), hint))
    }

    /// Refuses what a field holds.
    pub(crate) fn refuse(
        &self,
        field: &'static str,
        value: impl Display,
        allowed: String,
        hint: String,
    ) -> RunFileError {
        RunFileError::Value {
            origin: self.written.origin(field),
            field,
            value: value.to_string(),
            allowed,
            hint,
        }
    }

    /// Refuses that a field is not there.
    pub(crate) fn missing(&self, field: &'static str, allowed: String) -> RunFileError {
        RunFileError::Missing { origin: self.written.origin(field), field, allowed }
    }
}
