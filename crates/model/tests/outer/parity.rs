//! The arithmetic of the outer step against PyTorch's: `tests/parity/outer_reference.py` does the same with torch.optim.SGD.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use trestle_model::outer::{CodecKind, Layout, Outer, OuterConfig, Ramp, Rule};

use crate::swarm::{config, exchange, noise};

const REPLICAS: u64 = 3;
const STEPS: u64 = 5;
const ELEMENTS: usize = 777;

/// Microbatches credited to each replica.
const WEIGHTS: [u64; 3] = [10, 3, 7];

/// How far replica `replica` moves in outer step `step`.
fn movement(replica: u64, step: u64) -> Vec<f32> {
    noise(ELEMENTS, 100 * step + replica)
}

/// Returns the anchors after each outer step.
fn anchors(rule: Rule) -> Vec<Vec<f32>> {
    let config: OuterConfig = config(rule, CodecKind::F32);
    let new =
        |_| Outer::new(config.clone(), Layout::new(&[vec![ELEMENTS]]), noise(ELEMENTS, 1)).expect("valid");
    let mut replicas: Vec<Outer> = (0..REPLICAS).map(new).collect();
    (0..STEPS)
        .map(|step| {
            for (index, replica) in (0..).zip(&mut replicas) {
                let moved = replica.anchor().iter().zip(movement(index, step)).map(|(w, m)| w - m).collect();
                replica.begin(step, moved);
            }
            exchange(&mut replicas, &WEIGHTS);
            replicas[0].anchor().to_vec()
        })
        .collect()
}

fn reference(rule: Rule) -> Vec<Vec<f64>> {
    let movements: Vec<Vec<Vec<f32>>> =
        (0..STEPS).map(|step| (0..REPLICAS).map(|replica| movement(replica, step)).collect()).collect();
    let request =
        json!({"rule": rule, "start": noise(ELEMENTS, 1), "weights": WEIGHTS, "movements": movements});
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("request.json");
    std::fs::write(&path, request.to_string()).expect("the folder is writable");
    let hint = "python3 with torch 2.11 is needed; TRESTLE_PYTHONPATH names the folder that holds it";
    let packages = std::env::var("TRESTLE_PYTHONPATH").expect(hint);
    let output = Command::new("python3")
        .arg("-B")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/outer_reference.py"))
        .arg(&path)
        .env("PYTHONPATH", packages)
        .output()
        .expect(hint);
    assert!(output.status.success(), "{}\n{hint}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("the script prints JSON");
    serde_json::from_value(answer).expect("a list of numbers a step")
}

fn check(rule: Rule) {
    let (ours, theirs) = (anchors(rule), reference(rule));
    assert_eq!(theirs.len(), ours.len());
    for (step, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours.len(), theirs.len());
        let largest = theirs.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
        assert!(largest > 0.1, "step {step}: nothing is compared");
        for (index, (&ours, &theirs)) in ours.iter().zip(theirs).enumerate() {
            let error = (f64::from(ours) - theirs).abs() / largest;
            assert!(
                error < 1e-6,
                "{rule:?} step {step} [{index}] is {ours}, PyTorch has {theirs}: {error:e}"
            );
        }
    }
}

#[test]
fn nesterov_agrees() {
    check(Rule::Nesterov { learning_rate: 0.7, momentum: 0.9, ramp: None });
}

#[test]
fn nesterov_with_a_ramp_agrees() {
    check(Rule::Nesterov { learning_rate: 0.7, momentum: 0.9, ramp: Some(Ramp { from: 0.5, steps: 3 }) });
}

#[test]
fn plain_agrees() {
    check(Rule::Plain { learning_rate: 0.4 });
}

#[test]
fn mean_agrees() {
    check(Rule::Mean);
}
