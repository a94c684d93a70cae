//! What comes from outside: arbitrary bytes, hostile messages, and stored state that is not what it was.

mod arbiter;
mod arrivals;
mod churn;
mod court;
mod desk;
mod found;
mod holdup;
mod hostile;
mod late;
mod member;
mod nonsense;
mod office;
mod refusals;
mod replicas;
mod swarm;
mod wire;
mod wishes;
