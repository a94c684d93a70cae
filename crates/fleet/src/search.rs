//! Which shape of a run suits a fleet: stages and replicas, microbatch, boundary and outer steps, by time and by money.
//!
//! Owns the shapes that are looked at, and which of them others beat. Knows nothing of what a shape costs the model but that its
//! batch stays as it is, and which way of a choice is the safer one.

use crate::file::Fleet;
use crate::forecast::{Outline, Pace, better_layers};
use crate::layers::with_layers;
use serde::Serialize;
use std::cmp::Ordering;
use trestle_protocol::spec::sync::{SyncCodec, SyncSpec};
use trestle_protocol::spec::{BoundaryForm, Dtype, RunSpec};

/// Stages and replicas that are tried, as far as there are blocks and peers.
const COUNTS: [usize; 14] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128];

/// Microbatches in flight, in multiples of the stages: the most that the memory holds.
const IN_FLIGHT: [usize; 3] = [3, 2, 1];

/// The tokens of an inner step may differ by so much from the run's, where replicas do not divide it.
const BATCH_TOLERANCE: f64 = 0.05;

/// The codecs, as a run file names them, from the finest to the coarsest.
pub const CODECS: [(&str, SyncCodec); 4] = [
    ("f32", SyncCodec::F32),
    ("bf16", SyncCodec::Bf16),
    ("int8", SyncCodec::Int8),
    ("sparseloco", SyncCodec::SparseLoCo),
];

/// Of so many groups, every choice of some is tried; of more, each alone, and the best for their price together.
const GROUPS_MAX: usize = 4;

/// The values that are tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    /// Pipeline stages.
    pub stages: Vec<usize>,
    /// Replicas of each stage; without any, the usual numbers, and as many as there are peers for.
    pub replicas: Vec<usize>,
    /// Samples of a microbatch.
    pub microbatch_sizes: Vec<u32>,
    /// Numbers of a token in a boundary message.
    pub widths: Vec<u32>,
    /// Outer steps.
    pub syncs: Vec<SyncSpec>,
}

impl Space {
    /// Returns what is tried for a run where nothing else is said: no boundary narrower than its own.
    pub fn of(spec: &RunSpec) -> Self {
        let size = spec.pipeline.microbatch_size;
        let mut space = Self {
            stages: [COUNTS.as_slice(), &[usize::from(spec.stages())]].concat(),
            replicas: Vec::new(),
            microbatch_sizes: vec![size / 2, size, 2 * size],
            widths: vec![spec.boundary.width],
            syncs: vec![spec.sync.clone()],
        };
        space.stages.retain(|stages| *stages <= spec.model.layers as usize);
        space.microbatch_sizes.retain(|size| *size > 0);
        space.tidy();
        space
    }

    fn tidy(&mut self) {
        sorted(&mut self.stages);
        sorted(&mut self.replicas);
        sorted(&mut self.microbatch_sizes);
        sorted(&mut self.widths);
    }
}

fn sorted<T: Ord>(values: &mut Vec<T>) {
    values.sort();
    values.dedup();
}

/// What a run has to keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Tokens that are to be trained.
    pub tokens: f64,
    /// Dollars for all of them.
    pub budget: Option<f64>,
    /// Seconds until they are trained.
    pub deadline: Option<f64>,
}

impl Limits {
    fn keep(&self, figures: &Figures) -> bool {
        let within = |limit: Option<f64>, value: f64| limit.is_none_or(|limit| value <= limit);
        within(self.budget, figures.dollars) && within(self.deadline, figures.seconds)
    }
}

/// A shape of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shape {
    /// The groups whose peers may hold a place.
    pub groups: Vec<String>,
    /// Blocks of each stage.
    pub layers: Vec<u32>,
    /// Replicas of each stage.
    pub replicas: u16,
    /// Samples of a microbatch.
    pub microbatch_size: u32,
    /// Microbatches of a replica in an inner step.
    pub microbatches: u32,
    /// Microbatches between first forward and last backward.
    pub in_flight: u32,
    /// Numbers of a token in a boundary message; `None` where all of them cross.
    pub width: Option<u32>,
    /// Inner steps between two outer ones, and the codec; `None` where there is one replica.
    pub sync: Option<(u32, &'static str)>,
}

/// What comes of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// How fast it trains.
    pub pace: Pace,
    /// Dollars an hour for the peers with a place.
    pub price_per_hour: f64,
    /// Seconds for all tokens.
    pub seconds: f64,
    /// Dollars for them.
    pub dollars: f64,
}

impl Figures {
    fn of(pace: Pace, price_per_hour: f64, tokens: f64) -> Self {
        let seconds = tokens / pace.tokens_per_second;
        Self { pace, price_per_hour, seconds, dollars: price_per_hour * seconds / 3600.0 }
    }
}

/// A shape that no other beats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// The shape.
    pub shape: Shape,
    /// What comes of it.
    pub figures: Figures,
}

