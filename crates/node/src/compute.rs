//! The compute thread: the one place of a process where tensors are made.
//!
//! Owns the engine and the data set. Carries out one job after another and decides nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use trestle_data::{Dataset, Microbatch};
use trestle_model::checkpoint;
use trestle_model::device::DeviceKind;
use trestle_model::engine::Engine;
use trestle_model::input::{Duty, Mode, StageInput, StageOutput};
use trestle_protocol::agenda::Agenda;
use trestle_protocol::ids::{Digest, InnerStep, MicrobatchId, OuterStep, Split};
use trestle_protocol::message::Start;
use trestle_protocol::plan::Place;
use trestle_protocol::port::{Input, Output, StoredItem, Took};
use trestle_protocol::spec::RunSpec;
use trestle_protocol::sync::task::SyncDone;
use trestle_protocol::time::Span;

use crate::agreement::{Agreement, Shelf};
use crate::directory::Directory;
use crate::words::with_hint;
use trestle_settings::data::{LocalData, data_config};
use trestle_settings::model::engine_config;

/// Checkpoints kept of a stage: the one that the coordinator's state names, and the one being written.
const CHECKPOINTS_KEPT: usize = 2;

/// Something to compute; each is answered by one input of the core.
#[derive(Debug)]
pub(crate) enum Job {
    Load { place: Place, start: Start },
    Forward { microbatch: MicrobatchId, data_index: u64, input: Option<Bytes> },
    Backward { microbatch: MicrobatchId, data_index: u64, input: Option<Bytes>, gradient: Option<Bytes> },
    Step { microbatches: u32 },
    Save { step: InnerStep },
    Snapshot { outer: OuterStep },
    Adopt { outer: OuterStep },
}

/// What the thread works with.
#[derive(Clone, Debug)]
pub(crate) struct ComputeConfig {
    pub(crate) spec: RunSpec,
    pub(crate) device: DeviceKind,
    pub(crate) local: LocalData,
    pub(crate) directory: Directory,
    /// What the thread of the outer steps works on too.
    pub(crate) shelf: Arc<Shelf>,
}

/// Starts the thread. It ends when the sender of jobs is dropped.
pub(crate) fn start(
    config: ComputeConfig,
    answer: impl Fn(Input) + Send + 'static,
) -> std::io::Result<mpsc::Sender<Job>> {
    let (jobs, queue) = mpsc::channel();
    thread::Builder::new().name("compute".into()).spawn(move || {
        let mut computer = Computer { config, seat: None };
        for job in queue {
            let input = computer.run(job).unwrap_or_else(|reason| Input::Faulted { reason });
            answer(input);
        }
    })?;
    Ok(jobs)
}

struct Computer {
    config: ComputeConfig,
    seat: Option<Seat>,
}

struct Seat {
    place: Place,
    engine: Engine,
    /// `None` where the stage has one replica.
    agreement: Option<Agreement>,
    /// The first stage reads inputs, the last targets; the others read no text.
    dataset: Option<Dataset>,
    reads: Reads,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Reads {
    inputs: bool,
    targets: bool,
}

impl Computer {
    fn run(&mut self, job: Job) -> Result<Input, String> {
        let began = Instant::now();
        if let Job::Load { place, start } = job {
            let seat = load(&self.config, place, start)?;
            self.seat = Some(seat);
            let step = match start {
                Start::Fresh => InnerStep(0),
                Start::Checkpoint { step, .. } => step,
            };
            return Ok(Input::Loaded { step, took: took(began, Duration::ZERO) });
        }
        let seat = self.seat.as_mut().expect("the core loads before it computes");
        let size = self.config.spec.pipeline.microbatch_size as usize;
        match job {
            Job::Load { .. } => unreachable!("handled above"),
            Job::Forward { microbatch, data_index, input } => {
                seat.forward(began, microbatch, data_index, input.as_ref(), size)
            }
            Job::Backward { microbatch, data_index, input, gradient } => {
                let text = seat.text(microbatch.split, data_index, size)?;
                let (targets, input) = (seat.targets(&text), stage_input(&text, input.as_ref()));
                let gradient = seat
                    .engine
                    .backward(microbatch.index, input, targets, gradient.as_deref(), Duty::Train)
                    .map_err(|error| with_hint(&error, error.hint()))?;
                let gradient = gradient.map(Bytes::from);
                Ok(Input::Backwarded { microbatch, gradient, took: seat.took(began) })
            }
            Job::Step { microbatches } => {
                let report =
                    seat.engine.step(microbatches).map_err(|error| with_hint(&error, error.hint()))?;
                Ok(Input::Stepped {
                    gradient_norm: report.gradient_norm,
                    learning_rate: report.learning_rate,
                    took: seat.took(began),
                    wire_bytes_total: 0,
                })
            }
            Job::Save { step } => {
                let digest = seat.save(&self.config, step)?;
                let item = StoredItem::Checkpoint { step, digest };
                Ok(Input::Stored { item, took: seat.took(began) })
            }
            Job::Snapshot { outer } => {
                let agreement = seat.agreement.as_mut().expect("only replicas exchange");
                agreement.snapshot(outer, &mut seat.engine)?;
                Ok(Input::Sync(SyncDone::Snapshotted { outer, took: seat.took(began).total }))
            }
            Job::Adopt { outer } => {
                let agreement = seat.agreement.as_mut().expect("only replicas exchange");
                agreement.adopt(&mut seat.engine)?;
                Ok(Input::Sync(SyncDone::Adopted { outer, took: seat.took(began).total }))
            }
        }
    }
}

impl Seat {
    fn forward(
        &mut self,
        began: Instant,
        microbatch: MicrobatchId,
        data_index: u64,
        input: Option<&Bytes>,
        size: usize,
    ) -> Result<Input, String> {
        let text = self.text(microbatch.split, data_index, size)?;
        let mode = match microbatch.split {
            Split::Train => Mode::Train,
            Split::HeldOut => Mode::Evaluate,
        };
        let (targets, input) = (self.targets(&text), stage_input(&text, input));
        let output = self
            .engine
            .forward(microbatch.index, input, targets, mode)
            .map_err(|error| with_hint(&error, error.hint()))?;
        let output = match output {
            StageOutput::Boundary(bytes) => Output::Boundary(bytes.into()),
            StageOutput::Loss(loss) => Output::Loss(loss),
        };
        Ok(Input::Forwarded { microbatch, output, took: self.took(began) })
    }

