//! What the compute thread is asked to do, and what it works with.
//!
//! Owns the vocabulary between driver and thread. Knows nothing of how any of it is done.

use std::sync::Arc;

use bytes::Bytes;
use trestle_model::device::DeviceKind;
use trestle_protocol::ids::{Digest, InnerStep, MicrobatchId, OuterStep};
use trestle_protocol::message::Start;
use trestle_protocol::plan::Place;
use trestle_protocol::port::Duty;
use trestle_protocol::spec::RunSpec;
use trestle_settings::data::LocalData;

use crate::agreement::Shelf;
use crate::directory::Directory;

/// Something to compute; each but `Enter` is answered by one input of the core.
#[derive(Debug)]
pub(crate) enum Job {
    Load {
        place: Place,
        start: Start,
    },
    Import {
        place: Place,
        agreed: Bytes,
        own: Bytes,
        digest: Digest,
    },
    Export {
        outer: OuterStep,
    },
    Enter {
        step: InnerStep,
    },
    Forward {
        microbatch: MicrobatchId,
        data_index: u64,
        input: Option<Bytes>,
    },
    Backward {
        microbatch: MicrobatchId,
        data_index: u64,
        input: Option<Bytes>,
        gradient: Option<Bytes>,
        duty: Duty,
    },
    Discard {
        microbatch: MicrobatchId,
    },
    Step {
        microbatches: u32,
    },
    Save {
        step: InnerStep,
    },
    Snapshot {
        outer: OuterStep,
        microbatches: u32,
    },
    Adopt {
        outer: OuterStep,
    },
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