/// What a search has found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Search {
    /// What nothing beats, the fastest first.
    pub found: Vec<Found>,
    /// Shapes that the fleet can hold.
    pub shapes: usize,
    /// Those of them that were played, for the others could not have been better.
    pub played: usize,
    /// The fastest and the cheapest, where no shape keeps to the limits.
    pub beyond: Vec<Found>,
}

/// A shape with the stages' work and who would hold them, before its outer steps are chosen.
struct Draft {
    spec: RunSpec,
    fleet: Fleet,
    outline: Outline,
    /// Seconds of an inner step, once it was played.
    step: Option<f64>,
}

/// A draft with its outer steps, and the best that could come of it.
struct Candidate {
    draft: usize,
    spec: RunSpec,
    best: Figures,
}

/// Looks for the shapes of a run that no other beats: none is as fast and as cheap with as frequent outer steps, as fine a codec and as
/// wide a boundary. The tokens of an inner step stay those of the run.
pub fn search(spec: &RunSpec, fleet: &Fleet, space: &Space, limits: Limits) -> Search {
    let mut drafts = drafts(spec, fleet, space);
    let mut candidates: Vec<Candidate> = Vec::new();
    for (draft, Draft { spec, fleet, outline, .. }) in drafts.iter().enumerate() {
        for spec in with_outer_steps(spec, space) {
            let pace = outline.pace(&spec, fleet, outline.least_step(&spec, fleet));
            let best = Figures::of(pace, outline.price_per_hour(fleet), limits.tokens);
            candidates.push(Candidate { draft, spec, best });
        }
    }
    // What promises most is played first, and beats most of the others unplayed.
    candidates.sort_by(|a, b| {
        a.best.seconds.total_cmp(&b.best.seconds).then(a.best.dollars.total_cmp(&b.best.dollars))
    });
    let mut all: Vec<(RunSpec, Found)> = Vec::new();
    let (shapes, mut played) = (candidates.len(), 0);
    for Candidate { draft, spec, best } in candidates {
        if all.iter().any(|(other, found)| beats((other, &found.figures), (&spec, &best)) != Ordering::Less) {
            continue;
        }
        let Draft { fleet, outline, step, .. } = &mut drafts[draft];
        let step = *step.get_or_insert_with(|| {
            played += 1;
            outline.step(&spec, fleet)
        });
        let pace = outline.pace(&spec, fleet, step);
        let figures = Figures::of(pace, outline.price_per_hour(fleet), limits.tokens);
        if all
            .iter()
            .any(|(other, found)| beats((other, &found.figures), (&spec, &figures)) != Ordering::Less)
        {
            continue;
        }
        all.retain(|(other, found)| beats((&spec, &figures), (other, &found.figures)) == Ordering::Less);
        let shape = Shape::of(&spec, fleet);
        all.push((spec, Found { shape, figures }));
    }
    let mut found: Vec<Found> = all.into_iter().map(|(_, found)| found).collect();
    found.sort_by(|a, b| a.figures.seconds.total_cmp(&b.figures.seconds));
    let cheapest = found.iter().min_by(|a, b| a.figures.dollars.total_cmp(&b.figures.dollars));
    let extremes: Vec<Found> = found.first().into_iter().chain(cheapest).cloned().collect();
    found.retain(|found| limits.keep(&found.figures));
    let beyond = if found.is_empty() { extremes } else { Vec::new() };
    Search { found, shapes, played, beyond }
}

/// Compares two shapes: greater where the first is as good as the second in everything and better in something, equal where both are
/// alike, else less.
fn beats((spec, figures): (&RunSpec, &Figures), (other, others): (&RunSpec, &Figures)) -> Ordering {
    let orders = [
        others.seconds.total_cmp(&figures.seconds),
        others.dollars.total_cmp(&figures.dollars),
        safety(spec).0.cmp(&safety(other).0),
        safety(spec).1.cmp(&safety(other).1),
        safety(spec).2.cmp(&safety(other).2),
    ];
    if orders.contains(&Ordering::Less) {
        return Ordering::Less;
    }
    orders.into_iter().find(|order| *order == Ordering::Greater).unwrap_or(Ordering::Equal)
}

/// How far the choices of a run that may cost quality are the safe ones: more frequent outer steps, a finer codec, a wider boundary.
fn safety(spec: &RunSpec) -> (i64, i64, u32) {
    let alone = spec.pipeline.replicas == 1;
    let (inner_steps, codec) =
        if alone { (0, 0) } else { (spec.sync.inner_steps, coarseness(spec.sync.codec)) };
    let width = if spec.boundary.form == BoundaryForm::None { u32::MAX } else { spec.boundary.width };
    (-i64::from(inner_steps), -i64::from(codec), width)
}

fn coarseness(codec: SyncCodec) -> u8 {
    CODECS.iter().zip(0..).find(|((_, of), _)| *of == codec).map_or(0, |(_, at)| at)
}

/// Returns how a run file names a codec.
pub fn name(codec: SyncCodec) -> &'static str {
    CODECS.into_iter().find(|(_, of)| *of == codec).map_or("", |(name, _)| name)
}

