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
use trestle_model::outer::{Exchanged, Layout, Outer, OuterError};
use trestle_protocol::ids::OuterStep;
use trestle_protocol::port::Input;
use trestle_protocol::spec::RunSpec;
use trestle_protocol::sync::task::SyncTask;
use trestle_protocol::time::Span;
use trestle_settings::model::outer_config;
use trestle_settings::outer;

use crate::words::with_hint;

/// Where the two threads find the state; empty until a stage is loaded.
#[derive(Debug, Default)]
pub struct Shelf(Mutex<Option<Outer>>);

impl Shelf {
    /// Puts the state there.
    pub fn put(&self, outer: Outer) {
        *self.lock() = Some(outer);
    }

    /// Works on the state. The core orders the work of the two threads; the lock is never waited for longer than a copy
    /// takes.
    pub fn with<T>(&self, work: impl FnOnce(&mut Outer) -> T) -> T {
        work(self.lock().as_mut().expect("the core loads a stage before it exchanges"))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outer>> {
        // A thread that panicked has ended the process's work already.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's end of the outer steps.
pub(crate) struct Agreement {
    shelf: Arc<Shelf>,
    layout: Layout,
    exchanged: Exchanged,
    microbatches: u32,
    /// The engine's version at the last snapshot.
    version: u64,
}

impl Agreement {
    /// Begins with the engine's weights, or goes on from a file; `None` where the stage has one replica.
    pub(crate) fn open(
        spec: &RunSpec,
        engine: &Engine,
        shelf: Arc<Shelf>,
        file: Option<&Path>,
    ) -> Result<Option<Self>, String> {
        let Some(config) = outer_config(spec) else { return Ok(None) };
        let layout = Layout::new(&engine.exchange_shapes());
        let exchanged = config.exchanged;
        let masters = engine.masters().map_err(|error| with_hint(&error, error.hint()))?;
        let fail = |error: OuterError| with_hint(&error, error.hint());
        let mut outer = Outer::new(config, layout.clone(), layout.gather(&masters)).map_err(fail)?;
        if let Some(file) = file {
            outer.load(file).map_err(|error| with_hint(&error, error.hint()))?;
        }
        shelf.put(outer);
        let microbatches = spec.pipeline.microbatches_per_step;
        Ok(Some(Self { shelf, layout, exchanged, microbatches, version: engine.version() }))
    }

    /// Copies what is exchanged.
    pub(crate) fn snapshot(&mut self, outer: OuterStep, engine: &mut Engine) -> Result<(), String> {
        let values = match self.exchanged {
            Exchanged::Weights => engine.masters(),
            Exchanged::Gradients => engine.gradient_mean(self.microbatches),
        };
        let values = self.layout.gather(&values.map_err(|error| with_hint(&error, error.hint()))?);
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

/// Starts the thread that encodes, reduces and stages. It ends when the sender of tasks is dropped.
///
/// # Errors
/// The system has no thread left.
pub fn start(
    shelf: Arc<Shelf>,
    answer: impl Fn(Input) + Send + 'static,
) -> std::io::Result<mpsc::Sender<SyncTask>> {
    let (tasks, queue) = mpsc::channel();
    thread::Builder::new().name("outer".into()).spawn(move || {
        for task in queue {
            answer(
                shelf.with(|outer| carry_out(outer, task)).unwrap_or_else(|reason| Input::Faulted { reason }),
            );
        }
    })?;
    Ok(tasks)
}

fn carry_out(state: &mut Outer, task: SyncTask) -> Result<Input, String> {
    let began = Instant::now();
    let done = outer::carry_out(state, task).map_err(|error| with_hint(&error, error.hint()))?;
    Ok(Input::Sync(done.timed(Span(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)))))
}
