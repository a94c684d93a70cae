//! A real model behind the seam of the simulator: one engine for each worker, on the processor, in one process.
//!
//! Owns engines, data and checkpoints of a simulation. Knows nothing of time, queues or links.

use crate::agreement::carry_out;
use crate::compute::{Compute, Fault, Handover, Imported, Updated, Work};
use crate::descent::Descent;
use crate::disk::Disk;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use tempfile::TempDir;
use trestle_data::{Dataset, Microbatch};
use trestle_model::device::{DeviceKind, threads};
use trestle_model::engine::Engine;
use trestle_model::input::{Duty as Trains, Mode, StageInput, StageOutput};
use trestle_model::outer::{Exchanged, Layout, Outer};
use trestle_protocol::agenda::Agenda;
use trestle_protocol::ids::{Digest, InnerStep, MicrobatchId, OuterStep, Split};
use trestle_protocol::message::Start;
use trestle_protocol::plan::Place;
use trestle_protocol::port::{Duty, Output};
use trestle_protocol::spec::{DataSource, RunSpec};
use trestle_protocol::sync::task::{SyncDone, SyncTask};
use trestle_protocol::time::Span;
use trestle_settings::data::{LocalData, data_config};
use trestle_settings::model::{engine_config, outer_config};

/// What the workers of a simulation share: the run, its text, and the disk.
pub struct World {
    spec: RunSpec,
    dataset: Dataset,
    folder: TempDir,
}

/// The compute of one worker.
pub struct RealModel {
    world: Rc<World>,
    seat: Option<Seat>,
}

struct Seat {
    place: Place,
    engine: Engine,
    /// The state of the outer steps, where the stage has several replicas.
    outer: Option<Outer>,
    /// The engine's version at the last snapshot.
    snapshot: u64,
    /// Microbatches over which the gradient of the last snapshot was averaged.
    averaged: u32,
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

    /// Returns where one of a place's two files of a checkpoint lies on a disk: the engine's, or that of the outer steps.
    fn checkpoint(&self, disk: &Disk, place: Place, step: InnerStep, what: &str) -> PathBuf {
        let (Place { stage, replica }, owner) = (place, disk.owner);
        let name = format!("peer-{owner}-stage-{stage}-replica-{replica}-step-{step}-{what}.safetensors");
        self.folder.path().join(name)
    }
}

impl RealModel {
    /// Makes the compute of a worker that holds nothing yet.
    pub fn new(world: Rc<World>) -> Self {
        Self { world, seat: None }
    }

    fn seat(&mut self) -> &mut Seat {
        self.seat.as_mut().expect("the core loads before it computes")
    }

    fn engine(&mut self) -> &mut Engine {
        &mut self.seat().engine
    }
}

impl Seat {
    fn new(world: &World, place: Place) -> Result<Self, Fault> {
        let held = usize::from(place.stage.0);
        let config = engine_config(&world.spec, held..held + 1, DeviceKind::Cpu);
        let engine = Engine::new(config).map_err(|error| fault(&error))?;
        let outer = match outer_config(&world.spec) {
            None => None,
            Some(config) => {
                let layout = Layout::new(&engine.exchange_shapes());
                let weights = layout.gather(&engine.masters().map_err(|error| fault(&error))?);
                Some(Outer::new(config, layout, weights).map_err(|error| fault(&error))?)
            }
        };
        Ok(Self { place, engine, outer, snapshot: 0, averaged: 0 })
    }

    fn load(
        &mut self,
        world: &World,
        disk: &Disk,
        (step, digest, of): (InnerStep, Digest, Place),
    ) -> Result<(), Fault> {
        let path = world.checkpoint(disk, of, step, ENGINE);
        let mut found = trestle_model::checkpoint::inspect(&path).map_err(|error| fault(&error))?.digest;
        if let Some(outer) = &mut self.outer {
            let beside = world.checkpoint(disk, of, step, OUTER);
            let other = trestle_model::checkpoint::inspect(&beside).map_err(|error| fault(&error))?.digest;
            found = both(found, other);
            outer.load(&beside).map_err(|error| fault(&error))?;
            if of != self.place {
                outer.forget_owed();
            }
        }
        if Digest(found) != digest {
            let Place { stage, replica } = of;
            return Err(Fault(format!(
                "checkpoint of stage {stage}, replica {replica} at step {step} has not digest {digest}"
            )));
        }
        self.engine.load(&path).map_err(|error| fault(&error))?;
        if of == self.place { Ok(()) } else { self.go_on_from_anchor() }
    }

