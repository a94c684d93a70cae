//! The outer step: how the replicas of a stage come to one set of weights, all of them or none.
//!
//! Owns the transaction (reach, begin, reduce, vote, commit or restore) and the transfer of what is exchanged in it. Knows
//! nothing of tensors: contributions and results are bytes with a digest, and the arithmetic is an effect.

pub mod arbiter;
pub mod blob;
pub mod credit;
pub mod donor;
mod exchange;
pub mod fetch;
pub mod group;
pub mod intake;
pub mod member;
pub mod passed;
pub mod patience;
pub mod say;
pub mod shares;
pub mod state;
mod table;
pub mod task;
