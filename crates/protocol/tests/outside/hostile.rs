//! Nodes under fire: whatever members, strangers and coordinators send, at whatever moment, no node panics; and what a
//! stranger sends changes nothing.

use crate::nonsense::World;
use crate::nonsense::sync::say;
use crate::replicas::replicated;
use crate::swarm::{STAGES, Swarm, peer, spec};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::Union;
use std::sync::OnceLock;
use trestle_protocol::coordinator::CoordinatorConfig;
use trestle_protocol::durable::StateError;
use trestle_protocol::event::{Event, Verdict};
use trestle_protocol::ids::{Attempt, InnerStep};
use trestle_protocol::message::{Message, Outcome, Removal};
use trestle_protocol::node::Node;
use trestle_protocol::receipt::Seals;
use trestle_protocol::spec::sync::{OuterRule, SyncSpec};
use trestle_protocol::spec::{RunSpec, Schedule};
use trestle_protocol::time::Span;

/// How long a disturbed run is driven on: beyond the waits for an exchange, for answers, for silence, and for leases.
const AFTERMATH: Span = Span::seconds(90);

/// A message fired at a node.
#[derive(Clone, Debug)]
struct Shot {
    turn: usize,
    from: usize,
    to: usize,
    message: Message,
}

/// A run and what is fired into it.
#[derive(Clone, Debug)]
struct Scene {
    spec: RunSpec,
    turns: usize,
    shots: Vec<Shot>,
}

/// Who fires.
#[derive(Clone, Copy, Debug)]
enum Shooter {
    Anyone,
    Coordinator,
    Stranger,
    /// One worker for the whole run.
    Worker,
    /// One worker, at the workers of other stages.
    OtherStage,
}

/// What is fired.
#[derive(Clone, Copy, Debug)]
enum Shell {
    Anything,
    /// Only messages about outer steps.
    Say,
}

fn scenes(
    specs: &[RunSpec],
    shooter: Shooter,
    shell: Shell,
    count: usize,
) -> impl Strategy<Value = Scene> + use<> {
    Union::new(specs.iter().map(|spec| scene(spec, shooter, shell, count)))
}

fn scene(spec: &RunSpec, shooter: Shooter, shell: Shell, count: usize) -> BoxedStrategy<Scene> {
    let mut undisturbed = Swarm::new(spec.clone(), None);
    let turns = std::iter::from_fn(|| undisturbed.turn()).count() * 5 / 4;
    let message = match shell {
        Shell::Anything => World::new(spec).message(),
        Shell::Say => say().prop_map(Message::Sync).boxed(),
    };
    let nodes = 1 + usize::from(STAGES * spec.pipeline.replicas);
    let shots = move |from: std::ops::Range<usize>, targets: Vec<usize>| {
        let shot = (0..turns, from, prop::sample::select(targets), message.clone())
            .prop_map(|(turn, from, to, message)| Shot { turn, from, to, message });
        vec(shot, 1..count).boxed()
    };
    let everyone: Vec<usize> = (0..nodes).collect();
    let workers = (1..nodes).map(|from| {
        let stage_of = |index: usize| (index - 1) % usize::from(STAGES);
        let others = (1..nodes).filter(|to| stage_of(*to) != stage_of(from));
        let targets = match shooter {
            Shooter::OtherStage => others.collect(),
            Shooter::Anyone | Shooter::Coordinator | Shooter::Stranger | Shooter::Worker => everyone.clone(),
        };
        shots(from..from + 1, targets)
    });
    let drawn = match shooter {
        Shooter::Anyone => shots(0..nodes + 1, everyone.clone()),
        Shooter::Coordinator => shots(0..1, everyone.clone()),
        Shooter::Stranger => shots(nodes..nodes + 1, everyone.clone()),
        Shooter::Worker | Shooter::OtherStage => Union::new(workers).boxed(),
    };
    let spec = spec.clone();
    drawn.prop_map(move |shots| Scene { spec: spec.clone(), turns, shots }).boxed()
}

fn schedules() -> [Schedule; 2] {
    [Schedule::Flush, Schedule::Async { staleness_max: 1 }]
}

/// Runs without replicas.
fn single() -> Vec<RunSpec> {
    schedules().map(spec).to_vec()
}

