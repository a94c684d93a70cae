//! A run on a fleet, in virtual time, by the protocol itself.
//!
//! Owns the way from a fleet file to a swarm: devices, links, who comes and goes, and what that costs. Takes no decision of the
//! protocol, and places peers as the planner does.

use crate::compute::{Compute, Rate, Spans};
use crate::cost::{Chunks, CostModel, Sizes};
use crate::draws::Permille;
use crate::fault::{DiskFate, Fault, Faults, Restart, Transport, When, Whom};
use crate::laws;
use crate::link::{Link, Shared};
use crate::run::check_model;
use crate::swarm::{Ending, SimOutcome, Swarm, SwarmConfig, SwarmError, Weights};
use bytes::Bytes;
use std::io::Write;
use trestle_fleet::availability::{Disk, Outage};
use trestle_fleet::cost::{self, StageWork};
use trestle_fleet::exchange::contribution_bytes;
use trestle_fleet::file::{Fleet, Group};
use trestle_fleet::forecast::Forecast;
use trestle_fleet::placement::Unplaceable;
use trestle_protocol::message::Outcome;
use trestle_protocol::receipt::Seals;
use trestle_protocol::spec::RunSpec;
use trestle_protocol::time::Span;

/// How far a computation lies from its mean, and a transfer: as on machines that do nothing else, and links that others use too.
const COMPUTE_JITTER: Permille = Permille(20);
const LINK_JITTER: Permille = Permille(50);

/// Bytes a second between a device and its host: PCIe 4.0 x16, of 32 GB/s what copies reach.
const HOST_RATE: f64 = 20e9;

/// Bytes a second of f32 that a processor encodes, reduces or stages beside training (BENCHMARKS.md, "Codecs of the outer step").
const BESIDE_RATE: f64 = 2e9;

/// Bytes a second of a disk: a solid-state disk's writes, as rented machines have it.
const DISK_RATE: f64 = 1e9;

/// What a stage's pseudo-gradient is brought down to, or less, and has at least, since it tells what it consists of. A state is brought down
/// as its weights are.
const CONTRIBUTION: u64 = 512 * 1024;
const CONTRIBUTION_MIN: u64 = 64 * 1024;

/// Bytes that a chunk stands for at most, and chunks of a shard or of a part of a state at most.
const CHUNK_BYTES: f64 = 32e6;
const CHUNKS_MAX: u64 = 1024;

/// Before this nobody goes: a run begins when all have come.
const BEGINS: f64 = 60.0;

/// Runs are taken to be stuck after so many inner steps without one.
const SILENT_STEPS: f64 = 50.0;

/// What is asked about a fleet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ask {
    /// Decides every draw.
    pub seed: u64,
    /// Virtual seconds after which the run is told to end at its next border; else it runs to its last step.
    pub until: Option<f64>,
}

/// Why a fleet cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum FleetRunError {
    /// It cannot hold the run.
    #[error("the fleet cannot hold the run: {0}")]
    Unplaceable(#[from] Unplaceable),
    /// The swarm cannot be run.
    #[error("{0}")]
    Swarm(#[from] SwarmError),
}

/// What came of a run on a fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetOutcome {
    /// The whole outcome.
    pub sim: SimOutcome,
    /// What the planner says of it.
    pub forecast: Forecast,
    /// Laws that were broken, in words.
    pub broken: Vec<String>,
    /// Tokens of complete inner steps.
    pub tokens: f64,
    /// Seconds from the first lease to the last complete step.
    pub seconds: f64,
    /// Outages that began in that time.
    pub outages: usize,
    /// Dollars for the peers with a place, while they were there.
    pub dollars: f64,
    /// MFU while the run trains: operations of the tokens over the peaks of all peers with a place, there or not.
    pub mfu: f64,
    /// The part of the time in which members did not stand still for an outer step.
    pub utilisation: f64,
    /// The part of the time in which the peers with a place were there.
    pub there: f64,
}

impl FleetOutcome {
    /// Returns the tokens a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens / self.seconds.max(1e-6)
    }

    /// Returns the dollars for a billion tokens.
    pub fn price_per_billion(&self) -> f64 {
        self.dollars / self.tokens.max(1.0) * 1e9
    }

    /// Returns how many (microbatch, stage) pairs of complete work were planned and not credited.
    pub fn lost(&self) -> u64 {
        self.sim.tally.planned.saturating_sub(self.sim.tally.credited)
    }
}

