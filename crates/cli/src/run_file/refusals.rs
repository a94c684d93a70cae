//! Tables of what a run file may not hold, each with the message it gets.
//!
//! Owns the run file that the tests of run files change. Compiled for tests alone.

use std::path::Path;

use trestle_protocol::ids::Digest;

use crate::run_file::RunFile;
use crate::run_file::error::RunFileError;
use crate::run_file::source::Override;

/// A run file with little in it; every line is of use to some test.
pub(crate) const SMALL: &str = "\
seed = 3
[model]
width = 64
layers = 6
heads = 4
kv_heads = 2
ffn_width = 128
sequence_len = 32
[boundary]
width = 8
[pipeline]
stages = 3
[training]
steps = 100
";

/// Parses a run file with options beside it.
pub(crate) fn parse(text: &str, set: &[&str]) -> Result<RunFile, RunFileError> {
    let overrides: Result<Vec<Override>, _> = set.iter().map(|text| Override::parse(text)).collect();
    RunFile::parse(Path::new("runs/small.toml"), text, &overrides?)
}

/// A line of the run file, what takes its place, and how the message begins.
const LINES: &[(&str, &str, &str)] = &[
    (
        "width = 64",
        "width = -1",
        "runs/small.toml:3: `model.width` is -1, expected a whole number from 2 to 131072",
    ),
    (
        "layers = 6",
        "layers = 0",
        "runs/small.toml:4: `model.layers` is 0, expected a whole number from 1 to 4096",
    ),
    (
        "heads = 4",
        "heads = 5",
        "runs/small.toml:5: `model.heads` is 5, expected a number whose double divides model.width = 64, for the width of a head is even",
    ),
    (
        "heads = 4",
        "heads = 64",
        "runs/small.toml:5: `model.heads` is 64, expected a number whose double divides model.width = 64, for the width of a head is even",
    ),
    (
        "kv_heads = 2",
        "kv_heads = 3",
        "runs/small.toml:6: `model.kv_heads` is 3, expected a divisor of model.heads = 4",
    ),
    (
        "width = 64",
        "width = \"big\"",
        "runs/small.toml:3: `model.width` is \"big\": invalid type: string \"big\", expected a whole number",
    ),
    ("width = 64", "wdith = 64", "runs/small.toml:3: unknown field `wdith`, expected one of"),
    ("[boundary]", "[bondary]", "runs/small.toml:9: unknown field `bondary`, expected one of"),
    ("seed = 3", "seed = ", "runs/small.toml:1: not TOML: "),
    (
        "width = 64\n",
        "",
        "runs/small.toml: `model.width` is missing, expected a whole number from 2 to 131072",
    ),
    (
        "steps = 100",
        "",
        "runs/small.toml: `training.steps` is missing, expected a whole number from 1 to 1099511627776",
    ),
    (
        "width = 8",
        "width = 65",
        "runs/small.toml:10: `boundary.width` is 65, expected at most model.width = 64",
    ),
    (
        "stages = 3",
        "stages = 7",
        "runs/small.toml:12: `pipeline.stages` is 7, expected a whole number from 1 to 6",
    ),
    (
        "stages = 3",
        "stage_layers = [2, 2]",
        "runs/small.toml:12: `pipeline.stage_layers` is [2, 2], expected numbers that add up to model.layers = 6 (these make 4)",
    ),
    (
        "stages = 3",
        "stage_layers = [6, 0]",
        "runs/small.toml:12: `pipeline.stage_layers` is [6, 0], expected whole numbers above 0",
    ),
    (
        "stages = 3",
        "stages = 3\nstage_layers = [3, 3]",
        "runs/small.toml:13: `pipeline.stage_layers` is [3, 3], expected one entry for each of pipeline.stages = 3",
    ),
];

#[test]
fn what_a_field_may_not_hold_is_named() {
    for (line, instead, message) in LINES {
        let error = parse(&SMALL.replacen(line, instead, 1), &[]).expect_err(message);
        assert!(error.to_string().starts_with(message), "{error}\nis not\n{message}");
        assert!(!error.hint().is_empty());
    }
}

