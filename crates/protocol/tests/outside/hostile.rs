//! Nodes under fire: whatever members, strangers and coordinators send, at whatever moment, no node panics; and what a
//! stranger sends changes nothing.

use crate::nonsense::World;
use crate::swarm::{STAGES, Swarm, peer, spec};
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::OnceLock;
use trestle_protocol::coordinator::{CoordinatorConfig, StateError};
use trestle_protocol::event::Event;
use trestle_protocol::ids::InnerStep;
use trestle_protocol::message::{Message, Outcome};
use trestle_protocol::node::Node;
use trestle_protocol::spec::Schedule;

/// The stranger's place among the keys.
const STRANGER: usize = STAGES as usize + 1;

/// More turns than the undisturbed run takes, so that shots fall in every phase and behind the end.
const TURNS: usize = 700;

/// A message fired at a node.
#[derive(Clone, Debug)]
struct Shot {
    turn: usize,
    from: usize,
    to: usize,
    message: Message,
}

fn shots(from: std::ops::Range<usize>, count: usize) -> impl Strategy<Value = Vec<Shot>> {
    let world = World::new(&spec(Schedule::Flush));
    let shot = (0..TURNS, from, 0..STRANGER, world.message()).prop_map(|(turn, from, to, message)| Shot {
        turn,
        from,
        to,
        message,
    });
    vec(shot, 1..count)
}

fn schedules() -> impl Strategy<Value = Schedule> {
    prop_oneof![Just(Schedule::Flush), Just(Schedule::Async { staleness_max: 1 })]
}

fn fire(swarm: &mut Swarm, mut shots: Vec<Shot>) {
    shots.sort_by_key(|shot| std::cmp::Reverse(shot.turn));
    for turn in 0..TURNS {
        while shots.last().is_some_and(|shot| shot.turn <= turn) {
            let Some(Shot { from, to, message, .. }) = shots.pop() else { break };
            swarm.inject(peer(from), to, message);
        }
        if swarm.turn().is_none() && shots.is_empty() {
            break;
        }
    }
    swarm.run();
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

#[test]
fn an_undisturbed_run_ends_well_and_refuses_nothing() {
    for schedule in [Schedule::Flush, Schedule::Async { staleness_max: 1 }] {
        let mut swarm = Swarm::new(spec(schedule), None);
        swarm.run();
        assert_eq!(swarm.ended, vec![Some(Outcome::Done); 4]);
        assert_eq!(swarm.refusals(), Vec::<&Event>::new());
        assert_eq!(training_losses(&swarm), [(0, 1.0), (1, 1.0), (2, 1.0)]);
        let ledger = Event::Ledger { planned: 12, credited: vec![12; 3], duplicates: 0 };
        assert!(swarm.events[0].contains(&ledger), "{:?}", swarm.events[0]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn nobody_s_message_panics_a_node(schedule in schedules(), shots in shots(0..STRANGER + 1, 12)) {
        fire(&mut Swarm::new(spec(schedule), None), shots);
    }

    #[test]
    fn a_coordinator_s_message_panics_no_worker(schedule in schedules(), shots in shots(0..1, 12)) {
        fire(&mut Swarm::new(spec(schedule), None), shots);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_stranger_s_messages_change_nothing(schedule in schedules(), shots in shots(STRANGER..STRANGER + 1, 40)) {
        let joins = |shot: &Shot| matches!(shot.message, Message::Join(_));
        // A place is anyone's who asks for it in time, so a stranger who joins is none.
        let shots: Vec<Shot> = shots.into_iter().filter(|shot| !joins(shot)).collect();
        let mut swarm = Swarm::new(spec(schedule), None);
        fire(&mut swarm, shots);
        prop_assert_eq!(&swarm.ended, &vec![Some(Outcome::Done); 4]);
        prop_assert_eq!(training_losses(&swarm), [(0, 1.0), (1, 1.0), (2, 1.0)]);
        let ledger = Event::Ledger { planned: 12, credited: vec![12; 3], duplicates: 0 };
        prop_assert!(swarm.events[0].contains(&ledger));
    }

    #[test]
    fn every_message_said_twice_changes_nothing(schedule in schedules(), turns in vec(0..TURNS, 1..200)) {
        let mut swarm = Swarm::new(spec(schedule), None);
        for turn in 0..TURNS {
            if turns.contains(&turn) {
                swarm.repeat_next();
            }
            if swarm.turn().is_none() {
                break;
            }
        }
        swarm.run();
        prop_assert_eq!(&swarm.ended, &vec![Some(Outcome::Done); 4]);
        prop_assert_eq!(training_losses(&swarm), [(0, 1.0), (1, 1.0), (2, 1.0)]);
    }

    #[test]
    fn a_stored_state_is_read_or_refused(at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<bool>()) {
        let stored = stored_state();
        let at = at.index(stored.len());
        let state = if cut {
            stored[..at].to_vec()
        } else {
            let mut state = stored.to_vec();
            state[at] ^= 1 << bit;
            state
        };
        let config = CoordinatorConfig { spec: spec(Schedule::Flush), me: peer(0) };
        match Node::coordinator(config, Some(&state)) {
            Err(StateError::Unreadable { bytes }) => prop_assert_eq!(bytes, state.len()),
            Err(_) => {}
            Ok(_) => Swarm::new(spec(Schedule::Flush), Some(&state)).run(),
        }
    }

    #[test]
    fn any_stored_bytes_are_read_or_refused(state in vec(any::<u8>(), 0..300)) {
        let config = CoordinatorConfig { spec: spec(Schedule::Flush), me: peer(0) };
        prop_assert!(Node::coordinator(config, Some(&state)).is_err());
    }
}

/// The state that is stored at the checkpoint after step 2.
fn stored_state() -> &'static [u8] {
    static STATE: OnceLock<Vec<u8>> = OnceLock::new();
    STATE.get_or_init(|| {
        let mut swarm = Swarm::new(spec(Schedule::Flush), None);
        while swarm.state.is_none() {
            swarm.turn().expect("the run is durable before it ends");
        }
        swarm.state.as_deref().map(<[u8]>::to_vec).unwrap_or_default()
    })
}

#[test]
fn a_run_goes_on_from_what_was_stored() {
    let mut swarm = Swarm::new(spec(Schedule::Flush), Some(stored_state()));
    swarm.run();
    assert_eq!(swarm.outcome(), Some(&Outcome::Done));
    assert!(swarm.events[0].contains(&Event::Started { step: InnerStep(2) }));
    assert_eq!(training_losses(&swarm), [(2, 1.0)]);
}
