//! Strategies for coming and going: what is said of needs, frontiers, places and states, in every variant.

use crate::nonsense::numbers::{digest, number, outer, replica, stage, step};
use crate::nonsense::sync::{any_chunk, blob_id, chunks, manifest};
use proptest::collection::vec;
use proptest::prelude::*;
use trestle_protocol::message::{Held, Removal, Start, Wait};
use trestle_protocol::plan::Place;
use trestle_protocol::sync::state::{StatePart, StateSay};
use trestle_protocol::work::{Frontier, Needs, Trained};

/// The variants of `StateSay`, of which [`state`] draws each.
pub(crate) const STATES: usize = 6;

/// Numbers the variants, so that a new one is drawn as well.
pub(crate) fn place_of(say: &StateSay) -> usize {
    match say {
        StateSay::Ask { .. } => 0,
        StateSay::Offer { .. } => 1,
        StateSay::Want { .. } => 2,
        StateSay::Follow { .. } => 3,
        StateSay::Passed { .. } => 4,
        StateSay::Chunk { .. } => STATES - 1,
    }
}

/// Anything that can be said of a stage's state.
pub(crate) fn state() -> BoxedStrategy<StateSay> {
    let part = || {
        let of_state = prop::sample::select(vec![StatePart::Agreed, StatePart::Own]);
        prop_oneof![2 => of_state, 1 => (0_u16..3).prop_map(StatePart::Result)]
    };
    prop_oneof![
        outer().prop_map(|outer| StateSay::Ask { outer }),
        outer().prop_map(|since| StateSay::Follow { since }),
        (outer(), digest(), vec(any::<u32>(), 0..4)).prop_map(|(outer, digest, shares)| StateSay::Passed {
            outer,
            digest,
            shares
        }),
        (outer(), part(), digest(), manifest()).prop_map(|(outer, part, digest, manifest)| StateSay::Offer {
            outer,
            part,
            digest,
            manifest
        }),
        (blob_id(), chunks()).prop_map(|(blob, chunks)| StateSay::Want { blob, chunks }),
        (part(), any_chunk()).prop_map(|(part, (blob, chunk, payload))| StateSay::Chunk {
            part,
            blob,
            chunk,
            payload
        }),
    ]
    .boxed()
}

/// All stages, few, none, ones that do not exist, twice the same, or absurdly many.
pub(crate) fn needs() -> BoxedStrategy<Needs> {
    let only = prop_oneof![8 => vec(stage(), 0..4), 1 => vec(stage(), 300..400)];
    prop_oneof![2 => Just(Needs::All), 1 => only.prop_map(Needs::Only)].boxed()
}

pub(crate) fn trained() -> BoxedStrategy<Trained> {
    (number(12), step()).prop_map(|(index, step)| Trained { index, step }).boxed()
}

pub(crate) fn frontier() -> BoxedStrategy<Frontier> {
    (number(14), number(6))
        .prop_map(|(train_below, held_out_below)| Frontier { train_below, held_out_below })
        .boxed()
}

pub(crate) fn held() -> BoxedStrategy<Held> {
    (place(), step(), digest()).prop_map(|(place, step, digest)| Held { place, step, digest }).boxed()
}

fn place() -> BoxedStrategy<Place> {
    (stage(), replica()).prop_map(|(stage, replica)| Place { stage, replica }).boxed()
}

pub(crate) fn start() -> BoxedStrategy<Start> {
    let checkpoint =
        (step(), digest(), place()).prop_map(|(step, digest, of)| Start::Checkpoint { step, digest, of });
    let replicas = (outer(), digest()).prop_map(|(outer, digest)| Start::Replicas { outer, digest });
    prop_oneof![2 => Just(Start::Fresh), 1 => checkpoint, 1 => replicas].boxed()
}

pub(crate) fn wait() -> BoxedStrategy<Wait> {
    prop::sample::select(vec![
        Wait::AwaitsPeers,
        Wait::NoVacancy,
        Wait::StageTaken,
        Wait::NoShard,
        Wait::Closing,
        Wait::NotUnderWay,
        Wait::AwaitsMembers,
    ])
    .boxed()
}

pub(crate) fn removal() -> BoxedStrategy<Removal> {
    prop::sample::select(vec![
        Removal::Silent,
        Removal::Disconnected,
        Removal::Restarted,
        Removal::Left,
        Removal::Failed,
        Removal::Excluded,
        Removal::Moved,
        Removal::Unready,
        Removal::Unknown,
    ])
    .boxed()
}
