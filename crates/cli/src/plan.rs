//! `trestle plan`: what a fleet would do with a run, before anything is rented.
//!
//! Owns the words and the table. May not know how anything of it is worked out.

pub(crate) mod drawn;
mod search;
pub(crate) mod sweep;
mod words;

use std::fmt;

use serde::Serialize;
use trestle_fleet::forecast::{Forecast, Pace, better_layers};
use trestle_fleet::placement::Unplaceable;

use crate::args::PlanArgs;
use crate::asked::{Asked, Change, assignment};
use crate::failure::Failure;
use crate::output::{Format, print};
use crate::picture;
use crate::plan::sweep::{Figures, ROWS_MAX, Row, Sweep};
use crate::plan::words::words;
use crate::units::{bytes, count, percent, span};

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    run: String,
    fleet: String,
    peers: usize,
    /// MFU x utilisation.
    product: f64,
    price_per_billion: f64,
    tokens: f64,
    seconds: f64,
    forecast: Forecast,
    devices: Vec<(String, String)>,
}

/// Runs the command.
///
/// # Errors
/// A run file or a fleet file that is refused, or a run that the fleet cannot hold.
pub(crate) fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let format = if args.json { Format::Json } else { Format::Words };
    picture::check(args.picture.as_deref())?;
    if args.search {
        return print(&search::report(args)?, format);
    }
    if args.sweep.is_empty() {
        let report = Report::of(args, &[])?;
        if let Some(file) = &args.picture {
            let (spec, fleet) = Asked::of(args).read(&[])?;
            let timeline = Forecast::timeline(&spec, &fleet).map_err(Failure::failed)?;
            picture::draw(file, &drawn::panels(&report.forecast, &timeline))?;
        }
        return print(&report, format);
    }
    print(&sweep(args)?, format)
}

