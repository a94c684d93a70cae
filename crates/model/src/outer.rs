//! Owns the outer step of one stage's replica as a transaction: what it contributes, what reducers make of contributions,
//! and when the state that all replicas of the stage share may change. It may not know libtorch's tensors, peers, or who
//! reduces which shard.
//!
//! The replicas of a stage hold the same committed weights, the *anchor*. Each trains for some inner steps and then
//! contributes how far it moved, `D = anchor - weights`. Nothing of the committed state changes before [`Outer::commit`]:
//! anchor, momentum, error feedback and the ramp's position move together or not at all, and [`Outer::restore`] leaves them
//! as they were, to the bit.
//!
//! # Memory
//!
//! In multiples of the stage's f32 bytes. At rest: the anchor (1), the momentum under [`Rule::Nesterov`] (1), the error
//! feedback of a codec that loses something (1). During a transaction, beside that: the snapshot (1), needed until
//! [`Outer::adopt`], and the results as they came (f32 1, bf16 and int8 0.5, SparseLoCo 0.007 a contributor): the next
//! anchor is computed twice rather than kept. A commit encodes a contribution again rather than keep it, and for that moment
//! holds one shard of it (bf16 0.5, int8 0.25 of the shard); only SparseLoCo's, at 0.007, is kept. Bytes handed to the caller
//! are the caller's.

pub mod codec;
pub(crate) mod config;
pub(crate) mod error;
pub(crate) mod handover;
pub(crate) mod layout;
pub(crate) mod rule;
pub(crate) mod state;
pub(crate) mod storage;

use std::ops::Range;

use crate::outer::config::Sent;
use crate::outer::state::{Fate, State, digest};

pub use crate::outer::codec::CodecError;
pub use crate::outer::config::{CodecKind, Exchanged, OuterConfig};
pub use crate::outer::error::{OuterError, ReduceError};
pub use crate::outer::layout::{
    CHUNK, Form, Layout, Piece, SHARES_SUM, Shard, SharesError, UNIT_ELEMENTS_MAX,
};
pub use crate::outer::rule::{Ramp, Rule};

/// BLAKE3 digests of the committed state, each over the little-endian f32 bytes in unit order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Of the anchor.
    pub weights: [u8; 32],
    /// Of the momentum; of nothing for rules without one.
    pub momentum: [u8; 32],
    /// Of the error feedback; of nothing where none is owed.
    pub owed: [u8; 32],
}

/// The outer step of one replica.
#[derive(Debug)]
pub struct Outer {
    state: State,
    transaction: Option<Transaction>,
    /// What [`Outer::adopt`] needs of the latest commit: the snapshot, or the mean gradient.
    adoptable: Option<Vec<f32>>,
    bytes_max: usize,
}

/// An outer step between its snapshot and its commit.
#[derive(Debug)]
struct Transaction {
    outer: u64,
    /// The replica's weights or gradient, in unit order.
    snapshot: Vec<f32>,
    contribution: Option<Contribution>,
    staged: Option<Staged>,
}

/// What was encoded.
#[derive(Debug)]
struct Contribution {
    shards: Vec<Range<usize>>,
    /// The bytes of each shard, where they are kept.
    sent: Option<Vec<Vec<u8>>>,
    /// Shards whose reduction left this replica out.
    left_out: Vec<usize>,
}

/// Results that were checked, one a shard.
#[derive(Debug)]
struct Staged {
    shards: Vec<Range<usize>>,
    results: Vec<Vec<u8>>,
}

impl Outer {
    /// Begins with committed weights in unit order, no momentum and nothing owed.
    ///
    /// For [`Exchanged::Gradients`] there is no anchor, and the weights are not kept.
    ///
    /// # Errors
    /// Settings that do not fit together.
    ///
    /// # Panics
    /// If the weights of [`Exchanged::Weights`] are not as many as the layout's elements.
    pub fn new(config: OuterConfig, layout: Layout, weights: Vec<f32>) -> Result<Outer, OuterError> {
        config.validate()?;
        let state = State::new(config, layout, weights);
        let bytes_max = state.bytes();
        Ok(Outer { state, transaction: None, adoptable: None, bytes_max })
    }

