//! The crate against PyTorch: `parity/reference.py` is the same model written a second time, in plain PyTorch, and must
//! agree in f32 within 1e-5 of each tensor's largest number.

mod fixture;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as SavedDtype, TensorView};
use trestle_model::config::{BoundaryForm, ModelConfig};
use trestle_model::engine::EngineConfig;
use trestle_model::input::{Mode, StageInput};
use trestle_model::optimizer::config::OptimizerKind;

use fixture::{Line, MICROBATCH_SIZE, config, loss, model, sample};

const TOLERANCE: f64 = 1e-5;
const STEPS: u64 = 4;
const MICROBATCHES: u32 = 2;

/// Tensors by name: shape and numbers in little-endian bytes.
#[derive(Default)]
struct Tensors(BTreeMap<String, (SavedDtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn add_f32(&mut self, name: String, shape: &[usize], numbers: &[f32]) {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.0.insert(name, (SavedDtype::F32, shape.to_vec(), bytes));
    }

    fn add_tokens(&mut self, name: &str, shape: &[usize], tokens: &[u32]) {
        let bytes = tokens.iter().flat_map(|&token| i64::from(token).to_le_bytes()).collect();
        self.0.insert(name.to_string(), (SavedDtype::I64, shape.to_vec(), bytes));
    }

    fn write(&self, path: &Path) {
        let views: Vec<(&String, TensorView<'_>)> = self
            .0
            .iter()
            .map(|(name, (dtype, shape, bytes))| {
                (name, TensorView::new(*dtype, shape.clone(), bytes).expect("shape and bytes agree"))
            })
            .collect();
        safetensors::serialize_to_file(views, None, path).expect("the folder is writable");
    }
}

fn read(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).expect("the answer was written");
    let tensors = SafeTensors::deserialize(&bytes).expect("the answer is in order");
    tensors.tensors().into_iter().map(|(name, view)| (name, numbers(view.data()))).collect()
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&number| f32::from_le_bytes(number)).collect()
}

/// What the crate computed, by the answer's names.
type Computed = BTreeMap<String, Vec<f32>>;

/// Trains a few steps and then takes one microbatch through forward and backward; returns the request and what the crate
/// computed. By then the weights are far from their start, and no part of the model is near zero or uniform.
fn compute(
    line: &mut Line,
    model: &ModelConfig,
    shapes: &HashMap<String, Vec<usize>>,
) -> (Tensors, Computed) {
    let (mut request, mut computed) = (Tensors::default(), Computed::new());
    let add_all = |request: &mut Tensors, prefix: &str, all: BTreeMap<String, Vec<f32>>| {
        for (name, numbers) in all {
            request.add_f32(format!("{prefix}.{name}"), &shapes[&name], &numbers);
        }
    };
    add_all(&mut request, "start", line.weights());
    for step in 0..STEPS {
        for microbatch in 0..u64::from(MICROBATCHES) {
            line.forward_all(step * 10 + microbatch);
            line.backward_all(step * 10 + microbatch);
        }
        add_all(&mut request, &format!("sum.{step}"), line.gradients());
        line.step(MICROBATCHES);
        for (name, numbers) in line.weights() {
            computed.insert(format!("update.{step}.{name}"), numbers);
        }
    }
    add_all(&mut request, "weight", line.weights());
    let (tokens, targets) = sample(model, 1_000);
    let shape = [MICROBATCH_SIZE, model.sequence_len];
    request.add_tokens("tokens", &shape, &tokens);
    request.add_tokens("targets", &shape, &targets);
    computed.insert("loss".into(), vec![line.forward_all(1_000)]);
    for (index, bytes) in line.received(1_000).into_iter().enumerate() {
        computed.insert(format!("boundary.{index}"), numbers(&bytes));
    }
    let crossed = line.backward_all(1_000);
    for (index, bytes) in crossed.iter().rev().enumerate() {
        computed.insert(format!("boundary_gradient.{index}"), numbers(bytes));
    }
    for (name, numbers) in line.gradients() {
        computed.insert(format!("gradient.{name}"), numbers);
    }
    (request, computed)
}

/// Runs a script of `tests/parity` and returns what it printed.
fn python(script: &str, arguments: &[&OsStr]) -> String {
    let hint = "python3 with torch 2.11, numpy and safetensors is needed; TRESTLE_PYTHONPATH names the folder that \
                holds them, and the set-up step writes it";
    let packages = std::env::var("TRESTLE_PYTHONPATH")
        .unwrap_or_else(|_| panic!("TRESTLE_PYTHONPATH is not set: {hint}"));
    let output = Command::new("python3")
        .arg("-B")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(script))
        .args(arguments)
        .env("PYTHONPATH", packages)
        .output()
        .unwrap_or_else(|error| panic!("python3 cannot be started ({error}): {hint}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} failed: {words}\n{hint}");
    String::from_utf8(output.stdout).expect("the script prints text")
}

fn write_config(config: &EngineConfig, path: &Path) {
    let json = serde_json::json!({
        "model": config.model, "optimizer": config.optimizer, "schedule": config.schedule, "clip": config.clip,
        "microbatches": MICROBATCHES, "steps": STEPS,
    });
    std::fs::write(path, json.to_string()).expect("the folder is writable");
}

fn assert_close(name: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{name}");
    let largest = want.iter().fold(0.0, |most: f64, &x| most.max(f64::from(x.abs())));
    assert!(largest > 0.0, "{name} is all zeros: nothing is compared");
    for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - f64::from(want)).abs() / largest;
        assert!(
            error <= TOLERANCE,
            "{name}[{index}] is {got}, PyTorch has {want}: {error:.1e} of the largest, {largest}"
        );
    }
}

