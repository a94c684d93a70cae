//! Handing a stage's state over: a newcomer takes it from all live replicas at once, chunk by chunk, and they give it.
//!
//! Owns both ends of that exchange. Knows nothing of when a newcomer enters, or of what the bytes mean.

use crate::ids::{Digest, OuterStep, PeerId};
use crate::message::{Message, Refusal};
use crate::port::{Action, Outbox};
use crate::sync::blob::{Blob, Manifest};
use crate::sync::fetch::{CHUNKS_IN_FLIGHT_MAX, Fetch, Taken};
use crate::sync::patience::Patience;
use crate::sync::state::{StatePart, StateSay};
use crate::time::{Span, Time};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// How long to wait for an answer before any was measured: a donor may be in the middle of a long backward.
const ANSWER_WAIT_FIRST: Span = Span::seconds(5);

/// Newcomers that wait for the same copy; a stage has few vacant places.
const ASKERS_MAX: usize = 64;

/// The end that gives.
#[derive(Debug, Default)]
pub struct Donor {
    committed: Option<(OuterStep, Digest)>,
    /// The copy that was asked of the driver, and whether it is here.
    copy: Option<(OuterStep, Option<[Blob; 2]>)>,
    askers: BTreeSet<PeerId>,
    /// Who has asked for what is not committed here yet: the coordinator tells both of a commit at the same time.
    early: BTreeMap<PeerId, OuterStep>,
}

impl Donor {
    /// Starts with what was committed when the stage was loaded.
    pub fn new(committed: Option<(OuterStep, Digest)>) -> Self {
        Self { committed, ..Self::default() }
    }

    /// Hears that the weights of an outer step are current; the copy of an earlier one is let go.
    pub fn committed(&mut self, outer: OuterStep, digest: Digest, out: &mut Outbox) {
        self.committed = Some((outer, digest));
        self.copy = None;
        self.askers.clear();
        let due = self.early.extract_if(.., |_, asked| *asked <= outer);
        self.askers.extend(due.filter(|(_, asked)| *asked == outer).map(|(asker, _)| asker));
        if !self.askers.is_empty() {
            self.export(outer, out);
        }
    }

    /// Takes a request of another replica of the stage.
    ///
    /// # Errors
    /// What is asked for is not held here.
    pub fn received(&mut self, from: PeerId, say: &StateSay, out: &mut Outbox) -> Result<(), Refusal> {
        match say {
            StateSay::Ask { outer } => self.asked(from, *outer, out),
            StateSay::Want { blob, chunks } => self.wanted(from, *blob, chunks, out),
            StateSay::Offer { .. } | StateSay::Chunk { .. } => Ok(()),
        }
    }

    fn asked(&mut self, from: PeerId, outer: OuterStep, out: &mut Outbox) -> Result<(), Refusal> {
        let committed = self.committed.map(|(committed, _)| committed);
        if committed < Some(outer) && (self.early.len() < ASKERS_MAX || self.early.contains_key(&from)) {
            self.early.insert(from, outer);
            return Ok(());
        }
        if committed != Some(outer) {
            return Err(Refusal::NoState { outer });
        }
        match &self.copy {
            Some((of, Some(blobs))) if *of == outer => offer(from, outer, blobs, out),
            Some(_) | None => {
                if self.askers.len() < ASKERS_MAX {
                    self.askers.insert(from);
                }
                if self.copy.is_none() {
                    self.export(outer, out);
                }
            }
        }
        Ok(())
    }

    fn export(&mut self, outer: OuterStep, out: &mut Outbox) {
        self.copy = Some((outer, None));
        out.push(Action::Export { outer });
    }

    /// Takes the copy from the driver, and offers it to all who asked.
    pub fn exported(&mut self, outer: OuterStep, agreed: Blob, own: Blob, out: &mut Outbox) {
        // A commit may have come between.
        let Some((_, blobs)) = self.copy.as_mut().filter(|(of, _)| *of == outer) else { return };
        let blobs = blobs.insert([agreed, own]);
        for asker in core::mem::take(&mut self.askers) {
            offer(asker, outer, blobs, out);
        }
    }

