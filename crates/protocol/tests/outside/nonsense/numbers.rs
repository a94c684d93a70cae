//! Strategies for numbers, names and bytes: near what a small run expects, and sometimes anything.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use trestle_protocol::ids::{
    Attempt, Digest, InnerStep, MicrobatchId, OuterStep, PlanNumber, ReplicaId, SeatId, Split, StageId,
};
use trestle_protocol::time::Span;

/// A number mostly below `end`, sometimes anything.
pub(crate) fn number(end: u64) -> BoxedStrategy<u64> {
    prop_oneof![8 => 0..end, 1 => any::<u64>(), 1 => (u64::MAX - 2)..=u64::MAX].boxed()
}

pub(crate) fn small_bytes() -> BoxedStrategy<Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from).boxed()
}

pub(crate) fn digest() -> BoxedStrategy<Digest> {
    any::<[u8; 32]>().prop_map(Digest).boxed()
}

pub(crate) fn span() -> BoxedStrategy<Span> {
    any::<u64>().prop_map(Span).boxed()
}

pub(crate) fn attempt() -> BoxedStrategy<Attempt> {
    prop_oneof![8 => 0..3_u16, 1 => any::<u16>(), 1 => Just(u16::MAX)].prop_map(Attempt).boxed()
}

pub(crate) fn step() -> BoxedStrategy<InnerStep> {
    number(5).prop_map(InnerStep).boxed()
}

pub(crate) fn stage() -> BoxedStrategy<StageId> {
    prop_oneof![8 => 0..4_u16, 1 => any::<u16>(), 1 => Just(u16::MAX)].prop_map(StageId).boxed()
}

pub(crate) fn plan_number() -> BoxedStrategy<PlanNumber> {
    prop_oneof![4 => 1..4_u32, 1 => any::<u32>(), 1 => Just(u32::MAX)].prop_map(PlanNumber).boxed()
}

pub(crate) fn seat() -> BoxedStrategy<SeatId> {
    prop_oneof![8 => 0..11_u32, 1 => any::<u32>(), 1 => Just(u32::MAX)].prop_map(SeatId).boxed()
}

pub(crate) fn microbatch() -> BoxedStrategy<MicrobatchId> {
    let split = prop_oneof![3 => Just(Split::Train), 1 => Just(Split::HeldOut)];
    (split, number(14)).prop_map(|(split, index)| MicrobatchId { split, index }).boxed()
}

pub(crate) fn outer() -> BoxedStrategy<OuterStep> {
    number(4).prop_map(OuterStep).boxed()
}

pub(crate) fn replica() -> BoxedStrategy<ReplicaId> {
    prop_oneof![8 => 0..4_u16, 1 => any::<u16>()].prop_map(ReplicaId).boxed()
}

/// Any floating-point number, those that are none included.
pub(crate) fn float() -> BoxedStrategy<f64> {
    proptest::num::f64::ANY.boxed()
}
