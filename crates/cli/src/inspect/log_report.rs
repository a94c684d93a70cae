//! An event log in figures: how far the run came, how fast, where the time went, and what went wrong.
//!
//! Owns the reading of logs, which may be of any node or of a whole simulated swarm, cut short or damaged. May not know the run.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::ptr;

use serde::{Deserialize, Serialize};
use trestle_protocol::event::{Event, StepSummary, Verdict};
use trestle_protocol::message::{Outcome, StepReport};
use trestle_protocol::plan::Place;
use trestle_protocol::time::Span;

use crate::failure::Failure;
use crate::figures::{Figures, Measure, Sums};
use crate::standing::code;
use crate::units::{count, percent};

/// A log keeps at most this many older files beside it, numbered from the latest.
const OLDER_FILES_MAX: u32 = 16;

/// Where the log of a run's coordinator is, in the run's folder.
pub(crate) const COORDINATOR_LOG: &str = "coordinator/events.jsonl";

/// One line of a log.
#[derive(Deserialize)]
struct Line {
    at: u64,
    peer: String,
    event: Event,
}

/// What a log tells.
#[derive(Debug, Default, Serialize)]
pub(crate) struct LogReport {
    events: u64,
    unreadable_lines: u64,
    nodes: usize,
    seconds: f64,
    steps: u64,
    first_loss: Option<f64>,
    last_loss: Option<f64>,
    evaluations: Vec<(u64, f64)>,
    durable_step: Option<u64>,
    tokens: u64,
    figures: Option<Figures>,
    stages: Vec<StageTimes>,
    computed: BTreeMap<String, Work>,
    outer_committed: u64,
    outer_restored: u64,
    duplicates: u64,
    expired_leases: u64,
    lost_peers: Vec<String>,
    removed_peers: Vec<String>,
    /// Microbatches that were done again because they were lost with a peer.
    redone: u64,
    /// Stages that had nobody left, each time.
    stalls: Vec<u16>,
    refusals: BTreeMap<String, u64>,
    outcome: Option<Outcome>,
}

/// Where the time of a stage went, summed over steps.
#[derive(Debug, Serialize)]
struct StageTimes {
    stage: u16,
    replica: u16,
    compute_seconds: f64,
    serialise_seconds: f64,
    sync_seconds: f64,
    wait_seconds: f64,
    wire_bytes: u64,
    staleness_max: u64,
}

/// Computations of one kind.
#[derive(Debug, Default, Serialize)]
struct Work {
    times: u64,
    seconds: f64,
}

impl LogReport {
    /// Reads a log and the older files beside it, line by line.
    ///
    /// # Errors
    /// It cannot be read, or not one line of it is an event.
    pub(crate) fn of(path: &Path) -> Result<Self, Failure> {
        let mut reading = Reading::default();
        for file in files(path) {
            let fail =
                |error: std::io::Error| Failure::failed(format!("cannot read {}: {error}", file.display()));
            let mut reader = BufReader::new(File::open(&file).map_err(fail)?);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).map_err(fail)? > 0 {
                match serde_json::from_slice::<Line>(&line) {
                    Ok(line) => reading.take(line),
                    Err(_) if line.trim_ascii().is_empty() => {}
                    Err(_) => reading.report.unreadable_lines += 1,
                }
                line.clear();
            }
        }
        let report = reading.finish();
        if report.events == 0 {
            let error =
                format!("{} holds no events ({} other lines)", path.display(), report.unreadable_lines);
            return Err(Failure::failed(error).hint("an event log is written by a run, as events.jsonl"));
        }
        Ok(report)
    }
}

/// Lists a log's files, the oldest first.
pub(crate) fn files(path: &Path) -> Vec<PathBuf> {
    let older = (1..=OLDER_FILES_MAX).rev().map(|number| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    });
    older.filter(|file| file.is_file()).chain([path.to_owned()]).collect()
}

