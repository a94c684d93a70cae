//! A replica's side of the outer step: contributes, reduces what falls to it, fetches the rest, votes, and does as decided.
//!
//! Owns what a replica holds and is owed in the open exchange. It decides nothing about commit or restore, and does not know
//! what inner steps go on meanwhile. Everything it does follows from its state (`progress`), so that a message that comes
//! twice, late or not at all changes at most the time.

use crate::event::Event;
use crate::ids::{Digest, InnerStep, OuterStep, PeerId, ReplicaId};
use crate::message::{Message, Refusal};
use crate::port::{Action, Outbox};
use crate::sync::blob::{Blob, Manifest};
use crate::sync::exchange::{Exchange, Reduction, Staging, counted};
use crate::sync::fetch::{CHUNKS_IN_FLIGHT_MAX, Taken};
use crate::sync::group::Group;
use crate::sync::passed::Passed;
use crate::sync::patience::Patience;
use crate::sync::say::{Begin, Part, Round, Say, bounded};
use crate::sync::task::{Contribution, SyncDone, SyncTask};
use crate::time::{Span, Time};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// How long to wait for an answer before any was measured.
const ANSWER_WAIT_FIRST: Span = Span::seconds(2);

/// How long to wait for a chunk before any was measured: a slow uplink may have all that others asked for in front of it, and
/// a chunk that is asked for twice is sent twice.
const CHUNK_WAIT_FIRST: Span = Span::seconds(30);

/// Repetitions become rarer up to this many doublings: waiting for a slow replica is not a fault.
const DOUBLINGS_MAX: u32 = 5;

/// Tries ahead of ours that an offer may name: a replica may hear of a try a little earlier than another.
const ATTEMPTS_AHEAD_MAX: u16 = 16;

/// How an outer step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// All replicas go on from the same weights.
    Committed,
    /// All are as before.
    Restored,
    /// The others went on without this replica, or from other weights than its own: it cannot take part any longer.
    Excluded,
}

/// A replica in its group.
#[derive(Debug)]
pub struct Member {
    me: ReplicaId,
    coordinator: PeerId,
    group: Group,
    exchange: Option<Exchange>,
    decision: Option<(OuterStep, Decision)>,
    /// The last commit that this replica follows, with the digest of its weights.
    agreed: Option<(OuterStep, Digest)>,
    /// What led to it.
    passed: Option<Passed>,
    /// How long an answer to a message takes: no longer than a chunk.
    answers: Patience,
    /// How long a chunk takes.
    chunks: Patience,
}

impl Member {
    /// Makes a replica that stands in no exchange.
    pub fn new(me: ReplicaId, coordinator: PeerId, group: Group) -> Self {
        let (answers, chunks) = (Patience::new(ANSWER_WAIT_FIRST), Patience::new(CHUNK_WAIT_FIRST));
        Self {
            me,
            coordinator,
            group,
            exchange: None,
            decision: None,
            agreed: None,
            passed: None,
            answers,
            chunks,
        }
    }

    /// Hears who takes part from now on.
    pub fn regroup(&mut self, group: Group) {
        self.group = group;
    }

    /// Returns the last commit that this replica follows, with the digest of its weights.
    pub fn agreed(&self) -> Option<(OuterStep, Digest)> {
        self.agreed
    }

    /// Gives what led to the last commit, once.
    pub fn take_passed(&mut self) -> Option<Passed> {
        self.passed.take()
    }

    /// Says that the replica stands at the border of an outer step, with its snapshot taken of weights that have seen so many
    /// steps: at the end of the run they may have seen more than the border has, where work was done again.
    pub fn reached(&mut self, now: Time, outer: OuterStep, step: InnerStep, out: &mut Outbox) {
        assert!(self.exchange.is_none(), "an exchange is decided before the next one opens");
        self.exchange = Some(Exchange::new(outer, step, now));
        self.say_again(now, out);
    }

