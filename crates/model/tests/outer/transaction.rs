//! The outer step as a transaction: nothing moves before a commit, and then everything does.

use trestle_model::outer::{CodecKind, Exchanged, Outer, OuterConfig, OuterError, Rule, SHARES_SUM};

use crate::swarm::{
    KINDS, NESTEROV, bits, config, exchange, layout, moved, noise, reduce, replica, shares, stage,
};

/// Decodes a contribution to shards of these shares into the whole stage.
fn decoded(outer: &Outer, shares: &[u32], contribution: &[Vec<u8>]) -> Vec<f32> {
    let layout = outer.layout();
    let mut whole = vec![f32::NAN; layout.elements()];
    for (range, bytes) in layout.shards(shares).expect("they sum up").into_iter().zip(contribution) {
        let (codec, shard) = (outer.config().codec.codec(), layout.shard(range.clone()));
        codec.decode(&shard, bytes, &mut whole[range]).expect("what it encoded");
    }
    whole
}

fn commit_alone(outer: &mut Outer, shares: &[u32], contribution: &[Vec<u8>]) {
    let results = reduce(outer, shares, &[1], &[contribution.to_vec()]);
    stage(outer, shares, &results);
    outer.commit().expect("staged");
}

#[test]
fn what_was_not_sent_is_still_owed() {
    for kind in KINDS {
        let mut outer = replica(&config(Rule::Plain { learning_rate: 0.3 }, kind));
        let elements = outer.layout().elements();
        let (mut sent, mut moved_by) = (vec![0f64; elements], vec![0f64; elements]);
        for step in 0..40 {
            let weights = moved(&outer, 0, step);
            let movement: Vec<f32> = outer.anchor().iter().zip(&weights).map(|(a, w)| a - w).collect();
            outer.begin(step, weights);
            let shares = shares(1 + step as u32 % 3);
            let contribution = outer.encode(&shares).expect("finite");
            let decoded = decoded(&outer, &shares, &contribution);
            commit_alone(&mut outer, &shares, &contribution);
            for index in 0..elements {
                sent[index] += f64::from(decoded[index]);
                moved_by[index] += f64::from(movement[index]);
            }
            if kind == CodecKind::F32 {
                assert!(bits(&decoded) == bits(&movement));
                assert!(outer.owed().is_empty());
            }
        }
        let largest = outer.owed().iter().fold(0.0f32, |most, owed| most.max(owed.abs()));
        assert_eq!(largest > 0.0, kind != CodecKind::F32, "{kind:?} owes up to {largest}");
        for index in 0..elements {
            let owed = f64::from(outer.owed().get(index).copied().unwrap_or(0.0));
            let error = (sent[index] + owed - moved_by[index]).abs();
            assert!(error < 1e-6, "{kind:?}: element {index} lost {error:e}");
        }
    }
}

#[test]
fn error_feedback_follows_its_formula_bit_for_bit() {
    for kind in [CodecKind::Bf16, CodecKind::Int8, CodecKind::SparseLoCo] {
        let mut outer = replica(&OuterConfig { error_decay: 0.95, ..config(NESTEROV, kind) });
        let mut owed = vec![0f32; outer.layout().elements()];
        for step in 0..3 {
            let weights = moved(&outer, 0, step);
            let wanted: Vec<f32> = (outer.anchor().iter().zip(&weights).zip(&owed))
                .map(|((anchor, weight), owed)| anchor - weight + 0.95 * owed)
                .collect();
            outer.begin(step, weights);
            let contribution = outer.encode(&shares(2)).expect("finite");
            let sent = decoded(&outer, &shares(2), &contribution);
            commit_alone(&mut outer, &shares(2), &contribution);
            let once: Vec<Vec<u8>> = (outer.layout().shards(&shares(2)).expect("they sum up").into_iter())
                .map(|range| kind.codec().encode(&outer.layout().shard(range.clone()), &wanted[range]))
                .collect::<Result<_, _>>()
                .expect("finite");
            assert!(once == contribution, "{kind:?} step {step}: other numbers were sent");
            owed = wanted.iter().zip(&sent).map(|(wanted, sent)| wanted - sent).collect();
            assert!(bits(outer.owed()) == bits(&owed), "{kind:?} step {step}");
        }
    }
}

