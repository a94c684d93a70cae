//! The open exchange of a replica: what it has said, heard, asked for and holds.
//!
//! Owns that state and its forgetting from one try to the next. Sends nothing and decides nothing.

use crate::ids::{Attempt, Digest, InnerStep, OuterStep, PeerId, ReplicaId};
use crate::sync::blob::{Blob, Manifest};
use crate::sync::fetch::Fetch;
use crate::sync::group::Group;
use crate::sync::patience::Patience;
use crate::sync::say::{Begin, Part, Round};
use crate::sync::task::Counted;
use crate::time::Time;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

/// How far the reduction of a shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduction {
    /// The driver was asked.
    Asked,
    /// It gave this blob.
    Done(Digest),
}

impl Reduction {
    pub(crate) fn id(self) -> Option<Digest> {
        match self {
            Reduction::Asked => None,
            Reduction::Done(id) => Some(id),
        }
    }
}

/// How far the staging of the weights is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Staging {
    /// Something is still missing.
    Not,
    /// The driver was asked.
    Asked,
    /// These would be the weights.
    Done(Digest),
}

/// An exchange from the border to the decision.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) outer: OuterStep,
    pub(crate) step: InnerStep,
    pub(crate) heard: Attempt,
    pub(crate) begin: Option<Begin>,
    pub(crate) encoding: bool,
    /// Own contribution, one blob a shard; empty until encoded.
    pub(crate) shards: Vec<Blob>,
    /// Whether the shards were offered to the reducers of this try.
    pub(crate) contributed: bool,
    /// What others offer, with the try it belongs to.
    pub(crate) offers: BTreeMap<(Part, u16, ReplicaId), (Attempt, Manifest)>,
    pub(crate) fetches: BTreeMap<Digest, Fetch>,
    parts: BTreeMap<Digest, Part>,
    pub(crate) held: BTreeMap<Digest, (Part, Blob)>,
    pub(crate) reductions: BTreeMap<u16, Reduction>,
    pub(crate) staging: Staging,
    /// Whose part cannot be used, and why.
    pub(crate) flaws: BTreeMap<ReplicaId, String>,
    pub(crate) rates: BTreeMap<ReplicaId, u64>,
    pub(crate) repeat_at: Time,
    pub(crate) repeats: u32,
}

impl Exchange {
    pub(crate) fn new(outer: OuterStep, step: InnerStep, now: Time) -> Self {
        Self {
            outer,
            step,
            heard: Attempt(0),
            begin: None,
            encoding: false,
            shards: Vec::new(),
            contributed: false,
            offers: BTreeMap::new(),
            fetches: BTreeMap::new(),
            parts: BTreeMap::new(),
            held: BTreeMap::new(),
            reductions: BTreeMap::new(),
            staging: Staging::Not,
            flaws: BTreeMap::new(),
            rates: BTreeMap::new(),
            repeat_at: now,
            repeats: 0,
        }
    }

    pub(crate) fn round(&self) -> Option<Round> {
        self.begin.as_ref().map(|begin| begin.round)
    }

    pub(crate) fn shares(&self) -> Option<&Vec<u32>> {
        self.begin.as_ref().map(|begin| &begin.shares)
    }

    /// Opens a try. Contributions that are here stay, under the same cut; what was reduced from another set does not.
    ///
    /// A contribution that a try has left out stays owed as it was encoded then; counted again, it is encoded again.
    pub(crate) fn begin(&mut self, me: ReplicaId, begin: Begin) {
        let same_cut = self.shares() == Some(&begin.shares);
        let was_out = self.begin.as_ref().is_some_and(|before| counted(before, me) == Counted::Out);
        let back = was_out && counted(&begin, me) == Counted::In;
        self.heard = begin.round.attempt;
        self.contributed = false;
        self.reductions.clear();
        self.staging = Staging::Not;
        self.flaws.clear();
        self.offers.retain(|_, (attempt, _)| *attempt >= begin.round.attempt);
        if same_cut {
            self.held.retain(|_, (part, _)| *part == Part::Contribution);
            let parts = &self.parts;
            self.fetches.retain(|id, _| parts.get(id) == Some(&Part::Contribution));
        }
        if !same_cut || back {
            self.encoding = false;
            self.shards.clear();
        }
        if !same_cut {
            self.held.clear();
            self.fetches.clear();
        }
        self.begin = Some(begin);
    }