    /// Takes the decision of the last exchange, once.
    pub fn take_decision(&mut self) -> Option<(OuterStep, Decision)> {
        self.decision.take()
    }

    /// Returns when to call [`Member::woke`].
    pub fn deadline(&self) -> Option<Time> {
        self.exchange.as_ref().map(|exchange| exchange.repeat_at)
    }

    /// Says again what has had no effect, once its time has come.
    pub fn woke(&mut self, now: Time, out: &mut Outbox) {
        let Some(exchange) = &mut self.exchange else { return };
        if now < exchange.repeat_at {
            return;
        }
        exchange.repeats = (exchange.repeats + 1).min(DOUBLINGS_MAX);
        self.say_again(now, out);
        self.progress(now, out);
    }

    /// Hears that a peer is gone: what it owes is asked of others.
    pub fn lost(&mut self, now: Time, peer: PeerId, out: &mut Outbox) {
        let replica = self.group.replica_of(peer);
        let Some(exchange) = &mut self.exchange else { return };
        for fetch in exchange.fetches.values_mut() {
            fetch.drop_source(peer);
        }
        // A contribution that it offered may be here already; a result comes from whoever still holds it.
        exchange.offers.retain(|(part, _, from), _| *part == Part::Contribution || Some(*from) != replica);
        self.progress(now, out);
    }

    /// Takes a message about an outer step.
    pub fn received(&mut self, now: Time, from: PeerId, say: Say, out: &mut Outbox) -> Result<(), Refusal> {
        if from == self.coordinator {
            return self.coordinator_said(now, say, out);
        }
        let Some(replica) = self.group.replica_of(from).filter(|replica| *replica != self.me) else {
            return Err(Refusal::NotYours { peer: from });
        };
        match say {
            Say::Offer { round, shard, part, manifest } => {
                self.offered(now, replica, round, (part, shard), manifest, out)
            }
            Say::Want { blob, chunks } => self.wanted(from, blob, &chunks, out),
            Say::Chunk { blob, chunk, payload } => {
                let Some(exchange) = &mut self.exchange else { return Ok(()) };
                let Some(fetch) = exchange.fetches.get_mut(&blob) else { return Ok(()) };
                match fetch.take(now, from, chunk, &payload) {
                    Taken::Surplus => Ok(()),
                    Taken::New(waited) => {
                        self.answers.learn(waited);
                        self.chunks.learn(waited);
                        self.chunk_taken(now, blob, out);
                        Ok(())
                    }
                    Taken::False => {
                        if !fetch.drop_source(from) {
                            exchange.fetches.remove(&blob);
                            self.flaw(replica, format!("chunk {chunk} is not the one that was offered"), out);
                        }
                        Err(Refusal::ChunkFalse { blob, chunk })
                    }
                }
            }
            Say::Reached { .. }
            | Say::Begin(_)
            | Say::Claim { .. }
            | Say::Flaw { .. }
            | Say::Vote { .. }
            | Say::Commit { .. }
            | Say::Restore { .. }
            | Say::Probe { .. }
            | Say::Alive { .. }
            | Say::Excluded { .. } => Err(Refusal::NotYours { peer: from }),
        }
    }

    fn coordinator_said(&mut self, now: Time, say: Say, out: &mut Outbox) -> Result<(), Refusal> {
        match say {
            Say::Begin(begin) => self.begin(now, begin, out),
            Say::Commit { outer, step, digest, .. } => {
                self.commit(outer, step, digest, out);
                Ok(())
            }
            Say::Restore { outer } => {
                if self.exchange.as_ref().is_some_and(|exchange| exchange.outer == outer) {
                    out.push(Action::Sync(SyncTask::Restore { outer }));
                    self.decide(outer, Decision::Restored, out);
                }
                Ok(())
            }
            Say::Probe { outer } => {
                self.tell(Say::Alive { outer }, out);
                self.say_again(now, out);
                Ok(())
            }
            Say::Excluded { outer } => {
                if self.exchange.as_ref().is_some_and(|exchange| exchange.outer <= outer) {
                    self.decide(outer, Decision::Excluded, out);
                }
                Ok(())
            }
            Say::Offer { .. }
            | Say::Want { .. }
            | Say::Chunk { .. }
            | Say::Reached { .. }
            | Say::Claim { .. }
            | Say::Flaw { .. }
            | Say::Vote { .. }
            | Say::Alive { .. } => Err(Refusal::NotYours { peer: self.coordinator }),
        }
    }