fn check(form: BoundaryForm, stage_layers: &[usize], kind: OptimizerKind) {
    let config = config(model(form, stage_layers), kind);
    let stages = stage_layers.len();
    let cuts: Vec<_> = (0..stages).map(|stage| stage..stage + 1).collect();
    let mut line = Line::new(&config, &cuts);
    let shapes = line.shapes();
    let (request, computed) = compute(&mut line, &config.model, &shapes);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    request.write(&folder.path().join("request.safetensors"));
    write_config(&config, &folder.path().join("config.json"));
    python("compare.py", &[folder.path().as_os_str()]);
    let answer = read(&folder.path().join("answer.safetensors"));
    assert_eq!(computed.keys().collect::<Vec<_>>(), answer.keys().collect::<Vec<_>>());
    for (name, want) in &answer {
        assert_close(name, &computed[name], want);
    }
}

#[test]
fn one_block_agrees() {
    check(BoundaryForm::None, &[1], OptimizerKind::AdamW);
}

#[test]
fn one_stage_agrees() {
    check(BoundaryForm::None, &[3], OptimizerKind::Muon);
}

#[test]
fn boundary_none_agrees() {
    check(BoundaryForm::None, &[1, 2], OptimizerKind::AdamW);
}

#[test]
fn boundary_resbm_agrees_with_adamw() {
    check(BoundaryForm::Resbm, &[1, 1, 2], OptimizerKind::AdamW);
}

#[test]
fn boundary_resbm_agrees_with_muon() {
    check(BoundaryForm::Resbm, &[1, 1, 2], OptimizerKind::Muon);
}

#[test]
fn boundary_fused_agrees_with_adamw() {
    check(BoundaryForm::Fused, &[2, 1, 1], OptimizerKind::AdamW);
}

#[test]
fn boundary_fused_agrees_with_muon() {
    check(BoundaryForm::Fused, &[2, 1, 1], OptimizerKind::Muon);
}

/// Rows of `sequence_len + 1` tokens, as token files hold them.
fn token_file(model: &ModelConfig, microbatches: impl Iterator<Item = u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for microbatch in microbatches {
        let (tokens, targets) = sample(model, microbatch);
        let length = model.sequence_len;
        for (row, next) in tokens.chunks(length).zip(targets.chunks(length)) {
            bytes.extend(row.iter().chain(next.last()).flat_map(|token| token.to_le_bytes()));
        }
    }
    bytes
}

/// Two trainings drift apart by rounding, so this tolerance is wider; a wrong update would show in the first steps.
#[test]
fn the_reference_trainer_follows_the_crate() {
    let mut config = config(model(BoundaryForm::Resbm, &[1, 2, 1]), OptimizerKind::AdamW);
    config.model.wire = trestle_model::config::Dtype::Bf16;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = |name: &str| folder.path().join(name);
    let mut line = Line::whole(&config);
    line.engines[0].save(&path("start.safetensors"), &BTreeMap::new()).expect("the folder is writable");
    let (steps, group, held_out) = (8, u64::from(MICROBATCHES), 900);
    std::fs::write(path("tokens"), token_file(&config.model, 0..steps * group))
        .expect("the folder is writable");
    std::fs::write(path("held_out"), token_file(&config.model, held_out..held_out + 1))
        .expect("the folder is writable");
    write_config(&config, &path("config.json"));
    let mut losses = Vec::new();
    for step in 0..steps {
        let mut sum = 0.0;
        for microbatch in step * group..(step + 1) * group {
            sum += f64::from(line.forward_all(microbatch));
            line.backward_all(microbatch);
        }
        losses.push(sum / group as f64);
        line.step(MICROBATCHES);
    }
    let (tokens, targets) = sample(&config.model, held_out);
    let output = line.engines[0].forward(0, StageInput::Tokens(&tokens), Some(&targets), Mode::Evaluate);
    losses.push(f64::from(loss(output.expect("the forward runs"))));

    let files = ["start.safetensors", "tokens", "held_out", "config.json"].map(path);
    let (steps, batch, group) = (steps.to_string(), MICROBATCH_SIZE.to_string(), group.to_string());
    let arguments = [
        ("--weights", files[0].as_os_str()),
        ("--tokens", files[1].as_os_str()),
        ("--held-out", files[2].as_os_str()),
        ("--config", files[3].as_os_str()),
        ("--steps", OsStr::new(&steps)),
        ("--batch", OsStr::new(&batch)),
        ("--microbatches", OsStr::new(&group)),
        ("--threads", OsStr::new("1")),
    ];
    let arguments: Vec<&OsStr> =
        arguments.into_iter().flat_map(|(name, value)| [OsStr::new(name), value]).collect();
    let printed: serde_json::Value =
        serde_json::from_str(&python("train_reference.py", &arguments)).expect("it prints JSON");
    let reference =
        printed["losses"].as_array().expect("losses are a list").iter().chain([&printed["held_out"]]);
    let reference: Vec<f64> = reference.map(|number| number.as_f64().expect("a loss is a number")).collect();
    assert_eq!(losses.len(), reference.len());
    for (step, (ours, theirs)) in losses.iter().zip(&reference).enumerate() {
        assert!((ours - theirs).abs() < 2e-4 * theirs, "step {step}: {ours}, PyTorch has {theirs}");
    }
    assert!(losses[8] < losses[0] - 0.1, "nothing was learnt: {losses:?}");
}
