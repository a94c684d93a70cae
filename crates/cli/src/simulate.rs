//! `trestle simulate`: scenarios, one after the other, each with its verdict and the line that repeats it; or a run on a fleet.
//!
//! Owns the printing. May not know what a scenario says.

mod fleet;

use std::path::Path;

use serde_json::json;
use trestle_sim::scenario::expectation::Verdict;
use trestle_sim::{Report, ScenarioError, run_scenario};

use crate::args::SimulateArgs;
use crate::failure::Failure;

/// Runs the command. All scenarios run, whatever becomes of the first.
///
/// # Errors
/// A scenario that cannot be read or run, at once; or in the end, that an expectation was missed.
pub(crate) fn simulate(args: &SimulateArgs) -> Result<(), Failure> {
    if let Some(file) = &args.fleet.file {
        return fleet::simulate(args, file);
    }
    let mut missed = Vec::new();
    for path in &args.scenarios {
        let name = path.display().to_string();
        let report = run(path, args.seed)?;
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

fn run(path: &Path, seed: Option<u64>) -> Result<Report, Failure> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::misused(format!("cannot read {name}: {error}")).hint("scenarios are in sim/scenarios")
    })?;
    run_scenario(&text, seed).map_err(|error| {
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