    fn wanted(&self, from: PeerId, blob: Digest, chunks: &[u32], out: &mut Outbox) -> Result<(), Refusal> {
        let blobs = self.copy.iter().flat_map(|(_, blobs)| blobs.iter().flatten());
        let held = blobs.into_iter().find(|held| held.manifest().id() == blob);
        let held = held.ok_or(Refusal::NotHeld { blob })?;
        let chunks: BTreeSet<u32> = chunks.iter().copied().take(CHUNKS_IN_FLIGHT_MAX).collect();
        for chunk in chunks {
            let payload = held.chunk(chunk).ok_or(Refusal::NotHeld { blob })?;
            out.send(from, Message::State(StateSay::Chunk { blob, chunk, payload }));
        }
        Ok(())
    }
}

fn offer(to: PeerId, outer: OuterStep, blobs: &[Blob; 2], out: &mut Outbox) {
    for (part, blob) in [StatePart::Agreed, StatePart::Own].into_iter().zip(blobs) {
        let manifest = blob.manifest().clone();
        out.send(to, Message::State(StateSay::Offer { outer, part, manifest }));
    }
}

/// The end that takes.
#[derive(Debug)]
pub struct Intake {
    outer: OuterStep,
    digest: Digest,
    donors: Vec<PeerId>,
    /// Longest part that is believed.
    bytes_max: u64,
    chosen: BTreeMap<StatePart, Digest>,
    fetches: BTreeMap<Digest, Fetch>,
    whole: BTreeMap<StatePart, Blob>,
    chunks: Patience,
    again_at: Time,
    again_in: Span,
}

impl Intake {
    /// Starts to take the state after an outer step from `donors`; a part longer than `bytes_max` is refused.
    pub fn new(outer: OuterStep, digest: Digest, donors: Vec<PeerId>, bytes_max: u64, now: Time) -> Self {
        Self {
            outer,
            digest,
            donors,
            bytes_max,
            chosen: BTreeMap::new(),
            fetches: BTreeMap::new(),
            whole: BTreeMap::new(),
            chunks: Patience::new(ANSWER_WAIT_FIRST),
            again_at: now,
            again_in: Span::seconds(1),
        }
    }

    /// Returns the outer step whose state it is.
    pub fn outer(&self) -> OuterStep {
        self.outer
    }

    /// Returns the digest that the agreed weights must have.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns when to call [`Intake::woke`].
    pub fn deadline(&self) -> Option<Time> {
        (!self.is_whole()).then_some(self.again_at)
    }

    fn is_whole(&self) -> bool {
        self.whole.len() == 2
    }

    /// Asks, and asks again for what has not come.
    pub fn woke(&mut self, now: Time, out: &mut Outbox) {
        if self.is_whole() || now < self.again_at {
            return;
        }
        self.again_at = now + self.again_in;
        self.again_in = Span((self.again_in.0 * 2).min(Span::seconds(30).0));
        let outer = self.outer;
        for donor in &self.donors {
            out.send(*donor, Message::State(StateSay::Ask { outer }));
        }
        let retry = self.chunks.wait();
        for id in self.fetches.keys().copied().collect::<Vec<_>>() {
            self.ask(now, id, retry, out);
        }
    }

    /// Hears who can still be asked.
    pub fn donors(&mut self, donors: Vec<PeerId>) {
        for gone in self.donors.iter().filter(|donor| !donors.contains(donor)) {
            for fetch in self.fetches.values_mut() {
                fetch.drop_source(*gone);
            }
        }
        self.donors = donors;
    }

