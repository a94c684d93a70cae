//! Times one middle stage: forward, backward and AdamW step, microbatches of four samples. Prints one JSON object.
//!
//! usage: stage_speed DTYPE THREADS STEPS [DEVICE]
//!
//! `tests/parity/stage_speed.py` does the same in PyTorch eager; compare the two in one sitting.

use std::process::ExitCode;
use std::time::Instant;

use trestle_model::config::{BoundaryForm, Dtype, ModelConfig, Retain};
use trestle_model::device::{DeviceChoice, DeviceKind};
use trestle_model::engine::{Engine, EngineConfig};
use trestle_model::error::ModelError;
use trestle_model::input::{Duty, Mode, StageInput, StageOutput};
use trestle_model::optimizer::config::OptimizerConfig;
use trestle_model::schedule::ScheduleConfig;

const MICROBATCH_SIZE: usize = 4;

fn model(wire: Dtype) -> ModelConfig {
    ModelConfig {
        vocabulary: 256,
        width: 512,
        layers: 6,
        heads: 8,
        kv_heads: 4,
        ffn_width: 1376,
        sequence_len: 256,
        rope_theta: 10_000.0,
        norm_epsilon: 1e-5,
        boundary: BoundaryForm::None,
        boundary_width: 512,
        encoder_width: 512,
        stage_layers: vec![1, 4, 1],
        wire,
    }
}

fn run(dtype: Dtype, steps: usize, device: DeviceKind) -> Result<(f64, f64), ModelError> {
    let config = EngineConfig {
        model: model(dtype),
        held: 1..2,
        microbatch_size: MICROBATCH_SIZE,
        compute: dtype,
        retain: Retain::Graph,
        optimizer: OptimizerConfig::default(),
        schedule: ScheduleConfig::constant(1_000),
        clip: None,
        seed: 1,
        device,
    };
    // A whole model's first stage supplies a boundary input of natural size.
    let mut first = Engine::new(EngineConfig { held: 0..1, ..config.clone() })?;
    let tokens: Vec<u32> = (0..MICROBATCH_SIZE as u32 * 256).map(|index| index * 7 % 256).collect();
    let sent = first.forward(0, StageInput::Tokens(&tokens), None, Mode::Evaluate)?;
    let input = match sent {
        StageOutput::Boundary(bytes) => bytes,
        StageOutput::Loss(_) => Vec::new(),
    };
    let mut engine = Engine::new(config)?;
    let mut seconds = Vec::new();
    for step in 0..steps as u64 + 2 {
        let start = Instant::now();
        engine.forward(step, StageInput::Boundary(&input), None, Mode::Train)?;
        engine.backward(step, StageInput::Boundary(&input), None, Some(&input), Duty::Train)?;
        engine.step(1)?;
        // The first two steps allocate and warm up.
        if step >= 2 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok((seconds[0], seconds[seconds.len() / 2]))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let dtype = match arguments.first().map(String::as_str) {
        Some("f32") => Dtype::F32,
        Some("bf16") => Dtype::Bf16,
        Some(_) | None => return usage(),
    };
    let number = |index: usize| arguments.get(index).and_then(|text| text.parse().ok());
    let (Some(threads), Some(steps)) = (number(1), number(2)) else { return usage() };
    tch::set_num_threads(threads as i32);
    let device: Result<DeviceChoice, _> = arguments.get(3).map_or("cpu", String::as_str).parse();
    let result = device.and_then(DeviceChoice::resolve).map_err(ModelError::from);
    match result.and_then(|device| run(dtype, steps, device)) {
        Ok((best, median)) => {
            println!("{{\"best_ms\": {:.2}, \"median_ms\": {:.2}}}", best * 1e3, median * 1e3);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: stage_speed f32|bf16 THREADS STEPS [DEVICE]");
    ExitCode::from(2)
}
