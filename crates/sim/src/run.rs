//! Running a scenario: the swarm it describes, the further runs that its expectations need, and the report.
//!
//! Owns the way from a scenario's text to a verdict. Takes no decision of the protocol.

use crate::compute::{Compute, Fault as ComputeFault};
use crate::cost::{CostModel, Sizes};
use crate::fault::Faults;
use crate::losses::Equal;
use crate::real::{RealModel, World};
use crate::report::Report;
use crate::scenario::expectation::{Check, Reference, Verdict, Wanted};
use crate::scenario::script::{Running, Script};
use crate::scenario::settings::{Kind, Settings};
use crate::scenario::words::ParseError;
use crate::swarm::{ComputeMaker, SimOutcome, Swarm, SwarmConfig, SwarmError, Weights};
use crate::whole::train_whole;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::rc::Rc;
use trestle_protocol::receipt::Seals;
use trestle_protocol::spec::RunSpec;
use trestle_protocol::wire::PAYLOAD_BYTES_MAX;
use trestle_settings::model::model_config;

/// How far a loss may lie from that of one process where only the order of a sum differs.
const NEARLY: f64 = 1e-6;

/// Why a scenario could not be run to a verdict.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file cannot be understood.
    #[error("{0}")]
    Parse(#[from] ParseError),
    /// The swarm cannot be run.
    #[error("{0}")]
    Swarm(#[from] SwarmError),
}

impl ScenarioError {
    /// Says what to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            ScenarioError::Parse(error) => Some(error.hint.clone()),
            ScenarioError::Swarm(_) => None,
        }
    }
}

/// Runs a scenario from its text; `seed` replaces the one in the file.
///
/// # Errors
/// The text cannot be understood, or the run it describes cannot be simulated. An expectation that is not met is no
/// error, but part of the report.
pub fn run_scenario(text: &str, seed: Option<u64>) -> Result<Report, ScenarioError> {
    run_scenario_logged(text, seed, &mut io::sink())
}

/// Runs a scenario as [`run_scenario`] does, and writes the event log to `log`.
///
/// # Errors
/// As [`run_scenario`], and what `log` says.
pub fn run_scenario_logged(
    text: &str,
    seed: Option<u64>,
    log: &mut dyn Write,
) -> Result<Report, ScenarioError> {
    let script = Script::read(text, seed)?;
    let outcome = simulate(&script.settings, &script.runnings, log)?;
    let mut checks = Vec::new();
    for expectation in &script.expectations {
        let check = match &expectation.wanted {
            Wanted::Number(..) | Wanted::Outcome(_) | Wanted::Laws => expectation.check(&outcome),
            Wanted::SameTwice => Some(same_twice(&script, &outcome)?),
            Wanted::Losses(reference) => Some(same_losses(&script, &outcome, *reference)?),
        };
        checks.extend(check.map(|check| Check { expected: expectation.text.clone(), ..check }));
    }
    Ok(Report { seed: script.settings.spec.seed, outcome, checks })
}

fn simulate(
    settings: &Settings,
    runnings: &[Running],
    log: &mut dyn Write,
) -> Result<SimOutcome, SwarmError> {
    let spec = settings.run_spec();
    check_model(&spec)?;
    match settings.kind {
        Kind::Cost => {
            let boundary = Bytes::from(vec![0; spec.boundary_bytes()]);
            let mut sizes = Sizes::of(&spec, settings.contribution);
            sizes.chunks.state = settings.state.map(|_| STATE_CHUNKS);
            let maker = |spec: &RunSpec| -> Box<dyn Compute> {
                Box::new(CostModel::new(spec, boundary.clone(), sizes.clone()))
            };
            run_all(settings, spec, &maker, runnings, log)
        }
        Kind::Real => {
            let world = World::open(spec)?;
            let maker = |_: &RunSpec| -> Box<dyn Compute> { Box::new(RealModel::new(Rc::clone(&world))) };
            run_all(settings, world.spec().clone(), &maker, runnings, log)
        }
    }
}

