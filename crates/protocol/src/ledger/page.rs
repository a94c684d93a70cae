//! What one stage has of a run: in its weights, in its durable checkpoint, and on the way there.
//!
//! Owns the sets and whose work they are. Knows nothing of receipts or accounts.

use crate::ids::{InnerStep, SeatId};
use crate::index_set::IndexSet;
use crate::ledger::own::Own;
use alloc::collections::BTreeMap;
use serde::{Deserialize, Serialize};

/// A credit that no commit holds yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Open {
    pub(super) seat: SeatId,
    pub(super) step: InnerStep,
}

/// A stage's page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Page {
    /// Part of the stage's weights.
    pub(super) held: IndexSet,
    /// The part of `held` that the stage's durable checkpoint has.
    pub(super) durable: IndexSet,
    /// The rest of it: whose, and in which of their steps.
    pub(super) since: BTreeMap<u64, (SeatId, InnerStep)>,
    /// Whose is what became durable last: members may still repeat it.
    pub(super) before: BTreeMap<u64, SeatId>,
    /// What the durable checkpoint of a single replica has beyond that: it had trained it and not handed it in.
    pub(super) own: Own,
    /// What seats have of it that were taken from such a checkpoint; of the rest of `open` members keep receipts.
    pub(super) reopened: BTreeMap<u64, Open>,
    #[serde(skip)]
    pub(super) open: BTreeMap<u64, Open>,
}

impl Page {
    /// A page of what the stage's weights have from the beginning.
    pub(super) fn new(held: IndexSet) -> Self {
        Self {
            durable: held.clone(),
            held,
            since: BTreeMap::new(),
            before: BTreeMap::new(),
            own: Own::default(),
            reopened: BTreeMap::new(),
            open: BTreeMap::new(),
        }
    }

    /// Returns whether a microbatch is credited, by a commit or on the way to one.
    pub(super) fn has(&self, index: u64) -> bool {
        self.held.contains(index) || self.open.contains_key(&index)
    }

    /// Hears that checkpoints are durable, and what of the committed they have.
    pub(super) fn become_durable(&mut self, has: impl Fn(SeatId, InnerStep) -> bool) {
        let durable = self.since.extract_if(.., |_, (seat, step)| has(*seat, *step));
        self.before = durable.map(|(index, (seat, _))| (index, seat)).collect();
        for index in self.before.keys() {
            self.durable.insert(*index);
        }
    }

    /// Returns who is credited with a microbatch, as long as that can be told again.
    pub(super) fn whose(&self, index: u64) -> Option<SeatId> {
        let open = self.open.get(&index).map(|open| open.seat);
        let since = || self.since.get(&index).map(|(seat, _)| *seat);
        open.or_else(since).or_else(|| self.before.get(&index).copied())
    }
}
