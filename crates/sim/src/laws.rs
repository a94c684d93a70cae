//! The laws of a run that ended well: what must hold whatever was done to the swarm.
//!
//! Owns the checks, on what the weights consist of and what the ledger says of it. Knows nothing of how a swarm is run.

use crate::swarm::{Ending, Holding, SimOutcome};
use std::collections::BTreeMap;
use trestle_protocol::agenda::Agenda;
use trestle_protocol::ids::StageId;
use trestle_protocol::message::Outcome;
use trestle_protocol::pipeline::lease_ahead;
use trestle_protocol::plan::Place;

/// Indices of a stage that a broken law names.
const NAMED_MAX: usize = 8;

/// Returns the laws that are broken, in words.
pub fn broken(outcome: &SimOutcome) -> Vec<String> {
    let mut broken = broken_on_the_way(outcome);
    if outcome.endings.last() != Some(&Ending::Left(Outcome::Done)) {
        broken.push(format!("the run ended otherwise: {:?}", outcome.endings.last()));
        return broken;
    }
    let (planned, credited) = (outcome.tally.planned, outcome.tally.credited);
    if planned != credited {
        broken.push(format!("{planned} (microbatch, stage) pairs were planned and {credited} credited"));
    }
    if outcome.followed {
        for stage in (0..outcome.spec.stages()).map(StageId) {
            broken.extend(of_stage(outcome, stage));
        }
    }
    broken
}

/// Returns whether a run stands still because the last checkpoint of a stage is on no disk that is left, and broke no law before:
/// nobody can go on with it, and it says so.
pub fn stands_still_for_want_of_a_disk(outcome: &SimOutcome) -> bool {
    let stuck = outcome.endings.last() == Some(&Ending::Stuck);
    stuck && !outcome.shardless.is_empty() && broken_on_the_way(outcome).is_empty()
}

/// Returns the laws that were broken before the end, in words.
pub fn broken_on_the_way(outcome: &SimOutcome) -> Vec<String> {
    let mut broken = outcome.broken.clone();
    if outcome.tally.outer.apart > 0 {
        broken.push(format!(
            "{} times a replica went over to other weights than its stage's",
            outcome.tally.outer.apart
        ));
    }
    let kept_max = kept_bytes_max(outcome);
    if outcome.kept_bytes_max as u64 > kept_max {
        broken
            .push(format!("a worker kept {} bytes, at most {kept_max} are allowed", outcome.kept_bytes_max));
    }
    broken
}

/// Returns how many (microbatch, stage) pairs are in no weights, at the replica that has the fewest of each stage.
pub fn missing(outcome: &SimOutcome) -> u64 {
    stages(outcome).map(|stage| worst(outcome, stage, |times| u64::from(times < 1))).sum()
}

/// Returns how many copies of (microbatch, stage) pairs there are beyond the first, at the replica that has most.
pub fn extra(outcome: &SimOutcome) -> u64 {
    stages(outcome).map(|stage| worst(outcome, stage, |times| (times - 1).max(0) as u64)).sum()
}

fn worst(outcome: &SimOutcome, stage: StageId, of: impl Fn(i64) -> u64) -> u64 {
    let sum = |holding: &Holding| indices(outcome).map(|index| of(holding.weights.times(index))).sum();
    let nobody = indices(outcome).map(|_| of(0)).sum();
    holders(outcome, stage).map(|(_, holding)| sum(holding)).max().unwrap_or(nobody)
}

fn of_stage(outcome: &SimOutcome, stage: StageId) -> Vec<String> {
    let mut broken = Vec::new();
    let mut held = holders(outcome, stage);
    let Some((first, holding)) = held.next() else {
        return vec![format!("nobody holds stage {stage} at the end")];
    };
    for (place, other) in held {
        if other.digest != holding.digest || other.weights != holding.weights {
            let (one, other) = (first.replica, place.replica);
            broken.push(format!("replicas {one} and {other} of stage {stage} end with different weights"));
        }
    }
    let times: BTreeMap<u64, i64> =
        indices(outcome).map(|index| (index, holding.weights.times(index))).collect();
    let named = |wanted: &dyn Fn(i64) -> bool| {
        let found: Vec<String> = times
            .iter()
            .filter(|(_, times)| wanted(**times))
            .map(|(index, times)| format!("{index} ({times} times)"))
            .collect();
        let more = if found.len() > NAMED_MAX { ", ..." } else { "" };
        format!("{} microbatches: {}{more}", found.len(), found[..found.len().min(NAMED_MAX)].join(", "))
    };
    if times.values().any(|times| *times < 1) {
        broken.push(format!("the weights of stage {stage} lack {}", named(&|times| times < 1)));
    }
    let extra: u64 = times.values().map(|times| (times - 1).max(0) as u64).sum();
    let told = duplicates(outcome, stage);
    if extra > told {
        let named = named(&|times| times > 1);
        broken.push(format!(
            "the weights of stage {stage} have more than once {named}; {told} duplicates are told"
        ));
    }
    let strange = holding.weights.counts().find(|(index, _)| !times.contains_key(index));
    if let Some((index, _)) = strange {
        broken.push(format!(
            "the weights of stage {stage} have microbatch {index}, which the run does not have"
        ));
    }
    broken
}

/// Returns how many microbatches may have been trained twice at a stage, as ledger and events tell: those that came twice, those
/// that were asked of a second replica when the first was late, and what a lost member of a stage before it had under way, since
/// nobody else could give the receipt for that.
fn duplicates(outcome: &SimOutcome, stage: StageId) -> u64 {
    let members = &outcome.tally.members;
    let accounts = members.accounts.iter().filter(|account| account.stage == stage);
    let told: u64 = accounts.map(|account| account.sums.duplicate).sum();
    let lost: u64 = members.lost_at.range(..stage).map(|(_, count)| count).sum();
    told + members.raced.get(&stage).copied().unwrap_or_default() + lost * lease_ahead(&outcome.spec) as u64
}

/// Returns what a worker may keep: boundary inputs of what waits, and input and output of what is in flight, among it as much as may
/// wait at once, since what comes again from a lost replica goes before the bound of what is in flight.
fn kept_bytes_max(outcome: &SimOutcome) -> u64 {
    let pipeline = &outcome.spec.pipeline;
    let in_flight = u64::from(pipeline.in_flight_max);
    let leased = in_flight + u64::from(pipeline.microbatches_per_step);
    let waiting = in_flight + 2 * leased * u64::from(pipeline.replicas);
    (2 * (in_flight + waiting) + waiting) * outcome.spec.boundary_bytes() as u64
}

fn stages(outcome: &SimOutcome) -> impl Iterator<Item = StageId> {
    (0..outcome.spec.stages()).map(StageId)
}

fn indices(outcome: &SimOutcome) -> impl Iterator<Item = u64> {
    0..Agenda::new(&outcome.spec).train_microbatches()
}

fn holders(outcome: &SimOutcome, stage: StageId) -> impl Iterator<Item = (&Place, &Holding)> {
    outcome.held.iter().filter(move |(place, _)| place.stage == stage)
}
