//! The command line: commands, options and their help.
//!
//! Owns the words a person types. May not know what is done with them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use trestle_fleet::quantity::Quantity;

use crate::units::time;

/// Trains one language model, split into stages, over many computers.
#[derive(Debug, Parser)]
#[command(name = "trestle", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  trestle train runs/demo.toml                    a first run, with nothing to download
  trestle train runs/tiny.toml --data book.txt    a small model on your own text
  trestle generate trestle-run/tiny --prompt 'Once'

Results go to stdout, everything else to stderr.
Exit codes: 0 done, 1 failed, 2 misused.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train on this computer: a coordinator, and one process for each stage.
    Train(TrainArgs),
    /// Coordinate a run that peers join from elsewhere; prints the ticket they need.
    Serve(ServeArgs),
    /// Join a run and hold one of its stages.
    Join(JoinArgs),
    /// Say what a fleet would do with a run, before anything is rented: who holds what, how fast, how dear.
    Plan(PlanArgs),
    /// Measure this computer's device with a run's stage, and print it as a device of a fleet file.
    Profile(ProfileArgs),
    /// Run scenarios in the simulator: the same decisions, in virtual time.
    Simulate(SimulateArgs),
    /// Measure how fast replicas agree: outer steps without training, here or between computers.
    Rehearse(RehearseArgs),
    /// Let a trained model continue a text.
    Generate(GenerateArgs),
    /// Say what is in a run file, a checkpoint, an event log or the folder of a run.
    Inspect(InspectArgs),
    /// Print the completions of a shell.
    Completions(CompletionsArgs),
}

/// What `train` and `serve` both take: which run, on which text, changed how.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The run file; docs/run-file.md lists its fields.
    #[arg(value_name = "RUN.toml")]
    pub(crate) run_file: PathBuf,
    /// The text: a file or a folder of .txt files, or a file of JSON lines, as data.source says.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// Folder of the run: checkpoints, state and event logs [default: trestle-run/NAME]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Continue the run in its folder from where it stopped.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Train for this many steps: training.steps.
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,
    /// The seed of the weights and of the order of samples: seed.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Peers that hold the same stage: pipeline.replicas.
    #[arg(long, value_name = "N")]
    pub(crate) replicas: Option<u64>,
    /// Set any field of the run file; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

/// What every process that computes takes.
#[derive(Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Where to compute: auto, cpu, cuda, cuda:1 or mps.
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// Threads of each worker [default: the cores of this computer, shared between its workers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

/// Arguments of `train`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  trestle train runs/demo.toml
  trestle train runs/tiny.toml --data book.txt --sample 200 --prompt 'Once'
  trestle train runs/tiny.toml --data book.txt --set boundary.width=16 --set optimizer.kind=muon
  trestle train runs/tiny.toml --data book.txt --resume
  trestle train runs/demo.toml --chaos kill=0.2/min,freeze=0.1/min:10s

A worker that falls is replaced, and the run goes on.
Ctrl-C stops at the end of the step, saved; --resume goes on exactly there.")]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Tokens to generate at the end.
    #[arg(long, value_name = "TOKENS", default_value_t = 120)]
    pub(crate) sample: u32,
    /// What the generated text begins with [default: the first words of the held-out text]
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// Harm the workers of this run on purpose, to see it go on: kill, term, freeze or slow, each at a rate for each worker,
    /// such as kill=0.2/min,term=0.1/min,freeze=0.2/min:10s,slow=0.1/min:30s; kill-one-at=120 kills one at that step.
    #[arg(long, value_name = "KINDS", verbatim_doc_comment)]
    pub(crate) chaos: Option<String>,
    /// Print each step as a line of JSON on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  trestle serve runs/tiny.toml --data book.txt --listen 0.0.0.0:4433
  trestle serve runs/tiny.toml --data book.txt --resume

