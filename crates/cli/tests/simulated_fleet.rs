//! `trestle simulate RUN --fleet FLEET` as scripts see it: the protocol itself on a fleet's devices, links and outages.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn of_repository(path: &str) -> String {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join(path).to_str().expect("the path is UTF-8").to_owned()
}

/// Plays the 8B run on the mixed fleet, with outer steps that are soon over.
fn simulate(more: &[&str]) -> Output {
    let (run, fleet) = (of_repository("runs/8b.toml"), of_repository("fleets/mixed.toml"));
    let mut words = vec!["simulate", &run, "--fleet", &fleet, "--replicas", "2"];
    for set in [
        "optimizer.kind=adamw",
        "sync.codec=sparseloco",
        "sync.inner_steps=5",
        "pipeline.microbatches_per_step=4",
        "checkpoint.every=0",
        "evaluation.every=0",
    ] {
        words.extend(["--set", set]);
    }
    words.extend(more);
    Command::new(env!("CARGO_BIN_EXE_trestle")).args(words).output().expect("the binary starts")
}

fn played(more: &[&str]) -> Value {
    let output = simulate(&[more, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("it is JSON")
}

#[test]
fn a_seed_gives_its_log_and_nothing_is_lost() {
    let run = |seed: &str| played(&["--tokens", "640k", "--seed", seed])["played"][0].clone();
    let first = run("1");
    assert_eq!(first, run("1"), "the same seed, the same run");
    assert_ne!(first["log_digest"], run("2")["log_digest"]);
    assert_eq!((&first["ended"], &first["lost"]), (&"done".into(), &0.into()));
    let tokens = first["tokens"].as_f64().expect("a number");
    assert!((tokens / 640e3 - 1.0).abs() < 1e-9, "{tokens}");
    assert_eq!(first["there"].as_f64(), Some(1.0));
}

#[test]
fn peers_that_go_and_come_cost_speed_and_no_work() {
    let churn = ["--set", "fleet.failures_per_hour=0.5", "--set", "fleet.replaced_after=2min"];
    let calm = played(&["--for", "40min", "--set", "fleet.failures_per_hour=0"])["played"][0].clone();
    let all = played(&[&["--for", "40min"], &churn[..]].concat());
    let churned = &all["played"][0];
    assert!(churned["outages"].as_u64() > Some(0) && churned["redone"].as_u64() > Some(0), "{churned}");
    assert_eq!((&churned["lost"], &churned["broken"]), (&0.into(), &Value::Array(Vec::new())));
    let speed = |of: &Value| of["tokens_per_second"].as_f64().expect("a speed");
    assert!(speed(churned) < speed(&calm), "{churned}, and nothing happening {calm}");
    let there = churned["there"].as_f64().expect("a part");
    assert!(there < 1.0 && there > 0.9, "{there}");
}

#[test]
fn pictures_and_logs_are_written_and_means_are_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name).to_str().expect("the path is UTF-8").to_owned();
    let (picture, events) = (file("run.svg"), file("run.jsonl"));
    let output = simulate(&["--tokens", "320k", "--picture", &picture, "--events", &events]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let drawn = std::fs::read_to_string(&picture).expect("it was drawn");
    assert!(drawn.contains("tokens a second") && drawn.contains("computing"), "{drawn}");
    let inspected = Command::new(env!("CARGO_BIN_EXE_trestle")).args(["inspect", &events]).output();
    assert!(inspected.expect("the binary starts").status.success());
    let several = simulate(&["--tokens", "320k", "--seeds", "3"]);
    let words = String::from_utf8_lossy(&several.stdout).into_owned();
    assert!(words.contains("3 of 3 kept every law") && words.contains("+- 95 %"), "{words}");
}

#[test]
fn what_cannot_be_played_is_said_with_a_hint() {
    let folder = tempfile::tempdir().expect("a folder");
    let events = folder.path().join("run.jsonl");
    let events = events.to_str().expect("the path is UTF-8");
    for (more, code, said) in [
        (&["--for", "soon"][..], 2, "not a length of time"),
        (&["--events", events, "--seeds", "2"], 2, "--events takes the log of one seed"),
        (&["--picture", "run.png", "--tokens", "320k"], 2, "is no .svg"),
        (&["--set", "fleet.count=1"], 1, "cannot hold the run"),
        (&["--set", "fleet.up=fast"], 2, "`fleet.up=fast`"),
    ] {
        let output = simulate(more);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(said), "{error}");
    }
}
