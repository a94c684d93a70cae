//! What fuzzing and reading have found, each as the shortest script that showed it.

use crate::replicas::replicated;
use crate::swarm::{STAGES, Swarm, peer, spec};
use bytes::Bytes;
use trestle_protocol::agenda::Agenda;
use trestle_protocol::event::{Event, TaskKind};
use trestle_protocol::ids::{
    Attempt, Digest, InnerStep, MicrobatchId, OuterStep, PlanNumber, ReplicaId, SeatId, StageId,
};
use trestle_protocol::lease::Leases;
use trestle_protocol::message::{Held, Message, Outcome, Refusal, Start};
use trestle_protocol::pipeline::kept::{Answer, Asker};
use trestle_protocol::pipeline::{Offered, Pipeline, Task};
use trestle_protocol::plan::{Member, Place, Plan};
use trestle_protocol::spec::Schedule;
use trestle_protocol::spec::sync::{OuterRule, SyncSpec};
use trestle_protocol::sync::say::Say;
use trestle_protocol::time::{Span, Time};
use trestle_protocol::work::{Frontier, Needs};

/// The queue once held the second gradient for ever and, under `flush`, stood still behind it.
#[test]
fn a_gradient_that_comes_again_during_its_backward_is_a_duplicate() {
    let (previous, next) = (Asker::Peer(peer(1)), peer(3));
    let mut pipeline = Pipeline::new(&spec(Schedule::Flush), InnerStep(0), StageId(1), ReplicaId(0));
    for index in 0..2 {
        let (microbatch, input) = (MicrobatchId::train(index), Some(Bytes::new()));
        let offered = pipeline.offer(microbatch, Attempt(0), Needs::All, previous, input);
        assert_eq!(offered, Ok(Offered::Queued));
        assert!(pipeline.start().is_some());
        pipeline.forwarded(MicrobatchId::train(index), Some(Bytes::new()));
        pipeline.resend(index, next, Time(0));
    }
    let gradient = |pipeline: &mut Pipeline, index| {
        let answer = Answer { from: next, seat: SeatId(3), trained: None };
        pipeline.offer_gradient(MicrobatchId::train(index), answer, Bytes::new())
    };
    assert_eq!(gradient(&mut pipeline, 0), Ok(Offered::Queued));
    assert!(matches!(pipeline.start(), Some(Task::Backward { .. })));
    assert_eq!(gradient(&mut pipeline, 0), Ok(Offered::Duplicate));
    pipeline.backwarded(MicrobatchId::train(0));
    assert_eq!(gradient(&mut pipeline, 1), Ok(Offered::Queued));
    assert!(matches!(pipeline.start(), Some(Task::Backward { .. })));
}

/// Near the end of an `async` run nothing is leased behind a microbatch that is settled early; its receipt, its loss and
/// the step's report were refused.
#[test]
fn what_was_leased_stays_leased_when_it_is_settled_early() {
    let to = peer(1);
    let mut leases = Leases::new(Agenda::new(&spec(Schedule::Flush)), InnerStep(0), 3);
    assert_eq!(leases.take(Time(0), 3, |_| Some(to)).len(), 3);
    assert_eq!(leases.settle(Time(1), MicrobatchId::train(2)), Ok(()));
    assert_eq!(leases.leased_below(), 3);
}

fn placed(places: &[(usize, u16)], start: Start) -> Message {
    let member = |&(holder, stage): &(usize, u16)| Member {
        peer: peer(holder),
        place: Place { stage: StageId(stage), replica: ReplicaId(0) },
        address: Bytes::new(),
        seat: SeatId(u32::from(stage) + 1),
        enters: InnerStep(0),
        until: None,
    };
    let members = places.iter().map(member).collect();
    let plan = Plan { number: PlanNumber(1), coordinator: peer(0), members, turns: Vec::new() };
    Message::Placed { plan, start, frontier: Frontier::default() }
}

/// A worker once took any plan of its coordinator, and panicked when it had nobody to send to or nothing to count.
#[test]
fn a_plan_that_cannot_be_carried_out_is_refused() {
    let of = Place { stage: StageId(0), replica: ReplicaId(0) };
    let late = Start::Checkpoint { step: InnerStep(u64::MAX), digest: Digest([0; 32]), of };
    let cases = [
        (1, placed(&[(1, 0), (3, 2)], Start::Fresh), Refusal::StageEmpty { stage: StageId(1) }),
        (
            1,
            placed(&[(1, 0), (2, 1), (3, 2)], late),
            Refusal::StepBeyond { step: InnerStep(u64::MAX), steps: InnerStep(3) },
        ),
        (3, placed(&[(3, 3)], Start::Fresh), Refusal::NoSuchStage { stage: StageId(3), stages: STAGES }),
    ];
    for (to, message, want) in cases {
        let mut swarm = Swarm::new(spec(Schedule::Flush), None);
        swarm.inject(peer(0), to, message);
        swarm.turn();
        let refused = Event::Refused { peer: peer(0), refusal: want };
        assert!(swarm.events[to].contains(&refused), "{refused:?} in {:?}", swarm.events[to]);
        swarm.run();
        assert_eq!(swarm.outcome(), Some(&Outcome::Done), "the true plan still comes");
    }
}