Prints the ticket on stdout, the same again after --resume, so that peers find the way back; each peer then runs `trestle join TICKET`. Peers that hold the first or the
last stage need the same text: `trestle join TICKET --data book.txt`.")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:0")]
    pub(crate) listen: SocketAddr,
    /// Address at which others reach this peer, if it is another; may be given several times.
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise: Vec<SocketAddr>,
    /// Print each step as a line of JSON on stdout, after the ticket.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `join`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  trestle join trestle1abc...
  trestle join trestle1abc... --stage 0 --data book.txt
  trestle join trestle1abc... --device cuda:1
  trestle join trestle1abc... --notice 2min     for a machine that is told two minutes before it goes

SIGTERM or Ctrl-C asks to leave: the peer hands in what it has done, and ends within the notice. The second
ends it at once; others then do again what it had not handed in. A peer that is removed while it is alive
joins again by itself, with what is on its disk.")]
pub(crate) struct JoinArgs {
    /// The ticket that `trestle serve` printed.
    pub(crate) ticket: String,
    /// The stage to ask for, counted from 0 [default: whichever is free]
    #[arg(long, value_name = "N")]
    pub(crate) stage: Option<u16>,
    /// The run's text, which the first and the last stage read.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// The run's tokenizer.json, if it has one.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// The field of JSON lines that holds the text; without it, the text is read as it is.
    #[arg(long, value_name = "NAME")]
    pub(crate) field: Option<String>,
    /// Name of this peer's own folder in there.
    #[arg(long, value_name = "NAME", default_value = "worker", hide = true)]
    pub(crate) name: String,
    /// How long this peer can stay once it is asked to leave: 30s, 2min.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub(crate) notice: Duration,
    /// Print where this peer stands as lines of JSON on stdout.
    #[arg(long)]
    pub(crate) json: bool,
    /// End when standard input closes.
    #[arg(long, hide = true)]
    pub(crate) tied: bool,
    /// The device's peak in FLOP/s, instead of measuring it.
    #[arg(long, value_name = "FLOPS", hide = true)]
    pub(crate) peak_flops: Option<f64>,
    /// Folder of this peer: its key, checkpoints and event log [default: trestle-peer]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:0")]
    pub(crate) listen: SocketAddr,
    /// Address at which others reach this peer, if it is another; may be given several times.
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise: Vec<SocketAddr>,
}

/// Arguments of `simulate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  trestle simulate sim/scenarios/*.txt --seed 7
  trestle simulate sim/scenarios/churn_kill.txt --events kill.jsonl && trestle inspect kill.jsonl
  trestle simulate runs/100b.toml --fleet fleets/orion.toml --replicas 3 --for 48h
  trestle simulate runs/8b.toml --fleet my-fleet.toml --tokens 1B --seeds 5 --picture run.svg")]
pub(crate) struct SimulateArgs {
    /// Scenario files, each a script and its outcome; with --fleet one run file.
    #[arg(value_name = "SCENARIO|RUN.toml", required = true)]
    pub(crate) scenarios: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) fleet: SimulatedFleetArgs,
    /// The seed of every draw [default: the scenario's; 1 for a fleet]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Write the event log of the scenario or the run, of which there must be one, to this new file: NAME.jsonl.
    #[arg(long, value_name = "FILE")]
    pub(crate) events: Option<PathBuf>,
    /// Print the outcome as a line of JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `simulate` takes beside, for a run on a fleet.