/// Lists the choices of groups.
fn fleets(fleet: &Fleet) -> Vec<Fleet> {
    let of = |chosen: Vec<usize>| Fleet {
        groups: chosen.into_iter().map(|group| fleet.groups[group].clone()).collect(),
        ..fleet.clone()
    };
    let count = fleet.groups.len();
    if count <= GROUPS_MAX {
        let chosen = |bits: usize| (0..count).filter(|group| bits >> group & 1 == 1).collect();
        return (1..1 << count).map(|bits| of(chosen(bits))).collect();
    }
    let price = |group: &usize| {
        let group = &fleet.groups[*group];
        group.price / group.device.peak(Dtype::Bf16)
    };
    let mut cheap: Vec<usize> = (0..count).collect();
    cheap.sort_by(|a, b| price(a).total_cmp(&price(b)));
    let alone = (0..count).map(|group| vec![group]);
    alone.chain((2..=count).map(|many| cheap[..many].to_vec())).map(of).collect()
}

fn drafts(spec: &RunSpec, fleet: &Fleet, space: &Space) -> Vec<Draft> {
    let mut drafts = Vec::new();
    for fleet in fleets(fleet) {
        let peers = fleet.peers();
        for &stages in space.stages.iter().filter(|stages| **stages <= peers) {
            let mut replicas = space.replicas.clone();
            if replicas.is_empty() {
                replicas.extend(COUNTS);
                replicas.push(peers / stages);
            }
            replicas.retain(|replicas| replicas * stages <= peers && *replicas <= usize::from(u16::MAX));
            sorted(&mut replicas);
            for replicas in replicas {
                for &size in &space.microbatch_sizes {
                    let Some(shaped) = shaped(spec, stages, replicas, size) else { continue };
                    drafts.extend(space.widths.iter().flat_map(|width| drafted(&shaped, &fleet, *width)));
                }
            }
        }
    }
    drafts
}

/// Gives a run other stages, replicas and microbatches; `None` where its batch would be another.
fn shaped(spec: &RunSpec, stages: usize, replicas: usize, size: u32) -> Option<RunSpec> {
    let mut shaped = spec.clone();
    if stages != usize::from(spec.stages()) {
        let (layers, count) = (spec.model.layers, stages as u32);
        shaped.pipeline.stage_layers =
            (0..count).map(|stage| layers / count + u32::from(stage < layers % count)).collect();
    }
    let pipeline = &mut shaped.pipeline;
    pipeline.replicas = replicas as u16;
    pipeline.microbatch_size = size;
    let of_each = spec.step_tokens() as f64 / replicas as f64 / shaped.microbatch_tokens() as f64;
    shaped.pipeline.microbatches_per_step = of_each.round().max(1.0) as u32;
    let apart = shaped.step_tokens() as f64 / spec.step_tokens() as f64 - 1.0;
    (apart.abs() <= BATCH_TOLERANCE).then_some(shaped)
}

/// Places a shape, with as much in flight as fits: with its blocks as they are, and cut as suits the fleet's speeds, which is not always
/// what suits its links.
fn drafted(shaped: &RunSpec, fleet: &Fleet, width: u32) -> Vec<Draft> {
    let mut spec = shaped.clone();
    spec.boundary.width = width;
    let stages = usize::from(spec.stages());
    let of = |spec: RunSpec| {
        let outline = Outline::of(&spec, fleet).ok()?;
        Some(Draft { spec, fleet: fleet.clone(), outline, step: None })
    };
    for times in IN_FLIGHT {
        spec.pipeline.in_flight_max = u32::try_from(times * stages).unwrap_or(u32::MAX);
        let cut = better_layers(&spec, fleet, None).map(|(layers, _)| with_layers(&spec, &layers));
        let drafts: Vec<Draft> = [Some(spec.clone()), cut].into_iter().flatten().filter_map(of).collect();
        if !drafts.is_empty() {
            return drafts;
        }
    }
    Vec::new()
}

fn with_outer_steps(spec: &RunSpec, space: &Space) -> Vec<RunSpec> {
    if spec.pipeline.replicas == 1 {
        return vec![spec.clone()];
    }
    let with = |sync: &SyncSpec| RunSpec { sync: sync.clone(), ..spec.clone() };
    space.syncs.iter().map(with).collect()
}

impl Shape {
    fn of(spec: &RunSpec, fleet: &Fleet) -> Self {
        let pipeline = &spec.pipeline;
        Self {
            groups: fleet.groups.iter().map(|group| group.name.clone()).collect(),
            layers: pipeline.stage_layers.clone(),
            replicas: pipeline.replicas,
            microbatch_size: pipeline.microbatch_size,
            microbatches: pipeline.microbatches_per_step,
            in_flight: pipeline.in_flight_max,
            width: (spec.boundary.form != BoundaryForm::None).then_some(spec.boundary.width),
            sync: (pipeline.replicas > 1).then(|| (spec.sync.inner_steps, name(spec.sync.codec))),
        }
    }
}
