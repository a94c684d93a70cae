//! What each codec writes, how much of it, and what comes back.

use trestle_model::outer::{CodecKind, Layout, UNIT_ELEMENTS_MAX};

use crate::swarm::{KINDS, bits, layout, noise};

fn round_trip(kind: CodecKind, layout: &Layout, values: &[f32]) -> Vec<f32> {
    let shard = layout.shard(0..layout.elements());
    let bytes = kind.codec().encode(&shard, values).expect("finite numbers");
    assert_eq!(bytes.len(), kind.codec().encoded_len(&shard), "{kind:?}");
    let mut back = vec![f32::NAN; values.len()];
    kind.codec().decode(&shard, &bytes, &mut back).expect("what it wrote");
    back
}

/// SparseLoCo by its description, without bytes: what remains of each tensor's units.
fn sparse_reference(layout: &Layout, values: &[f32]) -> Vec<f32> {
    let mut back = vec![0.0; values.len()];
    for piece in layout.shard(0..layout.elements()).pieces() {
        if piece.form() == trestle_model::outer::Form::Vector {
            // A mean of one: adding to nothing makes +0 of -0.
            piece.units().flatten().for_each(|index| back[index] = values[index] + 0.0);
            continue;
        }
        let mut chosen: Vec<usize> = Vec::new();
        for unit in piece.units() {
            let count = unit.len().div_ceil(64);
            let mut order: Vec<usize> = unit.collect();
            order.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()).then(a.cmp(&b)));
            order.truncate(count);
            order.sort_unstable();
            chosen.extend(order);
        }
        let numbers = || chosen.iter().map(|&index| f64::from(values[index]));
        let count = chosen.len() as f64;
        let mean = numbers().sum::<f64>() / count;
        let sigma = (numbers().map(|number| (number - mean).powi(2)).sum::<f64>() / count).sqrt();
        let width = 6.0 * sigma / 4.0;
        let borders = [(mean - width) as f32, mean as f32, (mean + width) as f32];
        let bin = |index: usize| borders.iter().filter(|&&border| values[index] >= border).count();
        for which in 0..4 {
            let members: Vec<usize> = chosen.iter().copied().filter(|&index| bin(index) == which).collect();
            let sum: f64 = members.iter().map(|&index| f64::from(values[index])).sum();
            members.iter().for_each(|&index| back[index] = (sum / members.len() as f64) as f32);
        }
    }
    back
}

#[test]
fn sizes_are_exact() {
    let layout = layout();
    let (all, units) = (layout.elements(), layout.units());
    let shard = layout.shard(0..all);
    let len = |kind: CodecKind| kind.codec().encoded_len(&shard);
    assert_eq!(len(CodecKind::F32), 4 * all);
    assert_eq!(len(CodecKind::Bf16), 2 * all);
    assert_eq!(len(CodecKind::Int8), all + 4 * units);
    // Chunks of 64x64, 64x6 and 2x64, 2x6 elements keep 64, 6, 2 and 1; 1x64 and 1x1 keep one each.
    let matrices = [2 * (96 + 16) + 2 * (9 + 2) + (3 + 1) + (2 + 1), 2 * (96 + 16), 2 * (2 + 1)];
    let vectors = 4 * (5 + 9000 + 1);
    assert_eq!(len(CodecKind::SparseLoCo), 3 * 16 + matrices.iter().sum::<usize>() + vectors);
}

#[test]
fn sparse_matrices_take_the_published_bits() {
    let layout = Layout::new(&[vec![8192, 4096]]);
    let elements = layout.elements();
    let bytes = CodecKind::SparseLoCo.codec().encoded_len(&layout.shard(0..elements));
    assert_eq!(bytes, elements / 4096 * 112 + 16);
    let bits = 8.0 * bytes as f64 / elements as f64;
    assert!((bits - 0.21875).abs() < 1e-5, "{bits} bits a number");
    assert!((32.0 / bits - 146.3).abs() < 0.05, "{} times smaller", 32.0 / bits);
}

