//! Bytes that no honest peer writes: each is refused for its own reason, and none panics.

use trestle_model::outer::{
    CodecError, CodecKind, Layout, Outer, OuterError, ReduceError, Rule, SHARES_SUM, SharesError,
};

use crate::swarm::{KINDS, config, layout, moved, noise, replica};

const WHOLE: [u32; 1] = [SHARES_SUM];

/// A replica and its honest contribution to the one shard.
fn honest(kind: CodecKind) -> (Outer, Vec<u8>) {
    let mut outer = replica(&config(Rule::Mean, kind));
    outer.begin(0, moved(&outer, 0, 0));
    let bytes = outer.encode(&WHOLE).expect("finite").remove(0);
    (outer, bytes)
}

/// Has the bytes reduced after an honest contribution, and returns why they are refused.
fn refused(outer: &Outer, honest: &[u8], bytes: &[u8]) -> CodecError {
    match outer.reduce(&WHOLE, 0, &[(1, honest), (1, bytes)]) {
        Err(ReduceError::Part { shard: 0, part: 1, reason }) => reason,
        other => panic!("not refused as part 1: {other:?}"),
    }
}

fn with(bytes: &[u8], place: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[place..place + new.len()].copy_from_slice(new);
    bytes
}

#[test]
fn a_wrong_length_is_refused_by_every_codec() {
    for kind in KINDS {
        let (mut outer, bytes) = honest(kind);
        let (got, expected) = (bytes.len(), bytes.len());
        for bad in [&bytes[..got - 1], &[&bytes[..], &[0]].concat(), &[]] {
            assert_eq!(refused(&outer, &bytes, bad), CodecError::Length { got: bad.len(), expected });
        }
        let result = outer.reduce(&WHOLE, 0, &[(1, &bytes)]).expect("honest");
        let error = outer.stage(&WHOLE, &[&result[1..]]).expect_err("too short");
        assert!(
            matches!(error, OuterError::Result { shard: 0, reason: CodecError::Length { .. }, .. }),
            "{kind:?}: {error}"
        );
        assert_eq!(outer.commit(), Err(OuterError::NotStaged { outer: 0 }));
        // A refusal unstages what was staged before it.
        outer.stage(&WHOLE, &[&result]).expect("honest");
        outer.stage(&WHOLE, &[&[]]).expect_err("too short");
        assert_eq!(outer.commit(), Err(OuterError::NotStaged { outer: 0 }));
    }
}

#[test]
fn numbers_that_are_none_or_too_large_are_refused() {
    let (outer, bytes) = honest(CodecKind::F32);
    for bad in [f32::NAN, f32::NEG_INFINITY, 1.2e18] {
        let reason = refused(&outer, &bytes, &with(&bytes, 4 * 9000, &bad.to_le_bytes()));
        assert!(matches!(reason, CodecError::Number { index: 9000, .. }), "{reason}");
    }
    let (outer, bytes) = honest(CodecKind::Bf16);
    for bad in [0x7fc0u16, 0xff80, 0x7f7f] {
        let reason = refused(&outer, &bytes, &with(&bytes, 2 * 77, &bad.to_le_bytes()));
        assert!(matches!(reason, CodecError::Number { index: 77, .. }), "{reason}");
    }
    // A vector's numbers travel dense in SparseLoCo too: the last element is of a matrix, those of [9000] before it.
    let (outer, bytes) = honest(CodecKind::SparseLoCo);
    let scalar = bytes.len() - 16 - 6 - 4;
    let reason = refused(&outer, &bytes, &with(&bytes, scalar, &f32::INFINITY.to_le_bytes()));
    assert!(
        matches!(reason, CodecError::Number { index, .. } if index == layout().elements() - 66),
        "{reason}"
    );
}

#[test]
fn bad_scales_and_integers_are_refused() {
    let (outer, bytes) = honest(CodecKind::Int8);
    let second = 4 + 4096;
    for bad in [f32::NAN, f32::INFINITY, -1.0, 1e17] {
        let reason = refused(&outer, &bytes, &with(&bytes, second, &bad.to_le_bytes()));
        assert!(matches!(reason, CodecError::Scale { unit: 1, .. }), "{reason}");
    }
    let reason = refused(&outer, &bytes, &with(&bytes, second + 4 + 10, &[0x80]));
    assert_eq!(reason, CodecError::Integer { index: 4096 + 10 });
}

