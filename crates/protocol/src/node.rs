//! A node: the three verbs through which any driver, real or simulated, runs the core.
//!
//! Owns nothing but the role and the queue of actions. Knows nothing of sockets, clocks or tensors.

use crate::coordinator::{Coordinator, CoordinatorConfig, StateError};
use crate::port::{Action, Input, Outbox};
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

    /// Takes something that happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        match &mut self.role {
            Role::Coordinator(coordinator) => coordinator.handle(now, input, &mut self.outbox),
            Role::Worker(worker) => worker.handle(now, input, &mut self.outbox),
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
            Role::Worker(_) => None,
        }
    }

    /// Returns the bytes of boundary inputs kept for backwards to come; 0 at the coordinator.
    pub fn kept_bytes(&self) -> usize {
        match &self.role {
            Role::Coordinator(_) => 0,
            Role::Worker(worker) => worker.kept_bytes(),
        }
    }
}