    /// Takes a snapshot, in unit order, of the replica's weights (or mean gradient) for outer step `outer`. It replaces that
    /// of an earlier step which was neither committed nor restored.
    ///
    /// # Panics
    /// If there are not as many values as the layout has elements.
    pub fn begin(&mut self, outer: u64, values: Vec<f32>) {
        assert_eq!(values.len(), self.layout().elements(), "the snapshot fits the layout");
        self.adoptable = None;
        self.transaction = Some(Transaction { outer, snapshot: values, contribution: None, staged: None });
        self.weigh(0);
    }

    /// Returns this replica's contribution, one entry a shard: the codec's bytes for `D + decay * owed`.
    ///
    /// The same until commit or restore, for the same shares. With other shares, as after the loss of a reducer, it takes
    /// the place of what was encoded before: the error feedback of the commit follows the latest.
    ///
    /// # Errors
    /// No snapshot, shares that do not sum up, or numbers that may not travel, because training diverged.
    pub fn encode(&mut self, shares: &[u32]) -> Result<Vec<Vec<u8>>, OuterError> {
        let shards = self.layout().shards(shares)?;
        let Some(transaction) = &mut self.transaction else { return Err(self.not_begun()) };
        let outer = transaction.outer;
        let encode = |(shard, range)| {
            let refuse = |reason| OuterError::Contribution { outer, shard, reason };
            self.state.encode(&transaction.snapshot, range).map_err(refuse)
        };
        let bytes = shards.iter().enumerate().map(encode).collect::<Result<Vec<_>, _>>()?;
        let sent = match self.state.config.codec.sent() {
            Sent::Kept => Some(bytes.clone()),
            Sent::Again => None,
        };
        transaction.contribution = Some(Contribution { shards, sent, left_out: Vec::new() });
        self.weigh(bytes.iter().map(Vec::len).sum());
        Ok(bytes)
    }

    /// Records that the reduction of a shard left this replica out: all it had to contribute there stays owed, and goes out
    /// with the next outer step. Without a contribution this is so of all shards.
    pub fn leave_out(&mut self, shard: usize) {
        let contribution =
            self.transaction.as_mut().and_then(|transaction| transaction.contribution.as_mut());
        if let Some(contribution) = contribution {
            contribution.left_out.push(shard);
        }
    }

    /// Reduces contributions `(weight, bytes)` to one shard, in the order given, to the bytes that all replicas stage:
    /// `sum(w x) / sum(w)`, accumulated in f32. Callers give the order of the replicas' ids.
    ///
    /// f32 returns as f32, bf16 and int8 as bf16. SparseLoCo's contributions return side by side, checked, because their
    /// mean is sparse no more.
    ///
    /// # Errors
    /// The first contribution that is malformed and why; no contribution with any weight; no such shard.
    pub fn reduce(
        &self,
        shares: &[u32],
        shard: usize,
        parts: &[(u64, &[u8])],
    ) -> Result<Vec<u8>, ReduceError> {
        let shards = self.layout().shards(shares)?;
        let range = shards.get(shard).ok_or(ReduceError::Shard { shard, shards: shards.len() })?;
        let sum = parts.iter().try_fold(0u64, |sum, (weight, _)| sum.checked_add(*weight));
        if sum.is_none_or(|sum| sum == 0) {
            let weights = parts.iter().map(|(weight, _)| *weight).collect();
            return Err(ReduceError::Weights { shard, parts: parts.len(), weights });
        }
        let reduced = self.state.codec().reduce(&self.layout().shard(range.clone()), parts);
        reduced.map_err(|(part, reason)| ReduceError::Part { shard, part, reason })
    }