/// What is gathered while a log is read.
#[derive(Default)]
struct Reading {
    report: LogReport,
    nodes: BTreeMap<String, Told>,
    losses: BTreeMap<u64, f64>,
    evaluations: BTreeMap<u64, f64>,
    sums: Sums,
    stages: BTreeMap<Place, StepReport>,
}

/// What one node of a log tells: its time, and what others tell too. The log of a simulated swarm has all its nodes, of which
/// each tells that a peer is lost, who is removed or leaves tells it beside the coordinator, and each ends.
#[derive(Default)]
struct Told {
    last_at: u64,
    micros: u64,
    /// Events that only a coordinator has.
    coordinates: u64,
    lost: Vec<String>,
    removed: Vec<String>,
    outcome: Option<Outcome>,
}

impl Told {
    fn take(&mut self, at: u64, event: &Event) {
        // A node that is started again counts from 0 again.
        self.micros += at.checked_sub(self.last_at).unwrap_or(at);
        self.last_at = at;
        if let Event::Removed { peer, place, why, lost } = event {
            let (code, stage) = (code(why), place.stage);
            self.removed.push(format!("{peer} (stage {stage}): {code}: {lost} microbatches"));
        }
        if let Event::PeerLost { peer, stage, reason } = event {
            let held = stage.map_or(String::new(), |stage| format!(" (stage {stage})"));
            self.lost.push(format!("{peer}{held}: {reason}"));
        }
        if let Event::Finished { outcome } = event {
            self.outcome = Some(outcome.clone());
        }
        if matches!(event, Event::Planned { .. } | Event::Started { .. } | Event::Step(_)) {
            self.coordinates += 1;
        }
        if matches!(event, Event::Started { .. }) {
            self.outcome = None;
        }
    }
}

impl Reading {
    fn take(&mut self, line: Line) {
        self.report.events += 1;
        self.nodes.entry(line.peer).or_default().take(line.at, &line.event);
        match line.event {
            Event::Step(summary) => self.step(&summary),
            Event::Evaluated { step, loss, .. } => {
                self.evaluations.insert(step.0, loss);
            }
            Event::Durable { step, .. } => self.report.durable_step = Some(step.0),
            Event::Computed { task, took, .. } => {
                let work = self.report.computed.entry(format!("{task:?}").to_lowercase()).or_default();
                work.times += 1;
                work.seconds += took.as_secs_f64();
            }
            Event::Duplicate { .. } => self.report.duplicates += 1,
            Event::LeaseExpired { .. } => self.report.expired_leases += 1,
            Event::Redo { count, .. } => self.report.redone += count,
            Event::Stalled { stage, .. } => self.report.stalls.push(stage.0),
            Event::Refused { refusal, .. } => self.refused(refusal.to_string()),
            Event::RefusedBy { refusal, .. } => self.refused(format!("by a peer: {refusal}")),
            Event::Rejected { reason, .. } => self.refused(reason),
            Event::Outer(summary) => match summary.verdict {
                Verdict::Committed => self.report.outer_committed += 1,
                Verdict::Restored => self.report.outer_restored += 1,
            },
            Event::Flawed { replica, reason, .. } => {
                self.refused(format!("what replica {replica} sent in an outer step: {reason}"));
            }
            Event::Disagreed { stage, .. } => self.refused(format!("reducers of stage {stage} disagree")),
            Event::Excluded { peer, stage, .. } => {
                self.refused(format!("peer {peer} of stage {stage} did not answer in an outer step"));
            }
            // What several nodes tell, each for itself.
            Event::Removed { .. }
            | Event::PeerLost { .. }
            | Event::Started { .. }
            | Event::Finished { .. } => {}
            Event::Waiting { .. }
            | Event::Seated { .. }
            | Event::Suspected { .. }
            | Event::Trusted { .. }
            | Event::Leaving { .. }
            | Event::Resumed { .. }
            | Event::Rerouted { .. }
            | Event::Joined { .. }
            | Event::Agreed { .. }
            | Event::Restored { .. }
            | Event::Planned { .. }
            | Event::Leased { .. }
            | Event::Saved { .. }
            | Event::Ledger { .. }
            | Event::Draining { .. } => {}
        }
    }

