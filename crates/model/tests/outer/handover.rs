//! What live replicas hand to a newcomer: the same agreed bytes from each, the moments of one, and a newcomer that goes on
//! from them as the giver does.

use trestle_model::config::{BoundaryForm, Dtype};
use trestle_model::engine::{Engine, EngineConfig};
use trestle_model::handover::HandoverError;
use trestle_model::input::{Duty, Mode, StageInput};
use trestle_model::optimizer::config::{OptimizerConfig, OptimizerKind};
use trestle_model::outer::{CodecKind, Exchanged, Layout, Outer, OuterConfig, Ramp, Rule};

use crate::fixture;
use crate::swarm::{
    KINDS, NESTEROV, bits, config, exchange, layout, moved, noise, reduce, replica, shares, stage,
};

/// A ramp makes the count of commits matter to the arithmetic.
const RAMPED: Rule =
    Rule::Nesterov { learning_rate: 0.7, momentum: 0.9, ramp: Some(Ramp { from: 0.5, steps: 4 }) };

/// Replicas that trained apart and agreed `steps` times.
fn agreed(config: &OuterConfig, replicas: u64, steps: u64) -> Vec<Outer> {
    let mut replicas: Vec<Outer> = (0..replicas).map(|_| replica(config)).collect();
    for step in 0..steps {
        for (index, replica) in (0..).zip(&mut replicas) {
            replica.begin(step, moved(replica, index, step));
        }
        let weights: Vec<u64> = (1..=replicas.len() as u64).collect();
        exchange(&mut replicas, &weights);
    }
    replicas
}

/// A replica with other weights, a debt and a transaction of its own.
fn newcomer(config: &OuterConfig) -> Outer {
    let layout = layout();
    let weights = noise(layout.elements(), 99);
    let mut outer = Outer::new(config.clone(), layout, weights).expect("the settings fit together");
    let snapshot = moved(&outer, 50, 50);
    outer.begin(0, snapshot);
    exchange(std::slice::from_mut(&mut outer), &[1]);
    let snapshot = moved(&outer, 51, 51);
    outer.begin(1, snapshot);
    outer
}

fn state(outer: &Outer) -> (trestle_model::outer::Digests, u64) {
    (outer.digests(), outer.committed())
}

#[test]
fn all_replicas_of_a_stage_give_the_same_agreed_bytes() {
    for kind in KINDS {
        for rule in [RAMPED, Rule::Mean] {
            let mut replicas = agreed(&config(rule, kind), 2, 3);
            let first = replicas[0].export_agreed();
            assert!(first == replicas[1].export_agreed(), "{kind:?} {rule:?}");
            if kind != CodecKind::F32 {
                assert_ne!(replicas[0].digests().owed, replicas[1].digests().owed, "{kind:?}");
            }
            // What is under way at one of them is not agreed.
            let snapshot = moved(&replicas[1], 1, 9);
            replicas[1].begin(3, snapshot);
            replicas[1].encode(&shares(2)).expect("finite");
            assert!(first == replicas[1].export_agreed(), "{kind:?} {rule:?}");
            let lists = if rule == Rule::Mean { 1 } else { 2 };
            assert_eq!(first.len(), 120 + 4 * lists * layout().elements());
            assert_eq!(first.capacity(), first.len());
        }
    }
}

#[test]
fn agreed_bytes_follow_weights_momentum_and_count() {
    let settings = config(NESTEROV, CodecKind::F32);
    let bytes: Vec<Vec<u8>> = (0..3).map(|steps| agreed(&settings, 1, steps)[0].export_agreed()).collect();
    assert!(bytes[0] != bytes[1] && bytes[1] != bytes[2]);
    // A commit in which nobody moved, without momentum to move on by, leaves only its count.
    let mut still = replica(&config(Rule::Mean, CodecKind::F32));
    let before = still.export_agreed();
    let anchor = still.anchor().to_vec();
    still.begin(0, anchor);
    exchange(std::slice::from_mut(&mut still), &[1]);
    let after = still.export_agreed();
    assert!(before != after && before[120..] == after[120..]);
}

