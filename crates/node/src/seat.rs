//! A place of the plan, held: its engine, its text, and what its outer steps go on from.
//!
//! Owns how a seat is taken (from the seed, from files, from what other replicas sent), what is computed in it, and how it is
//! saved and handed on. Knows nothing of threads, messages or time limits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use trestle_data::{Dataset, Microbatch};
use trestle_model::engine::Engine;
use trestle_model::handover::HandoverError;
use trestle_model::input::{self, Mode, StageInput, StageOutput};
use trestle_protocol::agenda::Agenda;
use trestle_protocol::ids::{Digest, InnerStep, MicrobatchId, OuterStep, Split};
use trestle_protocol::message::Start;
use trestle_protocol::pipeline::checkpoints_kept;
use trestle_protocol::plan::Place;
use trestle_protocol::port::{Duty, Input, Output, StoredItem, Took};
use trestle_protocol::spec::RunSpec;
use trestle_protocol::sync::blob::Blob;
use trestle_protocol::sync::task::SyncDone;
use trestle_protocol::time::Span;
use trestle_settings::data::{LocalData, data_config};
use trestle_settings::model::engine_config;

use crate::agreement::{Agreement, Debts, Origin};
use crate::held;
use crate::job::{ComputeConfig, Job};
use crate::words::with_hint;

/// A place of the plan, held.
pub(crate) struct Seat {
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

/// Why a seat cannot be taken with what other replicas sent.
#[derive(Debug)]
pub(crate) enum ImportError {
    /// What they sent does not fit; another replica's may.
    Unfit(String),
    /// Our device or text failed.
    Fault(String),
}

impl From<String> for ImportError {
    fn from(reason: String) -> Self {
        ImportError::Fault(reason)
    }
}

impl From<HandoverError> for ImportError {
    fn from(error: HandoverError) -> Self {
        let words = with_hint(&error, error.hint());
        match error {
            HandoverError::Model(_) => ImportError::Fault(words),
            HandoverError::Length { .. }
            | HandoverError::Magic { .. }
            | HandoverError::Format { .. }
            | HandoverError::Header { .. }
            | HandoverError::Unlike { .. }
            | HandoverError::Count { .. }
            | HandoverError::Number { .. } => ImportError::Unfit(words),
        }
    }
}

impl Seat {
    /// Takes a place with the weights that the seed gives, or with a checkpoint.
    pub(crate) fn load(
        config: &ComputeConfig,
        place: Place,
        start: Start,
    ) -> Result<(Self, InnerStep), String> {
        let (reads, dataset, mut engine) = furnish(config, place)?;
        let (spec, shelf) = (&config.spec, Arc::clone(&config.shelf));
        let (step, files) = match start {
            Start::Fresh => (InnerStep(0), None),
            Start::Checkpoint { step, digest, of } => {
                let files = held::files(&config.directory, spec, of, step);
                let found = files.digest().map_err(|error| with_hint(&error, error.hint()))?;
                if found != digest {
                    return Err(format!(
                        "checkpoint {} has digest {found}, the run continues from {digest}",
                        files.weights.display()
                    ));
                }
                engine.load(&files.weights).map_err(|error| with_hint(&error, error.hint()))?;
                (step, Some((files, if of == place { Debts::Ours } else { Debts::Theirs })))
            }
            Start::Replicas { .. } => {
                return Err("the state of other replicas is imported, not loaded".into());
            }
        };
        let origin = match &files {
            Some((held::Files { outer: Some(file), .. }, debts)) => Origin::File(file, *debts),
            Some((held::Files { outer: None, .. }, _)) | None => Origin::Weights,
        };
        let prepared = Agreement::open(spec, &engine, origin)?;
        if let (Some(prepared), Origin::File(_, Debts::Theirs)) = (&prepared, &origin) {
            // What another replica had trained since the last commit is its own to hand in.
            let agreed = prepared.agreed_weights();
            engine.set_masters(&agreed).map_err(|error| with_hint(&error, error.hint()))?;
        }
        let agreement = prepared.map(|agreement| agreement.shelve(shelf));
        Ok((Seat { place, engine, agreement, dataset, reads }, step))
    }

    /// Takes a place with the state that other replicas sent. Nothing is changed where that does not fit.
    pub(crate) fn import(
        config: &ComputeConfig,
        place: Place,
        (agreed, own): (&Bytes, &Bytes),
        digest: Digest,
    ) -> Result<(Self, InnerStep), ImportError> {
        let (reads, dataset, mut engine) = furnish(config, place)?;
        let Some(mut prepared) = Agreement::open(&config.spec, &engine, Origin::Weights)? else {
            return Err(ImportError::Unfit("a stage of one replica has nobody to take a state from".into()));
        };
        let weights = prepared.import(agreed)?;
        let found = prepared.weights_digest();
        if found != digest {
            return Err(ImportError::Unfit(format!(
                "the weights that were sent have digest {found}, those that were agreed on {digest}"
            )));
        }
        let version = engine.import_moments(own)?;
        engine.set_masters(&weights).map_err(|error| with_hint(&error, error.hint()))?;
        engine.set_version(version);
        let agreement = Some(prepared.shelve(Arc::clone(&config.shelf)));
        Ok((Seat { place, engine, agreement, dataset, reads }, InnerStep(version)))
    }

