//! Errors in words, as they go into a reason.
//!
//! Owns how an error and its hint are put together. Knows no error.

use std::fmt::Display;

/// Puts a hint behind an error.
pub(crate) fn with_hint(error: &dyn Display, hint: Option<impl Display>) -> String {
    match hint {
        Some(hint) => format!("{error} (hint: {hint})"),
        None => error.to_string(),
    }
}
