//! The outer step: codecs, hostile bytes, the transaction, PyTorch's arithmetic, and engines.

mod codecs;
mod engines;
#[path = "../fixture/mod.rs"]
mod fixture;
mod hostile;
mod parity;
mod stored;
mod swarm;
mod transaction;
