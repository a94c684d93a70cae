//! What a peer did in a place that it has lost since, and tells too late: it is counted, once, and credited to nobody.

use crate::replicas::replicated;
use crate::swarm::{Swarm, peer};
use trestle_protocol::event::{Event, TaskKind};
use trestle_protocol::ids::{Attempt, InnerStep, MicrobatchId, SeatId, StageId, WeightVersion};
use trestle_protocol::message::{Message, Outcome, Refusal, Tensor};
use trestle_protocol::port::Input;
use trestle_protocol::spec::sync::SyncSpec;
use trestle_protocol::spec::{RunSpec, Schedule};
use trestle_protocol::time::Span;
use trestle_protocol::work::Needs;

fn spec() -> RunSpec {
    replicated(2, Schedule::Flush, SyncSpec::mean(2))
}

/// Runs until a node has computed something, and lets it lose its place at once.
fn lost_after(index: usize, wanted: TaskKind) -> Swarm {
    let mut swarm = Swarm::new(spec(), None);
    swarm.run_until(index, |event| matches!(event, Event::Computed { task, .. } if *task == wanted));
    swarm.tell(index, Input::Leave { notice: Span(0) });
    let lost = |event: &Event| matches!(event, Event::Removed { peer: gone, .. } if *gone == peer(index));
    swarm.run_until(0, lost);
    swarm
}

/// Ends the run; returns what the ledger counts of a node as done twice.
fn twice(swarm: &mut Swarm, index: usize) -> u64 {
    swarm.join(7, None, Vec::new());
    swarm.run_for(Span::seconds(300));
    assert_eq!(swarm.outcome(), Some(&Outcome::Done));
    let accounts = swarm.events[0].iter().rev().find_map(|event| {
        let Event::Ledger { planned, credited, accounts, .. } = event else { return None };
        assert!(credited.iter().all(|credited| credited == planned), "{credited:?} of {planned}");
        Some(accounts)
    });
    let of = accounts.expect("the ledger is closed").iter().filter(|account| account.peer == peer(index));
    of.map(|account| account.sums.duplicate).sum()
}

#[test]
fn a_late_gradient_is_counted_once_for_who_was_asked_for_it() {
    let (asker, victim, other) = (4, 5, 1);
    let mut swarm = lost_after(victim, TaskKind::Forward);
    let around = |event: &Event| matches!(event, Event::Rerouted { from, .. } if *from == peer(victim));
    swarm.run_until(asker, around);
    let sent = swarm.events[asker].iter().find_map(|event| {
        let Event::Rerouted { microbatch, .. } = event else { return None };
        Some(*microbatch)
    });
    let microbatch = sent.expect("its work went to another");
    let gradient = |microbatch| {
        Message::Gradient(Tensor {
            microbatch,
            attempt: Attempt(0),
            stage: StageId(0),
            seat: SeatId(4),
            version: WeightVersion(0),
            needs: Needs::All,
            trained: Some(InnerStep(0)),
            payload: vec![0; spec().boundary_bytes()].into(),
        })
    };
    let told = |swarm: &Swarm| {
        let duplicate = Event::Duplicate { microbatch, from: peer(victim) };
        swarm.events[asker].iter().filter(|event| **event == duplicate).count()
    };
    for _ in 0..2 {
        swarm.inject(peer(victim), asker, gradient(microbatch));
        swarm.turn().expect("it is heard");
        let refused =
            Event::Refused { peer: peer(victim), refusal: Refusal::NotMember { peer: peer(victim) } };
        assert!(swarm.events[asker].contains(&refused));
        assert_eq!(told(&swarm), 1);
    }
    // For what it was not asked by that peer it is a stranger.
    let never_asked = MicrobatchId::train(if microbatch.index == 0 { 1 } else { 0 });
    swarm.inject(peer(victim), other, gradient(never_asked));
    assert_eq!(twice(&mut swarm, victim), 1);
}

#[test]
fn what_came_back_to_a_first_stage_that_has_lost_its_place_is_counted_once() {
    for (seat, counted) in [(SeatId(2), 1), (SeatId(1), 0), (SeatId(99), 0)] {
        let victim = 4;
        let mut swarm = lost_after(victim, TaskKind::Forward);
        let microbatch = swarm.events[victim].iter().find_map(|event| {
            let Event::Computed { microbatch, task: TaskKind::Forward, .. } = event else { return None };
            *microbatch
        });
        let microbatch = microbatch.expect("it has computed a forward");
        for _ in 0..2 {
            let trained = Some(InnerStep(0));
            let settled = Message::Settled { microbatch, attempt: Attempt(0), seat, trained };
            swarm.inject(peer(victim), 0, settled);
            swarm.turn().expect("it is heard");
            let refusal = Refusal::NotMember { peer: peer(victim) };
            assert!(swarm.events[0].contains(&Event::Refused { peer: peer(victim), refusal }));
        }
        // What was never handed out is not counted.
        let far = MicrobatchId::train(1_000_000);
        let settled =
            Message::Settled { microbatch: far, attempt: Attempt(0), seat, trained: Some(InnerStep(0)) };
        swarm.inject(peer(victim), 0, settled);
        assert_eq!(twice(&mut swarm, victim), counted, "seat {seat}");
    }
}

#[test]
fn a_lease_that_is_told_again_is_not_done_again() {
    let first = 1;
    let mut swarm = Swarm::new(spec(), None);
    swarm.run_until(first, |event| matches!(event, Event::Computed { task: TaskKind::Backward, .. }));
    let of = |event: &Event, wanted: TaskKind| {
        let Event::Computed { microbatch, task, .. } = event else { return None };
        microbatch.filter(|_| *task == wanted)
    };
    let done = swarm.events[first].iter().find_map(|event| of(event, TaskKind::Backward));
    let microbatch = done.expect("it has computed a backward");
    let (attempt, needs, expires_in) = (Attempt(0), Needs::All, Span::seconds(60));
    let lease = Message::Lease { microbatches: vec![microbatch], attempt, needs, expires_in };
    swarm.inject(peer(0), first, lease);
    swarm.turn().expect("it is heard");
    assert!(swarm.events[first].contains(&Event::Duplicate { microbatch, from: peer(0) }));
    swarm.run();
    assert_eq!(swarm.outcome(), Some(&Outcome::Done));
    let again = |event: &&Event| of(event, TaskKind::Forward) == Some(microbatch);
    assert_eq!(swarm.events[first].iter().filter(again).count(), 1);
}
