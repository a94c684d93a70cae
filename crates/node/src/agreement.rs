//! The outer step's arithmetic of one replica, and the thread that does what training need not wait for.
//!
//! Owns the state of the outer steps, which two threads share: computing gives a snapshot and takes what was agreed; the
//! thread beside it encodes, reduces and stages. Decides nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use trestle_model::engine::Engine;
use trestle_model::error::ModelError;
use trestle_model::handover::HandoverError;
use trestle_model::outer::{Exchanged, Layout, Outer, OuterError};
use trestle_protocol::ids::{Digest, OuterStep};
use trestle_protocol::port::Input;
use trestle_protocol::spec::RunSpec;
use trestle_protocol::sync::task::SyncTask;
use trestle_protocol::time::Span;
use trestle_settings::model::outer_config;
use trestle_settings::outer;

use crate::generation::{Generation, Stamped};
use crate::words::with_hint;

/// Where the two threads find the state; empty until a stage is loaded.
#[derive(Debug, Default)]
pub(crate) struct Shelf(Mutex<Option<Outer>>);

impl Shelf {
    /// Puts the state there.
    pub(crate) fn put(&self, outer: Outer) {
        *self.lock() = Some(outer);
    }

    /// Works on the state. The core orders the work of the two threads; the lock is never waited for longer than a copy
    /// takes.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Outer) -> T) -> T {
        work(self.lock().as_mut().expect("the core loads a stage before it exchanges"))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outer>> {
        // A thread that panicked has ended the process's work already.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose debts a state has that is taken over from a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Debts {
    /// This place's: they are still owed.
    Ours,
    /// Another replica's: they are not ours to pay.
    Theirs,
}

/// Where the state of the outer steps comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin<'a> {
    /// The engine's weights.
    Weights,
    /// A file.
    File(&'a Path, Debts),
}

/// The engine's end of the outer steps.
pub(crate) struct Agreement {
    shelf: Arc<Shelf>,
    layout: Layout,
    exchanged: Exchanged,
    /// Microbatches that the mean gradient counts for.
    microbatches: u32,
    /// The engine's version at the last snapshot.
    version: u64,
}

/// A state that is not in use yet, so that it can be given up.
pub(crate) struct Prepared {
    outer: Outer,
    layout: Layout,
    exchanged: Exchanged,
    version: u64,
}

impl Prepared {
    /// Takes over what other replicas agreed on, and gives the weights to go on from, parameter by parameter.
    pub(crate) fn import(&mut self, agreed: &[u8]) -> Result<Vec<Vec<f32>>, HandoverError> {
        self.outer.import_agreed(agreed)?;
        Ok(self.agreed_weights())
    }

    /// Returns the weights that the replicas agreed on last, parameter by parameter.
    pub(crate) fn agreed_weights(&self) -> Vec<Vec<f32>> {
        self.layout.scatter(self.outer.anchor())
    }

    /// Names the weights to go on from.
    pub(crate) fn weights_digest(&self) -> Digest {
        Digest(self.outer.weights_digest())
    }

    /// Puts the state into use.
    pub(crate) fn shelve(self, shelf: Arc<Shelf>) -> Agreement {
        let Self { outer, layout, exchanged, version } = self;
        shelf.put(outer);
        Agreement { shelf, layout, exchanged, microbatches: 1, version }
    }
}

impl Agreement {
    /// Begins with the engine's weights, or goes on from a file; `None` where the stage has one replica.
    pub(crate) fn open(
        spec: &RunSpec,
        engine: &Engine,
        origin: Origin<'_>,
    ) -> Result<Option<Prepared>, String> {
        let Some(config) = outer_config(spec) else { return Ok(None) };
        let layout = Layout::new(&engine.exchange_shapes());
        let exchanged = config.exchanged;
        let masters = engine.masters().map_err(|error| with_hint(&error, error.hint()))?;
        let fail = |error: OuterError| with_hint(&error, error.hint());
        let mut outer = Outer::new(config, layout.clone(), layout.gather(&masters)).map_err(fail)?;
        if let Origin::File(file, debts) = origin {
            outer.load(file).map_err(|error| with_hint(&error, error.hint()))?;
            if debts == Debts::Theirs {
                outer.forget_owed();
            }
        }
        Ok(Some(Prepared { outer, layout, exchanged, version: engine.version() }))
    }

