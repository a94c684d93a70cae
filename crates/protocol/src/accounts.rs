//! Accounts: what each peer has trained at each stage, for people to read.
//!
//! Owns the sums. Knows nothing of how credit is earned.

use crate::ids::{PeerId, StageId};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What one peer has done at one stage, in microbatches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Who.
    pub peer: PeerId,
    /// At which stage.
    pub stage: StageId,
    /// The sums.
    pub sums: Sums,
}

/// Sums of an account, in microbatches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Credited: part of the stage's weights, or of a replica's that will hand it in.
    pub trained: u64,
    /// Done although another is credited with it, or will be: in a race for late work, or in a place that was lost meanwhile.
    pub duplicate: u64,
    /// Credited once, and lost with the peer before it was part of the stage's weights: others do it again.
    pub lost: u64,
    /// Done here after it was lost elsewhere; part of `trained`.
    pub redone: u64,
}

/// All accounts of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounts(BTreeMap<(StageId, PeerId), Sums>);

impl Accounts {
    /// Returns the sums of a peer at a stage, to be added to.
    pub fn of(&mut self, stage: StageId, peer: PeerId) -> &mut Sums {
        self.0.entry((stage, peer)).or_default()
    }

    /// Lists all accounts, by stage and peer.
    pub fn list(&self) -> Vec<Account> {
        self.0
            .iter()
            .map(|((stage, peer), sums)| Account { peer: *peer, stage: *stage, sums: *sums })
            .collect()
    }

    /// Sums up one figure over the peers of each stage.
    pub fn by_stage(&self, stages: u16, figure: impl Fn(&Sums) -> u64) -> Vec<u64> {
        let of =
            |stage| self.0.range((StageId(stage), PeerId([0; 32]))..=(StageId(stage), PeerId([255; 32])));
        (0..stages).map(|stage| of(stage).map(|(_, sums)| figure(sums)).sum()).collect()
    }
}
