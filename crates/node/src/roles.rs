//! The two ways to take part: as the coordinator of a run, or as a worker with a ticket.
//!
//! Owns the order of starting: directory, key, socket, core. Decides nothing about the run.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use trestle_model::device::{DeviceKind, measure_peak};
use trestle_net::{Membership, Net, NetConfig, Ticket};
use trestle_protocol::coordinator::CoordinatorConfig;
use trestle_protocol::ids::StageId;
use trestle_protocol::message::{Join, Outcome};
use trestle_protocol::node::Node;
use trestle_protocol::port::Input;
use trestle_protocol::spec::RunSpec;
use trestle_protocol::worker::WorkerConfig;

use crate::agreement::{self, Shelf};
use crate::compute::{ComputeConfig, start};
use crate::directory::Directory;
use crate::driver::{Driver, Watch};
use crate::error::NodeError;
use crate::event_log::EventLog;
use crate::state::State;
use trestle_settings::data::LocalData;
use trestle_settings::model::dtype;

/// Whether a coordinator begins a run or continues one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Begins; a run in the same directory is an error.
    Anew,
    /// Continues from the last durable border, which may be the start.
    Resume,
}

/// What a coordinator is started with.
pub struct CoordinatorOptions {
    /// The run.
    pub spec: RunSpec,
    /// The run's directory.
    pub directory: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Further socket addresses at which workers reach it.
    pub advertise: Vec<SocketAddr>,
    /// Anew, or on.
    pub beginning: Beginning,
    /// Who else hears of events.
    pub watch: Option<Watch>,
}

/// A coordinator that listens and is not yet running.
pub struct BoundCoordinator {
    ticket: Ticket,
    driver: Driver,
}

impl BoundCoordinator {
    /// Opens directory and state, and binds the socket.
    ///
    /// # Errors
    /// The directory, its state, or the socket cannot be used.
    pub async fn bind(options: CoordinatorOptions) -> Result<Self, NodeError> {
        let began = Instant::now();
        let CoordinatorOptions { spec, directory: root, listen, advertise, beginning, watch } = options;
        let directory = Directory::open(&root, "coordinator")?;
        let key = directory.key()?;
        let state = State::open(&directory.state())?;
        let marker = root.join("begun");
        let stored = match (beginning, state.load()?, marker.exists()) {
            (Beginning::Anew, None, false) => None,
            (Beginning::Anew, Some(_), _) | (Beginning::Anew, None, true) => {
                return Err(NodeError::Begun(root));
            }
            (Beginning::Resume, None, false) => return Err(NodeError::NothingToResume(root)),
            (Beginning::Resume, stored, _) => stored,
        };
        let membership = Membership::Member(Box::new(spec.clone()));
        let mut config = NetConfig::new(key.to_bytes(), listen, membership);
        config.advertise = advertise;
        let (net, network) = Net::bind(config).await?;
        let run_digest = spec.digest();
        let node = Node::coordinator(CoordinatorConfig { spec, me: net.id() }, stored.as_deref())?;
        let log = EventLog::open(&directory.events(), net.id()).map_err(NodeError::EventLog)?;
        std::fs::write(&marker, run_digest.to_hex()).map_err(NodeError::EventLog)?;
        let ticket = Ticket { coordinator: net.id(), address: net.address().clone(), run_digest };
        let (answer, answers) = mpsc::unbounded_channel();
        let driver = Driver {
            node,
            net,
            network,
            answers,
            answer,
            jobs: None,
            tasks: None,
            state: Some(state),
            log,
            watch,
            began,
        };
        Ok(Self { ticket, driver })
    }

    /// Returns the ticket with which workers join.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Runs until the run is over. Each message on `stop` asks to stop at the next border.
    ///
    /// # Errors
    /// The event log cannot be written; all else is an outcome.
    pub async fn run(self, stop: mpsc::Receiver<()>) -> Result<Outcome, NodeError> {
        self.driver.run(None, stop).await
    }
}

/// What a worker is started with.
pub struct WorkerOptions {
    /// Who coordinates, and which run it is.
    pub ticket: Ticket,
    /// The directory for key, log and checkpoints.
    pub directory: PathBuf,
    /// What the worker is called in that directory.
    pub name: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Further socket addresses at which others reach it.
    pub advertise: Vec<SocketAddr>,
    /// The stage it asks for, if it does.
    pub stage: Option<StageId>,
    /// Where it computes.
    pub device: DeviceKind,
    /// The device's peak, FLOP/s, if it was measured already.
    pub peak_flops: Option<f64>,
    /// Where it has the text, if it has it.
    pub local: LocalData,
    /// Who else hears of events.
    pub watch: Option<Watch>,
}

/// Joins a run and works until it is over. Each message on `stop` asks to leave.
///
/// # Errors
/// The directory, the socket, the device or the coordinator cannot be used; what happens later is an outcome.
pub async fn work(options: WorkerOptions, stop: mpsc::Receiver<()>) -> Result<Outcome, NodeError> {
    let began = Instant::now();
    let WorkerOptions { ticket, local, watch, device, .. } = &options;
    let directory = Directory::open(&options.directory, &options.name)?;
    let key = directory.key()?;
    let membership = Membership::Candidate { run_digest: ticket.run_digest };
    let mut config = NetConfig::new(key.to_bytes(), options.listen, membership);
    config.advertise.clone_from(&options.advertise);
    let (net, network) = Net::bind(config).await?;
    net.dial(ticket.coordinator, &ticket.address).await?;
    let spec = net.spec().expect("a candidate that has dialled its coordinator has the spec");
    let peak = match options.peak_flops {
        Some(peak) => peak,
        None => measure_peak(*device, dtype(spec.pipeline.compute))?,
    };
    let join = Join {
        address: net.address().to_bytes().into(),
        stage: options.stage,
        device: device.to_string(),
        peak_flops: peak as u64,
    };
    let log = EventLog::open(&directory.events(), net.id()).map_err(NodeError::EventLog)?;
    let (answer, answers) = mpsc::unbounded_channel();
    let shelf = Arc::new(Shelf::default());
    let tasks = agreement::start(Arc::clone(&shelf), {
        let answer = answer.clone();
        move |input| {
            let _ = answer.send(input);
        }
    })
    .map_err(NodeError::Thread)?;
    let compute =
        ComputeConfig { spec: spec.clone(), device: *device, local: local.clone(), directory, shelf };
    let jobs = start(compute, {
        let answer = answer.clone();
        move |input| {
            // The driver may have ended while the last job ran.
            let _ = answer.send(input);
        }
    })
    .map_err(NodeError::Thread)?;
    let coordinator = ticket.coordinator;
    let node = Node::worker(WorkerConfig { spec, key, coordinator, join });
    let watch = watch.clone();
    let (jobs, tasks) = (Some(jobs), Some(tasks));
    let driver = Driver { node, net, network, answers, answer, jobs, tasks, state: None, log, watch, began };
    driver.run(Some(Input::Connected { peer: coordinator }), stop).await
}