#[test]
fn a_newcomer_takes_over_what_was_agreed_and_owes_nothing() {
    for kind in KINDS {
        for rule in [RAMPED, Rule::Mean] {
            let settings = config(rule, kind);
            let givers = agreed(&settings, 2, 3);
            let mut new = newcomer(&settings);
            new.import_agreed(&givers[1].export_agreed()).expect("a replica of the same stage");
            assert!(bits(new.anchor()) == bits(givers[0].anchor()));
            assert!(bits(new.momentum()) == bits(givers[0].momentum()));
            assert_eq!((new.committed(), new.owed().len()), (3, 0));
            assert!(new.commit().is_err(), "what it had begun is dropped");
            let now = noise(layout().elements(), 5);
            assert!(new.adopt(Some(now.clone())) == now, "and nothing is left to adopt");
            assert!(new.export_agreed() == givers[0].export_agreed());
        }
    }
}

#[test]
fn the_digest_of_the_agreed_weights_is_the_one_that_was_voted() {
    for kind in KINDS {
        let settings = config(RAMPED, kind);
        let mut givers = agreed(&settings, 2, 1);
        for (index, giver) in (0..).zip(&mut givers) {
            giver.begin(1, moved(giver, index, 1));
        }
        let contributions: Vec<_> =
            givers.iter_mut().map(|giver| giver.encode(&shares(2)).expect("finite")).collect();
        let results = reduce(&givers[0], &shares(2), &[1, 2], &contributions);
        let voted = stage(&mut givers[0], &shares(2), &results);
        assert_ne!(givers[0].weights_digest(), voted, "{kind:?}: it is not committed yet");
        givers[0].commit().expect("staged");
        assert_eq!(givers[0].weights_digest(), voted, "{kind:?}");
        let mut new = newcomer(&settings);
        assert_ne!(new.weights_digest(), voted);
        new.import_agreed(&givers[0].export_agreed()).expect("a replica of the same stage");
        assert_eq!(new.weights_digest(), voted, "{kind:?}");
    }
}

/// The newcomer votes in the outer step that is open when it enters, without a contribution, and contributes to the next.
#[test]
fn a_newcomer_follows_the_open_step_and_joins_the_next() {
    for kind in KINDS {
        let settings = config(RAMPED, kind);
        let mut replicas = agreed(&settings, 2, 2);
        let mut new = newcomer(&settings);
        new.import_agreed(&replicas[0].export_agreed()).expect("a replica of the same stage");
        for (index, replica) in (0..).zip(&mut replicas) {
            replica.begin(2, moved(replica, index, 2));
        }
        let anchor = new.anchor().to_vec();
        new.begin(2, anchor);
        let contributions: Vec<_> =
            replicas.iter_mut().map(|replica| replica.encode(&shares(3)).expect("finite")).collect();
        let results = reduce(&new, &shares(3), &[3, 2], &contributions);
        replicas.push(new);
        let votes: Vec<_> = replicas.iter_mut().map(|replica| stage(replica, &shares(3), &results)).collect();
        assert!(votes.iter().all(|vote| *vote == votes[0]), "{kind:?}");
        replicas.iter_mut().for_each(|replica| replica.commit().expect("staged"));
        assert!(replicas[2].owed().iter().all(|owed| *owed == 0.0), "{kind:?}: it had moved nothing");
        for (index, replica) in (0..).zip(&mut replicas) {
            replica.begin(3, moved(replica, index, 3));
        }
        exchange(&mut replicas, &[1, 1, 1]);
        assert!(replicas[2].export_agreed() == replicas[0].export_agreed(), "{kind:?}");
    }
}

