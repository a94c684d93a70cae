//! Peers that come, go and fail while the run goes on: the run ends with all of its work credited once.

use crate::replicas::replicated;
use crate::swarm::{STAGES, Swarm, keys, peer, spec};
use bytes::Bytes;
use trestle_protocol::event::{Event, TaskKind};
use trestle_protocol::ids::{
    Attempt, Digest, InnerStep, MicrobatchId, OuterStep, PeerId, PlanNumber, ReplicaId, SeatId, StageId,
    WeightVersion,
};
use trestle_protocol::message::{Held, Join, Message, Outcome, Refusal, Removal, Tensor, Text};
use trestle_protocol::plan::Place;
use trestle_protocol::port::Input;
use trestle_protocol::receipt::{Receipt, ReceiptError, Statement};
use trestle_protocol::spec::sync::{OuterRule, SyncSpec};
use trestle_protocol::spec::{RunSpec, Schedule};
use trestle_protocol::sync::blob::Manifest;
use trestle_protocol::sync::state::{StatePart, StateSay};
use trestle_protocol::time::Span;
use trestle_protocol::work::{Needs, Trained};

/// Beyond the wait for a silent peer, for receipts, and for answers that are late.
pub(crate) const PATIENCE: Span = Span::seconds(120);

/// Two replicas that agree after each two of eight steps, and go on beside the exchange or wait for it.
fn twofold() -> [RunSpec; 3] {
    let beside = SyncSpec { rule: OuterRule::Nesterov, delay: 1, ..SyncSpec::mean(2) };
    [
        replicated(2, Schedule::Flush, SyncSpec::mean(2)),
        replicated(2, Schedule::Async { staleness_max: 1 }, SyncSpec::mean(2)),
        replicated(2, Schedule::Flush, beside),
    ]
}

/// Runs until a node has computed so many forwards.
pub(crate) fn run_to_forward(swarm: &mut Swarm, index: usize, count: usize) {
    let forwards = |swarm: &Swarm| {
        let forward = |event: &&Event| matches!(event, Event::Computed { task: TaskKind::Forward, .. });
        swarm.events[index].iter().filter(forward).count()
    };
    while forwards(swarm) < count {
        swarm.turn().expect("work comes to every stage");
    }
}

pub(crate) fn place_at(stage: u16, replica: u16) -> Place {
    Place { stage: StageId(stage), replica: ReplicaId(replica) }
}

/// Says that a run has ended well, that each microbatch of its plan is credited once at each stage, by whom it may be, and
/// that no replica has gone on from weights of its own.
pub(crate) fn check_ended_well(swarm: &Swarm, case: &str) {
    assert_eq!(swarm.outcome(), Some(&Outcome::Done), "{case}");
    let ledger = swarm.events[0].iter().rev().find_map(|event| {
        let Event::Ledger { planned, credited, redone, accounts, .. } = event else { return None };
        Some((*planned, credited.clone(), redone.clone(), accounts.clone()))
    });
    let (planned, credited, redone, accounts) = ledger.expect("the ledger is closed");
    assert_eq!(credited, vec![planned; usize::from(STAGES)], "{case}");
    for stage in (0..STAGES).map(StageId) {
        let of_stage = accounts.iter().filter(|account| account.stage == stage);
        let (mut trained, mut redone_by_all) = (0, 0);
        for account in of_stage {
            trained += account.sums.trained;
            redone_by_all += account.sums.redone;
        }
        assert_eq!(trained, planned, "{case}: stage {stage}");
        assert_eq!(redone_by_all, redone[usize::from(stage.0)], "{case}: stage {stage}");
    }
    assert_eq!(swarm.parted(), Vec::<String>::new(), "{case}");
}

/// Lists the removals that the coordinator has seen.
fn removals(swarm: &Swarm) -> Vec<(Place, Removal)> {
    let removed = swarm.events[0].iter().filter_map(|event| {
        let Event::Removed { place, why, .. } = event else { return None };
        Some((*place, *why))
    });
    removed.collect()
}

pub(crate) fn seated(swarm: &Swarm) -> Vec<(Place, InnerStep)> {
    let seated = swarm.events[0].iter().filter_map(|event| {
        let Event::Seated { place, enters, .. } = event else { return None };
        Some((*place, *enters))
    });
    seated.collect()
}

