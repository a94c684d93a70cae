//! A coordinator in this process, attended by a person: progress, Ctrl-C, and trouble beside it.
//!
//! Owns the loop that `train` and `serve` share. May not know where the workers are.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use trestle_node::Request;
use trestle_node::roles::BoundCoordinator;
use trestle_protocol::event::Event;
use trestle_protocol::message::Outcome;
use trestle_protocol::time::Time;

use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::progress::{Note, Progress};

/// What the coordinator tells, as it happens.
pub(crate) type Events = mpsc::UnboundedReceiver<(Time, Event)>;

/// What to do after most failures.
pub(crate) const RESUME_HINT: &str = "`--resume` goes on from the last checkpoint";

/// How long the coordinator may take to say itself what the trouble beside it means.
const EXPLANATION_WAIT: Duration = Duration::from_millis(500);

/// Runs a coordinator to its end. `trouble` ends the run early, unless the coordinator knows better why.
pub(crate) async fn attend(
    coordinator: BoundCoordinator,
    (mut events, mut notes): (Events, mpsc::UnboundedReceiver<Note>),
    progress: &mut Progress,
    trouble: impl Future<Output = Failure>,
) -> Result<Outcome, Failure> {
    let (request, requests) = mpsc::channel(1);
    let running = coordinator.run(requests);
    tokio::pin!(running);
    tokio::pin!(trouble);
    let mut interrupts = Interrupts::listen()?;
    let mut asked = 0;
    let outcome = loop {
        tokio::select! {
            biased;
            Some((at, event)) = events.recv() => progress.event(at, &event),
            Some(note) = notes.recv() => progress.note(&note),
            outcome = &mut running => break outcome?,
            failure = &mut trouble => {
                return match tokio::time::timeout(EXPLANATION_WAIT, &mut running).await {
                    Ok(Ok(Outcome::Failed { reason })) => Err(Failure::failed(reason).hint(RESUME_HINT)),
                    Ok(_) | Err(_) => Err(failure),
                };
            }
            () = interrupts.next() => {
                asked += 1;
                if asked > 1 {
                    return Err(Failure::failed("stopped at once").hint(RESUME_HINT));
                }
                eprintln!("stopping at the end of the step; Ctrl-C again stops at once");
                // The channel holds one request, and one is all that is ever sent.
                let _ = request.try_send(Request::Drain);
            }
        }
    };
    while let Ok((at, event)) = events.try_recv() {
        progress.event(at, &event);
    }
    progress.finish();
    Ok(outcome)
}
