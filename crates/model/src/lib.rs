//! Trestle's model: a Llama-style transformer cut into stages, its boundaries, optimizers and checkpoints, on libtorch.
//!
//! It owns every tensor of the project and is the only crate that knows libtorch. Bytes go in and bytes come out. It may
//! not know peers, retries, the network or rewards.

pub mod checkpoint;
pub mod clip;
pub mod codec;
pub mod config;
mod cuda;
pub mod device;
pub mod engine;
pub mod error;
mod failure;
pub mod handover;
mod initial;
pub mod input;
mod layout;
pub mod optimizer;
pub mod outer;
pub mod parameter;
pub mod schedule;
mod stage;
