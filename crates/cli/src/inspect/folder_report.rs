//! The folder of a run in words: which run, what can be continued from, and what its coordinator logged.
//!
//! Owns the report. May not know how folders are laid out beyond what the node says.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use trestle_node::directory::steps_of;
use trestle_protocol::ids::StageId;

use crate::failure::Failure;
use crate::inspect::agreement::AgreementReport;
use crate::inspect::log_report::{COORDINATOR_LOG, LogReport};
use crate::run;

/// What the folder of a run holds.
#[derive(Debug, Serialize)]
pub(crate) struct FolderReport {
    run: String,
    digest: String,
    steps: u64,
    /// The steps for which each stage has a checkpoint here.
    checkpoints: Vec<Vec<u64>>,
    log: Option<LogReport>,
    agreement: Option<AgreementReport>,
}

impl FolderReport {
    /// Reads the folder of a run.
    ///
    /// # Errors
    /// It is no run's folder, or its log cannot be read.
    pub(crate) fn of(folder: &Path) -> Result<Self, Failure> {
        let (spec, _) = run::kept(folder)?;
        let log = folder.join(COORDINATOR_LOG);
        let steps = |stage| steps_of(folder, StageId(stage)).into_iter().map(|step| step.0).collect();
        Ok(Self {
            run: spec.name.clone(),
            digest: spec.digest().to_hex(),
            steps: spec.training.steps,
            checkpoints: (0..spec.stages()).map(steps).collect(),
            log: if log.is_file() { Some(LogReport::of(&log)?) } else { None },
            agreement: AgreementReport::of(folder)?,
        })
    }
}

impl fmt::Display for FolderReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "run          {}, {} steps", self.run, self.steps)?;
        writeln!(f, "run digest   {}", self.digest)?;
        for (stage, steps) in self.checkpoints.iter().enumerate() {
            let steps: Vec<String> = steps.iter().map(u64::to_string).collect();
            let steps =
                if steps.is_empty() { "none here".into() } else { format!("step {}", steps.join(", ")) };
            writeln!(f, "checkpoints  stage {stage}: {steps}")?;
        }
        match &self.log {
            Some(log) => write!(f, "\n{log}")?,
            None => writeln!(f, "log          none")?,
        }
        self.agreement.iter().try_for_each(|agreement| write!(f, "{agreement}"))
    }
}