#[test]
fn bad_indices_padding_and_codebooks_are_refused() {
    let (outer, bytes) = honest(CodecKind::SparseLoCo);
    let refused = |place: usize, new: &[u8]| refused(&outer, &bytes, &with(&bytes, place, new));
    for bad in [f32::NAN, f32::NEG_INFINITY, 1e19] {
        let reason = refused(8, &bad.to_le_bytes());
        assert!(matches!(reason, CodecError::Codebook { unit: 0, entry: 2, .. }), "{reason}");
    }
    // The first two entries lie in the first three bytes of the indices: 5 and 5 again, then 0xfff and 0.
    let order = |index, previous| CodecError::Order { unit: 0, entry: 1, index, previous };
    assert_eq!(refused(16, &[5, 5 << 4, 0]), order(5, 5));
    assert_eq!(refused(16, &[0xff, 0x0f, 0]), order(0, 0xfff));
    // Unit 1 has 64 x 6 elements and 6 entries: 9 bytes of indices, 2 of codes.
    let unit = 16 + 112;
    let beyond = refused(unit + 6, &[0xfe, 0xff, 0xff]);
    assert_eq!(beyond, CodecError::Index { unit: 1, entry: 4, index: 0xffe, elements: 384 });
    assert_eq!(refused(unit + 10, &[0xff]), CodecError::Padding { unit: 1 });
    // The last unit of the first tensor keeps one entry: 12 bits in 2 bytes.
    let single = 16 + 2 * (112 + 11) + 4;
    assert_eq!(refused(single, &[0, 0x10]), CodecError::Padding { unit: 5 });
}

#[test]
fn results_of_nobody_and_absurd_counts_are_refused() {
    let (mut outer, bytes) = honest(CodecKind::SparseLoCo);
    let result = outer.reduce(&WHOLE, 0, &[(3, &bytes), (4, &bytes)]).expect("honest");
    let mut refused = |result: &[u8]| match outer.stage(&WHOLE, &[result]) {
        Err(OuterError::Result { shard: 0, reason, .. }) => reason,
        other => panic!("not refused as shard 0: {other:?}"),
    };
    assert_eq!(refused(&[0; 4]), CodecError::Contributors { count: 0, weight: 0 });
    assert_eq!(refused(&[0; 3]), CodecError::Length { got: 3, expected: 4 });
    let weightless = with(&result, 4, &[0; 16]);
    assert_eq!(refused(&weightless), CodecError::Contributors { count: 2, weight: 0 });
    let heavy = with(&result, 4, &[0xff; 16]);
    let weight = 2 * u128::from(u64::MAX);
    assert_eq!(refused(&heavy), CodecError::Contributors { count: 2, weight });
    for count in [1, 3, u32::MAX] {
        let reason = refused(&with(&result, 0, &count.to_le_bytes()));
        assert!(matches!(reason, CodecError::Length { got, .. } if got == result.len()), "{reason}");
    }
}

#[test]
fn the_call_itself_is_checked() {
    let (mut outer, bytes) = honest(CodecKind::F32);
    let parts = [(1, &bytes[..])];
    assert!(matches!(outer.reduce(&[1], 0, &parts), Err(ReduceError::Shares(_))));
    assert_eq!(outer.reduce(&WHOLE, 1, &parts), Err(ReduceError::Shard { shard: 1, shards: 1 }));
    for weights in [vec![], vec![0, 0], vec![u64::MAX, 1]] {
        let parts: Vec<_> = weights.iter().map(|&weight| (weight, &bytes[..])).collect();
        assert!(matches!(outer.reduce(&WHOLE, 0, &parts), Err(ReduceError::Weights { .. })), "{weights:?}");
    }
    assert_eq!(outer.stage(&WHOLE, &[]), Err(OuterError::ResultCount { outer: 0, got: 0, expected: 1 }));
    assert!(outer.encode(&[3]) == Err(SharesError { count: 1, sum: 3 }.into()));
    outer.restore();
    let not_begun = OuterError::NotBegun { committed: 0 };
    assert_eq!(outer.encode(&WHOLE), Err(not_begun.clone()));
    assert_eq!(outer.stage(&WHOLE, &[&bytes]), Err(not_begun.clone()));
    assert_eq!(outer.commit(), Err(not_begun));
}

