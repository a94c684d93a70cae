//! The two ways to take part: as the coordinator of a run, or as a worker with a ticket.
//!
//! Owns the order of starting: directory, key, socket, core. Decides nothing about the run.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use trestle_model::device::{DeviceKind, measure_peak};
use trestle_net::{DialError, Membership, Net, NetConfig, Ticket};
use trestle_protocol::coordinator::CoordinatorConfig;
use trestle_protocol::ids::StageId;
use trestle_protocol::message::{Join, Outcome, Text};
use trestle_protocol::node::Node;
use trestle_protocol::receipt::Seals;
use trestle_protocol::spec::RunSpec;
use trestle_protocol::time::Span;
use trestle_protocol::worker::WorkerConfig;

use crate::agreement::{self, Shelf};
use crate::compute;
use crate::directory::Directory;
use crate::driver::{Answer, Driver, Request, Watch, Workshop};
use crate::error::NodeError;
use crate::event_log::EventLog;
use crate::generation::Generation;
use crate::held;
use crate::job::ComputeConfig;
use crate::links::Links;
use crate::standing::{Observer, StandingWatch};
use crate::state::State;
use trestle_settings::data::{LocalData, data_config};
use trestle_settings::model::dtype;

/// How long a worker that is started looks for its coordinator, which may be down for a restart at that moment.
const COORDINATOR_WAIT_MAX: Duration = Duration::from_secs(30);

/// Wait between two tries; each fails after seconds by itself.
const COORDINATOR_RETRY: Duration = Duration::from_millis(500);

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
        let mut config = NetConfig::new(key.to_bytes(), listening(listen, beginning, &directory), membership);
        config.advertise = advertise;
        let (net, network) = Net::bind(config).await?;
        if let Some(socket) = net.bound().first() {
            directory.keep_port(socket.port())?;
        }
        let run_digest = spec.digest();
        let node = Node::coordinator(
            CoordinatorConfig { spec, me: net.id(), seals: Seals::Signed },
            stored.as_deref(),
        )?;
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
            links: Links::default(),
            workshop: None,
            state: Some(state),
            log,
            watch,
            observer: None,
            began,
        };
        Ok(Self { ticket, driver })
    }

    /// Returns the ticket with which workers join.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Runs until the run is over.
    ///
    /// # Errors
    /// The event log cannot be written; all else is an outcome.
    pub async fn run(self, requests: mpsc::Receiver<Request>) -> Result<Outcome, NodeError> {
        self.driver.run(requests).await
    }
}

/// A coordinator that is started again listens where its peers look for it.
fn listening(asked: SocketAddr, beginning: Beginning, directory: &Directory) -> SocketAddr {
    match (beginning, asked.port(), directory.port()) {
        (Beginning::Resume, 0, Some(port)) => SocketAddr::new(asked.ip(), port),
        (Beginning::Anew | Beginning::Resume, _, _) => asked,
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
    /// Who hears where the worker stands.
    pub standing: Option<StandingWatch>,
}

/// Joins a run and works until it is over.
///
/// # Errors
/// The directory, the socket, the device or the coordinator cannot be used; what happens later is an outcome.
pub async fn work(options: WorkerOptions, requests: mpsc::Receiver<Request>) -> Result<Outcome, NodeError> {
    let began = Instant::now();
    let WorkerOptions { ticket, local, watch, standing, device, .. } = &options;
    let directory = Directory::open(&options.directory, &options.name)?;
    let key = directory.key()?;
    let membership = Membership::Candidate { run_digest: ticket.run_digest };
    let mut config = NetConfig::new(key.to_bytes(), options.listen, membership);
    config.advertise.clone_from(&options.advertise);
    let (net, network) = Net::bind(config).await?;
    find_coordinator(&net, ticket).await?;
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
        text: data_config(&spec, local).map_or(Text::Missing, |_| Text::Here),
        held: held::list(&directory, &spec),
    };
    let log = EventLog::open(&directory.events(), net.id()).map_err(NodeError::EventLog)?;
    let (answer, answers) = mpsc::unbounded_channel();
    let shelf = Arc::new(Shelf::default());
    let compute =
        ComputeConfig { spec: spec.clone(), device: *device, local: local.clone(), directory, shelf };
    let workshop = Some(open_workshop(compute, &answer)?);
    let coordinator = ticket.coordinator;
    let observer = standing.clone().map(|standing| Observer::new(net.id(), coordinator, standing));
    let coordinator_address = ticket.address.to_bytes().into();
    let coordinator_wait = Span(COORDINATOR_WAIT_MAX.as_micros() as u64);
    let node = Node::worker(WorkerConfig {
        spec,
        key,
        seals: Seals::Signed,
        coordinator,
        coordinator_address,
        coordinator_wait,
        join,
    });
    let (watch, links, state) = (watch.clone(), Links::default(), None);
    let driver =
        Driver { node, net, network, answers, answer, links, workshop, state, log, watch, observer, began };
    driver.run(requests).await
}

fn open_workshop(
    config: ComputeConfig,
    answer: &mpsc::UnboundedSender<Answer>,
) -> Result<Workshop, NodeError> {
    let generation = Generation::default();
    let answering = || {
        let answer = answer.clone();
        // The driver may have ended while the last job ran.
        move |input| drop(answer.send(Answer::Computed(input)))
    };
    let tasks = agreement::start(Arc::clone(&config.shelf), generation.clone(), answering());
    let jobs = compute::start(config, generation.clone(), answering());
    let (tasks, jobs) = (tasks.map_err(NodeError::Thread)?, jobs.map_err(NodeError::Thread)?);
    Ok(Workshop { generation, jobs, tasks })
}

/// Dials the coordinator until it answers: it may be about to be started, or started again.
async fn find_coordinator(net: &Net, ticket: &Ticket) -> Result<(), NodeError> {
    let deadline = Instant::now() + COORDINATOR_WAIT_MAX;
    loop {
        match net.dial(ticket.coordinator, &ticket.address).await {
            Ok(()) => return Ok(()),
            Err(DialError::Unreachable { .. } | DialError::TimedOut { .. } | DialError::Crowded { .. })
                if Instant::now() < deadline =>
            {
                tokio::time::sleep(COORDINATOR_RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
