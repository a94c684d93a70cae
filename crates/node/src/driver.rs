//! The driver: carries the core's actions to sockets, disk and device, and what happens there back to the core.
//!
//! Owns the loop of one node. Decides nothing: it takes inputs in the order in which they come.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use trestle_net::{Address, Net, NetEvent, SendError, Urgency};
use trestle_protocol::event::Event;
use trestle_protocol::ids::PeerId;
use trestle_protocol::message::{Message, Outcome};
use trestle_protocol::node::Node;
use trestle_protocol::port::{Action, Input, StoreItem, StoredItem, Took};
use trestle_protocol::sync::say::Say;
use trestle_protocol::sync::task::SyncTask;
use trestle_protocol::time::{Span, Time};
use trestle_protocol::wire;

use crate::compute::Job;
use crate::error::NodeError;
use crate::event_log::EventLog;
use crate::state::State;

/// Sends events to whoever watches this process, beside the log.
pub type Watch = mpsc::UnboundedSender<(Time, Event)>;

/// What one node is driven with.
pub(crate) struct Driver {
    pub(crate) node: Node,
    pub(crate) net: Net,
    pub(crate) network: mpsc::Receiver<NetEvent>,
    /// What effects that run elsewhere answer: the compute thread, dials.
    pub(crate) answers: mpsc::UnboundedReceiver<Input>,
    pub(crate) answer: mpsc::UnboundedSender<Input>,
    pub(crate) jobs: Option<Sender<Job>>,
    /// What goes on beside computing.
    pub(crate) tasks: Option<Sender<SyncTask>>,
    pub(crate) state: Option<State>,
    pub(crate) log: EventLog,
    pub(crate) watch: Option<Watch>,
    pub(crate) began: Instant,
}

