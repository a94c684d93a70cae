//! A microbatch that some stages only pass on, steps without a microbatch, and entering at a later step.

mod fixture;

use std::collections::BTreeMap;
use std::ops::Range;

use trestle_model::config::{BoundaryForm, Dtype, Retain};
use trestle_model::engine::{Engine, EngineConfig};
use trestle_model::error::ModelError;
use trestle_model::input::{Duty, InputError, StageInput};
use trestle_model::optimizer::config::OptimizerKind;

use fixture::{Line, config, engine, model, sample};

const CUTS: [Range<usize>; 3] = [0..1, 1..2, 2..3];

/// Both optimizers' boundaries, formats and ways to keep a forward.
fn configs() -> Vec<EngineConfig> {
    let mut configs = Vec::new();
    for boundary in [BoundaryForm::None, BoundaryForm::Resbm, BoundaryForm::Fused] {
        for compute in [Dtype::F32, Dtype::Bf16] {
            for retain in [Retain::Graph, Retain::Input] {
                let config = config(model(boundary, &[1, 1, 1]), OptimizerKind::AdamW);
                configs.push(EngineConfig { compute, retain, ..config });
            }
        }
    }
    configs
}

/// The bits of all sums, by name.
fn sums(line: &Line) -> BTreeMap<String, Vec<u32>> {
    let bits = |sums: Vec<f32>| sums.iter().map(|sum| sum.to_bits()).collect();
    line.gradients().into_iter().map(|(name, sums)| (name, bits(sums))).collect()
}

fn digests(line: &Line) -> Vec<[u8; 32]> {
    line.engines.iter().map(|engine| engine.weights_digest().expect("weights can be read")).collect()
}

fn train(line: &mut Line, microbatch: u64) {
    line.forward_all(microbatch);
    line.backward_all(microbatch);
}

fn step(engine: &mut Engine) {
    engine.step(1).expect("a gradient is there");
}

#[test]
fn a_ghost_returns_the_same_gradient_and_leaves_the_sums() {
    for config in configs() {
        let (mut line, mut undisturbed) = (Line::new(&config, &CUTS), Line::new(&config, &CUTS));
        for line in [&mut line, &mut undisturbed] {
            train(line, 0);
        }
        let before = sums(&line);
        line.forward_all(1);
        let ghost = line.backward_with(1, |_| Duty::Ghost);
        assert_eq!(sums(&line), before, "{config:?}");
        undisturbed.forward_all(1);
        let counted = undisturbed.backward_all(1);
        assert!(ghost.len() == 2 && ghost == counted, "{config:?}");
        assert_ne!(sums(&undisturbed), before, "{config:?}");
        assert!(line.engines.iter().all(|engine| engine.memory().graphs == 0));
    }
}

#[test]
fn a_ghost_before_any_gradient_leaves_none() {
    for config in configs() {
        let mut line = Line::new(&config, &CUTS);
        line.forward_all(0);
        line.backward_with(0, |_| Duty::Ghost);
        for engine in &mut line.engines {
            assert_eq!(engine.memory().gradient_bytes, 0);
            let refused = engine.step(1).expect_err("no gradient");
            assert!(matches!(refused, ModelError::Input(InputError::NoGradient { version: 0 })), "{refused}");
        }
    }
}

#[test]
fn steps_after_a_ghost_are_those_without_it() {
    for config in configs() {
        let (mut line, mut undisturbed) = (Line::new(&config, &CUTS), Line::new(&config, &CUTS));
        for microbatch in 0..3 {
            // The microbatch of the ghost is under way before, beside and after the one that counts.
            line.forward_all(100 + microbatch);
            line.forward_all(microbatch);
            line.backward_with(100 + microbatch, |_| Duty::Ghost);
            line.backward_all(microbatch);
            train(&mut undisturbed, microbatch);
            line.step(1);
            undisturbed.step(1);
        }
        assert_eq!(digests(&line), digests(&undisturbed), "{config:?}");
    }
}

/// The loss of one replica: its stage trains the microbatch anew, the others only carry it there and back.
#[test]
fn one_stage_trains_what_the_others_pass_on() {
    for config in configs() {
        let (mut line, mut whole) = (Line::new(&config, &CUTS), Line::new(&config, &CUTS));
        line.forward_all(7);
        line.backward_with(7, |index| if index == 1 { Duty::Train } else { Duty::Ghost });
        train(&mut whole, 7);
        let (found, wanted) = (sums(&line), sums(&whole));
        let names: Vec<&String> = found.keys().collect();
        assert_eq!(names, whole.engines[1].shapes().keys().collect::<Vec<_>>());
        assert!(found.iter().all(|(name, sum)| *sum == wanted[name]), "{config:?}");
    }
}

