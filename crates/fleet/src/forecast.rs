//! What a fleet would do with a run: who holds what, how fast it trains, where the time goes, what it costs.
//!
//! Owns how cost, placement, pipeline and exchange come together. Knows nothing of how that is shown.

use crate::availability::parts_of_day;
use crate::cost::{self, Spans, StageWork};
use crate::exchange::{Exchange, Traffic};
use crate::file::{Fleet, Group};
use crate::layers;
use crate::pipeline::{self, Bar, Load, Replica, Staleness};
use crate::placement::{self, Class, Placement, Unplaceable};
use serde::Serialize;
use trestle_protocol::spec::{RunSpec, Schedule};

const HOUR: f64 = 3600.0;

/// Blocks are cut otherwise only where the slowest stage becomes that much faster.
const WORTH: f64 = 1.02;

/// What a stage looks like in a forecast.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageForecast {
    /// Its work.
    pub work: StageWork,
    /// How many peers of each group hold it, by the group's name.
    pub holders: Vec<(String, usize)>,
    /// The part of the time of an inner step in which its peers compute.
    pub busy: f64,
    /// Seconds that its replicas exchange in an outer step.
    pub exchange: f64,
    /// The smallest memory of its peers, in bytes.
    pub memory: f64,
}

/// How fast a run trains.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pace {
    /// Seconds of an inner step, while nobody fails and nothing is exchanged.
    pub step: f64,
    /// Seconds that all stand still in an outer step.
    pub stall: f64,
    /// The part of the peers' speed that is left when some are gone and their work is done again.
    pub kept: f64,
    /// The part of the time in which the run trains, and does not stand still for an outer step.
    pub utilisation: f64,
    /// Operations of the tokens trained, as a part of what the devices could do, while the run trains.
    pub mfu: f64,
    /// Tokens a second, with everything.
    pub tokens_per_second: f64,
}

/// A forecast.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Its stages.
    pub stages: Vec<StageForecast>,
    /// The group of each replica of each stage, counted in the order of the file.
    pub groups: Vec<Vec<usize>>,
    /// How fast it trains.
    pub pace: Pace,
    /// Microbatches a second of the slowest stage by itself, and the most that any placement could give.
    pub placement: (f64, f64),
    /// Blocks of each stage that would suit the fleet better, and how much faster the slowest stage would be.
    pub better_layers: Option<(Vec<u32>, f64)>,
    /// How much faster the slowest stage is than if peers had been placed in the order of the file.
    pub placed_gain: Option<f64>,
    /// Peers without a place.
    pub spares: usize,
    /// Dollars an hour for those with a place.
    pub price_per_hour: f64,
    /// What the run would be without one thing or another.
    pub without: Vec<(Loss, Pace)>,
    /// What it would be at other failure rates, each of a peer in an hour.
    pub churn: Vec<(f64, Pace)>,
}

/// Something that costs time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Peers fail.
    Failures,
    /// The replicas of a stage wait for each other's weights.
    Exchange,
    /// Messages take time to arrive.
    Links,
    /// Stages wait for a pipeline that drains, or for too few microbatches in flight.
    Waits,
    /// Stages are not equally fast.
    Imbalance,
    /// The forward is done again.
    Recompute,
}

/// What is left out of a forecast, to see what it costs.
const LOSSES: [Loss; 6] =
    [Loss::Failures, Loss::Exchange, Loss::Links, Loss::Waits, Loss::Imbalance, Loss::Recompute];

/// Failure rates of a peer in an hour that a forecast is also made for.
const CHURN: [f64; 3] = [0.05, 0.10, 0.25];

impl Pace {
    /// Returns MFU x utilisation: the part of what the devices could do that is in the weights.
    pub fn product(&self) -> f64 {
        self.mfu * self.utilisation
    }
}

