//! Tables for work that comes twice, comes another way, or does not come.

use super::*;

#[test]
fn a_stage_that_is_not_needed_runs_a_ghost_and_does_not_wait_for_it_in_its_step() {
    let mut pipeline = queue(|_| {});
    assert_eq!(redo(&mut pipeline, 0, only(&[0, 2])), Ok(Offered::Queued));
    let (duty, returned) = finish(&mut pipeline, 0);
    assert_eq!((duty, returned.trained), (Duty::Ghost, None));
    assert_eq!((returned.needs, returned.attempt), (only(&[0, 2]), Attempt(1)), "it is passed on");
    for index in 1..4 {
        offer(&mut pipeline, train(index)).unwrap();
        assert_eq!(finish(&mut pipeline, index).0, Duty::Train);
    }
    assert_eq!(step(&mut pipeline, 0), 3);
}

#[test]
fn what_is_trained_here_already_is_a_ghost_and_keeps_its_step() {
    let mut pipeline = queue(|_| {});
    for index in 0..4 {
        offer(&mut pipeline, train(index)).unwrap();
        let (duty, returned) = finish(&mut pipeline, index);
        assert_eq!((duty, returned.trained), (Duty::Train, Some(InnerStep(0))));
        assert_eq!(returned.answer, Some(answer(NEXT, Some(InnerStep(0)))));
    }
    assert_eq!(step(&mut pipeline, 0), 4);
    assert_eq!(redo(&mut pipeline, 2, Needs::All), Ok(Offered::Queued));
    let (duty, returned) = finish(&mut pipeline, 2);
    assert_eq!((duty, returned.trained), (Duty::Ghost, Some(InnerStep(0))));
    for index in 4..8 {
        offer(&mut pipeline, train(index)).unwrap();
        assert_eq!(finish(&mut pipeline, index).1.trained, Some(InnerStep(1)));
    }
    assert_eq!(step(&mut pipeline, 1), 4, "the ghost is in no sum");
}

#[test]
fn a_ghost_is_trained_if_another_try_needs_it_before_its_backward() {
    for asked_at in ["waiting", "in its forward", "kept"] {
        let mut pipeline = queue(|_| {});
        let ask = |pipeline: &mut Pipeline, now| {
            if now == asked_at {
                assert_eq!(redo(pipeline, 0, only(&[1])), Ok(Offered::Merged), "{asked_at}");
            }
        };
        pipeline.offer(train(0), Attempt(0), only(&[0]), ALSO_BEFORE, bytes()).unwrap();
        ask(&mut pipeline, "waiting");
        assert!(matches!(pipeline.start(), Some(Task::Forward { .. })));
        ask(&mut pipeline, "in its forward");
        pipeline.forwarded(train(0), bytes());
        ask(&mut pipeline, "kept");
        pipeline.resend(0, NEXT, Time(0));
        gradient(&mut pipeline, 0);
        let (_, duty, returned) = back(&mut pipeline).unwrap();
        assert_eq!((duty, returned.trained), (Duty::Train, Some(InnerStep(0))), "{asked_at}");
        assert_eq!((returned.needs, returned.attempt), (only(&[0, 1]), Attempt(1)), "{asked_at}");
    }
}

#[test]
fn a_try_that_needs_less_takes_nothing_away() {
    let mut pipeline = queue(|_| {});
    offer(&mut pipeline, train(0)).unwrap();
    assert_eq!(redo(&mut pipeline, 0, only(&[0])), Ok(Offered::Merged));
    assert_eq!(finish(&mut pipeline, 0).0, Duty::Train);
}

#[test]
fn all_who_ask_are_answered_whenever_they_ask() {
    for asked_at in ["waiting", "in its forward", "kept", "in its backward"] {
        let mut pipeline = queue(|_| {});
        let ask = |pipeline: &mut Pipeline, now| {
            if now == asked_at {
                let asked = pipeline.offer(train(0), Attempt(1), Needs::All, ALSO_BEFORE, bytes());
                assert_eq!(asked, Ok(Offered::Merged), "{asked_at}");
            }
        };
        offer(&mut pipeline, train(0)).unwrap();
        ask(&mut pipeline, "waiting");
        assert!(matches!(pipeline.start(), Some(Task::Forward { .. })));
        ask(&mut pipeline, "in its forward");
        pipeline.forwarded(train(0), bytes());
        ask(&mut pipeline, "kept");
        pipeline.resend(0, NEXT, Time(0));
        gradient(&mut pipeline, 0);
        assert!(matches!(pipeline.start(), Some(Task::Backward { .. })));
        ask(&mut pipeline, "in its backward");
        let returned = pipeline.backwarded(train(0));
        assert_eq!(returned.askers, [BEFORE, ALSO_BEFORE], "{asked_at}");
        assert_eq!(pipeline.start(), None, "{asked_at}: it is run once");
    }
}

