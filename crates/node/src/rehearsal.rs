//! Taking part in a rehearsal: outer steps over real sockets, with drawn numbers in place of what training gives.
//!
//! Owns the order of starting, and the drawn numbers. Decides nothing.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, mpsc as jobs};
use std::thread;
use std::time::Instant;

use tokio::sync::mpsc;
use trestle_model::outer::{Exchanged, Layout, Outer};
use trestle_net::{Membership, Net, NetConfig, Ticket};
use trestle_protocol::ids::{InnerStep, ReplicaId};
use trestle_protocol::message::{Join, Outcome, Text};
use trestle_protocol::node::Node;
use trestle_protocol::port::{Input, Took};
use trestle_protocol::spec::RunSpec;
use trestle_protocol::sync::task::SyncDone;
use trestle_protocol::time::Span;
use trestle_settings::model::outer_config;

use crate::agreement::{self, Shelf};
use crate::directory::Directory;
use crate::driver::{Answer, Driver, Request, Watch, Workshop};
use crate::error::NodeError;
use crate::event_log::EventLog;
use crate::generation::{Generation, Stamped};
use crate::job::Job;
use crate::links::Links;
use crate::state::State;
use crate::words::with_hint;

/// How far a replica's weights move between two rehearsed outer steps, as a share of the weights' own size.
const MOVE: f32 = 1e-3;

/// What a host is started with.
pub struct HostOptions {
    /// Replicas, outer steps, codec, and the number of parameters: `model.vocabulary` times `model.width`.
    pub spec: RunSpec,
    /// Where its key, state and log go.
    pub directory: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Who else hears of events.
    pub watch: Option<Watch>,
}

/// A host that listens and is not yet running.
pub struct BoundHost {
    ticket: Ticket,
    driver: Driver,
}

