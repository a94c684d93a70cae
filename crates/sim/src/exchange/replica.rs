//! A replica of a ring: its part of the core, its state of the outer steps, and weights that move as if they were trained.
//!
//! Owns one replica's numbers, and the disguise of one that lies. Knows nothing of links, or of what goes wrong.

use crate::agreement::carry_out;
use crate::compute::Fault;
use crate::draws::Draws;
use bytes::Bytes;
use trestle_model::outer::{Digests, Outer};
use trestle_protocol::ids::{Digest, OuterStep, PeerId, ReplicaId};
use trestle_protocol::sync::blob::{Blob, Manifest};
use trestle_protocol::sync::member::Member;
use trestle_protocol::sync::say::{Part, Say};
use trestle_protocol::sync::task::{SyncDone, SyncTask};
use trestle_protocol::time::{Span, Time};

/// Whether a replica takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Up,
    /// It died.
    Dead,
    /// The others went on without it, and it knows.
    Excluded,
}

/// How a replica lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guise {
    /// Not at all.
    Honest,
    /// What it contributes is a byte short.
    ShortShards,
    /// What it contributes holds numbers that are none, places that do not exist, or both.
    RubbishShards,
    /// What it sends is not what it offered.
    FalseChunks,
    /// What it reduces is well formed and wrong.
    WrongResults,
    /// What it reduces is a byte short.
    ShortResults,
    /// What it reduces is wrong, and it claims that it were right.
    WrongResultsRightClaims,
    /// It votes for weights that nobody has.
    WrongVotes,
    /// It calls another's contribution flawed.
    Accuser,
}

/// How a replica stood before the open outer step.
#[derive(Clone, Debug)]
pub struct Before {
    /// Digests of its committed state.
    pub digests: Digests,
    /// Its committed weights.
    pub anchor: Vec<f32>,
    /// What it owed.
    pub owed: Vec<f32>,
    /// Its trained weights.
    pub snapshot: Vec<f32>,
}

/// A replica.
pub struct Replica {
    /// Which.
    pub id: ReplicaId,
    /// Its key's stand-in.
    pub peer: PeerId,
    /// Its part of the core.
    pub member: Member,
    /// Its state of the outer steps.
    pub outer: Outer,
    /// Whether it takes part.
    pub standing: Standing,
    /// The outer step at whose border it stands, or that it trains towards.
    pub next: OuterStep,
    /// When the arithmetic it was asked for is done.
    pub free: Time,
    /// How it stood before the open outer step.
    pub before: Option<Before>,
    /// What it last encoded honestly, with the cut.
    pub encoded: Option<(Vec<u32>, Vec<Bytes>)>,
    weights: Vec<f32>,
    guise: Guise,
    honest_from: OuterStep,
    /// What an honest reducer would have given, for those who claim it.
    honest: Vec<(Digest, Digest)>,
    /// What it offers in place of its shards, where it lies about them.
    false_shards: Vec<(Manifest, Blob)>,
    draws: Draws,
}

/// What a replica starts with.
pub struct ReplicaConfig {
    /// Which.
    pub id: ReplicaId,
    /// Its key's stand-in.
    pub peer: PeerId,
    /// Its part of the core.
    pub member: Member,
    /// Its state of the outer steps.
    pub outer: Outer,
    /// How it lies.
    pub guise: Guise,
    /// The outer step from which on it does not.
    pub honest_from: OuterStep,
    /// Decides how its weights move.
    pub seed: u64,
}

impl Replica {
    /// Makes a replica that holds the committed weights.
    pub fn new(config: ReplicaConfig) -> Self {
        let ReplicaConfig { id, peer, member, outer, guise, honest_from, seed } = config;
        Self {
            id,
            peer,
            member,
            standing: Standing::Up,
            next: OuterStep(0),
            free: Time(0),
            before: None,
            encoded: None,
            weights: outer.anchor().to_vec(),
            guise,
            honest_from,
            honest: Vec::new(),
            false_shards: Vec::new(),
            draws: Draws::new(seed, "training", &[u64::from(id.0)]),
            outer,
        }
    }

    /// Moves the weights a little, each in its own direction.
    pub fn train(&mut self) {
        for weight in &mut self.weights {
            *weight += (self.draws.below(2001) as f32 - 1000.0) * 1e-5;
        }
    }

    /// Draws how long training to the next border takes.
    pub fn training(&mut self) -> Span {
        self.draws.around(Span::millis(200), crate::draws::Permille(200))
    }

    /// Stands at the border of the next outer step.
    pub fn snapshot(&mut self) {
        self.before = Some(Before {
            digests: self.outer.digests(),
            anchor: self.outer.anchor().to_vec(),
            owed: self.outer.owed().to_vec(),
            snapshot: self.weights.clone(),
        });
        self.encoded = None;
        if self.next >= self.honest_from {
            self.guise = Guise::Honest;
        }
        self.outer.begin(self.next.0, self.weights.clone());
    }

    /// Goes over to the committed weights, with what was trained since the snapshot.
    pub fn adopt(&mut self) {
        let moved = self.before.as_ref().is_some_and(|before| before.snapshot != self.weights);
        self.weights = self.outer.adopt(moved.then(|| self.weights.clone()));
    }

