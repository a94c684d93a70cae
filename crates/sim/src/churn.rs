//! Scenarios of peers that come and go, drawn from a number: shapes, schedules, links and faults of every kind.
//!
//! Owns the drawing, and sees that every such run can end: at least one disk of each stage stays, and who dies is replaced.
//! Knows nothing of how a swarm is run.

use crate::draws::Draws;
use crate::laws;
use crate::report::Report;
use crate::run::run_scenario;
use crate::scenario::expectation::Verdict;
use std::fmt::Write;

/// Faults of one scenario.
const FAULTS_MAX: u64 = 6;

/// In scenarios from this number on, newcomers may fetch for longer than an outer step takes.
pub const LONG_FETCHES: u64 = 1_000_000_000_000;

/// The most that such a state has: every peer of a swarm holds some, in one memory.
const STATE_KILOBYTES_MAX: u64 = 30_000;

/// Virtual seconds after which a drawn run that makes no progress is stuck: beyond all that the core waits for.
const SILENCE_SECONDS: u64 = 3_600;

/// Things that may happen in a drawn run, ten times as many as in the longest that ends: beyond them it only spins.
const HAPPENINGS: u64 = 2_000_000;

/// What a drawn scenario gave that broke an expectation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("churn {number}: {words}")]
pub struct Failure {
    /// The number that it was drawn from.
    pub number: u64,
    /// What was missed, in one line.
    pub words: String,
    /// The scenario, and of a run that was stuck what each peer waited for.
    pub details: String,
}

impl Failure {
    /// Returns the line that repeats it.
    pub fn repeat(&self) -> String {
        format!("cargo run --release -p trestle-sim --example churn_hunt -- {}", self.number)
    }
}

/// Draws a scenario and runs it.
///
/// The drawing leaves each stage a disk, but not always one with its last checkpoint: where that is on no disk that is left, the
/// run may stand still, see [`laws::stands_still_for_want_of_a_disk`].
///
/// # Errors
/// Whatever it breaks.
pub fn run_drawn(number: u64) -> Result<Report, Box<Failure>> {
    let text = draw(number);
    let failure = |words: String, waits: &[String]| {
        let details = format!("{text}\n{}", waits.join("\n"));
        Box::new(Failure { number, words, details })
    };
    let report = run_scenario(&text, None).map_err(|error| failure(error.to_string(), &[]))?;
    match report.verdict() {
        Verdict::Met => Ok(report),
        Verdict::Missed if laws::stands_still_for_want_of_a_disk(&report.outcome) => Ok(report),
        Verdict::Missed => {
            let missed = report.checks.iter().filter(|check| check.verdict == Verdict::Missed);
            let words: Vec<String> = missed.map(ToString::to_string).collect();
            Err(failure(words.join("; "), &report.outcome.waits))
        }
    }
}

/// Takes lines out of a scenario that breaks a law, as long as it breaks one in the same way.
pub fn shrink(text: &str) -> String {
    let way = |text: &str| {
        let outcome = run_scenario(text, None).ok()?.outcome;
        let first =
            laws::broken(&outcome).first()?.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
        Some(first)
    };
    let wanted = way(text);
    let settled = text.lines().take_while(|line| *line != "----");
    let mut lines: Vec<&str> = settled.chain(["----", "outcome=done laws=kept"]).collect();
    let mut at = 0;
    while at < lines.len() {
        let mut fewer = lines.clone();
        fewer.remove(at);
        // Without them the run could not end.
        let needed = ["replicas", "join", "spares"].iter().any(|verb| lines[at].starts_with(verb));
        if wanted.is_some() && !needed && way(&fewer.join("\n")) == wanted {
            lines = fewer;
        } else {
            at += 1;
        }
    }
    lines.join("\n")
}

/// Draws the text of a scenario.
pub fn draw(number: u64) -> String {
    Sketch::new(number).text()
}

/// A scenario in the making.
struct Sketch {
    number: u64,
    draws: Draws,
    text: String,
    stages: u64,
    replicas: u64,
    steps: u64,
    /// Inner steps of an outer step.
    every: u64,
    /// About how long the run takes, in milliseconds.
    lasts_ms: u64,
    /// How many of each stage's disks may still be lost.
    disks_spare: Vec<u64>,
}

impl Sketch {
    fn new(number: u64) -> Self {
        let mut draws = Draws::new(number, "churn", &[]);
        let (stages, replicas) = (1 + draws.below(4), 1 + draws.below(4));
        // With two replicas, who stays alone has the only disk.
        let disks_spare = vec![u64::from(replicas > 1); stages as usize];
        let steps = 4 + draws.below(25);
        Self {
            number,
            draws,
            text: String::new(),
            stages,
            replicas,
            steps,
            every: 1,
            lasts_ms: 0,
            disks_spare,
        }
    }