/// Plays a run on a fleet, whose event log goes to `log`.
///
/// # Errors
/// The fleet cannot hold the run, or it cannot be simulated.
pub fn run_fleet(
    spec: &RunSpec,
    fleet: &Fleet,
    ask: Ask,
    log: &mut dyn Write,
) -> Result<FleetOutcome, FleetRunError> {
    check_model(spec).map_err(SwarmError::from)?;
    let forecast = Forecast::of(spec, fleet)?;
    let crew = Crew::of(fleet, &forecast);
    let length = ask.until.unwrap_or_else(|| 3.0 * forecast.seconds_for(whole_tokens(spec)));
    let outages = crew.outages(ask.seed, length);
    let works = cost::stages(spec);
    let scale = Scale::of(spec, &works);
    let config = SwarmConfig {
        spec: spec.clone(),
        seed: ask.seed,
        link: link(0.0, 0.0, 0.04),
        own_links: crew.groups.iter().enumerate().map(|(at, group)| (at + 1, link_of(group))).collect(),
        spans: scale.spans(&works, crew.groups[0]),
        own_spans: crew
            .groups
            .iter()
            .enumerate()
            .map(|(at, group)| (at + 1, scale.spans(&works, group)))
            .collect(),
        weights: scale.weights,
        // Nobody lies here.
        seals: Seals::Hashed,
    };
    let boundary = Bytes::from(vec![0; spec.boundary_bytes()]);
    let maker = |spec: &RunSpec| -> Box<dyn Compute> {
        Box::new(CostModel::new(spec, boundary.clone(), scale.sizes.clone()))
    };
    let mut swarm = Swarm::new(config, &maker, log);
    swarm.run(crew.faults(&outages, ask, forecast.pace.step))?;
    Ok(crew.outcome(spec, forecast, swarm.finish(), &outages))
}

fn whole_tokens(spec: &RunSpec) -> f64 {
    spec.step_tokens() as f64 * spec.training.steps as f64
}

/// The peers that take part: those with a place, in the order of the places, and behind them the spares.
struct Crew<'a> {
    groups: Vec<&'a Group>,
    /// Each one's number in its group.
    numbers: Vec<usize>,
    placed: usize,
}

impl<'a> Crew<'a> {
    fn of(fleet: &'a Fleet, forecast: &Forecast) -> Self {
        let mut used = vec![0; fleet.groups.len()];
        let mut all = Vec::new();
        for &group in forecast.groups.iter().flatten() {
            all.push((group, used[group]));
            used[group] += 1;
        }
        let placed = all.len();
        for (group, used) in used.iter().enumerate() {
            all.extend((*used..fleet.groups[group].count).map(|number| (group, number)));
        }
        let groups = all.iter().map(|(group, _)| &fleet.groups[*group]).collect();
        Self { groups, numbers: all.iter().map(|(_, number)| *number).collect(), placed }
    }