#[test]
fn malformed_agreed_bytes_are_refused_and_change_nothing() {
    let settings = config(NESTEROV, CodecKind::Int8);
    let bytes = agreed(&settings, 2, 2)[0].export_agreed();
    let mut new = newcomer(&settings);
    let before = state(&new);
    let mut refused = |bytes: &[u8]| {
        let error = new.import_agreed(bytes).expect_err("it is malformed");
        assert!(error.hint().is_some() && state(&new) == before, "{error}");
        error
    };
    for length in (0..200).chain([bytes.len() - 4, bytes.len() - 1]) {
        assert!(matches!(refused(&bytes[..length]), HandoverError::Length { got, .. } if got == length));
    }
    assert!(matches!(refused(&[&bytes[..], &[0; 4]].concat()), HandoverError::Length { .. }));
    for bit in 0..8 * 120 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused(&flipped);
    }
    let elements = layout().elements();
    for (element, list, index) in [(3, "the anchor", 3), (elements + 7, "the momentum", 7)] {
        let mut infinite = bytes.clone();
        infinite[120 + 4 * element..][..4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
        let error = refused(&infinite);
        let words = format!("agreed state has -inf as element {index} of {list}, expected a finite number");
        assert_eq!(error.to_string(), words);
    }
    assert!(new.commit().is_err_and(|error| error.to_string().contains("nothing staged")), "it goes on");
    new.import_agreed(&bytes).expect("undamaged");

    let other = |settings: OuterConfig, layout: Layout| {
        let weights = noise(layout.elements(), 1);
        let mut outer = Outer::new(settings, layout, weights).expect("valid");
        outer.import_agreed(&bytes).expect_err("another run's").to_string()
    };
    let decayed = OuterConfig { error_decay: 0.5, ..settings.clone() };
    assert!(other(decayed, layout()).contains("given under settings of digest"));
    assert!(other(settings, Layout::new(&[vec![3, 4]])).contains("given under shapes of digest"));
}

#[test]
fn of_gradients_only_the_count_is_agreed() {
    let settings = OuterConfig { exchanged: Exchanged::Gradients, ..config(Rule::Mean, CodecKind::F32) };
    let mut outer = replica(&settings);
    outer.begin(0, noise(layout().elements(), 3));
    exchange(std::slice::from_mut(&mut outer), &[1]);
    let bytes = outer.export_agreed();
    assert_eq!(bytes.len(), 120);
    let mut new = replica(&settings);
    new.import_agreed(&bytes).expect("a replica of the same stage");
    assert_eq!((new.committed(), new.anchor().len()), (1, 0));
}

/// Without debts a replica contributes its own movement alone, whoever's state it began with.
#[test]
fn another_replicas_file_serves_once_its_debts_are_forgotten() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("outer.safetensors");
    for kind in KINDS {
        let settings = config(RAMPED, kind);
        let mut replicas = agreed(&settings, 2, 3);
        let labels = [("step".to_string(), "20".to_string())].into();
        replicas[0].save(&path, &labels).expect("the folder is writable");
        let debts = replicas[1].digests().owed;
        // Its own transaction was encoded with its own debts.
        let snapshot = moved(&replicas[1], 1, 3);
        replicas[1].begin(3, snapshot.clone());
        replicas[1].encode(&shares(2)).expect("finite");
        replicas[1].load(&path).expect("a replica of the same stage");
        assert_eq!(state(&replicas[1]), state(&replicas[0]), "{kind:?}: debts and all");
        replicas[1].forget_owed();
        assert!(
            replicas[1].owed().is_empty() && replicas[1].digests().weights == replicas[0].digests().weights
        );
        assert!(kind == CodecKind::F32 || debts != replicas[1].digests().owed);

        // From here it does, to the bit, what a newcomer does that was handed the agreed state.
        let mut new = newcomer(&settings);
        new.import_agreed(&replicas[0].export_agreed()).expect("a replica of the same stage");
        for outer in [&mut new, &mut replicas[1]] {
            outer.begin(3, snapshot.clone());
        }
        let contribution = replicas[1].encode(&shares(2)).expect("finite");
        assert!(new.encode(&shares(2)).expect("finite") == contribution, "{kind:?}");
        let snapshot = moved(&replicas[0], 0, 3);
        replicas[0].begin(3, snapshot);
        exchange(&mut replicas, &[1, 1]);
        assert!(replicas[0].export_agreed() == replicas[1].export_agreed(), "{kind:?}");
    }
}