    fn begin(&mut self, now: Time, begin: Begin, out: &mut Outbox) -> Result<(), Refusal> {
        let Some(exchange) = &mut self.exchange else { return Ok(()) };
        if begin.round.outer != exchange.outer || begin.round.attempt < exchange.heard {
            return Ok(());
        }
        if !self.group.admits(&begin) {
            return Err(Refusal::BeginUnfit { outer: begin.round.outer });
        }
        if exchange.begin.as_ref() == Some(&begin) {
            // What follows from it is said again in its own time: an answer to each reminder would call for the next one.
            return Ok(());
        }
        exchange.begin(self.me, begin);
        exchange.stirred(now, &self.answers);
        self.progress(now, out);
        Ok(())
    }

    fn commit(&mut self, outer: OuterStep, step: InnerStep, digest: Digest, out: &mut Outbox) {
        let Some(exchange) = self.exchange.as_ref().filter(|exchange| exchange.outer == outer) else {
            return;
        };
        if exchange.staging == Staging::Done(digest) && exchange.step >= step {
            self.agreed = Some((outer, digest));
            let (shares, results) = (exchange.shares().cloned(), exchange.results(self.me));
            self.passed =
                shares.zip(results).map(|(shares, results)| Passed { outer, digest, shares, results });
            out.push(Action::Sync(SyncTask::Commit { outer }));
            out.record(Event::Agreed { outer, digest });
            self.decide(outer, Decision::Committed, out);
        } else {
            self.decide(outer, Decision::Excluded, out);
        }
    }

    fn decide(&mut self, outer: OuterStep, decision: Decision, out: &mut Outbox) {
        self.exchange = None;
        self.decision = Some((outer, decision));
        match decision {
            Decision::Committed | Decision::Excluded => {}
            Decision::Restored => out.record(Event::Restored { outer }),
        }
    }

    fn offered(
        &mut self,
        now: Time,
        from: ReplicaId,
        round: Round,
        (part, shard): (Part, u16),
        manifest: Manifest,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        if !manifest.is_consistent() || usize::from(shard) >= self.group.shards_max {
            return Err(Refusal::OfferUnfit { shard, bytes: manifest.bytes });
        }
        let Some(exchange) = &mut self.exchange else { return Ok(()) };
        let ahead = round.attempt.0.saturating_sub(exchange.heard.0);
        if round.outer != exchange.outer || round.attempt < exchange.heard || ahead > ATTEMPTS_AHEAD_MAX {
            return Ok(());
        }
        // In a try an offer stands, or ever other ones would take memory for each.
        if let Some((attempt, stands)) = exchange.offers.get(&(part, shard, from)) {
            if *attempt > round.attempt {
                return Ok(());
            }
            if *attempt == round.attempt && *stands != manifest {
                return Err(Refusal::OfferUnfit { shard, bytes: manifest.bytes });
            }
        }
        exchange.offers.insert((part, shard, from), (round.attempt, manifest));
        self.progress(now, out);
        Ok(())
    }

    fn wanted(&self, from: PeerId, blob: Digest, chunks: &[u32], out: &mut Outbox) -> Result<(), Refusal> {
        let held = self.exchange.as_ref().and_then(|exchange| exchange.held.get(&blob));
        let Some((_, held)) = held else { return Err(Refusal::NotHeld { blob }) };
        let chunks: BTreeSet<u32> = chunks.iter().copied().take(CHUNKS_IN_FLIGHT_MAX).collect();
        for chunk in chunks {
            let payload = held.chunk(chunk).ok_or(Refusal::NotHeld { blob })?;
            out.send(from, Message::Sync(Say::Chunk { blob, chunk, payload }));
        }
        Ok(())
    }

