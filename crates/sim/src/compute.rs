//! Compute as the simulator sees it: bytes in, bytes and a length of time out.
//!
//! Owns the seam between a simulated peer and whatever computes for it. Knows nothing of queues, links or the order of
//! work; a cost model and a real model stand behind it alike.

use crate::descent::Descent;
use crate::disk::Disk;
use crate::draws::{Draws, Permille};
use bytes::Bytes;
use trestle_protocol::ids::{Digest, InnerStep, MicrobatchId, OuterStep};
use trestle_protocol::message::Start;
use trestle_protocol::plan::Place;
use trestle_protocol::port::{Duty, Output};
use trestle_protocol::sync::blob::Blob;
use trestle_protocol::sync::task::{SyncDone, SyncTask};
use trestle_protocol::time::Span;

/// Why an effect could not be carried out, in words for the event log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// A microbatch on its way through a stage.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// Which microbatch.
    pub microbatch: MicrobatchId,
    /// The microbatch of the data set whose tokens it reads.
    pub data_index: u64,
    /// The boundary input; the first stage reads tokens.
    pub input: Option<&'a Bytes>,
}

/// What an optimizer step says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Updated {
    /// Norm of the stage's gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
}

/// A stage's state on its way to a newcomer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// What all replicas of the stage share: the same bytes at each of them.
    pub agreed: Bytes,
    /// What is one replica's own.
    pub own: Bytes,
    /// Into how many chunks each of them is cut, if not as usual.
    pub chunks: Option<u64>,
}

/// Cuts bytes into so many chunks, or as usual.
pub(crate) fn cut(bytes: Bytes, chunks: Option<u64>) -> Blob {
    match chunks {
        Some(count) => Blob::cut(bytes, count),
        None => Blob::new(bytes),
    }
}

/// What came of holding a stage with the state that others sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Imported {
    /// It is held, with weights that have seen these steps.
    Held(InnerStep),
    /// It does not fit, and all is as it was.
    Unfit(String),
}

/// What computes for one peer.
pub trait Compute {
    /// Holds a stage from now on; a checkpoint is read from the peer's disk.
    ///
    /// # Errors
    /// The checkpoint cannot be read, or the stage cannot be made.
    fn load(&mut self, place: Place, start: Start, disk: &Disk) -> Result<(), Fault>;

    /// Copies the state that a newcomer needs, as of an outer step.
    ///
    /// # Errors
    /// The model fails.
    fn export(&mut self, outer: OuterStep) -> Result<Handover, Fault>;

    /// Holds a stage with the state that others sent, whose agreed weights must have a digest.
    ///
    /// # Errors
    /// The stage cannot be made.
    fn import(&mut self, place: Place, state: &Handover, digest: Digest) -> Result<Imported, Fault>;

    /// Counts the weights as having seen these steps.
    fn enter(&mut self, step: InnerStep);

    /// Runs a forward.
    ///
    /// # Errors
    /// The model or the data fails.
    fn forward(&mut self, work: Work<'_>) -> Result<Output, Fault>;

    /// Runs a backward by the gradient of the boundary output, and gives that of the boundary input; a ghost adds nothing to
    /// the sum of gradients.
    ///
    /// # Errors
    /// The model or the data fails.
    fn backward(
        &mut self,
        work: Work<'_>,
        gradient: Option<&Bytes>,
        duty: Duty,
    ) -> Result<Option<Bytes>, Fault>;

    /// Lets go what a forward left for its backward.
    fn discard(&mut self, microbatch: MicrobatchId);

    /// Updates the weights; with no microbatches only the step counts.
    ///
    /// # Errors
    /// The model fails.
    fn step(&mut self, microbatches: u32) -> Result<Updated, Fault>;

    /// Writes a checkpoint to the peer's disk.
    ///
    /// # Errors
    /// The disk fails.
    fn save(&mut self, step: InnerStep, disk: &mut Disk) -> Result<Digest, Fault>;

    /// Carries out a task of an outer step; gives its answer, whose length of time is still to be drawn, and how many bytes
    /// it went over.
    ///
    /// # Errors
    /// The model fails, or training has diverged.
    fn agree(&mut self, task: SyncTask) -> Result<(SyncDone, u64), Fault>;

    /// Returns what the weights consist of, where that is followed.
    fn descent(&self) -> Option<&Descent>;
}

/// Bytes that something goes over in a second; 0 takes no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub u64);

impl Rate {
    /// Returns how long some bytes take.
    pub fn span(self, bytes: u64) -> Span {
        let span = (u128::from(bytes) * 1_000_000).checked_div(u128::from(self.0)).unwrap_or(0);
        Span(u64::try_from(span).unwrap_or(u64::MAX))
    }
}

/// How long each kind of computation takes in virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spans {
    /// A forward.
    pub forward: Span,
    /// A backward.
    pub backward: Span,
    /// An optimizer step.
    pub step: Span,
    /// Writing a checkpoint.
    pub save: Span,
    /// Taking hold of a stage.
    pub load: Span,
    /// Copying weights for an outer step, for which computing stands still.
    pub copy: Rate,
    /// Encoding, reducing and staging, beside what is computed.
    pub beside: Rate,
    /// How far each computation may lie from the mean.
    pub jitter: Permille,
}

impl Spans {
    /// Returns the spans of a device that takes `factor` times as long.
    pub fn slower(self, factor: u64) -> Self {
        let slow = |span: Span| Span(span.0.saturating_mul(factor));
        let slow_rate = |rate: Rate| Rate(if rate.0 == 0 { 0 } else { (rate.0 / factor).max(1) });
        Self {
            forward: slow(self.forward),
            backward: slow(self.backward),
            step: slow(self.step),
            save: slow(self.save),
            load: slow(self.load),
            copy: slow_rate(self.copy),
            beside: slow_rate(self.beside),
            jitter: self.jitter,
        }
    }
}

/// The device of one peer: how long its next computation takes.
#[derive(Debug)]
pub struct Device {
    /// The mean of each kind.
    pub spans: Spans,
    draws: Draws,
}

impl Device {
    /// Makes the device of a peer.
    pub fn new(seed: u64, peer: usize, spans: Spans) -> Self {
        Self { spans, draws: Draws::new(seed, "device", &[peer as u64]) }
    }

    /// Draws how long one computation of a mean length takes.
    pub fn draw(&mut self, mean: Span) -> Span {
        self.draws.around(mean, self.spans.jitter)
    }
}