    fn save(&self, world: &World, disk: &mut Disk, step: InnerStep) -> Result<Digest, Fault> {
        let labels = BTreeMap::from([("step".to_owned(), step.to_string())]);
        let path = world.checkpoint(disk, self.place, step, ENGINE);
        let mut digest = self.engine.save(&path, &labels).map_err(|error| fault(&error))?;
        if let Some(outer) = &self.outer {
            let path = world.checkpoint(disk, self.place, step, OUTER);
            digest = both(digest, outer.save(&path, &labels).map_err(|error| fault(&error))?);
        }
        disk.write(self.place, step, Digest(digest), Bytes::new());
        Ok(Digest(digest))
    }

    fn snapshot(&mut self, step: OuterStep, microbatches: u32) -> Result<(), Fault> {
        let outer = self.outer.as_mut().expect("only replicas exchange");
        let elements = outer.layout().elements();
        let values = match (outer.config().exchanged, microbatches) {
            (Exchanged::Weights, _) => {
                outer.layout().gather(&self.engine.masters().map_err(|error| fault(&error))?)
            }
            (Exchanged::Gradients, 0) => vec![0.0; elements],
            (Exchanged::Gradients, _) => {
                let mean = self.engine.gradient_mean(microbatches).map_err(|error| fault(&error))?;
                outer.layout().gather(&mean)
            }
        };
        outer.begin(step.0, values);
        (self.snapshot, self.averaged) = (self.engine.version(), microbatches);
        Ok(())
    }

    fn adopt(&mut self) -> Result<(), Fault> {
        let outer = self.outer.as_mut().expect("only replicas exchange");
        let adopted = match outer.config().exchanged {
            Exchanged::Gradients => {
                let mean = outer.adopt(None);
                self.engine.set_gradient_mean(&outer.layout().scatter(&mean), self.averaged.max(1))
            }
            Exchanged::Weights => {
                let trained = self.engine.version() != self.snapshot;
                let masters =
                    trained.then(|| self.engine.masters()).transpose().map_err(|error| fault(&error))?;
                let weights = outer.adopt(masters.map(|masters| outer.layout().gather(&masters)));
                self.engine.set_masters(&outer.layout().scatter(&weights))
            }
        };
        adopted.map_err(|error| fault(&error))
    }