    fn text(&self, split: Split, data_index: u64, size: usize) -> Result<Microbatch, String> {
        let Some(dataset) = &self.dataset else {
            return Ok(Microbatch { inputs: Vec::new(), targets: Vec::new() });
        };
        let split = match split {
            Split::Train => trestle_data::Split::Train,
            Split::HeldOut => trestle_data::Split::HeldOut,
        };
        dataset.microbatch(split, data_index, size).map_err(|error| with_hint(&error, Some(error.hint())))
    }

    fn targets<'a>(&self, text: &'a Microbatch) -> Option<&'a [u32]> {
        self.reads.targets.then_some(&text.targets[..])
    }

    fn took(&mut self, began: Instant) -> Took {
        took(began, self.engine.take_codec_time())
    }

    fn save(&self, config: &ComputeConfig, step: InnerStep) -> Result<Digest, String> {
        let path = config
            .directory
            .room_for_checkpoint(self.place, step)
            .map_err(|error| with_hint(&error, Some(error.hint())))?;
        let labels = BTreeMap::from([
            ("run".to_owned(), config.spec.digest().to_hex()),
            ("stage".to_owned(), self.place.stage.to_string()),
            ("replica".to_owned(), self.place.replica.to_string()),
            ("step".to_owned(), step.to_string()),
            ("next_microbatch".to_owned(), {
                let agenda = Agenda::new(&config.spec);
                agenda.training_of(step).start.to_string()
            }),
            ("data_manifest".to_owned(), config.spec.data.manifest.to_hex()),
        ]);
        let digest = self.engine.save(&path, &labels).map_err(|error| with_hint(&error, error.hint()))?;
        let outer = config.directory.outer(self.place, step);
        let digest = match &self.agreement {
            Some(agreement) => both(digest, agreement.save(&outer, &labels)?),
            None => Digest(digest),
        };
        config
            .directory
            .prune(self.place, CHECKPOINTS_KEPT)
            .map_err(|error| with_hint(&error, Some(error.hint())))?;
        Ok(digest)
    }
}

/// Names two files that belong together.
fn both(checkpoint: [u8; 32], outer: [u8; 32]) -> Digest {
    Digest::of(&[checkpoint, outer].concat())
}

fn load(config: &ComputeConfig, place: Place, start: Start) -> Result<Seat, String> {
    let (spec, stage) = (&config.spec, place.stage);
    let reads = Reads { inputs: stage.0 == 0, targets: stage.0 + 1 == spec.stages() };
    let dataset = if reads.inputs || reads.targets { Some(open_data(spec, &config.local)?) } else { None };
    let held = usize::from(stage.0)..usize::from(stage.0) + 1;
    let mut engine = Engine::new(engine_config(spec, held, config.device))
        .map_err(|error| with_hint(&error, error.hint()))?;
    let mut outer = None;
    if let Start::Checkpoint { step, digest } = start {
        let path = config.directory.checkpoint(place, step);
        let found = checkpoint::inspect(&path).map_err(|error| with_hint(&error, error.hint()))?;
        let found = if spec.pipeline.replicas > 1 {
            let path = outer.insert(config.directory.outer(place, step));
            let state = checkpoint::inspect(path).map_err(|error| with_hint(&error, error.hint()))?;
            both(found.digest, state.digest)
        } else {
            Digest(found.digest)
        };
        if found != digest {
            return Err(format!(
                "checkpoint {} has digest {found}, the run continues from {digest}",
                path.display()
            ));
        }
        engine.load(&path).map_err(|error| with_hint(&error, error.hint()))?;
    }
    let agreement = Agreement::open(spec, &engine, Arc::clone(&config.shelf), outer.as_deref())?;
    Ok(Seat { place, engine, agreement, dataset, reads })
}

/// Opens the data set of a run and checks that it is the one that all peers read.
pub fn open_data(spec: &RunSpec, local: &LocalData) -> Result<Dataset, String> {
    let config = data_config(spec, local).map_err(|error| with_hint(&error, Some(error.hint())))?;
    let dataset = Dataset::open(&config).map_err(|error| with_hint(&error, Some(error.hint())))?;
    let found = Digest(dataset.manifest().digest);
    if found != spec.data.manifest {
        let expected = spec.data.manifest;
        return Err(format!(
            "the text here gives data manifest {found}, the run has {expected} (hint: every peer that reads text \
             needs the same text and tokenizer)"
        ));
    }
    Ok(dataset)
}

fn stage_input<'a>(text: &'a Microbatch, input: Option<&'a Bytes>) -> StageInput<'a> {
    match input {
        Some(bytes) => StageInput::Boundary(bytes),
        None => StageInput::Tokens(&text.inputs),
    }
}

fn took(began: Instant, serialise: Duration) -> Took {
    Took { total: span(began.elapsed()), serialise: span(serialise) }
}

fn span(duration: Duration) -> Span {
    Span(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}