#[test]
fn a_run_outlives_a_replica_of_any_stage_whenever_it_dies() {
    for (at, spec) in twofold().into_iter().enumerate() {
        for victim in [4, 5, 6] {
            for forwards in [1, 4, 6, 9, 14, 20, 26, 32] {
                let case = format!("spec {at}, peer {victim} after {forwards} forwards");
                let mut swarm = Swarm::new(spec.clone(), None);
                run_to_forward(&mut swarm, victim, forwards);
                swarm.kill(victim);
                swarm.run_for(PATIENCE);
                check_ended_well(&swarm, &case);
                let place = place_at((victim as u16 - 1) % STAGES, 1);
                assert_eq!(removals(&swarm), [(place, Removal::Silent)], "{case}");
            }
        }
    }
}

#[test]
fn a_worker_that_is_started_again_takes_its_place_again() {
    for (at, spec) in twofold().into_iter().enumerate() {
        for victim in [4, 5, 6] {
            for forwards in [1, 6, 9, 14] {
                let case = format!("spec {at}, peer {victim} after {forwards} forwards");
                let mut swarm = Swarm::new(spec.clone(), None);
                run_to_forward(&mut swarm, victim, forwards);
                swarm.kill(victim);
                (0..40).for_each(|_| swarm.turn().expect("the others go on"));
                swarm.join(victim, Some(StageId((victim as u16 - 1) % STAGES)), Vec::new());
                swarm.run_for(PATIENCE);
                check_ended_well(&swarm, &case);
                let place = place_at((victim as u16 - 1) % STAGES, 1);
                assert_eq!(removals(&swarm), [(place, Removal::Restarted)], "{case}");
                assert!(seated(&swarm).iter().all(|(of, enters)| *of == place && enters.0 >= 1), "{case}");
            }
        }
    }
}

#[test]
fn a_newcomer_takes_the_place_of_one_that_died_with_the_state_of_the_replicas_that_live() {
    let [spec, ..] = twofold();
    let mut swarm = Swarm::new(spec, None);
    swarm.run_until(0, |event| matches!(event, Event::Outer(_)));
    swarm.kill(5);
    swarm.join(7, None, Vec::new());
    swarm.run();
    assert_eq!(swarm.outcome(), None, "what was lost is missing until the dead one is given up");
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "newcomer");
    assert_eq!(seated(&swarm).iter().map(|(place, _)| *place).collect::<Vec<_>>(), [place_at(1, 1)]);
    let exports = |index: usize| {
        let export = |event: &&Event| matches!(event, Event::Computed { task: TaskKind::Export, .. });
        swarm.events[index].iter().filter(export).count()
    };
    assert!(exports(2) >= 1, "the live replica of its stage gave it the state");
    assert_eq!((exports(1), exports(3)), (0, 0));
}

#[test]
fn a_spare_waits_and_is_told_why() {
    let [spec, ..] = twofold();
    let mut swarm = Swarm::new(spec, None);
    swarm.run_until(0, |event| matches!(event, Event::Started { .. }));
    swarm.join(7, Some(StageId(1)), Vec::new());
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "spare");
    let waits = swarm.events[7].iter().any(|event| matches!(event, Event::Waiting { ahead: 0, .. }));
    assert!(waits, "{:?}", swarm.events[7]);
    assert_eq!(swarm.ended[7], Some(Outcome::Done), "who waits hears that it is over");
    assert_eq!(seated(&swarm), []);
}

#[test]
fn a_worker_that_leaves_with_notice_hands_in_its_work_and_nothing_is_done_again() {
    for (at, spec) in twofold().into_iter().enumerate() {
        for leaver in [4, 5, 6] {
            let case = format!("spec {at}, peer {leaver}");
            let mut swarm = Swarm::new(spec.clone(), None);
            run_to_forward(&mut swarm, leaver, 3);
            swarm.tell(leaver, Input::Leave { notice: Span::seconds(30) });
            swarm.run_for(PATIENCE);
            check_ended_well(&swarm, &case);
            assert_eq!(swarm.ended[leaver], Some(Outcome::Left), "{case}");
            let place = place_at((leaver as u16 - 1) % STAGES, 1);
            assert_eq!(removals(&swarm), [(place, Removal::Left)], "{case}");
            let lost = |event: &Event| matches!(event, Event::Removed { lost: 1.., .. });
            assert!(!swarm.events[0].iter().any(lost), "{case}");
            let redone = |event: &Event| matches!(event, Event::Ledger { redone, .. } if redone.iter().any(|redone| *redone > 0));
            assert!(!swarm.events[0].iter().any(redone), "{case}");
            let agreed = swarm.events[leaver].iter().any(|event| matches!(event, Event::Agreed { .. }));
            assert!(agreed, "{case}: what it had learnt is part of a commit");
        }
    }
}