#[test]
fn a_restored_step_leaves_no_trace() {
    for kind in KINDS {
        let mut outer = replica(&config(NESTEROV, kind));
        let mut undisturbed = replica(&config(NESTEROV, kind));
        for step in 0..4 {
            let before = outer.digests();
            outer.begin(step, moved(&outer, 9, step));
            let aborted = outer.encode(&shares(2)).expect("finite");
            let results = reduce(&outer, &shares(2), &[5], &[aborted]);
            stage(&mut outer, &shares(2), &results);
            assert_eq!(outer.digests(), before, "{kind:?}: staging changed the committed state");
            outer.restore();
            assert_eq!(outer.digests(), before, "{kind:?}: restoring changed the committed state");
            assert_eq!(outer.commit(), Err(OuterError::NotBegun { committed: step }));
            for outer in [&mut outer, &mut undisturbed] {
                outer.begin(step, moved(outer, 0, step));
                exchange(std::slice::from_mut(outer), &[1]);
            }
            let after = outer.digests();
            assert_eq!(after, undisturbed.digests(), "{kind:?}: the next step differs");
            assert_ne!(after.weights, before.weights, "{kind:?}");
            assert_ne!(after.momentum, before.momentum, "{kind:?}");
            assert_eq!(after.owed != before.owed, kind != CodecKind::F32, "{kind:?}");
            assert_eq!(outer.committed(), step + 1);
        }
    }
}

#[test]
fn replicas_agree_and_repetition_is_harmless() {
    for kind in KINDS {
        let mut replicas: Vec<Outer> = (0..3).map(|_| replica(&config(NESTEROV, kind))).collect();
        for step in 0..5 {
            for (index, replica) in replicas.iter_mut().enumerate() {
                replica.begin(step, moved(replica, index as u64, step));
                let once = replica.encode(&shares(3)).expect("finite");
                replica.encode(&shares(2)).expect("finite");
                assert_eq!(replica.encode(&shares(3)).expect("finite"), once, "{kind:?}");
                let results = reduce(replica, &shares(3), &[1], &[once]);
                let digest = stage(replica, &shares(3), &results);
                assert_eq!(stage(replica, &shares(3), &results), digest, "{kind:?}");
            }
            exchange(&mut replicas, &[10, 7, 3]);
            let digests = replicas[0].digests();
            for replica in &replicas[1..] {
                assert_eq!(replica.digests().weights, digests.weights, "{kind:?}");
                assert_eq!(replica.digests().momentum, digests.momentum, "{kind:?}");
            }
        }
    }
}

/// Shares move when a reducer is lost; the error feedback must be that of the bytes that were reduced.
#[test]
fn a_second_encoding_with_other_shares_is_the_one_that_counts() {
    for kind in KINDS {
        let mut outer = replica(&config(Rule::Mean, kind));
        let mut direct = replica(&config(Rule::Mean, kind));
        for step in 0..2 {
            outer.begin(step, moved(&outer, 0, step));
            outer.encode(&shares(3)).expect("finite");
            direct.begin(step, moved(&direct, 0, step));
            for outer in [&mut outer, &mut direct] {
                exchange(std::slice::from_mut(outer), &[1]);
            }
            assert_eq!(outer.digests(), direct.digests(), "{kind:?}");
        }
    }
}

#[test]
fn a_replica_left_out_owes_all_of_that_shard() {
    for kind in KINDS {
        let mut replicas: Vec<Outer> = (0..2).map(|_| replica(&config(Rule::Mean, kind))).collect();
        let shares = shares(2);
        let weights = moved(&replicas[0], 0, 0);
        let movement: Vec<f32> = replicas[0].anchor().iter().zip(&weights).map(|(a, w)| a - w).collect();
        replicas[0].begin(0, weights.clone());
        let weights = moved(&replicas[1], 1, 0);
        replicas[1].begin(0, weights);
        let own = replicas[0].encode(&shares).expect("finite");
        let other = replicas[1].encode(&shares).expect("finite");
        let first = replicas[0].reduce(&shares, 0, &[(1, &own[0]), (1, &other[0])]).expect("honest");
        let second = replicas[0].reduce(&shares, 1, &[(1, &other[1])]).expect("honest");
        replicas[0].leave_out(1);
        stage(&mut replicas[0], &shares, &[first, second]);
        replicas[0].commit().expect("staged");
        let sent = decoded(&replicas[0], &shares, &own);
        let range = replicas[0].layout().shards(&shares).expect("they sum up").remove(1);
        for (index, &owed) in replicas[0].owed().iter().enumerate() {
            let part = if range.contains(&index) { 0.0 } else { sent[index] };
            assert_eq!(owed, movement[index] - part, "{kind:?} element {index}");
        }
        assert_eq!(replicas[0].owed().len(), movement.len(), "{kind:?}");
        // The next step sends it.
        let anchor = replicas[0].anchor().to_vec();
        replicas[0].begin(1, anchor);
        let late = replicas[0].encode(&[SHARES_SUM]).expect("finite");
        let late = decoded(&replicas[0], &[SHARES_SUM], &late);
        let error = range.map(|index| (late[index] - movement[index]).abs()).fold(0.0, f32::max);
        assert!(kind == CodecKind::SparseLoCo || error < 1e-4, "{kind:?}: {error}");
    }
}

