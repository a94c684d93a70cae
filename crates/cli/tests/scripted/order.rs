//! What a script fixes of a run: the part of a coordinator's event log that is the same however fast the peers are.
//!
//! Owns what is taken from a log, and what is left out. Knows nothing of who wrote the log.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use trestle_protocol::event::{Event, OuterSummary};
use trestle_protocol::ids::{InnerStep, PeerId, ReplicaId, StageId};
use trestle_protocol::message::Removal;
use trestle_protocol::plan::Place;

use crate::deeds::{Deed, named};

/// Sequences of events that the script of a run fixes, each exactly; peers are named by their places.
///
/// A script says at which step something is done, and each thing so long after the one before that this one has taken effect.
/// With the rules of the core that fixes, whoever drives it:
///
/// - `course`: who holds what, and from which step work begins; who is missed and removed, who leaves, who takes which place, in
///   that order; then the last checkpoint, the ledger, and how the run ends.
/// - `causes`: what is done at a step has its effect when that step is complete, and not before.
/// - `steps`: each inner step is told of, once and in order, also those that a loss held up.
/// - `rounds`: each outer step comes once and in order, at its border, and with the same verdict; with `delay=0` the first inner
///   step behind a border waits for it.
///
/// What is left out is decided by time, which the two drivers do not share:
///
/// - Times and durations, losses (they depend on which replica had trained what when it fell), digests.
/// - At which step the loss of a peer is noticed, by which sign first (a connection that breaks, a beat that stays away), a
///   suspicion or a removal that is taken back because the peer lives and comes again, how much was lost and is done
///   again, reroutings, expired leases, duplicates.
/// - When a newcomer has started and gets its place, and how long one that leaves has still work in hand; and with that who
///   contributes what to an outer step, how many tries that takes, and the number of plans.
/// - The interleaving of peers and of stages: what workers tell, leases, and how far the report of a step lags behind the
///   commits, which is up to four steps while a report is missing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fixed {
    pub(crate) course: Vec<String>,
    pub(crate) causes: Vec<Vec<String>>,
    pub(crate) steps: Vec<u64>,
    pub(crate) rounds: Vec<String>,
}

/// Takes from a coordinator's log what the script fixes.
pub(crate) fn fixed(events: &[Event], deeds: &[(u64, Deed)]) -> Fixed {
    let words = told(events);
    let of_course = |word: &&String| !word.starts_with("step ");
    Fixed {
        course: words.iter().filter(of_course).cloned().collect(),
        causes: deeds.iter().map(|(steps, deed)| cause(&words, *steps, *deed)).collect(),
        steps: words.iter().filter_map(|word| word.strip_prefix("step ")?.parse().ok()).collect(),
        rounds: rounds(events),
    }
}

/// Reads the events of the coordinator, which is who makes plans, from the log of a swarm or its own.
pub(crate) fn of_coordinator(log: &str) -> Vec<Event> {
    #[derive(Deserialize)]
    struct Line {
        peer: String,
        event: Event,
    }
    let lines: Vec<Line> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let planned = lines.iter().find(|line| matches!(line.event, Event::Planned { .. }));
    let coordinator = planned.expect("somebody makes a plan").peer.clone();
    lines.into_iter().filter(|line| line.peer == coordinator).map(|line| line.event).collect()
}

/// The step at which something is done, and its first effect, in the order in which they come.
fn cause(words: &[String], steps: u64, deed: Deed) -> Vec<String> {
    let (step, effect) = (format!("step {}", steps - 1), deed.effect());
    words.iter().filter(|word| **word == step || word.starts_with(&effect)).cloned().collect()
}