/// Who is told to go first goes; the other holds the stage on its own, and would take it out of the run.
#[test]
fn the_last_replica_of_a_stage_does_not_leave_at_its_border() {
    for (at, spec) in twofold().into_iter().enumerate() {
        for (one, other) in [(1, 4), (5, 2), (3, 6)] {
            let case = format!("spec {at}, peers {one} and {other}");
            let mut swarm = Swarm::new(spec.clone(), None);
            run_to_forward(&mut swarm, other, 3);
            for leaver in [one, other] {
                swarm.tell(leaver, Input::Leave { notice: Span::seconds(300) });
            }
            swarm.run_for(PATIENCE);
            check_ended_well(&swarm, &case);
            let removals = removals(&swarm);
            assert_eq!(removals.len(), 1, "{case}: {removals:?}");
            assert_eq!(removals[0].1, Removal::Left, "{case}");
        }
    }
}

/// Work behind the border that it was taken to leave at: removed there, it would take that credit with it.
#[test]
fn who_leaves_stays_while_it_has_credit_that_no_commit_holds() {
    let [.., spec] = twofold();
    let (leaver, holder, index, step) = (5, 1, 17, InnerStep(2));
    let mut swarm = Swarm::new(spec.clone(), None);
    run_to_forward(&mut swarm, leaver, 3);
    swarm.tell(leaver, Input::Leave { notice: Span::seconds(300) });
    // The step behind its border is begun while the exchange is open.
    run_to_forward(&mut swarm, holder, 9);
    let committed = |event: &Event| matches!(event, Event::Outer(_));
    assert!(!swarm.events[0].iter().any(committed));
    let statement = Statement {
        run: spec.digest(),
        stage: StageId(1),
        worker: peer(leaver),
        seat: SeatId(4),
        by: peer(holder),
        microbatches: vec![Trained { index, step }],
    };
    swarm.inject(peer(holder), 0, Message::Receipts(vec![Receipt::sign(statement, &keys()[holder])]));
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "credit behind the border");
    let at = |wanted: &dyn Fn(&Event) -> bool| swarm.events[0].iter().position(wanted);
    let removed = at(&|event| matches!(event, Event::Removed { .. })).expect("it goes in the end");
    let committed =
        |outer| at(&|event| matches!(event, Event::Outer(summary) if summary.outer == OuterStep(outer)));
    assert!(committed(0) < Some(removed) && committed(1) < Some(removed), "{:?}", removals(&swarm));
    assert_eq!(removals(&swarm), [(place_at(1, 1), Removal::Left)]);
    assert!(matches!(swarm.events[0][removed], Event::Removed { lost: 0, .. }), "nothing was taken back");
}

#[test]
fn a_worker_without_time_to_leave_goes_at_once_and_its_work_is_done_again() {
    let [spec, ..] = twofold();
    let mut swarm = Swarm::new(spec, None);
    run_to_forward(&mut swarm, 5, 6);
    swarm.tell(5, Input::Leave { notice: Span(0) });
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "no notice");
    assert_eq!(swarm.ended[5], Some(Outcome::Left));
    assert_eq!(removals(&swarm), [(place_at(1, 1), Removal::Left)]);
}

#[test]
fn a_coordinator_that_starts_again_goes_on_with_its_members_and_no_one_joins_anew() {
    let specs = twofold().into_iter().chain([spec(Schedule::Flush)]);
    for (at, spec) in specs.enumerate() {
        for forwards in [2, 5, 8, 11] {
            let case = format!("spec {at} after {forwards} forwards");
            let mut swarm = Swarm::new(spec.clone(), None);
            run_to_forward(&mut swarm, 2, forwards);
            swarm.kill(0);
            swarm.run();
            swarm.restart_coordinator();
            swarm.run_for(PATIENCE);
            check_ended_well(&swarm, &case);
            assert_eq!(removals(&swarm), [], "{case}");
            let loads = |events: &Vec<Event>| {
                let load = |event: &&Event| matches!(event, Event::Computed { task: TaskKind::Load, .. });
                events.iter().filter(load).count()
            };
            assert!(swarm.events.iter().skip(1).all(|events| loads(events) == 1), "{case}");
            assert!(swarm.ended.iter().all(|ended| *ended == Some(Outcome::Done)), "{case}");
        }
    }
}

