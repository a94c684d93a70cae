//! What a check says: where, what it found, and what to do instead. Knows no check.

use std::fmt;

/// States one breach of the style.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// The file, from the repository's root.
    pub path: String,
    /// The line, from 1; 0 when the whole file is meant.
    pub line: usize,
    /// What was found there.
    pub found: String,
    /// What to do instead.
    pub instead: String,
}

impl Complaint {
    /// Makes a complaint about one line (`line` from 1), or about the file as a whole (`line` 0).
    pub fn new(path: &str, line: usize, found: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, found: found.into(), instead: instead.into() }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, found, instead } = self;
        match line {
            0 => write!(out, "{path}: {found}")?,
            line => write!(out, "{path}:{line}: {found}")?,
        }
        write!(out, "\n    instead: {instead}")
    }
}

/// Lists complaints for a person to read, with their number at the end.
pub fn report(complaints: &[Complaint]) -> String {
    let mut text: String = complaints.iter().map(|complaint| format!("{complaint}\n\n")).collect();
    text.push_str(&format!("{} to tidy; the reasons are in STYLE.md and ARCHITECTURE.md", complaints.len()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_reads_as_place_finding_and_advice() {
        let line = Complaint::new("a/b.rs", 7, "too long", "split it");
        assert_eq!(line.to_string(), "a/b.rs:7: too long\n    instead: split it");
        let file = Complaint::new("a/b.rs", 0, "too long", "split it");
        assert_eq!(file.to_string(), "a/b.rs: too long\n    instead: split it");
        assert!(report(&[line, file]).contains("\n2 to tidy"));
    }
}
