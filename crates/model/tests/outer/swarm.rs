//! The replicas of one stage in one process: made-up movements, and the exchange between them without a network.

use trestle_model::outer::{CodecKind, Exchanged, Layout, Outer, OuterConfig, Rule, SHARES_SUM};

pub(crate) const KINDS: [CodecKind; 4] =
    [CodecKind::F32, CodecKind::Bf16, CodecKind::Int8, CodecKind::SparseLoCo];

/// Matrices with full and partial chunks, vectors, and an empty tensor.
pub(crate) fn layout() -> Layout {
    Layout::new(&[vec![130, 70], vec![5], vec![0, 3], vec![64, 128], vec![9000], vec![], vec![1, 65]])
}

/// Numbers of many magnitudes around zero, the same for the same seed on every machine.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() * next() * next()).collect()
}

/// The bits of numbers: equality as bytes see it.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Settings under which a codec's error feedback forgets nothing.
pub(crate) fn config(rule: Rule, codec: CodecKind) -> OuterConfig {
    OuterConfig { rule, codec, exchanged: Exchanged::Weights, error_decay: 1.0 }
}

pub(crate) const NESTEROV: Rule = Rule::Nesterov { learning_rate: 0.7, momentum: 0.9, ramp: None };

/// A replica that begins with the same weights as every other.
pub(crate) fn replica(config: &OuterConfig) -> Outer {
    let layout = layout();
    let weights = noise(layout.elements(), 1);
    Outer::new(config.clone(), layout, weights).expect("the settings fit together")
}

/// Weights that have moved from the anchor; differently for each replica and step.
pub(crate) fn moved(outer: &Outer, replica: u64, step: u64) -> Vec<f32> {
    let movement = noise(outer.layout().elements(), 1000 * step + replica + 7);
    outer.anchor().iter().zip(movement).map(|(weight, movement)| weight - 0.01 * movement).collect()
}

/// A share a reducer, so that the whole is cut unevenly.
pub(crate) fn shares(reducers: u32) -> Vec<u32> {
    let each = SHARES_SUM / (reducers + 1);
    let mut shares = vec![each; reducers as usize];
    shares[0] = SHARES_SUM - each * (reducers - 1);
    shares
}

/// Reduces every shard: `contributions` holds one list of shards a replica.
pub(crate) fn reduce(
    outer: &Outer,
    shares: &[u32],
    weights: &[u64],
    contributions: &[Vec<Vec<u8>>],
) -> Vec<Vec<u8>> {
    (0..shares.len())
        .map(|shard| {
            let parts: Vec<(u64, &[u8])> = weights
                .iter()
                .zip(contributions)
                .map(|(&weight, shards)| (weight, shards[shard].as_slice()))
                .collect();
            outer.reduce(shares, shard, &parts).expect("honest contributions are taken")
        })
        .collect()
}

pub(crate) fn stage(outer: &mut Outer, shares: &[u32], results: &[Vec<u8>]) -> [u8; 32] {
    let results: Vec<&[u8]> = results.iter().map(Vec::as_slice).collect();
    outer.stage(shares, &results).expect("honest results are taken")
}

/// Takes all replicas, whose snapshots are taken, through one outer step.
pub(crate) fn exchange(replicas: &mut [Outer], weights: &[u64]) {
    let shares = shares(replicas.len() as u32);
    let contributions: Vec<Vec<Vec<u8>>> = replicas
        .iter_mut()
        .map(|replica| replica.encode(&shares).expect("the snapshot can be encoded"))
        .collect();
    let results = reduce(&replicas[0], &shares, weights, &contributions);
    let digests: Vec<[u8; 32]> =
        replicas.iter_mut().map(|replica| stage(replica, &shares, &results)).collect();
    for (replica, digest) in replicas.iter_mut().zip(&digests) {
        assert_eq!(digest, &digests[0], "the replicas stage different weights");
        replica.commit().expect("it is staged");
        if replica.config().exchanged == Exchanged::Weights {
            assert_eq!(replica.digests().weights, *digest, "another anchor was staged than committed");
        }
    }
}
