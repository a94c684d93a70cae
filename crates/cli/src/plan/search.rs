//! `trestle plan --search`: which shape of a run suits a fleet, a budget and a deadline.
//!
//! Owns the lists that are tried, the table, and the commands that show a shape in full. May not know how shapes are found.

use std::fmt;

use serde::Serialize;
use trestle_fleet::file::Fleet;
use trestle_fleet::search::{CODECS, Figures, Found, Limits, Search, Shape, Space, name, search};
use trestle_protocol::spec::RunSpec;
use trestle_protocol::spec::sync::SyncSpec;

use crate::args::PlanArgs;
use crate::asked::{Asked, Change, assignment};
use crate::failure::Failure;
use crate::units::{count, percent, span};

/// Rows of the table at most; JSON has them all.
const ROWS_MAX: usize = 24;

/// Inner steps between two outer ones that are tried beside the run's own, and codecs.
const INNER_STEPS: [u32; 4] = [10, 20, 50, 100];
const USUAL: [&str; 2] = ["bf16", "sparseloco"];

/// The fields that a search tries values of.
const FIELDS: &str =
    "stages, pipeline.replicas, pipeline.microbatch_size, boundary.width, sync.inner_steps and sync.codec";

/// What is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    run: String,
    fleet: String,
    peers: usize,
    tokens: f64,
    budget: Option<f64>,
    deadline: Option<f64>,
    search: Search,
    /// How each is asked for, in the order of what was found.
    commands: Vec<String>,
}

/// Searches.
///
/// # Errors
/// Files or values that are refused, or a fleet that can hold no shape of the run.
pub(crate) fn report(args: &PlanArgs) -> Result<Report, Failure> {
    let (spec, fleet) = Asked::of(args).read(&[])?;
    let mut space = Space::of(&spec);
    let mut outer = OuterSteps { inner_steps: None, codecs: None };
    for text in &args.sweep {
        let (field, values) = assignment("--sweep", text)?;
        narrow(&mut space, &mut outer, &spec, &field, &values)?;
    }
    space.syncs = outer.read(args, &spec)?;
    let whole = spec.step_tokens().saturating_mul(spec.training.steps) as f64;
    let tokens = args.tokens.unwrap_or(whole);
    let found =
        search(&spec, &fleet, &space, Limits { tokens, budget: args.budget, deadline: args.deadline });
    let limits = limits(args.budget, args.deadline);
    if found.shapes == 0 {
        let error =
            format!("no shape that was tried of the run `{}` fits the fleet `{}`", spec.name, fleet.name);
        return Err(Failure::failed(error).hint(
            "take devices with more memory, smaller microbatches, or more stages: --sweep stages=32,64; `trestle plan` \
             without --search says what is too large",
        ));
    }
    if let [fastest, .., cheapest] | [fastest @ cheapest] = found.beyond.as_slice() {
        let Figures { seconds, dollars, .. } = fastest.figures;
        let error = format!(
            "no shape trains {} tokens {limits}: the fastest takes {} for ${dollars:.2}, the cheapest {} for ${:.2}",
            count(tokens as u64),
            span(seconds),
            span(cheapest.figures.seconds),
            cheapest.figures.dollars
        );
        return Err(
            Failure::failed(error).hint("add peers to the fleet file, train fewer tokens, or allow more")
        );
    }
    let commands = found.found.iter().map(|found| command(args, &spec, &fleet, &found.shape)).collect();
    Ok(Report {
        run: spec.name.clone(),
        fleet: fleet.name.clone(),
        peers: fleet.peers(),
        tokens,
        budget: args.budget,
        deadline: args.deadline,
        search: found,
        commands,
    })
}

/// The outer steps that are tried; `None` where nothing is asked for.
struct OuterSteps {
    inner_steps: Option<Vec<u32>>,
    codecs: Option<Vec<&'static str>>,
}

