//! What a worker is, whatever place it has.
//!
//! Owns the run, the key and the coordinator's name. Knows nothing of what the worker does.

use crate::agenda::Agenda;
use crate::ids::{Digest, PeerId};
use crate::receipt::Seals;
use crate::spec::RunSpec;
use ed25519_dalek::SigningKey;

/// A worker's run and key.
pub(crate) struct Identity {
    pub(crate) spec: RunSpec,
    pub(crate) run: Digest,
    pub(crate) agenda: Agenda,
    pub(crate) key: SigningKey,
    /// How receipts are sealed.
    pub(crate) seals: Seals,
    pub(crate) me: PeerId,
    pub(crate) coordinator: PeerId,
}
