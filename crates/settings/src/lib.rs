//! From the run spec to the settings of model and data: the one place where these vocabularies meet.
//!
//! Owns the translation, for the real driver and the simulated one alike. It may not know either of them, nor sockets,
//! time, messages or files' contents.

pub mod data;
pub mod model;
pub mod outer;
