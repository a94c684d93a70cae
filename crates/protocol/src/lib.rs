//! What peers say, decide and promise: no I/O, no clock, no tensors.
//!
//! Owns every decision of a run. Drivers feed a [`node::Node`] what happened and carry out what it answers.
#![no_std]

extern crate alloc;

pub mod accounts;
pub mod agenda;
pub mod book;
pub mod coordinator;
pub mod durable;
pub mod event;
pub mod handshake;
pub mod homes;
pub mod ids;
pub mod index_set;
pub mod lease;
pub mod ledger;
pub mod message;
pub mod node;
mod paces;
pub mod pipeline;
pub mod plan;
pub mod port;
pub mod rebalance;
pub mod receipt;
pub mod rehearsal;
mod roster;
pub mod route;
pub mod router;
mod running;
pub mod spec;
pub mod suspicion;
pub mod sync;
pub mod time;
pub mod wire;
pub mod work;
pub mod worker;
