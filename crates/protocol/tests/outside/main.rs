//! What comes from outside: arbitrary bytes, hostile messages, and stored state that is not what it was.

mod found;
mod hostile;
mod nonsense;
mod refusals;
mod swarm;
mod wire;