    /// Checks the results of all shards and computes the next anchor without taking it over. Returns the BLAKE3 digest of
    /// its little-endian f32 bytes (or of the mean gradient's): what the replicas vote on.
    ///
    /// Repeating it is harmless; other results take the place of those staged before.
    ///
    /// # Errors
    /// The shard whose result is malformed and why; no snapshot; shares that do not sum up. Nothing is staged then.
    pub fn stage(&mut self, shares: &[u32], results: &[&[u8]]) -> Result<[u8; 32], OuterError> {
        let Some(transaction) = &mut self.transaction else { return Err(self.not_begun()) };
        transaction.staged = None;
        let outer = transaction.outer;
        let shards = self.state.layout.shards(shares)?;
        if results.len() != shards.len() {
            return Err(OuterError::ResultCount { outer, got: results.len(), expected: shards.len() });
        }
        let mut hasher = blake3::Hasher::new();
        for (shard, (range, result)) in shards.iter().zip(results).enumerate() {
            let refuse = |reason| OuterError::Result { outer, shard, reason };
            self.state.preview(range, result, &mut hasher).map_err(refuse)?;
        }
        let results = results.iter().map(|result| result.to_vec()).collect();
        transaction.staged = Some(Staged { shards, results });
        self.weigh(0);
        Ok(*hasher.finalize().as_bytes())
    }

    /// Makes what is staged the committed state: anchor, momentum, error feedback and the ramp's position.
    ///
    /// # Errors
    /// Nothing is staged; nothing changes then.
    pub fn commit(&mut self) -> Result<(), OuterError> {
        let Some(transaction) = &mut self.transaction else { return Err(self.not_begun()) };
        let Some(staged) = transaction.staged.take() else {
            return Err(OuterError::NotStaged { outer: transaction.outer });
        };
        let again = match &transaction.contribution {
            Some(contribution) => self.state.settle(&transaction.snapshot, contribution.fates()),
            None => {
                let whole = 0..self.state.layout.elements();
                self.state.settle(&transaction.snapshot, [(whole, Fate::LeftOut)].into_iter())
            }
        };
        for (range, result) in staged.shards.iter().zip(&staged.results) {
            self.state.apply(range, result, &mut transaction.snapshot);
        }
        self.state.committed += 1;
        let results = staged.results.iter().map(Vec::len).sum::<usize>();
        self.weigh(again + results);
        self.adoptable = self.transaction.take().map(|transaction| transaction.snapshot);
        Ok(())
    }

    /// Drops snapshot and staged state: anchor, momentum and error feedback are as before, to the bit.
    pub fn restore(&mut self) {
        self.transaction = None;
    }

    /// Returns what the replica goes on with after a commit, in unit order, and frees the snapshot.
    ///
    /// For weights: the anchor, if nothing was trained since the snapshot (`None`); else `anchor + (now - snapshot)`, so
    /// that a late cut-over keeps what was learnt meanwhile. An element that did not move is the anchor's to the bit. With
    /// no commit to adopt, `now` returns as it is. For gradients: the mean gradient of the latest commit, whatever `now` is.
    ///
    /// # Panics
    /// If `now` has another length than the anchor, or no gradient was committed since it was last asked for.
    pub fn adopt(&mut self, now: Option<Vec<f32>>) -> Vec<f32> {
        let anchor = &self.state.anchor;
        match (self.state.config.exchanged, now, self.adoptable.take()) {
            (Exchanged::Gradients, _, mean) => {
                mean.expect("a mean gradient is adopted once, after its commit")
            }
            (Exchanged::Weights, None, _) => anchor.clone(),
            (Exchanged::Weights, Some(now), None) => now,
            (Exchanged::Weights, Some(mut now), Some(snapshot)) => {
                assert_eq!(now.len(), anchor.len(), "the weights fit the layout");
                for ((now, then), anchor) in now.iter_mut().zip(&snapshot).zip(anchor) {
                    let moved = anchor + (*now - then);
                    // Not by the sum: -0 + 0 is +0.
                    *now = if now.to_bits() == then.to_bits() { *anchor } else { moved };
                }
                now
            }
        }
    }

