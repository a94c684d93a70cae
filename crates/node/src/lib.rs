//! The real driver: runs the protocol core on sockets, disk and device.
//!
//! Owns effects, and the one compute thread of a process. It may not know arguments, terminals or HTML, and it decides
//! nothing.

pub mod agreement;
mod compute;
pub mod directory;
mod driver;
pub mod error;
pub mod event_log;
pub mod rehearsal;
pub mod roles;
pub mod state;
mod words;

pub use compute::open_data;
pub use driver::Watch;