    /// Carries out a task; a liar's answer is what the others will see of it.
    ///
    /// # Errors
    /// What no replica may get wrong.
    pub fn carry_out(&mut self, task: SyncTask) -> Result<SyncDone, Fault> {
        let task = match (self.guise, task) {
            (
                Guise::WrongResults | Guise::WrongResultsRightClaims,
                SyncTask::Reduce { round, shares, shard, contributions },
            ) => {
                let honest = SyncTask::Reduce {
                    round,
                    shares: shares.clone(),
                    shard,
                    contributions: contributions.clone(),
                };
                let honest = self.reduced(honest)?;
                let mut wrong = contributions;
                wrong.iter_mut().for_each(|part| part.weight += u64::from(part.from == self.id) * 5);
                let done = carry_out(
                    &mut self.outer,
                    SyncTask::Reduce { round, shares, shard, contributions: wrong },
                )?
                .0;
                if let (Some(honest), SyncDone::Reduced { result: Ok(blob), .. }) = (honest, &done) {
                    self.honest.push((blob.id(), honest));
                }
                return Ok(done);
            }
            (_, task) => task,
        };
        let (done, _) = carry_out(&mut self.outer, task)?;
        Ok(match done {
            SyncDone::Encoded { outer, shares, shards, took } => {
                let bytes = shards.iter().map(|blob| blob.bytes().clone()).collect();
                self.encoded = Some((shares.clone(), bytes));
                self.false_shards = shards.iter().filter_map(|blob| self.false_shard(blob)).collect();
                SyncDone::Encoded { outer, shares, shards, took }
            }
            SyncDone::Reduced { round, shard, result, took } => {
                let result = result
                    .map(|blob| if self.guise == Guise::ShortResults { shortened(&blob) } else { blob });
                SyncDone::Reduced { round, shard, result, took }
            }
            done @ (SyncDone::Snapshotted { .. }
            | SyncDone::Staged { .. }
            | SyncDone::Committed { .. }
            | SyncDone::Restored { .. }
            | SyncDone::Adopted { .. }) => done,
        })
    }

    fn reduced(&mut self, task: SyncTask) -> Result<Option<Digest>, Fault> {
        Ok(match carry_out(&mut self.outer, task)?.0 {
            SyncDone::Reduced { result: Ok(blob), .. } => Some(blob.id()),
            SyncDone::Reduced { result: Err(_), .. }
            | SyncDone::Snapshotted { .. }
            | SyncDone::Encoded { .. }
            | SyncDone::Staged { .. }
            | SyncDone::Committed { .. }
            | SyncDone::Restored { .. }
            | SyncDone::Adopted { .. } => None,
        })
    }

    /// Makes what a liar offers in place of a shard.
    fn false_shard(&self, blob: &Blob) -> Option<(Manifest, Blob)> {
        let other = match self.guise {
            Guise::ShortShards => shortened(blob),
            // All bits set are no number in any format, and the last place of a chunk over and over.
            Guise::RubbishShards => Blob::new(vec![0xff; blob.bytes().len()].into()),
            Guise::Honest
            | Guise::FalseChunks
            | Guise::WrongResults
            | Guise::ShortResults
            | Guise::WrongResultsRightClaims
            | Guise::WrongVotes
            | Guise::Accuser => return None,
        };
        Some((blob.manifest().clone(), other))
    }

    /// Answers, past its part of the core, who wants what a liar has offered.
    pub fn answer(&self, say: &Say) -> Vec<Say> {
        let Say::Want { blob, chunks } = say else { return Vec::new() };
        let Some((_, other)) = self.false_shards.iter().find(|(_, other)| other.id() == *blob) else {
            return Vec::new();
        };
        let chunk =
            |chunk: &u32| Some(Say::Chunk { blob: *blob, chunk: *chunk, payload: other.chunk(*chunk)? });
        chunks.iter().filter_map(chunk).collect()
    }

    /// Twists what a liar says.
    pub fn disguise(&self, say: Say) -> Say {
        match (self.guise, say) {
            (Guise::FalseChunks, Say::Chunk { blob, chunk, payload }) => {
                let payload = payload.iter().map(|byte| byte ^ 1).collect();
                Say::Chunk { blob, chunk, payload }
            }
            (Guise::WrongResultsRightClaims, Say::Claim { round, shard, blob }) => {
                let honest = self.honest.iter().find(|(wrong, _)| *wrong == blob);
                Say::Claim { round, shard, blob: honest.map_or(blob, |(_, honest)| *honest) }
            }
            (Guise::WrongVotes, Say::Vote { round, rates, .. }) => {
                Say::Vote { round, digest: Digest([0xbb; 32]), rates }
            }
            (
                Guise::ShortShards | Guise::RubbishShards,
                Say::Offer { round, shard, part: Part::Contribution, manifest },
            ) => {
                let other = self.false_shards.iter().find(|(honest, _)| *honest == manifest);
                let manifest = other.map_or(manifest, |(_, other)| other.manifest().clone());
                Say::Offer { round, shard, part: Part::Contribution, manifest }
            }
            (Guise::Accuser, Say::Claim { round, .. }) => {
                let contributor = ReplicaId(u16::from(self.id.0 == 0));
                Say::Flaw { round, contributor, reason: "because I say so".into() }
            }
            (_, say) => say,
        }
    }
}

fn shortened(blob: &Blob) -> Blob {
    Blob::new(blob.bytes().slice(..blob.bytes().len().saturating_sub(1)))
}
