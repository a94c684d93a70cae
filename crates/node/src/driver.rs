//! The driver: carries the core's actions to sockets, disk and device, and what happens there back to the core.
//!
//! Owns the loop of one node. Decides nothing: it takes inputs in the order in which they come.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use trestle_net::{Address, Net, NetEvent, SendError, Urgency};
use trestle_protocol::accounts::Account;
use trestle_protocol::event::Event;
use trestle_protocol::ids::PeerId;
use trestle_protocol::message::{Message, Outcome};
use trestle_protocol::node::Node;
use trestle_protocol::port::{Action, Input, StoreItem, StoredItem, Took};
use trestle_protocol::sync::say::Say;
use trestle_protocol::sync::state::StateSay;
use trestle_protocol::sync::task::SyncTask;
use trestle_protocol::time::{Span, Time};
use trestle_protocol::wire;

use crate::error::NodeError;
use crate::event_log::EventLog;
use crate::generation::{Generation, Stamped};
use crate::job::Job;
use crate::links::{Links, Wish};
use crate::standing::Observer;
use crate::state::State;

/// Sends events to whoever watches this process, beside the log.
pub type Watch = mpsc::UnboundedSender<(Time, Event)>;

/// What an operator may ask of a running node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Stop the run at the next border.
    Drain,
    /// Leave the run: the machine is going away.
    Leave {
        /// How long there is.
        notice: Span,
    },
}

/// What an effect that runs elsewhere answers.
#[derive(Debug)]
pub(crate) enum Answer {
    /// A computation for a seat, which may be gone by now.
    Computed(Stamped<Input>),
    /// A dial.
    Dialled { peer: PeerId, result: Result<(), String> },
    /// Anything else.
    Done(Input),
}

/// The threads that compute for a worker.
pub(crate) struct Workshop {
    /// The seat that they compute for.
    pub(crate) generation: Generation,
    pub(crate) jobs: Sender<Stamped<Job>>,
    /// What goes on beside computing.
    pub(crate) tasks: Sender<Stamped<SyncTask>>,
}

/// What one node is driven with.
pub(crate) struct Driver {
    pub(crate) node: Node,
    pub(crate) net: Net,
    pub(crate) network: mpsc::Receiver<NetEvent>,
    pub(crate) answers: mpsc::UnboundedReceiver<Answer>,
    pub(crate) answer: mpsc::UnboundedSender<Answer>,
    pub(crate) links: Links,
    /// Only a worker computes.
    pub(crate) workshop: Option<Workshop>,
    /// Only a coordinator has state.
    pub(crate) state: Option<State>,
    pub(crate) log: EventLog,
    pub(crate) watch: Option<Watch>,
    pub(crate) observer: Option<Observer>,
    pub(crate) began: Instant,
}