    /// Goes on from the weights that the replicas have agreed on.
    fn go_on_from_anchor(&mut self) -> Result<(), Fault> {
        match &self.outer {
            Some(outer) if outer.config().exchanged == Exchanged::Weights => {
                let weights = outer.layout().scatter(outer.anchor());
                self.engine.set_masters(&weights).map_err(|error| fault(&error))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn exchanges_gradients(&self) -> bool {
        self.outer.as_ref().is_some_and(|outer| outer.config().exchanged == Exchanged::Gradients)
    }
}

/// The names of a checkpoint's two files.
const ENGINE: &str = "engine";
const OUTER: &str = "outer";

fn both(engine: [u8; 32], outer: [u8; 32]) -> [u8; 32] {
    Digest::of(&[engine, outer].concat()).0
}

impl Compute for RealModel {
    fn load(&mut self, place: Place, start: Start, disk: &Disk) -> Result<(), Fault> {
        let mut seat = Seat::new(&self.world, place)?;
        match start {
            Start::Fresh => {}
            Start::Checkpoint { step, digest, of } => seat.load(&self.world, disk, (step, digest, of))?,
            Start::Replicas { .. } => {
                return Err(Fault("weights of other replicas are not on this disk".into()));
            }
        }
        self.seat = Some(seat);
        Ok(())
    }

    fn export(&mut self, outer: OuterStep) -> Result<Handover, Fault> {
        let seat = self.seat();
        let state = seat.outer.as_ref().expect("only replicas hand over");
        // Behind the step that it is of, so that who takes it over can say where it stands.
        let agreed = [&outer.0.to_le_bytes()[..], &state.export_agreed()].concat();
        let own = seat.engine.export_moments().map_err(|error| fault(&error))?;
        Ok(Handover { agreed: agreed.into(), own: own.into(), chunks: None })
    }

    fn import(&mut self, place: Place, state: &Handover, digest: Digest) -> Result<Imported, Fault> {
        let mut seat = Seat::new(&self.world, place)?;
        let outer = seat.outer.as_mut().expect("only replicas take over");
        let unfit = |words: String| Ok(Imported::Unfit(words));
        let Some((step, agreed)) = state.agreed.split_at_checked(8) else {
            return unfit("the state is cut".into());
        };
        if let Err(error) = outer.import_agreed(agreed) {
            return unfit(error.to_string());
        }
        if Digest(outer.weights_digest()) != digest {
            return unfit("the weights have another digest than was agreed".into());
        }
        if let Err(error) = seat.engine.import_moments(&state.own) {
            return unfit(error.to_string());
        }
        seat.go_on_from_anchor()?;
        let step = OuterStep(u64::from_le_bytes(step.try_into().expect("eight bytes")));
        let border = Agenda::new(&self.world.spec).outer_border(step);
        self.seat = Some(seat);
        Ok(Imported::Held(border.unwrap_or_default()))
    }

    fn enter(&mut self, step: InnerStep) {
        self.engine().set_version(step.0);
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

    fn backward(
        &mut self,
        work: Work<'_>,
        gradient: Option<&Bytes>,
        duty: Duty,
    ) -> Result<Option<Bytes>, Fault> {
        let text = self.world.text(work.microbatch.split, work.data_index)?;
        let gradient = gradient.map(|bytes| &bytes[..]);
        let targets = Some(&text.targets[..]);
        let trains = match duty {
            Duty::Train => Trains::Train,
            Duty::Ghost => Trains::Ghost,
        };
        let gradient =
            self.engine().backward(number(work.microbatch), input(&text, &work), targets, gradient, trains);
        Ok(gradient.map_err(|error| fault(&error))?.map(Bytes::from))
    }

    fn discard(&mut self, microbatch: MicrobatchId) {
        self.engine().discard(number(microbatch));
    }

    fn step(&mut self, microbatches: u32) -> Result<Updated, Fault> {
        let seat = self.seat();
        let report = match (microbatches, seat.exchanges_gradients()) {
            (0, false) => seat.engine.idle(),
            // The mean of all is there even where nothing was trained.
            (_, _) => seat.engine.step(microbatches.max(1)),
        };
        let report = report.map_err(|error| fault(&error))?;
        Ok(Updated { gradient_norm: report.gradient_norm, learning_rate: report.learning_rate })
    }

    fn save(&mut self, step: InnerStep, disk: &mut Disk) -> Result<Digest, Fault> {
        let world = Rc::clone(&self.world);
        self.seat().save(&world, disk, step)
    }

    fn descent(&self) -> Option<&Descent> {
        None
    }

    fn agree(&mut self, task: SyncTask) -> Result<(SyncDone, u64), Fault> {
        let (seat, took) = (self.seat(), Span(0));
        let bytes = seat.outer.as_ref().map_or(0, |outer| 4 * outer.layout().elements() as u64);
        match task {
            SyncTask::Snapshot { outer, microbatches } => {
                seat.snapshot(outer, microbatches)?;
                Ok((SyncDone::Snapshotted { outer, took }, bytes))
            }
            SyncTask::Adopt { outer } => {
                seat.adopt()?;
                Ok((SyncDone::Adopted { outer, took }, bytes))
            }
            task @ (SyncTask::Encode { .. }
            | SyncTask::Reduce { .. }
            | SyncTask::Stage { .. }
            | SyncTask::Commit { .. }
            | SyncTask::Restore { .. }) => {
                carry_out(seat.outer.as_mut().expect("only replicas exchange"), task)
            }
        }
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