impl Driver {
    /// Runs until the core says that it is over. Each message on `stop` asks to stop at the next border.
    pub(crate) async fn run(
        mut self,
        first: Option<Input>,
        mut stop: mpsc::Receiver<()>,
    ) -> Result<Outcome, NodeError> {
        if let Some(first) = first {
            self.node.handle(self.now(), first);
        }
        let outcome = loop {
            if let Some(outcome) = self.act()? {
                break outcome;
            }
            let wake = self.node.deadline().map(|at| Duration::from_micros(at.since(self.now()).0));
            let input = tokio::select! {
                event = self.network.recv() => match event {
                    Some(event) => read(event),
                    None => Some(Input::Faulted { reason: "the network is closed".into() }),
                },
                answer = self.answers.recv() => answer.map(|input| self.count_bytes(input)),
                Some(()) = stop.recv() => Some(Input::Drain),
                () = sleep(wake) => Some(Input::Woke),
            };
            if let Some(input) = input {
                self.node.handle(self.now(), input);
            }
        };
        self.net.close().await;
        Ok(outcome)
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// Carries out everything that the core asks for now; gives the outcome when the node is done.
    fn act(&mut self) -> Result<Option<Outcome>, NodeError> {
        while let Some(action) = self.node.poll() {
            match action {
                Action::Dial { peer, address } => self.dial(peer, &address),
                Action::Send { to, message } => self.send(to, &message),
                Action::Load { place, start } => self.compute(Job::Load { place, start }),
                Action::Sync(task) => self.agree(task),
                Action::Forward { microbatch, data_index, input } => {
                    self.compute(Job::Forward { microbatch, data_index, input });
                }
                Action::Backward { microbatch, data_index, input, gradient } => {
                    self.compute(Job::Backward { microbatch, data_index, input, gradient });
                }
                Action::Step { microbatches, .. } => self.compute(Job::Step { microbatches }),
                Action::Store(StoreItem::Checkpoint { step }) => self.compute(Job::Save { step }),
                Action::Store(StoreItem::Coordinator(bytes)) => self.store(&bytes),
                Action::Record(event) => self.record(event)?,
                Action::Finish(outcome) => return Ok(Some(outcome)),
            }
        }
        Ok(None)
    }

    fn dial(&self, peer: PeerId, address: &[u8]) {
        let answer = self.answer.clone();
        let address = match Address::from_bytes(address) {
            Ok(address) => address,
            Err(error) => {
                // The loop that reads answers is this one; it cannot be gone while it runs.
                let _ = answer.send(Input::Lost { peer, reason: error.to_string() });
                return;
            }
        };
        let net = self.net.clone();
        tokio::spawn(async move {
            let input = match net.dial(peer, &address).await {
                Ok(()) => Input::Connected { peer },
                Err(error) => Input::Lost { peer, reason: error.to_string() },
            };
            let _ = answer.send(input);
        });
    }

    fn send(&self, to: PeerId, message: &Message) {
        let chunk = matches!(message, Message::Sync(Say::Chunk { .. }));
        let urgency = if chunk { Urgency::Bulk } else { Urgency::Work };
        match (self.net.send_as(to, wire::encode(message), urgency), urgency) {
            (Ok(()), _) => {}
            // Who asked for a chunk and does not get it asks again.
            (Err(SendError::Full { .. }), Urgency::Bulk) => {}
            (Err(error), _) => {
                let _ = self.answer.send(Input::Lost { peer: to, reason: error.to_string() });
            }
        }
    }

    /// Snapshots and adoptions touch the weights that compute; all else goes on beside.
    fn agree(&self, task: SyncTask) {
        match task {
            SyncTask::Snapshot { outer } => self.compute(Job::Snapshot { outer }),
            SyncTask::Adopt { outer } => self.compute(Job::Adopt { outer }),
            SyncTask::Encode { .. }
            | SyncTask::Reduce { .. }
            | SyncTask::Stage { .. }
            | SyncTask::Commit { .. }
            | SyncTask::Restore { .. } => {
                let tasks = self.tasks.as_ref().expect("only a worker's core asks for computation");
                if tasks.send(task).is_err() {
                    let _ = self
                        .answer
                        .send(Input::Faulted { reason: "the thread of the outer steps is gone".into() });
                }
            }
        }
    }

    fn compute(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("only a worker's core asks for computation");
        if jobs.send(job).is_err() {
            let _ = self.answer.send(Input::Faulted { reason: "the compute thread is gone".into() });
        }
    }

    /// Commits take a few milliseconds and happen once a checkpoint: the loop waits for them.
    fn store(&self, bytes: &[u8]) {
        let began = Instant::now();
        let state = self.state.as_ref().expect("only a coordinator's core stores its state");
        let input = match state.store(bytes) {
            Ok(()) => {
                let total = Span(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
                Input::Stored { item: StoredItem::Coordinator, took: Took { total, ..Took::default() } }
            }
            Err(error) => Input::Faulted { reason: format!("{error} (hint: {})", error.hint()) },
        };
        let _ = self.answer.send(input);
    }

    fn record(&mut self, event: Event) -> Result<(), NodeError> {
        let at = self.now();
        self.log.write(at, &event).map_err(NodeError::EventLog)?;
        if let Some(watch) = &self.watch {
            // Whoever watched may have stopped watching.
            let _ = watch.send((at, event));
        }
        Ok(())
    }

    fn count_bytes(&self, mut input: Input) -> Input {
        if let Input::Stepped { wire_bytes_total, .. } = &mut input {
            *wire_bytes_total = self.net.counters().peers.values().map(|peer| peer.sent.udp_bytes).sum();
        }
        input
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// Turns what the network says into an input of the core.
///
/// A connection that broke counts as lost even if it may come back: what was on its way may not have arrived, and this
/// release sends nothing twice.
fn read(event: NetEvent) -> Option<Input> {
    match event {
        NetEvent::Connected { .. } => None,
        NetEvent::Received { from, frame, .. } => Some(match wire::decode(&frame) {
            Ok(message) => Input::Received { from, message },
            Err(error) => Input::Rejected { peer: Some(from), reason: error.to_string() },
        }),
        NetEvent::Interrupted { peer, reason } => {
            Some(Input::Lost { peer, reason: format!("connection broke: {reason}") })
        }
        NetEvent::Lost { peer, reason } => Some(Input::Lost { peer, reason: reason.to_string() }),
        NetEvent::Refused { from, reason } => {
            Some(Input::Rejected { peer: Some(from), reason: reason.to_string() })
        }
    }
}
