//! Where a worker stands, in words for its owner and as JSON for scripts.
//!
//! Owns the wording. May not know how any of it comes about.

use std::fmt::Debug;

use serde_json::{Value, json};
use trestle_node::standing::Standing;
use trestle_protocol::message::{Removal, Start};
use trestle_protocol::plan::Place;

use crate::units::bytes;

/// Says where a worker stands.
pub(crate) fn words(standing: &Standing) -> String {
    match standing {
        Standing::Waiting { ahead, why } => format!("waiting: {ahead} ahead, {}: {why}", code(why)),
        Standing::Placed { place: Place { stage, replica }, start, replicas } => {
            let from = match start {
                Start::Fresh => "from the first weights".into(),
                Start::Checkpoint { step, .. } => format!("from the checkpoint of step {step}"),
                Start::Replicas { .. } => format!("from {}", replicas_words(*replicas)),
            };
            format!("placed: stage {stage} replica {replica}, {from}")
        }
        Standing::Fetching { bytes: number, replicas } => {
            format!("fetching {} from {}", bytes(*number), replicas_words(*replicas))
        }
        Standing::Training => "training".into(),
        Standing::Apart => "the coordinator is lost; trying to reach it again".into(),
        Standing::Leaving { notice } => format!("leaving within {:.0} s", notice.as_secs_f64()),
        Standing::Removed { why } => {
            let then = match why {
                Removal::Left | Removal::Failed => "",
                Removal::Silent
                | Removal::Disconnected
                | Removal::Restarted
                | Removal::Excluded
                | Removal::Moved
                | Removal::Unready
                | Removal::Unknown => "; joining again",
            };
            format!("removed: {}: {why}{then}", code(why))
        }
    }
}

/// Says where a worker stands, for scripts.
pub(crate) fn json(standing: &Standing) -> Option<Value> {
    Some(match standing {
        Standing::Waiting { ahead, why } => json!({ "event": "waiting", "ahead": ahead, "why": code(why) }),
        Standing::Placed { place, start, replicas } => json!({
            "event": "placed",
            "stage": place.stage.0,
            "replica": place.replica.0,
            "start": code(start),
            "replicas": replicas,
        }),
        Standing::Fetching { bytes, replicas } => {
            json!({ "event": "fetching", "bytes": bytes, "replicas": replicas })
        }
        Standing::Training => json!({ "event": "training" }),
        Standing::Apart => json!({ "event": "apart" }),
        Standing::Leaving { notice } => json!({ "event": "leaving", "seconds": notice.as_secs_f64() }),
        Standing::Removed { why } => json!({ "event": "removed", "why": code(why) }),
    })
}

/// Names a reason as a program knows it: by its variant.
pub(crate) fn code(reason: &impl Debug) -> String {
    format!("{reason:?}").chars().take_while(char::is_ascii_alphanumeric).collect()
}

fn replicas_words(replicas: usize) -> String {
    if replicas == 1 { "1 replica".into() } else { format!("{replicas} replicas") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trestle_protocol::ids::{Digest, OuterStep, PeerId, ReplicaId, StageId};
    use trestle_protocol::message::{Refusal, Wait};

    #[test]
    fn an_owner_reads_where_the_worker_stands_with_the_code() {
        let place = Place { stage: StageId(2), replica: ReplicaId(1) };
        let start = Start::Replicas { outer: OuterStep(3), digest: Digest([0; 32]) };
        for (standing, expected) in [
            (
                Standing::Waiting { ahead: 2, why: Wait::NoVacancy },
                "waiting: 2 ahead, NoVacancy: every place is taken, it takes the next that is free",
            ),
            (Standing::Placed { place, start, replicas: 2 }, "placed: stage 2 replica 1, from 2 replicas"),
            (Standing::Fetching { bytes: 3 << 20, replicas: 1 }, "fetching 3.00 MiB from 1 replica"),
            (
                Standing::Removed { why: Removal::Silent },
                "removed: Silent: nothing was heard of it for too long; joining again",
            ),
            (Standing::Removed { why: Removal::Left }, "removed: Left: it left, as it had said"),
        ] {
            let words = words(&standing);
            assert!(expected.starts_with(&words) || words == expected, "{words}");
        }
        assert_eq!(json(&Standing::Removed { why: Removal::Silent }).unwrap()["why"], "Silent");
        assert_eq!(code(&Refusal::NotMember { peer: PeerId([0; 32]) }), "NotMember");
    }
}
