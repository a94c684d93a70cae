//! A script, done to a coordinator and workers that are processes.
//!
//! Owns the processes, and ends them with itself. Waits for what they tell, not for a time.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use serde_json::Value;
use trestle_protocol::event::Event;
use trestle_protocol::ids::{PeerId, StageId};
use trestle_protocol::plan::Place;
use trestle_protocol::time::Span;

use crate::deeds::{Deed, named};
use crate::order::of_coordinator;

/// Longer than a slow computer takes to start processes, or a run to notice a loss and get over it: who waits for so long waits for
/// ever.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// Where a worker says what goes wrong, in its folder.
const WORDS: &str = "stderr.log";

/// A swarm on this computer.
pub(crate) struct Processes {
    folder: PathBuf,
    ticket: String,
    notice: Span,
    coordinator: Child,
    lines: Receiver<String>,
    told: Vec<Value>,
    workers: Vec<Worker>,
}

struct Worker {
    folder: PathBuf,
    child: Child,
    /// It ends when this closes, which must not be before it has ended by itself.
    _tie: ChildStdin,
    life: Life,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Lives,
    Killed,
}

impl Processes {
    /// Starts a coordinator for a run file, and a worker for each place.
    pub(crate) fn start(folder: &Path, run_file: &Path, places: &[Place], deeds: &[(u64, Deed)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trestle"));
        command.arg("serve").arg(run_file).args(["--listen", "127.0.0.1:0", "--json", "--dir"]);
        command.arg(folder.join("run")).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut coordinator = command.spawn().unwrap();
        let reader = BufReader::new(coordinator.stdout.take().unwrap());
        let (say, lines) = mpsc::channel();
        std::thread::spawn(move || reader.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
        let notices = deeds.iter().filter_map(|(_, deed)| match deed {
            Deed::Leave(_, notice) => Some(*notice),
            Deed::Kill(_) | Deed::Join(_) => None,
        });
        let mut swarm = Self {
            folder: folder.to_path_buf(),
            ticket: String::new(),
            // A process is told when it starts how much notice it will have.
            notice: notices.min().unwrap_or(Span::seconds(30)),
            coordinator,
            lines,
            told: Vec::new(),
            workers: Vec::new(),
        };
        swarm.ticket = swarm.lines.recv_timeout(SILENCE_MAX).expect("the coordinator prints its ticket");
        places.iter().for_each(|place| swarm.join(place.stage));
        swarm
    }

    /// Does what the script says, each thing when its step is complete and the one before has taken effect, and sees the run to its
    /// end. Returns the coordinator's log.
    pub(crate) fn play(mut self, deeds: &[(u64, Deed)]) -> Vec<Event> {
        let mut before: Option<Deed> = None;
        for (steps, deed) in deeds {
            if let Some(effect) = before.map(Deed::effect_whole) {
                self.wait_for(&effect, |line| word(line).starts_with(&effect));
            }
            let step = steps - 1;
            self.wait_for(&format!("step {step}"), |line| line["event"] == "step" && line["step"] == step);
            self.carry_out(*deed);
            before = Some(*deed);
        }
        while let Some(line) = self.line("the end") {
            self.told.push(line);
        }
        assert!(self.coordinator.wait().unwrap().success(), "{:?}", self.told);
        for worker in self.workers.iter_mut().filter(|worker| worker.life == Life::Lives) {
            let status = worker.child.wait().unwrap();
            let words = std::fs::read_to_string(worker.folder.join(WORDS)).unwrap();
            assert!(status.success(), "{}: {status}: {words}", worker.folder.display());
        }
        self.log()
    }

    fn log(&self) -> Vec<Event> {
        of_coordinator(&std::fs::read_to_string(self.folder.join("run/coordinator/events.jsonl")).unwrap())
    }

    fn wait_for(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) {
        if self.told.iter().any(&is_it) {
            return;
        }
        while let Some(line) = self.line(what) {
            let found = is_it(&line);
            self.told.push(line);
            if found {
                return;
            }
        }
        panic!("the run ended before {what}: {:?}", self.told);
    }

    /// The next line that the coordinator prints; none once it has ended.
    fn line(&self, awaited: &str) -> Option<Value> {
        match self.lines.recv_timeout(SILENCE_MAX) {
            Ok(line) => Some(serde_json::from_str(&line).unwrap()),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("nothing was told, awaiting {awaited}: {:?}", self.told),
        }
    }

    fn carry_out(&mut self, deed: Deed) {
        match deed {
            Deed::Kill(place) => {
                let worker = self.holder(place);
                worker.child.kill().unwrap();
                worker.child.wait().unwrap();
                worker.life = Life::Killed;
            }
            Deed::Leave(place, _) => {
                let pid = self.holder(place).child.id().to_string();
                assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
            }
            Deed::Join(stage) => self.join(stage),
        }
    }

    fn join(&mut self, stage: StageId) {
        let folder = self.folder.join(format!("peer-{}", self.workers.len()));
        let notice = format!("{}ms", self.notice.0 / 1000);
        let mut command = Command::new(env!("CARGO_BIN_EXE_trestle"));
        command.args(["join", &self.ticket, "--stage", &stage.to_string(), "--notice", &notice, "--dir"]);
        command.arg(&folder).args(["--listen", "127.0.0.1:0", "--threads", "1", "--device", "cpu"]);
        command.args(["--peak-flops", "1e9", "--tied"]);
        std::fs::create_dir_all(&folder).unwrap();
        let words = std::fs::File::create(folder.join(WORDS)).unwrap();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(words).spawn().unwrap();
        let tie = child.stdin.take().unwrap();
        self.workers.push(Worker { folder, child, _tie: tie, life: Life::Lives });
    }

    /// The worker that holds a place. Its own log says which peer it is.
    fn holder(&mut self, place: Place) -> &mut Worker {
        let peer = loop {
            if let Some(peer) = self.held(place) {
                break peer.to_hex();
            }
            // On a slow computer it may have been taken for gone: it comes again.
            let line = self.line(&named(place)).expect("the run goes on until the script is done");
            self.told.push(line);
        };
        let worker = self.workers.iter_mut().find(|worker| {
            let log = std::fs::read_to_string(worker.folder.join("worker/events.jsonl")).unwrap_or_default();
            log.lines().next().is_some_and(|line| line.contains(&format!(r#""peer":"{peer}","event""#)))
        });
        worker.unwrap_or_else(|| panic!("{} is held by a stranger, {peer}", named(place)))
    }

    /// Who holds a place in the latest plan.
    fn held(&self, place: Place) -> Option<PeerId> {
        let mut holder = None;
        for event in self.log() {
            if let Event::Planned { members, .. } = event {
                holder = members.into_iter().find(|(_, held)| *held == place).map(|(peer, _)| peer);
            }
        }
        holder
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.workers.iter_mut().map(|worker| &mut worker.child).chain([&mut self.coordinator]) {
            // Who has ended cannot be killed, and needs not be.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// What a line of the coordinator tells of a member, named as in the order of a log.
fn word(line: &Value) -> String {
    format!("{} {}.{}", line["event"].as_str().unwrap_or_default(), line["stage"], line["replica"])
}