    fn say(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a string takes everything");
    }

    fn below(&mut self, end: u64) -> u64 {
        self.draws.below(end)
    }

    fn text(mut self) -> String {
        self.shape();
        self.world();
        for _ in 0..1 + self.below(FAULTS_MAX) {
            self.fault();
        }
        self.say(format_args!("transport silence={SILENCE_SECONDS}s happenings={HAPPENINGS}\ntrain\n----"));
        let steps = self.steps;
        self.say(format_args!("outcome=done steps={steps} lost=0 missing=0 apart=0 disagreed=0 laws=kept"));
        if self.number.is_multiple_of(8) {
            self.say(format_args!("digest=same-twice"));
        }
        self.text
    }

    fn shape(&mut self) {
        let (number, stages, replicas, steps) = (self.number, self.stages, self.replicas, self.steps);
        self.say(format_args!("seed {number}\nstages {stages}\nreplicas {replicas}\nsteps {steps}"));
        let microbatches = 1 + self.below(4);
        let in_flight = 1 + self.below(6);
        self.say(format_args!("microbatches {microbatches}\nin_flight {in_flight}"));
        match self.below(3) {
            0 => self.say(format_args!("schedule flush")),
            staleness => self.say(format_args!("schedule async staleness={staleness}")),
        }
        let every = 2 + self.below(5);
        self.every = every;
        let delay = if self.below(2) == 0 { 0 } else { self.below(every) };
        self.say(format_args!("sync every={every} delay={delay} rule=nesterov codec=bf16 contribution=64kB"));
        if self.below(2) == 0 {
            let (every, microbatches) = (self.below(9), 1 + self.below(3));
            self.say(format_args!("evaluate every={every} microbatches={microbatches}"));
        }
        let every = self.below(10);
        self.say(format_args!("checkpoint every={every}"));
        let forward = 10 + self.below(190);
        let jitter = self.below(60);
        self.say(format_args!(
            "compute cost forward={forward}ms backward={}ms jitter={jitter}%",
            2 * forward
        ));
        self.lasts_ms = steps * (microbatches + stages) * 3 * forward;
    }

    fn world(&mut self) {
        let (latency, bandwidth, jitter) = (1 + self.below(120), 5 + self.below(200), self.below(90));
        self.say(format_args!("link latency={latency}ms bandwidth={bandwidth}Mbit jitter={jitter}%"));
        if self.number >= LONG_FETCHES {
            // From a half to six outer steps, from one replica.
            let outer_ms = self.lasts_ms * self.every / self.steps;
            let halves = 1 + self.below(12);
            let kilobytes = (bandwidth * outer_ms * halves / 16).clamp(1, STATE_KILOBYTES_MAX);
            self.say(format_args!("sync state={kilobytes}kB"));
        }
        if self.below(3) == 0 {
            let (twice, late, by) = (1 + self.below(20), 1 + self.below(20), 1 + self.below(5_000));
            self.say(format_args!("noise duplicate={twice}% late={late}% by={by}ms"));
        }
        if self.below(4) == 0 {
            let spares = 1 + self.below(2);
            self.say(format_args!("spares {spares}"));
        }
        if self.below(8) == 0 {
            let every = 20 + self.below(200);
            self.say(format_args!("hostile every={every}ms"));
        }
    }

    /// Draws when something happens: at a step, or at a time of the run.
    fn when(&mut self) -> String {
        let (steps, lasts) = (self.steps, self.lasts_ms);
        match self.below(2) {
            0 => format!("step:{}", 1 + self.below(steps)),
            _ => format!("{}ms", self.below(lasts + lasts / 5)),
        }
    }

    /// Draws a length of time: mostly too short to be noticed, or just long enough, and now and then long.
    fn span(&mut self) -> String {
        let millis = match self.below(4) {
            0 => self.below(2_500),
            1 | 2 => 2_500 + self.below(6_000),
            _ => 8_000 + self.below(40_000),
        };
        format!("{millis}ms")
    }

    fn place(&mut self) -> (u64, String) {
        let (stages, replicas) = (self.stages, self.replicas);
        let (stage, replica) = (self.below(stages), self.below(replicas));
        (stage, format!("{stage}.{replica}"))
    }

