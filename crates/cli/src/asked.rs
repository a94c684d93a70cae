//! What is asked about a run on a fleet: the two files, and what of them is changed.
//!
//! Owns their reading. May not know what is answered.

use std::path::Path;

use trestle_fleet::file::Fleet;
use trestle_protocol::ids::Digest;
use trestle_protocol::spec::RunSpec;

use crate::args::PlanArgs;
use crate::failure::Failure;
use crate::run_file::RunFile;
use crate::run_file::source::Override;

/// A field and its value, of the run file or, as `fleet.FIELD` or `fleet.GROUP.FIELD`, of the fleet file.
pub(crate) type Change = (String, String);

/// A run, a fleet, and what of them is changed.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// The run file.
    pub(crate) run_file: &'a Path,
    /// The fleet file.
    pub(crate) fleet: &'a Path,
    /// `--set`.
    pub(crate) set: &'a [String],
    /// `--replicas`.
    pub(crate) replicas: Option<u64>,
}

/// Reads what an option assigns.
pub(crate) fn assignment(option: &str, text: &str) -> Result<Change, Failure> {
    let (field, value) = text.split_once('=').ok_or_else(|| {
        let error = format!("`{option} {text}` is no assignment");
        Failure::misused(error)
            .hint(format!("write {option} sync.inner_steps=50 or {option} fleet.up=100Mbit"))
    })?;
    Ok((field.trim().into(), value.trim().into()))
}

impl<'a> Asked<'a> {
    /// Takes it from the words of `plan`.
    pub(crate) fn of(args: &'a PlanArgs) -> Self {
        Self { run_file: &args.run_file, fleet: &args.fleet, set: &args.set, replicas: args.replicas }
    }

    /// Reads run and fleet, with further changes.
    ///
    /// # Errors
    /// A file that is refused, or a field that cannot be that.
    pub(crate) fn read(&self, changes: &[Change]) -> Result<(RunSpec, Fleet), Failure> {
        let mut all: Vec<Change> = Vec::new();
        for text in self.set {
            all.push(assignment("--set", text)?);
        }
        all.extend(self.replicas.map(|replicas| ("pipeline.replicas".into(), replicas.to_string())));
        all.extend_from_slice(changes);
        let mut fleet = self.read_fleet()?;
        let mut of_run = Vec::new();
        for (field, value) in &all {
            match field.strip_prefix("fleet.") {
                Some(field) => fleet.set(field, value).map_err(|error| {
                    Failure::misused(format!("`fleet.{field}={value}`: {error}"))
                        .hint("docs/plan.md lists the fields")
                })?,
                None => of_run.push(Override::parse(&format!("{field}={value}"))?),
            }
        }
        let run_file = RunFile::read(self.run_file, &of_run)?;
        let Some(vocabulary) = run_file.vocabulary() else {
            let error = format!("`model.vocabulary` of run `{}` is left to the tokenizer", run_file.name());
            return Err(Failure::misused(error).hint("say it here: --set model.vocabulary=128256"));
        };
        Ok((run_file.spec(Digest([0; 32]), vocabulary)?, fleet))
    }

    fn read_fleet(&self) -> Result<Fleet, Failure> {
        let name = self.fleet.display().to_string();
        let text = std::fs::read_to_string(self.fleet).map_err(|error| {
            let hint = "docs/plan.md describes fleet files; fleets/ has some";
            Failure::misused(format!("cannot read {name}: {error}")).hint(hint)
        })?;
        let folder = self.fleet.parent().unwrap_or(Path::new("."));
        let trace =
            |path: &str| std::fs::read_to_string(folder.join(path)).map_err(|error| error.to_string());
        let parsed = Fleet::parse(&name, &text, &trace);
        parsed.map_err(|error| Failure::misused(&error).hint(error.hint()))
    }
}
