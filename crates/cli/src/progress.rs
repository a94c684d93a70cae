//! Progress for people and scripts, from events alone.
//!
//! Owns what is shown when. May not know where events come from: a run, a log, a simulation.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use trestle_protocol::event::{Event, OuterSummary, StepSummary, Verdict};
use trestle_protocol::ids::PeerId;
use trestle_protocol::spec::RunSpec;
use trestle_protocol::time::Time;
use trestle_settings::model::model_config;

use crate::figures::{Figures, Measure, Sums};
use crate::units::{count, percent, scaled};

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

/// The progress of a run so far.
pub(crate) struct Progress {
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

    /// Takes the next event of the coordinator.
    pub(crate) fn event(&mut self, at: Time, event: &Event) {
        match event {
            Event::Joined { peer, peak_flops, .. } => {
                self.peaks.insert(*peer, *peak_flops);
            }
            Event::Planned { members, .. } => {
                self.peaks.retain(|peer, _| members.iter().any(|(member, _)| member == peer));
            }
            Event::Started { step } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(step.0);
                    bar.reset_eta();
                }
            }
            Event::Step(summary) => self.step(summary),
            Event::Leased { .. }
            | Event::LeaseExpired { .. }
            | Event::Computed { .. }
            | Event::Duplicate { .. }
            | Event::Evaluated { .. }
            | Event::Outer(_)
            | Event::Agreed { .. }
            | Event::Restored { .. }
            | Event::Flawed { .. }
            | Event::Disagreed { .. }
            | Event::Excluded { .. }
            | Event::Saved { .. }
            | Event::Durable { .. }
            | Event::Ledger { .. }
            | Event::Refused { .. }
            | Event::Rejected { .. }
            | Event::RefusedBy { .. }
            | Event::PeerLost { .. }
            | Event::Draining { .. }
            | Event::Finished { .. } => {}
        }
        match self.style {
            Style::Json => {
                if let Some(line) = self.json(at, event) {
                    println!("{line}");
                }
            }
            Style::Bar | Style::Lines => {
                if let Some(line) = self.words(event) {
                    self.say(&line);
                }
            }
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

    fn measure(&self) -> Measure {
        let peak_flops = self.peaks.values().map(|peak| *peak as f64).sum();
        Measure { flops_per_token: self.flops_per_token, peak_flops }
    }

    fn step(&mut self, summary: &StepSummary) {
        self.total.add(summary);
        self.recent.add(summary);
        let done = summary.step.0 + 1;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
        let due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) || done == self.steps;
        match (self.style, self.recent.figures(self.measure())) {
            (Style::Bar | Style::Lines, Some(figures)) if due => {
                self.recent = Sums::default();
                self.last_line = Some(Instant::now());
                let line = format!("step {done}/{}, loss {:.4}, {figures}", self.steps, summary.loss);
                match &self.bar {
                    Some(bar) => bar.set_message(line),
                    None => eprintln!("{line}"),
                }
            }
            (Style::Bar | Style::Lines | Style::Json, _) => {}
        }
    }

    /// Says something that stays.
    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// What people are told of an event besides the steps.
    fn words(&self, event: &Event) -> Option<String> {
        Some(match event {
            Event::Joined { peer, device, peak_flops } => {
                format!("peer {peer} joined ({device}, {}FLOP/s)", scaled(*peak_flops as f64))
            }
            Event::Started { step } => format!("training from step {step}"),
            Event::Evaluated { step, loss, .. } => {
                let above =
                    |floor: f64| format!(", {} above the floor of {floor:.4}", percent(loss / floor - 1.0));
                let floor = self.floor.map_or(String::new(), above);
                format!("held-out loss at step {step}: {loss:.4} nats per token{floor}")
            }
            Event::Ledger { planned, credited, duplicates } => format!(
                "ledger: {planned} microbatches planned, credited by stage {credited:?}, {duplicates} duplicates"
            ),
            Event::Draining { border } => format!("stopping at step {border}"),
            Event::Outer(summary) => match summary.verdict {
                Verdict::Committed if summary.attempts.0 <= 1 => return None,
                Verdict::Committed => {
                    format!("outer step {} committed at try {}", summary.outer.0, summary.attempts.0)
                }
                Verdict::Restored => {
                    format!("outer step {} restored: all go on as before it", summary.outer.0)
                }
            },
            Event::Flawed { outer, replica, reason } => {
                format!("outer step {}: what replica {replica} sent cannot be used: {reason}", outer.0)
            }
            Event::Disagreed { outer, stage, shard } => {
                format!("outer step {}: reducers of shard {shard} of stage {stage} disagree", outer.0)
            }
            Event::Excluded { outer, peer, stage } => {
                format!("outer step {}: peer {peer} of stage {stage} does not answer", outer.0)
            }
            Event::PeerLost { peer, stage: Some(stage), reason } => {
                format!("peer {peer}, which holds stage {stage}, is lost: {reason}")
            }
            Event::PeerLost { peer, stage: None, reason } => format!("peer {peer} is lost: {reason}"),
            Event::Refused { peer, refusal } => format!("refused peer {peer}: {refusal}"),
            Event::Rejected { peer: Some(peer), reason } => format!("rejected peer {peer}: {reason}"),
            Event::Rejected { peer: None, reason } => format!("rejected: {reason}"),
            Event::RefusedBy { peer, refusal } => format!("peer {peer} refused: {refusal}"),
            Event::LeaseExpired { microbatch, attempt } => {
                format!("the lease of {microbatch} expired (try {})", attempt.0)
            }
            Event::Planned { .. }
            | Event::Leased { .. }
            | Event::Computed { .. }
            | Event::Duplicate { .. }
            | Event::Step(_)
            | Event::Agreed { .. }
            | Event::Restored { .. }
            | Event::Saved { .. }
            | Event::Durable { .. }
            | Event::Finished { .. } => return None,
        })
    }

    /// What scripts are told of an event.
    fn json(&self, at: Time, event: &Event) -> Option<Value> {
        Some(match event {
            Event::Step(summary) => {
                let mut one = Sums::default();
                one.add(summary);
                step_json(at, summary, one.figures(self.measure()))
            }
            Event::Evaluated { step, loss, .. } => {
                json!({ "event": "evaluated", "step": step.0, "loss": loss, "floor": self.floor })
            }
            Event::Durable { step, .. } => json!({ "event": "durable", "step": step.0 }),
            Event::Outer(summary) => outer_json(summary),
            Event::Ledger { planned, credited, duplicates } => {
                json!({ "event": "ledger", "planned": planned, "credited": credited, "duplicates": duplicates })
            }
            Event::PeerLost { peer, stage, reason } => {
                let stage = stage.map(|stage| stage.0);
                json!({ "event": "peer_lost", "peer": peer.to_hex(), "stage": stage, "reason": reason })
            }
            Event::Finished { outcome } => {
                let line = json!({ "event": "finished", "outcome": outcome, "tokens": self.total.tokens });
                beside(line, self.total.figures(self.measure()))
            }
            Event::Joined { .. }
            | Event::Planned { .. }
            | Event::Started { .. }
            | Event::Leased { .. }
            | Event::LeaseExpired { .. }
            | Event::Computed { .. }
            | Event::Duplicate { .. }
            | Event::Saved { .. }
            | Event::Refused { .. }
            | Event::Rejected { .. }
            | Event::RefusedBy { .. }
            | Event::Agreed { .. }
            | Event::Restored { .. }
            | Event::Flawed { .. }
            | Event::Disagreed { .. }
            | Event::Excluded { .. }
            | Event::Draining { .. } => return None,
        })
    }
}

