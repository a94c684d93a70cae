//! `trestle plan` as scripts see it, against published figures and against what a fleet file may get wrong.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn of_repository(path: &str) -> String {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join(path).to_str().expect("the path is UTF-8").to_owned()
}

fn trestle(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trestle")).args(arguments).output().expect("the binary starts")
}

fn plan(run: &str, fleet: &str, more: &[&str]) -> Value {
    let (run, fleet) = (of_repository(run), of_repository(fleet));
    let output = trestle(&[&["plan", &run, "--fleet", &fleet, "--json"], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("it is JSON")
}

/// The settings of the published run, as far as they are known, and the two that are assumed (docs/plan.md).
const ORION: &[&str] = &[
    "--replicas",
    "3",
    "--set",
    "sync.codec=bf16",
    "--set",
    "sync.delay=0",
    "--set",
    "optimizer.kind=adamw",
    "--set",
    "pipeline.microbatches_per_step=32",
    "--set",
    "pipeline.in_flight_max=20",
];

fn near(what: &str, got: f64, published: f64) {
    assert!((got / published - 1.0).abs() < 0.05, "{what}: {got}, published {published}");
}

#[test]
fn the_published_run_is_forecast_within_a_twentieth() {
    let of = |inner_steps: &str| {
        let inner_steps = format!("sync.inner_steps={inner_steps}");
        plan("runs/100b.toml", "fleets/orion.toml", &[ORION, &["--set", &inner_steps]].concat())
    };
    let forecast = of("10");
    let pace = |of: &Value, field: &str| of[field].as_f64().expect(field);
    let whole = &forecast["forecast"]["pace"];
    near("MFU", pace(whole, "mfu"), 0.308);
    near("utilisation", pace(whole, "utilisation"), 0.818);
    near("their product", pace(&forecast, "product"), 0.252);
    near("tokens in 48 h", pace(whole, "tokens_per_second") * 48.0 * 3600.0, 1.09e9);
    near("dollars an hour", pace(&forecast["forecast"], "price_per_hour"), 60.0);
    let without = forecast["forecast"]["without"].as_array().expect("a list");
    let steady = without.iter().find(|row| row[0] == "failures").expect("it is looked at");
    near("MFU without failures", pace(&steady[1], "mfu"), 0.38);
    near("utilisation at H = 100", pace(&of("100")["forecast"]["pace"], "utilisation"), 0.978);
}

/// Each gain of this system over the published one, switched off by itself (docs/plan.md, "This system on that fleet").
#[test]
fn this_system_gains_by_each_of_its_parts_on_the_published_fleet() {
    let ours = [
        "--replicas",
        "3",
        "--set",
        "fleet.exchange=butterfly",
        "--set",
        "sync.codec=sparseloco",
        "--set",
        "sync.inner_steps=2",
        "--set",
        "optimizer.kind=adamw",
        "--set",
        "pipeline.microbatches_per_step=32",
        "--set",
        "pipeline.in_flight_max=48",
    ];
    let product = |off: &str| {
        let more = if off.is_empty() { Vec::new() } else { vec!["--set", off] };
        let forecast = plan("runs/100b.toml", "fleets/orion.toml", &[&ours, &more[..]].concat());
        forecast["product"].as_f64().expect("a part")
    };
    let whole = product("");
    assert!((whole / 0.352 - 1.0).abs() < 0.02, "docs/plan.md says 35.2 %: {whole}");
    let calm = product("fleet.failures_per_hour=0");
    assert!((calm / 0.439 - 1.0).abs() < 0.02, "docs/plan.md says 43.9 %: {calm}");
    for (off, least) in [
        ("sync.codec=bf16", 0.3),
        ("sync.delay=0", 0.01),
        ("fleet.routing=chance", 0.1),
        ("pipeline.schedule=flush", 0.2),
        ("pipeline.in_flight_max=20", 0.1),
        ("sync.inner_steps=10", 0.05),
    ] {
        let without = product(off);
        assert!(without < whole * (1.0 - least), "{off}: {without}, with it {whole}");
    }
}

#[test]
fn a_mixed_fleet_s_plan_fits_everyone_s_memory_and_uses_everyone_s_speed() {
    let set = ["--replicas", "2", "--set", "pipeline.retain=input"];
    let forecast = &plan("runs/8b.toml", "fleets/mixed.toml", &set)["forecast"];
    for stage in forecast["stages"].as_array().expect("a list") {
        let memory = stage["work"]["memory"].as_object().expect("a sum");
        let needs: u64 = memory.values().map(|part| part.as_u64().expect("bytes")).sum();
        assert!(needs as f64 <= stage["memory"].as_f64().expect("bytes"), "{stage}");
    }
    let (rate, bound) = (&forecast["placement"][0], &forecast["placement"][1]);
    assert!(rate.as_f64() <= bound.as_f64(), "{rate} of {bound}");
    let better = forecast["better_layers"][1].as_f64().expect("this fleet's stages are not alike");
    assert!(better > 1.05, "{better}");
}

#[test]
fn what_a_fleet_file_gets_wrong_is_said_with_its_line() {
    let run = of_repository("runs/8b.toml");
    let group =
        "[[group]]\nname = \"home\"\ncount = 3\ndevice = \"rtx-4090\"\nup = \"100Mbit\"\ndown = \"1Gbit\"\n";
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("fleet.toml");
    let name = file.to_str().expect("the path is UTF-8");
    for (from, to, code, said) in [
        ("rtx-4090", "rtx-9090", 2, ":4: there is no device \"rtx-9090\""),
        ("up = \"100Mbit\"\n", "", 2, ":1: group \"home\" has no `up`: it has no link"),
        ("count = 3", "count = 3\nprice = -2.0", 2, ":4: `price` is -2, expected a number from 0 to 1000000"),
        (
            "count = 3",
            "count = 3\nmemory = \"9TB\"",
            2,
            ":4: `memory` is \"9TB\", ten times what a rtx-4090 has",
        ),
        ("count = 3", "count = 3", 1, " cannot hold the run `8b`: "),
        ("count = 3", "count = 300\nmemory = \"1GB\"", 1, "fits into too few peers' memory"),
    ] {
        std::fs::write(&file, group.replace(from, to)).expect("it can be written");
        let output = trestle(&["plan", &run, "--fleet", name]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(said) && error.contains("\n\nhint: "), "{error}");
        assert!(output.stdout.is_empty());
    }
    let output = trestle(&["plan", &run, "--fleet", "nowhere.toml"]);
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: cannot read nowhere.toml: "));
}