    /// Returns what decides the outer step.
    pub fn config(&self) -> &OuterConfig {
        &self.state.config
    }

    /// Returns the unit order.
    pub fn layout(&self) -> &Layout {
        &self.state.layout
    }

    /// Returns how many outer steps were committed.
    pub fn committed(&self) -> u64 {
        self.state.committed
    }

    /// Returns the committed weights in unit order; empty for gradients.
    pub fn anchor(&self) -> &[f32] {
        &self.state.anchor
    }

    /// Returns the outer momentum in unit order; empty for rules without one.
    pub fn momentum(&self) -> &[f32] {
        &self.state.momentum
    }

    /// Returns what this replica still owes of its pseudo-gradients, in unit order; empty where that is nothing.
    pub fn owed(&self) -> &[f32] {
        &self.state.owed
    }

    /// Returns the digests of the committed state.
    pub fn digests(&self) -> Digests {
        let State { anchor, momentum, owed, .. } = &self.state;
        Digests { weights: digest(anchor), momentum: digest(momentum), owed: digest(owed) }
    }

    /// Returns the digest of the anchor alone: the one that [`Outer::stage`] returned for the latest commit, by which a
    /// newcomer knows that what it took over is what was committed. Of nothing for gradients.
    pub fn weights_digest(&self) -> [u8; 32] {
        digest(&self.state.anchor)
    }

    /// Returns the bytes held now.
    pub fn bytes(&self) -> usize {
        let adoptable = self.adoptable.as_ref().map_or(0, Vec::len);
        self.state.bytes() + 4 * adoptable + self.transaction.as_ref().map_or(0, Transaction::bytes)
    }

    /// Returns the most bytes held at any moment so far, those of a contribution in the making included.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Forgets what is owed: for a replica that begins with the committed state of another, whose debts are not its own. A
    /// transaction in flight is dropped, because its contribution was encoded with the debts.
    pub fn forget_owed(&mut self) {
        self.transaction = None;
        self.state.owed = Vec::new();
    }

    /// Takes over another committed state, and forgets all that had begun.
    fn replace(&mut self, anchor: Vec<f32>, momentum: Vec<f32>, owed: Vec<f32>, committed: u64) {
        self.transaction = None;
        self.adoptable = None;
        self.state.anchor = anchor;
        self.state.momentum = momentum;
        self.state.owed = owed;
        self.state.committed = committed;
        self.weigh(0);
    }

    fn not_begun(&self) -> OuterError {
        OuterError::NotBegun { committed: self.state.committed }
    }

    /// Notes the memory held now, and `more` for a moment.
    fn weigh(&mut self, more: usize) {
        self.bytes_max = self.bytes_max.max(self.bytes() + more);
    }
}

impl Transaction {
    fn bytes(&self) -> usize {
        let sent = self.contribution.as_ref().and_then(|contribution| contribution.sent.as_deref());
        let results = self.staged.as_ref().map(|staged| &staged.results[..]);
        let lists = [sent.unwrap_or_default(), results.unwrap_or_default()];
        4 * self.snapshot.len() + lists.iter().flat_map(|list| list.iter()).map(Vec::len).sum::<usize>()
    }
}

impl Contribution {
    /// Returns each shard, and whether its reduction took the contribution in.
    fn fates(&self) -> impl Iterator<Item = (Range<usize>, Fate<'_>)> + Clone {
        self.shards.iter().enumerate().map(|(shard, range)| {
            let sent = self.sent.as_ref().map(|sent| &sent[shard][..]);
            let reduced = !self.left_out.contains(&shard);
            (range.clone(), if reduced { Fate::Reduced(sent) } else { Fate::LeftOut })
        })
    }
}
