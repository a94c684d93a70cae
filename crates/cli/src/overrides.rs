//! The options of the command line that stand for fields of the run file.
//!
//! Owns which option sets which field. May not know what a field means.

use crate::args::RunArgs;
use crate::run_file::error::RunFileError;
use crate::run_file::source::Override;

/// Lists the overrides that the options make, in the order in which they apply: a plain option beats `--set`.
pub(crate) fn overrides(args: &RunArgs) -> Result<Vec<Override>, RunFileError> {
    let mut overrides = assignments(&args.set)?;
    let options = [
        ("--steps", "training.steps", args.steps),
        ("--seed", "seed", args.seed),
        ("--replicas", "pipeline.replicas", args.replicas),
    ];
    for (option, field, value) in options {
        if let Some(value) = value {
            let text = format!("{field}={value}");
            overrides.push(Override { option: format!("{option} {value}"), ..Override::parse(&text)? });
        }
    }
    Ok(overrides)
}

/// Reads the texts of `--set`.
pub(crate) fn assignments(texts: &[String]) -> Result<Vec<Override>, RunFileError> {
    texts.iter().map(|text| Override::parse(text)).collect()
}