impl OuterSteps {
    /// Reads each of them as a run file with several replicas has it: rule and delay follow from it. What is not asked for and does not
    /// fit the file is left out.
    fn read(&self, args: &PlanArgs, spec: &RunSpec) -> Result<Vec<SyncSpec>, Failure> {
        let usual = [INNER_STEPS.as_slice(), &[spec.sync.inner_steps]].concat();
        let mut inner_steps = self.inner_steps.clone().unwrap_or(usual);
        inner_steps.sort_unstable();
        inner_steps.dedup();
        let own = name(spec.sync.codec);
        let usual =
            CODECS.map(|(name, _)| name).into_iter().filter(|name| *name == own || USUAL.contains(name));
        let codecs = self.codecs.clone().unwrap_or(usual.collect());
        let asked_for = self.inner_steps.is_some() || self.codecs.is_some();
        let mut syncs: Vec<SyncSpec> = Vec::new();
        for (steps, codec) in
            inner_steps.iter().flat_map(|steps| codecs.iter().map(move |codec| (steps, codec)))
        {
            let changes: [Change; 3] = [
                ("pipeline.replicas".into(), "2".into()),
                ("sync.inner_steps".into(), steps.to_string()),
                ("sync.codec".into(), (*codec).into()),
            ];
            match Asked::of(args).read(&changes) {
                Ok((spec, _)) => syncs.push(spec.sync),
                Err(failure) if asked_for => return Err(failure),
                Err(_) => {}
            }
        }
        syncs.dedup();
        Ok(if syncs.is_empty() { vec![spec.sync.clone()] } else { syncs })
    }
}

/// Tries the values that are asked for, in place of the usual ones.
fn narrow(
    space: &mut Space,
    outer: &mut OuterSteps,
    spec: &RunSpec,
    field: &str,
    values: &str,
) -> Result<(), Failure> {
    let refuse = |value: &str, hint: String| {
        Failure::misused(format!("`--sweep {field}={value}` cannot be searched over")).hint(hint)
    };
    let numbers = |least: u64, most: u64| -> Result<Vec<u64>, Failure> {
        let read = |value: &str| {
            let number = value.trim().parse().ok().filter(|number| (least..=most).contains(number));
            number
                .ok_or_else(|| refuse(value.trim(), format!("expected whole numbers from {least} to {most}")))
        };
        values.split(',').map(read).collect()
    };
    let layers = u64::from(spec.model.layers);
    match field {
        "stages" => space.stages = numbers(1, layers)?.into_iter().map(|value| value as usize).collect(),
        "pipeline.replicas" => {
            space.replicas =
                numbers(1, u64::from(u16::MAX))?.into_iter().map(|value| value as usize).collect();
        }
        "pipeline.microbatch_size" => space.microbatch_sizes = small(numbers(1, 4096)?),
        "boundary.width" => space.widths = small(numbers(1, u64::from(spec.model.width))?),
        "sync.inner_steps" => outer.inner_steps = Some(small(numbers(1, 1_000_000)?)),
        "sync.codec" => {
            let read = |value: &str| {
                let found = CODECS.into_iter().find(|(name, _)| *name == value.trim());
                let names = CODECS.map(|(name, _)| name).join(", ");
                found.map(|(name, _)| name).ok_or_else(|| refuse(value.trim(), format!("expected {names}")))
            };
            outer.codecs = Some(values.split(',').map(read).collect::<Result<_, _>>()?);
        }
        _ => {
            let hint = format!(
                "with --search, --sweep says what is tried of {FIELDS}; --set changes any other field"
            );
            return Err(refuse(values, hint));
        }
    }
    Ok(())
}

fn small(values: Vec<u64>) -> Vec<u32> {
    values.into_iter().map(|value| u32::try_from(value).unwrap_or(u32::MAX)).collect()
}

fn limits(budget: Option<f64>, deadline: Option<f64>) -> String {
    let budget = budget.map(|dollars| format!("for at most ${dollars:.2}"));
    let deadline = deadline.map(|seconds| format!("within {}", span(seconds)));
    budget.into_iter().chain(deadline).collect::<Vec<_>>().join(" ")
}