#[test]
fn debts_cannot_be_forgotten_under_a_contribution() {
    let mut outer = agreed(&config(NESTEROV, CodecKind::Int8), 1, 1).remove(0);
    let snapshot = moved(&outer, 0, 1);
    outer.begin(1, snapshot);
    let contribution = outer.encode(&shares(1)).expect("finite");
    let results = reduce(&outer, &shares(1), &[1], &[contribution]);
    stage(&mut outer, &shares(1), &results);
    outer.forget_owed();
    assert!(outer.commit().is_err_and(|error| error.to_string().contains("has not begun")));
}

/// A replica of a stage: its engine, and its end of the outer steps.
struct Replica {
    engine: Engine,
    outer: Outer,
    layout: Layout,
}

fn engine_configs() -> Vec<EngineConfig> {
    let mut configs = Vec::new();
    for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
        for compute in [Dtype::F32, Dtype::Bf16] {
            let config = fixture::config(fixture::model(BoundaryForm::None, &[2]), kind);
            configs.push(EngineConfig { compute, ..config });
        }
    }
    configs
}

impl Replica {
    fn new(config: &EngineConfig) -> Replica {
        let engine = fixture::engine(config, 0..1);
        let layout = Layout::new(&engine.exchange_shapes());
        let weights = layout.gather(&engine.masters().expect("weights can be read"));
        let settings = OuterConfig { error_decay: 0.95, ..crate::swarm::config(RAMPED, CodecKind::Int8) };
        let outer = Outer::new(settings, layout.clone(), weights).expect("valid");
        Replica { engine, outer, layout }
    }

    fn train(&mut self, microbatch: u64) {
        let (tokens, targets) = fixture::sample(&self.engine.config().model, microbatch);
        let (input, targets) = (StageInput::Tokens(&tokens), Some(&targets[..]));
        self.engine.forward(microbatch, input, targets, Mode::Train).expect("the forward runs");
        self.engine.backward(microbatch, input, targets, None, Duty::Train).expect("the backward runs");
    }

    fn step(&mut self, microbatch: u64) {
        self.train(microbatch);
        self.engine.step(1).expect("a gradient is there");
    }

    fn begin(&mut self, outer: u64) {
        let weights = self.layout.gather(&self.engine.masters().expect("weights can be read"));
        self.outer.begin(outer, weights);
    }

    fn adopt(&mut self) {
        let weights = self.outer.adopt(None);
        self.engine.set_masters(&self.layout.scatter(&weights)).expect("they fit");
    }

    fn weights(&self) -> [u8; 32] {
        self.engine.weights_digest().expect("weights can be read")
    }

    fn moments(&self) -> Vec<u8> {
        self.engine.export_moments().expect("moments can be read")
    }
}

/// Takes replicas through one outer step and over to its weights.
fn agree(replicas: &mut [Replica], step: u64) {
    replicas.iter_mut().for_each(|replica| replica.begin(step));
    let shares = shares(replicas.len() as u32);
    let contributions: Vec<_> =
        replicas.iter_mut().map(|replica| replica.outer.encode(&shares).expect("finite")).collect();
    let weights = vec![1; replicas.len()];
    let results = reduce(&replicas[0].outer, &shares, &weights, &contributions);
    for replica in replicas {
        stage(&mut replica.outer, &shares, &results);
        replica.outer.commit().expect("staged");
        replica.adopt();
    }
}

