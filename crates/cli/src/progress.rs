//! Progress for people and scripts, from events alone.
//!
//! Owns what is shown when. May not know where events come from: a run, a log, a simulation.

pub(crate) mod lines;
mod words;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use trestle_protocol::event::{Event, StepSummary};
use trestle_protocol::ids::PeerId;
use trestle_protocol::spec::RunSpec;
use trestle_protocol::time::Time;
use trestle_settings::model::model_config;

use crate::figures::{Measure, Sums};
use crate::progress::lines::{beside, line, step_json};
use crate::progress::words::words;
use crate::units::{count, scaled};

/// Time between two plain lines, so that a log of a long run stays readable.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// One JSON object a line on stdout: every step, every evaluation, the end.
    Json,
    /// A bar on a terminal's stderr.
    Bar,
    /// A plain line on stderr now and then.
    Lines,
}

impl Style {
    /// Chooses for people: a bar where there is a terminal to draw it on.
    pub(crate) fn for_people() -> Self {
        if std::io::stderr().is_terminal() { Style::Bar } else { Style::Lines }
    }
}

/// What is told beside the coordinator's events.
pub(crate) struct Note {
    /// For people; nothing where it is of no interest to them.
    pub(crate) words: String,
    /// For scripts.
    pub(crate) json: Value,
}

/// How far a run is, for whoever looks after its workers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Course(Arc<(AtomicU64, AtomicBool)>);

impl Course {
    /// Returns the steps that are complete.
    pub(crate) fn steps(&self) -> u64 {
        self.0.0.load(Ordering::Relaxed)
    }

    /// Returns whether the run has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.0.1.load(Ordering::Relaxed)
    }
}

/// What the loss of peers has cost so far.
#[derive(Clone, Copy, Debug, Default)]
struct Churn {
    redone: u64,
    duplicates: u64,
}

/// The progress of a run so far.
pub(crate) struct Progress {
    course: Course,
    places: usize,
    members: Vec<PeerId>,
    churn: Churn,
    style: Style,
    bar: Option<ProgressBar>,
    steps: u64,
    flops_per_token: f64,
    floor: Option<f64>,
    peaks: BTreeMap<PeerId, u64>,
    total: Sums,
    recent: Sums,
    last_line: Option<Instant>,
}

impl Progress {
    /// Starts at nothing; `floor` is the lowest possible loss in nats per token, where it is known.
    pub(crate) fn new(spec: &RunSpec, style: Style, floor: Option<f64>) -> Self {
        let steps = spec.training.steps;
        let bar = match style {
            Style::Bar => {
                let template = "{bar:40} {pos}/{len} [{elapsed}, {eta} left]\n{wide_msg}";
                let look = ProgressStyle::with_template(template).expect("the template is well formed");
                Some(ProgressBar::new(steps).with_style(look))
            }
            Style::Json | Style::Lines => None,
        };
        Self {
            course: Course::default(),
            places: usize::from(spec.stages()) * usize::from(spec.pipeline.replicas),
            members: Vec::new(),
            churn: Churn::default(),
            style,
            bar,
            steps,
            flops_per_token: model_config(spec).train_flops_per_token(),
            floor,
            peaks: BTreeMap::new(),
            total: Sums::default(),
            recent: Sums::default(),
            last_line: None,
        }
    }

    /// Tells others how far the run is.
    pub(crate) fn course(&self) -> Course {
        self.course.clone()
    }

    /// Takes the next event of the coordinator.
    pub(crate) fn event(&mut self, at: Time, event: &Event) {
        if let Event::Joined { peer, peak_flops, .. } = event {
            self.peaks.insert(*peer, *peak_flops);
        } else if let Event::Planned { members, .. } = event {
            self.members = members.iter().map(|(peer, _)| *peer).collect();
        } else if let Event::Started { step } = event {
            self.course.0.0.store(step.0, Ordering::Relaxed);
            if let Some(bar) = &self.bar {
                bar.set_position(step.0);
                bar.reset_eta();
            }
        } else if let Event::Redo { count, .. } = event {
            self.churn.redone += count;
        } else if let Event::Duplicate { .. } = event {
            self.churn.duplicates += 1;
        } else if let Event::Finished { .. } = event {
            self.course.0.1.store(true, Ordering::Relaxed);
        } else if let Event::Step(summary) = event {
            self.step(summary);
        }
        match self.style {
            Style::Json => {
                if let Some(line) = self.json(at, event) {
                    println!("{line}");
                }
            }
            Style::Bar | Style::Lines => {
                if let Some(line) = words(event, self.floor) {
                    self.say(&line);
                }
            }
        }
    }

    /// Takes what is told beside the coordinator's events.
    pub(crate) fn note(&self, note: &Note) {
        match self.style {
            Style::Json => println!("{}", note.json),
            Style::Bar | Style::Lines if note.words.is_empty() => {}
            Style::Bar | Style::Lines => self.say(&note.words),
        }
    }

