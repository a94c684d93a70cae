//! `trestle simulate`: scenarios, one after the other, each with its verdict and the line that repeats it; or a run on a fleet.
//!
//! Owns the printing. May not know what a scenario says.

mod events;
mod fleet;

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::json;
use trestle_sim::scenario::expectation::Verdict;
use trestle_sim::{Report, ScenarioError, run_scenario, run_scenario_logged};

use crate::args::SimulateArgs;
use crate::failure::Failure;

/// Runs the command. All scenarios run, whatever becomes of the first.
///
/// # Errors
/// A scenario that cannot be read or run, or a file for the event log that cannot be written, at once; or in the end, that an
/// expectation was missed.
pub(crate) fn simulate(args: &SimulateArgs) -> Result<(), Failure> {
    if args.events.is_some() && args.scenarios.len() > 1 {
        let error = format!("--events takes the log of one scenario, not of {}", args.scenarios.len());
        return Err(Failure::misused(error).hint("simulate them one by one, each with a file of its own"));
    }
    if let Some(file) = &args.fleet.file {
        return fleet::simulate(args, file);
    }
    let mut missed = Vec::new();
    for path in &args.scenarios {
        let name = path.display().to_string();
        let report = run(path, args.seed, args.events.as_deref())?;
        if args.json {
            println!("{}", line(&name, &report));
        } else {
            print!("{name}: {report}");
        }
        match report.verdict() {
            Verdict::Met => {}
            Verdict::Missed => missed.push(report.repeat(&name)),
        }
    }
    match missed.as_slice() {
        [] => Ok(()),
        [first, ..] => {
            let error =
                format!("{} of {} scenarios did not go as expected", missed.len(), args.scenarios.len());
            Err(Failure::failed(error).hint(format!("repeat the first with: {first}")))
        }
    }
}

fn run(path: &Path, seed: Option<u64>, events: Option<&Path>) -> Result<Report, Failure> {
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::misused(format!("cannot read {name}: {error}")).hint("scenarios are in sim/scenarios")
    })?;
    let report = match events {
        Some(file) => logged(&text, seed, file)?,
        None => run_scenario(&text, seed),
    };
    report.map_err(|error| {
        let said = format!("{name}: {error}");
        let failure = match &error {
            ScenarioError::Parse(_) => Failure::misused(said),
            ScenarioError::Swarm(_) => Failure::failed(said),
        };
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}

/// Runs a scenario and writes its event log, as it comes, to a new file. A file without events is not left behind.
fn logged(text: &str, seed: Option<u64>, path: &Path) -> Result<Result<Report, ScenarioError>, Failure> {
    let mut log = events::create(path)?;
    let report = run_scenario_logged(text, seed, &mut log);
    log.flush().map_err(|error| events::unwritable(path, &error))?;
    if report.is_err() && log.get_ref().metadata().is_ok_and(|file| file.len() == 0) {
        // The error of the scenario is what matters; an empty file beside it does no harm.
        drop(fs::remove_file(path));
    }
    Ok(report)
}

fn line(name: &str, report: &Report) -> serde_json::Value {
    let tally = &report.outcome.tally;
    let checks: Vec<_> = report
        .checks
        .iter()
        .map(|check| {
            let met = check.verdict == Verdict::Met;
            json!({ "expected": check.expected, "got": check.got, "met": met })
        })
        .collect();
    json!({
        "scenario": name,
        "seed": report.seed,
        "met": report.verdict() == Verdict::Met,
        "log_digest": report.outcome.digest.to_hex(),
        "steps": tally.steps,
        "events": tally.events,
        "losses": tally.losses,
        "evaluations": tally.evaluations,
        "virtual_seconds": report.outcome.time.0 as f64 / 1e6,
        "wire_bytes": report.outcome.wire_bytes,
        "checks": checks,
    })
}