/// Chunks of either part of a state whose size is given: so many that several replicas send at once.
const STATE_CHUNKS: u64 = 32;

/// Checks what no single word of a scenario decides: that the sizes make a model, whose messages fit the wire.
pub(crate) fn check_model(spec: &RunSpec) -> Result<(), ComputeFault> {
    model_config(spec)
        .validate()
        .map_err(|error| ComputeFault(format!("{error} (hint: {})", error.hint())))?;
    let factors =
        [u64::from(spec.boundary.width), spec.boundary.wire.bytes() as u64, spec.microbatch_tokens()];
    let bytes: u128 = factors.into_iter().map(u128::from).product();
    if bytes > PAYLOAD_BYTES_MAX as u128 {
        let most = PAYLOAD_BYTES_MAX;
        return Err(ComputeFault(format!(
            "a boundary message has {bytes} bytes, at most {most} fit the wire"
        )));
    }
    Ok(())
}

/// Lets the chunks of a state weigh as much as those of one of the size that is asked for.
fn weights(settings: &Settings, spec: &RunSpec) -> Weights {
    let Sizes { agreed, own, .. } = Sizes::of(spec, settings.contribution);
    let largest = agreed.iter().zip(&own).map(|(agreed, own)| agreed + own).max().unwrap_or(1);
    let state = settings.state.map_or(1, |bytes| (bytes / largest.max(1)).max(1));
    Weights { state, ..Weights::default() }
}

fn run_all(
    settings: &Settings,
    spec: RunSpec,
    maker: &ComputeMaker<'_>,
    runnings: &[Running],
    log: &mut dyn Write,
) -> Result<SimOutcome, SwarmError> {
    let config = SwarmConfig {
        seed: spec.seed,
        link: settings.link,
        own_links: settings.links_of_peers(),
        spans: settings.stage_spans(&spec),
        own_spans: BTreeMap::new(),
        weights: weights(settings, &spec),
        seals: Seals::Signed,
        spec,
    };
    let mut swarm = Swarm::new(config, maker, log);
    for running in runnings {
        swarm.run(running.faults.clone())?;
    }
    Ok(swarm.finish())
}

fn same_twice(script: &Script, outcome: &SimOutcome) -> Result<Check, SwarmError> {
    let again = simulate(&script.settings, &script.runnings, &mut io::sink())?;
    let got = format!("{} and {}", outcome.digest, again.digest);
    let verdict = if outcome == &again { Verdict::Met } else { Verdict::Missed };
    Ok(Check { expected: String::new(), got, verdict })
}

fn same_losses(script: &Script, outcome: &SimOutcome, reference: Reference) -> Result<Check, SwarmError> {
    let mut settings = script.settings.clone();
    let undisturbed = [Running { faults: Faults::default() }];
    let other = match reference {
        Reference::Uninterrupted => simulate(&settings, &undisturbed, &mut io::sink())?.losses(),
        Reference::Unjittered => {
            settings.remove_jitter();
            simulate(&settings, &script.runnings, &mut io::sink())?.losses()
        }
        Reference::OneProcess | Reference::NearlyOneProcess => {
            train_whole(&*World::open(settings.run_spec())?)?
        }
    };
    let equal = match reference {
        Reference::Uninterrupted | Reference::Unjittered | Reference::OneProcess => Equal::ToTheBit,
        Reference::NearlyOneProcess => Equal::Within(NEARLY),
    };
    let SimOutcome { tally, .. } = outcome;
    let compared = tally.losses.len() + tally.evaluations.len();
    let (got, verdict) = match other.difference(&tally.losses, &tally.evaluations, equal) {
        Some(difference) => (difference, Verdict::Missed),
        None if compared == 0 => ("no losses at all".into(), Verdict::Missed),
        None => (format!("{compared} losses, all the same"), Verdict::Met),
    };
    Ok(Check { expected: String::new(), got, verdict })
}
