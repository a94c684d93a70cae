//! The compute thread: the one place of a process where tensors are made.
//!
//! Owns the seat that is held now. Carries out one job after another and decides nothing.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use trestle_protocol::port::Input;

use crate::generation::{Generation, Stamped};
use crate::job::{ComputeConfig, Job};
use crate::seat::{ImportError, Seat, took};

/// Starts the thread. It ends when the sender of jobs is dropped; jobs of a former seat are not begun.
pub(crate) fn start(
    config: ComputeConfig,
    generation: Generation,
    answer: impl Fn(Stamped<Input>) + Send + 'static,
) -> std::io::Result<mpsc::Sender<Stamped<Job>>> {
    let (jobs, queue) = mpsc::channel::<Stamped<Job>>();
    thread::Builder::new().name("compute".into()).spawn(move || {
        let mut computer = Computer { config, seat: None };
        for stamped in queue {
            let stamp = stamped.generation;
            let Some(job) = generation.current(stamped) else { continue };
            let input = computer.run(job).unwrap_or_else(|reason| Some(Input::Faulted { reason }));
            if let Some(input) = input {
                answer(Stamped { generation: stamp, what: input });
            }
        }
    })?;
    Ok(jobs)
}

struct Computer {
    config: ComputeConfig,
    seat: Option<Seat>,
}

impl Computer {
    fn run(&mut self, job: Job) -> Result<Option<Input>, String> {
        let began = Instant::now();
        let loaded = |step| Some(Input::Loaded { step, took: took(began, Duration::ZERO) });
        match job {
            Job::Load { place, start } => {
                // The former seat's memory comes first: there may be no room for two.
                self.seat = None;
                let (seat, step) = Seat::load(&self.config, place, start)?;
                self.seat = Some(seat);
                Ok(loaded(step))
            }
            Job::Import { place, agreed, own, digest } => {
                match Seat::import(&self.config, place, (&agreed, &own), digest) {
                    Ok((seat, step)) => {
                        self.seat = Some(seat);
                        Ok(loaded(step))
                    }
                    Err(ImportError::Unfit(reason)) => Ok(Some(Input::Unfit { reason })),
                    Err(ImportError::Fault(reason)) => Err(reason),
                }
            }
            job @ (Job::Export { .. }
            | Job::Enter { .. }
            | Job::Forward { .. }
            | Job::Backward { .. }
            | Job::Discard { .. }
            | Job::Step { .. }
            | Job::Save { .. }
            | Job::Snapshot { .. }
            | Job::Adopt { .. }) => {
                let seat = self.seat.as_mut().expect("the core takes a seat before it computes");
                seat.run(&self.config, job)
            }
        }
    }
}
