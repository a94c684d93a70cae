//! The real driver: runs the protocol core on sockets, disk and device.
//!
//! Owns effects, and the one compute thread of a process. It may not know arguments, terminals or HTML, and it decides
//! nothing.

mod agreement;
mod compute;
pub mod directory;
mod driver;
pub mod error;
pub mod event_log;
mod generation;
mod held;
mod job;
mod links;
pub mod rehearsal;
pub mod roles;
mod seat;
pub mod standing;
pub mod state;
mod words;

pub use driver::{Request, Watch};
pub use seat::open_data;
