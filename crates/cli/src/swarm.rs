//! The workers of a local run: one child process a stage and replica.
//!
//! Owns the children: their arguments, their output, their end. May not know what they compute.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};
use trestle_model::device::ENVIRONMENT;
use trestle_net::Ticket;
use trestle_protocol::ids::{ReplicaId, StageId};
use trestle_protocol::plan::Place;
use trestle_settings::data::LocalData;

use crate::attend::RESUME_HINT;
use crate::failure::Failure;

/// How much of a failed worker's last words people are shown.
const LAST_WORDS_BYTES_MAX: usize = 2000;

/// What all workers of a local run share.
pub(crate) struct SwarmConfig<'a> {
    pub(crate) ticket: &'a Ticket,
    pub(crate) directory: &'a Path,
    pub(crate) local: &'a LocalData,
    pub(crate) device: &'a str,
    pub(crate) threads: u16,
    pub(crate) peak_flops: f64,
    pub(crate) stages: u16,
    pub(crate) replicas: u16,
}

/// The running children; dropping it ends them.
pub(crate) struct Swarm {
    children: Vec<(Place, Child, PathBuf)>,
}

impl Swarm {
    /// Starts one worker for each stage and replica, the first replicas of all stages before the second.
    pub(crate) fn start(config: &SwarmConfig<'_>) -> Result<Self, Failure> {
        let mut children = Vec::new();
        let places = (0..config.replicas).flat_map(|replica| {
            let replica = ReplicaId(replica);
            (0..config.stages).map(move |stage| Place { stage: StageId(stage), replica })
        });
        for place in places {
            let name = worker_name(place);
            let folder = config.directory.join(&name);
            let words = folder.join("stderr.log");
            let child = spawn(config, place.stage, &name, &words)
                .map_err(|error| Failure::failed(format!("cannot start {name}: {error}")))?;
            children.push((place, child, words));
        }
        Ok(Self { children })
    }

    /// Waits until a worker ends before it should, and says which, how, and what it said last.
    pub(crate) async fn first_to_fall(&mut self) -> Failure {
        loop {
            for (place, child, words) in &mut self.children {
                if let Ok(Some(status)) = child.try_wait()
                    && !status.success()
                {
                    let words = last_words(words);
                    let said = if words.is_empty() { String::new() } else { format!("\n{words}") };
                    let name = worker_name(*place);
                    return Failure::failed(format!("{name} of stage {} ended: {status}{said}", place.stage))
                        .hint(RESUME_HINT);
                }
            }
            // Children end once in a run; asking ten times a second costs nothing that could be measured.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    /// Waits for all workers to end by themselves.
    pub(crate) async fn wait(mut self) {
        for (_, child, _) in &mut self.children {
            let _ = child.wait().await;
        }
    }
}

/// Names the folder, inside the run's, of the worker that is started for a place. Which of a stage's places it gets is the
/// coordinator's to say.
pub(crate) fn worker_name(place: Place) -> String {
    match place.replica {
        ReplicaId(0) => format!("worker-{}", place.stage),
        ReplicaId(replica) => format!("worker-{}-replica-{replica}", place.stage),
    }
}

fn spawn(config: &SwarmConfig<'_>, stage: StageId, name: &str, words: &Path) -> io::Result<Child> {
    fs::create_dir_all(config.directory.join(name))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("join")
        .arg(config.ticket.to_string())
        .args(["--stage", &stage.to_string(), "--name", name, "--tied"])
        .args(["--listen", "127.0.0.1:0", "--device", config.device])
        .args(["--threads", &config.threads.to_string()])
        .args(["--peak-flops", &format!("{}", config.peak_flops)])
        .arg("--dir")
        .arg(config.directory);
    let LocalData { path, field, tokenizer } = config.local;
    if let Some(path) = path {
        command.arg("--data").arg(path);
    }
    if let Some(field) = field {
        command.arg("--field").arg(field);
    }
    if let Some(tokenizer) = tokenizer {
        command.arg("--tokenizer").arg(tokenizer);
    }
    command.envs(ENVIRONMENT.iter().copied());
    // A tied worker ends when this pipe closes, however this process ends. In a group of its own it does not hear the
    // terminal's Ctrl-C, which is for the run as a whole.
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(File::create(words)?);
    #[cfg(unix)]
    command.process_group(0);
    command.kill_on_drop(true).spawn()
}

fn last_words(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let tail = &bytes[bytes.len().saturating_sub(LAST_WORDS_BYTES_MAX)..];
    String::from_utf8_lossy(tail).trim().to_owned()
}