pub(crate) fn outer_json(summary: &OuterSummary) -> Value {
    let verdict = match summary.verdict {
        Verdict::Committed => "committed",
        Verdict::Restored => "restored",
    };
    let digests: Vec<_> = summary
        .digests
        .iter()
        .map(|(stage, digest)| json!({ "stage": stage.0, "weights": digest.to_hex() }))
        .collect();
    json!({
        "event": "outer",
        "outer": summary.outer.0,
        "step": summary.step.0,
        "verdict": verdict,
        "seconds": summary.took.as_secs_f64(),
        "tries": summary.attempts.0,
        "digests": digests,
    })
}

fn step_json(at: Time, summary: &StepSummary, figures: Option<Figures>) -> Value {
    let stages: Vec<_> = summary
        .reports
        .iter()
        .map(|(place, report)| {
            json!({
                "stage": place.stage.0,
                "replica": place.replica.0,
                "compute_seconds": report.compute.as_secs_f64(),
                "serialise_seconds": report.serialise.as_secs_f64(),
                "sync_seconds": report.sync.as_secs_f64(),
                "lost_seconds": report.lost.as_secs_f64(),
                "wall_seconds": report.wall.as_secs_f64(),
                "wire_bytes": report.wire_bytes,
                "gradient_norm": report.gradient_norm,
                "learning_rate": report.learning_rate,
                "staleness": report.staleness,
            })
        })
        .collect();
    let line = json!({
        "event": "step",
        "at_seconds": at.0 as f64 / 1e6,
        "step": summary.step.0,
        "loss": summary.loss,
        "tokens": summary.tokens,
        "wall_seconds": summary.wall.as_secs_f64(),
        "outside_seconds": summary.outside.as_secs_f64(),
        "stages": stages,
    });
    beside(line, figures)
}

/// Puts the figures, where there are any, beside the fields of a line.
fn beside(line: Value, figures: Option<Figures>) -> Value {
    match (line, serde_json::to_value(figures)) {
        (Value::Object(mut line), Ok(Value::Object(mut figures))) => {
            line.append(&mut figures);
            Value::Object(line)
        }
        (line, Ok(_) | Err(_)) => line,
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

    #[test]
    fn people_hear_how_far_the_loss_is_from_its_floor() {
        let progress = progress(Style::Lines);
        let evaluated =
            Event::Evaluated { step: InnerStep(400), loss: 2.1, microbatches: 8, took: Span::seconds(1) };
        let words = progress.words(&evaluated).unwrap();
        assert_eq!(
            words,
            "held-out loss at step 400: 2.1000 nats per token, 5.0 % above the floor of 2.0000"
        );
    }
}
