//! `trestle join`: a worker that takes part with a ticket.
//!
//! Owns the worker's start and its end. May not decide anything about the run.

use std::io::Read;
use std::path::PathBuf;

use tokio::sync::mpsc;
use trestle_net::Ticket;
use trestle_node::Request;
use trestle_node::roles::{WorkerOptions, work};
use trestle_node::standing::Standing;
use trestle_protocol::event::Event;
use trestle_protocol::ids::StageId;
use trestle_protocol::message::Outcome;
use trestle_protocol::time::{Span, Time};
use trestle_settings::data::LocalData;

use crate::args::JoinArgs;
use crate::device::{cores, prepare};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::standing;

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
    let (standing, standings) = mpsc::unbounded_channel();
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
        standing: Some(standing),
    };
    let notice = Span(u64::try_from(args.notice.as_micros()).unwrap_or(u64::MAX));
    let style = if args.json { Style::Json } else { Style::Words };
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))?;
    let outcome = runtime.block_on(async {
        let (request, requests) = mpsc::channel(1);
        tokio::spawn(leave_when_asked(Interrupts::listen()?, request, notice));
        let telling = tokio::spawn(tell(standings, events, style));
        let outcome = work(options, requests).await;
        // It ends by itself: who tells it is gone.
        let _ = telling.await;
        outcome.map_err(Failure::from)
    })?;
    match outcome {
        Outcome::Done | Outcome::Stopped { .. } | Outcome::Left => Ok(()),
        Outcome::Failed { reason } => {
            Err(Failure::failed(reason)
                .hint("join again once the coordinator has been started with `--resume`"))
        }
    }
}

/// The first request asks to leave within the notice; the second ends this process at once.
async fn leave_when_asked(mut interrupts: Interrupts, request: mpsc::Sender<Request>, notice: Span) {
    interrupts.next().await;
    // Before the run has begun nobody takes the request, and there is nothing to hand in.
    let _ = request.try_send(Request::Leave { notice });
    interrupts.next().await;
    std::process::exit(1);
}

/// How an owner is told where the worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Words,
    Json,
}

/// Says what an owner of a device wants to know: where the worker stands, and what goes wrong.
async fn tell(
    mut standings: mpsc::UnboundedReceiver<(Time, Standing)>,
    mut events: mpsc::UnboundedReceiver<(Time, Event)>,
    style: Style,
) {
    loop {
        let (at, words, json) = tokio::select! {
            biased;
            Some((at, standing)) = standings.recv() => {
                (at, Some(standing::words(&standing)), standing::json(&standing))
            }
            Some((at, event)) = events.recv() => (at, trouble(&event), None),
            else => return,
        };
        match (style, words, json) {
            (Style::Words, Some(words), _) => eprintln!("{at} {words}"),
            (Style::Json, _, Some(json)) => println!("{json}"),
            (Style::Json, Some(words), None) => eprintln!("{at} {words}"),
            (Style::Words | Style::Json, None, _) => {}
        }
    }
}

/// What goes wrong, and what is on disk.
fn trouble(event: &Event) -> Option<String> {
    Some(match event {
        Event::Saved { step, .. } => format!("saved at step {step}"),
        Event::PeerLost { peer, reason, .. } => format!("peer {peer} is lost: {reason}"),
        Event::RefusedBy { peer, refusal } => {
            format!("peer {peer} refused: {}: {refusal}", standing::code(refusal))
        }
        Event::Refused { peer, refusal } => {
            format!("refused peer {peer}: {}: {refusal}", standing::code(refusal))
        }
        Event::Rejected { reason, .. } => format!("rejected: {reason}"),
        Event::Finished { outcome } => match outcome {
            Outcome::Done => "done: the run is complete".into(),
            Outcome::Left => "left".into(),
            Outcome::Stopped { step } => format!("stopped with the run, at step {step}"),
            Outcome::Failed { .. } => return None,
        },
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
        | Event::Waiting { .. }
        | Event::Seated { .. }
        | Event::Suspected { .. }
        | Event::Trusted { .. }
        | Event::Leaving { .. }
        | Event::Removed { .. }
        | Event::Stalled { .. }
        | Event::Resumed { .. }
        | Event::Rerouted { .. }
        | Event::Redo { .. }
        | Event::Draining { .. } => return None,
    })
}

/// Ends this process when its standard input closes: a worker of a local run must not outlive the run.
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut rest);
        std::process::exit(1);
    });
}