impl BoundHost {
    /// Opens directory and state, and binds the socket.
    ///
    /// # Errors
    /// The directory, its state, or the socket cannot be used.
    pub async fn bind(options: HostOptions) -> Result<Self, NodeError> {
        let began = Instant::now();
        let HostOptions { spec, directory, listen, watch } = options;
        let directory = Directory::open(&directory, "host")?;
        let key = directory.key()?;
        let state = State::open(&directory.state())?;
        let membership = Membership::Member(Box::new(spec.clone()));
        let (net, network) = Net::bind(NetConfig::new(key.to_bytes(), listen, membership)).await?;
        let log = EventLog::open(&directory.events(), net.id()).map_err(NodeError::EventLog)?;
        let run_digest = spec.digest();
        let ticket = Ticket { coordinator: net.id(), address: net.address().clone(), run_digest };
        let node = Node::host(spec, net.id());
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

    /// Returns the ticket with which replicas join.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Runs until all outer steps are decided.
    ///
    /// # Errors
    /// The event log cannot be written; all else is an outcome.
    pub async fn run(self, requests: mpsc::Receiver<Request>) -> Result<Outcome, NodeError> {
        self.driver.run(requests).await
    }
}

/// What a replica is started with.
pub struct GuestOptions {
    /// Who hosts.
    pub ticket: Ticket,
    /// The directory for key and log.
    pub directory: PathBuf,
    /// What the replica is called in that directory.
    pub name: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Who else hears of events.
    pub watch: Option<Watch>,
}

/// Joins a rehearsal and exchanges until it is over.
///
/// # Errors
/// The directory, the socket or the host cannot be used; what happens later is an outcome.
pub async fn take_part(
    options: GuestOptions,
    requests: mpsc::Receiver<Request>,
) -> Result<Outcome, NodeError> {
    let began = Instant::now();
    let GuestOptions { ticket, directory, name, listen, watch } = options;
    let directory = Directory::open(&directory, &name)?;
    let key = directory.key()?;
    let membership = Membership::Candidate { run_digest: ticket.run_digest };
    let (net, network) = Net::bind(NetConfig::new(key.to_bytes(), listen, membership)).await?;
    net.dial(ticket.coordinator, &ticket.address).await?;
    let spec = net.spec().expect("a candidate that has dialled its host has the spec");
    let log = EventLog::open(&directory.events(), net.id()).map_err(NodeError::EventLog)?;
    let (answer, answers) = mpsc::unbounded_channel();
    let shelf = Arc::new(Shelf::default());
    let generation = Generation::default();
    let answering = || {
        let answer = answer.clone();
        // The driver may have ended while the last job ran.
        move |input| drop(answer.send(Answer::Computed(input)))
    };
    let tasks = agreement::start(Arc::clone(&shelf), generation.clone(), answering());
    let tasks = tasks.map_err(NodeError::Thread)?;
    let jobs = start(spec.clone(), shelf, answering()).map_err(NodeError::Thread)?;
    let address = net.address().to_bytes().into();
    // There is no training, and so no text.
    let (text, held) = (Text::Missing, Vec::new());
    let join = Join { address, stage: None, device: name, peak_flops: 0, text, held };
    let node = Node::guest(&spec, net.id(), ticket.coordinator, join);
    let driver = Driver {
        node,
        net,
        network,
        answers,
        answer,
        links: Links::default(),
        workshop: Some(Workshop { generation, jobs, tasks }),
        state: None,
        log,
        watch,
        observer: None,
        began,
    };
    driver.run(requests).await
}

/// Starts the thread that stands for training.
fn start(
    spec: RunSpec,
    shelf: Arc<Shelf>,
    answer: impl Fn(Stamped<Input>) + Send + 'static,
) -> std::io::Result<jobs::Sender<Stamped<Job>>> {
    let (sender, queue) = jobs::channel::<Stamped<Job>>();
    thread::Builder::new().name("drawing".into()).spawn(move || {
        let mut replica = ReplicaId(0);
        for Stamped { generation, what: job } in queue {
            let what = draw(&spec, &shelf, &mut replica, job);
            answer(Stamped { generation, what: what.unwrap_or_else(|reason| Input::Faulted { reason }) });
        }
    })?;
    Ok(sender)
}

fn draw(spec: &RunSpec, shelf: &Shelf, replica: &mut ReplicaId, job: Job) -> Result<Input, String> {
    let began = Instant::now();
    let took = || Span(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
    match job {
        Job::Load { place, .. } => {
            *replica = place.replica;
            let config = outer_config(spec).ok_or("a rehearsal needs at least two replicas")?;
            let layout = Layout::new(&[vec![spec.model.vocabulary as usize, spec.model.width as usize]]);
            let weights = numbers(spec.seed, layout.elements()).collect();
            let outer = Outer::new(config, layout, weights);
            shelf.put(outer.map_err(|error| with_hint(&error, error.hint()))?);
            Ok(Input::Loaded { step: InnerStep(0), took: Took { total: took(), ..Took::default() } })
        }
        Job::Snapshot { outer, microbatches: _ } => {
            let seed = spec.seed ^ (outer.0 << 16) ^ (u64::from(replica.0) + 1);
            shelf.with(|state| {
                let drawn = numbers(seed, state.layout().elements());
                let values = match state.config().exchanged {
                    Exchanged::Gradients => drawn.collect(),
                    Exchanged::Weights => state
                        .anchor()
                        .iter()
                        .zip(drawn)
                        .map(|(weight, drawn)| weight - MOVE * drawn)
                        .collect(),
                };
                state.begin(outer.0, values);
            });
            Ok(Input::Sync(SyncDone::Snapshotted { outer, took: took() }))
        }
        Job::Adopt { outer } => {
            drop(shelf.with(|state| state.adopt(None)));
            Ok(Input::Sync(SyncDone::Adopted { outer, took: took() }))
        }
        Job::Import { .. }
        | Job::Export { .. }
        | Job::Enter { .. }
        | Job::Forward { .. }
        | Job::Backward { .. }
        | Job::Discard { .. }
        | Job::Step { .. }
        | Job::Save { .. } => Err("a rehearsal does not train".into()),
    }
}

/// Draws numbers from -0.5 to 0.5, the same on every machine.
fn numbers(seed: u64, count: usize) -> impl Iterator<Item = f32> {
    let start = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
    (0..count as u32).map(move |at| {
        let mixed = (at ^ start).wrapping_mul(0x85eb_ca6b);
        ((mixed ^ (mixed >> 13)) >> 8) as f32 / 16_777_216.0 - 0.5
    })
}