/// What the members hold is on no disk, and they may need a moment to find it again.
#[test]
fn a_coordinator_that_starts_again_gives_no_place_away_before_its_members_had_time_to_come() {
    let mut swarm = Swarm::new(spec(Schedule::Flush), None);
    run_to_forward(&mut swarm, 2, 5);
    swarm.kill(0);
    swarm.restart_coordinator();
    let join = |stage: u16| {
        let (address, device, held) = (Bytes::new(), "none".into(), Vec::new());
        Message::Join(Join {
            address,
            stage: Some(StageId(stage)),
            device,
            peak_flops: 0,
            text: Text::Here,
            held,
        })
    };
    for stranger in [4, 5, 6] {
        swarm.inject(peer(stranger), 0, join(stranger as u16 - 4));
        swarm.turn().expect("it is heard");
    }
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "strangers");
    assert_eq!(removals(&swarm), []);
    // Of these members none comes.
    let mut swarm = Swarm::new(spec(Schedule::Flush), None);
    run_to_forward(&mut swarm, 2, 5);
    (0..4).for_each(|victim| swarm.kill(victim));
    swarm.restart_coordinator();
    for newcomer in [4, 5, 6] {
        swarm.join(newcomer, Some(StageId(newcomer as u16 - 4)), Vec::new());
    }
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "others");
}

#[test]
fn who_joins_a_run_that_begins_and_never_gets_ready_does_not_keep_it_from_beginning() {
    let mut swarm = Swarm::new(spec(Schedule::Flush), None);
    let (address, device, held) = (Bytes::new(), "none".into(), Vec::new());
    let join = Join { address, stage: Some(StageId(1)), device, peak_flops: 0, text: Text::Here, held };
    swarm.inject(peer(7), 0, Message::Join(join));
    swarm.run_for(Span::seconds(590));
    assert!(!swarm.events[0].iter().any(|event| matches!(event, Event::Started { .. })));
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "who gets ready has the place");
    assert_eq!(removals(&swarm), [(place_at(1, 0), Removal::Unready)]);
}

/// Nobody keeps an evaluation: who takes the first stage is told of it.
#[test]
fn a_coordinator_that_starts_again_without_a_first_stage_forgets_no_evaluation() {
    let mut swarm = Swarm::new(spec(Schedule::Flush), None);
    swarm.run_until(0, |event| matches!(event, Event::Durable { .. }));
    swarm.kill(1);
    swarm.run_for(Span::seconds(30));
    assert!(swarm.events[0].contains(&Event::Stalled { stage: StageId(0), durable: InnerStep(2) }));
    swarm.kill(0);
    swarm.run();
    swarm.restart_coordinator();
    swarm.run_for(Span::seconds(10));
    assert!(swarm.events[0].iter().filter(|event| matches!(event, Event::Started { .. })).count() == 2);
    let held = Held { place: place_at(0, 0), step: InnerStep(2), digest: Digest([0; 32]) };
    swarm.join(1, None, vec![held]);
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "without a first stage");
    let evaluated = swarm.events[0].iter().filter_map(|event| {
        let Event::Evaluated { step, .. } = event else { return None };
        Some(step.0)
    });
    assert_eq!(evaluated.collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_coordinator_that_starts_again_misses_who_died_meanwhile() {
    let [spec, ..] = twofold();
    let mut swarm = Swarm::new(spec, None);
    run_to_forward(&mut swarm, 5, 7);
    swarm.kill(0);
    swarm.kill(5);
    swarm.run();
    swarm.restart_coordinator();
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "both");
    assert_eq!(removals(&swarm), [(place_at(1, 1), Removal::Silent)]);
}

/// With one replica of each stage the disk has what others would have.
#[test]
fn a_stage_that_died_out_goes_on_from_its_checkpoint_where_a_peer_has_that() {
    let spec = spec(Schedule::Flush);
    let mut swarm = Swarm::new(spec, None);
    swarm.run_until(0, |event| matches!(event, Event::Durable { .. }));
    swarm.kill(2);
    swarm.join(4, None, Vec::new());
    swarm.run_for(PATIENCE);
    assert_eq!(swarm.outcome(), None, "the newcomer has nothing to go on from");
    let stalled = Event::Stalled { stage: StageId(1), durable: InnerStep(2) };
    assert!(swarm.events[0].contains(&stalled));
    let held = Held { place: place_at(1, 0), step: InnerStep(2), digest: Digest([1; 32]) };
    swarm.join(2, None, vec![held]);
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "from disk");
    assert!(swarm.events[0].contains(&Event::Resumed { stage: StageId(1) }));
    assert_eq!(seated(&swarm), [(place_at(1, 0), InnerStep(2))]);
}

