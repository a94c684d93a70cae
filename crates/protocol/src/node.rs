//! A node: the three verbs through which any driver, real or simulated, runs the core.
//!
//! Owns nothing but the role and the queue of actions. Knows nothing of sockets, clocks or tensors.

use crate::coordinator::{Coordinator, CoordinatorConfig};
use crate::durable::StateError;
use crate::ids::PeerId;
use crate::message::Join;
use crate::port::{Action, Input, Outbox};
use crate::rehearsal::{Guest, Host};
use crate::spec::RunSpec;
use crate::time::Time;
use crate::worker::{Worker, WorkerConfig};
use alloc::boxed::Box;

/// One peer of a run.
pub struct Node {
    role: Role,
    outbox: Outbox,
}

enum Role {
    Coordinator(Box<Coordinator>),
    Worker(Box<Worker>),
    Host(Box<Host>),
    Guest(Box<Guest>),
}

impl Node {
    /// Makes the coordinator; `state` is what it stored last, when it starts again.
    pub fn coordinator(config: CoordinatorConfig, state: Option<&[u8]>) -> Result<Self, StateError> {
        let coordinator = Coordinator::new(config, state)?;
        Ok(Self { role: Role::Coordinator(Box::new(coordinator)), outbox: Outbox::default() })
    }

    /// Makes a worker.
    pub fn worker(config: WorkerConfig) -> Self {
        Self { role: Role::Worker(Box::new(Worker::new(config))), outbox: Outbox::default() }
    }

    /// Makes the host of a rehearsal.
    pub fn host(spec: RunSpec, me: PeerId) -> Self {
        Self { role: Role::Host(Box::new(Host::new(spec, me))), outbox: Outbox::default() }
    }

    /// Makes a replica of a rehearsal.
    pub fn guest(spec: &RunSpec, me: PeerId, host: PeerId, join: Join) -> Self {
        let guest = Guest::new(spec, me, host, join);
        Self { role: Role::Guest(Box::new(guest)), outbox: Outbox::default() }
    }

    /// Takes something that happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        match &mut self.role {
            Role::Coordinator(coordinator) => coordinator.handle(now, input, &mut self.outbox),
            Role::Worker(worker) => worker.handle(now, input, &mut self.outbox),
            Role::Host(host) => host.handle(now, input, &mut self.outbox),
            Role::Guest(guest) => guest.handle(now, input, &mut self.outbox),
        }
    }

    /// Gives the next thing to do.
    pub fn poll(&mut self) -> Option<Action> {
        self.outbox.pop()
    }

    /// Returns when to call `handle` with `Input::Woke`, if nothing else happens first.
    pub fn deadline(&self) -> Option<Time> {
        match &self.role {
            Role::Coordinator(coordinator) => coordinator.deadline(),
            Role::Worker(worker) => worker.deadline(),
            Role::Host(host) => host.deadline(),
            Role::Guest(guest) => guest.deadline(),
        }
    }

    /// Returns the bytes of boundary inputs kept for backwards to come; 0 at the coordinator.
    pub fn kept_bytes(&self) -> usize {
        match &self.role {
            Role::Coordinator(_) | Role::Host(_) | Role::Guest(_) => 0,
            Role::Worker(worker) => worker.kept_bytes(),
        }
    }

    /// Returns how many training microbatches wait for their backward; `None` where none can.
    pub fn in_flight(&self) -> Option<usize> {
        match &self.role {
            Role::Coordinator(_) | Role::Host(_) | Role::Guest(_) => None,
            Role::Worker(worker) => worker.in_flight(),
        }
    }
}
