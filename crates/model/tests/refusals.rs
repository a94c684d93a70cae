//! What a caller may hand over wrongly: each is a named error with a hint, and the engine goes on.

mod fixture;

use trestle_model::config::{BoundaryForm, ConfigError, Dtype, ModelConfig};
use trestle_model::engine::{Engine, EngineConfig};
use trestle_model::error::ModelError;
use trestle_model::input::{Duty, InputError, Mode, StageInput};
use trestle_model::optimizer::config::OptimizerKind;

use fixture::{boundary, config, engine, model, sample};

fn refused<T: std::fmt::Debug>(result: Result<T, ModelError>) -> InputError {
    let error = result.expect_err("must be refused");
    let ModelError::Input(error) = error else { panic!("expected an input error, got: {error}") };
    assert!(!error.hint().is_empty());
    error
}

fn pair() -> (EngineConfig, Engine, Engine) {
    let config = config(model(BoundaryForm::Resbm, &[1, 1]), OptimizerKind::AdamW);
    let (first, last) = (engine(&config, 0..1), engine(&config, 1..2));
    (config, first, last)
}

#[test]
fn wrong_input_is_refused() {
    let (config, mut first, mut last) = pair();
    let (mut tokens, targets) = sample(&config.model, 0);
    let mut forward = |tokens: &[u32]| first.forward(4, StageInput::Tokens(tokens), None, Mode::Train);
    let error = refused(forward(&tokens[1..]));
    assert_eq!(error.to_string(), "microbatch 4 has 31 tokens, expected 32");
    tokens[3] = 61;
    let error = refused(forward(&tokens));
    assert_eq!(error.to_string(), "microbatch 4 has token 61 among its tokens, expected below 61");
    tokens[3] = 60;
    let bytes = boundary(forward(&tokens).expect("60 is the last token"));

    let error = refused(first.forward(4, StageInput::Boundary(&bytes), None, Mode::Train));
    assert_eq!(error.to_string(), "stage 0 was handed a boundary, expected tokens");
    let error = refused(last.forward(4, StageInput::Tokens(&tokens), Some(&targets), Mode::Train));
    assert_eq!(error.to_string(), "stage 1 was handed tokens, expected a boundary");
    let error = refused(last.forward(4, StageInput::Boundary(&bytes[4..]), Some(&targets), Mode::Train));
    assert_eq!(error.to_string(), "microbatch 4 has 1020 boundary bytes, expected 1024");
    let error = refused(last.forward(4, StageInput::Boundary(&bytes), None, Mode::Train));
    assert_eq!(error.to_string(), "microbatch 4 lacks its targets, which stage 1 needs");
    let error = refused(last.forward(4, StageInput::Boundary(&bytes), Some(&targets[..5]), Mode::Train));
    assert_eq!(error.to_string(), "microbatch 4 has 5 targets, expected 32");
    assert_eq!(last.memory().graphs, 0);
}

#[test]
fn a_wrong_gradient_is_refused_and_the_graph_stays() {
    let (config, mut first, _) = pair();
    let (tokens, _) = sample(&config.model, 0);
    let input = StageInput::Tokens(&tokens);
    let bytes = boundary(first.forward(4, input, None, Mode::Train).expect("the forward runs"));
    let error = refused(first.backward(4, input, None, None, Duty::Train));
    assert_eq!(error.to_string(), "microbatch 4 lacks its gradient, which stage 0 needs");
    let error = refused(first.backward(4, input, None, Some(&bytes[..8]), Duty::Train));
    assert_eq!(error.to_string(), "microbatch 4 has 8 gradient bytes, expected 1024");
    let mut infinite = bytes.clone();
    infinite[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let error = first.backward(4, input, None, Some(&infinite), Duty::Train).expect_err("must be refused");
    assert!(matches!(error, ModelError::Codec(_)), "{error}");
    assert_eq!(first.memory().graphs, 1);
    assert_eq!(first.memory().gradient_bytes, 0);
    first.backward(4, input, None, Some(&bytes), Duty::Train).expect("a good gradient is still welcome");
    assert_eq!(first.memory().graphs, 0);
}

#[test]
fn a_step_needs_a_gradient() {
    let (_, mut first, _) = pair();
    assert_eq!(refused(first.step(1)), InputError::NoGradient { version: 0 });
    assert_eq!(refused(first.step(0)), InputError::NoMicrobatches { version: 0 });
    assert_eq!(first.version(), 0);
}

#[test]
fn a_step_without_finite_gradient_changes_nothing() {
    let (config, mut first, _) = pair();
    let (tokens, _) = sample(&config.model, 0);
    let input = StageInput::Tokens(&tokens);
    let before = first.weights_digest().expect("weights can be read");
    // Finite numbers whose products overflow f32.
    let huge: Vec<u8> = std::iter::repeat_n(f32::MAX.to_le_bytes(), 256).flatten().collect();
    first.backward(0, input, None, Some(&huge), Duty::Train).expect("the gradient itself is finite");
    let error = first.step(1).expect_err("the norm is infinite");
    assert!(matches!(error, ModelError::GradientNotFinite { stage: 0, .. }), "{error}");
    assert_eq!(first.weights_digest().expect("weights can be read"), before);
    assert_eq!((first.version(), first.memory().gradient_bytes), (0, 0));
}

#[test]
fn only_a_whole_model_generates() {
    let (config, mut first, _) = pair();
    assert_eq!(refused(first.generate(&[1], 1, 1.0, 0)), InputError::NotWhole { held: 1, stages: 2 });
    let mut whole = engine(&config, 0..2);
    assert_eq!(refused(whole.generate(&[], 1, 1.0, 0)), InputError::EmptyPrompt);
    assert!(matches!(refused(whole.generate(&[61], 1, 1.0, 0)), InputError::Token { token: 61, .. }));
    for temperature in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(refused(whole.generate(&[1], 1, temperature, 0)), InputError::Temperature { .. }));
    }
}