#[derive(Debug, Args)]
pub(crate) struct SimulatedFleetArgs {
    /// Play a run on this fleet, instead of scenarios; docs/plan.md lists its fields.
    #[arg(long = "fleet", value_name = "FLEET.toml")]
    pub(crate) file: Option<PathBuf>,
    /// Virtual time until the run is told to end, such as 48h [default: the run's last step]
    #[arg(long = "for", value_name = "TIME", value_parser = virtual_time, requires = "file")]
    pub(crate) until: Option<f64>,
    /// Tokens to train on, such as 1.1B: the run ends with the inner step that has them.
    #[arg(long, value_name = "N", value_parser = tokens, requires = "file", conflicts_with = "until")]
    pub(crate) tokens: Option<f64>,
    /// Play it with so many seeds, and say how far they differ.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "file",
          value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) seeds: u64,
    /// Peers that hold the same stage: pipeline.replicas.
    #[arg(long, value_name = "N", requires = "file")]
    pub(crate) replicas: Option<u64>,
    /// Set a field of the run file, or as fleet.FIELD or fleet.GROUP.FIELD of the fleet; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", requires = "file")]
    pub(crate) set: Vec<String>,
    /// Draw what came of it over time.
    #[arg(long, value_name = "FILE.svg", requires = "file")]
    pub(crate) picture: Option<PathBuf>,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  trestle plan runs/100b.toml --fleet fleets/orion.toml
  trestle plan runs/8b.toml --fleet my-fleet.toml --replicas 2 --tokens 100B
  trestle plan runs/8b.toml --fleet my-fleet.toml --set fleet.up=50Mbit --json
  trestle plan runs/8b.toml --fleet my-fleet.toml --sweep sync.inner_steps=5,10,50,100
  trestle plan runs/8b.toml --fleet my-fleet.toml --search --tokens 10B --budget 4000 --deadline 30d")]
