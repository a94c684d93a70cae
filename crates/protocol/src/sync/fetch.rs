//! A fetch: a blob on its way here, from all who hold it, resumed wherever it stopped.
//!
//! Owns the bitmap of what has come, what is asked of whom, and the check of each chunk. Knows nothing of what the blob is
//! for.

use crate::ids::{Digest, PeerId};
use crate::sync::blob::{Blob, Manifest};
use crate::time::{Span, Time};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use core::cmp::Reverse;

/// Chunks asked of one source at a time: with several blobs on their way at once this keeps any link full, and it bounds
/// what a source queues for us.
pub const CHUNKS_IN_FLIGHT_MAX: usize = 8;

/// A holder that does not answer is asked ever more rarely, up to this many doublings: a link may be slower than any before.
const DOUBLINGS_MAX: u32 = 5;

/// What became of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is new; this long after it was first asked for.
    New(Span),
    /// It was here already, or was never asked for.
    Surplus,
    /// Its bytes are not those of the manifest.
    False,
}

/// A blob that is being fetched.
#[derive(Debug)]
pub struct Fetch {
    manifest: Manifest,
    buffer: Vec<u8>,
    have: Vec<bool>,
    missing: usize,
    asked: BTreeMap<u32, (PeerId, Time)>,
    /// When each chunk was asked for first: connections lose nothing, so that what comes late answers that.
    asked_first: BTreeMap<u32, Time>,
    sources: Vec<PeerId>,
    /// How often each holder was asked in vain since it last sent anything.
    silent: BTreeMap<PeerId, u32>,
    began: Time,
    received: BTreeMap<PeerId, u64>,
}

impl Fetch {
    /// Starts with a consistent manifest whose length the caller expects: memory for it is taken at once.
    pub fn new(manifest: Manifest, now: Time) -> Self {
        let chunks = manifest.chunks.len();
        Self {
            buffer: vec![0; manifest.bytes as usize],
            have: vec![false; chunks],
            missing: chunks,
            asked: BTreeMap::new(),
            asked_first: BTreeMap::new(),
            sources: Vec::new(),
            silent: BTreeMap::new(),
            began: now,
            received: BTreeMap::new(),
            manifest,
        }
    }

    /// Returns how long the blob is.
    pub fn length(&self) -> u64 {
        self.manifest.bytes
    }

    /// Adds a holder.
    pub fn add_source(&mut self, peer: PeerId) {
        if !self.sources.contains(&peer) {
            self.sources.push(peer);
        }
    }

    /// Gives up on a holder: what was asked of it is asked of another. Returns whether any is left.
    pub fn drop_source(&mut self, peer: PeerId) -> bool {
        self.sources.retain(|source| *source != peer);
        for (chunk, _) in self.asked.extract_if(.., |_, (from, _)| *from == peer) {
            self.asked_first.remove(&chunk);
        }
        !self.sources.is_empty()
    }

    /// Returns what to ask of whom now; what was asked longer than `retry` ago counts as not asked,
    /// longer for a holder that has not answered before.
    pub fn wants(&mut self, now: Time, retry: Span) -> Vec<(PeerId, Vec<u32>)> {
        let patience = |from: &PeerId| {
            let silent = self.silent.get(from).copied().unwrap_or(0).min(DOUBLINGS_MAX);
            Span(retry.0.saturating_mul(1 << silent))
        };
        let overdue = |(from, since): &(PeerId, Time)| now.since(*since) >= patience(from);
        let late: BTreeMap<u32, PeerId> = self
            .asked
            .iter()
            .filter(|(_, asked)| overdue(asked))
            .map(|(chunk, (from, _))| (*chunk, *from))
            .collect();
        let holders: BTreeSet<PeerId> = late.values().copied().collect();
        holders.into_iter().for_each(|from| *self.silent.entry(from).or_default() += 1);
        self.asked.retain(|chunk, _| !late.contains_key(chunk));
        let mut wants: Vec<(PeerId, Vec<u32>)> = Vec::new();
        let room = |asked: &BTreeMap<u32, (PeerId, Time)>, source: PeerId| {
            CHUNKS_IN_FLIGHT_MAX - asked.values().filter(|(from, _)| *from == source).count()
        };
        let mut free: Vec<usize> = self.sources.iter().map(|source| room(&self.asked, *source)).collect();
        let open = (0..self.have.len()).filter(|chunk| !self.have[*chunk]);
        for chunk in open.map(|chunk| chunk as u32) {
            if self.asked.contains_key(&chunk) {
                continue;
            }
            // Of those who answer, the holder with the most room is the fastest.
            let silent = |at: usize| self.silent.get(&self.sources[at]).copied().unwrap_or(0);
            let with_room = (0..free.len()).filter(|at| free[*at] > 0);
            let Some(at) = with_room.max_by_key(|at| (Reverse(silent(*at)), free[*at])) else { break };
            free[at] -= 1;
            let source = self.sources[at];
            self.asked.insert(chunk, (source, now));
            self.asked_first.entry(chunk).or_insert(now);
            match wants.iter_mut().find(|(to, _)| *to == source) {
                Some((_, chunks)) => chunks.push(chunk),
                None => wants.push((source, vec![chunk])),
            }
        }
        wants
    }