#[test]
fn who_asks_is_bounded_and_the_latest_count() {
    let mut pipeline = queue(|_| {});
    for peer in 0..20 {
        let asker = Asker::Peer(PeerId([peer; 32]));
        pipeline.offer(train(0), Attempt(0), Needs::All, asker, bytes()).unwrap();
    }
    let want: Vec<Asker> = (12..20).map(|peer| Asker::Peer(PeerId([peer; 32]))).collect();
    assert_eq!(finish(&mut pipeline, 0).1.askers, want);
}

#[test]
fn what_was_lost_or_is_older_than_all_in_flight_starts_although_they_are_full() {
    let mut pipeline = queue(|_| {});
    (1..5).for_each(|i| assert_eq!(offer(&mut pipeline, train(i)), Ok(Offered::Queued)));
    assert_eq!(forwards(&mut pipeline), [1, 2, 3], "4 is of the next step");
    offer(&mut pipeline, train(0)).unwrap();
    assert_eq!(forwards(&mut pipeline), [0], "the others wait for it");
    let mut pipeline = queue(|_| {});
    (0..4).for_each(|i| assert_eq!(offer(&mut pipeline, train(i)), Ok(Offered::Queued)));
    assert_eq!(forwards(&mut pipeline), [0, 1, 2]);
    assert_eq!(redo(&mut pipeline, 3, Needs::All), Ok(Offered::Merged));
    assert_eq!(forwards(&mut pipeline), [3]);
}

#[test]
fn what_goes_before_the_bound_has_one_of_its_own() {
    let mut pipeline = queue(|spec| {
        spec.pipeline.schedule = Schedule::Async { staleness_max: 8 };
        spec.training.steps = 8;
        spec.evaluation.every = 0;
    });
    let mut started = Vec::new();
    for index in 0..24 {
        assert_eq!(redo(&mut pipeline, index, Needs::All), Ok(Offered::Queued));
        started.extend(forwards(&mut pipeline));
    }
    assert_eq!(started, (0..20).collect::<Vec<_>>(), "3 in flight, and as many as may wait");
    gradient(&mut pipeline, 0);
    assert_eq!(backward(&mut pipeline), Some(0));
    assert_eq!(forwards(&mut pipeline), [20]);
}

/// A queue at border 8 that is full of what was lost once, of 33 to 52: none of it came back, and each was sent on.
fn crowded() -> Pipeline {
    let mut spec = spec();
    spec.pipeline.schedule = Schedule::Async { staleness_max: 8 };
    (spec.training.steps, spec.evaluation.every, spec.checkpoint.every) = (16, 8, 0);
    let mut pipeline = Pipeline::new(&spec, InnerStep(8), STAGE, ReplicaId(0));
    for index in 33..=52 {
        assert_eq!(redo(&mut pipeline, index, Needs::All), Ok(Offered::Queued));
        assert_eq!(forwards(&mut pipeline), [index]);
    }
    pipeline
}

#[test]
fn at_that_bound_the_latest_gives_way_to_earlier_work_and_is_forwarded_again() {
    let mut pipeline = crowded();
    redo(&mut pipeline, 53, Needs::All).unwrap();
    assert_eq!(forwards(&mut pipeline), [], "the latest of all waits");
    let bytes_before = pipeline.kept_bytes();
    offer(&mut pipeline, train(32)).unwrap();
    assert_eq!(forwards(&mut pipeline), [32], "the next stage may take none of the others before it");
    assert_eq!(pipeline.kept_bytes(), bytes_before, "and no more is kept");
    assert_eq!(pipeline.take_displaced(), [], "nobody needs to send anything again");
    gradient(&mut pipeline, 32);
    assert_eq!(backward(&mut pipeline), Some(32));
    assert!(matches!(pipeline.start(), Some(Task::Forward { microbatch, .. }) if microbatch == train(52)));
    pipeline.forwarded(train(52), bytes());
    let again = pipeline.unanswered().last().map(|(index, kept)| (index, kept.waits_for(), kept.before));
    assert_eq!(again, Some((52, None, Some(NEXT))), "it is sent again, wherever to");
    pipeline.resend(52, NEXT, Time(1));
    gradient(&mut pipeline, 52);
    let (index, duty, returned) = back(&mut pipeline).unwrap();
    assert_eq!((index, duty, returned.askers), (52, Duty::Train, vec![BEFORE]));
    assert_eq!(forwards(&mut pipeline), [53], "nothing is lost on the way");
}