#[test]
fn a_shard_by_itself_is_the_same_as_in_the_whole() {
    let layout = layout();
    let values = noise(layout.elements(), 4);
    let shards = layout.shards(&[20_000, 10_000, 35_536]).expect("they sum up");
    for kind in [CodecKind::F32, CodecKind::Bf16, CodecKind::Int8] {
        let whole = round_trip(kind, &layout, &values);
        for range in &shards {
            let shard = layout.shard(range.clone());
            let bytes = kind.codec().encode(&shard, &values[range.clone()]).expect("finite numbers");
            let mut back = vec![0.0; range.len()];
            kind.codec().decode(&shard, &bytes, &mut back).expect("what it wrote");
            assert!(bits(&back) == bits(&whole[range.clone()]), "{kind:?}");
        }
    }
}

#[test]
fn single_precision_loses_nothing() {
    let layout = layout();
    let mut values = noise(layout.elements(), 5);
    values[..4].copy_from_slice(&[-0.0, f32::MIN_POSITIVE / 8.0, 2f32.powi(60), -2f32.powi(60)]);
    assert!(bits(&round_trip(CodecKind::F32, &layout, &values)) == bits(&values));
}

#[test]
fn bf16_rounds_as_libtorch_does() {
    let layout = layout();
    let mut values = noise(layout.elements(), 6);
    values[..3].copy_from_slice(&[1.003_906_3, -1.003_906_2, 1.011_718_8]);
    let back = round_trip(CodecKind::Bf16, &layout, &values);
    let torch = tch::Tensor::from_slice(&values).to_kind(tch::Kind::BFloat16).to_kind(tch::Kind::Float);
    assert!(bits(&back) == bits(&Vec::<f32>::try_from(torch).expect("a list of numbers")));
}

#[test]
fn int8_is_within_half_a_step_of_its_unit() {
    let layout = layout();
    let values = noise(layout.elements(), 7);
    let back = round_trip(CodecKind::Int8, &layout, &values);
    for unit in layout.shard(0..layout.elements()).units() {
        let largest = values[unit.clone()].iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let step = largest / 127.0;
        for (value, back) in values[unit.clone()].iter().zip(&back[unit]) {
            assert!((value - back).abs() <= step * 0.500_01, "{value} came back as {back}, step {step}");
        }
    }
}

#[test]
fn int8_of_nothing_and_of_almost_nothing_is_nothing() {
    let layout = Layout::new(&[vec![UNIT_ELEMENTS_MAX], vec![3]]);
    let mut values = vec![0.0; layout.elements()];
    values[UNIT_ELEMENTS_MAX] = f32::MIN_POSITIVE;
    assert_eq!(round_trip(CodecKind::Int8, &layout, &values), vec![0.0; values.len()]);
}

#[test]
fn sparse_is_what_its_description_says_bit_for_bit() {
    let layout = layout();
    let ties: Vec<f32> =
        noise(layout.elements(), 8).iter().map(|value| (value * 8.0).round() / 8.0).collect();
    let skewed: Vec<f32> = noise(layout.elements(), 9).iter().map(|value| value + 0.5).collect();
    let zeros = vec![0.0; layout.elements()];
    for values in [noise(layout.elements(), 10), ties, skewed, zeros] {
        let (got, want) =
            (round_trip(CodecKind::SparseLoCo, &layout, &values), sparse_reference(&layout, &values));
        let differing = bits(&got).iter().zip(bits(&want)).position(|(got, want)| *got != want);
        assert_eq!(differing, None, "the place of the first difference");
    }
}

#[test]
fn what_is_not_finite_or_too_large_is_not_sent() {
    let layout = layout();
    for kind in KINDS {
        for bad in [f32::NAN, f32::INFINITY, -1e19] {
            for index in [0, 4096, layout.elements() - 1] {
                let mut values = noise(layout.elements(), 11);
                values[index] = bad;
                let error = kind.codec().encode(&layout.shard(0..values.len()), &values).expect_err("bad");
                let words = format!("element {index} is ");
                assert!(error.to_string().starts_with(&words), "{kind:?}: {error}");
            }
        }
    }
}

/// Other bytes for the same numbers would let the replicas of two versions, or of two machines, drift apart.
#[test]
fn the_bytes_are_those_of_every_machine() {
    let layout = layout();
    let values = noise(layout.elements(), 12);
    let digest = |kind: CodecKind| {
        let bytes = kind.codec().encode(&layout.shard(0..values.len()), &values).expect("finite");
        blake3::hash(&bytes).to_hex()[..16].to_string()
    };
    let golden = ["bc6ef254bd73dfba", "e8a0bb0ddab20da5", "bde843a89364a5d1", "62b062a184d4fd53"];
    assert_eq!(KINDS.map(digest), golden);
}
