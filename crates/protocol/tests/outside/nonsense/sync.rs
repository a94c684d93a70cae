//! Strategies for the outer step: what its messages may say, in every variant, and how a run may describe it.
//!
//! Blobs are mostly those that the swarm's own replicas make, so that what is said of them can be true.

use crate::nonsense::numbers::{attempt, digest, float, outer, replica, step};
use crate::swarm::{REPLICAS_MAX, STAGES, contribution};
use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::OnceLock;
use trestle_protocol::ids::{Digest, OuterStep, ReplicaId};
use trestle_protocol::message::Refusal;
use trestle_protocol::spec::sync::{OuterRule, SyncCodec, SyncSpec};
use trestle_protocol::sync::blob::{Blob, CHUNK_BYTES_MAX, CHUNKS_MAX, Manifest};
use trestle_protocol::sync::say::{Begin, Part, Round, Say};

/// The variants of `Say`, of which [`say`] draws each.
pub(crate) const SAYS: usize = 13;

/// Numbers the variants, so that a new one is drawn as well.
pub(crate) fn place_of(say: &Say) -> usize {
    match say {
        Say::Reached { .. } => 0,
        Say::Begin(_) => 1,
        Say::Offer { .. } => 2,
        Say::Want { .. } => 3,
        Say::Chunk { .. } => 4,
        Say::Claim { .. } => 5,
        Say::Flaw { .. } => 6,
        Say::Vote { .. } => 7,
        Say::Commit { .. } => 8,
        Say::Restore { .. } => 9,
        Say::Probe { .. } => 10,
        Say::Alive { .. } => 11,
        Say::Excluded { .. } => SAYS - 1,
    }
}

/// Anything that can be said of an outer step.
pub(crate) fn say() -> BoxedStrategy<Say> {
    prop_oneof![of_replicas(), of_transfers(), of_coordinators()].boxed()
}

/// What a replica tells the coordinator.
fn of_replicas() -> BoxedStrategy<Say> {
    prop_oneof![
        (outer(), step(), attempt()).prop_map(|(outer, step, heard)| Say::Reached { outer, step, heard }),
        (round(), shard(), blob_id()).prop_map(|(round, shard, blob)| Say::Claim { round, shard, blob }),
        (round(), replica(), ".{0,300}").prop_map(|(round, contributor, reason)| Say::Flaw {
            round,
            contributor,
            reason
        }),
        (round(), digest(), vec((replica(), any::<u64>()), 0..6))
            .prop_map(|(round, digest, rates)| Say::Vote { round, digest, rates }),
        outer().prop_map(|outer| Say::Alive { outer }),
    ]
    .boxed()
}

/// What a replica says to another.
fn of_transfers() -> BoxedStrategy<Say> {
    let part = prop::sample::select(vec![Part::Contribution, Part::Result]);
    let true_chunk = prop::sample::select(blobs()).prop_map(|blob| Say::Chunk {
        blob: blob.id(),
        chunk: 0,
        payload: blob.bytes().clone(),
    });
    let any_chunk = any_chunk().prop_map(|(blob, chunk, payload)| Say::Chunk { blob, chunk, payload });
    prop_oneof![
        2 => (round(), shard(), part, manifest())
            .prop_map(|(round, shard, part, manifest)| Say::Offer { round, shard, part, manifest }),
        1 => (blob_id(), chunks()).prop_map(|(blob, chunks)| Say::Want { blob, chunks }),
        1 => true_chunk,
        1 => any_chunk,
    ]
    .boxed()
}

fn chunk() -> BoxedStrategy<u32> {
    prop_oneof![4 => Just(0), 1 => any::<u32>(), 1 => Just(u32::MAX)].boxed()
}

pub(crate) fn chunks() -> BoxedStrategy<Vec<u32>> {
    prop_oneof![8 => vec(chunk(), 0..20), 1 => vec(chunk(), 500..1000)].boxed()
}

pub(crate) fn any_chunk() -> BoxedStrategy<(Digest, u32, Bytes)> {
    (blob_id(), chunk(), vec(any::<u8>(), 0..64).prop_map(Bytes::from)).boxed()
}

/// What a coordinator says.
fn of_coordinators() -> BoxedStrategy<Say> {
    prop_oneof![
        3 => prop_oneof![fit_begin(), any_begin()].prop_map(Say::Begin),
        1 => (outer(), step(), any::<u64>(), digest())
            .prop_map(|(outer, step, tokens, digest)| Say::Commit { outer, step, tokens, digest }),
        1 => outer().prop_map(|outer| Say::Restore { outer }),
        1 => outer().prop_map(|outer| Say::Probe { outer }),
        1 => outer().prop_map(|outer| Say::Excluded { outer }),
    ]
    .boxed()
}

