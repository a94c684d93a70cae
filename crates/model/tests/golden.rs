//! Cut into engines with bytes between them, the model computes what it computes in one piece, to the bit.

mod fixture;

use trestle_model::config::{BoundaryForm, Dtype, Retain};
use trestle_model::engine::EngineConfig;
use trestle_model::input::{Mode, StageInput};
use trestle_model::optimizer::config::OptimizerKind;

use fixture::{Line, boundary, config, engine, loss, model, sample};

const FORMS: [BoundaryForm; 3] = [BoundaryForm::None, BoundaryForm::Resbm, BoundaryForm::Fused];
const STEPS: u64 = 4;

/// Every engine takes microbatch 1 before any takes it to the next stage, and the backwards run in the other order.
fn train(line: &mut Line, steps: u64) -> Vec<u32> {
    let mut losses = Vec::new();
    for step in 0..steps {
        let microbatches = [2 * step, 2 * step + 1];
        for index in 0..line.engines.len() {
            for microbatch in microbatches {
                losses.extend(line.forward(index, microbatch).map(f32::to_bits));
            }
        }
        for microbatch in microbatches.into_iter().rev() {
            line.backward_all(microbatch);
        }
        line.step(2);
    }
    losses
}

fn assert_same(one: &Line, other: &Line, what: &str) {
    let (one, other) = (one.weights(), other.weights());
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "{what}");
    for (name, numbers) in &one {
        let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(numbers) == bits(&other[name]), "{what}: {name} differs");
    }
}

#[test]
fn four_engines_equal_one_to_the_bit() {
    for form in FORMS {
        for wire in [Dtype::F32, Dtype::Bf16] {
            for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
                for compute in [Dtype::F32, Dtype::Bf16] {
                    let what = format!("{form:?} {wire:?} {kind:?} compute {compute:?}");
                    let mut model = model(form, &[1, 2, 1, 1]);
                    model.wire = wire;
                    let config = EngineConfig { compute, ..config(model, kind) };
                    let mut whole = Line::whole(&config);
                    let mut halves = Line::new(&config, &[0..1, 1..3, 3..4]);
                    let mut split = Line::new(&config, &[0..1, 1..2, 2..3, 3..4]);
                    assert_same(&whole, &split, &format!("{what} at the start"));
                    let losses = train(&mut whole, STEPS);
                    assert_eq!(losses.len(), 2 * STEPS as usize);
                    assert!(losses.iter().all(|&bits| f32::from_bits(bits).is_finite()));
                    assert_eq!(losses, train(&mut split, STEPS), "{what}");
                    assert_eq!(losses, train(&mut halves, STEPS), "{what}");
                    assert_same(&whole, &split, &what);
                    assert_same(&whole, &halves, &what);
                }
            }
        }
    }
}

#[test]
fn boundary_none_equals_the_dense_model() {
    let cut = config(model(BoundaryForm::None, &[1, 2, 1]), OptimizerKind::AdamW);
    let mut dense_model = cut.model.clone();
    dense_model.stage_layers = vec![4];
    // Clipping goes by stage, and the dense model is one stage.
    let cut = EngineConfig { clip: None, ..cut };
    let dense = EngineConfig { model: dense_model, held: 0..1, ..cut.clone() };
    let (mut cut, mut dense) = (Line::new(&cut, &[0..1, 1..2, 2..3]), Line::whole(&dense));
    assert_eq!(train(&mut cut, STEPS), train(&mut dense, STEPS));
    assert_same(&cut, &dense, "after training");
}

#[test]
fn recomputing_equals_keeping_the_graph() {
    for form in FORMS {
        let keep = config(model(form, &[1, 1, 2]), OptimizerKind::AdamW);
        let recompute = EngineConfig { retain: Retain::Input, ..keep.clone() };
        let cuts = [0..1, 1..2, 2..3];
        let (mut keep, mut recompute) = (Line::new(&keep, &cuts), Line::new(&recompute, &cuts));
        assert_eq!(train(&mut keep, STEPS), train(&mut recompute, STEPS), "{form:?}");
        assert_same(&keep, &recompute, &format!("{form:?}"));
        recompute.forward_all(100);
        let graphs: Vec<usize> = recompute.engines.iter().map(|engine| engine.memory().graphs).collect();
        assert_eq!(graphs, [0, 0, 1], "only the loss keeps its latest graph");
    }
}

#[test]
fn a_step_leaves_the_graphs_in_flight_their_weights() {
    for compute in [Dtype::F32, Dtype::Bf16] {
        let config =
            EngineConfig { compute, ..config(model(BoundaryForm::Resbm, &[1, 1]), OptimizerKind::AdamW) };
        let cuts = [0..1, 1..2];
        // The yardstick never steps: its gradient of microbatch 7 is that of the first weights.
        let mut still = Line::new(&config, &cuts);
        still.forward_all(7);
        still.backward_all(7);

        let mut line = Line::new(&config, &cuts);
        line.forward_all(7);
        line.forward_all(1);
        line.backward_all(1);
        line.step(1);
        let memory = line.engines[0].memory();
        assert_eq!(memory.graphs, 1);
        assert_eq!(memory.stale_bytes, memory.weight_bytes / if compute == Dtype::F32 { 1 } else { 2 });
        line.forward_all(2);
        line.backward_all(2);
        line.step(1);
        assert_ne!(still.weights(), line.weights());
        line.backward_all(7);
        assert_eq!(still.gradients(), line.gradients(), "{compute:?}");
        assert_eq!(line.engines[0].memory().graphs, 0);
        assert_eq!(line.engines[0].memory().stale_bytes, 0);
    }
}