    fn outages(&self, seed: u64, length: f64) -> Vec<Vec<Outage>> {
        let of = |(at, group): (usize, &&Group)| {
            // Each group draws for itself.
            let name: u64 =
                group.name.bytes().fold(seed, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
            let seed = if group.availability.trace.is_some() { seed } else { name };
            let outages = group.availability.outages(seed, self.numbers[at], length).into_iter();
            let late = outages.map(|(from, until)| (from.max(BEGINS), until));
            late.filter(|(from, until)| until > from).collect()
        };
        self.groups.iter().enumerate().map(of).collect()
    }

    fn faults(&self, outages: &[Vec<Outage>], ask: Ask, step: f64) -> Faults {
        let mut planned = Vec::new();
        for (at, outages) in outages.iter().enumerate() {
            let disk = match self.groups[at].availability.disk {
                Disk::Kept => DiskFate::Kept,
                Disk::Lost => DiskFate::Lost,
            };
            for (from, until) in outages {
                let restart = Some(Restart { after: span(until - from), disk });
                planned.push((When::After(span(*from)), Fault::Kill { whom: Whom::Peer(at + 1), restart }));
            }
        }
        planned.extend(ask.until.map(|until| (When::After(span(until)), Fault::Drain)));
        let usual = Transport::default();
        let transport = Transport {
            silence_max: usual.silence_max.max(span(SILENT_STEPS * step)),
            happenings_max: u64::MAX,
            ..usual
        };
        let spares = (self.groups.len() - self.placed) as u32;
        Faults { planned, transport, spares, ..Faults::default() }
    }

    fn outcome(
        &self,
        spec: &RunSpec,
        forecast: Forecast,
        sim: SimOutcome,
        outages: &[Vec<Outage>],
    ) -> FleetOutcome {
        let tally = &sim.tally;
        let begun = tally.started.unwrap_or_default();
        let (from, until) = (begun.0 as f64 / 1e6, tally.stepped.0 as f64 / 1e6);
        let seconds = until - from;
        let away = |outages: &Vec<Outage>| -> f64 {
            outages.iter().map(|(gone, back)| (back.min(until) - gone.max(from)).max(0.0)).sum()
        };
        let of_placed = || self.groups.iter().zip(outages).take(self.placed);
        let there: f64 = of_placed().map(|(_, outages)| seconds - away(outages)).sum();
        let dollars =
            of_placed().map(|(group, outages)| group.price * (seconds - away(outages)) / 3600.0).sum();
        let peaks: f64 = of_placed().map(|(group, _)| group.device.peak(spec.pipeline.compute)).sum();
        let whole = tally.course.whole();
        let utilisation = if whole.wall > 0.0 { 1.0 - whole.sync / whole.wall } else { 1.0 };
        let tokens = whole.tokens;
        let operations = cost::counted_operations(spec) * tokens;
        let mfu = operations / (peaks * seconds * utilisation).max(1.0);
        FleetOutcome {
            broken: broken(&sim),
            tokens,
            seconds,
            outages: outages.iter().flatten().filter(|(gone, _)| *gone < until).count(),
            dollars,
            mfu,
            utilisation,
            there: there / (seconds * self.placed as f64).max(1e-6),
            forecast,
            sim,
        }
    }
}

/// Lists the laws that a run broke; one that was told to end has done a part of its work, as much as it says.
fn broken(sim: &SimOutcome) -> Vec<String> {
    let stopped = matches!(sim.endings.last(), Some(Ending::Left(Outcome::Stopped { .. })));
    if !stopped {
        let mut broken = laws::broken(sim);
        broken.extend(sim.waits.iter().cloned());
        return broken;
    }
    let mut broken = laws::broken_on_the_way(sim);
    let (planned, credited) = (sim.tally.planned, sim.tally.credited);
    if planned != credited {
        broken.push(format!("{planned} (microbatch, stage) pairs were planned and {credited} credited"));
    }
    broken
}

/// How much smaller than in truth what is too large for a simulator's memory is made.
struct Scale {
    sizes: Sizes,
    weights: Weights,
    /// Bytes of weights in f32 for each byte of a contribution here.
    scale: f64,
}

impl Scale {
    fn of(spec: &RunSpec, works: &[StageWork]) -> Self {
        let largest = |of: &dyn Fn(&StageWork) -> f64| works.iter().map(of).fold(0.0, f64::max);
        let true_bytes = largest(&|work| contribution_bytes(&spec.sync, work.parameters));
        let times = (true_bytes / CONTRIBUTION as f64).ceil().max(1.0);
        let contribution = ((true_bytes / times) as u64).max(CONTRIBUTION_MIN);
        let parameters = largest(&|work| work.parameters as f64);
        let scale = (4.0 * parameters / contribution as f64).max(1.0);
        let moments = |work: &StageWork| work.memory.moments as f64;
        let agreed = |work: &StageWork| work.state_bytes(spec) - moments(work);
        let small = |bytes: f64| (bytes / scale) as u64;
        let chunks = |bytes: f64| ((bytes / CHUNK_BYTES).ceil() as u64).clamp(1, CHUNKS_MAX);
        let sizes = Sizes {
            contribution,
            agreed: works.iter().map(|work| small(agreed(work))).collect(),
            own: works.iter().map(|work| small(moments(work))).collect(),
            chunks: Chunks {
                shard: Some(chunks(true_bytes / f64::from(spec.pipeline.replicas))),
                state: Some(chunks(largest(&agreed))),
            },
        };
        let weights = Weights { contribution: times as u64, state: scale.round() as u64 };
        Self { sizes, weights, scale }
    }

    /// Returns how long a peer of a group computes at each stage.
    fn spans(&self, works: &[StageWork], group: &Group) -> Vec<Spans> {
        let spans = |work: &StageWork| {
            let cost::Spans { forward, backward, step } = work.on(&group.device);
            // Weights and moments go to the disk and come from it.
            let stored = span((4.0 * work.parameters as f64 + work.memory.moments as f64) / DISK_RATE);
            Spans {
                forward: span(forward),
                backward: span(backward),
                step: span(step),
                save: stored,
                load: stored,
                copy: Rate((HOST_RATE / self.scale) as u64),
                beside: Rate((BESIDE_RATE / self.scale) as u64),
                jitter: COMPUTE_JITTER,
            }
        };
        works.iter().map(spans).collect()
    }
}

fn span(seconds: f64) -> Span {
    Span((seconds * 1e6).round() as u64)
}

/// Makes a link of bytes a second and the seconds of a round trip; 0 does not limit.
fn link(up: f64, down: f64, rtt: f64) -> Link {
    Link {
        latency: span(rtt / 2.0),
        bandwidth: (up * 8.0) as u64,
        downlink: (down * 8.0) as u64,
        shared: Shared::ByPeer,
        jitter: LINK_JITTER,
    }
}

fn link_of(group: &Group) -> Link {
    link(group.up, group.down, group.rtt)
}
