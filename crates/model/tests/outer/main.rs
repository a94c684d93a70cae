//! The outer step: codecs, hostile bytes, the transaction, PyTorch's arithmetic, engines, and newcomers.

mod codecs;
mod engines;
#[path = "../fixture/mod.rs"]
mod fixture;
mod handover;
mod hostile;
mod parity;
mod stored;
mod swarm;
mod transaction;