#[test]
fn a_stage_that_died_out_before_any_checkpoint_begins_again() {
    for victim in [1, 2, 3] {
        let mut swarm = Swarm::new(spec(Schedule::Flush), None);
        run_to_forward(&mut swarm, victim, 6);
        swarm.kill(victim);
        swarm.run();
        swarm.join(victim, Some(StageId(victim as u16 - 1)), Vec::new());
        swarm.run_for(PATIENCE);
        check_ended_well(&swarm, &format!("peer {victim}"));
    }
}

#[test]
fn a_member_lost_before_the_run_begins_is_replaced_before_it_begins() {
    let mut swarm = Swarm::new(spec(Schedule::Flush), None);
    swarm.run_until(0, |event| matches!(event, Event::Planned { .. }));
    swarm.kill(2);
    swarm.run();
    let started = |event: &Event| matches!(event, Event::Started { .. });
    assert!(!swarm.events[0].iter().any(started));
    swarm.join(4, None, Vec::new());
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "before it began");
    assert!(!swarm.events[0].iter().any(|event| matches!(event, Event::Removed { .. })));
}

#[test]
fn a_connection_that_breaks_for_a_moment_removes_nobody() {
    let [spec, ..] = twofold();
    for (one, other) in [(1, 2), (2, 5), (5, 6), (0, 5)] {
        let mut swarm = Swarm::new(spec.clone(), None);
        run_to_forward(&mut swarm, 5, 5);
        for (at, of) in [(one, other), (other, one)] {
            swarm.tell(at, Input::Lost { peer: peer(of), reason: "reset".into() });
        }
        swarm.run_for(PATIENCE);
        check_ended_well(&swarm, &format!("between {one} and {other}"));
        assert_eq!(removals(&swarm), []);
    }
}

#[test]
fn replicas_that_average_gradients_do_not_go_on_without_one() {
    let mut swarm = Swarm::new(replicated(2, Schedule::Flush, SyncSpec::mean(1)), None);
    run_to_forward(&mut swarm, 5, 6);
    swarm.kill(5);
    swarm.run_for(PATIENCE);
    assert!(matches!(swarm.outcome(), Some(Outcome::Failed { .. })), "{:?}", swarm.outcome());
}

/// A member that was taken for dead and is not: it lets go of what others know already, and asks for a place again.
#[test]
fn a_member_that_is_removed_while_it_lives_comes_back() {
    let [spec, ..] = twofold();
    let mut swarm = Swarm::new(spec, None);
    run_to_forward(&mut swarm, 5, 5);
    swarm.inject(peer(0), 5, Message::Removed { why: Removal::Silent });
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "removed");
    assert_eq!(removals(&swarm), [(place_at(1, 1), Removal::Restarted)]);
    assert_eq!(swarm.ended[5], Some(Outcome::Done));
}

/// Brings a run to where a newcomer, peer 7, is on its way into the place that peer 5 has left.
fn with_newcomer() -> Swarm {
    let [spec, ..] = twofold();
    let mut swarm = Swarm::new(spec, None);
    swarm.run_until(0, |event| matches!(event, Event::Outer(_)));
    swarm.tell(5, Input::Leave { notice: Span(0) });
    swarm.join(7, None, Vec::new());
    let names = |members: &[(PeerId, Place)]| members.iter().any(|(member, _)| *member == peer(7));
    swarm.run_until(0, |event| matches!(event, Event::Planned { members, .. } if names(members)));
    swarm
}

#[test]
fn a_newcomer_is_not_ready_before_it_holds_what_it_was_told_to_fetch() {
    let mut swarm = with_newcomer();
    for holds in [None, Some(OuterStep(99))] {
        swarm.inject(peer(7), 0, Message::Ready { plan: PlanNumber(1), holds });
        swarm.turn().expect("it is heard");
        assert_eq!(seated(&swarm), [], "{holds:?}");
    }
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "ready too soon");
}