impl Forecast {
    /// Says what a fleet would do with a run.
    ///
    /// # Errors
    /// The run has more places than the fleet has peers, or a stage fits into too few peers' memory.
    pub fn of(spec: &RunSpec, fleet: &Fleet) -> Result<Self, Unplaceable> {
        let works = cost::stages(spec);
        let replicas = usize::from(spec.pipeline.replicas);
        let classes = classes(spec, fleet, &works);
        let placement = placement::place(&classes, works.len(), replicas)?;
        let mut scene = Scene { spec, fleet, works: &works, placement: &placement, step: 0.0 };
        scene.step = scene.step(None);
        let pace = scene.pace(None, None);
        let without = LOSSES.iter().map(|loss| (*loss, scene.pace(Some(*loss), None)));
        let churn = CHURN.iter().map(|rate| (*rate, scene.pace(None, Some(*rate))));
        let placed = works.len() * replicas;
        Ok(Self {
            pace,
            groups: placement.stages.clone(),
            placement: (placement.rate, placement.bound),
            better_layers: better_layers(spec, fleet, Some(&placement))
                .filter(|(_, rate)| *rate > WORTH * placement.rate)
                .map(|(layers, rate)| (layers, rate / placement.rate)),
            placed_gain: placement::in_order(&classes, works.len(), replicas)
                .map(|rate| placement.rate / rate),
            spares: fleet.peers() - placed,
            price_per_hour: placement.stages.iter().flatten().map(|group| fleet.groups[*group].price).sum(),
            without: without.collect(),
            churn: churn.collect(),
            stages: (0..works.len()).map(|stage| scene.stage(stage, &pace)).collect(),
        })
    }

    /// Lists what each replica computes in an inner step with everyone there, and how long that is, in seconds.
    ///
    /// # Errors
    /// As [`Forecast::of`].
    pub fn timeline(spec: &RunSpec, fleet: &Fleet) -> Result<(Vec<Bar>, f64), Unplaceable> {
        let works = cost::stages(spec);
        let replicas = usize::from(spec.pipeline.replicas);
        let placement = placement::place(&classes(spec, fleet, &works), works.len(), replicas)?;
        let scene = Scene { spec, fleet, works: &works, placement: &placement, step: 0.0 };
        let (played, load) = scene.played(&scene.replicas(None));
        Ok(pipeline::timeline(&played, &load))
    }

    /// Returns the dollars for a billion tokens.
    pub fn price_per_billion(&self) -> f64 {
        self.price_per_hour / HOUR / self.pace.tokens_per_second * 1e9
    }

    /// Returns the seconds until so many tokens are trained.
    pub fn seconds_for(&self, tokens: f64) -> f64 {
        tokens / self.pace.tokens_per_second
    }
}

/// A run's work and who would hold it: what of a forecast does not depend on its outer steps.
#[derive(Clone, Debug)]
pub struct Outline {
    works: Vec<StageWork>,
    placement: Placement,
}

impl Outline {
    /// Places a run on a fleet.
    ///
    /// # Errors
    /// As [`Forecast::of`].
    pub fn of(spec: &RunSpec, fleet: &Fleet) -> Result<Self, Unplaceable> {
        let works = cost::stages(spec);
        let replicas = usize::from(spec.pipeline.replicas);
        let placement = placement::place(&classes(spec, fleet, &works), works.len(), replicas)?;
        Ok(Self { works, placement })
    }

    fn scene<'a>(&'a self, spec: &'a RunSpec, fleet: &'a Fleet, step: f64) -> Scene<'a> {
        Scene { spec, fleet, works: &self.works, placement: &self.placement, step }
    }

    /// Returns the seconds of an inner step if no stage ever waited: no less than it takes.
    pub fn least_step(&self, spec: &RunSpec, fleet: &Fleet) -> f64 {
        self.scene(spec, fleet, 0.0).step(Some(Loss::Waits))
    }

    /// Returns the seconds of an inner step with everyone there.
    pub fn step(&self, spec: &RunSpec, fleet: &Fleet) -> f64 {
        self.scene(spec, fleet, 0.0).step(None)
    }

    /// Returns how fast the run trains, where an inner step takes so many seconds.
    pub fn pace(&self, spec: &RunSpec, fleet: &Fleet, step: f64) -> Pace {
        self.scene(spec, fleet, step).pace(None, None)
    }

    /// Returns the dollars an hour for the peers with a place.
    pub fn price_per_hour(&self, fleet: &Fleet) -> f64 {
        self.placement.stages.iter().flatten().map(|group| fleet.groups[*group].price).sum()
    }
}