#[test]
fn a_newcomer_steps_as_the_replica_that_gave_its_state() {
    for config in engine_configs() {
        let mut replicas = [Replica::new(&config), Replica::new(&config)];
        for step in 0..2 {
            for (index, replica) in (0..).zip(&mut replicas) {
                replica.step(10 * step + index);
                replica.step(10 * step + 2 + index);
            }
            agree(&mut replicas, step);
        }
        replicas[0].engine.idle().expect("no gradient waits");
        let [giver, other] = &mut replicas;
        assert_eq!(giver.weights(), other.weights());
        assert!(giver.moments() != other.moments(), "moments are each replica's own");

        let mut new = Replica::new(&EngineConfig { seed: 999, ..config.clone() });
        new.step(77);
        let old = new.moments();
        new.outer.import_agreed(&other.outer.export_agreed()).expect("a replica of the same stage");
        let weights = new.layout.scatter(new.outer.anchor());
        new.engine.set_masters(&weights).expect("they fit");
        assert_eq!(new.engine.import_moments(&giver.moments()).expect("the same optimizer"), 5);
        assert_eq!(new.engine.version(), 1, "where it enters is not the giver's to say");
        new.engine.set_version(giver.engine.version());
        assert!(new.weights() == giver.weights() && new.moments() == giver.moments());
        assert!(new.moments() != old);
        for step in 20..23 {
            for replica in [&mut new, &mut *giver] {
                replica.step(step);
            }
            assert_eq!(new.weights(), giver.weights(), "{config:?}");
        }
        assert!(new.moments() == giver.moments());
        for replica in [&mut *giver, &mut new] {
            replica.outer.forget_owed();
        }
        let mut pair = [giver, &mut new];
        pair.iter_mut().for_each(|replica| replica.begin(2));
        let sent: Vec<_> =
            pair.iter_mut().map(|replica| replica.outer.encode(&shares(2)).expect("finite")).collect();
        assert!(sent[0] == sent[1], "{config:?}");
    }
}

#[test]
fn moments_are_read_while_training_goes_on() {
    for config in engine_configs() {
        let (mut read, mut undisturbed) = (Replica::new(&config), Replica::new(&config));
        for replica in [&mut read, &mut undisturbed] {
            replica.step(0);
            replica.train(1);
        }
        let moments = read.moments();
        assert!(moments == undisturbed.moments());
        assert_eq!(moments.len() as u64, 128 + read.engine.memory().optimizer_bytes);
        for replica in [&mut read, &mut undisturbed] {
            replica.train(2);
            replica.engine.step(2).expect("a gradient is there");
        }
        assert_eq!(read.weights(), undisturbed.weights());
        assert!(read.moments() != moments);
    }
}

#[test]
fn malformed_moments_are_refused_and_change_nothing() {
    let configs = engine_configs();
    let mut giver = Replica::new(&configs[0]);
    giver.step(0);
    let bytes = giver.moments();
    let mut new = Replica::new(&configs[0]);
    new.step(1);
    let before = new.moments();
    let mut refused = |bytes: &[u8]| {
        let error = new.engine.import_moments(bytes).expect_err("it is malformed");
        assert!(error.hint().is_some() && new.moments() == before, "{error}");
        error
    };
    for length in (0..150).chain([bytes.len() - 4, bytes.len() - 1]) {
        assert!(matches!(refused(&bytes[..length]), HandoverError::Length { got, .. } if got == length));
    }
    assert!(matches!(refused(&[&bytes[..], &[0; 4]].concat()), HandoverError::Length { .. }));
    for bit in 0..8 * 128 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused(&flipped);
    }
    // The last list by name is a second moment, the first a first one.
    let last = bytes.len() - 4;
    for (start, value, words) in [
        (128, f32::NAN, "replica's own state has NaN as element 0 of adamw.first."),
        (last, -1.0, "expected a finite number that is not negative"),
    ] {
        let mut bad = bytes.clone();
        bad[start..][..4].copy_from_slice(&f32::to_le_bytes(value));
        let error = refused(&bad);
        assert!(error.to_string().contains(words), "{error}");
    }
    let agreed = giver.outer.export_agreed();
    assert!(matches!(refused(&agreed), HandoverError::Magic { .. }));
    assert!(matches!(giver.outer.import_agreed(&bytes), Err(HandoverError::Magic { .. })));

    let muon = Replica::new(&configs[2]).moments();
    assert!(refused(&muon).to_string().contains("given under settings of digest"));
    let slower = OptimizerConfig { learning_rate: 1e-3, ..configs[0].optimizer.clone() };
    let slower = Replica::new(&EngineConfig { optimizer: slower, ..configs[0].clone() }).moments();
    assert!(refused(&slower).to_string().contains("given under settings of digest"));
    let deeper = fixture::config(fixture::model(BoundaryForm::None, &[3]), OptimizerKind::AdamW);
    let deeper = Replica::new(&deeper).moments();
    assert!(refused(&deeper).to_string().contains("given under shapes of digest"));
    new.engine.import_moments(&bytes).expect("undamaged");
}
