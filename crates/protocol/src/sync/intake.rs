//! The end of a handover that takes: a newcomer fetches a stage's state from all live replicas at once, chunk by chunk, and then what
//! was agreed on since.
//!
//! Owns what is asked of whom, and what has come. A state that takes longer to fetch than an outer step is caught up with, not begun
//! anew. Knows nothing of when a newcomer enters, or of what the bytes mean.

use crate::ids::{Digest, OuterStep, PeerId};
use crate::message::{Message, Refusal};
use crate::port::Outbox;
use crate::sync::blob::{Blob, Manifest};
use crate::sync::fetch::{Fetch, Taken};
use crate::sync::passed::Passed;
use crate::sync::patience::Patience;
use crate::sync::shares::is_cut;
use crate::sync::state::{StatePart, StateSay};
use crate::time::{Span, Time};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// How long to wait for an answer before any was measured: a donor may be in the middle of a long backward.
const ANSWER_WAIT_FIRST: Span = Span::seconds(5);

/// Requests, ever more rarely, after which a donor that says nothing is not waited for while others say that they cannot lead on: half a
/// minute.
const ASKS_MAX: u32 = 6;

/// Requests after which nothing has come of what was begun, and it is begun anew with others: three minutes without a chunk.
const IN_VAIN_MAX: u32 = 10;

/// How large what is taken may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of a part of a state, and of all results of an outer step.
    pub bytes: u64,
    /// Shards of a cut.
    pub shards: usize,
}

/// What has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Came {
    /// A state.
    State {
        /// After which outer step.
        outer: OuterStep,
        /// Digest that its agreed weights must have.
        digest: Digest,
        /// What all replicas of the stage share.
        agreed: Blob,
        /// One replica's own.
        own: Blob,
    },
    /// The outer step behind what is held.
    Passed(Passed),
}

/// The end that takes.
#[derive(Debug)]
pub struct Intake {
    /// Where the stage is, as the coordinator says.
    target: (OuterStep, Digest),
    /// What the driver holds already, and whose part is wanted next.
    held: Option<(OuterStep, Digest)>,
    /// Who could be asked, and who of them is.
    known: Vec<PeerId>,
    donors: Vec<PeerId>,
    /// Donors that cannot lead on from what is held.
    behind: BTreeSet<PeerId>,
    /// Donors whose word was taken first, and those whose word led astray before.
    led_by: BTreeSet<PeerId>,
    shunned: BTreeSet<PeerId>,
    /// What came was handed on, and the driver does not hold it yet.
    handed: bool,
    /// How often was asked since anything came.
    asks: u32,
    bounds: Bounds,
    /// After which outer step what is fetched is, with its digest and, for one that has passed, its cut.
    wanted: Option<(OuterStep, Digest, Vec<u32>)>,
    chosen: BTreeMap<StatePart, Digest>,
    fetches: BTreeMap<Digest, Fetch>,
    whole: BTreeMap<StatePart, Blob>,
    chunks: Patience,
    again_at: Time,
    again_in: Span,
}

impl Intake {
    /// Starts to take a state from which that after an outer step can be reached.
    pub fn new(target: (OuterStep, Digest), donors: Vec<PeerId>, bounds: Bounds, now: Time) -> Self {
        Self {
            target,
            held: None,
            known: donors.clone(),
            donors,
            behind: BTreeSet::new(),
            led_by: BTreeSet::new(),
            shunned: BTreeSet::new(),
            handed: false,
            asks: 0,
            bounds,
            wanted: None,
            chosen: BTreeMap::new(),
            fetches: BTreeMap::new(),
            whole: BTreeMap::new(),
            chunks: Patience::new(ANSWER_WAIT_FIRST),
            again_at: now,
            again_in: Span::seconds(1),
        }
    }

    /// Begins anew, with other donors than those whose word it took, while there are others.
    pub fn anew(self, now: Time) -> Self {
        let mut new = Self::new(self.target, Vec::new(), self.bounds, now);
        new.shunned = self.shunned.union(&self.led_by).copied().collect();
        new.donors(self.known);
        new
    }

    /// Returns what the driver holds: after which outer step, and the digest of its weights.
    pub fn held(&self) -> Option<(OuterStep, Digest)> {
        self.held
    }

    /// Hears that the stage has gone on.
    pub fn aim(&mut self, now: Time, target: (OuterStep, Digest), out: &mut Outbox) {
        self.target = target;
        if self.held.is_some() {
            (self.again_at, self.again_in) = (now, Span::seconds(1));
            self.woke(now, out);
        }
    }

    /// Returns whether what is held are the weights that the stage has, as the coordinator says.
    pub fn has_arrived(&self) -> bool {
        self.held == Some(self.target)
    }

    /// Returns whether what is held cannot be what the stage has, or had: its weights are others.
    pub fn went_astray(&self) -> bool {
        let same_step = self.held.is_some_and(|(held, _)| held == self.target.0);
        same_step && !self.has_arrived()
    }

