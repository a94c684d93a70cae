//! The workers of a local run: one child process a stage and replica, replaced when it falls.
//!
//! Owns the children: their arguments, their output, their end, and the harm that is done to them on purpose. May not know what
//! they compute. Signals no process that it did not start.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use trestle_model::device::ENVIRONMENT;
use trestle_net::Ticket;
use trestle_protocol::ids::{ReplicaId, StageId};
use trestle_protocol::plan::Place;
use trestle_settings::data::LocalData;

use crate::attend::RESUME_HINT;
use crate::chaos::{Chaos, Draws, Due, Harm};
use crate::failure::Failure;
use crate::progress::{Course, Note};

/// How much of a failed worker's last words people are shown.
const LAST_WORDS_BYTES_MAX: usize = 2000;

/// A worker that falls sooner after its start has not got anywhere.
const SOON: Duration = Duration::from_secs(20);

/// So many times in a row a worker may fall soon after its start; then something is wrong that a new start does not mend.
const SOON_MAX: u32 = 3;

/// Wait before the first replacement; it doubles with each that falls soon.
const REPLACE_WAIT_FIRST: Duration = Duration::from_secs(1);

/// How long workers may take to end by themselves once the run is over.
const END_WAIT_MAX: Duration = Duration::from_secs(15);

/// How often the children are looked after: harm and replacement need no more precision.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A slowed worker is stopped for the first of these, and runs for the second, again and again.
const SLOW_BEAT: [Duration; 2] = [Duration::from_millis(400), Duration::from_millis(200)];

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
    pub(crate) chaos: Chaos,
    pub(crate) seed: u64,
}

/// The workers; dropping it ends them.
pub(crate) struct Swarm<'a> {
    config: SwarmConfig<'a>,
    workers: Vec<Worker>,
    notes: mpsc::UnboundedSender<Note>,
    course: Course,
    draws: Draws,
    /// The next harm, and when.
    due: Option<(Instant, Due)>,
    kill_one_at: Option<u64>,
}

/// A worker, and the child that is it now.
struct Worker {
    stage: StageId,
    name: String,
    words: PathBuf,
    state: State,
    /// How often in a row it fell soon after its start.
    soon: u32,
}

#[expect(clippy::large_enum_variant, reason = "there is one a worker")]
enum State {
    Runs {
        child: Child,
        since: Instant,
        harmed: bool,
        halt: Option<Halt>,
    },
    /// It fell, and is replaced then.
    Fallen {
        replace_at: Instant,
    },
}

/// Being stopped: until when in all, and when the present stop or its pause ends.
struct Halt {
    until: Instant,
    turn_at: Instant,
    stopped: bool,
    beat: Option<[Duration; 2]>,
}

impl<'a> Swarm<'a> {
    /// Starts one worker for each stage and replica, the first replicas of all stages before the second.
    pub(crate) fn start(
        config: SwarmConfig<'a>,
        notes: mpsc::UnboundedSender<Note>,
        course: Course,
    ) -> Result<Self, Failure> {
        let places = (0..config.replicas).flat_map(|replica| {
            let replica = ReplicaId(replica);
            (0..config.stages).map(move |stage| Place { stage: StageId(stage), replica })
        });
        let workers = places.map(|place| {
            let name = worker_name(place);
            let words = config.directory.join(&name).join("stderr.log");
            let state = State::Fallen { replace_at: Instant::now() };
            Worker { stage: place.stage, name, words, state, soon: 0 }
        });
        let workers: Vec<Worker> = workers.collect();
        let mut draws = Draws::new(config.chaos.clone(), config.seed);
        let due = draws.next(workers.len()).map(|due| (Instant::now() + due.wait, due));
        let kill_one_at = config.chaos.kill_one_at;
        let mut swarm = Self { config, workers, notes, course, draws, due, kill_one_at };
        for at in 0..swarm.workers.len() {
            swarm.spawn(at)?;
        }
        Ok(swarm)
    }

