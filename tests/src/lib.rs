//! Support for whole-project tests: the style, measured.
//!
//! Owns what the tests of this package share. It may read every file of the repository and change none; no crate of
//! the workspace may depend on it.

pub mod tidy;