#[test]
fn a_replica_without_contribution_follows_and_owes_everything() {
    for kind in KINDS {
        let mut replicas: Vec<Outer> = (0..2).map(|_| replica(&config(NESTEROV, kind))).collect();
        let early = moved(&replicas[0], 0, 0);
        replicas[0].begin(0, early);
        let late = moved(&replicas[1], 1, 0);
        let movement: Vec<f32> = replicas[1].anchor().iter().zip(&late).map(|(a, w)| a - w).collect();
        replicas[1].begin(0, late);
        let contribution = replicas[0].encode(&shares(2)).expect("finite");
        let results = reduce(&replicas[0], &shares(2), &[1], &[contribution]);
        for replica in &mut replicas {
            stage(replica, &shares(2), &results);
            replica.commit().expect("staged");
        }
        assert_eq!(replicas[0].digests().weights, replicas[1].digests().weights, "{kind:?}");
        assert!(replicas[1].owed() == movement, "{kind:?}");
    }
}

#[test]
fn contributions_are_added_in_the_order_given() {
    let outer = replica(&config(Rule::Mean, CodecKind::F32));
    let layout = layout();
    let encode = |value: f32| {
        let values = vec![value; layout.elements()];
        CodecKind::F32.codec().encode(&layout.shard(0..values.len()), &values).expect("finite")
    };
    let parts = [1e8, 1.0, -1e8].map(encode);
    let mean = |order: [usize; 3]| {
        let parts = order.map(|part| (1, &parts[part][..]));
        let result = outer.reduce(&[SHARES_SUM], 0, &parts).expect("honest");
        f32::from_le_bytes([result[0], result[1], result[2], result[3]])
    };
    assert_eq!(mean([0, 1, 2]), 0.0, "1 is lost beside 1e8");
    assert_eq!(mean([0, 2, 1]), 1.0 / 3.0);
}

#[test]
fn the_mean_is_weighted() {
    for (kind, weights, want) in [
        (CodecKind::F32, [3, 1], 2.5),
        (CodecKind::Bf16, [3, 1], 2.5),
        (CodecKind::Int8, [3, 1], 2.5),
        (CodecKind::SparseLoCo, [1, 3], 3.5),
        (CodecKind::SparseLoCo, [1, 0], 2.0),
    ] {
        let elements = layout().elements();
        let mut outer = Outer::new(config(Rule::Mean, kind), layout(), vec![0.0; elements]).expect("valid");
        let encode = |value: f32| {
            let values = vec![value; elements];
            kind.codec().encode(&layout().shard(0..elements), &values).expect("finite")
        };
        let (two, four) = (encode(2.0), encode(4.0));
        outer.begin(0, vec![0.0; elements]);
        let parts = [(weights[0], &two[..]), (weights[1], &four[..])];
        let result = outer.reduce(&[SHARES_SUM], 0, &parts).expect("honest");
        stage(&mut outer, &[SHARES_SUM], &[result]);
        outer.commit().expect("staged");
        // The first element of a unit is among those that SparseLoCo keeps of equals.
        assert_eq!(outer.anchor()[0], -want, "{kind:?} {weights:?}");
    }
}

