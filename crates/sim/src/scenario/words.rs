//! Words of a scenario: numbers with units, and lines of `key=value` pairs.
//!
//! Owns how a single line is taken apart, and the error that names line, word and remedy. Knows nothing of what a verb
//! means.

use crate::compute::Rate;
use crate::draws::Permille;
use crate::fault::When;
use std::fmt;
use trestle_protocol::time::Span;

/// Where a scenario cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The line, counted from 1.
    pub line: usize,
    /// The word in it.
    pub word: String,
    /// What is wrong with the word.
    pub problem: String,
    /// What to write instead.
    pub hint: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: `{}` {}", self.line, self.word, self.problem)
    }
}

impl std::error::Error for ParseError {}

/// A line of a scenario: a verb and its words.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// Its number, counted from 1.
    pub number: usize,
    /// Its first word.
    pub verb: &'a str,
    plain: Vec<&'a str>,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Line<'a> {
    /// Takes a line apart; `None` when it is empty or a comment.
    ///
    /// # Errors
    /// A key that is given twice.
    pub fn read(number: usize, text: &'a str) -> Result<Option<Self>, ParseError> {
        let text = text.split('#').next().unwrap_or_default();
        let mut words = text.split_whitespace();
        let Some(verb) = words.next() else { return Ok(None) };
        let mut line = Self { number, verb, plain: Vec::new(), pairs: Vec::new() };
        for word in words {
            match word.split_once('=') {
                Some((key, _)) if line.pairs.iter().any(|(known, _)| *known == key) => {
                    return Err(line.error(word, "is given twice", "keep one of the two"));
                }
                Some(pair) => line.pairs.push(pair),
                None => line.plain.push(word),
            }
        }
        Ok(Some(line))
    }

    /// Makes an error about a word of this line.
    pub fn error(&self, word: &str, problem: impl Into<String>, hint: impl Into<String>) -> ParseError {
        ParseError { line: self.number, word: word.into(), problem: problem.into(), hint: hint.into() }
    }

    /// Returns whether a key is given.
    pub fn has(&self, key: &str) -> bool {
        self.pair(key).is_some()
    }

    /// Returns the value of a key, without taking it.
    pub fn pair(&self, key: &str) -> Option<&'a str> {
        self.pairs.iter().find(|(known, _)| *known == key).map(|(_, word)| *word)
    }

    /// Takes the next plain word, if there is one.
    pub fn plain(&mut self) -> Option<&'a str> {
        if self.plain.is_empty() { None } else { Some(self.plain.remove(0)) }
    }

    /// Takes the next plain word; `hint` says what it should be.
    ///
    /// # Errors
    /// There is none.
    pub fn required(&mut self, hint: &str) -> Result<&'a str, ParseError> {
        self.plain().ok_or_else(|| self.error(self.verb, "lacks a word", hint))
    }

    /// Takes a whole number from `least` on as the next plain word.
    ///
    /// # Errors
    /// There is none, or it is no such number.
    pub fn number<T: TryFrom<u64>>(&mut self, least: u64, hint: &str) -> Result<T, ParseError> {
        let word = self.required(hint)?;
        let number =
            number(word).filter(|number| *number >= least).and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| self.error(word, format!("is no whole number from {least} on"), hint))
    }

    /// Takes the value of a key, if it is given, through `read`; `hint` shows a value that `read` takes.
    ///
    /// # Errors
    /// `read` does not take it.
    pub fn value<T>(
        &mut self,
        key: &str,
        read: impl Fn(&str) -> Option<T>,
        hint: &str,
    ) -> Result<Option<T>, ParseError> {
        let Some(at) = self.pairs.iter().position(|(known, _)| *known == key) else { return Ok(None) };
        let (_, word) = self.pairs.remove(at);
        let unreadable =
            || self.error(&format!("{key}={word}"), "cannot be read", format!("for example {key}={hint}"));
        read(word).map(Some).ok_or_else(unreadable)
    }

    /// Sets `field` to the value of a key, if it is given.
    ///
    /// # Errors
    /// `read` does not take it.
    pub fn set<T>(
        &mut self,
        key: &str,
        field: &mut T,
        read: impl Fn(&str) -> Option<T>,
        hint: &str,
    ) -> Result<(), ParseError> {
        if let Some(value) = self.value(key, read, hint)? {
            *field = value;
        }
        Ok(())
    }

    /// Makes sure that every word was taken; `known` lists what the verb takes.
    ///
    /// # Errors
    /// Names the first word that was not.
    pub fn end(self, known: &str) -> Result<(), ParseError> {
        let rest = self.pairs.first().map(|(key, _)| *key).or(self.plain.first().copied());
        match rest {
            None => Ok(()),
            Some(word) => {
                let hint = if known.is_empty() {
                    format!("`{}` takes nothing more", self.verb)
                } else {
                    format!("`{}` takes {known}", self.verb)
                };
                Err(self.error(word, format!("is nothing that `{}` knows", self.verb), hint))
            }
        }
    }
}