/// A liar cannot turn the mean into an infinity, for which the reducer would be blamed.
#[test]
fn the_largest_numbers_with_the_largest_weights_stay_finite() {
    for kind in KINDS {
        let layout = layout();
        let mut outer = replica(&config(Rule::Mean, kind));
        outer.begin(0, moved(&outer, 0, 0));
        let values = vec![2f32.powi(60); layout.elements()];
        let bytes = kind.codec().encode(&layout.shard(0..values.len()), &values).expect("within the bound");
        // Of the second weights f32 makes a sum of products above and a sum of weights below the true one.
        for weight in [u64::MAX / 3, (1 << 24) + 3] {
            let result = outer.reduce(&WHOLE, 0, &[(weight, &bytes[..]); 3]).expect("within the bound");
            outer.stage(&WHOLE, &[&result]).expect("the result is taken");
        }
        outer.commit().expect("staged");
        assert!(outer.anchor().iter().all(|weight| weight.is_finite()), "{kind:?}");
    }
}

/// Random bytes: those that pass must be numbers within the bound, and their reduction must be taken by every replica.
#[test]
fn random_and_mutated_bytes_never_panic() {
    let (mut taken, mut refused) = (0, 0);
    for kind in KINDS {
        let layout = Layout::new(&[vec![64, 70], vec![9]]);
        let weights = noise(layout.elements(), 1);
        let mut outer = Outer::new(config(Rule::Mean, kind), layout.clone(), weights.clone()).expect("valid");
        outer.begin(0, weights.iter().map(|weight| weight * 0.9).collect());
        let honest = outer.encode(&WHOLE).expect("finite").remove(0);
        let shard = layout.shard(0..layout.elements());
        for case in 0..3000u64 {
            let bytes = mangled(&honest, case);
            let mut back = vec![0.0; layout.elements()];
            match kind.codec().decode(&shard, &bytes, &mut back) {
                Ok(()) => {
                    taken += 1;
                    assert!(back.iter().all(|value| value.abs() <= 1.2e18), "{kind:?} case {case}");
                    let result = outer.reduce(&WHOLE, 0, &[(1, &honest), (2, &bytes)]).expect("decodes");
                    outer.stage(&WHOLE, &[&result]).expect("what a reducer returns is taken");
                }
                Err(_) => {
                    refused += 1;
                    assert!(outer.reduce(&WHOLE, 0, &[(1, &bytes)]).is_err(), "{kind:?} case {case}");
                }
            }
            // As a result it may pass or not, but it must not panic, nor stage what cannot be committed.
            if outer.stage(&WHOLE, &[&bytes]).is_ok() && case % 100 == 0 {
                outer.commit().expect("staged");
                assert!(outer.anchor().iter().all(|weight| weight.is_finite()), "{kind:?} case {case}");
                outer.begin(0, weights.clone());
            }
        }
    }
    assert!(taken > 1000 && refused > 1000, "{taken} taken, {refused} refused: one side was not tested");
}

/// Case by case: some bytes changed, all bytes random, or another length.
fn mangled(honest: &[u8], case: u64) -> Vec<u8> {
    let mut state = case.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    let mut bytes = honest.to_vec();
    match case % 4 {
        0 => bytes.iter_mut().for_each(|byte| *byte = next() as u8),
        1 => bytes.resize(next() % (2 * honest.len()), next() as u8),
        _ => {
            for _ in 0..=next() % 4 {
                let place = next() % bytes.len();
                bytes[place] ^= 1 << (next() % 8);
            }
        }
    }
    bytes
}