/// Tells in words what a script fixes, but for outer steps, which are told by `rounds`, and what `Fixed` leaves out.
fn told(events: &[Event]) -> Vec<String> {
    let mut words = Vec::new();
    let mut missed = BTreeSet::new();
    let taken_back = taken_back(events);
    for (_, event) in events.iter().enumerate().filter(|(at, _)| !taken_back.contains(at)) {
        match event {
            Event::Planned { members, .. } if words.is_empty() => {
                let places: BTreeSet<String> = members.iter().map(|(_, place)| named(*place)).collect();
                words.push(format!("planned {places:?}"));
            }
            Event::Started { step } => words.push(format!("started at {step}")),
            Event::Step(summary) => words.push(format!("step {}", summary.step)),
            Event::Suspected { peer, .. } | Event::PeerLost { peer, .. } => drop(missed.insert(*peer)),
            Event::Trusted { peer, .. } => drop(missed.remove(peer)),
            Event::Removed { peer, place, why, .. } => {
                words.push(format!("removed {}: {}", named(*place), reason(why, &missed, *peer)));
            }
            Event::Leaving { place, notice, .. } => {
                words.push(format!("leaving {} within {} s", named(*place), notice.as_secs_f64()));
            }
            Event::Seated { place, .. } => words.push(format!("seated {}", named(*place))),
            Event::Stalled { stage, .. } => words.push(format!("stalled {stage}")),
            Event::Resumed { stage } => words.push(format!("resumed {stage}")),
            Event::Ledger { planned, credited, .. } => {
                words.push(format!("ledger {planned} planned, {credited:?} credited"));
            }
            Event::Durable { step, .. } => words.push(format!("durable {step}")),
            Event::Draining { border } => words.push(format!("draining {border}")),
            Event::Finished { outcome } => words.push(format!("finished {outcome:?}")),
            // Every plan but the first.
            Event::Planned { .. }
            | Event::Outer(_)
            | Event::Evaluated { .. }
            | Event::Joined { .. }
            | Event::Waiting { .. }
            | Event::Leased { .. }
            | Event::LeaseExpired { .. }
            | Event::Computed { .. }
            | Event::Duplicate { .. }
            | Event::Saved { .. }
            | Event::Agreed { .. }
            | Event::Restored { .. }
            | Event::Flawed { .. }
            | Event::Disagreed { .. }
            | Event::Excluded { .. }
            | Event::Rerouted { .. }
            | Event::Redo { .. }
            | Event::Refused { .. }
            | Event::Rejected { .. }
            | Event::RefusedBy { .. } => {}
        }
    }
    words
}

/// Where a member was taken for gone, and where the same peer took the same place again: it was there all the time, but on a computer
/// that was too slow to say so. A script that is done to processes brings nobody back who died, so these are none of its deaths.
fn taken_back(events: &[Event]) -> BTreeSet<usize> {
    let mut gone = BTreeMap::new();
    let mut taken_back = BTreeSet::new();
    for (at, event) in events.iter().enumerate() {
        if let Event::Removed { peer, place, why, .. } = event
            && *why != Removal::Left
        {
            gone.insert((*peer, *place), at);
        }
        if let Event::Seated { peer, place, .. } = event
            && let Some(removed) = gone.remove(&(*peer, *place))
        {
            taken_back.extend([removed, at]);
        }
    }
    taken_back
}

/// Says why a member was removed. By which of two signs a dead one was found out is decided by time; that there was one before is not.
fn reason(why: &Removal, missed: &BTreeSet<PeerId>, peer: PeerId) -> String {
    match (why, missed.contains(&peer)) {
        (Removal::Disconnected | Removal::Silent, true) => "missed before".into(),
        (Removal::Disconnected | Removal::Silent, false) => "missed by nobody".into(),
        (
            Removal::Restarted
            | Removal::Left
            | Removal::Failed
            | Removal::Excluded
            | Removal::Moved
            | Removal::Unready
            | Removal::Unknown,
            _,
        ) => format!("{why:?}"),
    }
}

/// Each outer step, and the first inner step behind its border.
fn rounds(events: &[Event]) -> Vec<String> {
    let mut border = None;
    let mut rounds = Vec::new();
    for event in events {
        if let Event::Outer(OuterSummary { outer, step, verdict, .. }) = event {
            rounds.push(format!("outer {} at {step}: {verdict:?}", outer.0));
            border = Some(*step);
        }
        if let Event::Step(summary) = event
            && Some(summary.step) == border
        {
            rounds.push(format!("step {}", summary.step));
        }
    }
    rounds
}

#[test]
fn a_removal_that_is_taken_back_is_left_out_and_one_for_good_is_not() {
    let place = Place { stage: StageId(1), replica: ReplicaId(1) };
    let (one, other) = (PeerId([1; 32]), PeerId([2; 32]));
    let removed = |peer| Event::Removed { peer, place, why: Removal::Silent, lost: 0 };
    let seated = |peer| Event::Seated { peer, place, enters: InnerStep(3) };
    let suspected = Event::Suspected { peer: one, place };
    assert_eq!(told(&[removed(one), seated(one)]), Vec::<String>::new());
    let for_good = [suspected, removed(one), seated(other)];
    assert_eq!(told(&for_good), ["removed 1.1: missed before", "seated 1.1"]);
    let left = Event::Removed { peer: one, place, why: Removal::Left, lost: 0 };
    assert_eq!(told(&[left, seated(one)]), ["removed 1.1: Left", "seated 1.1"]);
}