/// Cuts the blocks of a run as suits a fleet best, of the ways that are known; gives the rate of the slowest stage with it.
pub fn better_layers(
    spec: &RunSpec,
    fleet: &Fleet,
    placement: Option<&Placement>,
) -> Option<(Vec<u32>, f64)> {
    let replicas = usize::from(spec.pipeline.replicas);
    let rated = layers::proposals(spec, fleet, placement).into_iter().filter_map(|layers| {
        let other = layers::with_layers(spec, &layers);
        let works = cost::stages(&other);
        let placed = placement::place(&classes(&other, fleet, &works), works.len(), replicas).ok()?;
        Some((layers, placed.rate))
    });
    rated.max_by(|a, b| a.1.total_cmp(&b.1))
}

fn classes(spec: &RunSpec, fleet: &Fleet, works: &[StageWork]) -> Vec<Class> {
    let microbatches = f64::from(spec.pipeline.microbatches_per_step);
    let class = |group: &Group| {
        let rate = |(stage, work): (usize, &StageWork)| {
            let fits = work.memory.total() as f64 <= group.device.memory;
            let before = stage.checked_sub(1).map_or(0.0, |before| works[before].message);
            let both = work.message + before;
            let spans = work.on(&group.device);
            let computes = spans.microbatch() + spans.step / microbatches;
            fits.then(|| 1.0 / computes.max(both / group.up).max(both / group.down))
        };
        Class { count: group.count, rates: works.iter().enumerate().map(rate).collect() }
    };
    fleet.groups.iter().map(class).collect()
}

struct Scene<'a> {
    spec: &'a RunSpec,
    fleet: &'a Fleet,
    works: &'a [StageWork],
    placement: &'a Placement,
    /// Seconds of an inner step with everyone there.
    step: f64,
}