#[test]
fn a_late_replica_keeps_what_it_learnt_meanwhile() {
    let mut outer = replica(&config(NESTEROV, CodecKind::Bf16));
    let snapshot = moved(&outer, 0, 0);
    let mut now = noise(snapshot.len(), 77);
    now[..100].copy_from_slice(&snapshot[..100]);
    outer.begin(0, snapshot.clone());
    exchange(std::slice::from_mut(&mut outer), &[1]);
    let adopted = outer.adopt(Some(now.clone()));
    let anchor = outer.anchor();
    assert!(bits(&adopted[..100]) == bits(&anchor[..100]), "what stood still is the anchor");
    for index in 100..now.len() {
        assert_eq!(adopted[index], anchor[index] + (now[index] - snapshot[index]));
    }
    assert!(bits(&adopted[100..]) != bits(&anchor[100..]));
    // Nothing is left to adopt; and without news the weights are the anchor's.
    assert!(outer.adopt(Some(now.clone())) == now);
    assert!(bits(&outer.adopt(None)) == bits(outer.anchor()));
}

#[test]
fn a_replica_that_stood_still_adopts_the_anchor_even_where_it_is_minus_zero() {
    let elements = layout().elements();
    let weights = vec![-0.0; elements];
    let mut outer = Outer::new(config(Rule::Mean, CodecKind::F32), layout(), weights.clone()).expect("valid");
    outer.begin(0, weights.clone());
    exchange(std::slice::from_mut(&mut outer), &[1]);
    assert!(bits(&outer.adopt(Some(weights))) == bits(outer.anchor()));
}

#[test]
fn gradients_have_no_anchor_and_return_their_mean() {
    for kind in [CodecKind::F32, CodecKind::Bf16] {
        let config = OuterConfig { exchanged: Exchanged::Gradients, ..config(Rule::Mean, kind) };
        let mut replicas: Vec<Outer> = (0..3).map(|_| replica(&config)).collect();
        let elements = layout().elements();
        for step in 0..3 {
            let gradients: Vec<Vec<f32>> = (0..3).map(|index| noise(elements, 10 * step + index)).collect();
            for (replica, gradient) in replicas.iter_mut().zip(&gradients) {
                replica.begin(step, gradient.clone());
            }
            exchange(&mut replicas, &[1, 2, 1]);
            let means: Vec<Vec<f32>> = replicas.iter_mut().map(|replica| replica.adopt(None)).collect();
            assert!(means[0] == means[1] && means[0] == means[2]);
            for (index, mean) in means[0].iter().enumerate() {
                let want = (gradients[0][index] + 2.0 * gradients[1][index] + gradients[2][index]) / 4.0;
                let tolerance = if kind == CodecKind::F32 { 1e-7 } else { 1e-2 };
                assert!((mean - want).abs() <= tolerance, "{kind:?}: {mean}, expected {want}");
            }
            assert!(replicas[0].anchor().is_empty());
        }
    }
}

/// The multiples that the module's documentation states.
#[test]
fn memory_is_what_the_documentation_says() {
    let plain = Rule::Plain { learning_rate: 0.5 };
    let cases = [
        (CodecKind::F32, plain, 1.0, 2.0),
        (CodecKind::F32, NESTEROV, 2.0, 2.0),
        (CodecKind::Bf16, NESTEROV, 3.0, 1.75),
        (CodecKind::Int8, NESTEROV, 3.0, 1.63),
        (CodecKind::SparseLoCo, plain, 2.0, 1.03),
    ];
    for (kind, rule, rest, more) in cases {
        // Matrices alone, as nearly all of a stage is; the largest of three shards is half of it.
        let layout = trestle_model::outer::Layout::new(&[vec![512, 1024]]);
        let stage = 4.0 * layout.elements() as f64;
        let start = noise(layout.elements(), 1);
        let new = || Outer::new(config(rule, kind), layout.clone(), start.clone()).expect("valid");
        let mut replicas: Vec<Outer> = (0..3).map(|_| new()).collect();
        for step in 0..2 {
            for (index, replica) in replicas.iter_mut().enumerate() {
                replica.begin(step, moved(replica, index as u64, step));
            }
            exchange(&mut replicas, &[1; 3]);
            replicas.iter_mut().for_each(|replica| drop(replica.adopt(None)));
        }
        let (bytes, most) = (replicas[0].bytes() as f64 / stage, replicas[0].bytes_max() as f64 / stage);
        assert!((bytes - rest).abs() < 0.01, "{kind:?} holds {bytes} at rest, documented {rest}");
        assert!(most <= rest + more, "{kind:?} held {most}, documented {rest} + {more}");
        assert!(most > bytes + 0.9, "{kind:?}: {most} does not count the snapshot");
    }
}
