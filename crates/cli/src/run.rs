//! From the words of `train` and `serve` to a run: run file, text, spec, folder.
//!
//! Owns the order in which these are found. May not know processes or peers.

use std::path::{Path, PathBuf};

use trestle_data::Dataset;
use trestle_node::roles::Beginning;
use trestle_protocol::ids::Digest;
use trestle_protocol::spec::RunSpec;
use trestle_settings::data::{LocalData, data_config};

use crate::args::RunArgs;
use crate::failure::Failure;
use crate::overrides::overrides;
use crate::run_file::RunFile;
use crate::run_file::sections::TextSource;

/// Where runs are kept unless `--dir` says otherwise.
const RUNS_FOLDER: &str = "trestle-run";

/// The run file as it was used, kept in the run's folder for `generate` and `inspect`.
pub(crate) const SPEC_FILE: &str = "spec.json";

/// A run whose file and text are read and checked.
pub(crate) struct Run {
    pub(crate) spec: RunSpec,
    pub(crate) local: LocalData,
    pub(crate) dataset: Dataset,
    pub(crate) directory: PathBuf,
    pub(crate) beginning: Beginning,
}

/// Reads the run file, opens the text, and builds the spec.
pub(crate) fn open(args: &RunArgs) -> Result<Run, Failure> {
    let file = RunFile::read(&args.run_file, &overrides(args)?)?;
    let local = local_data(&file, args.data.as_deref())?;
    let sketch = file.spec(Digest([0; 32]), file.vocabulary().unwrap_or(1))?;
    let config = data_config(&sketch, &local).map_err(|error| Failure::misused(error).hint(error.hint()))?;
    let dataset = Dataset::open(&config).map_err(|error| Failure::failed(&error).hint(error.hint()))?;
    let spec = file.spec(Digest(dataset.manifest().digest), dataset.vocabulary())?;
    check_held_out(&spec, &dataset)?;
    let directory = args.dir.clone().unwrap_or_else(|| Path::new(RUNS_FOLDER).join(file.name()));
    let beginning = if args.resume { Beginning::Resume } else { Beginning::Anew };
    if beginning == Beginning::Resume && directory.join(SPEC_FILE).exists() {
        check_same(&kept(&directory)?.0, &spec, &directory)?;
    }
    Ok(Run { spec, local, dataset, directory, beginning })
}

/// Writes the spec and where the text is into the run's folder.
pub(crate) fn keep(run: &Run) -> Result<(), Failure> {
    let path = run.directory.join(SPEC_FILE);
    let absolute = |path: &Option<PathBuf>| path.as_ref().and_then(|path| path.canonicalize().ok());
    let kept = serde_json::json!({
        "spec": run.spec,
        "data": absolute(&run.local.path),
        "field": run.local.field,
        "tokenizer": absolute(&run.local.tokenizer),
    });
    std::fs::create_dir_all(&run.directory)
        .and_then(|()| std::fs::write(&path, format!("{kept:#}\n")))
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))
}

/// Reads back what [`keep`] wrote.
pub(crate) fn kept(directory: &Path) -> Result<(RunSpec, LocalData), Failure> {
    let path = directory.join(SPEC_FILE);
    let unreadable = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("cannot read {}: {error}", path.display()))
            .hint("name the folder of a run, such as trestle-run/tiny")
    };
    let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&error))?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| unreadable(&error))?;
    let spec = serde_json::from_value(value["spec"].clone()).map_err(|error| unreadable(&error))?;
    let text_of = |name: &str| value[name].as_str().map(str::to_owned);
    let local = LocalData {
        path: text_of("data").map(PathBuf::from),
        field: text_of("field"),
        tokenizer: text_of("tokenizer").map(PathBuf::from),
    };
    Ok((spec, local))
}

/// Says where this peer has what the run reads; peers that join say it for themselves.
fn local_data(file: &RunFile, given: Option<&Path>) -> Result<LocalData, Failure> {
    let data = file.data();
    let field = match &data.source {
        TextSource::Generated { .. } | TextSource::Text { .. } => None,
        TextSource::JsonLines { field, .. } => Some(field.clone()),
    };
    let tokenizer = data.tokenizer.as_ref().map(|path| file.beside(path));
    Ok(LocalData { path: file.text_path(given)?, field, tokenizer })
}

/// A run goes on as it was begun; what differs is named.
fn check_same(begun: &RunSpec, now: &RunSpec, directory: &Path) -> Result<(), Failure> {
    let Some(difference) = begun.first_difference(now) else { return Ok(()) };
    let (field, begun, now) = (difference.field, difference.ours, difference.theirs);
    Err(Failure::misused(format!(
        "the run in {} was begun with {field} = {begun}, and is to go on with {now}",
        directory.display()
    ))
    .hint("resume with the run file, options and text it was begun with, or begin anew in another `--dir`"))
}

fn check_held_out(spec: &RunSpec, dataset: &Dataset) -> Result<(), Failure> {
    let size = spec.pipeline.microbatch_size as usize;
    let wanted = u64::from(spec.evaluation.microbatches);
    let there = dataset.microbatches(trestle_data::Split::HeldOut, size);
    if wanted <= there {
        return Ok(());
    }
    let (samples, needed) = (dataset.manifest().held_out_samples, wanted * size as u64);
    Err(Failure::misused(format!(
        "evaluation.microbatches is {wanted}: they need {needed} held-out samples, the text gives {samples}"
    ))
    .hint(format!(
        "set evaluation.microbatches to at most {there}, raise data.held_out_permille, or give more text"
    )))
}