    /// Looks after the workers until one cannot be kept alive, and says which, how it ended, and what it said last.
    pub(crate) async fn tend(&mut self) -> Failure {
        loop {
            let now = Instant::now();
            for at in 0..self.workers.len() {
                if let Err(failure) = self.look_after(now, at) {
                    return failure;
                }
            }
            self.harm_what_is_due(now);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits for all workers to end by themselves; who does not is ended.
    pub(crate) async fn wait(mut self) {
        let all = async {
            for worker in &mut self.workers {
                if let State::Runs { child, halt, .. } = &mut worker.state {
                    if halt.take().is_some() {
                        signal(child, "CONT");
                    }
                    let _ = child.wait().await;
                }
            }
        };
        // Who is still there then is killed when it is dropped.
        let _ = tokio::time::timeout(END_WAIT_MAX, all).await;
    }

    fn look_after(&mut self, now: Instant, at: usize) -> Result<(), Failure> {
        let worker = &mut self.workers[at];
        match &mut worker.state {
            State::Runs { child, halt, since, harmed } => {
                if let Ok(Some(status)) = child.try_wait() {
                    let (lived, harmed) = (now.duration_since(*since), *harmed);
                    return self.fell(now, at, status, lived, harmed);
                }
                if let Some(held) = halt
                    && held.turn(now, child)
                {
                    *halt = None;
                }
                Ok(())
            }
            State::Fallen { replace_at } if *replace_at <= now && !self.course.is_over() => self.spawn(at),
            State::Fallen { .. } => Ok(()),
        }
    }

    fn fell(
        &mut self,
        now: Instant,
        at: usize,
        status: ExitStatus,
        lived: Duration,
        harmed: bool,
    ) -> Result<(), Failure> {
        let over = self.course.is_over();
        let worker = &mut self.workers[at];
        let innocent = harmed || status.success() || lived >= SOON;
        worker.soon = if innocent { 0 } else { worker.soon + 1 };
        let wait = REPLACE_WAIT_FIRST * 2_u32.pow(worker.soon.saturating_sub(1));
        worker.state = State::Fallen { replace_at: now + wait };
        let name = worker.name.clone();
        if worker.soon >= SOON_MAX && !over {
            let words = last_words(&worker.words);
            let said = if words.is_empty() { String::new() } else { format!("\n{words}") };
            let stage = worker.stage;
            return Err(Failure::failed(format!(
                "{name} of stage {stage} ended {SOON_MAX} times soon after its start: {status}{said}"
            ))
            .hint(RESUME_HINT));
        }
        if !over {
            self.note(&name, "fell", None, format!("{name} ended ({status}); starting another in {wait:?}"));
        }
        Ok(())
    }

    fn spawn(&mut self, at: usize) -> Result<(), Failure> {
        let worker = &mut self.workers[at];
        let child = spawn(&self.config, worker.stage, &worker.name, &worker.words)
            .map_err(|error| Failure::failed(format!("cannot start {}: {error}", worker.name)))?;
        let pid = child.id();
        worker.state = State::Runs { child, since: Instant::now(), harmed: false, halt: None };
        let name = worker.name.clone();
        self.note(&name, "started", pid, String::new());
        Ok(())
    }

    fn harm_what_is_due(&mut self, now: Instant) {
        if self.course.is_over() {
            return;
        }
        if self.kill_one_at.is_some_and(|step| self.course.steps() >= step) {
            self.kill_one_at = None;
            let victim = self.draws.one_of(self.workers.len());
            self.harm(now, victim, Harm::Kill);
        }
        if let Some((_, due)) = self.due.filter(|(at, _)| *at <= now) {
            self.harm(now, due.victim, due.harm);
            self.due = self.draws.next(self.workers.len()).map(|due| (now + due.wait, due));
        }
    }

    fn harm(&mut self, now: Instant, victim: usize, harm: Harm) {
        let worker = &mut self.workers[victim];
        // Who has fallen, or is halted, has enough.
        let State::Runs { child, harmed, halt: halt @ None, .. } = &mut worker.state else { return };
        let (change, words) = match harm {
            Harm::Kill => {
                *harmed = true;
                signal(child, "KILL");
                ("killed", "killed".to_owned())
            }
            Harm::Term => {
                *harmed = true;
                signal(child, "TERM");
                ("terminated", "told to leave".to_owned())
            }
            Harm::Freeze(lasting) => {
                *halt = Some(Halt::begin(now, lasting, None, child));
                ("frozen", format!("frozen for {lasting:?}"))
            }
            Harm::Slow(lasting) => {
                *halt = Some(Halt::begin(now, lasting, Some(SLOW_BEAT), child));
                ("slowed", format!("slowed for {lasting:?}"))
            }
        };
        let (name, pid) = (worker.name.clone(), child.id());
        self.note(&name, change, pid, format!("chaos: {name} {words}"));
    }

    fn note(&self, name: &str, change: &str, pid: Option<u32>, words: String) {
        let json = json!({ "event": "worker", "name": name, "change": change, "pid": pid });
        // Whoever is told may have stopped listening.
        let _ = self.notes.send(Note { words, json });
    }
}

impl Halt {
    fn begin(now: Instant, lasting: Duration, beat: Option<[Duration; 2]>, child: &Child) -> Self {
        signal(child, "STOP");
        let until = now + lasting;
        let turn_at = beat.map_or(until, |[stop, _]| now + stop);
        Self { until, turn_at, stopped: true, beat }
    }

    /// Stops or lets go when it is time; returns whether it is all over.
    fn turn(&mut self, now: Instant, child: &Child) -> bool {
        if now >= self.until {
            signal(child, "CONT");
            return true;
        }
        if let Some([stop, pause]) = self.beat.filter(|_| now >= self.turn_at) {
            signal(child, if self.stopped { "CONT" } else { "STOP" });
            self.turn_at = now + if self.stopped { pause } else { stop };
            self.stopped = !self.stopped;
        }
        false
    }
}

/// Signals a child; one that is not collected yet still has its number, so that it is no other process.
fn signal(child: &Child, name: &str) {
    let Some(pid) = child.id() else { return };
    let sent = std::process::Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    // A child that has just ended cannot be signalled, and needs not be.
    drop(sent);
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
    let words = File::options().create(true).append(true).open(words)?;
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(words);
    #[cfg(unix)]
    command.process_group(0);
    command.kill_on_drop(true).spawn()
}

fn last_words(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let tail = &bytes[bytes.len().saturating_sub(LAST_WORDS_BYTES_MAX)..];
    String::from_utf8_lossy(tail).trim().to_owned()
}