    /// Takes what the driver has computed. A snapshot or cut-over is not the exchange's.
    pub fn done(&mut self, now: Time, done: SyncDone, out: &mut Outbox) {
        let Some(exchange) = &mut self.exchange else { return };
        let current = exchange.round();
        match done {
            SyncDone::Snapshotted { .. }
            | SyncDone::Committed { .. }
            | SyncDone::Restored { .. }
            | SyncDone::Adopted { .. } => return,
            SyncDone::Encoded { outer, shares, shards, .. } => {
                if outer == exchange.outer && exchange.shares() == Some(&shares) {
                    exchange.encoded(shards);
                }
            }
            SyncDone::Reduced { round, shard, result, .. } => {
                if Some(round) != current {
                    return;
                }
                match result {
                    Ok(blob) => {
                        let id = blob.id();
                        // The mean of a single contribution may be that contribution, which outlives the try.
                        exchange.held.entry(id).or_insert((Part::Result, blob));
                        exchange.reductions.insert(shard, Reduction::Done(id));
                        self.tell(Say::Claim { round, shard, blob: id }, out);
                        self.offer_result(shard, out);
                    }
                    Err((contributor, reason)) => self.flaw(contributor, reason, out),
                }
            }
            SyncDone::Staged { round, result, .. } => {
                if Some(round) != current {
                    return;
                }
                match result {
                    Ok(digest) => {
                        exchange.staging = Staging::Done(digest);
                        self.vote(out);
                    }
                    Err((shard, reason)) => {
                        let reducer = exchange.result_from(shard).unwrap_or(self.me);
                        self.flaw(reducer, format!("result of shard {shard}: {reason}"), out);
                    }
                }
            }
        }
        if let Some(exchange) = &mut self.exchange {
            exchange.stirred(now, &self.answers);
        }
        self.progress(now, out);
    }

    /// Does whatever can be done now.
    fn progress(&mut self, now: Time, out: &mut Outbox) {
        let Some(exchange) = &mut self.exchange else { return };
        let Some(begin) = exchange.begin.clone() else { return };
        if exchange.shards.is_empty() {
            if !core::mem::replace(&mut exchange.encoding, true) {
                let shares = begin.shares.clone();
                out.push(Action::Sync(SyncTask::Encode { outer: exchange.outer, shares }));
            }
            return;
        }
        if !core::mem::replace(&mut exchange.contributed, true) {
            self.offer_contributions(&begin, out);
        }
        self.reduce(now, &begin, out);
        self.stage(now, &begin, out);
    }

    fn offer_contributions(&self, begin: &Begin, out: &mut Outbox) {
        let Some(exchange) = &self.exchange else { return };
        if !begin.contributors.iter().any(|(replica, _)| *replica == self.me) {
            return;
        }
        for ((shard, blob), reducers) in (0..).zip(&exchange.shards).zip(&begin.reducers) {
            for peer in self.peers(reducers) {
                let (round, part, manifest) = (begin.round, Part::Contribution, blob.manifest().clone());
                out.send(peer, Message::Sync(Say::Offer { round, shard, part, manifest }));
            }
        }
    }

    fn offer_result(&self, shard: u16, out: &mut Outbox) {
        let Some(exchange) = &self.exchange else { return };
        let (Some(begin), Some(Reduction::Done(id))) = (&exchange.begin, exchange.reductions.get(&shard))
        else {
            return;
        };
        let Some((_, blob)) = exchange.held.get(id) else { return };
        let Some(reducers) = begin.reducers.get(usize::from(shard)) else { return };
        for (replica, peer) in &self.group.members {
            if !reducers.contains(replica) {
                let (round, part, manifest) = (begin.round, Part::Result, blob.manifest().clone());
                out.send(*peer, Message::Sync(Say::Offer { round, shard, part, manifest }));
            }
        }
    }

