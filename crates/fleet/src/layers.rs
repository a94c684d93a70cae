//! How many blocks each stage should have, so that peers of unlike speed and memory take equally long.
//!
//! Owns that search. Knows nothing of the network.

use crate::cost::StageWork;
use crate::file::{Fleet, Group};
use crate::placement::Placement;
use trestle_protocol::spec::RunSpec;

/// Lists ways to cut a run's blocks into as many stages as it has, each made for a fleet: the stages' peers are those of a
/// placement, or peers of like speed together.
pub fn proposals(spec: &RunSpec, fleet: &Fleet, placement: Option<&Placement>) -> Vec<Vec<u32>> {
    let placed = placement.map(|placement| placement.stages.clone());
    let alike = [Order::FastFirst, Order::SlowFirst].map(|order| Some(alike(spec, fleet, order)));
    let sets = [placed].into_iter().chain(alike).flatten();
    let mut found: Vec<Vec<u32>> = sets.filter_map(|set| cut(spec, fleet, &set)).collect();
    found.sort();
    found.dedup();
    found.retain(|layers| *layers != spec.pipeline.stage_layers);
    found
}

/// Returns a run with its blocks cut otherwise.
pub fn with_layers(spec: &RunSpec, layers: &[u32]) -> RunSpec {
    let mut spec = spec.clone();
    spec.pipeline.stage_layers = layers.to_vec();
    spec
}

#[derive(Clone, Copy)]
enum Order {
    FastFirst,
    SlowFirst,
}

/// Gives each stage peers of like speed.
fn alike(spec: &RunSpec, fleet: &Fleet, order: Order) -> Vec<Vec<usize>> {
    let replicas = usize::from(spec.pipeline.replicas);
    let places = replicas * spec.pipeline.stage_layers.len();
    let speed = |group: &Group| group.device.peak(spec.pipeline.compute) * group.device.reach;
    let mut groups: Vec<usize> = (0..fleet.groups.len()).collect();
    groups.sort_by(|a, b| speed(&fleet.groups[*b]).total_cmp(&speed(&fleet.groups[*a])));
    let peers = groups.into_iter().flat_map(|group| vec![group; fleet.groups[group].count]);
    let mut stages: Vec<Vec<usize>> =
        peers.take(places).collect::<Vec<_>>().chunks(replicas).map(<[usize]>::to_vec).collect();
    match order {
        Order::FastFirst => {}
        Order::SlowFirst => stages.reverse(),
    }
    stages
}

/// Deals the blocks out one by one, each to the stage that is then still fastest, where its peers have the memory.
fn cut(spec: &RunSpec, fleet: &Fleet, sets: &[Vec<usize>]) -> Option<Vec<u32>> {
    let stages = spec.pipeline.stage_layers.len();
    if sets.len() != stages || sets.iter().any(Vec::is_empty) {
        return None;
    }
    let most = spec.model.layers;
    let mut layers = vec![1_u32; stages];
    let rate = |stage: usize, blocks: u32| {
        let mut trial = vec![1; stages];
        trial[stage] = blocks;
        let work = StageWork::of_stage(&with_layers(spec, &trial), stage);
        let group = |group: &usize| {
            let device = &fleet.groups[*group].device;
            let fits = work.memory.total() as f64 <= device.memory;
            fits.then(|| 1.0 / work.on(device).microbatch())
        };
        let rates: Option<Vec<f64>> = sets[stage].iter().map(group).collect();
        rates.map(|rates| rates.iter().sum::<f64>())
    };
    let mut next: Vec<Option<f64>> = (0..stages).map(|stage| rate(stage, 2)).collect();
    if (0..stages).any(|stage| rate(stage, 1).is_none()) {
        return None;
    }
    for _ in stages as u32..most {
        let able = next.iter().enumerate().filter_map(|(stage, rate)| Some((stage, (*rate)?)));
        let (stage, _) = able.max_by(|a, b| a.1.total_cmp(&b.1))?;
        layers[stage] += 1;
        next[stage] = rate(stage, layers[stage] + 1);
    }
    Some(layers)
}