/// A connection from a peer that is none of our business once made a worker say again that it is ready, which the
/// coordinator of a run under way refuses.
#[test]
fn only_an_awaited_connection_makes_a_worker_ready() {
    let mut swarm = Swarm::new(spec(Schedule::Flush), None);
    while !swarm.events[0].contains(&Event::Started { step: InnerStep(0) }) {
        swarm.turn().expect("the run starts");
    }
    swarm.connect(peer(usize::from(STAGES) + 1), 2);
    swarm.run();
    assert_eq!(swarm.refusals(), Vec::<&Event>::new());
}

/// A worker once forgot whom it had asked for a gradient when that peer refused something else, refused the gradient, and
/// waited for it until late.
#[test]
fn a_refusal_of_something_else_takes_back_nothing_that_was_sent() {
    for sync in [SyncSpec::mean(1), SyncSpec::mean(2)] {
        let mut swarm = Swarm::new(replicated(3, Schedule::Flush, sync), None);
        let sent = |event: &Event| matches!(event, Event::Computed { task: TaskKind::Forward, .. });
        swarm.run_until(7, sent);
        swarm.inject(peer(8), 7, Message::Refused(Refusal::NotYours { peer: peer(7) }));
        swarm.run_for(Span::seconds(60));
        assert_eq!(swarm.outcome(), Some(&Outcome::Done));
        assert_eq!(swarm.refusals(), Vec::<&Event>::new());
    }
}

/// A replica that goes on from other weights than the rest of its stage disagrees in every vote. At the end of a run the outer
/// step was restored and opened again at once, over a million times.
#[test]
fn replicas_that_can_never_agree_do_not_try_for_ever() {
    let sync = SyncSpec { rule: OuterRule::Nesterov, delay: 1, ..SyncSpec::mean(2) };
    let mut spec = replicated(2, Schedule::Async { staleness_max: 1 }, sync);
    spec.training.steps = 4;
    let mut swarm = Swarm::new(spec, None);
    swarm.run_until(3, |event| matches!(event, Event::Computed { task: TaskKind::Stage, .. }));
    swarm.inject(peer(0), 3, Message::Sync(Say::Restore { outer: OuterStep(0) }));
    swarm.run_for(Span::seconds(60));
    assert!(matches!(swarm.outcome(), Some(Outcome::Failed { .. })), "{:?}", swarm.outcome());
}

/// What was leased to the last of the first stage when it was lost stayed with it, though it came back to a seat that knew nothing
/// of it, where another of the stage had entered before.
#[test]
fn what_was_leased_to_a_former_seat_goes_to_who_enters_first() {
    for first in [1, 4] {
        let other = 5 - first;
        let mut swarm = Swarm::new(replicated(2, Schedule::Flush, SyncSpec::mean(2)), None);
        swarm.run_until(first, |event| matches!(event, Event::Computed { task: TaskKind::Forward, .. }));
        [first, other].into_iter().for_each(|victim| swarm.kill(victim));
        [first, other].into_iter().for_each(|victim| swarm.join(victim, Some(StageId(0)), Vec::new()));
        swarm.run_for(Span::seconds(60));
        assert_eq!(swarm.outcome(), Some(&Outcome::Done), "peer {first} comes first");
    }
}

/// It said what it misses, as a former member would have to, and that ended the run.
#[test]
fn a_stranger_gets_no_place_whose_checkpoint_it_lacks_when_a_plan_is_given_up() {
    let held = |index: usize| {
        let place = Place { stage: StageId(index as u16 - 1), replica: ReplicaId(0) };
        vec![Held { place, step: InnerStep(2), digest: Digest([index as u8 - 1; 32]) }]
    };
    let mut swarm = Swarm::new(spec(Schedule::Flush), None);
    swarm.run_until(0, |event| matches!(event, Event::Durable { .. }));
    (0..4).for_each(|victim| swarm.kill(victim));
    swarm.run();
    swarm.restart_coordinator();
    (1..4).for_each(|member| swarm.join(member, None, held(member)));
    let planned = swarm.events[0].len();
    while !swarm.events[0][planned..].iter().any(|event| matches!(event, Event::Planned { .. })) {
        swarm.turn().expect("they are heard");
    }
    swarm.kill(1);
    swarm.join(4, Some(StageId(0)), Vec::new());
    swarm.run_for(Span::seconds(10));
    let names = |event: &Event| matches!(event, Event::Planned { members, .. } if members.iter().any(|(member, _)| *member == peer(4)));
    assert!(!swarm.events[0].iter().any(names), "the stranger has a place");
    swarm.join(1, None, held(1));
    swarm.run_for(Span::seconds(120));
    assert_eq!(swarm.outcome(), Some(&Outcome::Done));
}
