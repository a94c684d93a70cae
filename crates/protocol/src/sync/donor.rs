//! The end of a handover that gives: a replica lets newcomers fetch a copy of its state, and what was agreed on since.
//!
//! Owns the copy, the outer steps that passed meanwhile, and for whom both are kept. Knows nothing of when a newcomer enters, or of
//! what the bytes mean.

use crate::ids::{Digest, OuterStep, PeerId};
use crate::message::{Message, Refusal};
use crate::port::{Action, Outbox};
use crate::sync::blob::Blob;
use crate::sync::fetch::CHUNKS_IN_FLIGHT_MAX;
use crate::sync::passed::Passed;
use crate::sync::state::{StatePart, StateSay};
use alloc::collections::{BTreeMap, BTreeSet};

/// The end that gives.
#[derive(Debug)]
pub struct Donor {
    committed: Option<(OuterStep, Digest)>,
    copy: Option<Copy>,
    /// Newcomers of the stage; nothing is kept for anyone else.
    newcomers: BTreeSet<PeerId>,
    /// Who has asked for what is not committed here yet: the coordinator tells both of a commit at the same time.
    early: BTreeMap<PeerId, OuterStep>,
    /// Who has a state and follows what is committed.
    followers: BTreeSet<PeerId>,
    /// The last outer steps, without a gap.
    passed: BTreeMap<OuterStep, Passed>,
    /// Bytes that are kept of them.
    passed_max: u64,
}

/// A copy of the state after an outer step.
#[derive(Debug)]
struct Copy {
    outer: OuterStep,
    digest: Digest,
    /// What the driver has copied, once it has.
    blobs: Option<[Blob; 2]>,
    /// Who takes it.
    takers: BTreeSet<PeerId>,
}

impl Donor {
    /// Starts with what was committed when the stage was loaded; of outer steps that pass, `passed_max` bytes are kept at most.
    pub fn new(committed: Option<(OuterStep, Digest)>, passed_max: u64) -> Self {
        Self {
            committed,
            copy: None,
            newcomers: BTreeSet::new(),
            early: BTreeMap::new(),
            followers: BTreeSet::new(),
            passed: BTreeMap::new(),
            passed_max,
        }
    }

    /// Hears which newcomers the stage has: what was kept for others is let go.
    pub fn expects(&mut self, newcomers: BTreeSet<PeerId>) {
        self.early.retain(|peer, _| newcomers.contains(peer));
        self.followers.retain(|peer| newcomers.contains(peer));
        if let Some(copy) = &mut self.copy {
            copy.takers.retain(|peer| newcomers.contains(peer));
        }
        if newcomers.is_empty() {
            self.passed.clear();
        }
        self.newcomers = newcomers;
        self.let_go();
    }

    /// Hears that the weights of an outer step are current, and what led to them.
    pub fn committed(&mut self, outer: OuterStep, digest: Digest, passed: Option<Passed>, out: &mut Outbox) {
        self.committed = Some((outer, digest));
        self.keep(passed);
        // What the driver has not copied yet it would copy as it is now.
        let unmade = self.copy.take_if(|copy| copy.blobs.is_none());
        let mut waiting = unmade.map(|copy| copy.takers).unwrap_or_default();
        waiting.extend(self.early.extract_if(.., |_, asked| *asked <= outer).map(|(asker, _)| asker));
        self.let_go();
        for asker in waiting {
            self.serve(asker, out);
        }
        if let Some(passed) = self.passed.get(&outer) {
            self.followers.iter().for_each(|follower| offer_passed(*follower, passed, out));
        }
    }

    /// Keeps what led to the weights while there are newcomers to follow it.
    fn keep(&mut self, passed: Option<Passed>) {
        let Some(passed) = passed.filter(|_| !self.newcomers.is_empty()) else { return self.passed.clear() };
        let follows = self.passed.last_key_value().is_none_or(|(last, _)| last.0 + 1 == passed.outer.0);
        if !follows {
            self.passed.clear();
        }
        self.passed.insert(passed.outer, passed);
        while self.passed.values().map(Passed::bytes).sum::<u64>() > self.passed_max {
            self.passed.pop_first();
        }
    }

    /// Lets a copy go from which the present weights cannot be reached, or that is old and that nobody takes.
    fn let_go(&mut self) {
        let (Some(copy), Some((outer, _))) = (&self.copy, self.committed) else { return };
        let old = copy.outer < outer;
        if old && (copy.takers.is_empty() || !self.leads_on(copy.outer)) {
            self.copy = None;
        }
    }

    /// Returns whether all that was committed since an outer step is here.
    fn leads_on(&self, since: OuterStep) -> bool {
        let Some((committed, _)) = self.committed else { return false };
        since >= committed || self.passed.contains_key(&OuterStep(since.0 + 1))
    }

