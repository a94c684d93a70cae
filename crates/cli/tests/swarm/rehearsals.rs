//! Outer steps between processes, without training: what a death in the middle leaves behind.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::command::{Place, start_until, succeed, trestle};

const ROUNDS: u64 = 6;

fn rehearse(folder: &Path, more: &[&str]) -> Command {
    let rounds = ROUNDS.to_string();
    let mut command = trestle(&["rehearse", "--json", "--replicas", "4", "--rounds", &rounds]);
    command.args(["--parameters", "65536", "--dir"]).arg(folder).args(more);
    command
}

/// The digests that the replicas of these names went over to, by outer step.
fn agreed(folder: &Path, names: impl Iterator<Item = u64>) -> BTreeMap<u64, Vec<String>> {
    let mut agreed: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for name in names {
        let log = folder.join(format!("replica-{name}")).join("events.jsonl");
        for line in std::fs::read_to_string(log).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            if let Some(report) = line["event"].get("Agreed") {
                let digest = report["digest"].as_str().unwrap().to_owned();
                agreed.entry(report["outer"].as_u64().unwrap()).or_default().push(digest);
            }
        }
    }
    agreed
}

#[test]
fn replicas_rehearse_with_every_codec() {
    let place = Place::new();
    for (codec, rule) in
        [("f32", "gradients"), ("bf16", "nesterov"), ("int8", "mean"), ("sparseloco", "plain")]
    {
        let folder = place.run_dir(codec);
        let events = succeed(&mut rehearse(&folder, &["--codec", codec, "--rule", rule]));
        let committed = events.iter().filter(|event| event["verdict"] == "committed");
        assert_eq!(committed.count() as u64, ROUNDS, "{codec}");
        let agreed = agreed(&folder, 0..4);
        assert_eq!(agreed.len() as u64, ROUNDS, "{codec}");
        for (outer, digests) in agreed {
            let different: BTreeSet<_> = digests.iter().collect();
            assert_eq!((digests.len(), different.len()), (4, 1), "{codec}, outer step {outer}");
        }
    }
}

#[test]
fn those_who_outlive_a_replica_agree_and_go_on() {
    let place = Place::new();
    for victim in [0, 3] {
        let folder = place.run_dir(&format!("without-{victim}"));
        // The next outer step begins at once, so that the death falls into it.
        let second = |event: &Value| event["event"] == "outer" && event["outer"] == 1;
        let (started, seen) = start_until(&mut rehearse(&folder, &["--rule", "nesterov"]), second);
        let of_victim = |event: &&Value| event["event"] == "replica" && event["replica"] == victim;
        let pid = seen.iter().find(of_victim).unwrap()["pid"].to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        let (mut host, rest) = started.rest();
        assert!(host.wait().unwrap().success());
        let outer: Vec<&Value> = seen.iter().chain(&rest).filter(|event| event["event"] == "outer").collect();
        assert_eq!(outer.len() as u64, ROUNDS);
        assert_eq!(outer.last().unwrap()["contributors"], 3, "the others go on");
        let agreed = agreed(&folder, (0..4).filter(|name| *name != victim));
        for line in outer.iter().filter(|line| line["verdict"] == "committed") {
            let digests = &agreed[&line["outer"].as_u64().unwrap()];
            let different: BTreeSet<_> = digests.iter().collect();
            assert_eq!((digests.len(), different.len()), (3, 1), "without replica {victim}: {line}");
        }
    }
}