    /// Fetches the contributions to the shards that fall to this replica, and reduces those that are complete.
    fn reduce(&mut self, now: Time, begin: &Begin, out: &mut Outbox) {
        for (shard, reducers) in (0_u16..).zip(&begin.reducers) {
            let Some(exchange) = &self.exchange else { return };
            if !reducers.contains(&self.me) || exchange.reductions.contains_key(&shard) {
                continue;
            }
            let mut contributions = Vec::new();
            for (replica, weight) in &begin.contributors {
                let Some(exchange) = &self.exchange else { return };
                let own = exchange.shards[usize::from(shard)].clone();
                if *replica == self.me {
                    contributions.push(Contribution {
                        from: self.me,
                        weight: *weight,
                        bytes: own.bytes().clone(),
                    });
                    continue;
                }
                let Some(manifest) = exchange.offer(Part::Contribution, shard, *replica) else { continue };
                if manifest.bytes != own.manifest().bytes {
                    let (got, want) = (manifest.bytes, own.manifest().bytes);
                    let reason = format!("contribution to shard {shard} has {got} bytes, expected {want}");
                    self.flaw(*replica, reason, out);
                    continue;
                }
                if let Some(blob) = self.need(now, manifest.clone(), &[*replica], Part::Contribution, out) {
                    let bytes = blob.bytes().clone();
                    contributions.push(Contribution { from: *replica, weight: *weight, bytes });
                }
            }
            if contributions.len() == begin.contributors.len() {
                let Some(exchange) = &mut self.exchange else { return };
                exchange.reductions.insert(shard, Reduction::Asked);
                let (round, shares) = (begin.round, begin.shares.clone());
                out.push(Action::Sync(SyncTask::Reduce { round, shares, shard, contributions }));
            }
        }
    }

    /// Fetches the reduced shards, and stages the weights when all are here.
    fn stage(&mut self, now: Time, begin: &Begin, out: &mut Outbox) {
        let mut results = Vec::new();
        for (shard, reducers) in (0_u16..).zip(&begin.reducers) {
            let Some(exchange) = &self.exchange else { return };
            if reducers.contains(&self.me) {
                let Some(Reduction::Done(id)) = exchange.reductions.get(&shard) else { continue };
                results.extend(exchange.held.get(id).map(|(_, blob)| blob.bytes().clone()));
                continue;
            }
            let Some((manifest, holders)) = exchange.agreed_result(shard, reducers) else { continue };
            let own = exchange.shards[usize::from(shard)].manifest().bytes;
            if manifest.bytes > result_bytes_max(own, begin.contributors.len()) {
                let reason = format!("result of shard {shard} has {} bytes", manifest.bytes);
                self.flaw(holders[0], reason, out);
                continue;
            }
            if let Some(blob) = self.need(now, manifest, &holders, Part::Result, out) {
                results.push(blob.bytes().clone());
            }
        }
        let Some(exchange) = &mut self.exchange else { return };
        if results.len() == begin.reducers.len() && exchange.staging == Staging::Not {
            exchange.staging = Staging::Asked;
            let (round, shares) = (begin.round, begin.shares.clone());
            let counted = counted(begin, self.me);
            out.push(Action::Sync(SyncTask::Stage { round, shares, results, counted }));
        }
    }

    /// Gives a blob if it is here; else sees that it comes.
    fn need(
        &mut self,
        now: Time,
        manifest: Manifest,
        holders: &[ReplicaId],
        part: Part,
        out: &mut Outbox,
    ) -> Option<Blob> {
        let sources = self.peers(holders);
        let exchange = self.exchange.as_mut()?;
        let id = manifest.id();
        if let Some((_, blob)) = exchange.held.get(&id) {
            return Some(blob.clone());
        }
        exchange.fetch(now, id, manifest, part, &sources);
        exchange.shelve_if_whole(now, id, &self.group);
        ask(exchange, now, id, self.chunks.wait(), out);
        exchange.held.get(&id).map(|(_, blob)| blob.clone())
    }

