//! Newcomers to a running model: when they begin to be of use.

use crate::churn::{PATIENCE, check_ended_well, place_at, seated};
use crate::replicas::replicated;
use crate::swarm::Swarm;
use trestle_protocol::event::Event;
use trestle_protocol::ids::{InnerStep, ReplicaId, StageId};
use trestle_protocol::spec::Schedule;
use trestle_protocol::spec::sync::{OuterRule, SyncSpec};

/// The steps between two borders: more than are handed out ahead.
const INNER_STEPS: u32 = 16;

#[test]
fn a_newcomer_works_before_the_next_border_and_contributes_there() {
    let beside = SyncSpec { rule: OuterRule::Nesterov, delay: 2, ..SyncSpec::mean(INNER_STEPS) };
    for sync in [SyncSpec::mean(INNER_STEPS), beside] {
        for stage in [0, 1, 2] {
            let case = format!("{sync:?}, stage {stage}");
            let mut spec = replicated(2, Schedule::Flush, sync.clone());
            (spec.training.steps, spec.evaluation.every, spec.checkpoint.every) =
                (3 * u64::from(INNER_STEPS), 0, 0);
            let mut swarm = Swarm::new(spec, None);
            let begun = |event: &Event| matches!(event, Event::Step(step) if step.step.0 == u64::from(INNER_STEPS) + 2);
            swarm.run_until(0, begun);
            // Who comes again says itself that its place is free; until a silent one is given up, others stand at the border.
            let again = usize::from(stage) + 4;
            swarm.kill(again);
            swarm.join(again, Some(StageId(stage)), Vec::new());
            swarm.run_for(PATIENCE);
            check_ended_well(&swarm, &case);
            let [(place, enters)] = seated(&swarm)[..] else { panic!("{case}: {:?}", seated(&swarm)) };
            assert_eq!(place, place_at(stage, 1), "{case}");
            let border = InnerStep(2 * u64::from(INNER_STEPS));
            assert!(
                enters > InnerStep(u64::from(INNER_STEPS)) && enters < border,
                "{case}: it enters at {enters}"
            );
            if stage > 0 {
                let seated = |event: &Event| matches!(event, Event::Seated { .. });
                let before = swarm.events[0].iter().take_while(|event| !seated(event));
                let last = before.filter_map(|event| {
                    let Event::Step(step) = event else { return None };
                    Some(step.step.0)
                });
                let behind = last.last().expect("steps are behind it") + 2;
                assert!(
                    enters.0 <= behind,
                    "{case}: it enters at {enters}, behind the step under way is {behind}"
                );
            }
            let contributed = swarm.events[0].iter().find_map(|event| {
                let Event::Outer(summary) = event else { return None };
                let of_stage = summary.contributors.iter().find(|(of, _)| *of == StageId(stage))?;
                let (_, microbatches) = of_stage.1.iter().find(|(replica, _)| *replica == ReplicaId(1))?;
                (summary.step == border).then_some(*microbatches)
            });
            let most = 4 * (border.0 - enters.0);
            assert!(contributed.is_some_and(|of_it| of_it > 0 && of_it <= most), "{case}: {contributed:?}");
        }
    }
}

#[test]
fn who_enters_at_a_border_does_not_hold_up_the_checkpoint_there() {
    let mut at_border = 0;
    for stage in [0, 1, 2] {
        for begun in 3..7 {
            let case = format!("stage {stage}, after step {begun}");
            let mut spec = replicated(2, Schedule::Flush, SyncSpec::mean(2));
            (spec.training.steps, spec.evaluation.every, spec.checkpoint.every) = (16, 0, 2);
            let mut swarm = Swarm::new(spec, None);
            swarm.run_until(0, |event| matches!(event, Event::Step(step) if step.step.0 == begun));
            let again = usize::from(stage) + 4;
            swarm.kill(again);
            swarm.join(again, Some(StageId(stage)), Vec::new());
            swarm.run_for(PATIENCE);
            check_ended_well(&swarm, &case);
            let [(_, enters)] = seated(&swarm)[..] else { panic!("{case}: {:?}", seated(&swarm)) };
            at_border += u32::from(enters.0.is_multiple_of(2));
            let durable = swarm.events[0].iter().filter_map(|event| {
                let Event::Durable { step, .. } = event else { return None };
                Some(step.0)
            });
            assert_eq!(
                durable.collect::<Vec<_>>(),
                [2, 4, 6, 8, 10, 12, 14, 16],
                "{case}: enters at {enters}"
            );
        }
    }
    assert!(at_border > 0, "some enter where all others write a checkpoint");
}
