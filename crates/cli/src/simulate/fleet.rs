//! `trestle simulate RUN --fleet FLEET`: a run on a fleet, played by the protocol itself, with one seed or with several.
//!
//! Owns the words, and the means over seeds. May not know how anything is played.

mod drawn;

use std::fmt;
use std::io::{Write, sink};
use std::path::Path;

use serde::Serialize;
use trestle_fleet::forecast::better_layers;
use trestle_protocol::message::Outcome;
use trestle_sim::fleet::{Ask, FleetOutcome, FleetRunError, run_fleet};
use trestle_sim::swarm::Ending;

use crate::args::SimulateArgs;
use crate::asked::Asked;
use crate::failure::Failure;
use crate::output::{Format, print};
use crate::picture;
use crate::plan::unplaceable;
use crate::simulate::events;
use crate::units::{count, percent, span};

/// What came of one seed.
#[derive(Clone, Debug, Serialize)]
struct Played {
    seed: u64,
    ended: String,
    virtual_seconds: f64,
    tokens_per_second: f64,
    mfu: f64,
    utilisation: f64,
    product: f64,
    tokens: f64,
    price_per_billion: f64,
    there: f64,
    outages: usize,
    seated: u64,
    redone: u64,
    lost: u64,
    events: u64,
    messages: u64,
    wire_bytes: u64,
    log_digest: String,
    broken: Vec<String>,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    run: String,
    fleet: String,
    peers: usize,
    /// Tokens a second that `trestle plan` says.
    forecast: f64,
    played: Vec<Played>,
}