    /// Takes one of a stage's disks that may be lost.
    fn spend_disk(&mut self, stage: u64) -> bool {
        let spare = &mut self.disks_spare[stage as usize];
        let may = *spare > 0;
        *spare = spare.saturating_sub(1);
        may
    }

    fn fault(&mut self) {
        let (at, span) = (self.when(), self.span());
        let (stage, place) = self.place();
        match self.below(14) {
            0 | 1 => self.kill(stage, &place, &at),
            2 => self.say(format_args!("kill {place} at={at} restart={span}")),
            3 => self.say(format_args!("freeze {place} at={at} for={span}")),
            4 => {
                let factor = 2 + self.below(30);
                self.say(format_args!("slow {place} at={at} for={span} factor={factor}"));
            }
            5 => {
                let (_, other) = self.place();
                self.say(format_args!("cut {place} {other} at={at} for={span}"));
            }
            6 => self.say(format_args!("isolate {place} at={at} for={span}")),
            7 => self.part(&at, &span),
            8 => self.say(format_args!("kill coordinator at={at} restart={span}")),
            9 => {
                let (ppm, ahead) = (self.below(2_000) as i64 - 1_000, self.below(20_000));
                let whom = if self.below(3) == 0 { "coordinator" } else { &place };
                self.say(format_args!("clock {whom} at={at} ppm={ppm} ahead={ahead}ms"));
            }
            10 => self.leaves(stage, &place, &at),
            11 => self.joins(&at),
            12 => {
                let (away, back, times) = (1 + self.below(9), 1 + self.below(20), 1 + self.below(4));
                self.say(format_args!("flap {place} at={at} away={away}s back={back}s times={times}"));
            }
            _ => match self.below(3) {
                0 => self.say(format_args!("freeze coordinator at={at} for={span}")),
                1 => self.say(format_args!("kill {stage} at={at} restart={span}")),
                _ => self.say(format_args!("isolate coordinator at={at} for={span}")),
            },
        }
    }

    /// Kills for good, with a newcomer a little later, if the stage can do without that disk.
    fn kill(&mut self, stage: u64, place: &str, at: &str) {
        let span = self.span();
        if !self.spend_disk(stage) {
            return self.say(format_args!("kill {place} at={at} restart={span}"));
        }
        match self.below(3) {
            0 => self.say(format_args!("kill {place} at={at} restart={span} disk=lost")),
            1 => self.say(format_args!("kill {place} at={at}\njoin at={at}")),
            // Before it has begun, a run waits for someone in every place.
            _ => self.say(format_args!("kill {place} at={at}\njoin stage={stage} at={at}")),
        }
    }

    fn leaves(&mut self, stage: u64, place: &str, at: &str) {
        let notice = 1 + self.below(40);
        if self.spend_disk(stage) {
            self.say(format_args!("leave {place} at={at} notice={notice}s\njoin at={at}"));
        } else {
            self.joins(at);
        }
    }

    fn joins(&mut self, at: &str) {
        let (count, stages) = (1 + self.below(2), self.stages);
        let stage = self.below(2 * stages);
        if stage < stages {
            self.say(format_args!("join stage={stage} count={count} at={at}"));
        } else {
            self.say(format_args!("join count={count} at={at}"));
        }
    }

    /// Parts the swarm in two, the coordinator on one side.
    fn part(&mut self, at: &str, span: &str) {
        let (mut ones, mut others) = (Vec::new(), vec![String::from("coordinator")]);
        for stage in 0..self.stages {
            for replica in 0..self.replicas {
                let side = if self.below(3) == 0 { &mut ones } else { &mut others };
                side.push(format!("{stage}.{replica}"));
            }
        }
        if ones.is_empty() {
            return self.say(format_args!("isolate 0.0 at={at} for={span}"));
        }
        self.say(format_args!("cut {} {} at={at} for={span}", ones.join(","), others.join(",")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::script::Script;

    #[test]
    fn every_drawn_scenario_can_be_read_and_the_same_number_draws_the_same() {
        let mut verbs = std::collections::BTreeSet::new();
        for number in 0..500 {
            let text = draw(number);
            let read = Script::read(&text, None);
            assert!(read.is_ok(), "{number}: {:?}\n{text}", read.err());
            assert_eq!(text, draw(number));
            verbs.extend(text.lines().filter_map(|line| line.split(' ').next()).map(String::from));
        }
        let kinds = [
            "kill", "freeze", "slow", "cut", "isolate", "clock", "leave", "join", "flap", "noise", "spares",
            "hostile",
        ];
        for kind in kinds {
            assert!(verbs.contains(kind), "nothing draws {kind}");
        }
    }
}