impl Scene<'_> {
    fn group(&self, group: usize) -> &Group {
        &self.fleet.groups[group]
    }

    fn spans(&self, stage: usize, group: usize, without: Option<Loss>) -> Spans {
        let (work, device) = (&self.works[stage], &self.group(group).device);
        if without == Some(Loss::Recompute) { work.done_once().on(device) } else { work.on(device) }
    }

    fn replicas(&self, without: Option<Loss>) -> Vec<Vec<Replica>> {
        let replica = |stage: usize, group: usize| {
            let Group { up, down, rtt, .. } = *self.group(group);
            let spans = self.spans(stage, group, without);
            // Half a round trip from peer to peer, a quarter from a peer to the middle.
            let link = Replica { spans, up, down, delay: rtt / 4.0 };
            let none = Replica { spans, up: f64::INFINITY, down: f64::INFINITY, delay: 0.0 };
            if without == Some(Loss::Links) { none } else { link }
        };
        let stages = self.placement.stages.iter().enumerate();
        stages.map(|(stage, groups)| groups.iter().map(|group| replica(stage, *group)).collect()).collect()
    }

    /// Returns the seconds of an inner step with everyone there, as long as nothing but failures and outer steps is left out.
    fn step_without(&self, without: Option<Loss>) -> f64 {
        match without {
            None | Some(Loss::Failures | Loss::Exchange) => self.step,
            Some(Loss::Links | Loss::Waits | Loss::Imbalance | Loss::Recompute) => self.step(without),
        }
    }

    /// Returns the replicas of each stage that stand for all, and what goes through them.
    fn played(&self, replicas: &[Vec<Replica>]) -> (Vec<Vec<Replica>>, Load) {
        let played: Vec<Vec<Replica>> = replicas.iter().map(|stage| sample(stage)).collect();
        let load = self.load(self.microbatches() * played[0].len() / replicas[0].len());
        (played, load)
    }

    /// Returns the microbatches of an inner step of all replicas.
    fn microbatches(&self) -> usize {
        let pipeline = &self.spec.pipeline;
        pipeline.microbatches_per_step as usize * usize::from(pipeline.replicas)
    }

    fn step(&self, without: Option<Loss>) -> f64 {
        let replicas = self.replicas(without);
        let microbatches = self.microbatches();
        // Seconds of a step in which a stage's peers compute all the time.
        let alone = |stage: &Vec<Replica>| {
            let rates: f64 = stage.iter().map(|replica| 1.0 / replica.spans.microbatch()).sum();
            let steps: f64 = stage.iter().map(|r| r.spans.step / r.spans.microbatch()).sum();
            (microbatches as f64 + steps) / rates
        };
        let slowest = replicas.iter().map(alone).fold(0.0, f64::max);
        if without == Some(Loss::Waits) {
            return slowest;
        }
        let (played, load) = self.played(&replicas);
        let step = pipeline::step_seconds(&played, &load);
        let mean = replicas.iter().map(alone).sum::<f64>() / replicas.len() as f64;
        if without == Some(Loss::Imbalance) { step * mean / slowest } else { step }
    }

    fn load(&self, step_microbatches: usize) -> Load {
        let pipeline = &self.spec.pipeline;
        Load {
            messages: self.works.iter().map(|work| work.message).collect(),
            step_microbatches,
            in_flight_max: pipeline.in_flight_max as usize,
            staleness: match pipeline.schedule {
                Schedule::Flush => Staleness(0),
                Schedule::Async { staleness_max } => Staleness(u64::from(staleness_max)),
            },
            routing: self.fleet.routing,
        }
    }

    /// Returns the seconds of the exchange of a stage: its slowest replica's.
    fn exchange(&self, stage: usize) -> f64 {
        let groups = &self.placement.stages[stage];
        let exchange = self.fleet.exchange;
        let traffic: Traffic = exchange.traffic(&self.spec.sync, self.works[stage].parameters, groups.len());
        let seconds = |group: &usize| {
            let Group { up, down, rtt, .. } = *self.group(*group);
            // Offer, claim, vote and commit go round once each.
            exchange.seconds(traffic, up, down) + 4.0 * rtt
        };
        if groups.len() < 2 { 0.0 } else { groups.iter().map(seconds).fold(0.0, f64::max) }
    }

    fn pace(&self, without: Option<Loss>, failures_per_hour: Option<f64>) -> Pace {
        let spec = self.spec;
        let step = self.step_without(without);
        let exchanges = (0..self.works.len()).map(|stage| self.exchange(stage)).fold(0.0, f64::max);
        let between = f64::from(spec.sync.inner_steps);
        let steady = without == Some(Loss::Failures);
        let kept = if steady { 1.0 } else { self.kept(failures_per_hour, exchanges) };
        let trains = step / kept;
        let waits = (exchanges - f64::from(spec.sync.delay) * trains).max(0.0);
        let stall = if without == Some(Loss::Exchange) { 0.0 } else { waits };
        let utilisation = between * trains / (between * trains + stall);
        let tokens = spec.step_tokens() as f64;
        let peaks = self
            .placement
            .stages
            .iter()
            .flatten()
            .map(|group| self.group(*group).device.peak(spec.pipeline.compute));
        let mfu = cost::counted_operations(spec) * tokens / trains / peaks.sum::<f64>();
        Pace { step, stall, kept, utilisation, mfu, tokens_per_second: tokens / trains * utilisation }
    }

    /// Returns the part of the speed that is left under failures, and at the times of day at which not all are there: the mean, over
    /// who is there, of the stage that has least left; less what is done again, half of what a replica trains between two commits, in
    /// passes through all stages.
    fn kept(&self, failures_per_hour: Option<f64>, stall: f64) -> f64 {
        let of = |group: usize| &self.group(group).availability;
        let rate = |group: usize| failures_per_hour.unwrap_or(of(group).failures_per_hour);
        let day = parts_of_day(self.placement.stages.iter().flatten().map(|group| of(*group)));
        let at = |time: f64| {
            let stage = |(stage, groups): (usize, &Vec<usize>)| {
                left_of(groups.iter().map(|group| {
                    let away = self.away(stage, *group, stall);
                    let is_on = of(*group).online.is_none_or(|online| online.is_on(time));
                    let there = if is_on { 1.0 / (1.0 + rate(*group) / HOUR * away) } else { 0.0 };
                    (1.0 / self.spans(stage, *group, None).microbatch(), there)
                }))
            };
            let stages: Vec<_> = self.placement.stages.iter().enumerate().map(stage).collect();
            mean_of_least(&stages)
        };
        let left: f64 = day.into_iter().map(|(part, time)| part * at(time)).sum();
        let placed = self.placement.stages.iter().flatten();
        let (peers, failures) =
            placed.fold((0.0, 0.0), |(n, sum), group| (n + 1.0, sum + rate(*group) / HOUR));
        let between_commits = f64::from(self.spec.sync.inner_steps) * self.step;
        let passes = match self.fleet.exchange {
            // What is done again goes through all stages.
            Exchange::Butterfly => self.works.len() as f64,
            // What was not handed in is not done again, but it is not there either.
            Exchange::Bridge => 1.0,
        };
        left / (1.0 + passes * failures / peers * between_commits / 2.0)
    }

    /// Returns the seconds from a failure until a peer trains in its place: until it is replaced, has fetched the stage's state, and
    /// may begin.
    fn away(&self, stage: usize, group: usize, stall: f64) -> f64 {
        let spec = self.spec;
        let others = self.placement.stages[stage].iter().map(|other| self.group(*other).up);
        // Its own place is empty: one of its kind does not send.
        let up = (others.sum::<f64>() - self.group(group).up).max(0.0);
        let Group { down, availability, .. } = self.group(group);
        let work = &self.works[stage];
        let fetch = |bytes: f64| bytes / down.min(up).max(f64::MIN_POSITIVE);
        let entry = match self.fleet.exchange {
            // State of each parameter in f32, at the next inner step.
            Exchange::Butterfly if up > 0.0 => fetch(work.state_bytes(spec)) + self.step,
            // With nobody to fetch from, from its disk.
            Exchange::Butterfly => self.step,
            // The weights, in bf16, from the one place that has them, at the next outer step: half of one, on the mean.
            Exchange::Bridge => {
                let outer = f64::from(spec.sync.inner_steps) * self.step + stall;
                2.0 * work.parameters as f64 / down + outer / 2.0
            }
        };
        availability.replaced_after + entry
    }

    fn stage(&self, stage: usize, pace: &Pace) -> StageForecast {
        let groups = &self.placement.stages[stage];
        let mut holders: Vec<(String, usize)> = Vec::new();
        for group in groups {
            let name = &self.group(*group).name;
            match holders.iter_mut().find(|(of, _)| of == name) {
                Some((_, count)) => *count += 1,
                None => holders.push((name.clone(), 1)),
            }
        }
        let spans: Vec<Spans> = groups.iter().map(|group| self.spans(stage, *group, None)).collect();
        let pipeline = &self.spec.pipeline;
        let microbatches = f64::from(pipeline.microbatches_per_step) * f64::from(pipeline.replicas);
        let rates: f64 = spans.iter().map(|spans| 1.0 / spans.microbatch()).sum();
        let steps: f64 = spans.iter().map(|spans| spans.step / spans.microbatch()).sum();
        let memory =
            groups.iter().map(|group| self.group(*group).device.memory).fold(f64::INFINITY, f64::min);
        StageForecast {
            work: self.works[stage].clone(),
            holders,
            busy: (microbatches + steps) / rates / pace.step,
            exchange: self.exchange(stage),
            memory,
        }
    }
}