    /// Takes a chunk, if its digest is the manifest's.
    pub fn take(&mut self, now: Time, from: PeerId, chunk: u32, payload: &Bytes) -> Taken {
        let Some(range) = self.manifest.range(chunk) else { return Taken::False };
        let at = chunk as usize;
        if self.have[at] {
            return Taken::Surplus;
        }
        if range.len() != payload.len() || Digest::of(payload) != self.manifest.chunks[at] {
            return Taken::False;
        }
        self.buffer[range].copy_from_slice(payload);
        self.have[at] = true;
        self.missing -= 1;
        self.silent.remove(&from);
        self.asked.remove(&chunk);
        let waited = self.asked_first.remove(&chunk).map_or(Span(0), |since| now.since(since));
        *self.received.entry(from).or_default() += payload.len() as u64;
        Taken::New(waited)
    }

    /// Returns whether every chunk is here.
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Returns the bytes each holder sent and the time since the fetch began.
    pub fn received(&self, now: Time) -> (&BTreeMap<PeerId, u64>, Span) {
        (&self.received, now.since(self.began))
    }

    /// Gives the whole blob.
    pub fn finish(self) -> Blob {
        assert!(self.missing == 0, "a blob is whole when every chunk is here");
        Blob::checked(self.manifest, self.buffer.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::blob::CHUNK_BYTES;

    const A: PeerId = PeerId([1; 32]);
    const B: PeerId = PeerId([2; 32]);
    const RETRY: Span = Span::seconds(1);

    fn blob(chunks: usize) -> Blob {
        let bytes: Vec<u8> = (0..chunks * CHUNK_BYTES as usize - 3).map(|at| (at / 1000) as u8).collect();
        Blob::new(bytes.into())
    }

    #[test]
    fn a_blob_comes_from_several_holders_in_any_order() {
        let blob = blob(20);
        let mut fetch = Fetch::new(blob.manifest().clone(), Time(0));
        fetch.add_source(A);
        fetch.add_source(B);
        let mut from_each = BTreeMap::new();
        while !fetch.is_complete() {
            let wants = fetch.wants(Time(0), RETRY);
            assert!(!wants.is_empty());
            for (source, chunks) in wants.iter().rev() {
                assert!(chunks.len() <= CHUNKS_IN_FLIGHT_MAX);
                for chunk in chunks.iter().rev() {
                    *from_each.entry(*source).or_insert(0) += 1;
                    assert_eq!(
                        fetch.take(Time(9), *source, *chunk, &blob.chunk(*chunk).unwrap()),
                        Taken::New(Span(9))
                    );
                }
            }
        }
        assert_eq!(fetch.take(Time(9), A, 3, &blob.chunk(3).unwrap()), Taken::Surplus);
        assert_eq!(from_each.values().sum::<usize>(), 20);
        assert!(from_each.values().all(|count| *count >= 8), "{from_each:?}");
        assert_eq!(fetch.finish(), blob);
    }

    #[test]
    fn what_a_lost_or_silent_holder_owes_is_asked_of_another() {
        let blob = blob(4);
        let mut fetch = Fetch::new(blob.manifest().clone(), Time(0));
        fetch.add_source(A);
        assert_eq!(fetch.wants(Time(0), RETRY), [(A, vec![0, 1, 2, 3])]);
        fetch.take(Time(9), A, 1, &blob.chunk(1).unwrap());
        fetch.add_source(B);
        assert_eq!(fetch.wants(Time(1), RETRY), [], "all is asked for");
        assert!(fetch.drop_source(A));
        assert_eq!(fetch.wants(Time(2), RETRY), [(B, vec![0, 2, 3])], "resumed by what is missing");
        assert_eq!(fetch.wants(Time(2) + RETRY, RETRY), [(B, vec![0, 2, 3])], "asked again after a while");
        assert!(!fetch.drop_source(B));
    }

    #[test]
    fn what_one_holder_leaves_unanswered_is_asked_of_the_other() {
        let blob = blob(1);
        let mut fetch = Fetch::new(blob.manifest().clone(), Time(0));
        fetch.add_source(A);
        fetch.add_source(B);
        let mut asked: Vec<PeerId> = Vec::new();
        for retries in [0, 1, 2, 3, 4] {
            let now = Time(retries * RETRY.0);
            asked.extend(fetch.wants(now, RETRY).iter().map(|(source, _)| *source));
        }
        assert_eq!(asked, [B, A, B, A], "and after a while longer, again of the first");
        let chunk = blob.chunk(0).unwrap();
        let end = Time(9 * RETRY.0);
        assert_eq!(
            fetch.take(end, B, 0, &chunk),
            Taken::New(end.since(Time(0))),
            "since it was asked for first"
        );
    }

    #[test]
    fn false_bytes_are_not_taken() {
        let blob = blob(2);
        let mut fetch = Fetch::new(blob.manifest().clone(), Time(0));
        fetch.add_source(A);
        fetch.wants(Time(0), RETRY);
        let swapped = blob.chunk(1).unwrap();
        assert_eq!(fetch.take(Time(9), A, 0, &swapped), Taken::False);
        assert_eq!(fetch.take(Time(9), A, 0, &Bytes::new()), Taken::False);
        assert_eq!(fetch.take(Time(9), A, 9, &swapped), Taken::False);
        assert!(!fetch.is_complete());
    }
}