    fn step(&mut self, summary: &StepSummary) {
        self.losses.insert(summary.step.0, summary.loss);
        self.sums.add(summary);
        for (place, report) in &summary.reports {
            let sum = self.stages.entry(*place).or_default();
            sum.compute = sum.compute.saturating_add(report.compute);
            sum.serialise = sum.serialise.saturating_add(report.serialise);
            sum.sync = sum.sync.saturating_add(report.sync);
            sum.wall = sum.wall.saturating_add(report.wall);
            sum.wire_bytes += report.wire_bytes;
            sum.staleness = sum.staleness.max(report.staleness);
        }
    }

    fn refused(&mut self, reason: String) {
        *self.report.refusals.entry(reason).or_default() += 1;
    }

    /// Sums up. Of what several nodes tell, the word of the coordinator counts, if the log has one.
    fn finish(self) -> LogReport {
        let coordinator = self.nodes.values().find(|node| node.coordinates > 0);
        let tellers = || self.nodes.values().filter(|node| coordinator.is_none_or(|c| ptr::eq(c, *node)));
        LogReport {
            nodes: self.nodes.len(),
            seconds: Span(self.nodes.values().map(|node| node.micros).max().unwrap_or(0)).as_secs_f64(),
            lost_peers: tellers().flat_map(|node| node.lost.iter().cloned()).collect(),
            removed_peers: tellers().flat_map(|node| node.removed.iter().cloned()).collect(),
            outcome: tellers().max_by_key(|node| node.micros).and_then(|node| node.outcome.clone()),
            steps: self.losses.len() as u64,
            first_loss: self.losses.values().next().copied(),
            last_loss: self.losses.values().next_back().copied(),
            evaluations: self.evaluations.into_iter().collect(),
            tokens: self.sums.tokens,
            figures: self.sums.figures(Measure::default()),
            stages: self.stages.into_iter().map(|(place, sum)| stage_times(place, &sum)).collect(),
            ..self.report
        }
    }
}

fn stage_times(place: Place, sum: &StepReport) -> StageTimes {
    let (compute, serialise) = (sum.compute.as_secs_f64(), sum.serialise.as_secs_f64());
    let sync = sum.sync.as_secs_f64();
    StageTimes {
        stage: place.stage.0,
        replica: place.replica.0,
        // A worker's report counts the turning of tensors into bytes as a part of computing.
        compute_seconds: (compute - serialise).max(0.0),
        serialise_seconds: serialise,
        sync_seconds: sync,
        wait_seconds: (sum.wall.as_secs_f64() - compute - sync).max(0.0),
        wire_bytes: sum.wire_bytes,
        staleness_max: sum.staleness,
    }
}