    /// Takes the own contribution; a cut into another number of shards is the driver's fault.
    pub(crate) fn encoded(&mut self, shards: Vec<Blob>) {
        let want = self.begin.as_ref().map(|begin| begin.reducers.len());
        assert_eq!(Some(shards.len()), want, "the driver encodes as many shards as there are shares");
        for blob in &shards {
            self.held.insert(blob.id(), (Part::Contribution, blob.clone()));
        }
        self.shards = shards;
    }

    /// Returns what a replica offers in this try.
    pub(crate) fn offer(&self, part: Part, shard: u16, from: ReplicaId) -> Option<&Manifest> {
        let (attempt, manifest) = self.offers.get(&(part, shard, from))?;
        (*attempt == self.heard).then_some(manifest)
    }

    /// Returns the result that is offered for a shard, and who offers it. Where two reducers offer different results, the
    /// coordinator hears of it from both; meanwhile the lower replica's is as good as any.
    pub(crate) fn agreed_result(
        &self,
        shard: u16,
        reducers: &[ReplicaId],
    ) -> Option<(Manifest, Vec<ReplicaId>)> {
        let offers: Vec<(ReplicaId, &Manifest)> = reducers
            .iter()
            .filter_map(|from| Some((*from, self.offer(Part::Result, shard, *from)?)))
            .collect();
        let (_, first) = offers.first()?;
        let holders =
            offers.iter().filter(|(_, manifest)| manifest == first).map(|(from, _)| *from).collect();
        Some(((*first).clone(), holders))
    }

    /// Returns whose result of a shard was used.
    pub(crate) fn result_from(&self, shard: u16) -> Option<ReplicaId> {
        let reducers = self.begin.as_ref()?.reducers.get(usize::from(shard))?;
        reducers.iter().find(|from| self.offer(Part::Result, shard, **from).is_some()).copied()
    }

    /// Returns the reduced shards of the try, in order, once all are here.
    pub(crate) fn results(&self, me: ReplicaId) -> Option<Vec<Blob>> {
        let begin = self.begin.as_ref()?;
        let of_shard = |(shard, reducers): (u16, &Vec<ReplicaId>)| {
            let id = if reducers.contains(&me) {
                self.reductions.get(&shard)?.id()?
            } else {
                self.agreed_result(shard, reducers)?.0.id()
            };
            self.held.get(&id).map(|(_, blob)| blob.clone())
        };
        (0..).zip(&begin.reducers).map(of_shard).collect()
    }

    /// Opens a fetch, or adds holders to one that is open.
    pub(crate) fn fetch(
        &mut self,
        now: Time,
        id: Digest,
        manifest: Manifest,
        part: Part,
        sources: &[PeerId],
    ) {
        self.parts.insert(id, part);
        let fetch = self.fetches.entry(id).or_insert_with(|| Fetch::new(manifest, now));
        for source in sources {
            fetch.add_source(*source);
        }
    }

    /// Moves a blob that is whole from the fetches to what is held.
    pub(crate) fn shelve_if_whole(&mut self, now: Time, id: Digest, group: &Group) {
        if !self.fetches.get(&id).is_some_and(Fetch::is_complete) {
            return;
        }
        let (Some(fetch), Some(part)) = (self.fetches.remove(&id), self.parts.get(&id)) else { return };
        let (received, took) = fetch.received(now);
        for (peer, bytes) in received {
            let rate = bytes.saturating_mul(1_000_000) / took.0.max(1);
            if let Some(replica) = group.replica_of(*peer) {
                let best = self.rates.entry(replica).or_default();
                *best = (*best).max(rate);
            }
        }
        self.held.insert(id, (*part, fetch.finish()));
    }

    /// Something moved: what was said need not be said again for a while.
    pub(crate) fn stirred(&mut self, now: Time, answers: &Patience) {
        self.repeats = 0;
        self.quiet_until(now, answers);
    }

    /// Sets when all is said again, later each time.
    pub(crate) fn quiet_until(&mut self, now: Time, answers: &Patience) {
        let wait = answers.wait();
        self.repeat_at = now + crate::time::Span(wait.0 << self.repeats);
    }
}

/// Returns whether a replica's contribution is part of a round.
pub(crate) fn counted(begin: &Begin, replica: ReplicaId) -> Counted {
    let contributes = begin.contributors.iter().any(|(contributor, _)| *contributor == replica);
    if contributes { Counted::In } else { Counted::Out }
}
