//! What a place says of work that it did not use.

use super::*;
use crate::agenda::Agenda;
use crate::ids::{ReplicaId, WeightVersion};
use crate::pipeline::Task;
use crate::plan::{Candidate, place};
use crate::port::Action;
use crate::receipt::Seals;
use crate::spec::tests::spec;
use ed25519_dalek::SigningKey;

const BEFORE: PeerId = PeerId([1; 32]);
const NEXT: PeerId = PeerId([3; 32]);

/// The middle one of three stages, and what it knows of itself.
fn middle() -> (Traffic, Identity) {
    let spec = spec();
    let key = SigningKey::from_bytes(&[2; 32]);
    let me = PeerId(key.verifying_key().to_bytes());
    let coordinator = PeerId([9; 32]);
    let candidate = |(peer, stage)| Candidate { peer, address: Bytes::new(), stage: Some(StageId(stage)) };
    let candidates = [(BEFORE, 0), (me, 1), (NEXT, 2)].map(candidate);
    let plan =
        place(crate::ids::PlanNumber(1), coordinator, 3, 1, &candidates).expect("every stage has its peer");
    let mut traffic = Traffic::new(plan.member(me).expect("it is a member").clone(), plan.clone());
    traffic.open(Pipeline::new(&spec, InnerStep(0), StageId(1), ReplicaId(0)));
    let (run, agenda) = (Digest([7; 32]), Agenda::new(&spec));
    (traffic, Identity { spec, run, agenda, key, seals: Seals::Signed, me, coordinator })
}

fn tensor(who: &Identity, stage: u16, trained: Option<InnerStep>) -> Tensor {
    Tensor {
        microbatch: MicrobatchId::train(0),
        attempt: Attempt(0),
        stage: StageId(stage),
        seat: SeatId(2),
        version: WeightVersion(0),
        needs: Needs::All,
        trained,
        payload: alloc::vec![0; who.spec.boundary_bytes()].into(),
    }
}

/// Sends a microbatch on to the last stage, and lets it be settled by another way.
fn settled_without(traffic: &mut Traffic, who: &Identity, answered: bool) {
    let mut out = Outbox::default();
    traffic.activation(who, BEFORE, tensor(who, 1, None), &mut out).expect("it falls to this place");
    let task = traffic.pipeline().and_then(Pipeline::start);
    assert!(matches!(task, Some(Task::Forward { .. })));
    let output = Output::Boundary(alloc::vec![0; who.spec.boundary_bytes()].into());
    traffic.forwarded(Time(0), who, MicrobatchId::train(0), output, &mut out);
    if answered {
        let answer = tensor(who, 1, Some(InnerStep(0)));
        traffic.gradient(Time(0), who, NEXT, answer, &mut out).expect("it was asked for");
    }
    traffic.reached(Frontier { train_below: 1, held_out_below: 0 });
}

fn signed(traffic: &mut Traffic, who: &Identity) -> Vec<(StageId, PeerId, Vec<Trained>)> {
    let mut out = Outbox::default();
    traffic.say_receipts(who, &mut out);
    let said = core::iter::from_fn(|| out.pop()).filter_map(|action| {
        let Action::Send { message: Message::Receipts(receipts), .. } = action else { return None };
        Some(receipts)
    });
    said.flatten().map(|r| (r.statement.stage, r.statement.worker, r.statement.microbatches)).collect()
}

#[test]
fn an_answer_that_is_settled_without_is_receipted() {
    let work = Trained { index: 0, step: InnerStep(0) };
    // It waits here for its backward.
    let (mut traffic, who) = middle();
    settled_without(&mut traffic, &who, true);
    assert_eq!(signed(&mut traffic, &who), [(StageId(2), NEXT, alloc::vec![work])]);
    // It comes afterwards, and again.
    let (mut traffic, who) = middle();
    settled_without(&mut traffic, &who, false);
    assert_eq!(signed(&mut traffic, &who), []);
    for expected in [1, 0] {
        let answer = tensor(&who, 1, Some(InnerStep(0)));
        traffic
            .gradient(Time(0), &who, NEXT, answer, &mut Outbox::default())
            .expect("no refusal of honest work");
        assert_eq!(signed(&mut traffic, &who).len(), expected);
    }
}