    /// Takes a message of a donor; gives both parts, the agreed one first, once they are whole.
    ///
    /// # Errors
    /// An offer or a chunk that does not fit.
    pub fn received(
        &mut self,
        now: Time,
        from: PeerId,
        say: StateSay,
        out: &mut Outbox,
    ) -> Result<Option<[Blob; 2]>, Refusal> {
        if !self.donors.contains(&from) || self.is_whole() {
            return Ok(None);
        }
        match say {
            StateSay::Offer { outer, part, manifest } if outer == self.outer => {
                self.offered(now, from, part, manifest, out)?;
            }
            StateSay::Chunk { blob, chunk, payload } => {
                let Some(fetch) = self.fetches.get_mut(&blob) else { return Ok(None) };
                match fetch.take(now, from, chunk, &payload) {
                    Taken::Surplus => {}
                    Taken::New(waited) => {
                        self.chunks.learn(waited);
                        self.again_at = now + self.chunks.wait();
                        self.again_in = Span::seconds(1);
                    }
                    Taken::False => {
                        if !fetch.drop_source(from) {
                            self.fetches.remove(&blob);
                            self.chosen.retain(|_, chosen| *chosen != blob);
                        }
                        return Err(Refusal::ChunkFalse { blob, chunk });
                    }
                }
                self.shelve(blob);
                let retry = self.chunks.wait();
                self.ask(now, blob, retry, out);
            }
            StateSay::Offer { .. } | StateSay::Ask { .. } | StateSay::Want { .. } => {}
        }
        let parts = [StatePart::Agreed, StatePart::Own].map(|part| self.whole.get(&part).cloned());
        let [Some(agreed), Some(own)] = parts else { return Ok(None) };
        Ok(Some([agreed, own]))
    }