impl fmt::Display for LogReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = if self.nodes == 1 { "1 node".into() } else { format!("{} nodes", self.nodes) };
        writeln!(f, "events       {} of {nodes} in {:.1} s", count(self.events), self.seconds)?;
        if self.unreadable_lines > 0 {
            writeln!(f, "unreadable   {} lines", count(self.unreadable_lines))?;
        }
        if let (Some(first), Some(last)) = (self.first_loss, self.last_loss) {
            writeln!(f, "steps        {}, loss {first:.4} to {last:.4}", count(self.steps))?;
        }
        if let Some(figures) = &self.figures {
            writeln!(
                f,
                "training     {} tokens, {} tokens/s, utilisation {}, {} B/token on the wire",
                count(self.tokens),
                count(figures.tokens_per_second.round() as u64),
                percent(figures.utilisation),
                count(figures.wire_bytes_per_token.round() as u64)
            )?;
        }
        for (step, loss) in &self.evaluations {
            writeln!(f, "held-out     loss {loss:.4} at step {step}")?;
        }
        if let Some(step) = self.durable_step {
            writeln!(f, "durable      step {step}")?;
        }
        for (kind, Work { times, seconds }) in &self.computed {
            writeln!(
                f,
                "computed     {kind} {} times, {:.3} ms each",
                count(*times),
                seconds * 1e3 / *times as f64
            )?;
        }
        self.stages.iter().try_for_each(|stage| writeln!(f, "{stage}"))?;
        let outer =
            [(self.outer_committed, "outer steps committed"), (self.outer_restored, "outer steps restored")];
        for (number, what) in outer.into_iter().filter(|(number, _)| *number > 0) {
            writeln!(f, "agreement    {} {what}", count(number))?;
        }
        for (number, what) in [(self.duplicates, "duplicates"), (self.expired_leases, "expired leases")] {
            if number > 0 {
                writeln!(f, "{what:<12} {}", count(number))?;
            }
        }
        if self.redone > 0 {
            writeln!(f, "redone       {} microbatches", count(self.redone))?;
        }
        self.stalls.iter().try_for_each(|stage| writeln!(f, "stood still  stage {stage}"))?;
        self.removed_peers
            .iter()
            .try_for_each(|lost| writeln!(f, "removed      peer {lost} lost with it"))?;
        self.lost_peers.iter().try_for_each(|lost| writeln!(f, "lost         peer {lost}"))?;
        self.refusals
            .iter()
            .try_for_each(|(reason, times)| writeln!(f, "refused      {times} times: {reason}"))?;
        match &self.outcome {
            Some(Outcome::Done) => writeln!(f, "outcome      done"),
            Some(Outcome::Left) => writeln!(f, "outcome      left"),
            Some(Outcome::Stopped { step }) => writeln!(f, "outcome      stopped on request at step {step}"),
            Some(Outcome::Failed { reason }) => writeln!(f, "outcome      failed: {reason}"),
            None => writeln!(f, "outcome      none: it runs, or it was killed"),
        }
    }
}

