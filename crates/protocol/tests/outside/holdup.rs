//! Members that hold an outer step up: how long the others wait for them.

use crate::replicas::replicated;
use crate::swarm::Swarm;
use trestle_protocol::event::Event;
use trestle_protocol::message::{Outcome, Removal};
use trestle_protocol::spec::sync::{OuterRule, SyncSpec};
use trestle_protocol::spec::{RunSpec, Schedule};
use trestle_protocol::suspicion::LOST_SILENCE_MIN;
use trestle_protocol::time::Span;

/// Runs past two outer steps, kills peers, and returns after how long the first of them was removed.
fn removed_after(spec: &RunSpec, victims: &[usize]) -> Span {
    let outer_steps =
        |swarm: &Swarm| swarm.events[0].iter().filter(|event| matches!(event, Event::Outer(_))).count();
    let mut swarm = Swarm::new(spec.clone(), None);
    while outer_steps(&swarm) < 2 {
        swarm.turn().expect("outer steps come");
    }
    victims.iter().for_each(|victim| swarm.kill(*victim));
    let since = swarm.now;
    let removed = |event: &Event| matches!(event, Event::Removed { why: Removal::Silent, .. });
    while !swarm.events[0].iter().any(removed) {
        let until = swarm.now + Span(100_000);
        swarm.run_for(Span(100_000));
        swarm.now = swarm.now.max(until);
        assert!(swarm.now.since(since) < Span::seconds(60), "nobody was removed");
    }
    let took = swarm.now.since(since);
    swarm.run_for(Span::seconds(60));
    if victims.len() == 1 {
        assert_eq!(swarm.outcome(), Some(&Outcome::Done));
    }
    took
}

fn specs() -> [RunSpec; 2] {
    let beside = SyncSpec { rule: OuterRule::Nesterov, delay: 1, ..SyncSpec::mean(2) };
    [SyncSpec::mean(2), beside].map(|sync| replicated(2, Schedule::Flush, sync))
}

#[test]
fn a_suspect_for_which_all_others_stand_still_is_given_up_when_that_costs_more_than_its_work() {
    for spec in specs() {
        for victim in [4, 5, 6] {
            let took = removed_after(&spec, &[victim]);
            assert!(took >= Span::millis(500), "a pause of {took:?} is none");
            assert!(took < Span::millis(1_500), "its work takes no second, and {took:?} were waited");
        }
    }
}

#[test]
fn the_last_of_a_stage_are_waited_for_as_long_as_they_may_live() {
    for spec in specs() {
        let took = removed_after(&spec, &[2, 5]);
        assert!(took.saturating_add(Span(200_000)) >= LOST_SILENCE_MIN, "{took:?}");
    }
}
