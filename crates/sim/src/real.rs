//! A real model behind the seam of the simulator: one engine for each worker, on the processor, in one process.
//!
//! Owns engines, data and checkpoints of a simulation. Knows nothing of time, queues or links.

use crate::compute::{Compute, Fault, Updated, Work};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use tempfile::TempDir;
use trestle_data::{Dataset, Microbatch};
use trestle_model::device::{DeviceKind, threads};
use trestle_model::engine::Engine;
use trestle_model::input::{Mode, StageInput, StageOutput};
use trestle_protocol::ids::{Digest, InnerStep, MicrobatchId, Split, StageId};
use trestle_protocol::message::Start;
use trestle_protocol::port::Output;
use trestle_protocol::spec::{DataSource, RunSpec};
use trestle_settings::data::{LocalData, data_config};
use trestle_settings::model::engine_config;

/// What the workers of a simulation share: the run, its text, and the disk.
pub struct World {
    spec: RunSpec,
    dataset: Dataset,
    folder: TempDir,
}

/// The compute of one worker.
pub struct RealModel {
    world: Rc<World>,
    seat: Option<(StageId, Engine)>,
}

impl World {
    /// Opens the data of a run, and completes the spec with its digest.
    ///
    /// # Errors
    /// A model or data that cannot be.
    pub fn open(mut spec: RunSpec) -> Result<Rc<Self>, Fault> {
        // One thread, so that no sum depends on how many the machine has.
        threads(1).map_err(|error| fault(&error))?;
        if spec.data.source == DataSource::Local {
            return Err(Fault("a simulation reads the generated corpus only".into()));
        }
        let with_hint = |error: trestle_data::DataError| Fault(format!("{error} (hint: {})", error.hint()));
        let config = data_config(&spec, &LocalData::default()).map_err(|error| fault(&error))?;
        let dataset = Dataset::open(&config).map_err(with_hint)?;
        dataset.check_vocabulary(spec.model.vocabulary).map_err(with_hint)?;
        spec.data.manifest = Digest(dataset.manifest().digest);
        let folder = tempfile::tempdir().map_err(|error| fault(&error))?;
        Ok(Rc::new(Self { spec, dataset, folder }))
    }

    /// Returns the run, with the digest of its data.
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }

    pub(crate) fn text(&self, split: Split, data_index: u64) -> Result<Microbatch, Fault> {
        let split = match split {
            Split::Train => trestle_data::Split::Train,
            Split::HeldOut => trestle_data::Split::HeldOut,
        };
        let size = self.spec.pipeline.microbatch_size as usize;
        self.dataset.microbatch(split, data_index, size).map_err(|error| fault(&error))
    }

    fn checkpoint(&self, stage: StageId, step: InnerStep) -> PathBuf {
        self.folder.path().join(format!("stage-{stage}-step-{step}.safetensors"))
    }
}

impl RealModel {
    /// Makes the compute of a worker that holds nothing yet.
    pub fn new(world: Rc<World>) -> Self {
        Self { world, seat: None }
    }

    fn engine(&mut self) -> &mut Engine {
        &mut self.seat.as_mut().expect("the core loads before it computes").1
    }
}

impl Compute for RealModel {
    fn load(&mut self, stage: StageId, start: Start) -> Result<(), Fault> {
        let held = usize::from(stage.0);
        let config = engine_config(&self.world.spec, held..held + 1, DeviceKind::Cpu);
        let mut engine = Engine::new(config).map_err(|error| fault(&error))?;
        if let Start::Checkpoint { step, digest } = start {
            let path = self.world.checkpoint(stage, step);
            let found = trestle_model::checkpoint::inspect(&path).map_err(|error| fault(&error))?.digest;
            if Digest(found) != digest {
                return Err(Fault(format!(
                    "checkpoint of stage {stage} at step {step} has not digest {digest}"
                )));
            }
            engine.load(&path).map_err(|error| fault(&error))?;
        }
        self.seat = Some((stage, engine));
        Ok(())
    }

    fn forward(&mut self, work: Work<'_>) -> Result<Output, Fault> {
        let text = self.world.text(work.microbatch.split, work.data_index)?;
        let output = self
            .engine()
            .forward(number(work.microbatch), input(&text, &work), Some(&text.targets), mode(work.microbatch))
            .map_err(|error| fault(&error))?;
        Ok(match output {
            StageOutput::Boundary(bytes) => Output::Boundary(bytes.into()),
            StageOutput::Loss(loss) => Output::Loss(loss),
        })
    }

    fn backward(&mut self, work: Work<'_>, gradient: Option<&Bytes>) -> Result<Option<Bytes>, Fault> {
        let text = self.world.text(work.microbatch.split, work.data_index)?;
        let gradient = gradient.map(|bytes| &bytes[..]);
        let targets = Some(&text.targets[..]);
        let gradient =
            self.engine().backward(number(work.microbatch), input(&text, &work), targets, gradient);
        Ok(gradient.map_err(|error| fault(&error))?.map(Bytes::from))
    }

    fn step(&mut self, microbatches: u32) -> Result<Updated, Fault> {
        let report = self.engine().step(microbatches).map_err(|error| fault(&error))?;
        Ok(Updated { gradient_norm: report.gradient_norm, learning_rate: report.learning_rate })
    }

    fn save(&mut self, step: InnerStep) -> Result<Digest, Fault> {
        let world = Rc::clone(&self.world);
        let (stage, engine) = self.seat.as_ref().expect("the core loads before it saves");
        let labels = BTreeMap::from([("step".to_owned(), step.to_string())]);
        engine.save(&world.checkpoint(*stage, step), &labels).map(Digest).map_err(|error| fault(&error))
    }
}

fn fault(error: &dyn std::error::Error) -> Fault {
    Fault(error.to_string())
}

pub(crate) fn mode(microbatch: MicrobatchId) -> Mode {
    match microbatch.split {
        Split::Train => Mode::Train,
        Split::HeldOut => Mode::Evaluate,
    }
}

fn number(microbatch: MicrobatchId) -> u64 {
    microbatch.index
}

fn input<'a>(text: &'a Microbatch, work: &Work<'a>) -> StageInput<'a> {
    match work.input {
        Some(bytes) => StageInput::Boundary(bytes),
        None => StageInput::Tokens(&text.inputs),
    }
}