/// A round that fits as many replicas.
fn fit_begin() -> BoxedStrategy<Begin> {
    (round(), 1..=REPLICAS_MAX, vec(1..9_u64, 1..=usize::from(REPLICAS_MAX)), any::<u32>())
        .prop_map(|(round, replicas, weights, cut)| {
            let first = cut % 65_536;
            let shares = match replicas {
                1 => vec![65_536],
                2 => vec![first, 65_536 - first],
                _ => vec![first / 2, first - first / 2, 65_536 - first],
            };
            let reducers =
                (0..replicas).map(|owner| vec![ReplicaId(owner), ReplicaId((owner + 1) % replicas)]);
            let contributors = (0..replicas).map(ReplicaId).zip(weights).collect();
            Begin { round, contributors, shares, reducers: reducers.collect() }
        })
        .boxed()
}

/// A round whose shares add up or not, and which names anyone.
fn any_begin() -> BoxedStrategy<Begin> {
    let shares = prop_oneof![
        Just(vec![]),
        Just(vec![65_536]),
        Just(vec![32_768, 32_768]),
        Just(vec![65_536, 0]),
        Just(vec![65_535, 0]),
        Just(vec![u32::MAX, 65_537]),
        Just(vec![u32::MAX; 3]),
        vec(any::<u32>(), 0..5),
    ];
    let weight = prop_oneof![6 => 0..9_u64, 1 => Just(u64::MAX)];
    let reducers = vec(vec(replica(), 0..4), 0..5);
    (round(), vec((replica(), weight), 0..5), shares, reducers)
        .prop_map(|(round, contributors, shares, reducers)| Begin { round, contributors, shares, reducers })
        .boxed()
}

fn round() -> BoxedStrategy<Round> {
    (outer(), attempt()).prop_map(|(outer, attempt)| Round { outer, attempt }).boxed()
}

fn shard() -> BoxedStrategy<u16> {
    prop_oneof![8 => 0..4_u16, 1 => any::<u16>(), 1 => Just(u16::MAX)].boxed()
}

/// The name of a blob that a replica holds at some time, or any other.
pub(crate) fn blob_id() -> BoxedStrategy<Digest> {
    let held = prop::sample::select(blobs()).prop_map(|blob| blob.id());
    prop_oneof![3 => held, 1 => digest()].boxed()
}

/// A manifest of a blob that exists, of one as long that does not, and of any length with any number of chunks.
pub(crate) fn manifest() -> BoxedStrategy<Manifest> {
    let held = prop::sample::select(blobs()).prop_map(|blob| blob.manifest().clone());
    let as_long = digest().prop_map(|chunk| Manifest { bytes: 32, chunks: vec![chunk] });
    let largest = CHUNKS_MAX * CHUNK_BYTES_MAX;
    let bytes = prop_oneof![
        Just(0),
        0..5_000_u64,
        any::<u64>(),
        prop::sample::select(vec![u64::MAX, largest, largest + 1, 1 << 32]),
    ];
    let chunks = prop_oneof![Just(0_usize), Just(1), 0..5_usize, Just(CHUNKS_MAX as usize)];
    let any_length = (bytes, digest(), chunks)
        .prop_map(|(bytes, chunk, count)| Manifest { bytes, chunks: vec![chunk; count] });
    prop_oneof![2 => held, 2 => as_long, 1 => any_length].boxed()
}

/// What the swarm's replicas contribute to their first outer steps.
fn blobs() -> Vec<Blob> {
    static BLOBS: OnceLock<Vec<Blob>> = OnceLock::new();
    let all = || {
        let replicas = 1..=usize::from(STAGES * REPLICAS_MAX);
        let steps = replicas.flat_map(|index| (0..3).map(move |outer| (index, OuterStep(outer))));
        steps.flat_map(|(index, outer)| (0..3).map(move |shard| contribution(index, outer, shard))).collect()
    };
    BLOBS.get_or_init(all).clone()
}

/// A refusal of something that was said of an outer step.
pub(crate) fn refusal() -> BoxedStrategy<Refusal> {
    prop_oneof![
        (outer(), step()).prop_map(|(outer, step)| Refusal::NotAtBorder { outer, step }),
        (outer(), outer()).prop_map(|(got, open)| Refusal::OuterAhead { got, open }),
        outer().prop_map(|outer| Refusal::BeginUnfit { outer }),
        (shard(), any::<u64>()).prop_map(|(shard, bytes)| Refusal::OfferUnfit { shard, bytes }),
        blob_id().prop_map(|blob| Refusal::NotHeld { blob }),
        (blob_id(), any::<u32>()).prop_map(|(blob, chunk)| Refusal::ChunkFalse { blob, chunk }),
    ]
    .boxed()
}

/// Any way to agree, with rates that may be no numbers.
pub(crate) fn sync_spec() -> BoxedStrategy<SyncSpec> {
    let rules = prop::sample::select(vec![OuterRule::Mean, OuterRule::Nesterov, OuterRule::Plain]);
    let codecs =
        prop::sample::select(vec![SyncCodec::F32, SyncCodec::Bf16, SyncCodec::Int8, SyncCodec::SparseLoCo]);
    (any::<[u32; 3]>(), rules, [float(), float(), float()], codecs)
        .prop_map(|([inner_steps, delay, momentum_ramp], rule, rates, codec)| {
            let [learning_rate, momentum, error_decay] = rates;
            SyncSpec { inner_steps, delay, rule, learning_rate, momentum, momentum_ramp, codec, error_decay }
        })
        .boxed()
}
