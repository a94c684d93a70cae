//! `trestle simulate --events`: the log of a simulated swarm, as a file.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use trestle_protocol::ids::Digest;

fn scenario() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join("sim/scenarios/churn_scripted.txt")
}

fn simulate(scenario: &Path, events: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trestle"));
    command.arg("simulate").arg(scenario).arg("--events").arg(events).args(["--json"]).args(more);
    command.output().unwrap()
}

fn succeed(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_log_and_another_seed_another() {
    let folder = tempfile::tempdir().unwrap();
    let log = |name: &str, seed: &str| {
        let path = folder.path().join(name);
        let said = succeed(&simulate(&scenario(), &path, &["--seed", seed]));
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(said["log_digest"], Digest::of(&bytes).to_hex(), "the digest is that of the file");
        assert_eq!(said["events"], bytes.iter().filter(|byte| **byte == b'\n').count());
        bytes
    };
    let (first, again, other) = (log("first.jsonl", "7"), log("again.jsonl", "7"), log("other.jsonl", "8"));
    assert!(first == again, "the same seed gives another log");
    assert!(first != other, "another seed gives the same log");
}

#[test]
fn a_file_that_is_there_or_cannot_be_written_is_refused_and_so_are_two_scenarios() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().join("here.jsonl");
    std::fs::write(&here, "precious").unwrap();
    let two = scenario();
    let cases = [
        (here.clone(), vec![], 2, "exists already", "name a new file"),
        (
            folder.path().join("no/where.jsonl"),
            vec![],
            1,
            "cannot write the event log",
            "a folder that exists",
        ),
        (folder.path().join("two.jsonl"), vec![two.to_str().unwrap()], 2, "not of 2", "one by one"),
    ];
    for (events, more, code, error, hint) in cases {
        let output = simulate(&scenario(), &events, &more);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(code), 0), "{words}");
        let (said, hinted) = words.split_once("\n\nhint: ").unwrap();
        assert!(said.contains(error) && hinted.contains(hint), "{words}");
        assert!(events == here || !events.exists(), "nothing is left behind");
    }
    assert_eq!(std::fs::read_to_string(&here).unwrap(), "precious");
    let (wrong, log) = (folder.path().join("wrong.txt"), folder.path().join("wrong.jsonl"));
    std::fs::write(&wrong, "steps ten").unwrap();
    assert_eq!(simulate(&wrong, &log, &[]).status.code(), Some(2));
    assert!(!log.exists(), "of a scenario that cannot be read there is no log");
}

#[test]
fn inspect_tells_of_a_simulated_swarm_what_its_coordinator_tells() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log.jsonl");
    succeed(&simulate(&scenario(), &log, &[]));
    let mut command = Command::new(env!("CARGO_BIN_EXE_trestle"));
    let report = succeed(&command.arg("inspect").arg(&log).arg("--json").output().unwrap());
    assert_eq!(
        (&report["nodes"], &report["steps"], &report["unreadable_lines"]),
        (&7.into(), &136.into(), &0.into())
    );
    assert_eq!(report["outcome"], "Done", "though two have ended otherwise");
    let removed = report["removed_peers"].as_array().unwrap();
    assert_eq!(removed.len(), 2, "each once, though the one that left tells it too: {removed:?}");
    let lost = report["lost_peers"].as_array().unwrap();
    assert_eq!(lost.len(), 2, "each once, though all others miss it too: {lost:?}");
}
