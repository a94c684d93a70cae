//! Quantities as people write them in a fleet file: `856Mbit`, `80GB`, `30ms`, `312T`, `1.1B`.
//!
//! Owns the units. May not know what is measured.

/// A kind of quantity, with the units it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Bytes a second of a link, written in bits: `856Mbit`, `1.2Gbit`.
    Rate,
    /// Bytes: `80GB`, `46GiB`.
    Bytes,
    /// Seconds: `30ms`, `5min`.
    Time,
    /// A number of things, or of operations a second: `312T`, `1.1B`.
    Count,
}

impl Quantity {
    fn units(self) -> &'static [(&'static str, f64)] {
        match self {
            Quantity::Rate => &[("kbit", 125.0), ("Mbit", 125e3), ("Gbit", 125e6)],
            Quantity::Bytes => {
                &[("MB", 1e6), ("GB", 1e9), ("TB", 1e12), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0)]
            }
            Quantity::Time => &[("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86_400.0)],
            Quantity::Count => {
                &[("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("B", 1e9), ("T", 1e12), ("P", 1e15)]
            }
        }
    }

    /// Says what a text of this kind looks like.
    pub fn example(self) -> &'static str {
        match self {
            Quantity::Rate => "a rate such as \"856Mbit\" or \"1.2Gbit\"",
            Quantity::Bytes => "a size such as \"80GB\" or \"24GiB\"",
            Quantity::Time => "a time such as \"30ms\" or \"5min\"",
            Quantity::Count => "a number such as \"312T\" or \"1.1B\"",
        }
    }

    /// Reads a text in bytes a second, bytes, seconds, or ones; `None` where it is no such quantity, or below 0.
    pub fn read(self, text: &str) -> Option<f64> {
        let text = text.trim();
        let digits =
            text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '_')).unwrap_or(text.len());
        let number: f64 = text[..digits].replace('_', "").parse().ok()?;
        let unit = text[digits..].trim();
        let (_, size) = self.units().iter().find(|(name, _)| *name == unit)?;
        let value = number * size;
        value.is_finite().then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_in_base_units() {
        for (kind, text, value) in [
            (Quantity::Rate, "856Mbit", 107e6),
            (Quantity::Rate, "1.2 Gbit", 150e6),
            (Quantity::Bytes, "80GB", 80e9),
            (Quantity::Bytes, "1GiB", 1_073_741_824.0),
            (Quantity::Time, "30ms", 0.03),
            (Quantity::Time, "2h", 7200.0),
            (Quantity::Count, "312T", 312e12),
            (Quantity::Count, "1_000", 1000.0),
        ] {
            let read = kind.read(text).expect(text);
            assert!((read / value - 1.0).abs() < 1e-12, "{text}: {read}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for (kind, text) in [
            (Quantity::Rate, "856"),
            (Quantity::Rate, "856MB"),
            (Quantity::Bytes, "-80GB"),
            (Quantity::Time, ""),
            (Quantity::Count, "many"),
            (Quantity::Count, "1.2.3T"),
        ] {
            assert_eq!(kind.read(text), None, "{text}");
        }
    }
}