    /// Returns whether what was begun leads nowhere: nobody is left who could lead on from what is held (all say so, or some do and the
    /// others say nothing for long), or nothing comes of what was chosen.
    pub fn is_left_behind(&self) -> bool {
        let leads = |donor: &PeerId| !self.behind.contains(donor);
        let in_vain = self.asks >= ASKS_MAX && self.wanted.is_none() && !self.behind.is_empty();
        if self.asks >= IN_VAIN_MAX && self.wanted.is_some() && self.donors.len() > 1 {
            return self.is_open();
        }
        self.held.is_some()
            && self.is_open()
            && !self.donors.is_empty()
            && (in_vain || !self.donors.iter().any(leads))
    }

    /// Hears that the driver holds what came, and asks for what passed since.
    pub fn holds(&mut self, now: Time, held: (OuterStep, Digest), out: &mut Outbox) {
        (self.held, self.handed, self.asks) = (Some(held), false, 0);
        self.behind.clear();
        self.forget();
        (self.again_at, self.again_in) = (now, Span::seconds(1));
        self.woke(now, out);
    }

    fn forget(&mut self) {
        self.wanted = None;
        self.chosen.clear();
        self.fetches.clear();
        self.whole.clear();
    }

    /// Returns whether something is still to come.
    pub fn is_open(&self) -> bool {
        !self.handed && self.held.is_none_or(|(held, _)| held < self.target.0)
    }

    /// Returns when to call [`Intake::woke`].
    pub fn deadline(&self) -> Option<Time> {
        self.is_open().then_some(self.again_at)
    }

    /// Asks, and asks again for what has not come.
    pub fn woke(&mut self, now: Time, out: &mut Outbox) {
        if !self.is_open() || now < self.again_at {
            return;
        }
        self.again_at = now + self.again_in;
        self.again_in = Span((self.again_in.0 * 2).min(Span::seconds(30).0));
        let outer = self.target.0;
        self.asks += 1;
        for donor in &self.donors {
            let say = match self.held {
                None => StateSay::Ask { outer },
                Some((since, _)) => StateSay::Follow { since },
            };
            out.send(*donor, Message::State(say));
        }
        let retry = self.chunks.wait();
        for id in self.fetches.keys().copied().collect::<Vec<_>>() {
            self.ask(now, id, retry, out);
        }
    }

    /// Hears who can still be asked.
    pub fn donors(&mut self, mut donors: Vec<PeerId>) {
        self.known.clone_from(&donors);
        if !donors.iter().all(|donor| self.shunned.contains(donor)) {
            donors.retain(|donor| !self.shunned.contains(donor));
        }
        let gone: Vec<PeerId> = self.donors.iter().filter(|donor| !donors.contains(donor)).copied().collect();
        gone.into_iter().for_each(|donor| self.leave(donor));
        self.donors = donors;
    }

    /// Hears that a donor has not what was asked of it.
    pub fn refused(&mut self, from: PeerId, refusal: &Refusal) {
        let since = self.held.map(|(held, _)| held);
        if let Refusal::NoState { outer } = refusal
            && Some(*outer) == since
            && self.donors.contains(&from)
        {
            self.behind.insert(from);
        }
        if let Refusal::NotHeld { blob } = refusal {
            self.leave_fetch(*blob, from);
        }
    }

    fn leave(&mut self, donor: PeerId) {
        for id in self.fetches.keys().copied().collect::<Vec<_>>() {
            self.leave_fetch(id, donor);
        }
    }

    /// Fetches a blob no longer from a donor; what nobody else has is chosen anew.
    fn leave_fetch(&mut self, id: Digest, donor: PeerId) {
        let Some(fetch) = self.fetches.get_mut(&id) else { return };
        if fetch.drop_source(donor) {
            return;
        }
        self.fetches.remove(&id);
        let agreed = self.chosen.get(&StatePart::Own) != Some(&id);
        self.chosen.retain(|_, chosen| *chosen != id);
        if agreed {
            // With what all share goes what it was after.
            self.forget();
        }
    }

    /// Takes a message of a donor; gives what is whole with it.
    ///
    /// # Errors
    /// An offer or a chunk that does not fit.
    pub fn received(
        &mut self,
        now: Time,
        from: PeerId,
        say: StateSay,
        out: &mut Outbox,
    ) -> Result<Option<Came>, Refusal> {
        if !self.donors.contains(&from) || !self.is_open() {
            return Ok(None);
        }
        match say {
            StateSay::Passed { outer, digest, shares } => {
                if self.is_next(outer) && self.wanted.is_none() {
                    if !is_cut(&shares, self.bounds.shards) {
                        return Err(Refusal::OfferUnfit { shard: 0, bytes: 0 });
                    }
                    self.wanted = Some((outer, digest, shares));
                    self.led_by.insert(from);
                }
            }
            StateSay::Offer { outer, part, digest, manifest } => {
                self.offered(now, from, (outer, digest), (part, manifest), out)?;
            }
            StateSay::Chunk { blob, chunk, payload, .. } => {
                let Some(fetch) = self.fetches.get_mut(&blob) else { return Ok(None) };
                match fetch.take(now, from, chunk, &payload) {
                    Taken::Surplus => {}
                    Taken::New(waited) => {
                        self.chunks.learn(waited);
                        self.again_at = now + self.chunks.wait();
                        self.again_in = Span::seconds(1);
                        self.asks = 0;
                    }
                    Taken::False => {
                        self.leave_fetch(blob, from);
                        return Err(Refusal::ChunkFalse { blob, chunk });
                    }
                }
                self.shelve(blob);
                let retry = self.chunks.wait();
                self.ask(now, blob, retry, out);
            }
            StateSay::Ask { .. } | StateSay::Follow { .. } | StateSay::Want { .. } => {}
        }
        Ok(self.came())
    }

