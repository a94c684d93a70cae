//! Tidy: `STYLE.md` and the arrows of `ARCHITECTURE.md`, measured.
//!
//! Each file below owns one check: a pure function from the repository's files to complaints, so that a fixture of a
//! few strings can turn it red. `tests/tidy.rs` runs them all on the repository itself. A check says what it found and
//! what to do instead; none of them changes a file.

pub mod arrows;
pub mod bools;
pub mod complaint;
pub mod crates;
pub mod glossary;
pub mod guards;
pub mod leftovers;
pub mod lengths;
pub mod links;
pub mod mentions;
pub mod module_docs;
pub mod modules;
pub mod names;
pub mod purity;
pub mod reasons;
pub mod scenarios;
pub mod source;
pub mod tree;