/// Runs with replicas that exchange gradients, wait for the mean, or go on beside the exchange.
fn several() -> Vec<RunSpec> {
    let beside = SyncSpec { rule: OuterRule::Nesterov, delay: 1, ..SyncSpec::mean(2) };
    let mut specs = Vec::new();
    for schedule in schedules() {
        for replicas in [2, 3] {
            for sync in [SyncSpec::mean(1), SyncSpec::mean(2), beside.clone()] {
                let mut spec = replicated(replicas, schedule, sync);
                spec.training.steps = 4;
                spec.evaluation.every = 0;
                spec.checkpoint.every = 2;
                specs.push(spec);
            }
        }
    }
    specs
}

fn fire(scene: Scene) -> Swarm {
    let Scene { spec, turns, mut shots } = scene;
    let mut swarm = Swarm::new(spec, None);
    shots.sort_by_key(|shot| std::cmp::Reverse(shot.turn));
    for turn in 0..turns {
        while shots.last().is_some_and(|shot| shot.turn <= turn) {
            let Some(Shot { from, to, message, .. }) = shots.pop() else { break };
            swarm.inject(peer(from), to, message);
        }
        if swarm.turn().is_none() && shots.is_empty() {
            break;
        }
    }
    swarm.run_for(AFTERMATH);
    swarm
}

fn training_losses(swarm: &Swarm) -> Vec<(u64, f64)> {
    let mut losses = Vec::new();
    for event in &swarm.events[0] {
        if let Event::Step(summary) = event {
            losses.push((summary.step.0, summary.loss));
        }
    }
    losses
}

/// Says that a run went as if nobody had fired at it.
fn check_undisturbed(swarm: &Swarm, spec: &RunSpec) -> Result<(), TestCaseError> {
    let (replicas, steps) = (u64::from(spec.pipeline.replicas), spec.training.steps);
    let nodes = 1 + usize::from(STAGES * spec.pipeline.replicas);
    prop_assert_eq!(&swarm.ended, &vec![Some(Outcome::Done); nodes]);
    prop_assert_eq!(training_losses(swarm), (0..steps).map(|step| (step, 1.0)).collect::<Vec<_>>());
    let planned = steps * 4 * replicas;
    let ledger = swarm.events[0].iter().find_map(|event| {
        let Event::Ledger { planned, credited, .. } = event else { return None };
        Some((*planned, credited.clone()))
    });
    prop_assert_eq!(ledger, Some((planned, vec![planned; usize::from(STAGES)])));
    prop_assert_eq!(swarm.parted(), Vec::<String>::new());
    let mut outer_steps = 0;
    for event in &swarm.events[0] {
        let Event::Outer(summary) = event else { continue };
        prop_assert_eq!((summary.verdict, summary.attempts), (Verdict::Committed, Attempt(1)));
        outer_steps += 1;
    }
    let wanted = if replicas == 1 { 0 } else { steps / u64::from(spec.sync.inner_steps) };
    prop_assert_eq!(outer_steps, wanted);
    Ok(())
}

/// Lists the workers that others have left behind.
fn left_behind(swarm: &Swarm) -> Vec<usize> {
    let left = |event: &Event| matches!(event, Event::Removed { why: Removal::Excluded, .. });
    (1..swarm.ended.len()).filter(|index| swarm.events[*index].iter().any(left)).collect()
}