/// Says how a shape is asked for.
fn command(args: &PlanArgs, spec: &RunSpec, fleet: &Fleet, shape: &Shape) -> String {
    let mut changes: Vec<Change> =
        args.set.iter().filter_map(|text| assignment("--set", text).ok()).collect();
    let mut set = |field: &str, value: String| {
        changes.retain(|(other, _)| other != field);
        changes.push((field.into(), value));
    };
    set("pipeline.replicas", shape.replicas.to_string());
    let unused = fleet.groups.iter().filter(|group| !shape.groups.contains(&group.name));
    unused.for_each(|group| set(&format!("fleet.{}.count", group.name), "0".into()));
    let layers: Vec<String> = shape.layers.iter().map(ToString::to_string).collect();
    set("pipeline.stage_layers", format!("[{}]", layers.join(",")));
    set("pipeline.microbatch_size", shape.microbatch_size.to_string());
    set("pipeline.microbatches_per_step", shape.microbatches.to_string());
    set("pipeline.in_flight_max", shape.in_flight.to_string());
    if let Some(width) = shape.width.filter(|width| *width != spec.boundary.width) {
        set("boundary.width", width.to_string());
    }
    if let Some((inner_steps, codec)) = shape.sync {
        set("sync.inner_steps", inner_steps.to_string());
        set("sync.codec", codec.into());
    }
    let words: Vec<String> =
        changes.into_iter().map(|(field, value)| format!(" --set {field}={value}")).collect();
    let (run, fleet) = (args.run_file.display(), args.fleet.display());
    format!("trestle plan {run} --fleet {fleet}{}", words.concat())
}

/// Returns whether nothing that was found is both faster and cheaper.
fn is_on_the_front(all: &[Found], one: &Found) -> bool {
    let better = |other: &Found| {
        let (a, b) = (other.figures, one.figures);
        a.seconds <= b.seconds && a.dollars <= b.dollars && (a.seconds < b.seconds || a.dollars < b.dollars)
    };
    !all.iter().any(better)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, fleet, peers, search, .. } = self;
        let limits = limits(self.budget, self.deadline);
        writeln!(
            f,
            "run          {run} on {fleet}: {peers} peers; {} tokens {limits}",
            count(self.tokens as u64)
        )?;
        writeln!(
            f,
            "tried        {} shapes that fit, {} of them played",
            count(search.shapes as u64),
            search.played
        )?;
        writeln!(f)?;
        writeln!(
            f,
            "time      $           tokens/s    efficiency  stages x replicas  in flight  microbatch  boundary  H    codec       peers of"
        )?;
        let front: Vec<bool> =
            search.found.iter().map(|found| is_on_the_front(&search.found, found)).collect();
        let spare = ROWS_MAX.saturating_sub(front.iter().filter(|on| **on).count());
        let mut others = 0;
        for (found, on) in search.found.iter().zip(&front) {
            others += usize::from(!on);
            if *on || others <= spare {
                row(f, found, *on)?;
            }
        }
        let left_out = others.saturating_sub(spare);
        writeln!(
            f,
            "\n* nothing is both faster and cheaper; the others have more frequent outer steps, a finer codec, or a wider boundary"
        )?;
        if left_out > 0 {
            writeln!(f, "  {left_out} more of them are in --json")?;
        }
        let cheapest = (0..search.found.len())
            .min_by(|a, b| search.found[*a].figures.dollars.total_cmp(&search.found[*b].figures.dollars));
        for (name, at) in [("fastest", Some(0)), ("cheapest", cheapest)] {
            if let Some(command) = at.and_then(|at| self.commands.get(at)) {
                writeln!(f, "\n{name}: {command}")?;
            }
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, Found { shape, figures }: &Found, on_the_front: bool) -> fmt::Result {
    let (inner_steps, codec) =
        shape.sync.map_or(("-".into(), "-"), |(steps, codec)| (steps.to_string(), codec));
    let width = shape.width.map_or("all".into(), |width| width.to_string());
    let shaped = format!("{} x {}", shape.layers.len(), shape.replicas);
    writeln!(
        f,
        "{:<8}  {:<10}  {:<10}  {:<10}  {shaped:<17}  {:<9}  {:<10}  {width:<8}  {inner_steps:<3}  {codec:<10}  {}{}",
        span(figures.seconds),
        format!("{:.2}", figures.dollars),
        count(figures.pace.tokens_per_second.round() as u64),
        percent(figures.pace.product()),
        shape.in_flight,
        shape.microbatch_size,
        shape.groups.join(", "),
        if on_the_front { " *" } else { "" }
    )
}
