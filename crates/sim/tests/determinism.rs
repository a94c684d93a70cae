//! One seed, one log; and a report that says what was missed.

use trestle_protocol::ids::Digest;
use trestle_sim::scenario::expectation::Verdict;
use trestle_sim::{Report, ScenarioError, run_scenario, run_scenario_logged};

const JITTERED: &str = "
    stages 4
    schedule async staleness=2
    steps 30
    evaluate every=10 microbatches=2
    checkpoint every=10
    compute cost jitter=30%
    link latency=20ms bandwidth=100Mbit jitter=50%
    hostile every=7ms
    crash at=step:17
    train
    resume
    ----
    outcome=done
";

fn logged(text: &str, seed: u64) -> (Report, Vec<u8>) {
    let mut log = Vec::new();
    let report = run_scenario_logged(text, Some(seed), &mut log).expect("the scenario runs");
    (report, log)
}

#[test]
fn the_same_seed_gives_the_same_log_and_another_seed_another() {
    let (first, log) = logged(JITTERED, 7);
    let (again, log_again) = logged(JITTERED, 7);
    let (other, _) = logged(JITTERED, 8);
    assert_eq!(first.verdict(), Verdict::Met, "{first}");
    assert!(log == log_again, "the logs differ");
    assert_eq!(first, again);
    assert_ne!(first.outcome.digest, other.outcome.digest);
    assert_eq!(first.outcome.digest, Digest::of(&log), "the digest is that of the lines");
    assert_eq!(log.iter().filter(|byte| **byte == b'\n').count() as u64, first.outcome.tally.events);
}

#[test]
fn every_line_of_the_log_is_an_event_of_a_peer_at_a_time() {
    let (_, log) = logged(JITTERED, 3);
    let text = String::from_utf8(log).expect("JSON is text");
    let mut before = 0;
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        let at = value["at"].as_u64().expect("a time in microseconds");
        assert!(at >= before, "time goes on");
        before = at;
        assert_eq!(value["peer"].as_str().map(str::len), Some(64));
        assert!(value["event"].is_object() || value["event"].is_string());
    }
}

#[test]
fn what_is_missed_is_named_with_what_was_found() {
    let text = "steps 3\ntrain\n----\nsteps=4 outcome=failed loss<0.5 credited=48";
    let report = run_scenario(text, None).expect("runs");
    assert_eq!(report.verdict(), Verdict::Missed);
    let said = report.to_string();
    for line in [
        "missed: expected steps=4, got steps=3",
        "missed: expected outcome=failed, got outcome=done",
        "missed: expected loss<0.5, got loss=",
        "met: credited=48 (got credited=48)",
    ] {
        assert!(said.contains(line), "{line:?} in {said}");
    }
    assert_eq!(report.repeat("a.txt"), "trestle simulate a.txt --seed 1");
}

#[test]
fn losses_that_differ_are_found() {
    let text = "steps 20\nschedule async staleness=2\ncompute real jitter=90%\nlink latency=30ms jitter=90%\n\
        train\n----\nlosses=unjittered";
    let report = run_scenario(text, None).expect("runs");
    assert_eq!(report.verdict(), Verdict::Missed, "async depends on the order of arrival: {report}");
}

#[test]
fn sizes_that_make_no_model_are_an_error() {
    for (text, said) in [
        ("model width=33\ntrain\n----\nlost=0", "width"),
        ("microbatch_size 4_000_000_000\ntrain\n----\nlost=0", "fit the wire"),
        ("compute real\nmodel vocabulary=10\ntrain\n----\nlost=0", "vocabulary"),
        ("compute real\ndata tokens=20\ntrain\n----\nlost=0", "model cannot be made"),
    ] {
        match run_scenario(text, None) {
            Err(ScenarioError::Swarm(error)) => assert!(error.to_string().contains(said), "{error}"),
            Err(ScenarioError::Parse(error)) => panic!("{text:?}: {error}"),
            Ok(report) => panic!("{text:?}: {report}"),
        }
    }
}
