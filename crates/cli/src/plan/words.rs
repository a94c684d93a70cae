//! What costs time, in words.
//!
//! Owns the words. May not know how they are shown.

use trestle_fleet::forecast::Loss;

/// Names a loss.
pub(crate) fn words(loss: Loss) -> &'static str {
    match loss {
        Loss::Failures => "failures",
        Loss::Exchange => "outer steps",
        Loss::Links => "links",
        Loss::Waits => "waits",
        Loss::Imbalance => "imbalance",
        Loss::Recompute => "recompute",
    }
}