#[test]
fn a_newcomer_that_is_there_and_never_ready_does_not_hold_its_place_for_ever() {
    let [spec, ..] = twofold();
    let mut swarm = Swarm::new(spec, None);
    run_to_forward(&mut swarm, 2, 1);
    [2, 5].into_iter().for_each(|victim| swarm.kill(victim));
    swarm.run_for(Span::seconds(30));
    let join = Join {
        address: Bytes::new(),
        stage: Some(StageId(1)),
        device: "none".into(),
        peak_flops: 0,
        text: Text::Here,
        held: Vec::new(),
    };
    swarm.inject(peer(7), 0, Message::Join(join));
    for _ in 0..660 {
        swarm.inject(peer(7), 0, Message::Beat);
        swarm.run_for(Span::seconds(1));
    }
    assert_eq!(removals(&swarm).last(), Some(&(place_at(1, 0), Removal::Unready)));
    assert_eq!(seated(&swarm), []);
    swarm.join(7, Some(StageId(1)), Vec::new());
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "who gets ready has the place");
}

/// Its place alone gives it no say in what others train.
#[test]
fn a_newcomer_that_has_not_entered_sends_nobody_work() {
    let mut swarm = with_newcomer();
    let [spec, ..] = twofold();
    let tensor = Tensor {
        microbatch: MicrobatchId::train(40),
        attempt: Attempt(0),
        stage: StageId(2),
        seat: SeatId(6),
        version: WeightVersion(0),
        needs: Needs::All,
        trained: None,
        payload: vec![0; spec.boundary_bytes()].into(),
    };
    let mut sent = 0;
    while seated(&swarm).is_empty() {
        swarm.inject(peer(7), 3, Message::Activation(tensor.clone()));
        (0..2).for_each(|_| swarm.turn().expect("it is on its way"));
        sent += 1;
    }
    let refused = Event::Refused { peer: peer(7), refusal: Refusal::NotMember { peer: peer(7) } };
    assert_eq!(swarm.events[3].iter().filter(|event| **event == refused).count(), sent);
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "work of a newcomer");
}

#[test]
fn a_state_of_absurd_size_is_refused_and_the_newcomer_gets_another() {
    let mut swarm = with_newcomer();
    swarm.run_until(2, |event| matches!(event, Event::Computed { task: TaskKind::Export, .. }));
    let outer = swarm.events[0].iter().rev().find_map(|event| {
        let Event::Outer(summary) = event else { return None };
        Some(summary.outer)
    });
    let bytes = 64 << 20;
    let manifest = Manifest { bytes, chunks: vec![Digest([1; 32]); 64] };
    let (outer, part, digest) = (outer.expect("one was committed"), StatePart::Agreed, Digest([1; 32]));
    swarm.inject(peer(2), 7, Message::State(StateSay::Offer { outer, part, digest, manifest }));
    swarm.turn().expect("it is heard");
    let refused = Event::Refused { peer: peer(2), refusal: Refusal::OfferUnfit { shard: 0, bytes } };
    assert!(swarm.events[7].contains(&refused), "{:?}", swarm.events[7]);
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "absurd state");
}

#[test]
fn receipts_for_a_seat_that_was_lost_are_worth_nothing() {
    let swarm = &mut with_newcomer();
    let [spec, ..] = twofold();
    let statement = Statement {
        run: spec.digest(),
        stage: StageId(1),
        worker: peer(5),
        seat: SeatId(4),
        by: peer(1),
        // A step that no commit has seen.
        microbatches: vec![Trained { index: 0, step: InnerStep(7) }],
    };
    let receipt = Receipt::sign(statement, &keys()[1]);
    swarm.inject(peer(1), 0, Message::Receipts(vec![receipt]));
    swarm.turn().expect("it is heard");
    let refusal = Refusal::Receipt(ReceiptError::OldSeat);
    assert!(swarm.events[0].contains(&Event::Refused { peer: peer(1), refusal }));
}

#[test]
fn a_replica_that_was_not_asked_owes_no_gradient() {
    let [spec, ..] = twofold();
    let mut swarm = Swarm::new(spec.clone(), None);
    run_to_forward(&mut swarm, 2, 1);
    let microbatch = MicrobatchId::train(0);
    let tensor = Tensor {
        microbatch,
        attempt: Attempt(0),
        stage: StageId(1),
        seat: SeatId(0),
        version: WeightVersion(0),
        needs: Needs::All,
        trained: Some(InnerStep(0)),
        payload: vec![0; spec.boundary_bytes()].into(),
    };
    swarm.inject(peer(6), 2, Message::Gradient(tensor));
    swarm.turn().expect("it is heard");
    let refused = Event::Refused { peer: peer(6), refusal: Refusal::NotOwed { microbatch } };
    assert!(swarm.events[2].contains(&refused));
    swarm.run_for(PATIENCE);
    check_ended_well(&swarm, "a gradient too much");
}