#[test]
fn a_ghost_at_the_first_stage_only_forgets_the_graph() {
    let mut first = engine(&config(model(BoundaryForm::Resbm, &[1, 1]), OptimizerKind::AdamW), 0..1);
    let (tokens, _) = sample(&first.config().model.clone(), 0);
    let input = StageInput::Tokens(&tokens);
    first.forward(0, input, None, trestle_model::input::Mode::Train).expect("the forward runs");
    assert_eq!(first.memory().graphs, 1);
    assert_eq!(first.backward(0, input, None, None, Duty::Ghost).expect("nothing to refuse"), None);
    assert_eq!((first.memory().graphs, first.memory().gradient_bytes), (0, 0));
}

#[test]
fn a_ghost_checks_the_gradient_it_passes_on() {
    let mut middle = engine(&config(model(BoundaryForm::Resbm, &[1, 1, 1]), OptimizerKind::AdamW), 1..2);
    let bytes = vec![0; 1024];
    let input = StageInput::Boundary(&bytes);
    for (gradient, words) in [(None, "lacks its gradient"), (Some(&bytes[..8]), "has 8 gradient bytes")] {
        let error = middle.backward(0, input, None, gradient, Duty::Ghost).expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn an_idle_step_moves_the_schedule_and_nothing_else() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
        let config = config(model(BoundaryForm::None, &[1]), kind);
        let factor = |version| config.schedule.factor(version);
        let (mut idled, mut entered) = (Line::whole(&config), Line::whole(&config));
        train(&mut idled, 0);
        idled.step(1);
        let own = || idled.engines[0].export_moments().expect("moments can be read");
        let before = (digests(&idled), own());
        let report = idled.engines[0].idle().expect("no gradient waits");
        assert_eq!((report.version, report.gradient_norm), (2, 0.0));
        assert_eq!(report.learning_rate, 1e-2 * factor(1));
        assert_eq!(idled.engines[0].version(), 2);
        // The blob names the version, and is otherwise the same.
        idled.engines[0].set_version(1);
        assert!((digests(&idled), idled.engines[0].export_moments().expect("moments can be read")) == before);
        idled.engines[0].set_version(2);
        train(&mut idled, 1);
        assert_eq!(idled.step(1)[0].learning_rate, 1e-2 * factor(2));

        // The same as to be at that version for another reason.
        train(&mut entered, 0);
        entered.step(1);
        entered.engines[0].set_version(2);
        train(&mut entered, 1);
        entered.step(1);
        assert_eq!(digests(&idled), digests(&entered), "{kind:?}");
    }
}

#[test]
fn a_step_with_gradients_cannot_be_idle() {
    let mut line = Line::whole(&config(model(BoundaryForm::None, &[1]), OptimizerKind::AdamW));
    train(&mut line, 0);
    let before = (digests(&line), sums(&line));
    let error = line.engines[0].idle().expect_err("a gradient waits");
    assert_eq!(error.to_string(), "step 0 cannot be passed idle: a backward has run since the last step");
    assert!(error.hint().is_some());
    assert_eq!(((digests(&line), sums(&line)), line.engines[0].version()), (before, 0));
    step(&mut line.engines[0]);
    assert_eq!(line.engines[0].idle().expect("the gradient is spent").version, 2);
}

/// A version says nothing of whose memory a graph reads: an idle step, an entry or exchanged weights come in between.
#[test]
fn a_graph_in_flight_over_an_idle_step_keeps_its_weights() {
    type Between = fn(&mut Engine);
    let between: [(&str, Between); 3] = [
        ("an idle step", |engine| {
            engine.idle().expect("no gradient waits");
        }),
        ("an entry", |engine| engine.set_version(40)),
        ("other weights, then a step back", |engine| {
            let masters = engine.masters().expect("weights can be read");
            engine.set_masters(&masters).expect("they fit");
            engine.set_version(0);
        }),
    ];
    for compute in [Dtype::F32, Dtype::Bf16] {
        let config =
            EngineConfig { compute, ..config(model(BoundaryForm::None, &[1]), OptimizerKind::AdamW) };
        for (what, between) in between {
            let (mut line, mut still) = (Line::whole(&config), Line::whole(&config));
            line.forward_all(5);
            between(&mut line.engines[0]);
            train(&mut line, 0);
            step(&mut line.engines[0]);
            assert!(line.engines[0].memory().stale_bytes > 0, "{what} {compute:?}");
            line.backward_all(5);
            train(&mut still, 5);
            assert_eq!(sums(&line), sums(&still), "{what} {compute:?}");
        }
    }
}