    /// Carries out what is asked of a seat that is taken.
    pub(crate) fn run(&mut self, config: &ComputeConfig, job: Job) -> Result<Option<Input>, String> {
        let began = Instant::now();
        let size = config.spec.pipeline.microbatch_size as usize;
        Ok(Some(match job {
            Job::Load { .. } | Job::Import { .. } => unreachable!("these take a seat"),
            Job::Forward { microbatch, data_index, input } => {
                self.forward(began, microbatch, data_index, input.as_ref(), size)?
            }
            Job::Backward { microbatch, data_index, input, gradient, duty } => {
                let gradient = self.backward((microbatch, data_index), input, gradient, duty, size)?;
                Input::Backwarded { microbatch, gradient, took: self.took(began) }
            }
            Job::Step { microbatches } => self.step(began, microbatches)?,
            Job::Enter { step } => {
                self.engine.set_version(step.0);
                return Ok(None);
            }
            Job::Discard { microbatch } => {
                self.engine.discard(microbatch.index);
                return Ok(None);
            }
            Job::Save { step } => {
                let digest = self.save(config, step)?;
                Input::Stored { item: StoredItem::Checkpoint { step, digest }, took: self.took(began) }
            }
            Job::Snapshot { outer, microbatches } => {
                let agreement = self.agreement.as_mut().expect("only replicas exchange");
                agreement.snapshot(outer, microbatches, &mut self.engine)?;
                Input::Sync(SyncDone::Snapshotted { outer, took: self.took(began).total })
            }
            Job::Adopt { outer } => {
                let agreement = self.agreement.as_mut().expect("only replicas exchange");
                agreement.adopt(&mut self.engine)?;
                Input::Sync(SyncDone::Adopted { outer, took: self.took(began).total })
            }
            Job::Export { outer } => self.export(began, outer)?,
        }))
    }

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

    fn backward(
        &mut self,
        (microbatch, data_index): (MicrobatchId, u64),
        input: Option<Bytes>,
        gradient: Option<Bytes>,
        duty: Duty,
        size: usize,
    ) -> Result<Option<Bytes>, String> {
        let text = self.text(microbatch.split, data_index, size)?;
        let (targets, input) = (self.targets(&text), stage_input(&text, input.as_ref()));
        let duty = match duty {
            Duty::Train => input::Duty::Train,
            Duty::Ghost => input::Duty::Ghost,
        };
        self.engine
            .backward(microbatch.index, input, targets, gradient.as_deref(), duty)
            .map(|gradient| gradient.map(Bytes::from))
            .map_err(|error| with_hint(&error, error.hint()))
    }

    fn step(&mut self, began: Instant, microbatches: u32) -> Result<Input, String> {
        let report = match microbatches {
            0 => self.engine.idle(),
            trained => self.engine.step(trained),
        };
        let report = report.map_err(|error| with_hint(&error, error.hint()))?;
        Ok(Input::Stepped {
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            took: self.took(began),
            wire_bytes_total: 0,
        })
    }

    fn export(&mut self, began: Instant, outer: OuterStep) -> Result<Input, String> {
        let agreement = self.agreement.as_ref().expect("only replicas have a newcomer");
        let agreed = Blob::new(agreement.export().into());
        let own = self.engine.export_moments().map_err(|error| with_hint(&error, error.hint()))?;
        let own = Blob::new(own.into());
        Ok(Input::Exported { outer, agreed, own, took: self.took(began) })
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
            (held::RUN.to_owned(), config.spec.digest().to_hex()),
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
            Some(agreement) => held::both(digest, agreement.save(&outer, &labels)?),
            None => Digest(digest),
        };
        config
            .directory
            .prune(self.place, checkpoints_kept(&config.spec))
            .map_err(|error| with_hint(&error, Some(error.hint())))?;
        Ok(digest)
    }
}

/// Opens what a place needs: the text that it reads, and an engine with the weights that the seed gives.
fn furnish(config: &ComputeConfig, place: Place) -> Result<(Reads, Option<Dataset>, Engine), String> {
    let (spec, stage) = (&config.spec, place.stage);
    let reads = Reads { inputs: stage.0 == 0, targets: stage.0 + 1 == spec.stages() };
    let dataset = if reads.inputs || reads.targets { Some(open_data(spec, &config.local)?) } else { None };
    let held = usize::from(stage.0)..usize::from(stage.0) + 1;
    let engine = Engine::new(engine_config(spec, held, config.device))
        .map_err(|error| with_hint(&error, error.hint()))?;
    Ok((reads, dataset, engine))
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

/// How long an effect took that began then.
pub(crate) fn took(began: Instant, serialise: Duration) -> Took {
    Took { total: span(began.elapsed()), serialise: span(serialise) }
}

fn span(duration: Duration) -> Span {
    Span(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}