#[test]
fn steps_with_graphs_in_flight_move_the_weights_as_steps_without() {
    let config = config(model(BoundaryForm::Fused, &[1, 1]), OptimizerKind::Muon);
    let cuts = [0..1, 1..2];
    let (mut alone, mut beside) = (Line::new(&config, &cuts), Line::new(&config, &cuts));
    beside.forward_all(50);
    assert_eq!(train(&mut alone, STEPS), train(&mut beside, STEPS));
    assert_same(&alone, &beside, "a graph in flight");
}

#[test]
fn a_lost_graph_is_built_again() {
    let config = config(model(BoundaryForm::Resbm, &[1, 1]), OptimizerKind::AdamW);
    let cuts = [0..1, 1..2];
    let (mut kept, mut lost) = (Line::new(&config, &cuts), Line::new(&config, &cuts));
    for line in [&mut kept, &mut lost] {
        line.forward_all(3);
    }
    lost.engines.iter_mut().for_each(|engine| engine.discard(3));
    assert_eq!(lost.engines[0].memory().graphs, 0);
    assert_eq!(kept.backward_all(3), lost.backward_all(3));
    assert_eq!(kept.gradients(), lost.gradients());
}

#[test]
fn a_message_is_as_long_as_planned() {
    for (wire, bytes) in [(Dtype::F32, 4), (Dtype::Bf16, 2)] {
        let mut model = model(BoundaryForm::Resbm, &[1, 1]);
        model.wire = wire;
        let config = config(model, OptimizerKind::AdamW);
        let mut first = engine(&config, 0..1);
        let (tokens, _) = sample(&config.model, 0);
        let sent =
            first.forward(0, StageInput::Tokens(&tokens), None, Mode::Train).expect("the forward runs");
        let sent = boundary(sent);
        assert_eq!(sent.len(), 2 * 16 * 8 * bytes);
        assert_eq!(sent.len(), config.model.boundary_bytes(config.microbatch_size));
    }
}

#[test]
fn evaluation_keeps_nothing_and_changes_nothing() {
    let config = config(model(BoundaryForm::Fused, &[1, 1]), OptimizerKind::AdamW);
    let mut whole = engine(&config, 0..2);
    let (tokens, targets) = sample(&config.model, 0);
    let mut run = |mode| {
        loss(whole.forward(0, StageInput::Tokens(&tokens), Some(&targets), mode).expect("the forward runs"))
    };
    let evaluated = run(Mode::Evaluate);
    assert_eq!(evaluated.to_bits(), run(Mode::Train).to_bits());
    assert_eq!(evaluated.to_bits(), run(Mode::Evaluate).to_bits());
    assert_eq!(whole.memory().graphs, 1, "the graph of the training forward stays");
    let mut fresh = engine(&config, 0..2);
    fresh.forward(0, StageInput::Tokens(&tokens), Some(&targets), Mode::Evaluate).expect("the forward runs");
    assert_eq!(fresh.memory().graphs, 0);
    assert_eq!(fresh.memory().gradient_bytes, 0);
}

#[test]
fn training_learns_and_generation_repeats() {
    for form in FORMS {
        let config = EngineConfig { clip: None, ..config(model(form, &[1, 1, 1]), OptimizerKind::AdamW) };
        let mut line = Line::whole(&config);
        let first = line.forward_all(0);
        line.engines[0].discard(0);
        for step in 0..40 {
            line.forward_all(step);
            line.backward_all(step);
            line.step(1);
        }
        let last = line.forward_all(1_000);
        assert!(last < first - 0.5, "{form:?}: {first} to {last}");
        let engine = &mut line.engines[0];
        let texts: Vec<Vec<u32>> = [1, 1, 2]
            .into_iter()
            .map(|seed| engine.generate(&[1, 2, 3], 30, 0.9, seed).expect("the whole model is held"))
            .collect();
        assert_eq!(texts[0].len(), 30);
        assert_eq!(texts[0], texts[1]);
        assert_ne!(texts[0], texts[2]);
    }
}

#[test]
fn an_engine_moves_to_a_compute_thread() {
    let config = config(model(BoundaryForm::Resbm, &[1, 1]), OptimizerKind::AdamW);
    let mut here = Line::whole(&config);
    let mut line = Line::whole(&config);
    let there = std::thread::spawn(move || train(&mut line, STEPS)).join().expect("the thread ends well");
    assert_eq!(train(&mut here, STEPS), there);
}
