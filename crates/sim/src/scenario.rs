//! Scenarios: a script of what is set, done and run, and what must have come of it.
//!
//! Owns the file format, part by part. Knows nothing of how a swarm is run.

pub mod expectation;
pub mod faults;
pub mod script;
pub mod settings;
pub mod words;
