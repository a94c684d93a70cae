//! Engines that exchange: weights out and back, and gradients averaged over replicas.

use trestle_model::config::BoundaryForm;
use trestle_model::engine::{Engine, EngineConfig};
use trestle_model::input::{Duty, Mode, StageInput};
use trestle_model::optimizer::config::OptimizerKind;
use trestle_model::outer::{CodecKind, Exchanged, Layout, Outer, OuterConfig, Rule};

use crate::fixture;
use crate::swarm::exchange;

fn settings() -> EngineConfig {
    fixture::config(fixture::model(BoundaryForm::None, &[2]), OptimizerKind::AdamW)
}

fn whole() -> Engine {
    fixture::engine(&settings(), 0..1)
}

fn forward(engine: &mut Engine, microbatch: u64) {
    let (tokens, targets) = fixture::sample(&settings().model, microbatch);
    let output = engine.forward(microbatch, StageInput::Tokens(&tokens), Some(&targets), Mode::Train);
    fixture::loss(output.expect("the forward runs"));
}

fn backward(engine: &mut Engine, microbatch: u64) {
    let (tokens, targets) = fixture::sample(&settings().model, microbatch);
    engine
        .backward(microbatch, StageInput::Tokens(&tokens), Some(&targets), None, Duty::Train)
        .expect("the backward runs");
}

fn train(engine: &mut Engine, microbatch: u64) {
    forward(engine, microbatch);
    backward(engine, microbatch);
}

fn assert_close(ours: &[Vec<f32>], theirs: &[Vec<f32>], tolerance: f32) {
    for (tensor, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let largest = theirs.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        for (ours, theirs) in ours.iter().zip(theirs) {
            let error = (ours - theirs).abs() / largest;
            assert!(error <= tolerance, "tensor {tensor}: {ours}, expected {theirs}: {error:e}");
        }
    }
}

#[test]
fn weights_that_leave_and_return_change_nothing() {
    for compute in [trestle_model::config::Dtype::F32, trestle_model::config::Dtype::Bf16] {
        let config = EngineConfig { compute, ..settings() };
        let mut engines = [0, 1].map(|_| fixture::engine(&config, 0..1));
        for step in 0..3 {
            for engine in &mut engines {
                train(engine, step);
            }
            let [first, second] = &mut engines;
            let masters = first.masters().expect("read");
            let layout = Layout::new(&first.exchange_shapes());
            let returned = layout.scatter(&layout.gather(&masters));
            assert!(returned == masters);
            first.set_masters(&returned).expect("they fit");
            first.step(1).expect("a gradient is there");
            second.step(1).expect("a gradient is there");
            assert_eq!(first.weights_digest().expect("read"), second.weights_digest().expect("read"));
        }
    }
}

#[test]
fn a_graph_in_flight_keeps_the_weights_of_its_forward() {
    let [mut disturbed, mut undisturbed] = [0, 1].map(|_| whole());
    let other: Vec<Vec<f32>> = whole()
        .masters()
        .expect("read")
        .into_iter()
        .map(|tensor| tensor.iter().map(|weight| weight * 1.5 + 0.01).collect())
        .collect();
    forward(&mut disturbed, 0);
    forward(&mut undisturbed, 0);
    disturbed.set_masters(&other).expect("they fit");
    assert!(disturbed.masters().expect("read") == other);
    backward(&mut disturbed, 0);
    backward(&mut undisturbed, 0);
    assert!(disturbed.gradient_mean(1).expect("there") == undisturbed.gradient_mean(1).expect("there"));
    // The next forward reads the new weights.
    disturbed.step(1).expect("a gradient is there");
    undisturbed.step(1).expect("a gradient is there");
    let gradient = |engine: &mut Engine| {
        train(engine, 1);
        engine.gradient_mean(1).expect("there")
    };
    assert!(gradient(&mut disturbed) != gradient(&mut undisturbed));
}

#[test]
fn a_mean_gradient_that_leaves_and_returns_is_the_one_of_the_step() {
    for microbatches in [1, 2, 3, 4] {
        let [mut direct, mut exchanged] = [0, 1].map(|_| whole());
        for engine in [&mut direct, &mut exchanged] {
            (0..u64::from(microbatches)).for_each(|microbatch| train(engine, microbatch));
        }
        let mean = exchanged.gradient_mean(microbatches).expect("there");
        exchanged.set_gradient_mean(&mean, microbatches).expect("it fits");
        let report = exchanged.step(microbatches).expect("a gradient is there");
        let wanted = direct.step(microbatches).expect("a gradient is there");
        assert!((report.gradient_norm - wanted.gradient_norm).abs() < 1e-6 * wanted.gradient_norm);
        let (ours, theirs) = (exchanged.masters().expect("read"), direct.masters().expect("read"));
        if microbatches.is_power_of_two() {
            assert!(ours == theirs);
        }
        assert_close(&ours, &theirs, 1e-6);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut engine = whole();
    let words = engine.gradient_mean(1).expect_err("no backward").to_string();
    assert!(words.contains("step 0 has no gradient"), "{words}");
    train(&mut engine, 0);
    let before = (engine.weights_digest().expect("read"), engine.gradient_mean(1).expect("there"));
    let mut short = engine.masters().expect("read");
    short.pop();
    let mut narrow = engine.masters().expect("read");
    narrow[1].pop();
    for (list, words) in [(short, "tensors, expected"), (narrow, "has shape")] {
        let error = engine.set_masters(&list).expect_err("it does not fit").to_string();
        assert!(error.starts_with("exchanged weights") && error.contains(words), "{error}");
        let error = engine.set_gradient_mean(&list, 1).expect_err("it does not fit").to_string();
        assert!(error.starts_with("the exchanged gradient") && error.contains(words), "{error}");
    }
    let gradient = engine.gradient_mean(1).expect("there");
    assert!(engine.set_gradient_mean(&gradient, 0).is_err());
    assert!(engine.gradient_mean(0).is_err());
    assert!((engine.weights_digest().expect("read"), gradient) == before);
}

#[test]
fn two_engines_that_average_gradients_equal_one_with_both_microbatches() {
    let mut single = whole();
    let mut pair = [0, 1].map(|_| whole());
    let layout = Layout::new(&single.exchange_shapes());
    let config = OuterConfig {
        rule: Rule::Mean,
        codec: CodecKind::F32,
        exchanged: Exchanged::Gradients,
        error_decay: 1.0,
    };
    let mut outers = [0, 1].map(|_| Outer::new(config.clone(), layout.clone(), Vec::new()).expect("valid"));
    let steps = 6;
    for step in 0..steps {
        train(&mut single, 2 * step);
        train(&mut single, 2 * step + 1);
        single.step(2).expect("a gradient is there");
        for (index, (engine, outer)) in (0..).zip(pair.iter_mut().zip(&mut outers)) {
            train(engine, 2 * step + index);
            outer.begin(step, layout.gather(&engine.gradient_mean(1).expect("there")));
        }
        exchange(&mut outers, &[1, 1]);
        for (engine, outer) in pair.iter_mut().zip(&mut outers) {
            engine.set_gradient_mean(&layout.scatter(&outer.adopt(None)), 1).expect("it fits");
            engine.step(1).expect("a gradient is there");
        }
        let [first, second] = &pair;
        assert_eq!(first.weights_digest().expect("read"), second.weights_digest().expect("read"));
    }
    assert_close(&pair[0].masters().expect("read"), &single.masters().expect("read"), 1e-6);
    assert!(single.masters().expect("read") != whole().masters().expect("read"));
}