/// Replicas of a stage that are played at most: more of them differ in speed alone.
const PLAYED_MAX: usize = 12;

/// Chooses some replicas of a stage to stand for all, from the fastest to the slowest, which together have their part of the speed
/// of all.
fn sample(stage: &[Replica]) -> Vec<Replica> {
    if stage.len() <= PLAYED_MAX {
        return stage.to_vec();
    }
    let speed = |stage: &[Replica]| stage.iter().map(|replica| 1.0 / replica.spans.microbatch()).sum::<f64>();
    let mut sorted = stage.to_vec();
    sorted.sort_by(|a, b| a.spans.microbatch().total_cmp(&b.spans.microbatch()));
    let at = |i: usize| sorted[(2 * i + 1) * stage.len() / (2 * PLAYED_MAX)];
    let mut chosen: Vec<Replica> = (0..PLAYED_MAX).map(at).collect();
    let longer = speed(&chosen) / PLAYED_MAX as f64 / (speed(stage) / stage.len() as f64);
    for Replica { spans, .. } in &mut chosen {
        *spans = Spans {
            forward: spans.forward * longer,
            backward: spans.backward * longer,
            step: spans.step * longer,
        };
    }
    chosen
}

/// Parts of a stage's speed are told apart to so many parts of a whole.
const PARTS: usize = 1000;