/// A figure, as people call it, and how it is written.
type Figure = (&'static str, fn(&Played) -> f64, fn(f64) -> String);

const FIGURES: &[Figure] = &[
    ("tokens/s", |of| of.tokens_per_second, |number| count(number.round() as u64)),
    ("MFU", |of| of.mfu, percent),
    ("utilisation", |of| of.utilisation, percent),
    ("product", |of| of.product, percent),
    ("$ a billion tokens", |of| of.price_per_billion, |number| format!("{number:.2}")),
    ("peers there", |of| of.there, percent),
    ("outages", |of| of.outages as f64, |number| format!("{number:.1}")),
    ("done again", |of| of.redone as f64, |number| format!("{number:.1}")),
    ("lost", |of| of.lost as f64, |number| format!("{number:.1}")),
];

/// Plays it.
///
/// # Errors
/// A file that is refused, a fleet that cannot hold the run, or in the end a law that was broken.
pub(super) fn simulate(args: &SimulateArgs, fleet_file: &Path) -> Result<(), Failure> {
    let [run_file] = args.scenarios.as_slice() else {
        let error = format!("--fleet plays one run file, and {} are given", args.scenarios.len());
        return Err(Failure::misused(error).hint("trestle simulate RUN.toml --fleet FLEET.toml"));
    };
    let asked = Asked { run_file, fleet: fleet_file, set: &args.fleet.set, replicas: args.fleet.replicas };
    let (mut spec, fleet) = asked.read(&[])?;
    if let Some(tokens) = args.fleet.tokens {
        spec.training.steps = ((tokens / spec.step_tokens() as f64).ceil() as u64).max(1);
        spec.training.warmup_steps = spec.training.warmup_steps.min(spec.training.steps);
    }
    picture::check(args.fleet.picture.as_deref())?;
    if args.events.is_some() && args.fleet.seeds > 1 {
        let error = format!("--events takes the log of one seed, not of {}", args.fleet.seeds);
        return Err(Failure::misused(error).hint("leave --seeds out, or play them one by one"));
    }
    let first = args.seed.unwrap_or(1);
    let mut played = Vec::new();
    let mut shown: Option<FleetOutcome> = None;
    for seed in (0..args.fleet.seeds).map(|number| first.wrapping_add(number)) {
        let mut log: Box<dyn Write> = match &args.events {
            Some(file) => Box::new(events::create(file)?),
            None => Box::new(sink()),
        };
        let ask = Ask { seed, until: args.fleet.until };
        let played_out = run_fleet(&spec, &fleet, ask, &mut log);
        if let (Err(FleetRunError::Unplaceable(_)), Some(file)) = (&played_out, &args.events) {
            // Nothing was played: an empty log would only be in the way.
            drop(std::fs::remove_file(file));
        }
        let outcome = played_out.map_err(|error| match error {
            FleetRunError::Unplaceable(error) => {
                let other = better_layers(&spec, &fleet, None).map(|(layers, _)| layers);
                unplaceable(&error, &fleet_file.display().to_string(), &spec.name, other)
            }
            FleetRunError::Swarm(_) => Failure::failed(error),
        })?;
        if let Some(file) = &args.events {
            log.flush().map_err(|error| events::unwritable(file, &error))?;
        }
        played.push(Played::of(seed, &outcome));
        shown.get_or_insert(outcome);
    }
    let Some(outcome) = shown else { return Ok(()) };
    let report = Report {
        run: spec.name.clone(),
        fleet: fleet.name.clone(),
        peers: fleet.peers(),
        forecast: outcome.forecast.pace.tokens_per_second,
        played,
    };
    if let Some(file) = &args.fleet.picture {
        picture::draw(file, &drawn::panels(&outcome))?;
    }
    print(&report, if args.json { Format::Json } else { Format::Words })?;
    match report.played.iter().find(|one| !one.broken.is_empty()) {
        None => Ok(()),
        Some(one) => {
            let error = format!("with seed {}: {}", one.seed, one.broken.join("; "));
            Err(Failure::failed(error).hint(format!("play it alone with --seed {}", one.seed)))
        }
    }
}

impl Played {
    fn of(seed: u64, outcome: &FleetOutcome) -> Self {
        let sim = &outcome.sim;
        Self {
            seed,
            ended: match sim.endings.last() {
                Some(Ending::Left(Outcome::Done)) => "done".into(),
                Some(Ending::Left(Outcome::Stopped { step })) => format!("stopped after {step} inner steps"),
                Some(Ending::Left(Outcome::Failed { reason })) => format!("failed: {reason}"),
                other => format!("{other:?}"),
            },
            virtual_seconds: sim.time.0 as f64 / 1e6,
            tokens_per_second: outcome.tokens_per_second(),
            mfu: outcome.mfu,
            utilisation: outcome.utilisation,
            product: outcome.mfu * outcome.utilisation,
            tokens: outcome.tokens,
            price_per_billion: outcome.price_per_billion(),
            there: outcome.there,
            outages: outcome.outages,
            seated: sim.tally.members.seated,
            redone: sim.tally.members.redone,
            lost: outcome.lost(),
            events: sim.tally.events,
            messages: sim.messages,
            wire_bytes: sim.wire_bytes,
            log_digest: sim.digest.to_hex(),
            broken: outcome.broken.clone(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "run          {} on {}: {} peers", self.run, self.fleet, self.peers)?;
        match self.played.as_slice() {
            [one] => self.one(f, one),
            all => self.all(f, all),
        }
    }
}

impl Report {
    fn one(&self, f: &mut fmt::Formatter<'_>, one: &Played) -> fmt::Result {
        let Played { tokens_per_second: speed, .. } = *one;
        writeln!(f, "ended        {}, after {} of virtual time", one.ended, span(one.virtual_seconds))?;
        writeln!(
            f,
            "speed        {} tokens/s; the forecast is {}, {:.2} of it",
            count(speed.round() as u64),
            count(self.forecast.round() as u64),
            self.forecast / speed
        )?;
        writeln!(
            f,
            "efficiency   MFU {} x utilisation {} = {}",
            percent(one.mfu),
            percent(one.utilisation),
            percent(one.product)
        )?;
        writeln!(f, "tokens       {}", count(one.tokens.round() as u64))?;
        writeln!(
            f,
            "peers        there {} of the time; {} outages, {} places taken under way",
            percent(one.there),
            one.outages,
            one.seated
        )?;
        writeln!(f, "work         {} lost, {} microbatches done again", one.lost, one.redone)?;
        writeln!(f, "price        ${:.2} a billion tokens", one.price_per_billion)?;
        writeln!(
            f,
            "log          {} events, {} messages; digest {}",
            count(one.events),
            count(one.messages),
            one.log_digest
        )
    }

    /// Prints a row for each figure: its mean over the seeds, and the half of the interval that has the true mean with 95 % confidence.
    fn all(&self, f: &mut fmt::Formatter<'_>, all: &[Played]) -> fmt::Result {
        let (first, last) = (all[0].seed, all[all.len() - 1].seed);
        let done = all.iter().filter(|one| one.broken.is_empty()).count();
        writeln!(f, "seeds        {first} to {last}; {done} of {} kept every law", all.len())?;
        writeln!(f, "forecast     {} tokens/s", count(self.forecast.round() as u64))?;
        writeln!(f, "\n{:<20}  {:>14}  {:>12}  {:>14}  {:>14}", "", "mean", "+- 95 %", "least", "most")?;
        for (name, of, write) in FIGURES {
            let values: Vec<f64> = all.iter().map(of).collect();
            let (mean, half) = interval(&values);
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let [mean, half, least, most] = [mean, half, least, most].map(write);
            writeln!(f, "{name:<20}  {mean:>14}  {half:>12}  {least:>14}  {most:>14}")?;
        }
        Ok(())
    }
}

/// Student's t for two sides of 95 %, by degrees of freedom from 1 on; beyond, that of the normal distribution is near.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// Returns the mean of some values, and half of its interval of 95 % confidence, for values that are normally distributed.
fn interval(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let freedom = values.len().saturating_sub(1);
    let Some(last) = freedom.checked_sub(1) else { return (mean, 0.0) };
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / freedom as f64;
    let student = STUDENT.get(last).copied().unwrap_or(1.96);
    (mean, student * (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_student_s() {
        assert_eq!(interval(&[4.0]), (4.0, 0.0));
        let (mean, half) = interval(&[1.0, 2.0, 3.0, 4.0]);
        // Deviation 1.2910, over 2, times 3.182.
        assert!((mean - 2.5).abs() < 1e-12 && (half - 2.0540).abs() < 1e-3, "{mean} {half}");
    }
}
