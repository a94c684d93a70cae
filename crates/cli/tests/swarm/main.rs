//! Whole runs as a user starts them: real processes, real sockets on loopback, a tiny model.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod bad_input;
mod churn;
mod command;
mod cut;
mod golden;
mod rehearsals;
mod replicas;
mod resume;
mod serve_join;
mod simulated;
