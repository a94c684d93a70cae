//! The binary as scripts see it: what goes to stdout, what to stderr, and the exit code.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn trestle(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trestle")).args(arguments).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the program writes UTF-8")
}

/// A run file of the repository.
fn run_file(name: &str) -> String {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runs");
    root.join(name).to_str().expect("the path is UTF-8").to_owned()
}

#[test]
fn every_command_has_help_with_examples() {
    for command in [
        &["--help"][..],
        &["train", "-h"],
        &["serve", "-h"],
        &["join", "-h"],
        &["plan", "-h"],
        &["profile", "-h"],
        &["simulate", "-h"],
        &["generate", "-h"],
        &["inspect", "-h"],
        &["completions", "-h"],
    ] {
        let output = trestle(command);
        let help = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(help.contains("Examples:\n  trestle "), "{command:?} shows no example:\n{help}");
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn completions_are_written_for_each_shell() {
    for (shell, sign) in
        [("bash", "complete -F _trestle"), ("zsh", "#compdef trestle"), ("fish", "complete -c trestle")]
    {
        let output = trestle(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains(sign), "{shell}");
    }
}

#[test]
fn misuse_exits_with_two_and_a_hint() {
    let demo = run_file("demo.toml");
    let table: [(&[&str], &str); 7] = [
        (&["trian"], "error: unrecognized subcommand 'trian'"),
        (&["inspect"], "error: the following required arguments were not provided"),
        (&["inspect", "nowhere.toml"], "error: there is no nowhere.toml\n\nhint: "),
        (
            &["inspect", &demo, "--set", "boundary.width=999"],
            "error: `--set boundary.width=999`: `boundary.width` is 999, expected at most model.width = 128\n\nhint: ",
        ),
        (
            &["generate", "x", "--temperature", "-1"],
            "error: invalid value '-1' for '--temperature <T>': expected a number not below 0",
        ),
        (
            &["train", &demo, "--set", "data.source=generated", "--data", "a.txt"],
            "error: `--set data.source=generated`: `data.source` is \"generated\", expected \"text\" or \"jsonl\", to read a.txt\n\nhint: ",
        ),
        (&["train", &demo, "--threads", "0"], "error: invalid value '0' for '--threads <N>'"),
    ];
    for (arguments, message) in table {
        let output = trestle(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.starts_with(message), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_run_file_is_inspected_in_words_and_as_json() {
    let path = run_file("100b.toml");
    let words = text(&trestle(&["inspect", &path]).stdout);
    for part in
        ["(99,615,863,808 without boundaries)", "2.20 MiB a message of 8,000 tokens, 288 B a token each way"]
    {
        assert!(words.contains(part), "{words}");
    }
    let output = trestle(&["inspect", &path, "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    assert_eq!(report["dense_parameters"], 99_615_863_808_u64);
    assert_eq!(report["stages"].as_array().map(Vec::len), Some(16));
    let sum: u64 = report["stages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|stage| stage["parameters"].as_u64())
        .sum();
    assert_eq!(report["parameters"], sum);
}

#[test]
fn a_scenario_ends_with_its_verdict() {
    let folder = tempfile::tempdir().expect("a folder for scenarios");
    let simulate = |name: &str, script: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, script).expect("the scenario is written");
        trestle(&["simulate", path.to_str().expect("the path is UTF-8")])
    };
    let script = "stages 2\nsteps 3\nmicrobatches 2\ntrain\n----\n";
    let met = simulate("met", &format!("{script}outcome=done\n"));
    assert_eq!(met.status.code(), Some(0), "{}", text(&met.stderr));
    assert!(text(&met.stdout).contains("log digest "), "{}", text(&met.stdout));

    let missed = simulate("missed", &format!("{script}steps=4\n"));
    let said = text(&missed.stderr);
    assert_eq!(missed.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: 1 of 1 scenarios did not go as expected\n\nhint: repeat"), "{said}");
    assert!(said.contains("trestle simulate ") && said.contains(" --seed "), "{said}");

    let unknown = simulate("unknown", "jump 3\ntrain\n----\n");
    assert_eq!(unknown.status.code(), Some(2), "{}", text(&unknown.stderr));
    assert!(text(&unknown.stderr).contains("\n\nhint: "), "{}", text(&unknown.stderr));
}
