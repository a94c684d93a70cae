//! `trestle plan --search`: what it finds against every shape that could have been, and what it refuses.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FLEET: &str = r#"
name = "two kinds"

[[group]]
name = "a100"
count = 8
device = "a100-80"
up = "856Mbit"
down = "1322Mbit"
rtt = "40ms"
price = 1.25
failures_per_hour = 0.05

[[group]]
name = "t4"
count = 8
device = "t4"
up = "200Mbit"
down = "200Mbit"
price = 0.10
"#;

/// What is looked through, small enough to try all of it.
const SPACE: &[&str] = &[
    "--sweep",
    "stages=2,4",
    "--sweep",
    "pipeline.replicas=1,2,4",
    "--sweep",
    "pipeline.microbatch_size=1",
    "--sweep",
    "sync.inner_steps=10,50",
    "--sweep",
    "sync.codec=bf16,sparseloco",
];

/// The run: its batch divides by all that is tried.
const RUN: &[&str] = &[
    "--set",
    "optimizer.kind=adamw",
    "--set",
    "pipeline.microbatch_size=1",
    "--set",
    "pipeline.microbatches_per_step=64",
    "--set",
    "pipeline.replicas=1",
    "--set",
    "sync.delay=0",
    "--tokens",
    "1B",
];

struct Files {
    _folder: tempfile::TempDir,
    run: String,
    fleet: String,
}

fn files() -> Files {
    let folder = tempfile::tempdir().expect("a folder");
    let fleet = folder.path().join("fleet.toml");
    fs::write(&fleet, FLEET).expect("it can be written");
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = |path: PathBuf| path.to_str().expect("the path is UTF-8").to_owned();
    Files { run: text(root.join("runs/1b.toml")), fleet: text(fleet), _folder: folder }
}

fn trestle(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trestle")).args(words).output().expect("the binary starts")
}

