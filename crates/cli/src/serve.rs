//! `trestle serve`: the coordinator alone; workers join from elsewhere with its ticket.
//!
//! Owns the printing of the ticket. May not decide anything about the run.

use tokio::sync::mpsc;
use trestle_node::roles::{Beginning, BoundCoordinator, CoordinatorOptions};
use trestle_protocol::message::Outcome;

use crate::args::ServeArgs;
use crate::attend::attend;
use crate::failure::Failure;
use crate::progress::{Progress, Style};
use crate::run::{self, Run};

/// Runs the command.
pub(crate) fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let run = run::open(&args.run)?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))?;
    match runtime.block_on(drive(args, &run))? {
        Outcome::Done | Outcome::Left => Ok(()),
        Outcome::Stopped { step } => {
            eprintln!("stopped after step {step}; `--resume` goes on exactly there");
            Ok(())
        }
        Outcome::Failed { reason } => Err(Failure::failed(reason)
            .hint("start it again with `--resume`; workers that are still there find it by themselves")),
    }
}

async fn drive(args: &ServeArgs, run: &Run) -> Result<Outcome, Failure> {
    let (watch, events) = mpsc::unbounded_channel();
    let coordinator = BoundCoordinator::bind(CoordinatorOptions {
        spec: run.spec.clone(),
        directory: run.directory.clone(),
        listen: args.listen,
        advertise: args.advertise.clone(),
        beginning: run.beginning,
        watch: Some(watch),
    })
    .await?;
    run::keep(run)?;
    println!("{}", coordinator.ticket());
    let places = run.spec.stages() * run.spec.pipeline.replicas;
    match run.beginning {
        Beginning::Anew => eprintln!("waiting for {places} peers to `trestle join` with this ticket"),
        Beginning::Resume => {
            eprintln!("waiting for the run's peers; new ones `trestle join` with this ticket")
        }
    }
    let style = if args.json { Style::Json } else { Style::for_people() };
    let mut progress = Progress::new(&run.spec, style, run.dataset.entropy_floor());
    let (_, notes) = mpsc::unbounded_channel();
    attend(coordinator, (events, notes), &mut progress, std::future::pending()).await
}