impl Report {
    fn of(args: &PlanArgs, changes: &[Change]) -> Result<Self, Failure> {
        let (spec, fleet) = Asked::of(args).read(changes)?;
        let forecast = Forecast::of(&spec, &fleet).map_err(|error| {
            let other = better_layers(&spec, &fleet, None).map(|(layers, _)| layers);
            unplaceable(&error, &args.fleet.display().to_string(), &spec.name, other)
        })?;
        let whole = spec.step_tokens().saturating_mul(spec.training.steps) as f64;
        let tokens = args.tokens.unwrap_or(whole);
        let mut devices: Vec<(String, String)> = Vec::new();
        for group in &fleet.groups {
            let device = (group.device.name.clone(), group.device.source.clone());
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        Ok(Self {
            run: spec.name.clone(),
            fleet: fleet.name.clone(),
            peers: fleet.peers(),
            product: forecast.pace.product(),
            price_per_billion: forecast.price_per_billion(),
            tokens,
            seconds: forecast.seconds_for(tokens),
            forecast,
            devices,
        })
    }
}

/// Makes a forecast for each combination of values.
fn sweep(args: &PlanArgs) -> Result<Sweep, Failure> {
    let mut fields = Vec::new();
    let mut combinations: Vec<Vec<String>> = vec![Vec::new()];
    for text in &args.sweep {
        let (field, values) = assignment("--sweep", text)?;
        let values: Vec<&str> = values.split(',').map(str::trim).collect();
        let longer = combinations.iter().flat_map(|before| {
            values.iter().map(|value| [before.as_slice(), &[(*value).to_owned()]].concat())
        });
        combinations = longer.collect();
        fields.push(field);
        if combinations.len() > ROWS_MAX {
            let error =
                format!("{} combinations of values, at most {ROWS_MAX} are taken", combinations.len());
            return Err(Failure::misused(error).hint("sweep over fewer values, or one field after the other"));
        }
    }
    let mut rows = Vec::new();
    for values in combinations {
        let changes: Vec<Change> = fields.iter().cloned().zip(values.iter().cloned()).collect();
        let (spec, fleet) = Asked::of(args).read(&changes)?;
        let outcome =
            Forecast::of(&spec, &fleet).map_err(|error| error.to_string()).map(|forecast| Figures {
                tokens_per_second: forecast.pace.tokens_per_second,
                mfu: forecast.pace.mfu,
                utilisation: forecast.pace.utilisation,
                price_per_hour: forecast.price_per_hour,
                price_per_billion: forecast.price_per_billion(),
            });
        rows.push(Row { values, outcome, unbeaten: false });
    }
    Ok(Sweep::new(fields, rows))
}

pub(crate) fn unplaceable(error: &Unplaceable, fleet: &str, run: &str, other: Option<Vec<u32>>) -> Failure {
    let failure = Failure::failed(format!("the fleet of {fleet} cannot hold the run `{run}`: {error}"));
    match (error, other) {
        (Unplaceable::TooFew { .. }, _) => failure.hint("add peers, or take fewer stages or replicas: --replicas"),
        (Unplaceable::Memory { .. }, Some(layers)) => {
            failure.hint(format!("cut otherwise, it fits: --set pipeline.stage_layers={layers:?}"))
        }
        (Unplaceable::Memory { stage }, None) => failure.hint(format!(
            "cut stage {stage} smaller with pipeline.stage_layers, set pipeline.retain=input, or take devices with more \
             memory; `trestle inspect RUN.toml` says what each stage needs"
        )),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Forecast { pace, placement: (rate, bound), spares, price_per_hour, .. } = &self.forecast;
        writeln!(
            f,
            "run          {} on {}: {} peers, {spares} without a place",
            self.run, self.fleet, self.peers
        )?;
        writeln!(f, "speed        {} tokens/s", count(pace.tokens_per_second.round() as u64))?;
        writeln!(
            f,
            "efficiency   MFU {} x utilisation {} = {}",
            percent(pace.mfu),
            percent(pace.utilisation),
            percent(self.product)
        )?;
        writeln!(
            f,
            "inner step   {} with everyone there, {} with failures",
            span(pace.step),
            span(pace.step / pace.kept)
        )?;
        writeln!(f, "outer step   stands still for {}", span(pace.stall))?;
        writeln!(
            f,
            "price        ${price_per_hour:.2} an hour, ${:.2} a billion tokens",
            self.price_per_billion
        )?;
        let dollars = price_per_hour * self.seconds / 3600.0;
        writeln!(
            f,
            "whole run    {} tokens in {}, ${dollars:.2}",
            count(self.tokens as u64),
            span(self.seconds)
        )?;
        write!(f, "placement    {} of what no placement exceeds", percent(rate / bound))?;
        match self.forecast.placed_gain {
            Some(gain) => writeln!(f, ", {gain:.2}x that of the file's order")?,
            None => writeln!(f, "; in the file's order not all would fit")?,
        }
        if let Some((layers, gain)) = &self.forecast.better_layers {
            writeln!(
                f,
                "better       the slowest stage {gain:.2}x as fast: --set pipeline.stage_layers={layers:?}"
            )?;
        }
        writeln!(f)?;
        self.stages(f)?;
        writeln!(f, "\nwithout      tokens/s       gain")?;
        for (loss, other) in &self.forecast.without {
            writeln!(f, "{:<12} {}", words(*loss), faster(pace, other))?;
        }
        writeln!(f, "\nfailures     tokens/s       change   (of each peer, an hour)")?;
        for (rate, other) in &self.forecast.churn {
            writeln!(f, "{:<12} {}", percent(*rate), faster(pace, other))?;
        }
        writeln!(f)?;
        for (device, source) in &self.devices {
            writeln!(f, "{device}: {source}")?;
        }
        Ok(())
    }
}

impl Report {
    fn stages(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "stage  layers  parameters       needs       of memory   busy    exchange  held by")?;
        for (at, stage) in self.forecast.stages.iter().enumerate() {
            let needs = stage.work.memory.total();
            let holders: Vec<String> =
                stage.holders.iter().map(|(group, count)| format!("{count} x {group}")).collect();
            writeln!(
                f,
                "{at:>5}  {:>6}  {:<15}  {:<10}  {:<9}   {:<6}  {:<8}  {}",
                stage.work.layers,
                count(stage.work.parameters),
                bytes(needs),
                percent(needs as f64 / stage.memory),
                percent(stage.busy),
                span(stage.exchange),
                holders.join(", ")
            )?;
        }
        Ok(())
    }
}

fn faster(pace: &Pace, other: &Pace) -> String {
    let gain = other.tokens_per_second / pace.tokens_per_second - 1.0;
    format!("{:<14} {:+.1} %", count(other.tokens_per_second.round() as u64), gain * 100.0)
}
