//! What a fleet would do with a run, before a cent is spent: what work costs, who would hold which stage, how fast, how dear.
//!
//! Owns that arithmetic, and the fleet file. May not know sockets, tensors, drivers, real time, or what is printed.

pub mod availability;
pub mod cost;
pub mod device;
pub mod exchange;
pub mod file;
pub mod forecast;
pub mod layers;
pub mod memory;
pub mod pipeline;
pub mod placement;
pub mod quantity;
pub mod search;