    fn chunk_taken(&mut self, now: Time, id: Digest, out: &mut Outbox) {
        let Some(exchange) = &mut self.exchange else { return };
        exchange.stirred(now, &self.answers);
        exchange.shelve_if_whole(now, id, &self.group);
        if exchange.held.contains_key(&id) {
            self.progress(now, out);
        } else {
            ask(exchange, now, id, self.chunks.wait(), out);
        }
    }

    fn flaw(&mut self, contributor: ReplicaId, reason: String, out: &mut Outbox) {
        let reason = bounded(&reason);
        let Some(exchange) = &mut self.exchange else { return };
        let Some(round) = exchange.round() else { return };
        if exchange.flaws.insert(contributor, reason.clone()).is_none() {
            out.record(Event::Flawed { outer: round.outer, replica: contributor, reason: reason.clone() });
            self.tell(Say::Flaw { round, contributor, reason }, out);
        }
    }

    fn vote(&self, out: &mut Outbox) {
        let Some(exchange) = &self.exchange else { return };
        if let (Some(round), Staging::Done(digest)) = (exchange.round(), exchange.staging) {
            let rates = exchange.rates.iter().map(|(replica, rate)| (*replica, *rate)).collect();
            self.tell(Say::Vote { round, digest, rates }, out);
        }
    }

    /// Says all that others must know, and sets when it is said again.
    fn say_again(&mut self, now: Time, out: &mut Outbox) {
        let Some(exchange) = &mut self.exchange else { return };
        exchange.quiet_until(now, &self.answers);
        let (outer, step, heard) = (exchange.outer, exchange.step, exchange.heard);
        let Some(begin) = exchange.begin.clone() else {
            return self.tell(Say::Reached { outer, step, heard }, out);
        };
        let reduced: Vec<(u16, Digest)> =
            exchange.reductions.iter().filter_map(|(shard, state)| Some((*shard, state.id()?))).collect();
        let (contributed, flaws) = (exchange.contributed, exchange.flaws.clone());
        let round = begin.round;
        // A coordinator that started again has not heard of us at all.
        self.tell(Say::Reached { outer, step, heard }, out);
        for (contributor, reason) in flaws {
            self.tell(Say::Flaw { round, contributor, reason }, out);
        }
        if contributed {
            self.offer_contributions(&begin, out);
        }
        for (shard, blob) in reduced {
            self.tell(Say::Claim { round, shard, blob }, out);
            self.offer_result(shard, out);
        }
        self.vote(out);
    }

    fn tell(&self, say: Say, out: &mut Outbox) {
        out.send(self.coordinator, Message::Sync(say));
    }

    fn peers(&self, replicas: &[ReplicaId]) -> Vec<PeerId> {
        let others = replicas.iter().filter(|replica| **replica != self.me);
        others.filter_map(|replica| self.group.members.get(replica).copied()).collect()
    }
}

/// Asks for more of a blob that is on its way.
fn ask(exchange: &mut Exchange, now: Time, id: Digest, retry: Span, out: &mut Outbox) {
    let Some(fetch) = exchange.fetches.get_mut(&id) else { return };
    for (source, chunks) in fetch.wants(now, retry) {
        out.send(source, Message::Sync(Say::Want { blob: id, chunks }));
    }
}

/// Bounds the memory that a reducer can make us take: no codec's result is longer than all contributions together, or than
/// four times one (8-bit contributions, 16-bit results), and a little for its head.
fn result_bytes_max(contribution: u64, contributors: usize) -> u64 {
    contribution.saturating_mul(contributors.max(4) as u64).saturating_add(4096)
}
