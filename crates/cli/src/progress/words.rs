//! What people are told of an event besides the steps, in words.
//!
//! Owns the wording. May not know when it is shown.

use trestle_protocol::event::{Event, OuterSummary, Verdict};

use crate::standing::code;
use crate::units::{count, percent, scaled};

/// Says what happened, where that is of interest; `floor` is the lowest possible loss, where it is known.
pub(super) fn words(event: &Event, floor: Option<f64>) -> Option<String> {
    Some(match event {
        Event::Joined { peer, device, peak_flops } => {
            format!("peer {peer} joined ({device}, {}FLOP/s)", scaled(*peak_flops as f64))
        }
        Event::Started { step } => format!("training from step {step}"),
        Event::Evaluated { step, loss, .. } => {
            let above =
                |floor: f64| format!(", {} above the floor of {floor:.4}", percent(loss / floor - 1.0));
            let floor = floor.map_or(String::new(), above);
            format!("held-out loss at step {step}: {loss:.4} nats per token{floor}")
        }
        Event::Ledger { planned, credited, duplicates, redone, .. } => {
            ledger(*planned, credited, *duplicates, redone)
        }
        Event::Draining { border } => format!("stopping at step {border}"),
        Event::Outer(summary) => return outer(summary),
        Event::Flawed { outer, replica, reason } => {
            format!("outer step {}: what replica {replica} sent cannot be used: {reason}", outer.0)
        }
        Event::Disagreed { outer, stage, shard } => {
            format!("outer step {}: reducers of shard {shard} of stage {stage} disagree", outer.0)
        }
        Event::Excluded { outer, peer, stage } => {
            format!("outer step {}: peer {peer} of stage {stage} does not answer", outer.0)
        }
        Event::PeerLost { peer, stage, reason } => {
            let held = stage.map_or(String::new(), |stage| format!(", which holds stage {stage},"));
            format!("peer {peer}{held} is lost: {reason}")
        }
        Event::Refused { peer, refusal } => format!("refused peer {peer}: {}: {refusal}", code(refusal)),
        Event::Rejected { peer: Some(peer), reason } => format!("rejected peer {peer}: {reason}"),
        Event::Rejected { peer: None, reason } => format!("rejected: {reason}"),
        Event::RefusedBy { peer, refusal } => format!("peer {peer} refused: {}: {refusal}", code(refusal)),
        Event::LeaseExpired { microbatch, attempt } => {
            format!("the lease of {microbatch} expired (try {})", attempt.0)
        }
        Event::Waiting { .. }
        | Event::Seated { .. }
        | Event::Suspected { .. }
        | Event::Trusted { .. }
        | Event::Leaving { .. }
        | Event::Removed { .. }
        | Event::Stalled { .. }
        | Event::Resumed { .. } => return membership(event),
        Event::Planned { .. }
        | Event::Leased { .. }
        | Event::Computed { .. }
        | Event::Duplicate { .. }
        | Event::Step(_)
        | Event::Agreed { .. }
        | Event::Restored { .. }
        | Event::Saved { .. }
        | Event::Durable { .. }
        | Event::Rerouted { .. }
        | Event::Redo { .. }
        | Event::Finished { .. } => return None,
    })
}

/// What people are told of peers that come and go.
fn membership(event: &Event) -> Option<String> {
    if let Event::Waiting { peer, ahead, why } = event {
        return Some(format!("peer {peer} waits: {ahead} ahead, {}: {why}", code(why)));
    }
    if let Event::Seated { peer, place, enters } = event {
        let (stage, replica) = (place.stage, place.replica);
        return Some(format!("peer {peer} is stage {stage} replica {replica} from step {enters}"));
    }
    if let Event::Suspected { peer, place } = event {
        return Some(format!("peer {peer} of stage {} may be gone: it gets no new work", place.stage));
    }
    if let Event::Trusted { peer, place } = event {
        return Some(format!("peer {peer} of stage {} is heard again", place.stage));
    }
    if let Event::Leaving { peer, place, notice } = event {
        let notice = notice.as_secs_f64();
        return Some(format!("peer {peer} of stage {} leaves within {notice:.0} s", place.stage));
    }
    if let Event::Removed { peer, place, why, lost } = event {
        let lost = if *lost > 0 {
            format!("; {} microbatches are lost with it", count(*lost))
        } else {
            String::new()
        };
        let (stage, replica, code) = (place.stage, place.replica, code(why));
        return Some(format!(
            "peer {peer} of stage {stage} replica {replica} is removed: {code}: {why}{lost}"
        ));
    }
    if let Event::Stalled { stage, durable } = event {
        return Some(format!(
            "stage {stage} has nobody left and stands still; a peer with its checkpoint of step {durable} can go on"
        ));
    }
    if let Event::Resumed { stage } = event {
        return Some(format!("stage {stage} goes on"));
    }
    None
}

fn outer(summary: &OuterSummary) -> Option<String> {
    match summary.verdict {
        Verdict::Committed if summary.attempts.0 <= 1 => None,
        Verdict::Committed => {
            Some(format!("outer step {} committed at try {}", summary.outer.0, summary.attempts.0))
        }
        Verdict::Restored => Some(format!("outer step {} restored: all go on as before it", summary.outer.0)),
    }
}

/// The proof at the end: what was planned was trained, once.
fn ledger(planned: u64, credited: &[u64], duplicates: u64, redone: &[u64]) -> String {
    let exact = credited.iter().all(|credited| *credited == planned);
    let verdict = if exact { "each once at every stage" } else { "credited by stage" };
    let redone: u64 = redone.iter().sum();
    format!(
        "ledger: {} microbatches planned, {verdict} {credited:?}; {} done again for lost peers, {} duplicates",
        count(planned),
        count(redone),
        count(duplicates)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use trestle_protocol::ids::{InnerStep, PeerId, ReplicaId, StageId};
    use trestle_protocol::message::Removal;
    use trestle_protocol::plan::Place;
    use trestle_protocol::time::Span;

    #[test]
    fn people_hear_how_far_the_loss_is_from_its_floor() {
        let evaluated =
            Event::Evaluated { step: InnerStep(400), loss: 2.1, microbatches: 8, took: Span::seconds(1) };
        assert_eq!(
            words(&evaluated, Some(2.0)).unwrap(),
            "held-out loss at step 400: 2.1000 nats per token, 5.0 % above the floor of 2.0000"
        );
    }

    #[test]
    fn people_hear_why_a_peer_is_gone_and_what_went_with_it() {
        let place = Place { stage: StageId(2), replica: ReplicaId(1) };
        let removed = Event::Removed { peer: PeerId([171; 32]), place, why: Removal::Silent, lost: 1200 };
        assert_eq!(
            words(&removed, None).unwrap(),
            "peer ababababab of stage 2 replica 1 is removed: Silent: nothing was heard of it for too long; \
             1,200 microbatches are lost with it"
        );
    }

    #[test]
    fn the_ledger_says_whether_it_is_exact() {
        let exact = ledger(8, &[8, 8], 1, &[2, 1]);
        assert_eq!(
            exact,
            "ledger: 8 microbatches planned, each once at every stage [8, 8]; 3 done again for lost peers, 1 duplicates"
        );
        assert!(ledger(8, &[8, 7], 0, &[0, 0]).contains("credited by stage [8, 7]"));
    }
}