#[test]
fn an_undisturbed_run_ends_well_and_refuses_nothing() {
    for spec in [single(), several()].concat() {
        let mut swarm = Swarm::new(spec.clone(), None);
        swarm.run();
        assert_eq!(swarm.refusals(), Vec::<&Event>::new());
        check_undisturbed(&swarm, &spec).expect("nobody fires");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn nobody_s_message_panics_a_node(scene in scenes(&single(), Shooter::Anyone, Shell::Anything, 12)) {
        fire(scene);
    }

    #[test]
    fn a_coordinator_s_message_panics_no_worker(
        scene in scenes(&single(), Shooter::Coordinator, Shell::Anything, 12),
    ) {
        fire(scene);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn nobody_s_message_panics_a_replica(scene in scenes(&several(), Shooter::Anyone, Shell::Anything, 12)) {
        fire(scene);
    }

    #[test]
    fn nothing_said_of_outer_steps_panics_a_node(scene in scenes(&several(), Shooter::Anyone, Shell::Say, 40)) {
        fire(scene);
    }

    #[test]
    fn a_coordinator_s_message_panics_no_replica(
        scene in scenes(&several(), Shooter::Coordinator, Shell::Say, 20),
    ) {
        fire(scene);
    }

    /// It may hold the run up, but what is committed is what all others hold, and none of them is left behind.
    #[test]
    fn a_hostile_replica_parts_nobody(scene in scenes(&several(), Shooter::Worker, Shell::Say, 60)) {
        let shooter = scene.shots[0].from;
        let swarm = fire(scene);
        prop_assert_eq!(swarm.parted(), Vec::<String>::new());
        let left = left_behind(&swarm);
        prop_assert!(left.iter().all(|index| *index == shooter), "{:?} are left behind", left);
    }

    #[test]
    fn who_is_no_replica_of_a_stage_has_no_say_in_its_outer_steps(
        scene in scenes(&several(), Shooter::OtherStage, Shell::Say, 60),
    ) {
        let spec = scene.spec.clone();
        check_undisturbed(&fire(scene), &spec)?;
    }

    #[test]
    fn a_stranger_s_messages_change_nothing(
        scene in scenes(&[single(), several()].concat(), Shooter::Stranger, Shell::Anything, 40),
    ) {
        let mut scene = scene;
        // A place is anyone's who asks for it in time, so a stranger who joins is none.
        scene.shots.retain(|shot| !matches!(shot.message, Message::Join(_)));
        let spec = scene.spec.clone();
        check_undisturbed(&fire(scene), &spec)?;
    }

    #[test]
    fn every_message_said_twice_changes_nothing(
        spec in prop::sample::select([single(), several()].concat()),
        turns in vec(0..3_000_usize, 1..400),
    ) {
        let mut swarm = Swarm::new(spec.clone(), None);
        for turn in 0..3_000 {
            if turns.contains(&turn) {
                swarm.repeat_next();
            }
            if swarm.turn().is_none() {
                break;
            }
        }
        swarm.run();
        check_undisturbed(&swarm, &spec)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_stored_state_is_read_or_refused(
        replicated in any::<bool>(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
        cut in any::<bool>(),
    ) {
        let (spec, stored) = &stored_states()[usize::from(replicated)];
        let at = at.index(stored.len());
        let state = if cut {
            stored[..at].to_vec()
        } else {
            let mut state = stored.to_vec();
            state[at] ^= 1 << bit;
            state
        };
        let config = CoordinatorConfig { spec: spec.clone(), me: peer(0), seals: Seals::Signed };
        match Node::coordinator(config, Some(&state)) {
            Err(StateError::Unreadable { bytes }) => prop_assert_eq!(bytes, state.len()),
            Err(_) => {}
            Ok(_) => Swarm::new(spec.clone(), Some(&state)).run_for(AFTERMATH),
        }
    }

    #[test]
    fn any_stored_bytes_are_read_or_refused(state in vec(any::<u8>(), 0..300)) {
        let config = CoordinatorConfig { spec: spec(Schedule::Flush), me: peer(0), seals: Seals::Signed };
        prop_assert!(Node::coordinator(config, Some(&state)).is_err());
    }
}

/// The state that is stored at the checkpoint after step 2, without replicas and with two of each stage.
fn stored_states() -> &'static [(RunSpec, Vec<u8>)] {
    static STATES: OnceLock<Vec<(RunSpec, Vec<u8>)>> = OnceLock::new();
    let stored = |spec: RunSpec| {
        let mut swarm = Swarm::new(spec.clone(), None);
        while !swarm.events[0].iter().any(|event| matches!(event, Event::Durable { .. })) {
            swarm.turn().expect("the run is durable before it ends");
        }
        let state = swarm.state.as_deref().map(<[u8]>::to_vec);
        (spec, state.expect("what is durable was stored"))
    };
    STATES.get_or_init(|| [single().remove(0), several().remove(1)].map(stored).to_vec())
}

#[test]
fn a_run_goes_on_from_what_was_stored() {
    for (spec, state) in stored_states() {
        let mut swarm = Swarm::new(spec.clone(), Some(state));
        swarm.run();
        assert_eq!(swarm.outcome(), Some(&Outcome::Done));
        assert!(swarm.events[0].contains(&Event::Started { step: InnerStep(2) }));
        let rest: Vec<(u64, f64)> = (2..spec.training.steps).map(|step| (step, 1.0)).collect();
        assert_eq!(training_losses(&swarm), rest);
    }
}
