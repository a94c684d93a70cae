//! Peers that come, go, freeze and fall, as processes: the run goes on, and every token is trained once.

use std::process::Command;

use serde_json::Value;

use crate::command::{Place, logged, losses, only, start_until, succeed, trestle};

/// A run of two stages with three replicas each, which agree every four steps.
const REPLICAS: [&str; 10] = [
    "--replicas",
    "3",
    "--set",
    "pipeline.stages=2",
    "--set",
    "sync.inner_steps=4",
    "--set",
    "evaluation.every=0",
    "--set",
    "checkpoint.every=20",
];

fn signal(name: &str, pid: u64) {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// The process of a worker, as `trestle train` printed it last.
fn pid_of(events: &[Value], name: &str) -> u64 {
    let started = events
        .iter()
        .rev()
        .find(|event| event["event"] == "worker" && event["change"] == "started" && event["name"] == name);
    started.unwrap_or_else(|| panic!("{name} was started: {events:?}"))["pid"].as_u64().unwrap()
}

pub(crate) fn changes<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == kind).collect()
}

/// Trains, does `harm` once a step is complete, and gives all events of the run, which must end by itself.
fn train_with(place: &Place, options: &[&str], at_step: u64, harm: impl FnOnce(&[Value])) -> Vec<Value> {
    let mut command = place.train("run", options);
    let reached = |event: &Value| event["event"] == "step" && event["step"] == at_step;
    let (started, mut events) = start_until(&mut command, reached);
    harm(&events);
    let (mut child, rest) = started.rest();
    events.extend(rest);
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}: {:?}", &events[events.len().saturating_sub(20)..]);
    events
}

/// Checks that each stage trained what was planned, by the coordinator's word and by its ledger on disk; gives the ledger.
pub(crate) fn check_exact(place: &Place, events: &[Value], planned: u64) -> Value {
    assert_eq!(only(events, "finished")["outcome"], "Done");
    let ledger = only(events, "ledger");
    let stages = ledger["credited"].as_array().unwrap();
    assert_eq!(ledger["planned"], planned);
    assert!(stages.iter().all(|credited| credited == planned), "{ledger}");
    let mut inspect = trestle(&["inspect", "ledger", "--json"]);
    let report = succeed(inspect.arg(place.run_dir("run"))).remove(0);
    let tokens = planned * 2 * 16;
    assert_eq!(
        (&report["exact"], report["planned"].as_u64()),
        (&Value::Bool(true), Some(tokens)),
        "{report}"
    );
    for stage in report["stages"].as_array().unwrap() {
        assert_eq!(stage["trained"].as_u64(), Some(tokens), "{report}");
    }
    report
}

fn sum(report: &Value, figure: &str) -> u64 {
    report["stages"].as_array().unwrap().iter().map(|stage| stage[figure].as_u64().unwrap()).sum()
}

#[test]
fn a_killed_replica_is_replaced_and_every_token_is_trained_once() {
    let place = Place::new();
    let options = [&REPLICAS[..], &["--steps", "200"]].concat();
    let mut victim = 0;
    let events = train_with(&place, &options, 10, |events| {
        victim = pid_of(events, "worker-1-replica-1");
        signal("KILL", victim);
    });
    check_exact(&place, &events, 200 * 4 * 3);
    assert_ne!(pid_of(&events, "worker-1-replica-1"), victim, "another took its place");
    let removed = changes(&events, "removed");
    assert_eq!((removed.len(), &removed[0]["stage"]), (1, &Value::from(1)), "{removed:?}");
    assert_eq!(changes(&events, "seated").len(), 1);
    assert_eq!(losses(&events).len(), 200);
}

/// The commits of a run as its coordinator logged them, and the place of each member that it removed, in order.
fn commits_and_removals(place: &Place) -> Vec<Value> {
    let told = logged(place, "run").into_iter().map(|(_, event)| event);
    told.filter(|event| event["Outer"]["verdict"] == "Committed" || event.get("Removed").is_some()).collect()
}