    /// Returns what all replicas share after the last commit.
    pub(crate) fn export(&self) -> Vec<u8> {
        self.shelf.with(|state| state.export_agreed())
    }

    /// Copies what is exchanged.
    pub(crate) fn snapshot(
        &mut self,
        outer: OuterStep,
        microbatches: u32,
        engine: &mut Engine,
    ) -> Result<(), String> {
        let gathered = |values: Result<Vec<Vec<f32>>, ModelError>| {
            values.map(|values| self.layout.gather(&values)).map_err(|error| with_hint(&error, error.hint()))
        };
        let values = match (self.exchanged, microbatches) {
            (Exchanged::Weights, _) => gathered(engine.masters())?,
            (Exchanged::Gradients, 0) => vec![0.0; self.layout.elements()],
            (Exchanged::Gradients, summed) => gathered(engine.gradient_mean(summed))?,
        };
        // Even without a microbatch of its own, the replica takes the step with the mean of the others.
        self.microbatches = microbatches.max(1);
        self.version = engine.version();
        self.shelf.with(|state| state.begin(outer.0, values));
        Ok(())
    }

    /// Goes over to what was committed.
    pub(crate) fn adopt(&mut self, engine: &mut Engine) -> Result<(), String> {
        let done = match self.exchanged {
            Exchanged::Gradients => {
                let mean = self.layout.scatter(&self.shelf.with(|state| state.adopt(None)));
                engine.set_gradient_mean(&mean, self.microbatches)
            }
            Exchanged::Weights => {
                let now = if engine.version() == self.version {
                    None
                } else {
                    let masters = engine.masters().map_err(|error| with_hint(&error, error.hint()))?;
                    Some(self.layout.gather(&masters))
                };
                let weights = self.shelf.with(|state| state.adopt(now));
                engine.set_masters(&self.layout.scatter(&weights))
            }
        };
        done.map_err(|error| with_hint(&error, error.hint()))
    }

    /// Writes the state to a file.
    pub(crate) fn save(&self, path: &Path, labels: &BTreeMap<String, String>) -> Result<[u8; 32], String> {
        self.shelf.with(|state| state.save(path, labels)).map_err(|error| with_hint(&error, error.hint()))
    }
}

/// Starts the thread that encodes, reduces and stages. It ends when the sender of tasks is dropped; tasks of a former seat are
/// not begun.
///
/// # Errors
/// The system has no thread left.
pub(crate) fn start(
    shelf: Arc<Shelf>,
    generation: Generation,
    answer: impl Fn(Stamped<Input>) + Send + 'static,
) -> std::io::Result<mpsc::Sender<Stamped<SyncTask>>> {
    let (tasks, queue) = mpsc::channel::<Stamped<SyncTask>>();
    thread::Builder::new().name("outer".into()).spawn(move || {
        for stamped in queue {
            let stamp = stamped.generation;
            let Some(task) = generation.current(stamped) else { continue };
            // Answered under the lock: a copy of the state that is made after a commit is also heard of after it.
            shelf.with(|outer| {
                let done = carry_out(outer, task);
                let what = done.unwrap_or_else(|reason| Input::Faulted { reason });
                answer(Stamped { generation: stamp, what });
            });
        }
    })?;
    Ok(tasks)
}

fn carry_out(state: &mut Outer, task: SyncTask) -> Result<Input, String> {
    let began = Instant::now();
    let done = outer::carry_out(state, task).map_err(|error| with_hint(&error, error.hint()))?;
    Ok(Input::Sync(done.timed(Span(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)))))
}
