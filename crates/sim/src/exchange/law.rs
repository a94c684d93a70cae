//! The laws of an outer step: what must hold after every decision, whatever goes wrong.
//!
//! Owns the checks, and a reference that does the arithmetic of each commit again. Knows nothing of time, links or the order
//! in which things happen.

use crate::exchange::replica::{Before, Replica};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use trestle_model::outer::Outer;
use trestle_protocol::ids::{Digest, OuterStep, ReplicaId};
use trestle_protocol::sync::arbiter::Committed;
use trestle_protocol::sync::say::Begin;

/// How far numbers may drift apart over a few commits, where a codec's own error is a hundred times as large.
const DRIFT: f64 = 2e-6;

/// A law that was broken, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// What a replica has learnt, sent, and forgotten on purpose, since the start.
#[derive(Clone, Debug, Default)]
struct Sums {
    learnt: Vec<f64>,
    sent: Vec<f64>,
    forgotten: Vec<f64>,
}

/// The laws, and what was seen so far.
pub struct Law {
    /// Does each commit again; `None` where a single reducer may lie, which nobody can see.
    reference: Option<Outer>,
    decay: f64,
    begun: BTreeMap<OuterStep, Begin>,
    encoded: BTreeMap<(OuterStep, ReplicaId, Vec<u32>), Vec<Bytes>>,
    durable: BTreeMap<OuterStep, (Committed, Begin)>,
    restored: BTreeMap<OuterStep, BTreeSet<ReplicaId>>,
    committed: BTreeMap<OuterStep, BTreeSet<ReplicaId>>,
    sums: BTreeMap<ReplicaId, Sums>,
}

impl Law {
    /// Starts with the state that all replicas start with.
    pub fn new(reference: Option<Outer>, decay: f64) -> Self {
        Self {
            reference,
            decay,
            begun: BTreeMap::new(),
            encoded: BTreeMap::new(),
            durable: BTreeMap::new(),
            restored: BTreeMap::new(),
            committed: BTreeMap::new(),
            sums: BTreeMap::new(),
        }
    }

    /// Notes a round that the coordinator opens.
    pub fn begins(&mut self, begin: &Begin) {
        self.begun.insert(begin.round.outer, begin.clone());
    }

    /// Notes what a replica encoded.
    pub fn encodes(&mut self, outer: OuterStep, replica: ReplicaId, shares: Vec<u32>, shards: Vec<Bytes>) {
        self.encoded.insert((outer, replica, shares), shards);
    }

    /// Judges a commit that became durable: it is the only one of its outer step, no replica has restored that step, and
    /// its weights are those that the reference computes.
    ///
    /// # Errors
    /// Says what is not so.
    pub fn becomes_durable(&mut self, committed: &Committed) -> Result<(), Violation> {
        let outer = committed.outer;
        let begin =
            self.begun.get(&outer).cloned().ok_or_else(|| broken(outer, "was committed and never begun"))?;
        if let Some(replica) = self.restored.get(&outer).and_then(|restored| restored.first()) {
            return Err(broken(outer, &format!("is committed, and replica {replica} restored it")));
        }
        if self.durable.insert(outer, (committed.clone(), begin.clone())).is_some() {
            return Err(broken(outer, "is committed a second time"));
        }
        let Some(digest) = self.expected(outer, &begin)? else { return Ok(()) };
        if committed.digests.iter().any(|(_, found)| *found != digest) {
            return Err(broken(outer, "was committed with other weights than its contributions give"));
        }
        Ok(())
    }

    fn expected(&mut self, outer: OuterStep, begin: &Begin) -> Result<Option<Digest>, Violation> {
        let Some(reference) = &mut self.reference else { return Ok(None) };
        let mut results = Vec::new();
        for shard in 0..begin.shares.len() {
            let mut parts: Vec<(u64, &[u8])> = Vec::new();
            for (replica, weight) in &begin.contributors {
                let encoded = self.encoded.get(&(outer, *replica, begin.shares.clone()));
                let bytes = encoded.and_then(|shards| shards.get(shard));
                let bytes = bytes
                    .ok_or_else(|| broken(outer, &format!("counts replica {replica}, which gave nothing")))?;
                parts.push((*weight, bytes));
            }
            let reduced = reference.reduce(&begin.shares, shard, &parts);
            results.push(reduced.map_err(|error| broken(outer, &error.to_string()))?);
        }
        let results: Vec<&[u8]> = results.iter().map(Vec::as_slice).collect();
        reference.begin(outer.0, reference.anchor().to_vec());
        let digest =
            reference.stage(&begin.shares, &results).map_err(|error| broken(outer, &error.to_string()))?;
        reference.commit().map_err(|error| broken(outer, &error.to_string()))?;
        reference.adopt(None);
        Ok(Some(Digest(digest)))
    }

