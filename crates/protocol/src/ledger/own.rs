//! What the checkpoint of a single replica has beyond what its stage agreed on: it had trained it and not handed it in.
//!
//! Owns what that is at the durable border. Knows nothing of credit.

use crate::ids::{InnerStep, ReplicaId};
use crate::work::Trained;
use alloc::collections::BTreeMap;
use serde::{Deserialize, Serialize};

/// The own work of the replicas of one stage, by microbatch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Own {
    saved: BTreeMap<(u64, ReplicaId), InnerStep>,
    /// What was taken back from who was lost since: a checkpoint that it wrote before, and that becomes durable only now, has it.
    #[serde(skip)]
    lost: BTreeMap<(u64, ReplicaId), InnerStep>,
}

impl Own {
    /// Notes what is in the durable checkpoint of a replica as was heard only after it.
    pub(super) fn add(&mut self, replica: ReplicaId, trained: Trained) {
        self.saved.insert((trained.index, replica), trained.step);
    }

    /// Notes what is taken back from a replica that is lost.
    pub(super) fn lost(&mut self, replica: ReplicaId, trained: &[Trained]) {
        self.lost.extend(trained.iter().map(|trained| ((trained.index, replica), trained.step)));
    }

    /// Notes that another takes the place of a replica: checkpoints of the place are of that one from now on.
    pub(super) fn taken(&mut self, replica: ReplicaId) {
        self.lost.retain(|(_, of), _| *of != replica);
    }

    /// Forgets what was lost: no checkpoint that may become durable has it.
    pub(super) fn forget_lost(&mut self) {
        self.lost.clear();
    }

    /// Goes over to a later border: the checkpoints of the replicas that `saved` names have what of `open`, and of what was lost,
    /// they trained before it.
    pub(super) fn durable(
        &mut self,
        border: InnerStep,
        open: impl Iterator<Item = (ReplicaId, Trained)>,
        saved: impl Fn(ReplicaId) -> bool,
    ) {
        let lost = core::mem::take(&mut self.lost);
        let open = open.map(|(replica, trained)| ((trained.index, replica), trained.step));
        let own = lost.into_iter().chain(open);
        self.saved = own.filter(|((_, replica), step)| *step < border && saved(*replica)).collect();
    }

    /// Lists what a replica's durable checkpoint has.
    pub(super) fn of(&self, replica: ReplicaId) -> impl Iterator<Item = Trained> {
        let own = self.saved.iter().filter(move |((_, of), _)| *of == replica);
        own.map(|((index, _), step)| Trained { index: *index, step: *step })
    }
}
