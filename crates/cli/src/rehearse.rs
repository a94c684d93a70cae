//! `trestle rehearse`: outer steps without training, to measure how fast replicas agree.
//!
//! Owns the start of host and replicas, and what is printed. May not decide anything about the exchange.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use serde_json::json;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use trestle_net::Ticket;
use trestle_node::rehearsal::{BoundHost, GuestOptions, HostOptions, take_part};
use trestle_protocol::event::{Event, Verdict};
use trestle_protocol::ids::Digest;
use trestle_protocol::message::Outcome;
use trestle_protocol::spec::RunSpec;
use trestle_protocol::time::Time;

use crate::args::RehearseArgs;
use crate::failure::Failure;
use crate::join::end_with_parent;
use crate::progress::lines::outer_json;
use crate::run_file::RunFile;
use crate::units::count;

/// Parameters of a row: the rehearsed model is one matrix.
const ROW: u64 = 1024;

/// Runs the command.
pub(crate) fn rehearse(args: &RehearseArgs) -> Result<(), Failure> {
    if args.tied {
        end_with_parent();
    }
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))?;
    let temporary =
        tempfile::tempdir().map_err(|error| Failure::failed(format!("no temporary folder: {error}")))?;
    let directory = args.dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    let outcome = match &args.join {
        Some(ticket) => runtime.block_on(join(args, ticket, directory)),
        None => runtime.block_on(host(args, &directory)),
    }?;
    match outcome {
        Outcome::Done | Outcome::Stopped { .. } | Outcome::Left => Ok(()),
        Outcome::Failed { reason } => Err(Failure::failed(reason)),
    }
}

async fn join(args: &RehearseArgs, ticket: &str, directory: PathBuf) -> Result<Outcome, Failure> {
    let ticket: Ticket = ticket
        .parse()
        .map_err(|error: trestle_net::TicketError| Failure::misused(&error).hint(error.hint()))?;
    // Replicas of a local rehearsal stay on this computer.
    let address = if args.tied { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    let listen = SocketAddr::from((address, 0));
    let options = GuestOptions { ticket, directory, name: args.name.clone(), listen, watch: None };
    let (_stop, stopped) = mpsc::channel(1);
    Ok(take_part(options, stopped).await?)
}

async fn host(args: &RehearseArgs, directory: &Path) -> Result<Outcome, Failure> {
    let (watch, mut events) = mpsc::unbounded_channel();
    let listen = args.listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let options =
        HostOptions { spec: spec(args)?, directory: directory.to_owned(), listen, watch: Some(watch) };
    let host = BoundHost::bind(options).await?;
    let mut replicas = Vec::new();
    if args.listen.is_some() {
        println!("{}", host.ticket());
        eprintln!("waiting for {} peers to `trestle rehearse --join` with this ticket", args.replicas);
    } else {
        for replica in 0..args.replicas {
            let child = spawn(host.ticket(), directory, replica)
                .map_err(|error| Failure::failed(format!("cannot start replica {replica}: {error}")))?;
            if args.json {
                println!("{}", json!({ "event": "replica", "replica": replica, "pid": child.id() }));
            }
            replicas.push(child);
        }
    }
    let (_stop, stopped) = mpsc::channel(1);
    let running = host.run(stopped);
    tokio::pin!(running);
    let mut said = Said::new(args);
    let outcome = loop {
        tokio::select! {
            biased;
            Some((at, event)) = events.recv() => said.event(at, &event),
            outcome = &mut running => break outcome?,
        }
    };
    while let Ok((at, event)) = events.try_recv() {
        said.event(at, &event);
    }
    said.finish();
    for mut replica in replicas {
        let _ = replica.wait().await;
    }
    Ok(outcome)
}

fn spawn(ticket: &Ticket, directory: &Path, replica: u16) -> std::io::Result<Child> {
    let name = format!("replica-{replica}");
    std::fs::create_dir_all(directory.join(&name))?;
    let words = File::create(directory.join(&name).join("stderr.log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["rehearse", "--tied", "--name", &name, "--join"]).arg(ticket.to_string());
    command.arg("--dir").arg(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(words).kill_on_drop(true).spawn()
}

/// Writes the rehearsal as a run file, so that its words and bounds are those of every run.
fn spec(args: &RehearseArgs) -> Result<RunSpec, Failure> {
    let rows = args.parameters.div_ceil(ROW);
    let (rule, inner_steps) = match &args.rule[..] {
        "gradients" => ("mean", 1),
        rule => (rule, 2),
    };
    let text = format!(
        "[model]\nvocabulary = {rows}\nwidth = {ROW}\nlayers = 1\nheads = 1\nkv_heads = 1\nffn_width = 1\n\
         sequence_len = 8\n[pipeline]\nreplicas = {replicas}\nmicrobatches_per_step = 1\nmicrobatch_size = 1\n\
         [training]\nsteps = {steps}\n[sync]\ninner_steps = {inner_steps}\noverlap = false\nrule = {rule:?}\n\
         codec = {codec:?}\n[data]\nsource = \"generated\"\n[evaluation]\nmicrobatches = 0\n[checkpoint]\nevery = 0\n",
        replicas = args.replicas,
        steps = args.rounds * inner_steps,
        codec = args.codec,
    );
    let file = RunFile::parse(Path::new("rehearsal.toml"), &text, &[])?;
    Ok(file.spec(Digest([0; 32]), rows as u32)?)
}

/// What people or scripts are told.
struct Said {
    json: bool,
    parameters: u64,
    began: Option<Instant>,
    rounds: Vec<f64>,
}

impl Said {
    fn new(args: &RehearseArgs) -> Self {
        Self { json: args.json, parameters: args.parameters, began: None, rounds: Vec::new() }
    }

    fn event(&mut self, at: Time, event: &Event) {
        if let Event::Started { .. } = event {
            self.began = Some(Instant::now());
        }
        if let Event::Outer(summary) = event {
            if summary.verdict == Verdict::Committed {
                self.rounds.push(summary.took.as_secs_f64());
            }
            if self.json {
                let mut line = outer_json(summary);
                line["at_seconds"] = json!(at.0 as f64 / 1e6);
                line["contributors"] = json!(summary.contributors.first().map_or(0, |(_, who)| who.len()));
                println!("{line}");
            } else {
                let verdict = match summary.verdict {
                    Verdict::Committed => "committed",
                    Verdict::Restored => "restored",
                };
                let (outer, took) = (summary.outer.0, summary.took.as_secs_f64());
                eprintln!("outer step {outer} {verdict} in {took:.3} s, try {}", summary.attempts.0);
            }
        }
        if let (Event::Excluded { peer, .. } | Event::PeerLost { peer, .. }, false) = (event, self.json) {
            eprintln!("peer {peer} is lost");
        }
    }

    fn finish(&self) {
        let mut rounds = self.rounds.clone();
        rounds.sort_by(f64::total_cmp);
        if let (Some(median), Some(began), false) = (rounds.get(rounds.len() / 2), self.began, self.json) {
            println!(
                "{} parameters: {median:.3} s a committed outer step (median of {}), {:.3} s in all",
                count(self.parameters),
                rounds.len(),
                began.elapsed().as_secs_f64()
            );
        }
    }
}