/// Reads a whole number; underscores may part its digits.
pub fn number(word: &str) -> Option<u64> {
    let digits: String = word.chars().filter(|c| *c != '_').collect();
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// Reads a whole number from 1 on that fits its type.
pub fn positive<T: TryFrom<u64>>(word: &str) -> Option<T> {
    number(word).filter(|number| *number > 0).and_then(|number| T::try_from(number).ok())
}

/// Reads a whole number that fits its type.
pub fn whole<T: TryFrom<u64>>(word: &str) -> Option<T> {
    number(word).and_then(|number| T::try_from(number).ok())
}

/// Reads a length of time: `250us`, `3ms`, `1.5s`, `2min`, `48h`.
pub fn span(word: &str) -> Option<Span> {
    let units = [("us", 1.0), ("ms", 1e3), ("min", 6e7), ("h", 3.6e9), ("s", 1e6)];
    let micros = with_unit(word, &units)?.round();
    // An hour of a century still fits.
    (micros <= 3.6e15).then_some(Span(micros as u64))
}

/// Reads bits in a second: `64kbit`, `856Mbit`, `1.5Gbit`; `unlimited` is 0.
pub fn bandwidth(word: &str) -> Option<u64> {
    if word == "unlimited" {
        return Some(0);
    }
    let bits = with_unit(word, &[("kbit", 1e3), ("Mbit", 1e6), ("Gbit", 1e9)])?.round();
    (1.0..=1e15).contains(&bits).then_some(bits as u64)
}

/// Reads a number of bytes: `64kB`, `12.5MB`, `1GB`.
pub fn bytes(word: &str) -> Option<u64> {
    let bytes = with_unit(word, &[("kB", 1e3), ("MB", 1e6), ("GB", 1e9)])?.round();
    (1.0..=1e12).contains(&bytes).then_some(bytes as u64)
}

/// Reads bytes in a second: `300MB/s`; `unlimited` is 0.
pub fn rate(word: &str) -> Option<Rate> {
    if word == "unlimited" { Some(Rate(0)) } else { bytes(word.strip_suffix("/s")?).map(Rate) }
}

/// Reads operations in a second: `500M`, `80G`, `20T`, `1.2P`.
pub fn flops(word: &str) -> Option<f64> {
    let flops = with_unit(word, &[("M", 1e6), ("G", 1e9), ("T", 1e12), ("P", 1e15)])?;
    (flops > 0.0).then_some(flops)
}

/// Reads a share: `5%`, `12.5%`, at most all.
pub fn permille(word: &str) -> Option<Permille> {
    let thousandths = (with_unit(word, &[("%", 10.0)])?).round();
    (thousandths <= 1000.0).then_some(Permille(thousandths as u32))
}

/// Reads by how many parts in a million a clock is off: `200`, `-200`; none runs at half or twice the pace.
pub fn ppm(word: &str) -> Option<i64> {
    let (sign, digits) = word.strip_prefix('-').map_or((1, word), |digits| (-1, digits));
    let size = number(digits).and_then(|number| i64::try_from(number).ok())?;
    (size < 500_000).then_some(sign * size)
}

/// Reads a moment: `step:20` when 20 steps are complete, or a length of time after the start.
pub fn when(word: &str) -> Option<When> {
    match word.strip_prefix("step:") {
        Some(steps) => positive(steps).map(When::Steps),
        None => span(word).map(When::After),
    }
}

/// Reads a real number of at least 0.
pub fn real(word: &str) -> Option<f64> {
    word.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)
}

fn with_unit(word: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| word.strip_suffix(unit).map(|number| (number, *factor)))?;
    let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if plain { number.parse::<f64>().ok().map(|number| number * factor) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_carry_their_units() {
        assert_eq!(
            [span("250us"), span("1.5s"), span("2min"), span("48h")],
            [Some(Span(250)), Some(Span(1_500_000)), Some(Span(120_000_000)), Some(Span(172_800_000_000))]
        );
        assert_eq!([span("3"), span("ms"), span("-3ms"), span("1e3ms"), span("nans")], [None; 5]);
        assert_eq!(
            [bandwidth("856Mbit"), bandwidth("unlimited"), bandwidth("0Mbit")],
            [Some(856_000_000), Some(0), None]
        );
        assert_eq!([bytes("12.5MB"), bytes("7"), bytes("0kB")], [Some(12_500_000), None, None]);
        assert_eq!(
            [rate("2GB/s"), rate("2GB"), rate("unlimited")],
            [Some(Rate(2_000_000_000)), None, Some(Rate(0))]
        );
        assert_eq!([permille("12.5%"), permille("101%")], [Some(Permille(125)), None]);
        assert_eq!([ppm("200"), ppm("-3"), ppm("500000"), ppm("--1")], [Some(200), Some(-3), None, None]);
        assert_eq!([number("10_000"), number("-1"), number("")], [Some(10_000), None, None]);
        assert_eq!(
            [when("step:20"), when("12s"), when("step:0")],
            [Some(When::Steps(20)), Some(When::After(Span::seconds(12))), None]
        );
    }

    #[test]
    fn a_line_names_the_word_that_it_does_not_know() {
        let mut line =
            Line::read(3, "link latency=4ms lateny=5ms # far").expect("reads").expect("has a verb");
        assert_eq!(line.value("latency", span, "40ms"), Ok(Some(Span::millis(4))));
        let error = line.end("latency, bandwidth").expect_err("a word is left");
        assert_eq!(error.to_string(), "line 3: `lateny` is nothing that `link` knows");
        assert_eq!(error.hint, "`link` takes latency, bandwidth");
        let twice = Line::read(1, "link latency=1ms latency=2ms").expect_err("twice");
        assert_eq!(twice.to_string(), "line 1: `latency=2ms` is given twice");
        assert!(Line::read(1, "  # nothing").expect("reads").is_none());
    }
}
