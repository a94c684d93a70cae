//! Bad input: a named error, a hint, and the right exit code.

use std::fs;
use std::net::UdpSocket;

use crate::command::{Place, succeed, trestle, words};

/// Runs, and checks the exit code and every fragment of what is said.
fn refuse(command: &mut std::process::Command, code: i32, fragments: &[&str]) {
    let output = command.output().unwrap();
    let said = words(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.starts_with("error: ") || said.contains("\nerror: "), "{said}");
    for fragment in fragments {
        assert!(said.contains(fragment), "`{fragment}` is missing in:\n{said}");
    }
    assert!(said.contains("\n\nhint: "), "a hint is missing in:\n{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn data_that_is_missing_empty_or_short_is_named() {
    let place = Place::new();
    let text = place.path().join("text.txt");
    let name = text.to_str().unwrap().to_owned();
    let run = ["--set", "data.source=text", "--data", &name];
    let train = |case: &str| {
        let run_file = fs::read_to_string(place.run_file()).unwrap().replace("tokens = 100_000\n", "");
        fs::write(place.run_file(), run_file).unwrap();
        place.train(case, &run)
    };
    refuse(&mut train("missing"), 1, &["text.txt"]);
    fs::write(&text, "").unwrap();
    refuse(&mut train("empty"), 1, &["text.txt", "no text"]);
    fs::write(&text, "0123456789").unwrap();
    refuse(&mut train("short"), 1, &["10", "17"]);
    let mut without = trestle(&["train"]);
    without.arg(place.run_file()).args(["--set", "data.source=text"]);
    refuse(&mut without, 2, &["text"]);
}

#[test]
fn a_run_is_neither_begun_twice_nor_resumed_from_nothing() {
    let place = Place::new();
    refuse(&mut place.train("none", &["--resume"]), 2, &["holds no run"]);
    succeed(&mut place.train("done", &["--steps", "10"]));
    refuse(&mut place.train("done", &["--steps", "10"]), 2, &["begun before"]);
    refuse(&mut place.train("done", &["--steps", "11", "--resume"]), 2, &["training.steps = 10", "11"]);
}

#[test]
fn a_corrupt_checkpoint_is_named_and_nothing_is_trained_on_it() {
    let place = Place::new();
    succeed(&mut place.train("run", &["--steps", "10"]));
    let path = place.run_dir("run").join("checkpoints/stage-2/step-00000010.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let steps = ["--steps", "10", "--resume"];
    refuse(&mut place.train("run", &steps), 1, &["stage 2", "step-00000010.safetensors"]);
}

#[test]
fn a_used_port_is_named() {
    let place = Place::new();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut serve = trestle(&["serve"]);
    serve.arg(place.run_file()).arg("--dir").arg(place.run_dir("served"));
    serve.args(["--listen", &address.to_string()]);
    refuse(&mut serve, 1, &[&format!("port {}", address.port()), "in use"]);
}

#[test]
fn a_ticket_with_a_typo_is_misuse() {
    refuse(&mut trestle(&["join", "trestle1abcdefgh"]), 2, &["ticket"]);
    refuse(&mut trestle(&["join", "hello"]), 2, &["ticket begins with"]);
}

#[test]
fn chaos_that_makes_no_sense_is_misuse() {
    let place = Place::new();
    refuse(&mut place.train("run", &["--chaos", "maim=1/min"]), 2, &["`maim`", "kill, term, freeze"]);
    refuse(&mut place.train("run", &["--chaos", "kill=often"]), 2, &["rate `often`", "0.2/min"]);
    refuse(
        &mut place.train("run", &["--chaos", "coordinator=1/min"]),
        2,
        &["coordinator", "scripts/chaos.py"],
    );
    assert!(!place.run_dir("run").exists(), "nothing was begun");
}

#[test]
fn a_ledger_is_asked_of_the_folder_of_a_run() {
    let place = Place::new();
    refuse(trestle(&["inspect", "ledger"]).arg(place.path()), 1, &["spec.json", "folder of a run"]);
    refuse(trestle(&["inspect", "accounts"]).arg(place.path()), 2, &["accounts", "ledger"]);
}