    /// Shows the figures of the whole run.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if let (Style::Bar | Style::Lines, Some(figures)) = (self.style, self.total.figures(self.measure())) {
            eprintln!("{} steps, {} tokens: {figures}", count(self.total.steps), count(self.total.tokens));
            if figures.mfu.is_some_and(|mfu| mfu > 1.0) {
                let peak = scaled(self.measure().peak_flops);
                eprintln!(
                    "MFU is overstated: {peak}FLOP/s were measured as the peak, on a computer that was busy"
                );
            }
        }
    }

    /// What scripts are told: an event, with the figures that belong to it.
    fn json(&self, at: Time, event: &Event) -> Option<Value> {
        if let Event::Step(summary) = event {
            let mut one = Sums::default();
            one.add(summary);
            return Some(step_json(at, summary, one.figures(self.measure())));
        }
        let mut line = line(event)?;
        if let Event::Evaluated { .. } = event {
            line["floor"] = json!(self.floor);
        }
        if let Event::Finished { .. } = event {
            line["tokens"] = json!(self.total.tokens);
            line = beside(line, self.total.figures(self.measure()));
        }
        Some(line)
    }

    fn measure(&self) -> Measure {
        // Members that a coordinator found again when it was started anew have not said theirs.
        let peaks: Option<Vec<u64>> = self.members.iter().map(|peer| self.peaks.get(peer).copied()).collect();
        let peak_flops = peaks.map_or(0.0, |peaks| peaks.into_iter().map(|peak| peak as f64).sum());
        Measure { flops_per_token: self.flops_per_token, peak_flops }
    }

    fn step(&mut self, summary: &StepSummary) {
        self.total.add(summary);
        self.recent.add(summary);
        let done = summary.step.0 + 1;
        self.course.0.0.store(done, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
        let due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) || done == self.steps;
        match (self.style, self.recent.figures(self.measure())) {
            (Style::Bar | Style::Lines, Some(figures)) if due => {
                self.recent = Sums::default();
                self.last_line = Some(Instant::now());
                let line = format!(
                    "step {done}/{}, loss {:.4}, {figures}{}",
                    self.steps,
                    summary.loss,
                    self.churn()
                );
                match &self.bar {
                    Some(bar) => bar.set_message(line),
                    None => eprintln!("{line}"),
                }
            }
            (Style::Bar | Style::Lines | Style::Json, _) => {}
        }
    }

    /// How many members there are, and what the loss of others has cost.
    fn churn(&self) -> String {
        let Churn { redone, duplicates } = self.churn;
        let counted = [(redone, "redone"), (duplicates, "duplicates")];
        let counted = counted.into_iter().filter(|(number, _)| *number > 0);
        let counted: String = counted.map(|(number, what)| format!(", {} {what}", count(number))).collect();
        format!(", {}/{} peers{counted}", self.members.len(), self.places)
    }

    /// Says something that stays.
    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use trestle_protocol::ids::{Digest, InnerStep, PlanNumber, ReplicaId, StageId};
    use trestle_protocol::message::{Outcome, StepReport};
    use trestle_protocol::plan::Place;
    use trestle_protocol::time::Span;

    use crate::run_file::RunFile;

    const PLACE: Place = Place { stage: StageId(0), replica: ReplicaId(0) };

    fn progress(style: Style) -> Progress {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runs/demo.toml");
        let spec = RunFile::read(&path, &[]).unwrap().spec(Digest([0; 32]), 256).unwrap();
        Progress::new(&spec, style, Some(2.0))
    }

    fn joined(id: u8, peak_flops: u64) -> Event {
        Event::Joined { peer: PeerId([id; 32]), device: "cpu".into(), peak_flops }
    }

    fn step() -> Event {
        let report = StepReport { wire_bytes: 5_000, compute: Span::seconds(1), ..StepReport::default() };
        Event::Step(StepSummary {
            step: InnerStep(4),
            loss: 2.5,
            tokens: 100,
            wall: Span::seconds(2),
            outside: Span(0),
            reports: vec![(PLACE, report)],
        })
    }

    #[test]
    fn a_step_is_one_flat_line_for_scripts() {
        let mut progress = progress(Style::Lines);
        progress.flops_per_token = 1e6;
        for event in [joined(1, 100_000_000), joined(2, 7)] {
            progress.event(Time(0), &event);
        }
        // Who got no place adds nothing to the peak.
        let members = vec![(PeerId([1; 32]), PLACE)];
        progress.event(Time(0), &Event::Planned { plan: PlanNumber(1), members });
        let line = progress.json(Time(3_500_000), &step()).unwrap();
        assert_eq!((&line["event"], &line["step"], &line["loss"]), (&json!("step"), &json!(4), &json!(2.5)));
        assert_eq!((&line["at_seconds"], &line["tokens_per_second"]), (&json!(3.5), &json!(50.0)));
        assert_eq!((&line["mfu"], &line["utilisation"]), (&json!(0.5), &json!(1.0)));
        assert_eq!(
            (&line["wire_bytes_per_token"], &line["stages"][0]["compute_seconds"]),
            (&json!(50.0), &json!(1.0))
        );
    }

    #[test]
    fn the_end_sums_up_all_steps() {
        let mut progress = progress(Style::Lines);
        progress.event(Time(0), &step());
        progress.event(Time(0), &step());
        let line = progress.json(Time(0), &Event::Finished { outcome: Outcome::Done }).unwrap();
        assert_eq!(
            (&line["tokens"], &line["outcome"], &line["mfu"]),
            (&json!(200), &json!("Done"), &json!(null))
        );
    }
}
