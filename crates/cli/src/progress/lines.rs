//! What scripts are told of an event: one JSON object a line.
//!
//! Owns the names of the fields. May not know when a line is printed.

use serde_json::{Value, json};
use trestle_protocol::event::{Event, OuterSummary, StepSummary, Verdict};
use trestle_protocol::ids::PeerId;
use trestle_protocol::plan::Place;
use trestle_protocol::time::Time;

use crate::figures::Figures;
use crate::standing::code;

/// What scripts are told of an event, beside the figures of a step.
pub(super) fn line(event: &Event) -> Option<Value> {
    Some(match event {
        Event::Evaluated { step, loss, .. } => json!({ "event": "evaluated", "step": step.0, "loss": loss }),
        Event::Started { step } => json!({ "event": "started", "step": step.0 }),
        Event::Durable { step, .. } => json!({ "event": "durable", "step": step.0 }),
        Event::Outer(summary) => outer_json(summary),
        Event::Ledger { planned, credited, duplicates, redone, .. } => json!({
            "event": "ledger",
            "planned": planned,
            "credited": credited,
            "duplicates": duplicates,
            "redone": redone,
        }),
        Event::PeerLost { peer, stage, reason } => {
            let stage = stage.map(|stage| stage.0);
            json!({ "event": "peer_lost", "peer": peer.to_hex(), "stage": stage, "reason": reason })
        }
        Event::Planned { plan, members } => {
            json!({ "event": "planned", "plan": plan.0, "members": members.len() })
        }
        Event::Waiting { peer, ahead, why } => {
            json!({ "event": "waiting", "peer": peer.to_hex(), "ahead": ahead, "why": code(why) })
        }
        Event::Seated { peer, place, enters } => member("seated", peer, place, json!({ "enters": enters.0 })),
        Event::Suspected { peer, place } => member("suspected", peer, place, json!({})),
        Event::Trusted { peer, place } => member("trusted", peer, place, json!({})),
        Event::Leaving { peer, place, notice } => {
            member("leaving", peer, place, json!({ "seconds": notice.as_secs_f64() }))
        }
        Event::Removed { peer, place, why, lost } => {
            member("removed", peer, place, json!({ "why": code(why), "lost": lost }))
        }
        Event::Stalled { stage, durable } => {
            json!({ "event": "stalled", "stage": stage.0, "durable": durable.0 })
        }
        Event::Resumed { stage } => json!({ "event": "resumed", "stage": stage.0 }),
        Event::Redo { count, first } => json!({ "event": "redo", "count": count, "first": first.index }),
        Event::Finished { outcome } => json!({ "event": "finished", "outcome": outcome }),
        Event::Joined { .. }
        | Event::Step(_)
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
        | Event::Rerouted { .. }
        | Event::Draining { .. } => return None,
    })
}

fn member(event: &str, peer: &PeerId, place: &Place, more: Value) -> Value {
    let mut line = json!({
        "event": event,
        "peer": peer.to_hex(),
        "stage": place.stage.0,
        "replica": place.replica.0,
    });
    if let (Value::Object(line), Value::Object(mut more)) = (&mut line, more) {
        line.append(&mut more);
    }
    line
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

pub(super) fn step_json(at: Time, summary: &StepSummary, figures: Option<Figures>) -> Value {
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
pub(super) fn beside(line: Value, figures: Option<Figures>) -> Value {
    match (line, serde_json::to_value(figures)) {
        (Value::Object(mut line), Ok(Value::Object(mut figures))) => {
            line.append(&mut figures);
            Value::Object(line)
        }
        (line, Ok(_) | Err(_)) => line,
    }
}