    /// Takes a request of another replica of the stage.
    ///
    /// # Errors
    /// What is asked for is not held here.
    pub fn received(&mut self, from: PeerId, say: &StateSay, out: &mut Outbox) -> Result<(), Refusal> {
        match say {
            StateSay::Ask { outer } => self.asked(from, *outer, out),
            StateSay::Follow { since } => self.followed(from, *since, out),
            StateSay::Want { blob, chunks } => self.wanted(from, *blob, chunks, out),
            StateSay::Passed { .. } | StateSay::Offer { .. } | StateSay::Chunk { .. } => Ok(()),
        }
    }

    fn asked(&mut self, from: PeerId, outer: OuterStep, out: &mut Outbox) -> Result<(), Refusal> {
        if !self.newcomers.contains(&from) {
            return Err(Refusal::NoState { outer });
        }
        if self.committed.is_none_or(|(committed, _)| committed < outer) {
            self.early.insert(from, outer);
        } else {
            self.serve(from, out);
        }
        Ok(())
    }

    /// Gives a newcomer the copy that others take, or a new one.
    fn serve(&mut self, to: PeerId, out: &mut Outbox) {
        let Some((outer, digest)) = self.committed else { return };
        let copy = self.copy.get_or_insert_with(|| {
            out.push(Action::Export { outer });
            Copy { outer, digest, blobs: None, takers: BTreeSet::new() }
        });
        copy.takers.insert(to);
        copy.offer(to, out);
    }

    fn followed(&mut self, from: PeerId, since: OuterStep, out: &mut Outbox) -> Result<(), Refusal> {
        if !self.newcomers.contains(&from) || !self.leads_on(since) {
            return Err(Refusal::NoState { outer: since });
        }
        if let Some(copy) = &mut self.copy {
            copy.takers.remove(&from);
        }
        self.followers.insert(from);
        if let Some((_, passed)) = self.passed.range(OuterStep(since.0 + 1)..).next() {
            offer_passed(from, passed, out);
        }
        self.let_go();
        Ok(())
    }

    /// Takes the copy from the driver, and offers it to all who asked.
    pub fn exported(&mut self, outer: OuterStep, agreed: Blob, own: Blob, out: &mut Outbox) {
        // A commit may have come between.
        let Some(copy) = self.copy.as_mut().filter(|copy| copy.outer == outer) else { return };
        copy.blobs = Some([agreed, own]);
        copy.takers.iter().for_each(|taker| copy.offer(*taker, out));
    }

    fn wanted(&self, from: PeerId, blob: Digest, chunks: &[u32], out: &mut Outbox) -> Result<(), Refusal> {
        let (part, held) = self.find(blob).ok_or(Refusal::NotHeld { blob })?;
        let chunks: BTreeSet<u32> = chunks.iter().copied().take(CHUNKS_IN_FLIGHT_MAX).collect();
        for chunk in chunks {
            let payload = held.chunk(chunk).ok_or(Refusal::NotHeld { blob })?;
            out.send(from, Message::State(StateSay::Chunk { part, blob, chunk, payload }));
        }
        Ok(())
    }

    fn find(&self, id: Digest) -> Option<(StatePart, &Blob)> {
        let parts = [StatePart::Agreed, StatePart::Own].into_iter();
        let copied = self.copy.iter().flat_map(|copy| copy.blobs.iter().flatten());
        let results = self.passed.values().flat_map(|passed| (0..).zip(&passed.results));
        let results = results.map(|(shard, result)| (StatePart::Result(shard), result));
        parts.cycle().zip(copied).chain(results).find(|(_, held)| held.id() == id)
    }
}

impl Copy {
    fn offer(&self, to: PeerId, out: &mut Outbox) {
        let Some(blobs) = &self.blobs else { return };
        for (part, blob) in [StatePart::Agreed, StatePart::Own].into_iter().zip(blobs) {
            let (outer, digest, manifest) = (self.outer, self.digest, blob.manifest().clone());
            out.send(to, Message::State(StateSay::Offer { outer, part, digest, manifest }));
        }
    }
}

fn offer_passed(to: PeerId, passed: &Passed, out: &mut Outbox) {
    let Passed { outer, digest, shares, results } = passed;
    let (outer, digest, shares) = (*outer, *digest, shares.clone());
    out.send(to, Message::State(StateSay::Passed { outer, digest, shares }));
    for (shard, result) in (0..).zip(results) {
        let (part, manifest) = (StatePart::Result(shard), result.manifest().clone());
        out.send(to, Message::State(StateSay::Offer { outer, part, digest, manifest }));
    }
}

#[cfg(test)]
mod tests;