/// Options, and what the message says.
const OPTIONS: &[(&[&str], &str)] = &[
    (&["boundary.form=narrow"], "`boundary.form` is \"narrow\", expected \"none\" or \"resbm\" or \"fused\""),
    (&["boundary.form=none"], "`boundary.width` is 8, expected model.width = 64 with boundary.form \"none\""),
    (&["boundary.wire=f16"], "`boundary.wire` is \"f16\", expected \"f32\" or \"bf16\""),
    (
        &["boundary.encoder_width=0"],
        "`boundary.encoder_width` is 0, expected a whole number from 1 to 1048576",
    ),
    (&["boundary.width=a"], "`boundary.width` is \"a\": invalid type: string \"a\", expected a whole number"),
    (&["boundary.depth=3"], "`boundary.depth` is 3: unknown field `depth`, expected one of"),
    (&["seed.depth=3"], "`seed` is a field, which has no field `depth`"),
    (&["seed=-1"], "`seed` is -1, expected a whole number from 0 to 9223372036854775807"),
    (
        &["name=a/b"],
        "`name` is \"a/b\", expected 1 to 64 letters, digits, `-`, `_` or `.`, with no `.` in front",
    ),
    (&["model.vocabulary=1"], "`model.vocabulary` is 1, expected a whole number from 2 to 16777216"),
    (&["model.ffn_width=0"], "`model.ffn_width` is 0, expected a whole number from 1 to 1048576"),
    (&["model.sequence_len=0"], "`model.sequence_len` is 0, expected a whole number from 1 to 16777216"),
    (&["model.rope_theta=0"], "`model.rope_theta` is 0, expected a number above 0"),
    (&["model.norm_epsilon=nan"], "`model.norm_epsilon` is NaN, expected a number above 0"),
    (&["pipeline.replicas=0"], "`pipeline.replicas` is 0, expected a whole number from 1 to 65535"),
    (&["pipeline.schedule=gpipe"], "`pipeline.schedule` is \"gpipe\", expected \"flush\" or \"async\""),
    (
        &["pipeline.staleness_max=2"],
        "`pipeline.staleness_max` is 2, expected nothing with pipeline.schedule \"flush\"",
    ),
    (
        &["pipeline.schedule=async", "pipeline.staleness_max=0"],
        "`pipeline.staleness_max` is 0, expected a whole number from 1 to 1024",
    ),
    (
        &["pipeline.microbatch_size=0"],
        "`pipeline.microbatch_size` is 0, expected a whole number from 1 to 65536",
    ),
    (
        &["model.sequence_len=65536", "pipeline.microbatch_size=300"],
        "`pipeline.microbatch_size` is 300, expected at most 256, for a boundary message holds 268435456 bytes and one sample takes 1048576",
    ),
    (
        &["pipeline.microbatches_per_step=0"],
        "`pipeline.microbatches_per_step` is 0, expected a whole number from 1 to 65536",
    ),
    (&["pipeline.in_flight_max=0"], "`pipeline.in_flight_max` is 0, expected a whole number from 1 to 1024"),
    (&["pipeline.retain=all"], "`pipeline.retain` is \"all\", expected \"graph\" or \"input\""),
    (&["pipeline.compute=f64"], "`pipeline.compute` is \"f64\", expected \"f32\" or \"bf16\""),
    (&["training.steps=0"], "`training.steps` is 0, expected a whole number from 1 to 1099511627776"),
    (&["training.warmup_steps=101"], "`training.warmup_steps` is 101, expected a whole number from 0 to 100"),
    (&["training.decay=linear"], "`training.decay` is \"linear\", expected \"cosine\" or \"constant\""),
    (&["training.final_ratio=1.5"], "`training.final_ratio` is 1.5, expected a number from 0 to 1"),
    (&["training.gradient_clip=-1"], "`training.gradient_clip` is -1, expected a number not below 0"),
    (&["optimizer.kind=sgd"], "`optimizer.kind` is \"sgd\", expected \"adamw\" or \"muon\""),
    (&["optimizer.learning_rate=0"], "`optimizer.learning_rate` is 0, expected a number above 0"),
    (&["optimizer.learning_rate=inf"], "`optimizer.learning_rate` is inf, expected a number above 0"),
    (&["optimizer.beta1=1"], "`optimizer.beta1` is 1, expected a number from 0 to below 1"),
    (&["optimizer.beta2=-0.1"], "`optimizer.beta2` is -0.1, expected a number from 0 to below 1"),
    (&["optimizer.epsilon=0"], "`optimizer.epsilon` is 0, expected a number above 0"),
    (&["optimizer.weight_decay=-1"], "`optimizer.weight_decay` is -1, expected a number not below 0"),
    (&["optimizer.muon_learning_rate=-1"], "`optimizer.muon_learning_rate` is -1, expected a number above 0"),
    (&["optimizer.muon_momentum=1"], "`optimizer.muon_momentum` is 1, expected a number from 0 to below 1"),
    (&["sync.inner_steps=0"], "`sync.inner_steps` is 0, expected a whole number from 1 to 4294967295"),
    (&["sync.delay=10"], "`sync.delay` is 10, expected a whole number from 0 to 9"),
    (
        &["sync.overlap=false", "sync.delay=2"],
        "`sync.delay` is 2, expected nothing with sync.overlap = false",
    ),
    (
        &["sync.inner_steps=1", "sync.overlap=true"],
        "`sync.overlap` is true, expected false with sync.inner_steps = 1",
    ),
    (&["sync.rule=adam"], "`sync.rule` is \"adam\", expected \"mean\" or \"nesterov\" or \"plain\""),
    (
        &["sync.codec=f16"],
        "`sync.codec` is \"f16\", expected \"f32\" or \"bf16\" or \"int8\" or \"sparseloco\"",
    ),
    (
        &["sync.inner_steps=1", "sync.codec=int8"],
        "`sync.codec` is int8, expected \"f32\" or \"bf16\" with sync.inner_steps = 1, where gradients are exchanged",
    ),
    (&["sync.learning_rate=0"], "`sync.learning_rate` is 0, expected a number above 0"),
    (&["sync.momentum=1"], "`sync.momentum` is 1, expected a number from 0 to below 1"),
    (&["sync.momentum_ramp=-1"], "`sync.momentum_ramp` is -1, expected a whole number from 0 to 1048576"),
    (&["sync.error_decay=0"], "`sync.error_decay` is 0, expected a number above 0 and not above 1"),
    (
        &["pipeline.replicas=2", "evaluation.every=15"],
        "`evaluation.every` is 15, expected a multiple of sync.inner_steps = 10, for there the replicas agree",
    ),
    (
        &["pipeline.replicas=2", "checkpoint.every=7"],
        "`checkpoint.every` is 7, expected a multiple of sync.inner_steps = 10, for there the replicas agree",
    ),
    (&["data.source=web"], "`data.source` is \"web\", expected \"text\" or \"jsonl\" or \"generated\""),
    (&["data.tokens=5"], "`data.tokens` is 5, expected nothing, unless data.source is \"generated\""),
    (
        &["data.source=generated", "data.tokens=0"],
        "`data.tokens` is 0, expected a whole number from 1 to 1099511627776",
    ),
    (&["data.field=text"], "`data.field` is \"text\", expected nothing, unless data.source is \"jsonl\""),
    (
        &["data.source=generated", "data.path=a"],
        "`data.path` is \"a\", expected nothing, unless data.source is \"text\" or \"jsonl\"",
    ),
    (
        &["data.source=generated", "data.tokenizer=a"],
        "`data.tokenizer` is \"a\", expected nothing, unless data.source is \"text\" or \"jsonl\"",
    ),
    (
        &["data.held_out_permille=501"],
        "`data.held_out_permille` is 501, expected a whole number from 0 to 500",
    ),
    (
        &["data.held_out_permille=0", "evaluation.microbatches=1"],
        "`evaluation.microbatches` is 1, expected 0, for data.held_out_permille is 0",
    ),
    (&["evaluation.every=-1"], "`evaluation.every` is -1, expected a whole number from 0 to 1099511627776"),
    (&["checkpoint.every=-1"], "`checkpoint.every` is -1, expected a whole number from 0 to 1099511627776"),
    (&["steps"], "`--set steps` is not of the form key=value"),
];

#[test]
fn what_an_option_may_not_set_is_named() {
    for (set, message) in OPTIONS {
        let error = parse(SMALL, set).expect_err(message);
        assert!(error.to_string().contains(message), "{error}\nhas not\n{message}");
        assert!(!error.hint().is_empty());
    }
}

#[test]
fn an_error_names_the_option_that_caused_it() {
    let error = parse(SMALL, &["boundary.width=65"]).unwrap_err().to_string();
    assert!(error.starts_with("`--set boundary.width=65`: `boundary.width` is 65"), "{error}");
}

#[test]
fn the_vocabulary_holds_every_token_of_the_data() {
    let error = parse(SMALL, &["model.vocabulary=200"]).unwrap().spec(Digest([0; 32]), 256).unwrap_err();
    let message = "`model.vocabulary` is 200, expected at least 256, the token ids of data.tokenizer";
    assert!(error.to_string().ends_with(message), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let error = RunFile::read(Path::new("nowhere.toml"), &[]).unwrap_err();
    assert!(error.to_string().starts_with("cannot read run file nowhere.toml: "), "{error}");
}