/// Returns how likely each part of a stage's speed is left, for replicas of a speed that are there with a likelihood.
fn left_of(replicas: impl Iterator<Item = (f64, f64)> + Clone) -> Vec<(f64, f64)> {
    let whole: f64 = replicas.clone().map(|(speed, _)| speed).sum();
    let mut likely = vec![0.0; PARTS + 1];
    likely[0] = 1.0;
    // Where each replica's part ends is rounded, and not the part, so that all together are the whole.
    let (mut speeds, mut end) = (0.0, 0);
    for (speed, there) in replicas {
        speeds += speed;
        let next = (speeds / whole * PARTS as f64).round() as usize;
        let part = next - end;
        end = next;
        for at in (0..=end).rev() {
            let with = if at >= part { likely[at - part] * there } else { 0.0 };
            likely[at] = likely[at] * (1.0 - there) + with;
        }
    }
    let parts = likely.into_iter().enumerate().filter(|(_, likely)| *likely > 0.0);
    parts.map(|(at, likely)| (at as f64 / PARTS as f64, likely)).collect()
}

/// Returns the mean of the least over stages, each of which has parts left with some likelihood.
fn mean_of_least(stages: &[Vec<(f64, f64)>]) -> f64 {
    let mut levels: Vec<f64> = stages.iter().flatten().map(|(part, _)| *part).collect();
    levels.sort_by(f64::total_cmp);
    levels.dedup();
    let at_least = |level: f64| -> f64 {
        let one = |stage: &Vec<(f64, f64)>| -> f64 {
            stage.iter().filter(|(part, _)| *part >= level).map(|(_, likely)| likely).sum()
        };
        stages.iter().map(one).product()
    };
    // The mean of what is not below 0 is the sum of how likely it is to be at least so much.
    let mut before = 0.0;
    let mut mean = 0.0;
    for level in levels {
        mean += (level - before) * at_least(level);
        before = level;
    }
    mean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_part_of_the_speed() {
        let replica = |forward: f64| Replica {
            spans: Spans { forward, backward: 2.0 * forward, step: 0.1 },
            up: 1e6,
            down: 1e6,
            delay: 0.01,
        };
        let stage: Vec<Replica> = (0..50).map(|at| replica(1.0 + f64::from(at) / 10.0)).collect();
        let speed = |stage: &[Replica]| stage.iter().map(|r| 1.0 / r.spans.microbatch()).sum::<f64>();
        let chosen = sample(&stage);
        assert_eq!(chosen.len(), PLAYED_MAX);
        let ratio = speed(&chosen) / PLAYED_MAX as f64 / (speed(&stage) / 50.0);
        assert!((ratio - 1.0).abs() < 1e-9, "{ratio}");
        assert_eq!(sample(&stage[..12]), stage[..12]);
    }

    #[test]
    fn what_is_left_of_stages_is_counted_out() {
        let alike = || [(1.0, 0.9), (1.0, 0.9)].into_iter();
        let one = left_of(alike());
        let want = [(0.0, 0.01), (0.5, 0.18), (1.0, 0.81)];
        assert!(
            one.iter().zip(want).all(|(a, b)| (a.0 - b.0).abs() < 1e-9 && (a.1 - b.1).abs() < 1e-9),
            "{one:?}"
        );
        let mean = mean_of_least(&[one.clone(), one]);
        // Both whole: 0.6561; the least is a half where neither is gone and not both are whole: 0.99^2 - 0.6561.
        let want = 0.6561 + 0.5 * (0.9801 - 0.6561);
        assert!((mean - want).abs() < 1e-9, "{mean}, not {want}");
        let three = left_of([(1.0, 1.0); 3].into_iter());
        assert_eq!(three, [(1.0, 1.0)]);
    }
}