impl Driver {
    /// Runs until the core says that it is over.
    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<Request>) -> Result<Outcome, NodeError> {
        let outcome = loop {
            if let Some(outcome) = self.act()? {
                break outcome;
            }
            let wake = self.node.deadline().map(|at| Duration::from_micros(at.since(self.now()).0));
            let input = tokio::select! {
                event = self.network.recv() => match event {
                    Some(event) => self.read(event),
                    None => Some(Input::Faulted { reason: "the network is closed".into() }),
                },
                Some(answer) = self.answers.recv() => self.answered(answer),
                Some(request) = requests.recv() => Some(match request {
                    Request::Drain => Input::Drain,
                    Request::Leave { notice } => Input::Leave { notice },
                }),
                () = sleep(wake) => Some(Input::Woke),
            };
            if let Some(input) = input {
                self.hear(input);
            }
        };
        self.net.close().await;
        Ok(outcome)
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn hear(&mut self, input: Input) {
        let now = self.now();
        if let Some(observer) = &mut self.observer {
            observer.hears(now, &input);
        }
        self.node.handle(now, input);
    }

    /// Carries out everything that the core asks for now; gives the outcome when the node is done.
    fn act(&mut self) -> Result<Option<Outcome>, NodeError> {
        while let Some(action) = self.node.poll() {
            let now = self.now();
            if let Some(observer) = &mut self.observer {
                observer.wants(now, &action);
            }
            match action {
                Action::Dial { peer, address } => self.dial(peer, &address),
                Action::Send { to, message } => self.send(to, &message),
                Action::Load { place, start } => self.take_seat(Job::Load { place, start }),
                Action::Import { place, agreed, own, digest } => {
                    self.take_seat(Job::Import { place, agreed, own, digest });
                }
                Action::Export { outer } => self.compute(Job::Export { outer }),
                Action::Enter { step } => self.compute(Job::Enter { step }),
                Action::Sync(task) => self.agree(task),
                Action::Forward { microbatch, data_index, input } => {
                    self.compute(Job::Forward { microbatch, data_index, input });
                }
                Action::Backward { microbatch, data_index, input, gradient, duty } => {
                    self.compute(Job::Backward { microbatch, data_index, input, gradient, duty });
                }
                Action::Discard { microbatch } => self.compute(Job::Discard { microbatch }),
                Action::Step { microbatches, .. } => self.compute(Job::Step { microbatches }),
                Action::Store(StoreItem::Checkpoint { step }) => self.compute(Job::Save { step }),
                Action::Store(StoreItem::Coordinator { state, accounts }) => self.store(&state, &accounts),
                Action::Record(event) => self.record(event)?,
                Action::Finish(outcome) => return Ok(Some(outcome)),
            }
        }
        Ok(None)
    }

    fn dial(&mut self, peer: PeerId, address: &[u8]) {
        match self.links.wanted(peer) {
            Wish::Granted(input) => self.answer(Answer::Done(*input)),
            Wish::UnderWay => {}
            Wish::Dial => {
                let (net, answer) = (self.net.clone(), self.answer.clone());
                let address = Address::from_bytes(address);
                tokio::spawn(async move {
                    let result = match address {
                        Ok(address) => net.dial(peer, &address).await.map_err(|error| error.to_string()),
                        Err(error) => Err(error.to_string()),
                    };
                    // The driver may have ended meanwhile.
                    let _ = answer.send(Answer::Dialled { peer, result });
                });
            }
        }
    }

    fn send(&mut self, to: PeerId, message: &Message) {
        let chunk =
            matches!(message, Message::Sync(Say::Chunk { .. }) | Message::State(StateSay::Chunk { .. }));
        let urgency = if chunk { Urgency::Bulk } else { Urgency::Work };
        let Err(error) = self.net.send_as(to, wire::encode(message), urgency) else { return };
        let reason = error.to_string();
        let input = match (error, urgency) {
            (SendError::NotConnected { .. }, _) => self.links.unsent(to, reason),
            // Who asked for a chunk and does not get it asks again.
            (SendError::Full { .. }, Urgency::Bulk) => None,
            (SendError::Full { .. }, Urgency::Work) => self.links.overrun(to, reason),
            (SendError::TooLarge { .. }, _) => Some(Input::Faulted { reason }),
        };
        if let Some(input) = input {
            self.answer(Answer::Done(input));
        }
    }

    /// Snapshots and adoptions touch the weights that compute; all else goes on beside.
    fn agree(&self, task: SyncTask) {
        match task {
            SyncTask::Snapshot { outer, microbatches } => {
                self.compute(Job::Snapshot { outer, microbatches });
            }
            SyncTask::Adopt { outer } => self.compute(Job::Adopt { outer }),
            SyncTask::Encode { .. }
            | SyncTask::Reduce { .. }
            | SyncTask::Stage { .. }
            | SyncTask::Commit { .. }
            | SyncTask::Restore { .. } => {
                let workshop = self.workshop();
                if workshop.tasks.send(workshop.generation.stamp(task)).is_err() {
                    self.fault("the thread of the outer steps is gone");
                }
            }
        }
    }

    /// Begins another seat: what was asked for the former one is not answered any more.
    fn take_seat(&self, job: Job) {
        self.workshop().generation.advance();
        self.compute(job);
    }

    fn compute(&self, job: Job) {
        let workshop = self.workshop();
        if workshop.jobs.send(workshop.generation.stamp(job)).is_err() {
            self.fault("the compute thread is gone");
        }
    }

    fn workshop(&self) -> &Workshop {
        self.workshop.as_ref().expect("only a worker's core asks for computation")
    }

    fn fault(&self, reason: &str) {
        self.answer(Answer::Done(Input::Faulted { reason: reason.into() }));
    }

    fn answer(&self, answer: Answer) {
        // The loop that reads answers is this one; it cannot be gone while it runs.
        let _ = self.answer.send(answer);
    }

    /// Commits take a few milliseconds: the loop waits for them.
    fn store(&mut self, state: &[u8], accounts: &[Account]) {
        let began = Instant::now();
        let file = self.state.as_mut().expect("only a coordinator's core stores its state");
        let input = match file.store(state, accounts) {
            Ok(()) => {
                let total = Span(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
                Input::Stored { item: StoredItem::Coordinator, took: Took { total, ..Took::default() } }
            }
            Err(error) => Input::Faulted { reason: format!("{error} (hint: {})", error.hint()) },
        };
        self.answer(Answer::Done(input));
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

    fn answered(&mut self, answer: Answer) -> Option<Input> {
        match answer {
            Answer::Done(input) => Some(input),
            Answer::Dialled { peer, result } => self.links.dialled(peer, result),
            Answer::Computed(stamped) => {
                let input = self.workshop().generation.current(stamped)?;
                Some(self.count_bytes(input))
            }
        }
    }

    fn count_bytes(&self, mut input: Input) -> Input {
        if let Input::Stepped { wire_bytes_total, .. } = &mut input {
            *wire_bytes_total = self.net.counters().peers.values().map(|peer| peer.sent.udp_bytes).sum();
        }
        input
    }

    /// Turns what the network says into an input of the core. A connection that broke counts as lost even if the transport
    /// tries to win the peer back: what was on its way may not have arrived.
    fn read(&mut self, event: NetEvent) -> Option<Input> {
        match event {
            NetEvent::Connected { peer } => Some(self.links.connected(peer)),
            NetEvent::Received { from, frame, .. } => Some(match wire::decode(&frame) {
                Ok(message) => Input::Received { from, message },
                Err(error) => Input::Rejected { peer: Some(from), reason: error.to_string() },
            }),
            NetEvent::Interrupted { peer, reason } => {
                self.links.broke(peer, format!("connection broke: {reason}"))
            }
            NetEvent::Lost { peer, reason } => self.links.broke(peer, reason.to_string()),
            NetEvent::Refused { from, reason } => {
                Some(Input::Rejected { peer: Some(from), reason: reason.to_string() })
            }
        }
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
