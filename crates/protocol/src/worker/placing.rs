//! What a worker checks of a place that it is given, before it takes it.
//!
//! Owns those checks. Knows nothing of what the place holds later.

use crate::ids::{InnerStep, StageId};
use crate::message::{Refusal, Start};
use crate::plan::{Place, Plan};
use crate::route::NEVER;
use crate::worker::identity::Identity;

/// Checks what is later taken for granted: our stage exists, the next one is held where the run begins, and the run does not
/// start behind its end.
pub(crate) fn check_plan(who: &Identity, plan: &Plan, place: Place, start: Start) -> Result<(), Refusal> {
    let stages = who.spec.stages();
    let stage = place.stage;
    if !plan.places_each_once() {
        return Err(Refusal::NotYours { peer: who.coordinator });
    }
    if stage.0 >= stages {
        return Err(Refusal::NoSuchStage { stage, stages });
    }
    let next = StageId(stage.0 + 1);
    let begins = plan.member(who.me).is_some_and(|member| member.enters < NEVER);
    if begins && next.0 < stages && plan.replicas(next).next().is_none() {
        return Err(Refusal::StageEmpty { stage: next });
    }
    if begins && matches!(start, Start::Replicas { .. }) {
        // At the start nobody has anything that others could send.
        return Err(Refusal::NotYours { peer: who.coordinator });
    }
    let step = step_of(start);
    let steps = who.agenda.steps();
    if step > steps { Err(Refusal::StepBeyond { step, steps }) } else { Ok(()) }
}

pub(super) fn step_of(start: Start) -> InnerStep {
    match start {
        Start::Fresh | Start::Replicas { .. } => InnerStep(0),
        Start::Checkpoint { step, .. } => step,
    }
}
