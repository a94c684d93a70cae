//! A run that is cut short and continued ends as if nothing had happened.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::process::Command;

use serde_json::Value;

use crate::command::{Place, held_out, losses, start_until, succeed};

/// Losses by step.
type Losses = Vec<(u64, f64)>;

fn uninterrupted(place: &Place) -> (Losses, Losses) {
    let events = succeed(&mut place.train("whole", &[]));
    (losses(&events), held_out(&events))
}

/// Draws where to interrupt; printed, so that a failure can be repeated.
fn draw(below: u64) -> u64 {
    let drawn = RandomState::new().hash_one(0) % below;
    eprintln!("drawn: {drawn} of {below}");
    drawn
}

fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
    assert!(status.success());
}

fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

#[test]
fn a_killed_run_resumes_with_the_losses_of_an_unkilled_one() {
    let place = Place::new();
    let (expected, expected_held_out) = uninterrupted(&place);
    let kill_at = 3 + draw(50);
    let at_step = |event: &Value| event["event"] == "step" && event["step"] == kill_at;
    let (started, before) = start_until(&mut place.train("killed", &[]), at_step);
    let mut child = started.child;
    // Everything at once, as when the machine loses power; workers first would let the coordinator notice.
    let workers = children(child.id());
    child.kill().unwrap();
    for worker in workers {
        // It may have ended by itself meanwhile: its parent is gone.
        let _ = Command::new("kill").args(["-KILL", &worker.to_string()]).status();
    }
    child.wait().unwrap();
    let after = succeed(&mut place.train("killed", &["--resume"]));
    let steps_after = losses(&after);
    assert!(steps_after[0].0 <= kill_at + 1, "nothing is skipped");
    assert!(kill_at < 10 || steps_after[0].0 >= 10, "the checkpoint at step 10 is used");
    let mut merged: BTreeMap<u64, f64> = losses(&before).into_iter().collect();
    merged.extend(steps_after);
    assert_eq!(merged.into_iter().collect::<Vec<_>>(), expected);
    assert_eq!(held_out(&after).last(), expected_held_out.last());
}

#[test]
fn an_interrupted_run_resumes_exactly_where_it_stopped() {
    let place = Place::new();
    let (expected, expected_held_out) = uninterrupted(&place);
    let stop_at = 3 + draw(40);
    let at_step = |event: &Value| event["event"] == "step" && event["step"] == stop_at;
    let (started, mut events) = start_until(&mut place.train("stopped", &[]), at_step);
    signal("INT", started.child.id());
    let (mut child, rest) = started.rest();
    assert!(child.wait().unwrap().success(), "Ctrl-C is an orderly end");
    events.extend(rest);
    let stopped = &events.last().unwrap()["outcome"]["Stopped"]["step"];
    let first_part = losses(&events);
    assert_eq!(
        stopped.as_u64().unwrap(),
        first_part.last().unwrap().0 + 1,
        "saved at the border it stopped at"
    );
    let after = losses(&succeed(&mut place.train("stopped", &["--resume"])));
    assert_eq!([first_part, after].concat(), expected, "no step is lost and none is done twice");
    let held_out_after = held_out(&events).into_iter();
    assert!(held_out_after.zip(expected_held_out).all(|(got, want)| got == want));
}