#[test]
fn impossible_engines_are_refused() {
    let (config, _, _) = pair();
    let build = |held, microbatch_size| Engine::new(EngineConfig { held, microbatch_size, ..config.clone() });
    assert_eq!(refused(build(1..1, 1)), InputError::Held { first: 1, end: 1, stages: 2 });
    assert_eq!(refused(build(1..3, 1)), InputError::Held { first: 1, end: 3, stages: 2 });
    assert_eq!(refused(build(0..2, 0)), InputError::EmptyMicrobatch);
}

#[test]
fn a_model_that_cannot_be_names_its_field() {
    type Spoil = fn(&mut ModelConfig);
    let cases: [(Spoil, &str); 12] = [
        (|c| c.vocabulary = 1, "vocabulary is 1, expected 2 to 16777216"),
        (|c| c.width = 33, "width is 33, which is not a multiple of heads (4)"),
        (|c| c.heads = 0, "heads is 0, expected 1 to 32"),
        (|c| c.kv_heads = 3, "heads is 4, which is not a multiple of kv_heads (3)"),
        (|c| c.heads = 32, "width / heads is 1, expected an even number"),
        (|c| c.layers = 3, "stage_layers sums to 2, expected layers = 3"),
        (|c| c.stage_layers = vec![2, 0], "stage_layers' entry is 0, expected 1 to 2"),
        (|c| c.stage_layers = vec![], "stage_layers' length is 0, expected 1 to 2"),
        (|c| c.boundary_width = 33, "boundary_width is 33, expected 1 to 32"),
        (|c| c.boundary = BoundaryForm::None, "boundary_width is 8 with boundary none, expected width = 32"),
        (|c| c.rope_theta = f64::NAN, "rope_theta is NaN, expected a positive finite number"),
        (|c| c.sequence_len = usize::MAX, "sequence_len is 18446744073709551615, expected 1 to 16777216"),
    ];
    let good = model(BoundaryForm::Resbm, &[1, 1]);
    assert_eq!(good.validate(), Ok(()));
    for (spoil, words) in cases {
        let mut bad = good.clone();
        spoil(&mut bad);
        let error: ConfigError = bad.validate().expect_err(words);
        assert_eq!(error.to_string(), words);
        assert!(!error.hint().is_empty());
        let config = EngineConfig { model: bad, held: 0..1, ..config(good.clone(), OptimizerKind::AdamW) };
        assert!(matches!(Engine::new(config), Err(ModelError::Config(_))));
    }
}

#[test]
fn memory_is_the_sum_of_its_parts() {
    let (config, first, _) = pair();
    let count = config.model.stage_parameters(0);
    let memory = first.memory();
    assert_eq!((memory.weight_bytes, memory.leaf_bytes, memory.gradient_bytes), (4 * count, 0, 0));
    assert_eq!(memory.optimizer_bytes, 8 * count);
    let mut narrow = engine(&EngineConfig { compute: Dtype::Bf16, ..config.clone() }, 0..2);
    let (tokens, targets) = sample(&config.model, 0);
    narrow
        .backward(0, StageInput::Tokens(&tokens), Some(&targets), None, Duty::Train)
        .expect("the backward runs");
    let memory = narrow.memory();
    assert_eq!(memory.leaf_bytes, 2 * config.model.parameters());
    assert_eq!(memory.gradient_bytes, 4 * config.model.parameters());
}
