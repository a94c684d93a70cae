//! Starts the binary and reads what it prints.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

/// A run file small enough that 200 steps of four processes take seconds.
pub(crate) const RUN: &str = r#"
name = "small"
seed = 7

[model]
width = 32
layers = 4
heads = 2
kv_heads = 1
ffn_width = 64
sequence_len = 16

[boundary]
form = "resbm"
width = 8
encoder_width = 16

[pipeline]
stages = 4
schedule = "flush"
microbatch_size = 2
microbatches_per_step = 4

[training]
steps = 60
warmup_steps = 5

[optimizer]
learning_rate = 3e-3

[data]
source = "generated"
tokens = 100_000

[evaluation]
every = 20
microbatches = 4

[checkpoint]
every = 10
"#;

/// A folder with a run file, removed at the end.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::write(place.run_file(), RUN).unwrap();
        place
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn run_file(&self) -> PathBuf {
        self.path().join("small.toml")
    }

    pub(crate) fn run_dir(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A `trestle train` that prints JSON.
    pub(crate) fn train(&self, run: &str, more: &[&str]) -> Command {
        let mut command = trestle(&["train"]);
        command.arg(self.run_file()).arg("--dir").arg(self.run_dir(run)).arg("--json").args(more);
        command
    }
}

pub(crate) fn trestle(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trestle"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs to the end; a failure shows what the program said.
pub(crate) fn succeed(command: &mut Command) -> Vec<Value> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}\n{}", output.status, words(&output));
    lines(&output.stdout)
}

pub(crate) fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn lines(stdout: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A child that runs on, and the rest of what it prints.
pub(crate) struct Started {
    pub(crate) child: Child,
    reader: BufReader<ChildStdout>,
}

impl Started {
    /// Reads to the end of its output.
    pub(crate) fn rest(mut self) -> (Child, Vec<Value>) {
        let rest = std::io::read_to_string(&mut self.reader).unwrap();
        (self.child, lines(rest.as_bytes()))
    }
}

/// Starts, hands each printed object to `until` until it says stop, and gives the running child back.
pub(crate) fn start_until(command: &mut Command, until: impl Fn(&Value) -> bool) -> (Started, Vec<Value>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut seen = Vec::new();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 0 {
        let value: Value = serde_json::from_str(&line).unwrap();
        line.clear();
        let stop = until(&value);
        seen.push(value);
        if stop {
            break;
        }
    }
    (Started { child, reader }, seen)
}

/// The training loss of every step, in order.
pub(crate) fn losses(events: &[Value]) -> Vec<(u64, f64)> {
    let steps = events.iter().filter(|event| event["event"] == "step");
    steps.map(|event| (event["step"].as_u64().unwrap(), event["loss"].as_f64().unwrap())).collect()
}

/// The held-out loss of every evaluation, in order.
pub(crate) fn held_out(events: &[Value]) -> Vec<(u64, f64)> {
    let found = events.iter().filter(|event| event["event"] == "evaluated");
    found.map(|event| (event["step"].as_u64().unwrap(), event["loss"].as_f64().unwrap())).collect()
}

/// The one event of a kind.
pub(crate) fn only<'a>(events: &'a [Value], kind: &str) -> &'a Value {
    let mut found = events.iter().filter(|event| event["event"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("no {kind} in {events:?}"));
    assert!(found.next().is_none(), "{kind} more than once");
    first
}

/// The events in the logs of all nodes of a run, each with its peer.
pub(crate) fn logged(place: &Place, run: &str) -> Vec<(String, Value)> {
    let mut events = Vec::new();
    for node in std::fs::read_dir(place.run_dir(run)).unwrap() {
        let Ok(text) = std::fs::read_to_string(node.unwrap().path().join("events.jsonl")) else { continue };
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            events.push((line["peer"].as_str().unwrap().to_owned(), line["event"].clone()));
        }
    }
    events
}
