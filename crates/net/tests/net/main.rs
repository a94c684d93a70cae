//! Whole peers on loopback: what the network promises its owner, and what it does with those who break the rules.

mod handshakes;
mod links;
mod messages;
mod sample;
mod strangers;
mod support;
mod tickets;