    /// Judges a replica that has committed: to the durable weights, and with nothing lost of what it did not send.
    ///
    /// # Errors
    /// Says what is not so.
    pub fn commits(&mut self, outer: OuterStep, replica: &Replica) -> Result<(), Violation> {
        let id = replica.id;
        self.committed.entry(outer).or_default().insert(id);
        let Some((committed, begin)) = self.durable.get(&outer) else {
            return Err(broken(outer, &format!("was committed by replica {id} before it was durable")));
        };
        let weights = Digest(replica.outer.digests().weights);
        if committed.digests.iter().any(|(_, digest)| *digest != weights) {
            return Err(broken(outer, &format!("left replica {id} with weights of its own")));
        }
        let before =
            replica.before.as_ref().ok_or_else(|| broken(outer, "was committed without a snapshot"))?;
        let counted = begin.contributors.iter().any(|(contributor, _)| *contributor == id);
        let decoded = match (counted, &replica.encoded) {
            (true, Some((shares, shards))) => decode(&replica.outer, shares, shards, outer)?,
            (true, None) => {
                return Err(broken(outer, &format!("counts replica {id}, which encoded nothing")));
            }
            (false, _) => vec![0.0; before.anchor.len()],
        };
        let sums = self.sums.entry(id).or_default();
        sums.add(before, &decoded, self.decay);
        match sums.owed_wrongly(replica.outer.owed()) {
            None => Ok(()),
            Some((at, want, owes)) => {
                let words = format!("left replica {id} owing {owes} at element {at}, expected {want}");
                Err(broken(outer, &words))
            }
        }
    }

    /// Judges a replica that has restored: nobody commits that outer step, and its state is as before.
    ///
    /// # Errors
    /// Says what is not so.
    pub fn restores(&mut self, outer: OuterStep, replica: &Replica) -> Result<(), Violation> {
        let id = replica.id;
        if self.durable.contains_key(&outer) {
            return Err(broken(outer, &format!("is committed, and replica {id} restored it")));
        }
        self.restored.entry(outer).or_default().insert(id);
        match &replica.before {
            Some(before) if before.digests == replica.outer.digests() => Ok(()),
            Some(_) | None => Err(broken(outer, &format!("was restored, and replica {id} is not as before"))),
        }
    }

    /// Judges the end: all who are there have decided every outer step alike, and hold the same state.
    ///
    /// # Errors
    /// Says what is not so.
    pub fn ends(&self, steps: u64, survivors: &[&Replica]) -> Result<(), Violation> {
        for outer in (0..steps).map(OuterStep) {
            let durable = self.durable.contains_key(&outer);
            let decided = if durable { self.committed.get(&outer) } else { self.restored.get(&outer) };
            for replica in survivors {
                if !decided.is_some_and(|decided| decided.contains(&replica.id)) {
                    let words = if durable { "committed" } else { "restored" };
                    return Err(broken(outer, &format!("is not {words} by replica {}", replica.id)));
                }
            }
        }
        let mut states = survivors.iter().map(|replica| {
            let digests = replica.outer.digests();
            (digests.weights, digests.momentum, replica.outer.committed())
        });
        let first = states.next();
        if states.any(|state| Some(state) != first) {
            return Err(broken(OuterStep(steps), "is reached by replicas whose weights or momentum differ"));
        }
        Ok(())
    }

    /// Returns who contributed to each outer step that was committed, with their weights.
    pub fn contributors(&self) -> BTreeMap<OuterStep, Vec<(ReplicaId, u64)>> {
        self.durable.iter().map(|(outer, (_, begin))| (*outer, begin.contributors.clone())).collect()
    }
}

impl Sums {
    fn add(&mut self, before: &Before, decoded: &[f32], decay: f64) {
        for sum in [&mut self.learnt, &mut self.sent, &mut self.forgotten] {
            sum.resize(before.anchor.len(), 0.0);
        }
        for (at, (anchor, snapshot)) in before.anchor.iter().zip(&before.snapshot).enumerate() {
            self.learnt[at] += f64::from(*anchor) - f64::from(*snapshot);
            self.sent[at] += f64::from(decoded[at]);
            self.forgotten[at] += (1.0 - decay) * f64::from(before.owed.get(at).copied().unwrap_or(0.0));
        }
    }

    /// Finds where what is owed is not what was learnt and neither sent nor forgotten.
    fn owed_wrongly(&self, owed: &[f32]) -> Option<(usize, f64, f64)> {
        let owes = |at: usize| f64::from(owed.get(at).copied().unwrap_or(0.0));
        let want = |at: usize| self.learnt[at] - self.sent[at] - self.forgotten[at];
        (0..self.learnt.len())
            .map(|at| (at, want(at), owes(at)))
            .find(|(_, want, owes)| (want - owes).abs() > DRIFT)
    }
}

/// Reads back what a replica sent.
fn decode(outer: &Outer, shares: &[u32], shards: &[Bytes], step: OuterStep) -> Result<Vec<f32>, Violation> {
    let refuse = |words: String| broken(step, &words);
    let ranges = outer.layout().shards(shares).map_err(|error| refuse(error.to_string()))?;
    let mut decoded = vec![0.0; outer.layout().elements()];
    for (range, bytes) in ranges.into_iter().zip(shards) {
        let shard = outer.layout().shard(range.clone());
        let into = &mut decoded[range];
        outer
            .config()
            .codec
            .codec()
            .decode(&shard, bytes, into)
            .map_err(|error| refuse(error.to_string()))?;
    }
    Ok(decoded)
}

fn broken(outer: OuterStep, words: &str) -> Violation {
    Violation(format!("outer step {} {words}", outer.0))
}
