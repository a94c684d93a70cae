//! Replicas of all stages in one run, around the transaction that makes them agree.

use std::collections::BTreeMap;

use trestle_protocol::agenda::{Agenda, Exchanges};
use trestle_protocol::event::{Event, Verdict};
use trestle_protocol::ids::{Digest, InnerStep, MicrobatchId, OuterStep, ReplicaId};
use trestle_protocol::message::Outcome;
use trestle_protocol::spec::sync::{OuterRule, SyncSpec};
use trestle_protocol::spec::{RunSpec, Schedule};

use crate::swarm::{STAGES, Swarm, spec};

/// Eight steps, of which the fourth and the last end in an evaluation and a checkpoint.
pub(crate) fn replicated(replicas: u16, schedule: Schedule, sync: SyncSpec) -> RunSpec {
    let mut spec = spec(schedule);
    spec.pipeline.replicas = replicas;
    spec.training.steps = 8;
    spec.evaluation.every = 4;
    spec.checkpoint.every = 4;
    spec.sync = sync;
    spec
}

fn syncs() -> [(SyncSpec, u64); 4] {
    let nesterov =
        |inner_steps, delay| SyncSpec { rule: OuterRule::Nesterov, delay, ..SyncSpec::mean(inner_steps) };
    [(SyncSpec::mean(1), 8), (SyncSpec::mean(2), 4), (nesterov(2, 1), 4), (nesterov(4, 3), 2)]
}

#[test]
fn every_outer_step_is_agreed_on_by_all_replicas_of_all_stages() {
    for schedule in [Schedule::Flush, Schedule::Async { staleness_max: 1 }] {
        for (sync, outer_steps) in syncs() {
            for replicas in [2, 3] {
                let case = format!("{schedule:?} {sync:?} x {replicas}");
                let mut swarm = Swarm::new(replicated(replicas, schedule, sync.clone()), None);
                swarm.run();
                assert_eq!(swarm.outcome(), Some(&Outcome::Done), "{case}");
                assert_eq!(swarm.refusals(), Vec::<&Event>::new(), "{case}");
                let mut agreed: BTreeMap<(OuterStep, u16), Vec<Digest>> = BTreeMap::new();
                for (index, events) in swarm.events.iter().enumerate().skip(1) {
                    let stage = (index as u16 - 1) % STAGES;
                    for event in events {
                        if let Event::Agreed { outer, digest } = event {
                            agreed.entry((*outer, stage)).or_default().push(*digest);
                        }
                    }
                }
                assert_eq!(swarm.parted(), Vec::<String>::new(), "{case}");
                assert_eq!(agreed.len() as u64, outer_steps * u64::from(STAGES), "{case}");
                for (at, digests) in agreed {
                    assert_eq!(digests.len(), usize::from(replicas), "{case} {at:?}");
                    assert!(digests.iter().all(|digest| *digest == digests[0]), "{case} {at:?}");
                }
            }
        }
    }
}

#[test]
fn contributions_weigh_what_others_receipted() {
    let (sync, replicas) = (SyncSpec::mean(2), 3_u64);
    let mut swarm = Swarm::new(replicated(replicas as u16, Schedule::Flush, sync), None);
    swarm.run();
    let mut weighed = 0;
    for event in &swarm.events[0] {
        let Event::Outer(summary) = event else { continue };
        assert_eq!(summary.verdict, Verdict::Committed);
        for (_, contributors) in &summary.contributors {
            let weights: Vec<u64> = contributors.iter().map(|(_, weight)| *weight).collect();
            assert_eq!(weights, [2 * 4; 3], "two steps of four microbatches each");
            weighed += 1;
        }
    }
    assert_eq!(weighed, 4 * usize::from(STAGES));
    let ledger = swarm.events[0].iter().find_map(|event| {
        let Event::Ledger { planned, credited, duplicates, .. } = event else { return None };
        Some((*planned, credited.clone(), *duplicates))
    });
    let planned = 8 * 4 * replicas;
    assert_eq!(ledger, Some((planned, vec![planned; usize::from(STAGES)], 0)));
}

#[test]
fn a_replicated_run_goes_on_from_its_last_checkpoint() {
    let spec = replicated(2, Schedule::Flush, SyncSpec::mean(2));
    let mut first = Swarm::new(spec.clone(), None);
    while first.state.is_none() || !first.events[0].iter().any(|event| matches!(event, Event::Durable { .. }))
    {
        first.turn().expect("the run comes to its first checkpoint");
    }
    let state = first.state.clone().expect("something was stored");
    let mut second = Swarm::new(spec, Some(&state));
    second.run();
    assert_eq!(second.outcome(), Some(&Outcome::Done));
    let outer: Vec<u64> = second.events[0]
        .iter()
        .filter_map(|event| {
            let Event::Outer(summary) = event else { return None };
            Some(summary.outer.0)
        })
        .collect();
    assert_eq!(outer, [2, 3], "what was committed before the checkpoint is not repeated");
}

#[test]
fn the_agenda_deals_microbatches_out_and_knows_its_borders() {
    let agenda = |sync| Agenda::new(&replicated(3, Schedule::Flush, sync));
    let gradients = agenda(SyncSpec::mean(1));
    assert_eq!(gradients.exchanges(), Exchanges::Gradients);
    assert_eq!(gradients.training_of(InnerStep(1)), 12..24);
    assert_eq!(gradients.home(MicrobatchId::train(13)), ReplicaId(1));
    assert_eq!((0..3).map(|r| gradients.share_below(13, ReplicaId(r))).collect::<Vec<_>>(), [5, 4, 4]);
    assert_eq!(gradients.outer_border(OuterStep(7)), Some(InnerStep(7)));
    assert_eq!(gradients.outer_border(OuterStep(8)), None);
    let late = agenda(SyncSpec { delay: 1, ..SyncSpec::mean(3) });
    let borders: Vec<_> = (0..=8).filter_map(|step| late.outer_at(InnerStep(step))).collect();
    assert_eq!(borders, [OuterStep(0), OuterStep(1), OuterStep(2)], "at 3, 6, and the end at 8");
    assert_eq!(late.outer_border(OuterStep(2)), Some(InnerStep(8)));
    assert_eq!(late.cutover_of(InnerStep(3)), InnerStep(4));
    assert_eq!(late.cutover_of(InnerStep(8)), InnerStep(8), "at the end nothing is late");
    assert_eq!(late.stop_at_or_after(InnerStep(4)), InnerStep(6));
    let last = late.training_of(InnerStep(6)).start..late.training_of(InnerStep(8)).end;
    assert_eq!(last, 72..96, "the last one is shorter");
}
