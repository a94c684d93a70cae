//! Numbers as people read them: counts with separators, bytes, and parts of a hundred.
//!
//! Owns the wording of quantities. May not know what is counted.

/// Writes a whole number with a comma between thousands.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes a number of bytes with a binary unit, to three digits.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64;
    let mut unit = "";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {unit}")
}

/// Writes a large number with a decimal prefix: `1.50 T` for 1.5e12.
pub(crate) fn scaled(number: f64) -> String {
    const PREFIXES: [(f64, &str); 5] = [(1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")];
    let prefix = PREFIXES.into_iter().find(|(size, _)| number >= *size);
    prefix.map_or_else(|| format!("{number:.1} "), |(size, prefix)| format!("{:.2}{prefix}", number / size))
}

/// Writes a ratio as parts of a hundred, to one decimal.
pub(crate) fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let counts = [(0, "0"), (999, "999"), (1000, "1,000"), (99_615_863_808, "99,615,863,808")];
        for (number, text) in counts {
            assert_eq!(count(number), text);
        }
        for (number, text) in
            [(1023, "1023 B"), (1024, "1.00 KiB"), (2_304_000, "2.20 MiB"), (12_000_000_000, "11.2 GiB")]
        {
            assert_eq!(bytes(number), text);
        }
        assert_eq!((scaled(1.5e12).as_str(), scaled(12.0).as_str()), ("1.50 T", "12.0 "));
        assert_eq!(percent(0.308), "30.8 %");
    }
}
