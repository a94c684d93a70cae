//! `trestle inspect`: what a file or a folder holds, in words or as JSON.
//!
//! Owns how the kinds of file are told apart. May not know how any of them is read.

pub(crate) mod agreement;
pub(crate) mod checkpoint_report;
pub(crate) mod folder_report;
pub(crate) mod ledger_report;
pub(crate) mod log_report;
pub(crate) mod run_report;

use std::path::Path;

use crate::args::InspectArgs;
use crate::failure::Failure;
use crate::inspect::checkpoint_report::CheckpointReport;
use crate::inspect::folder_report::FolderReport;
use crate::inspect::ledger_report::LedgerReport;
use crate::inspect::log_report::LogReport;
use crate::inspect::run_report::RunReport;
use crate::output::{Format, print};
use crate::overrides::assignments;
use crate::run_file::RunFile;

/// Prints what is at a path.
pub(crate) fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let path = args.path.as_path();
    let format = if args.json { Format::Json } else { Format::Words };
    if let Some(folder) = &args.folder {
        if path != Path::new("ledger") {
            let error = format!("`{}` is nothing that can be asked of a run's folder", path.display());
            return Err(Failure::misused(error).hint("ask for the ledger: trestle inspect ledger DIR"));
        }
        return print(&LedgerReport::of(folder)?, format);
    }
    if !path.exists() {
        let hint = "give a run file, a checkpoint, an event log, or the folder of a run";
        return Err(Failure::misused(format!("there is no {}", path.display())).hint(hint));
    }
    match kind(path) {
        Kind::RunFile => print(&RunReport::of(&RunFile::read(path, &assignments(&args.set)?)?)?, format),
        Kind::Checkpoint => print(&CheckpointReport::of(path)?, format),
        Kind::EventLog => print(&LogReport::of(path)?, format),
        Kind::Folder => print(&FolderReport::of(path)?, format),
        Kind::Other => {
            let error = format!("{} is neither a run file, a checkpoint nor an event log", path.display());
            Err(Failure::misused(error).hint("their names end in .toml, .safetensors and .jsonl"))
        }
    }
}

enum Kind {
    RunFile,
    Checkpoint,
    EventLog,
    Folder,
    Other,
}

fn kind(path: &Path) -> Kind {
    if path.is_dir() {
        return Kind::Folder;
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // Older files of a log end in a number: events.jsonl.1
    if name.ends_with(".jsonl") || name.contains(".jsonl.") {
        return Kind::EventLog;
    }
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("toml") => Kind::RunFile,
        Some("safetensors") => Kind::Checkpoint,
        Some(_) | None => Kind::Other,
    }
}
