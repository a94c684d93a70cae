//! Tables for borders: exchanges, newcomers, turns, and the end.

use super::*;
use crate::plan::{Plan, Turns};

#[test]
fn work_that_is_done_again_at_the_end_gets_a_step_of_its_own() {
    let mut pipeline = queue(|spec| spec.evaluation.every = 0);
    pipeline.reached(settled(8));
    assert_eq!([step(&mut pipeline, 0), step(&mut pipeline, 1)], [0, 0]);
    redo(&mut pipeline, 3, only(&[1])).unwrap();
    assert_eq!(finish(&mut pipeline, 3).1.trained, Some(InnerStep(2)));
    assert_eq!(pipeline.start(), None, "more may come");
    pipeline.close(None);
    assert_eq!(step(&mut pipeline, 2), 1);
    assert_eq!(pipeline.start(), Some(Task::Save { border: InnerStep(2) }));
    pipeline.saved();
    assert_eq!(pipeline.start(), None);
}

#[test]
fn replicas_exchange_at_a_border_but_at_the_end_only_when_it_is_closed() {
    let mut pipeline = replicated(4);
    pipeline.reached(settled(32));
    assert_eq!([step(&mut pipeline, 0), step(&mut pipeline, 1)], [0, 0]);
    exchange(&mut pipeline, 0, 2);
    assert_eq!([step(&mut pipeline, 2), step(&mut pipeline, 3)], [0, 0]);
    assert_eq!(pipeline.start(), None);
    pipeline.close(Some(OuterStep(1)));
    exchange(&mut pipeline, 1, 4);
    assert_eq!(pipeline.start(), Some(Task::Save { border: InnerStep(4) }));
}

/// Commits an outer step at a border.
fn exchange(pipeline: &mut Pipeline, outer: u64, border: u64) {
    snapshot(pipeline, outer, border);
    pipeline.committed();
    assert_eq!(pipeline.start(), Some(Task::Adopt { outer: OuterStep(outer) }));
    pipeline.adopted();
}

fn snapshot(pipeline: &mut Pipeline, outer: u64, border: u64) {
    let outer = OuterStep(outer);
    assert_eq!(pipeline.start(), Some(Task::Snapshot { outer, microbatches: 0 }));
    assert_eq!(pipeline.snapshotted(), (outer, InnerStep(border)));
    assert!(pipeline.awaits_agreement());
    assert_eq!(pipeline.start(), None);
}

#[test]
fn an_end_that_is_called_off_opens_again_for_work_of_which_nothing_is_left() {
    let mut pipeline = replicated(2);
    pipeline.reached(settled(16));
    assert_eq!([step(&mut pipeline, 0), step(&mut pipeline, 1)], [0, 0]);
    pipeline.close(Some(OuterStep(0)));
    snapshot(&mut pipeline, 0, 2);
    pipeline.restored();
    assert_eq!(pipeline.start(), None, "it is closed no longer");
    redo(&mut pipeline, 0, only(&[1])).unwrap();
    finish(&mut pipeline, 0);
    assert_eq!(pipeline.start(), None);
    pipeline.close(Some(OuterStep(1)));
    assert_eq!(step(&mut pipeline, 2), 1);
    exchange(&mut pipeline, 1, 3);
    assert_eq!(pipeline.start(), Some(Task::Save { border: InnerStep(2) }));
}

/// Another stage lost what was agreed on last, before that was on any disk.
#[test]
fn an_end_that_is_closed_in_a_later_outer_step_is_agreed_on_again() {
    let mut pipeline = replicated(2);
    pipeline.reached(settled(16));
    assert_eq!([step(&mut pipeline, 0), step(&mut pipeline, 1)], [0, 0]);
    pipeline.close(Some(OuterStep(0)));
    exchange(&mut pipeline, 0, 2);
    let save = Some(Task::Save { border: InnerStep(2) });
    assert_eq!(pipeline.start(), save);
    pipeline.saved();
    for said_again in [Some(OuterStep(0)), None] {
        pipeline.close(said_again);
        assert_eq!(pipeline.start(), None, "{said_again:?}");
    }
    pipeline.close(Some(OuterStep(1)));
    exchange(&mut pipeline, 1, 2);
    assert_eq!(pipeline.start(), save);
}