#[test]
fn nothing_gives_way_to_an_evaluation_of_which_nothing_is_kept() {
    let mut pipeline = crowded();
    let bytes_before = pipeline.kept_bytes();
    offer(&mut pipeline, MicrobatchId::held_out(0)).unwrap();
    assert_eq!(forwards(&mut pipeline), [0]);
    assert_eq!(pipeline.kept_bytes(), bytes_before);
}

#[test]
fn an_answer_to_what_gave_way_is_taken_for_a_duplicate_until_it_is_asked_for_again() {
    let mut pipeline = crowded();
    offer(&mut pipeline, train(32)).unwrap();
    assert_eq!(forwards(&mut pipeline), [32]);
    let answered =
        |pipeline: &mut Pipeline, from| pipeline.offer_gradient(train(52), answer(from, None), Bytes::new());
    assert_eq!(answered(&mut pipeline, NEXT), Ok(Offered::Duplicate), "no refusal of honest work");
    assert_eq!(answered(&mut pipeline, OTHER_NEXT), Err(Refusal::NotOwed { microbatch: train(52) }));
    gradient(&mut pipeline, 32);
    assert_eq!(backward(&mut pipeline), Some(32));
    assert!(matches!(pipeline.start(), Some(Task::Forward { .. })));
    assert_eq!(answered(&mut pipeline, NEXT), Ok(Offered::Duplicate), "nor while it is forwarded");
    pipeline.forwarded(train(52), bytes());
    assert_eq!(pipeline.start(), None, "what came too early is not used");
    assert_eq!(answered(&mut pipeline, NEXT), Ok(Offered::Queued));
    assert_eq!(backward(&mut pipeline), Some(52));
}

#[test]
fn no_order_is_waited_for_in_a_disturbed_step() {
    let mut pipeline = queue(|_| {});
    (0..3).for_each(|i| assert_eq!(offer(&mut pipeline, train(i)), Ok(Offered::Queued)));
    forwards(&mut pipeline);
    gradient(&mut pipeline, 2);
    assert_eq!(pipeline.start(), None);
    pipeline.disturbed(InnerStep(0));
    assert_eq!(pipeline.start(), None, "the step before it is disturbed, not this");
    pipeline.disturbed(InnerStep(1));
    assert_eq!(backward(&mut pipeline), Some(2));
    pipeline.disturbed(InnerStep(0));
    gradient(&mut pipeline, 1);
    assert_eq!(backward(&mut pipeline), Some(1), "an earlier word takes nothing back");
}

#[test]
fn no_order_is_waited_for_in_steps_before_the_replica_came() {
    let mut pipeline = Pipeline::new(&spec(), InnerStep(1), STAGE, ReplicaId(0));
    (0..2).chain(4..6).for_each(|i| assert_eq!(offer(&mut pipeline, train(i)), Ok(Offered::Queued)));
    assert_eq!(forwards(&mut pipeline), [0, 1, 4]);
    gradient(&mut pipeline, 1);
    assert_eq!(backward(&mut pipeline), Some(1), "0 may never come here");
    assert_eq!(forwards(&mut pipeline), [5]);
    gradient(&mut pipeline, 5);
    assert_eq!(pipeline.start(), None, "its own step is another matter");
}

#[test]
fn what_goes_another_way_is_not_waited_for() {
    let mut pipeline = queue(|_| {});
    (1..4).for_each(|i| assert_eq!(offer(&mut pipeline, train(i)), Ok(Offered::Queued)));
    assert_eq!(forwards(&mut pipeline), [1, 2, 3]);
    gradient(&mut pipeline, 1);
    assert_eq!(pipeline.start(), None, "0 comes first");
    pipeline.diverted(train(0));
    assert_eq!(backward(&mut pipeline), Some(1));
    pipeline.diverted(train(2));
    gradient(&mut pipeline, 3);
    assert_eq!(pipeline.start(), None, "2 is here, whoever says what");
    gradient(&mut pipeline, 2);
    assert_eq!([backward(&mut pipeline), backward(&mut pipeline)], [Some(2), Some(3)]);
    assert_eq!(step(&mut pipeline, 0), 3);
}

