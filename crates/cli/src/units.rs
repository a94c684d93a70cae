//! Numbers as people read them: counts with separators, bytes, and parts of a hundred.
//!
//! Owns the wording of quantities. May not know what is counted.

use std::time::Duration;

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

/// Writes a length of time with a unit that fits it.
pub(crate) fn span(seconds: f64) -> String {
    const UNITS: [(f64, &str); 4] = [(86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")];
    let unit = UNITS.into_iter().find(|(size, _)| seconds >= 2.0 * size);
    unit.map_or_else(
        || format!("{:.0} ms", seconds * 1e3),
        |(size, unit)| format!("{:.1} {unit}", seconds / size),
    )
}

/// Reads a length of time: `500ms`, `30s`, `2min`.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit = match &text[digits..] {
        "ms" => 1e-3,
        "s" => 1.0,
        "min" => 60.0,
        _ => f64::NAN,
    };
    let seconds = text[..digits].parse::<f64>().unwrap_or(f64::NAN) * unit;
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| format!("`{text}` is not a length of time, such as 500ms, 30s or 2min"))
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

    #[test]
    fn lengths_of_time_have_a_unit() {
        for (text, millis) in [("500ms", 500), ("30s", 30_000), ("1.5min", 90_000), ("0s", 0)] {
            assert_eq!(time(text), Ok(Duration::from_millis(millis)));
        }
        for bad in ["", "30", "s", "1h", "-1s", "1.2.3s", "1e400s", "99999999999999999999999s"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }
}