/// The driver's answer to the restoration may come behind the next word of the coordinator, which nobody repeats.
#[test]
fn an_end_that_is_closed_again_before_it_is_called_off_here_stays_closed() {
    let mut pipeline = replicated(2);
    pipeline.reached(settled(16));
    assert_eq!([step(&mut pipeline, 0), step(&mut pipeline, 1)], [0, 0]);
    pipeline.close(Some(OuterStep(0)));
    snapshot(&mut pipeline, 0, 2);
    pipeline.close(Some(OuterStep(1)));
    pipeline.restored();
    exchange(&mut pipeline, 1, 2);
    assert_eq!(pipeline.start(), Some(Task::Save { border: InnerStep(2) }));
}

/// The others do not come to the border before they have it.
#[test]
fn late_work_of_steps_behind_the_border_is_done_while_the_others_are_waited_for() {
    let mut pipeline = replicated(4);
    pipeline.reached(settled(16));
    assert_eq!([step(&mut pipeline, 0), step(&mut pipeline, 1)], [0, 0]);
    snapshot(&mut pipeline, 0, 2);
    redo(&mut pipeline, 16, Needs::All).unwrap();
    assert_eq!(pipeline.start(), None, "what lies before the border waits for its weights");
    redo(&mut pipeline, 3, only(&[1])).unwrap();
    let (duty, returned) = finish(&mut pipeline, 3);
    assert_eq!((duty, returned.trained), (Duty::Train, Some(InnerStep(2))), "in the next sum");
    assert_eq!(pipeline.start(), None);
    pipeline.committed();
    assert_eq!(pipeline.start(), Some(Task::Adopt { outer: OuterStep(0) }));
    pipeline.adopted();
    assert_eq!(forwards(&mut pipeline), [16]);
}

#[test]
fn who_comes_later_waits_for_nothing_that_fell_to_others() {
    let mut pipeline = queue(|_| {});
    pipeline.expects_from(InnerStep(1));
    assert_eq!(step(&mut pipeline, 0), 0);
    assert_eq!(pipeline.start(), None, "from there on it waits as any other");
    for index in 4..8 {
        offer(&mut pipeline, train(index)).unwrap();
        finish(&mut pipeline, index);
    }
    assert_eq!(step(&mut pipeline, 1), 4);
    let mut newcomer = replicated(4);
    newcomer.enter(OuterStep(0));
    let want = Task::Snapshot { outer: OuterStep(0), microbatches: 0 };
    assert_eq!(newcomer.start(), Some(want), "it follows the open exchange before it trains");
}

#[test]
fn a_replica_waits_only_for_what_falls_to_it_by_the_turns_of_the_plan() {
    let mut pipeline = replicated(2);
    assert_eq!(offer(&mut pipeline, train(1)), Ok(Offered::Queued), "whatever is sent is done");
    for index in [0, 2, 4, 6] {
        offer(&mut pipeline, train(index)).unwrap();
    }
    assert_eq!(forwards(&mut pipeline), [0, 1, 2]);
    gradient(&mut pipeline, 1);
    assert_eq!(backward(&mut pipeline), Some(1), "no order is kept with what falls to others");
    for index in [0, 2, 4, 6] {
        if index > 2 {
            assert_eq!(forward(&mut pipeline), Some(index));
        }
        gradient(&mut pipeline, index);
        assert_eq!(backward(&mut pipeline), Some(index));
        if index == 0 {
            assert_eq!(forward(&mut pipeline), Some(4));
            gradient(&mut pipeline, 4);
        }
        if index == 2 {
            assert_eq!(backward(&mut pipeline), Some(4));
            break;
        }
    }
    assert_eq!(forward(&mut pipeline), Some(6));
    gradient(&mut pipeline, 6);
    assert_eq!(backward(&mut pipeline), Some(6));
    assert_eq!(step(&mut pipeline, 0), 5);
    let turns = Turns { stage: STAGE, from: InnerStep(1), pattern: vec![ReplicaId(1)] };
    let (number, coordinator) = (crate::ids::PlanNumber(2), PeerId([9; 32]));
    let plan = Plan { number, coordinator, members: Vec::new(), turns: vec![turns] };
    pipeline.take_turns(Homes::of(&plan, &pipeline.agenda, STAGE));
    assert_eq!(step(&mut pipeline, 1), 0, "all of it falls to the other");
}