#[test]
fn a_step_passes_without_what_will_not_come() {
    let mut pipeline = queue(|_| {});
    offer(&mut pipeline, train(0)).unwrap();
    finish(&mut pipeline, 0);
    pipeline.reached(settled(3));
    assert_eq!(pipeline.start(), None, "the step is not settled yet");
    pipeline.reached(settled(4));
    assert_eq!(step(&mut pipeline, 0), 1);
    offer(&mut pipeline, train(4)).unwrap();
    assert_eq!(finish(&mut pipeline, 4).1.trained, Some(InnerStep(1)), "the order begins with the step");
    let mut nothing = queue(|_| {});
    nothing.reached(settled(8));
    assert_eq!([step(&mut nothing, 0), step(&mut nothing, 1)], [0, 0]);
    assert_eq!(nothing.start(), None);
}

#[test]
fn a_step_does_not_pass_what_is_to_be_done_again_in_it() {
    let mut pipeline = queue(|_| {});
    assert_eq!(redo(&mut pipeline, 2, only(&[1])), Ok(Offered::Queued));
    pipeline.reached(settled(4));
    assert_eq!(finish(&mut pipeline, 2).0, Duty::Train);
    assert_eq!(step(&mut pipeline, 0), 1);
}

#[test]
fn what_is_settled_is_dropped_and_not_taken_again() {
    let mut pipeline = queue(|_| {});
    (0..2).for_each(|i| assert_eq!(offer(&mut pipeline, train(i)), Ok(Offered::Queued)));
    assert_eq!(forward(&mut pipeline), Some(0));
    gradient(&mut pipeline, 0);
    redo(&mut pipeline, 2, only(&[1])).unwrap();
    let dropped = pipeline.reached(settled(3));
    assert_eq!(dropped.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0], "only that was begun");
    assert_eq!(pipeline.kept_bytes(), 0);
    let late = pipeline.offer_gradient(train(0), answer(NEXT, None), Bytes::new());
    assert_eq!(late, Ok(Offered::Duplicate), "no refusal of honest work");
    assert_eq!(offer(&mut pipeline, train(1)), Ok(Offered::Duplicate));
    assert_eq!(forwards(&mut pipeline), [2], "a later try is not settled by an earlier one");
}

#[test]
fn what_is_being_computed_outlives_its_settlement() {
    let mut pipeline = queue(|_| {});
    offer(&mut pipeline, train(0)).unwrap();
    assert_eq!(forward(&mut pipeline), Some(0));
    gradient(&mut pipeline, 0);
    assert!(matches!(pipeline.start(), Some(Task::Backward { .. })));
    pipeline.reached(settled(4));
    assert_eq!(pipeline.backwarded(train(0)).trained, Some(InnerStep(0)));
    assert_eq!(step(&mut pipeline, 0), 1);
    pipeline.reached(settled(4));
    offer(&mut pipeline, train(4)).unwrap();
    assert!(matches!(pipeline.start(), Some(Task::Forward { .. })));
    pipeline.reached(settled(8));
    pipeline.forwarded(train(4), bytes());
    assert_eq!(pipeline.unanswered().count(), 0, "nobody answers for it");
    assert_eq!(pipeline.kept_bytes(), 0);
}

#[test]
fn who_leaves_hands_back_what_it_could_not_hand_in() {
    let mut pipeline = queue(|_| {});
    (0..2).chain(4..6).for_each(|i| assert_eq!(offer(&mut pipeline, train(i)), Ok(Offered::Queued)));
    pipeline.offer(train(5), Attempt(0), Needs::All, ALSO_BEFORE, bytes()).unwrap();
    redo(&mut pipeline, 6, only(&[0])).unwrap();
    let back = pipeline.leave_at(Some(InnerStep(1)));
    assert_eq!(back, [(train(4), BEFORE), (train(5), BEFORE), (train(5), ALSO_BEFORE)]);
    assert_eq!(offer(&mut pipeline, train(7)), Err(Refusal::Leaves { microbatch: train(7) }));
    assert_eq!(redo(&mut pipeline, 7, only(&[0])), Ok(Offered::Queued), "a ghost leaves nothing behind");
    assert_eq!(offer(&mut pipeline, train(3)), Ok(Offered::Queued));
    assert_eq!(forwards(&mut pipeline), [0, 1, 3]);
}
