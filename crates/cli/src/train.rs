//! `trestle train`: a coordinator in this process, workers as children, progress, and a sample at the end.
//!
//! Owns the order of these. May not decide anything about the run.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::sync::mpsc;
use trestle_model::device::measure_peak;
use trestle_node::roles::{BoundCoordinator, CoordinatorOptions};
use trestle_protocol::message::Outcome;
use trestle_settings::model::dtype;

use crate::args::TrainArgs;
use crate::attend::{RESUME_HINT, attend};
use crate::chaos::{Chaos, ChaosError};
use crate::device::{cores, prepare};
use crate::failure::Failure;
use crate::generate::Whole;
use crate::progress::{Progress, Style};
use crate::run::{self, Run};
use crate::swarm::{Swarm, SwarmConfig};

/// Temperature of the sample at the end: low enough to be readable, high enough not to loop.
const SAMPLE_TEMPERATURE: f64 = 0.8;

/// Runs the command.
pub(crate) fn train(args: &TrainArgs) -> Result<(), Failure> {
    let chaos = match &args.chaos {
        Some(words) => {
            words.parse().map_err(|error: ChaosError| Failure::misused(&error).hint(error.hint()))?
        }
        None => Chaos::default(),
    };
    let run = run::open(&args.run)?;
    let stages = run.spec.stages();
    let device = prepare(&args.device.device, cores())?;
    let peak =
        measure_peak(device, dtype(run.spec.pipeline.compute)).map_err(|error| Failure::failed(&error))?;
    let workers = stages.saturating_mul(run.spec.pipeline.replicas);
    let share = u16::try_from(cores()).unwrap_or(u16::MAX) / workers;
    let threads = args.device.threads.unwrap_or(share.max(1));
    let style = if args.json { Style::Json } else { Style::for_people() };
    let floor = run.dataset.entropy_floor();
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))?;
    let local = Local { device: device.to_string(), threads, peak, style, floor, chaos };
    let outcome = runtime.block_on(drive(&run, &local))?;
    match outcome {
        Outcome::Done => sample(args, &run, device),
        Outcome::Left => Ok(()),
        Outcome::Stopped { step } => {
            eprintln!("stopped after step {step}; `--resume` goes on exactly there");
            Ok(())
        }
        Outcome::Failed { reason } => Err(Failure::failed(reason).hint(RESUME_HINT)),
    }
}

struct Local {
    device: String,
    threads: u16,
    peak: f64,
    style: Style,
    floor: Option<f64>,
    chaos: Chaos,
}

async fn drive(run: &Run, local: &Local) -> Result<Outcome, Failure> {
    let (watch, events) = mpsc::unbounded_channel();
    let coordinator = BoundCoordinator::bind(CoordinatorOptions {
        spec: run.spec.clone(),
        directory: run.directory.clone(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        advertise: Vec::new(),
        beginning: run.beginning,
        watch: Some(watch),
    })
    .await?;
    run::keep(run)?;
    let mut progress = Progress::new(&run.spec, local.style, local.floor);
    let (note, notes) = mpsc::unbounded_channel();
    let ticket = coordinator.ticket().clone();
    let config = SwarmConfig {
        ticket: &ticket,
        directory: &run.directory,
        local: &run.local,
        device: &local.device,
        threads: local.threads,
        peak_flops: local.peak / f64::from(run.spec.stages()) / f64::from(run.spec.pipeline.replicas),
        stages: run.spec.stages(),
        replicas: run.spec.pipeline.replicas,
        chaos: local.chaos.clone(),
        seed: run.spec.seed,
    };
    let mut swarm = Swarm::start(config, note, progress.course())?;
    let outcome = attend(coordinator, (events, notes), &mut progress, swarm.tend()).await?;
    swarm.wait().await;
    Ok(outcome)
}

/// Prints a continuation of the prompt, or of the first held-out text.
fn sample(args: &TrainArgs, run: &Run, device: trestle_model::device::DeviceKind) -> Result<(), Failure> {
    if args.sample == 0 || args.json {
        return Ok(());
    }
    let mut whole = Whole::load(&run.spec, &run.directory, device)?;
    let prompt = match &args.prompt {
        Some(text) => run.dataset.encode(text).map_err(|error| Failure::failed(&error).hint(error.hint()))?,
        None => held_out_words(run)?,
    };
    let tokens = whole.generate(&prompt, args.sample as usize, SAMPLE_TEMPERATURE, run.spec.seed)?;
    eprintln!("a sample, after the prompt in brackets:");
    println!("[{}]{}", run.dataset.decode(&prompt), run.dataset.decode(&tokens));
    Ok(())
}

fn held_out_words(run: &Run) -> Result<Vec<u32>, Failure> {
    const PROMPT_TOKENS: usize = 24;
    let split = match run.dataset.samples(trestle_data::Split::HeldOut) {
        0 => trestle_data::Split::Train,
        _ => trestle_data::Split::HeldOut,
    };
    let sample = run
        .dataset
        .sample(split, run.dataset.sample_at(split, 0))
        .map_err(|error| Failure::failed(&error).hint(error.hint()))?;
    Ok(sample.into_iter().take(PROMPT_TOKENS).collect())
}
