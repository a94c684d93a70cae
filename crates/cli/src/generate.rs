//! `trestle generate`: the stages of a run put together into one model, which continues a text.
//!
//! Owns finding the checkpoints that belong together. May not know peers.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use trestle_model::device::DeviceKind;
use trestle_model::engine::Engine;
use trestle_model::error::ModelError;
use trestle_node::directory::{checkpoint_path, steps_of};
use trestle_protocol::ids::{InnerStep, StageId};
use trestle_protocol::spec::RunSpec;
use trestle_settings::model::engine_config;

use crate::args::GenerateArgs;
use crate::device::{cores, prepare};
use crate::failure::Failure;
use crate::run::kept;

/// A whole model in this process.
pub(crate) struct Whole {
    engine: Engine,
}

impl Whole {
    /// Loads the latest step for which every stage of a run has a checkpoint here.
    pub(crate) fn load(spec: &RunSpec, directory: &Path, device: DeviceKind) -> Result<Self, Failure> {
        let step = latest_step(spec, directory).ok_or_else(|| {
            Failure::failed(format!("{} has no checkpoint of all stages", directory.display()))
                .hint("checkpoints are written at borders (checkpoint.every) and at the end")
        })?;
        let paths: Vec<PathBuf> =
            (0..spec.stages()).map(|stage| checkpoint_path(directory, StageId(stage), step)).collect();
        let mut engine = Engine::new(engine_config(spec, 0..usize::from(spec.stages()), device))
            .map_err(|e| failed(&e))?;
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        engine.load_weights(&paths).map_err(|error| {
            let failure = Failure::failed(&error);
            match error.hint() {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        })?;
        Ok(Self { engine })
    }

    /// Continues a text.
    pub(crate) fn generate(
        &mut self,
        prompt: &[u32],
        tokens: usize,
        temperature: f64,
        seed: u64,
    ) -> Result<Vec<u32>, Failure> {
        self.engine.generate(prompt, tokens, temperature, seed).map_err(|error| failed(&error))
    }
}

/// Runs the command.
pub(crate) fn generate(args: &GenerateArgs) -> Result<(), Failure> {
    let device = prepare(&args.device.device, args.device.threads.map_or_else(cores, usize::from))?;
    let (spec, local) = kept(&args.path)?;
    let kind = match &local.tokenizer {
        Some(path) => trestle_data::TokenizerKind::File(path.clone()),
        None => trestle_data::TokenizerKind::Bytes,
    };
    let tokenizer =
        trestle_data::Tokenizer::open(&kind).map_err(|error| Failure::failed(&error).hint(error.hint()))?;
    let mut whole = Whole::load(&spec, &args.path, device)?;
    let prompt =
        tokenizer.encode(&args.prompt).map_err(|error| Failure::failed(&error).hint(error.hint()))?;
    if prompt.is_empty() {
        return Err(Failure::misused("the prompt is empty").hint("give a text with `--prompt`"));
    }
    let tokens = whole.generate(&prompt, args.tokens as usize, args.temperature, args.seed)?;
    let text = format!("{}{}\n", args.prompt, tokenizer.decode(&tokens));
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::failed(format!("cannot write the text: {error}")))
}

fn latest_step(spec: &RunSpec, directory: &Path) -> Option<InnerStep> {
    let mut common: Option<BTreeSet<InnerStep>> = None;
    for stage in 0..spec.stages() {
        let steps: BTreeSet<_> = steps_of(directory, StageId(stage)).into_iter().collect();
        common = Some(match common {
            None => steps,
            Some(common) => common.intersection(&steps).copied().collect(),
        });
    }
    common?.last().copied()
}

fn failed(error: &ModelError) -> Failure {
    let failure = Failure::failed(error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