    fn is_next(&self, outer: OuterStep) -> bool {
        self.held.is_some_and(|(held, _)| held.0 + 1 == outer.0)
    }

    fn offered(
        &mut self,
        now: Time,
        from: PeerId,
        (outer, digest): (OuterStep, Digest),
        (part, manifest): (StatePart, Manifest),
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let bytes = manifest.bytes;
        let unfit = |shard| Err(Refusal::OfferUnfit { shard, bytes });
        match (part, self.held) {
            (StatePart::Result(shard), Some(_)) => {
                let same = |(of, _, shares): &(OuterStep, Digest, Vec<u32>)| {
                    *of == outer && usize::from(shard) < shares.len()
                };
                if !self.wanted.as_ref().is_some_and(same) {
                    return Ok(());
                }
                if !manifest.is_consistent() || bytes > self.room_beside(part) {
                    return unfit(shard);
                }
            }
            (StatePart::Agreed | StatePart::Own, None) => {
                if !manifest.is_consistent() || bytes > self.bounds.bytes {
                    return unfit(0);
                }
                if part == StatePart::Agreed && self.wanted.is_none() {
                    self.wanted = Some((outer, digest, Vec::new()));
                }
                if self.wanted.as_ref().is_none_or(|(of, _, _)| *of != outer) {
                    return Ok(());
                }
            }
            (StatePart::Result(_), None) | (StatePart::Agreed | StatePart::Own, Some(_)) => return Ok(()),
        }
        let id = manifest.id();
        if !self.chosen.contains_key(&part) {
            self.led_by.insert(from);
        }
        // Each replica's moments are its own: those of the first that offers are as good as any.
        if *self.chosen.entry(part).or_insert(id) != id || self.whole.contains_key(&part) {
            return Ok(());
        }
        self.fetches.entry(id).or_insert_with(|| Fetch::new(manifest, now)).add_source(from);
        self.shelve(id);
        let retry = self.chunks.wait();
        self.ask(now, id, retry, out);
        Ok(())
    }

    /// Returns how long a result may be, beside the others of its outer step.
    fn room_beside(&self, part: StatePart) -> u64 {
        let fetched = self.fetches.iter().map(|(id, fetch)| (*id, fetch.length()));
        let whole = self.whole.values().map(|blob| (blob.id(), blob.manifest().bytes));
        let chosen = self.chosen.get(&part);
        let others = fetched.chain(whole).filter(|(id, _)| Some(id) != chosen);
        self.bounds.bytes.saturating_sub(others.map(|(_, bytes)| bytes).sum())
    }

    /// Gives what is whole, once.
    fn came(&mut self) -> Option<Came> {
        let (outer, digest, shares) = self.wanted.clone()?;
        // What the coordinator says of the weights counts, where it says something.
        let digest = if outer == self.target.0 { self.target.1 } else { digest };
        let whole = |part| self.whole.get(&part).cloned();
        let came = if self.held.is_none() {
            let (agreed, own) = (whole(StatePart::Agreed)?, whole(StatePart::Own)?);
            Came::State { outer, digest, agreed, own }
        } else {
            let shards = (0..).take(shares.len()).map(StatePart::Result);
            let results = shards.map(whole).collect::<Option<Vec<Blob>>>()?;
            Came::Passed(Passed { outer, digest, shares, results })
        };
        self.forget();
        self.handed = true;
        Some(came)
    }

    fn shelve(&mut self, id: Digest) {
        if !self.fetches.get(&id).is_some_and(Fetch::is_complete) {
            return;
        }
        let Some(fetch) = self.fetches.remove(&id) else { return };
        let blob = fetch.finish();
        for (part, _) in self.chosen.iter().filter(|(_, chosen)| **chosen == id) {
            self.whole.insert(*part, blob.clone());
        }
    }

    fn ask(&mut self, now: Time, id: Digest, retry: Span, out: &mut Outbox) {
        let Some(fetch) = self.fetches.get_mut(&id) else { return };
        for (source, chunks) in fetch.wants(now, retry) {
            out.send(source, Message::State(StateSay::Want { blob: id, chunks }));
        }
    }
}

#[cfg(test)]
mod tests;