fn json(words: &[&str]) -> Value {
    let output = trestle(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("it is JSON")
}

/// Seconds and dollars for all tokens, outer steps an inner step, and how fine the codec is: more of each of the last two is safer.
type Figures = [f64; 4];

fn no_worse(a: &Figures, b: &Figures) -> bool {
    let near = 1.0 + 1e-9;
    a[0] <= b[0] * near && a[1] <= b[1] * near && a[2] >= b[2] && a[3] >= b[3]
}

fn fineness(codec: &str) -> f64 {
    if codec == "bf16" { 1.0 } else { 0.0 }
}

/// Reads the figures of a row; the command beside it makes the same of its shape.
fn figures(row: &Value, command: &str) -> Figures {
    let number = |field: &str| row["figures"][field].as_f64().expect(field);
    let sync = &row["shape"]["sync"];
    let (often, fine) = match sync.as_array() {
        Some(sync) => {
            (1.0 / sync[0].as_f64().expect("a number"), fineness(sync[1].as_str().expect("a word")))
        }
        None => (f64::INFINITY, 2.0),
    };
    // The command that is shown makes the same of it.
    let said: Vec<&str> = command.split(' ').skip(1).collect();
    let planned = json(&[&said[..], &["--tokens", "1B", "--json"]].concat());
    let seconds = planned["seconds"].as_f64().expect("a number");
    assert!((seconds / number("seconds") - 1.0).abs() < 1e-9, "{command}: {seconds} s");
    [number("seconds"), number("dollars"), often, fine]
}

#[test]
fn what_is_found_beats_every_shape_that_was_to_be_tried() {
    let Files { run, fleet, _folder } = &files();
    let words = ["plan", run, "--fleet", fleet, "--search", "--json"];
    let found = json(&[&words, RUN, SPACE].concat());
    let rows = found["search"]["found"].as_array().expect("a list");
    let commands = found["commands"].as_array().expect("a list");
    let mut all: Vec<Figures> = Vec::new();
    for (row, command) in rows.iter().zip(commands) {
        all.push(figures(row, command.as_str().expect("words")));
    }
    for (at, one) in all.iter().enumerate() {
        let beaten = all.iter().enumerate().find(|(other, figures)| *other != at && no_worse(figures, one));
        assert_eq!(beaten, None, "{one:?} is beaten");
    }
    let mut tried = 0;
    for unused in ["fleet.a100.count=0", "fleet.t4.count=0", "fleet.a100.count=8"] {
        for (stages, replicas) in [(2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (4, 4)] {
            for (inner_steps, codec) in [(10, "bf16"), (10, "sparseloco"), (50, "bf16"), (50, "sparseloco")] {
                // A single replica agrees with nobody.
                if replicas == 1 && (inner_steps, codec) != (10, "bf16") {
                    continue;
                }
                let layers = vec![(16 / stages).to_string(); stages].join(",");
                let sets = [
                    unused.to_owned(),
                    format!("pipeline.stage_layers=[{layers}]"),
                    format!("pipeline.replicas={replicas}"),
                    format!("pipeline.microbatches_per_step={}", 64 / replicas),
                    format!("pipeline.in_flight_max={}", 3 * stages),
                    format!("sync.inner_steps={inner_steps}"),
                    format!("sync.codec={codec}"),
                ];
                let mut words = vec!["plan", run, "--fleet", fleet, "--json"];
                words.extend(RUN);
                sets.iter().for_each(|set| words.extend(["--set", set.as_str()]));
                let output = trestle(&words);
                if !output.status.success() {
                    continue;
                }
                let planned: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
                let seconds = planned["seconds"].as_f64().expect("a number");
                let dollars = planned["price_per_billion"].as_f64().expect("a number");
                let (often, fine) = if replicas == 1 {
                    (f64::INFINITY, 2.0)
                } else {
                    (1.0 / f64::from(inner_steps), fineness(codec))
                };
                let one = [seconds, dollars, often, fine];
                assert!(
                    all.iter().any(|found| no_worse(found, &one)),
                    "{sets:?}: {one:?} is not among {all:?}"
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 10, "{tried} shapes fit");
}

/// On the fleet of docs/plan.md, "Searching".
#[test]
fn a_shape_that_suits_unlike_peers_beats_an_equal_split() {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let of = |path: &str| root.join(path).to_str().expect("the path is UTF-8").to_owned();
    let (run, fleet) = (of("runs/8b.toml"), of("fleets/mixed.toml"));
    let words =
        ["plan", &run, "--fleet", &fleet, "--set", "optimizer.kind=adamw", "--tokens", "10B", "--json"];
    let found = json(&[&words[..], &["--search"]].concat());
    let rows = found["search"]["found"].as_array().expect("a list");
    let fastest = rows[0]["figures"]["seconds"].as_f64().expect("a number");
    let equal = [
        "pipeline.stage_layers=[4,4,4,4,4,4,4,4]",
        "pipeline.replicas=2",
        "sync.inner_steps=10",
        "sync.codec=sparseloco",
    ];
    let equal = equal.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>();
    let equal = json(&[&words[..], &equal].concat())["seconds"].as_f64().expect("a number");
    assert!(equal > 1.5 * fastest, "{equal} s against {fastest} s");
    let memory = |plan: &Value| {
        let stages = plan["forecast"]["stages"].as_array().expect("a list").clone();
        stages.iter().all(|stage| {
            let needs = &stage["work"]["memory"];
            let parts = needs.as_object().expect("parts").values();
            parts.map(|part| part.as_f64().expect("bytes")).sum::<f64>()
                <= stage["memory"].as_f64().expect("bytes")
        })
    };
    for command in found["commands"].as_array().expect("a list") {
        let said: Vec<&str> = command.as_str().expect("words").split(' ').skip(1).collect();
        assert!(memory(&json(&[&said[..], &["--json"]].concat())), "{command} does not fit");
    }
}

#[test]
fn limits_are_kept_and_what_cannot_be_is_said() {
    let Files { run, fleet, _folder } = &files();
    let words = ["plan", run, "--fleet", fleet, "--search"];
    let all = json(&[&words, RUN, SPACE, &["--json"]].concat());
    let rows = all["search"]["found"].as_array().expect("a list");
    let of =
        |field: &str| rows.iter().map(|row| row["figures"][field].as_f64().expect(field)).collect::<Vec<_>>();
    let (seconds, dollars) = (of("seconds"), of("dollars"));
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (budget, deadline) = (middle(dollars.clone()), middle(seconds.clone()));
    let (budget_said, deadline_said) = (format!("{budget:.2}"), format!("{}s", deadline.round()));
    let within = json(
        &[&words, RUN, SPACE, &["--json", "--budget", &budget_said, "--deadline", &deadline_said]].concat(),
    );
    let kept = within["search"]["found"].as_array().expect("a list").len();
    let fits = |(seconds, dollars): (&f64, &f64)| {
        *seconds <= deadline.round() && (dollars * 100.0).round() <= (budget * 100.0).round()
    };
    assert_eq!(kept, seconds.iter().zip(&dollars).filter(|pair| fits(*pair)).count());
    for (more, code, said) in [
        (
            &["--budget", "0.01"][..],
            1,
            "no shape trains 1,000,000,000 tokens for at most $0.01: the fastest takes",
        ),
        (&["--deadline", "1s"][..], 1, "within 1000 ms"),
        (&["--sweep", "optimizer.kind=muon"][..], 2, "`--sweep optimizer.kind=muon` cannot be searched over"),
        (&["--sweep", "stages=0"][..], 2, "expected whole numbers from 1 to 16"),
        (&["--sweep", "sync.codec=zip"][..], 2, "expected f32, bf16, int8, sparseloco"),
        (&["--sweep", "stages=1", "--set", "fleet.memory=1GB"][..], 1, "no shape that was tried of the run"),
    ] {
        let output = trestle(&[&words, RUN, more].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{more:?}: {error}");
        assert!(error.contains(said) && error.contains("hint"), "{more:?}: {error}");
    }
    let output = trestle(&[&words[..], &["--budget", "much"]].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`much` is not a number of dollars"));
    let table = String::from_utf8(trestle(&[&words, RUN, SPACE].concat()).stdout).expect("text");
    assert!(
        table.contains("\nfastest: trestle plan ") && table.contains("\ncheapest: trestle plan "),
        "{table}"
    );
    assert!(table.lines().filter(|line| line.ends_with(" *")).count() >= 1, "{table}");
}