pub(crate) struct PlanArgs {
    /// The run file; docs/run-file.md lists its fields.
    #[arg(value_name = "RUN.toml")]
    pub(crate) run_file: PathBuf,
    /// The fleet file; docs/plan.md lists its fields.
    #[arg(long, value_name = "FLEET.toml")]
    pub(crate) fleet: PathBuf,
    /// Peers that hold the same stage: pipeline.replicas.
    #[arg(long, value_name = "N")]
    pub(crate) replicas: Option<u64>,
    /// Tokens to train on, such as 1.1B [default: the run's steps]
    #[arg(long, value_name = "N", value_parser = tokens)]
    pub(crate) tokens: Option<f64>,
    /// Set a field of the run file, or as fleet.FIELD or fleet.GROUP.FIELD of the fleet; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Compare values of a field, of the same kinds; may be given several times.
    #[arg(long, value_name = "KEY=A,B,...")]
    pub(crate) sweep: Vec<String>,
    /// Look for stages, replicas, microbatches and outer steps that suit the fleet; --sweep says what is tried of them.
    #[arg(long)]
    pub(crate) search: bool,
    /// Dollars for all tokens, at most.
    #[arg(long, value_name = "DOLLARS", requires = "search", value_parser = dollars)]
    pub(crate) budget: Option<f64>,
    /// Time for all tokens, at most, such as 36h or 30d.
    #[arg(long, value_name = "TIME", requires = "search", value_parser = virtual_time)]
    pub(crate) deadline: Option<f64>,
    /// Draw an inner step, and what costs time.
    #[arg(long, value_name = "FILE.svg", conflicts_with_all = ["sweep", "search"])]
    pub(crate) picture: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `profile`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  trestle profile runs/8b.toml >> my-fleet.toml
  trestle profile runs/8b.toml --device cuda --memory 24GB --name my-4090")]
pub(crate) struct ProfileArgs {
    /// The run file; docs/run-file.md lists its fields.
    #[arg(value_name = "RUN.toml")]
    pub(crate) run_file: PathBuf,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// The stage that is computed [default: one in the middle]
    #[arg(long, value_name = "N")]
    pub(crate) stage: Option<usize>,
    /// The device's memory, such as 24GB [default: on a processor, the computer's]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub(crate) memory: Option<f64>,
    /// What the fleet file is to call it.
    #[arg(long, value_name = "NAME", default_value = "mine", value_parser = device_name)]
    pub(crate) name: String,
    /// Set any field of the run file; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  trestle generate trestle-run/tiny --prompt 'Once upon'
  trestle generate trestle-run/tiny --tokens 500 --temperature 0.6 --seed 3")]
pub(crate) struct GenerateArgs {
    /// The folder of a run, or of one of its checkpoints.
    #[arg(value_name = "DIR")]
    pub(crate) path: PathBuf,
    /// What the text begins with.
    #[arg(long, value_name = "TEXT", default_value = "\n")]
    pub(crate) prompt: String,
    /// Tokens to generate.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(crate) tokens: u32,
    /// 0 takes the likeliest token, 1 draws as the model predicts.
    #[arg(long, value_name = "T", default_value_t = 0.8, value_parser = temperature, allow_negative_numbers = true)]
    pub(crate) temperature: f64,
    /// The seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  trestle inspect runs/100b.toml                       parameters, messages and memory of each stage
  trestle inspect runs/tiny.toml --set boundary.width=16
  trestle inspect trestle-run/tiny                     how far a run is
  trestle inspect ledger trestle-run/tiny              who has trained what, while it runs too
  trestle inspect events.jsonl --json")]
pub(crate) struct InspectArgs {
    /// A run file, a checkpoint, an event log, or the folder of a run; or the word `ledger`.
    pub(crate) path: PathBuf,
    /// After `ledger`: the folder of the run, where its coordinator runs or ran.
    pub(crate) folder: Option<PathBuf>,
    /// Set any field of the run file; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  trestle completions bash > ~/.local/share/bash-completion/completions/trestle
  trestle completions zsh > ~/.zfunc/_trestle")]
pub(crate) struct CompletionsArgs {
    /// Which shell.
    pub(crate) shell: Shell,
}

fn tokens(text: &str) -> Result<f64, String> {
    let read = Quantity::Count.read(text).filter(|tokens| *tokens >= 1.0);
    read.ok_or_else(|| format!("`{text}` is not a number of tokens, such as 1.1B"))
}

fn dollars(text: &str) -> Result<f64, String> {
    let read = Quantity::Count.read(text.trim_start_matches('$')).filter(|dollars| *dollars > 0.0);
    read.ok_or_else(|| format!("`{text}` is not a number of dollars, such as 4000"))
}

fn virtual_time(text: &str) -> Result<f64, String> {
    let read = Quantity::Time.read(text).filter(|seconds| (1.0..1e9).contains(seconds));
    read.ok_or_else(|| format!("`{text}` is not a length of time, such as 30min, 48h or 30d"))
}

fn memory(text: &str) -> Result<f64, String> {
    let read = Quantity::Bytes.read(text).filter(|bytes| *bytes > 0.0);
    read.ok_or_else(|| format!("expected {}", Quantity::Bytes.example()))
}

fn device_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let good = !text.is_empty() && text.chars().all(plain);
    if good { Ok(text.into()) } else { Err("expected letters, digits, - and _".into()) }
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        Ok(_) | Err(_) => Err("expected a number not below 0, such as 0.8".into()),
    }
}

/// Arguments of `rehearse`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  trestle rehearse --replicas 4 --parameters 8388608 --codec f32
  trestle rehearse --replicas 3 --listen 0.0.0.0:4433      prints a ticket, and waits for three peers
  trestle rehearse --join TICKET")]
pub(crate) struct RehearseArgs {
    /// Replicas that exchange.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..=256))]
    pub(crate) replicas: u16,
    /// Parameters of a replica, rounded up to whole rows of 1,024.
    #[arg(long, value_name = "N", default_value_t = 8 << 20, value_parser = clap::value_parser!(u64).range(2048..=1 << 34))]
    pub(crate) parameters: u64,
    /// Outer steps.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(crate) rounds: u64,
    /// How pseudo-gradients are written: sync.codec of a run file.
    #[arg(long, default_value = "f32")]
    pub(crate) codec: String,
    /// How the weights go on: sync.rule of a run file; `gradients` averages without weights.
    #[arg(long, default_value = "gradients")]
    pub(crate) rule: String,
    /// Host it for replicas that join from elsewhere: print the ticket and wait.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "join")]
    pub(crate) listen: Option<SocketAddr>,
    /// Take part as a replica, with the ticket of a host.
    #[arg(long, value_name = "TICKET")]
    pub(crate) join: Option<String>,
    /// Folder for keys and event logs [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// What a replica is called in that folder.
    #[arg(long, value_name = "NAME", default_value = "replica", requires = "join")]
    pub(crate) name: String,
    /// End when the standard input closes.
    #[arg(long, hide = true)]
    pub(crate) tied: bool,
    /// Print each outer step as a line of JSON on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}