impl fmt::Display for StageTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [self.compute_seconds, self.serialise_seconds, self.sync_seconds, self.wait_seconds];
        let wall = parts.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let [compute, serialise, sync, wait] = parts.map(|part| percent(part / wall));
        let replica = if self.replica == 0 { String::new() } else { format!(" replica {}", self.replica) };
        write!(
            f,
            "stage {:<6} compute {compute}, serialise {serialise}, sync {sync}, wait {wait}, {} bytes sent, staleness {}{replica}",
            self.stage,
            count(self.wire_bytes),
            self.staleness_max
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trestle_node::event_log::line;
    use trestle_protocol::ids::{InnerStep, PeerId, ReplicaId, StageId};
    use trestle_protocol::message::{Refusal, Removal};
    use trestle_protocol::time::Time;

    fn step(number: u64, loss: f64) -> Event {
        let report = StepReport {
            compute: Span::millis(600),
            serialise: Span::millis(100),
            wall: Span::seconds(1),
            wire_bytes: 500,
            staleness: number,
            ..StepReport::default()
        };
        let place = Place { stage: StageId(2), replica: ReplicaId(0) };
        Event::Step(StepSummary {
            step: InnerStep(number),
            loss,
            tokens: 100,
            wall: Span::seconds(1),
            outside: Span::millis(200),
            reports: vec![(place, report)],
        })
    }

    fn report(text: &[String]) -> Result<LogReport, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        // The first half is in an older file, as after a rotation.
        let (older, newer) = text.split_at(text.len() / 2);
        std::fs::write(folder.path().join("events.jsonl.1"), older.join("\n")).unwrap();
        std::fs::write(&path, newer.join("\n")).unwrap();
        LogReport::of(&path)
    }

    fn log(events: &[Event]) -> Vec<String> {
        events
            .iter()
            .enumerate()
            .map(|(index, event)| line(Time(index as u64 * 1_000_000), "ab", event))
            .collect()
    }

    #[test]
    fn a_log_is_summed_up_stage_by_stage() {
        let peer = PeerId([7; 32]);
        let events = [
            step(0, 5.0),
            step(1, 4.0),
            Event::Evaluated { step: InnerStep(2), loss: 4.5, microbatches: 2, took: Span(1) },
            Event::PeerLost { peer, stage: Some(StageId(1)), reason: "gone".into() },
            Event::Refused { peer, refusal: Refusal::PlanFull },
            Event::Refused { peer, refusal: Refusal::PlanFull },
            Event::Finished { outcome: Outcome::Failed { reason: "peer lost".into() } },
        ];
        let report = report(&log(&events)).unwrap();
        assert_eq!((report.events, report.steps, report.tokens, report.seconds), (7, 2, 200, 6.0));
        assert_eq!((report.first_loss, report.last_loss), (Some(5.0), Some(4.0)));
        assert_eq!(report.figures.unwrap().utilisation, 0.8);
        let words = report.to_string();
        for part in [
            "held-out     loss 4.5000 at step 2\n",
            "stage 2      compute 50.0 %, serialise 10.0 %, sync 0.0 %, wait 40.0 %, 1,000 bytes sent, staleness 1\n",
            "lost         peer 0707070707 (stage 1): gone\n",
            "refused      2 times: every place of the plan is taken\n",
            "outcome      failed: peer lost\n",
        ] {
            assert!(words.contains(part), "{words}\nhas not\n{part}");
        }
    }

    #[test]
    fn a_resumed_run_counts_each_step_once_and_its_time_on() {
        let started = Event::Started { step: InnerStep(0) };
        let mut lines = log(&[started, step(0, 5.0), step(1, 4.0)]);
        // The node's clock begins anew, and its first event comes a second later.
        let resumed = log(&[step(9, 9.0), Event::Started { step: InnerStep(1) }, step(1, 4.0)]);
        lines.extend(resumed.into_iter().skip(1));
        let report = report(&lines).unwrap();
        assert_eq!((report.steps, report.seconds), (2, 4.0));
        assert!(report.to_string().contains("outcome      none"), "{report}");
    }

    #[test]
    fn of_a_whole_swarm_the_coordinator_s_word_counts() {
        let (gone, stage) = (PeerId([7; 32]), StageId(1));
        let place = Place { stage, replica: ReplicaId(0) };
        let lost = Event::PeerLost { peer: gone, stage: Some(stage), reason: "gone".into() };
        let removed = Event::Removed { peer: gone, place, why: Removal::Left, lost: 3 };
        let told = [
            (0, "coordinator", Event::Started { step: InnerStep(0) }),
            (2, "coordinator", lost.clone()),
            (3, "coordinator", removed.clone()),
            (3, "worker", lost),
            (4, "gone", removed),
            (4, "gone", Event::Finished { outcome: Outcome::Left }),
            (5, "coordinator", Event::Finished { outcome: Outcome::Done }),
            // A node that was started again counts from 0 again, and the others on.
            (1, "worker", Event::Finished { outcome: Outcome::Failed { reason: "late".into() } }),
        ];
        let lines = |of: &dyn Fn(&str) -> bool| {
            let told = told.iter().filter(|(_, peer, _)| of(peer));
            told.map(|(at, peer, event)| line(Time(at * 1_000_000), peer, event)).collect::<Vec<_>>()
        };
        let of_all = report(&lines(&|_| true)).unwrap();
        assert_eq!((of_all.nodes, of_all.seconds, of_all.outcome), (3, 5.0, Some(Outcome::Done)));
        assert_eq!((of_all.lost_peers.len(), of_all.removed_peers.len()), (1, 1));
        let of_one = report(&lines(&|peer| peer == "gone")).unwrap();
        assert_eq!((of_one.removed_peers.len(), of_one.outcome), (1, Some(Outcome::Left)), "its own word");
    }

    #[test]
    fn damaged_lines_are_counted_and_a_file_without_events_is_refused() {
        let mut lines = log(&[step(0, 5.0)]);
        lines.push("{\"at\": 3".into());
        let report_of_both = report(&lines).unwrap();
        assert_eq!((report_of_both.events, report_of_both.unreadable_lines), (1, 1));
        let failure = report(&["words".into(), "more".into()]).unwrap_err().to_string();
        assert!(failure.contains("holds no events (2 other lines)"), "{failure}");
    }
}
