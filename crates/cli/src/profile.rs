//! `trestle profile`: what this computer's device does with a stage of a run, written as a device of a fleet file.
//!
//! Owns what is measured, and its words. May not know how a forecast uses it.

use std::time::Instant;

use trestle_fleet::cost::StageWork;
use trestle_model::config::Dtype;
use trestle_model::device::{DeviceError, DeviceKind, measure_bandwidth, measure_peak};
use trestle_model::engine::Engine;
use trestle_model::error::ModelError;
use trestle_model::input::{Duty, Mode, StageInput};
use trestle_protocol::ids::Digest;
use trestle_protocol::spec::{self, RunSpec};
use trestle_settings::model::engine_config;

use crate::args::ProfileArgs;
use crate::device::{cores, prepare};
use crate::failure::Failure;
use crate::overrides::assignments;
use crate::run_file::RunFile;

/// Microbatches that are timed together, and how often; the median counts, for a computer may have other things to do.
const TIMED: u64 = 8;
const ROUNDS: u64 = 7;

/// Runs the command.
///
/// # Errors
/// A run file that is refused, a device that is not there, or one whose memory cannot be found out.
pub(crate) fn profile(args: &ProfileArgs) -> Result<(), Failure> {
    let threads = args.device.threads.map_or_else(cores, usize::from);
    let device = prepare(&args.device.device, threads)?;
    let run_file = RunFile::read(&args.run_file, &assignments(&args.set)?)?;
    let Some(vocabulary) = run_file.vocabulary() else {
        let error = format!("`model.vocabulary` of run `{}` is left to the tokenizer", run_file.name());
        return Err(Failure::misused(error).hint("say it here: --set model.vocabulary=128256"));
    };
    let spec = run_file.spec(Digest([0; 32]), vocabulary)?;
    let stages = usize::from(spec.stages());
    let stage = args.stage.unwrap_or(stages / 2);
    if stage >= stages {
        let error = format!("`--stage {stage}`: the run `{}` has {stages} stages", spec.name);
        return Err(Failure::misused(error).hint(format!("give one from 0 to {}", stages - 1)));
    }
    let memory = args.memory.or_else(|| memory_of(device)).ok_or_else(|| {
        Failure::misused(format!("the memory of {device} cannot be found out")).hint("give it: --memory 24GB")
    })?;
    let no_device = |error: DeviceError| Failure::failed(&error);
    let bf16 = measure_peak(device, Dtype::Bf16).map_err(no_device)?;
    let f32 = measure_peak(device, Dtype::F32).map_err(no_device)?;
    let bandwidth = measure_bandwidth(device).map_err(no_device)?;
    let seconds = microbatch(&spec, stage, device)
        .map_err(|error| Failure::failed(format!("computing stage {stage}: {error}")))?;
    let work = StageWork::of_stage(&spec, stage);
    let peak = match spec.pipeline.compute {
        spec::Dtype::Bf16 => bf16,
        spec::Dtype::F32 => f32,
    };
    let reach = (work.forward + work.again + work.backward) / seconds / peak;
    let source = format!("measured: stage {stage} of {}, {device}, {threads} threads", spec.name);
    println!("[device.{}]", args.name);
    println!("bf16 = \"{:.4}T\"", bf16 / 1e12);
    println!("f32 = \"{:.4}T\"", f32 / 1e12);
    println!("memory = \"{:.2}GB\"", memory / 1e9);
    println!("bandwidth = \"{:.2}GB\"", bandwidth / 1e9);
    println!("reach = {reach:.4}");
    println!("source = \"{source}\"");
    Ok(())
}

/// Returns the seconds of a microbatch at a stage, forward and backward.
fn microbatch(spec: &RunSpec, stage: usize, device: DeviceKind) -> Result<f64, ModelError> {
    let mut engine = Engine::new(engine_config(spec, stage..stage + 1, device))?;
    let tokens: Vec<u32> =
        (0..spec.microbatch_tokens()).map(|at| (at * 7 % u64::from(spec.model.vocabulary)) as u32).collect();
    let boundary = message(spec);
    let input = if stage == 0 { StageInput::Tokens(&tokens) } else { StageInput::Boundary(&boundary) };
    let last = stage + 1 == usize::from(spec.stages());
    let (targets, gradient) = if last { (Some(&tokens[..]), None) } else { (None, Some(&boundary[..])) };
    let mut seconds = Vec::new();
    for round in 0..=ROUNDS {
        let began = Instant::now();
        for at in 0..TIMED {
            engine.forward(at, input, targets, Mode::Train)?;
            engine.backward(at, input, targets, gradient, Duty::Train)?;
        }
        // In the first, memory is taken and kernels are chosen.
        if round > 0 {
            seconds.push(began.elapsed().as_secs_f64() / TIMED as f64);
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// Makes a boundary message of small numbers of both signs.
fn message(spec: &RunSpec) -> Vec<u8> {
    let numbers = spec.boundary_bytes() / spec.boundary.wire.bytes();
    let number = |at: usize| if at.is_multiple_of(3) { -0.02_f32 } else { 0.01 };
    let bytes = (0..numbers).flat_map(|at| match spec.boundary.wire {
        spec::Dtype::F32 => number(at).to_le_bytes().to_vec(),
        // The upper half of the same number.
        spec::Dtype::Bf16 => number(at).to_le_bytes()[2..].to_vec(),
    });
    bytes.collect()
}

/// Returns the bytes of a processor's memory.
fn memory_of(device: DeviceKind) -> Option<f64> {
    match device {
        DeviceKind::Cpu => {
            let text = std::fs::read_to_string("/proc/meminfo").ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
            let kibibytes: f64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
            Some(kibibytes * 1024.0)
        }
        DeviceKind::Cuda(_) | DeviceKind::Mps => None,
    }
}
