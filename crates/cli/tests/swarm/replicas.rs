//! Stages times replicas as processes: what the replicas agree on, and what it equals.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::command::{Place, held_out, logged, losses, only, start_until, succeed};
use crate::golden::OneProcess;

/// Relative difference that another order of summation makes.
const ROUNDING: f64 = 1e-6;

/// Which digests were reported for each stage and outer step, and by how many replicas.
fn agreed(place: &Place, run: &str) -> BTreeMap<(u64, u64), (BTreeSet<String>, usize)> {
    let events = logged(place, run);
    let planned =
        events.iter().find_map(|(_, event)| event.get("Planned")).expect("the coordinator made a plan");
    let stages: BTreeMap<&str, u64> = planned["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| (member[0].as_str().unwrap(), member[1]["stage"].as_u64().unwrap()))
        .collect();
    let mut agreed: BTreeMap<(u64, u64), (BTreeSet<String>, usize)> = BTreeMap::new();
    for (peer, event) in &events {
        let Some(report) = event.get("Agreed") else { continue };
        let at = (report["outer"].as_u64().unwrap(), stages[peer.as_str()]);
        let (digests, replicas) = agreed.entry(at).or_default();
        digests.insert(report["digest"].as_str().unwrap().to_owned());
        *replicas += 1;
    }
    agreed
}

/// The tensors of a checkpoint file whose names the rule takes, as bytes: a length, a header in JSON, then the tensors.
fn tensors(path: &Path, takes: fn(&str) -> bool) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (length, rest) = bytes.split_at(8);
    let (header, body) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).unwrap();
    let named = header.into_iter().filter(|(name, _)| name != "__metadata__" && takes(name));
    named
        .map(|(name, entry)| {
            let at = |end: usize| entry["data_offsets"][end].as_u64().unwrap() as usize;
            (name, body[at(0)..at(1)].to_vec())
        })
        .collect()
}

/// What the replicas compute with, not only what they say of it: the weights they saved are equal to the bit, and the
/// moments of their own training are not.
fn check_saved_weights(run: &Path, stages: u16, replicas: u16, step: u64) {
    for stage in 0..stages {
        let file = |replica: u16| {
            let place = if replica == 0 {
                format!("stage-{stage}")
            } else {
                format!("stage-{stage}-replica-{replica}")
            };
            run.join("checkpoints").join(place).join(format!("step-{step:08}.safetensors"))
        };
        let weights = |replica| tensors(&file(replica), |name| !name.starts_with("adamw."));
        let moments = |replica| tensors(&file(replica), |name| name.starts_with("adamw."));
        assert!(weights(0).len() > 5, "stage {stage} saved its weights");
        for replica in 1..replicas {
            assert!(
                weights(0) == weights(replica),
                "stage {stage}: replica {replica} has other weights than 0"
            );
            assert!(moments(0) != moments(replica), "stage {stage}: replica {replica} trained as 0 did");
        }
    }
}

#[test]
fn all_replicas_of_each_stage_report_one_digest_after_each_outer_step() {
    let place = Place::new();
    let options =
        ["--replicas", "3", "--steps", "40", "--set", "sync.inner_steps=2", "--set", "sync.delay=1"];
    let events = succeed(&mut place.train("three", &options));
    let agreed = agreed(&place, "three");
    assert_eq!(agreed.len(), 20 * 4, "twenty outer steps of four stages");
    for (at, (digests, replicas)) in &agreed {
        assert_eq!((digests.len(), *replicas), (1, 3), "outer step and stage {at:?}");
    }
    let all: BTreeSet<_> = agreed.values().flat_map(|(digests, _)| digests).collect();
    assert_eq!(all.len(), agreed.len(), "weights that never change agree on nothing");
    check_saved_weights(&place.run_dir("three"), 4, 3, 40);
    let ledger = only(&events, "ledger");
    let planned = 40 * 4 * 3;
    assert_eq!(ledger["planned"], planned);
    assert_eq!(ledger["credited"], serde_json::json!([planned, planned, planned, planned]));
    let committed = events.iter().filter(|event| event["event"] == "outer");
    assert!(committed.clone().all(|event| event["verdict"] == "committed" && event["tries"] == 1));
    assert_eq!(committed.count(), 20);
}

#[test]
fn replicas_that_average_gradients_equal_one_process_with_their_batch() {
    let steps = 30;
    let place = Place::new();
    let options =
        ["--replicas", "3", "--steps", "30", "--set", "sync.inner_steps=1", "--set", "evaluation.every=0"];
    let events = succeed(&mut place.train("three", &options));
    let mut one = OneProcess::new(&place, "three");
    one.spec.pipeline.microbatches_per_step *= 3;
    let expected: Vec<_> = (0..steps).map(|step| (step, one.step(step))).collect();
    let found = losses(&events);
    assert_eq!(found.len(), expected.len());
    for ((step, found), (_, expected)) in found.iter().zip(&expected) {
        assert!((found / expected - 1.0).abs() < ROUNDING, "step {step}: {found}, one process {expected}");
    }
    let (found, expected) = (held_out(&events)[0].1, one.held_out());
    assert!((found / expected - 1.0).abs() < ROUNDING, "held-out {found}, one process {expected}");
    assert!(expected < 5.0, "it learns: {expected}");
}

#[test]
fn a_killed_run_of_replicas_goes_on_with_the_same_losses() {
    let place = Place::new();
    let options =
        ["--replicas", "2", "--steps", "40", "--set", "sync.inner_steps=5", "--set", "pipeline.stages=2"];
    let whole = losses(&succeed(&mut place.train("whole", &options)));
    let mut command = place.train("cut", &options);
    let (mut started, _) =
        start_until(&mut command, |event| event["event"] == "durable" && event["step"] == 20);
    started.child.kill().unwrap();
    started.child.wait().unwrap();
    let resumed = losses(&succeed(&mut place.train("cut", &[&options[..], &["--resume"]].concat())));
    let from = usize::try_from(resumed[0].0).unwrap();
    assert!(from >= 20, "goes on from the last checkpoint, not from {from}");
    assert_eq!(resumed[..], whole[from..]);
}