/// What is lost on the way to a border needs room, although all that has it waits for what the border brings.
#[test]
fn what_waits_behind_a_border_with_its_gradient_gives_way_too() {
    let mut pipeline = queue(|spec| {
        spec.pipeline.replicas = 2;
        spec.pipeline.schedule = Schedule::Async { staleness_max: 8 };
        spec.sync = SyncSpec { delay: 1, ..SyncSpec::mean(2) };
        spec.training.steps = 16;
        spec.evaluation.every = 0;
        spec.checkpoint.every = 0;
    });
    for index in 24..58 {
        assert_eq!(redo(&mut pipeline, index, Needs::All), Ok(Offered::Queued));
        assert_eq!(forwards(&mut pipeline), [index], "3 in flight, and as many as may wait");
    }
    pipeline.reached(settled(24));
    assert_eq!([step(&mut pipeline, 0), step(&mut pipeline, 1)], [0, 0]);
    assert!(matches!(pipeline.start(), Some(Task::Snapshot { .. })));
    pipeline.snapshotted();
    assert_eq!(step(&mut pipeline, 2), 0);
    (24..58).for_each(|index| gradient(&mut pipeline, index));
    assert_eq!(pipeline.start(), None, "it is of steps behind the border");
    redo(&mut pipeline, 5, Needs::All).unwrap();
    assert_eq!(finish(&mut pipeline, 5).0, Duty::Train);
    assert_eq!(pipeline.start(), None);
    pipeline.committed();
    let forwarded = core::iter::from_fn(|| go_on(&mut pipeline)).flatten().next();
    assert_eq!(forwarded, Some(train(57)), "when all others are done");
    assert_eq!(pipeline.unanswered().map(|(index, _)| index).last(), Some(57), "it is asked for again");
}

/// Runs the next computation, whatever it is, and commits what is exchanged; gives which microbatch is forwarded, if one is.
fn go_on(pipeline: &mut Pipeline) -> Option<Option<MicrobatchId>> {
    let task = pipeline.start()?;
    match task {
        Task::Forward { microbatch, .. } => {
            pipeline.forwarded(microbatch, bytes());
            return Some(Some(microbatch));
        }
        Task::Backward { microbatch, .. } => drop(pipeline.backwarded(microbatch)),
        Task::Step { .. } => _ = pipeline.stepped(),
        Task::Save { .. } => pipeline.saved(),
        Task::Snapshot { .. } => {
            pipeline.snapshotted();
            pipeline.committed();
        }
        Task::Adopt { .. } => pipeline.adopted(),
    }
    Some(None)
}

/// Else it would save what it had before the commit, and the others what they have behind it.
#[test]
fn a_queue_that_trains_on_behind_the_border_of_a_stop_saves_what_is_agreed_there() {
    let mut pipeline = queue(|spec| {
        spec.pipeline.replicas = 2;
        spec.sync = SyncSpec { delay: 1, ..SyncSpec::mean(2) };
        spec.training.steps = 6;
        (spec.evaluation.every, spec.checkpoint.every) = (0, 0);
    });
    pipeline.reached(settled(16));
    assert_eq!([step(&mut pipeline, 0), step(&mut pipeline, 1)], [0, 0]);
    let outer = OuterStep(0);
    assert_eq!(pipeline.start(), Some(Task::Snapshot { outer, microbatches: 0 }));
    pipeline.snapshotted();
    assert!(!pipeline.awaits_agreement(), "it may train on for a step");
    pipeline.drain(InnerStep(2));
    assert!(pipeline.awaits_agreement());
    assert_eq!(pipeline.start(), None);
    pipeline.committed();
    assert_eq!(pipeline.start(), Some(Task::Adopt { outer }));
    pipeline.adopted();
    assert_eq!(pipeline.start(), Some(Task::Save { border: InnerStep(2) }));
}
