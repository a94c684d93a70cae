//! `trestle join`: a worker that takes part with a ticket.
//!
//! Owns the worker's start and its end. May not decide anything about the run.

use std::io::Read;
use std::path::PathBuf;

use tokio::sync::mpsc;
use trestle_net::Ticket;
use trestle_node::roles::{WorkerOptions, work};
use trestle_protocol::event::Event;
use trestle_protocol::ids::StageId;
use trestle_protocol::message::Outcome;
use trestle_protocol::time::Time;
use trestle_settings::data::LocalData;

use crate::args::JoinArgs;
use crate::device::{cores, prepare};
use crate::failure::Failure;
use crate::interrupt::Interrupts;

/// Where a peer keeps its key, log and checkpoints unless `--dir` says otherwise.
const PEER_FOLDER: &str = "trestle-peer";

/// Runs the command.
pub(crate) fn join(args: &JoinArgs) -> Result<(), Failure> {
    let ticket: Ticket = args
        .ticket
        .parse()
        .map_err(|error: trestle_net::TicketError| Failure::misused(&error).hint(error.hint()))?;
    let device = prepare(&args.device.device, args.device.threads.map_or_else(cores, usize::from))?;
    if args.tied {
        end_with_parent();
    }
    let (watch, events) = mpsc::unbounded_channel();
    let options = WorkerOptions {
        ticket,
        directory: args.dir.clone().unwrap_or_else(|| PathBuf::from(PEER_FOLDER)),
        name: args.name.clone(),
        listen: args.listen,
        advertise: args.advertise.clone(),
        stage: args.stage.map(StageId),
        device,
        peak_flops: args.peak_flops,
        local: LocalData {
            path: args.data.clone(),
            field: args.field.clone(),
            tokenizer: args.tokenizer.clone(),
        },
        watch: Some(watch),
    };
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))?;
    let outcome = runtime.block_on(async {
        let (stop, stopped) = mpsc::channel(1);
        let mut interrupts = Interrupts::listen()?;
        tokio::spawn(async move {
            loop {
                interrupts.next().await;
                if stop.try_send(()).is_err() {
                    std::process::exit(1);
                }
            }
        });
        tokio::spawn(tell(events));
        work(options, stopped).await.map_err(Failure::from)
    })?;
    match outcome {
        Outcome::Done | Outcome::Stopped { .. } => Ok(()),
        Outcome::Failed { reason } => {
            Err(Failure::failed(reason)
                .hint("join again once the coordinator has been started with `--resume`"))
        }
    }
}

/// Says what an owner of a device wants to know: that it has a place, and what goes wrong.
async fn tell(mut events: mpsc::UnboundedReceiver<(Time, Event)>) {
    while let Some((at, event)) = events.recv().await {
        match event {
            Event::Computed { task: trestle_protocol::event::TaskKind::Load, .. } => {
                eprintln!("{at} a stage is loaded; waiting for work");
            }
            Event::Saved { step, .. } => eprintln!("{at} saved at step {step}"),
            Event::PeerLost { peer, reason, .. } => eprintln!("{at} peer {peer} is lost: {reason}"),
            Event::RefusedBy { peer, refusal } => eprintln!("{at} peer {peer} refused: {refusal}"),
            Event::Refused { peer, refusal } => eprintln!("{at} refused peer {peer}: {refusal}"),
            Event::Rejected { reason, .. } => eprintln!("{at} rejected: {reason}"),
            Event::Joined { .. }
            | Event::Planned { .. }
            | Event::Started { .. }
            | Event::Leased { .. }
            | Event::LeaseExpired { .. }
            | Event::Computed { .. }
            | Event::Duplicate { .. }
            | Event::Step(_)
            | Event::Outer(_)
            | Event::Agreed { .. }
            | Event::Restored { .. }
            | Event::Flawed { .. }
            | Event::Disagreed { .. }
            | Event::Excluded { .. }
            | Event::Evaluated { .. }
            | Event::Durable { .. }
            | Event::Ledger { .. }
            | Event::Draining { .. }
            | Event::Finished { .. } => {}
        }
    }
}

/// Ends this process when its standard input closes: a worker of a local run must not outlive the run.
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut rest);
        std::process::exit(1);
    });
}