    fn offered(
        &mut self,
        now: Time,
        from: PeerId,
        part: StatePart,
        manifest: Manifest,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        if !manifest.is_consistent() || manifest.bytes > self.bytes_max {
            return Err(Refusal::OfferUnfit { shard: 0, bytes: manifest.bytes });
        }
        let id = manifest.id();
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
mod tests {
    use super::*;
    use crate::sync::blob::CHUNK_BYTES;
    use alloc::vec;

    const NEW: PeerId = PeerId([9; 32]);
    const OUTER: OuterStep = OuterStep(3);
    const DIGEST: Digest = Digest([7; 32]);

    fn donor() -> Donor {
        Donor::new(Some((OUTER, DIGEST)))
    }

    fn blob(fill: u8, chunks: usize) -> Blob {
        Blob::new(vec![fill; chunks * CHUNK_BYTES as usize - 5].into())
    }

    fn sent(out: &mut Outbox) -> Vec<(PeerId, StateSay)> {
        let mut all = Vec::new();
        while let Some(action) = out.pop() {
            if let Action::Send { to, message: Message::State(say) } = action {
                all.push((to, say));
            }
        }
        all
    }

    /// Carries messages between a newcomer and two donors until nothing more is said; `deaf` never answers requests for
    /// chunks.
    fn carry(intake: &mut Intake, donors: &mut [(PeerId, Donor)], deaf: Option<PeerId>) -> Option<[Blob; 2]> {
        let mut got = None;
        for second in 0..200 {
            let now = Time(second * 1_000_000);
            let mut out = Outbox::default();
            intake.woke(now, &mut out);
            let mut open = sent(&mut out);
            while let Some((to, say)) = open.pop() {
                if deaf == Some(to) && matches!(say, StateSay::Want { .. }) {
                    continue;
                }
                let (id, donor) = donors.iter_mut().find(|(id, _)| *id == to).expect("a donor");
                donor.received(NEW, &say, &mut out).expect("held");
                if let Some((OUTER, None)) = donor.copy {
                    donor.exported(OUTER, blob(1, 20), blob(id.0[0], 3), &mut out);
                }
                for (_, answer) in sent(&mut out) {
                    let whole = intake.received(now, *id, answer, &mut out).expect("fits");
                    got = got.or(whole);
                }
                open.extend(sent(&mut out));
            }
            if got.is_some() {
                return got;
            }
        }
        None
    }

    #[test]
    fn a_newcomer_gets_both_parts_from_several_donors_even_if_one_goes_deaf() {
        for deaf in [None, Some(PeerId([1; 32])), Some(PeerId([2; 32]))] {
            let peers = [PeerId([1; 32]), PeerId([2; 32])];
            let mut donors = peers.map(|peer| (peer, donor()));
            let mut intake = Intake::new(OUTER, DIGEST, peers.to_vec(), 1 << 30, Time(0));
            if let Some(deaf) = deaf {
                // The moments are one donor's alone; that one is gone for good only when the plan says so.
                intake.donors(peers.iter().copied().filter(|peer| *peer != deaf).collect());
            }
            let [agreed, own] = carry(&mut intake, &mut donors, deaf).expect("it ends");
            assert_eq!(agreed, blob(1, 20));
            assert_eq!(own.manifest().chunks.len(), 3);
        }
    }

    #[test]
    fn a_copy_of_another_commit_is_not_given() {
        let mut donor = donor();
        let mut out = Outbox::default();
        let other = OuterStep(2);
        let refused = donor.received(NEW, &StateSay::Ask { outer: other }, &mut out);
        assert_eq!(refused, Err(Refusal::NoState { outer: other }));
        donor.received(NEW, &StateSay::Ask { outer: OUTER }, &mut out).unwrap();
        assert_eq!(out.pop(), Some(Action::Export { outer: OUTER }));
        donor.committed(OuterStep(4), DIGEST, &mut out);
        donor.exported(OUTER, blob(1, 1), blob(2, 1), &mut out);
        assert_eq!(out.pop(), None, "the commit came between");
    }

    #[test]
    fn who_hears_of_a_commit_first_gets_it_when_it_is_here() {
        let (mut donor, mut out) = (donor(), Outbox::default());
        let (next, after) = (OuterStep(4), OuterStep(5));
        let other = PeerId([8; 32]);
        donor.received(NEW, &StateSay::Ask { outer: next }, &mut out).unwrap();
        donor.received(other, &StateSay::Ask { outer: after }, &mut out).unwrap();
        assert_eq!(out.pop(), None, "it is not there yet");
        donor.committed(next, DIGEST, &mut out);
        assert_eq!(out.pop(), Some(Action::Export { outer: next }));
        donor.exported(next, blob(1, 1), blob(2, 1), &mut out);
        let to: BTreeSet<PeerId> = sent(&mut out).into_iter().map(|(to, _)| to).collect();
        assert_eq!(to, BTreeSet::from([NEW]), "the other waits for a later one");
        donor.committed(OuterStep(6), DIGEST, &mut out);
        assert_eq!((out.pop(), donor.early.len()), (None, 0), "which has passed by");
        for peer in 0..=ASKERS_MAX {
            let asked =
                donor.received(PeerId([peer as u8; 32]), &StateSay::Ask { outer: OuterStep(9) }, &mut out);
            assert_eq!(asked.is_ok(), peer < ASKERS_MAX, "{peer}");
        }
    }

    #[test]
    fn absurd_offers_and_false_chunks_are_refused() {
        let peer = PeerId([1; 32]);
        let mut intake = Intake::new(OUTER, DIGEST, vec![peer], 1 << 20, Time(0));
        let mut out = Outbox::default();
        let long = blob(3, 4).manifest().clone();
        let offer = |manifest| StateSay::Offer { outer: OUTER, part: StatePart::Agreed, manifest };
        let refused = intake.received(Time(0), peer, offer(long), &mut out);
        assert!(matches!(refused, Err(Refusal::OfferUnfit { .. })));
        let fits = blob(3, 1);
        intake.received(Time(0), peer, offer(fits.manifest().clone()), &mut out).unwrap();
        let id = fits.manifest().id();
        let payload = vec![4; fits.bytes().len()].into();
        let refused =
            intake.received(Time(0), peer, StateSay::Chunk { blob: id, chunk: 0, payload }, &mut out);
        assert_eq!(refused, Err(Refusal::ChunkFalse { blob: id, chunk: 0 }));
    }
}