/// What each replica of a stage has in a commit, in microbatches.
fn weights(commit: &Value, stage: u64) -> Vec<(u64, u64)> {
    let stages = commit["Outer"]["contributors"].as_array().unwrap();
    let entry = stages.iter().find(|entry| entry[0].as_u64() == Some(stage));
    let replicas = &entry.unwrap_or_else(|| panic!("no stage {stage} in {commit}"))[1];
    let weight = |entry: &Value| (entry[0].as_u64().unwrap(), entry[1].as_u64().unwrap());
    replicas.as_array().unwrap().iter().map(weight).collect()
}

#[test]
fn a_worker_that_is_told_to_leave_hands_in_what_it_has() {
    let place = Place::new();
    let options = [&REPLICAS[..], &["--steps", "60"]].concat();
    let events =
        train_with(&place, &options, 10, |events| signal("TERM", pid_of(events, "worker-0-replica-2")));
    let report = check_exact(&place, &events, 60 * 4 * 3);
    let leaving = changes(&events, "leaving");
    assert_eq!((leaving.len(), &leaving[0]["seconds"]), (1, &Value::from(30.0)));
    let removed = changes(&events, "removed");
    assert_eq!((&removed[0]["why"], &removed[0]["lost"]), (&Value::from("Left"), &Value::from(0)));
    assert_eq!((sum(&report, "redone"), sum(&report, "lost")), (0, 0), "nothing was lost with it: {report}");
    let told = commits_and_removals(&place);
    let at = told.iter().position(|event| event.get("Removed").is_some()).unwrap();
    let leaver = told[at]["Removed"]["place"]["replica"].as_u64().unwrap();
    let handed_in = weights(&told[at - 1], 0);
    let share = handed_in.iter().find(|(replica, _)| *replica == leaver);
    assert!(share.is_some_and(|(_, weight)| *weight > 0), "in the commit it left with: {handed_in:?}");
    // All that was planned is in some commit, so nothing that it trained is missing in the last one it was part of.
    let commits = told.iter().filter(|event| event.get("Outer").is_some());
    let all: u64 = commits.flat_map(|commit| weights(commit, 0)).map(|(_, weight)| weight).sum();
    assert_eq!(all, 60 * 4 * 3);
}

#[test]
fn a_frozen_worker_is_removed_and_joins_again_by_itself() {
    let place = Place::new();
    let options = [&REPLICAS[..], &["--steps", "200"]].concat();
    let mut victim = 0;
    let events = train_with(&place, &options, 10, |events| {
        victim = pid_of(events, "worker-1");
        signal("STOP", victim);
        std::thread::sleep(std::time::Duration::from_secs(8));
        signal("CONT", victim);
    });
    check_exact(&place, &events, 200 * 4 * 3);
    assert_eq!(changes(&events, "removed")[0]["stage"], 1);
    assert_eq!(changes(&events, "seated").len(), 1, "it came back");
    assert_eq!(pid_of(&events, "worker-1"), victim, "as the same process");
}

#[test]
fn the_only_replica_of_a_stage_comes_back_with_its_disk() {
    let place = Place::new();
    let events = train_with(&place, &["--set", "evaluation.every=0"], 25, |events| {
        signal("KILL", pid_of(events, "worker-2"));
    });
    let report = check_exact(&place, &events, 60 * 4);
    assert_eq!(changes(&events, "stalled")[0]["stage"], 2);
    assert_eq!(changes(&events, "resumed")[0]["stage"], 2);
    // Its stage did again what was not in the checkpoint of step 20; no other stage did.
    let redone = |stage: usize| report["stages"][stage]["redone"].as_u64().unwrap();
    assert!(redone(2) > 0, "{report}");
    assert_eq!((redone(0), redone(1), redone(3)), (0, 0, 0), "{report}");
}

#[test]
fn harm_that_is_asked_for_is_done_and_survived() {
    let place = Place::new();
    let chaos = ["--steps", "60", "--chaos", "kill-one-at=8"];
    let events = succeed(&mut place.train("run", &[&REPLICAS[..], &chaos].concat()));
    check_exact(&place, &events, 60 * 4 * 3);
    let killed = events.iter().filter(|event| event["event"] == "worker" && event["change"] == "killed");
    assert_eq!(killed.count(), 1);
}
