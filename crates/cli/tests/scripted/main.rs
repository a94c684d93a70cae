//! One script for the simulator and for processes: both tell what the script fixes, in the same order.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod deeds;
mod order;
mod processes;
mod run_file;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use trestle_protocol::ids::{ReplicaId, StageId};
use trestle_protocol::plan::Place;
use trestle_protocol::spec::RunSpec;
use trestle_sim::run_scenario_logged;
use trestle_sim::scenario::script::Script;

use crate::deeds::deeds;
use crate::order::{fixed, of_coordinator};
use crate::processes::Processes;
use crate::run_file::run_file;

/// The script.
const SCENARIO: &str = "sim/scenarios/churn_scripted.txt";

fn scenario() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(SCENARIO)
}

/// The log of the scenario's simulation, as the binary writes it.
fn simulated(folder: &Path) -> String {
    let log = folder.join("simulated.jsonl");
    let mut command = Command::new(env!("CARGO_BIN_EXE_trestle"));
    let output = command.arg("simulate").arg(scenario()).arg("--events").arg(&log).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(log).unwrap()
}

#[test]
fn a_script_gives_the_same_order_in_the_simulator_and_with_processes() {
    let text = std::fs::read_to_string(scenario()).unwrap();
    let script = Script::read(&text, None).unwrap();
    let (spec, deeds) = (script.settings.run_spec(), deeds(&script.runnings[0].faults));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    std::fs::write(&file, run_file(&spec)).unwrap();
    let replicas = (0..spec.pipeline.replicas).map(ReplicaId);
    let places: Vec<Place> = replicas
        .flat_map(|replica| (0..spec.stages()).map(move |stage| Place { stage: StageId(stage), replica }))
        .collect();
    let real = fixed(&Processes::start(folder.path(), &file, &places, &deeds).play(&deeds), &deeds);
    let kept = std::fs::read_to_string(folder.path().join("run/spec.json")).unwrap();
    let mut kept: RunSpec =
        serde_json::from_value(serde_json::from_str::<Value>(&kept).unwrap()["spec"].take()).unwrap();
    kept.data.manifest = spec.data.manifest;
    assert_eq!(kept, spec, "both have trained the same run, but for data that a cost model has none of");
    let simulated = fixed(&of_coordinator(&simulated(folder.path())), &deeds);
    assert_eq!((&real.course, &real.causes), (&simulated.course, &simulated.causes), "processes, simulator");
    assert_eq!(real, simulated, "processes, simulator");
    assert_eq!(simulated.steps, (0..spec.training.steps).collect::<Vec<_>>(), "each step once, in order");
}

#[test]
fn what_the_script_fixes_is_another_if_the_script_is() {
    let text = std::fs::read_to_string(scenario()).unwrap().replace("digest=same-twice", "");
    let deeds = deeds(&Script::read(&text, None).unwrap().runnings[0].faults);
    let simulated = |text: &str| {
        let mut log = Vec::new();
        // An altered script may miss what the scenario expects; its log is there all the same.
        run_scenario_logged(text, None, &mut log).unwrap();
        fixed(&of_coordinator(&String::from_utf8(log).unwrap()), &deeds)
    };
    let script = simulated(&text);
    for (from, to) in [
        ("kill 1.1", "kill 1.0"),
        ("kill 1.1", "leave 1.1 notice=30s"),
        ("join stage=1", "join stage=0"),
        ("leave 0.1", "leave 0.0"),
        ("join stage=0 at=step:66\n", ""),
        ("at=step:12", "at=step:100"),
        ("every=8", "every=10"),
        ("steps 136", "steps 137"),
    ] {
        assert!(text.contains(from), "{from}");
        assert_ne!(script, simulated(&text.replacen(from, to, 1)), "{from} -> {to}");
    }
    assert_eq!(script, simulated(&format!("seed 9\n{text}")), "a seed decides nothing that the script fixes");
}
