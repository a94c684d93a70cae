//! Each thing that a peer may not say, and the refusal that it gets.

use crate::swarm::{STAGES, Swarm, peer, spec};
use bytes::Bytes;
use trestle_protocol::event::Event;
use trestle_protocol::ids::{
    Attempt, Digest, InnerStep, MicrobatchId, OuterStep, PlanNumber, ReplicaId, SeatId, StageId,
    WeightVersion,
};
use trestle_protocol::message::{
    HELD_MAX, Held, Join, Message, Outcome, Presence, Refusal, Removal, Start, StepReport, TEXT_BYTES_MAX,
    Tensor, Text, Wait,
};
use trestle_protocol::plan::{Member, Place, Plan};
use trestle_protocol::receipt::{Receipt, ReceiptError, Statement};
use trestle_protocol::spec::Schedule;
use trestle_protocol::sync::state::StateSay;
use trestle_protocol::time::Span;
use trestle_protocol::work::{Frontier, Needs, Trained};

const STRANGER: usize = STAGES as usize + 1;

/// A microbatch whose work is under way when the messages come, and one that is far from due.
const DUE: MicrobatchId = MicrobatchId::train(1);
const FAR: MicrobatchId = MicrobatchId::train(11);

/// Runs until work is under way everywhere, says one thing, and returns the refusal that it gets.
fn answer(from: usize, to: usize, message: Message) -> Refusal {
    let mut swarm = Swarm::new(spec(Schedule::Flush), None);
    let losses =
        |swarm: &Swarm| swarm.events[3].iter().filter(|e| matches!(e, Event::Computed { .. })).count();
    while losses(&swarm) < 2 {
        swarm.turn().expect("work comes to the last stage");
    }
    assert_eq!(swarm.refusals(), Vec::<&Event>::new());
    swarm.inject(peer(from), to, message);
    swarm.turn();
    let refusals = swarm.refusals();
    let [Event::Refused { peer: sender, refusal }] = refusals[..] else {
        panic!("one refusal, not {refusals:?}")
    };
    assert_eq!(*sender, peer(from));
    refusal.clone()
}

fn tensor(microbatch: MicrobatchId, stage: u16, bytes: usize) -> Tensor {
    let payload = Bytes::from(vec![0; bytes]);
    let (attempt, stage, version) = (Attempt(0), StageId(stage), WeightVersion(0));
    Tensor { microbatch, attempt, stage, seat: SeatId(0), version, needs: Needs::All, trained: None, payload }
}

#[test]
fn tensors_that_are_not_due_here_are_refused() {
    let want = spec(Schedule::Flush).boundary_bytes();
    let not_yours = |from| Refusal::NotYours { peer: peer(from) };
    let held_out = MicrobatchId::held_out(0);
    let cases = [
        (1, Message::Activation(tensor(DUE, 2, want)), wrong_stage(DUE, 2)),
        (1, Message::Activation(tensor(DUE, 1, want - 1)), length(DUE, want - 1)),
        (1, Message::Activation(tensor(DUE, 1, 0)), length(DUE, 0)),
        (1, Message::Activation(tensor(MicrobatchId::train(99), 1, want)), not_due(MicrobatchId::train(99))),
        (3, Message::Activation(tensor(DUE, 1, want)), not_yours(3)),
        (0, Message::Activation(tensor(DUE, 1, want)), Refusal::NotMember { peer: peer(0) }),
        (STRANGER, Message::Activation(tensor(DUE, 1, want)), Refusal::NotMember { peer: peer(STRANGER) }),
        (1, Message::Gradient(tensor(DUE, 1, want)), not_yours(1)),
        (3, Message::Gradient(tensor(held_out, 1, want)), not_yours(3)),
        (3, Message::Gradient(tensor(FAR, 1, want)), Refusal::NotOwed { microbatch: FAR }),
        (STRANGER, Message::Gradient(tensor(DUE, 1, want)), Refusal::NotMember { peer: peer(STRANGER) }),
    ];
    for (from, message, refusal) in cases {
        assert_eq!(answer(from, 2, message.clone()), refusal, "{message:?} from {from}");
    }
}

#[test]
fn needs_of_more_stages_than_there_are_are_refused() {
    let want = spec(Schedule::Flush).boundary_bytes();
    for stages in [vec![StageId(1); 4], (0..500).map(StageId).collect()] {
        let tensor = Tensor { needs: Needs::Only(stages), ..tensor(DUE, 1, want) };
        assert_eq!(answer(1, 2, Message::Activation(tensor)), not_due(DUE));
    }
}

fn wrong_stage(microbatch: MicrobatchId, got: u16) -> Refusal {
    Refusal::WrongStage { microbatch, got: StageId(got), held: StageId(1) }
}

fn not_due(microbatch: MicrobatchId) -> Refusal {
    Refusal::NotDue { microbatch }
}

fn length(microbatch: MicrobatchId, got: usize) -> Refusal {
    let want = spec(Schedule::Flush).boundary_bytes() as u64;
    Refusal::TensorLength { microbatch, got: got as u64, want }
}

#[test]
fn a_worker_takes_orders_from_its_coordinator_alone() {
    let lease = Message::Lease {
        microbatches: vec![DUE],
        attempt: Attempt(0),
        needs: Needs::All,
        expires_in: Span(1),
    };
    let orders = orders().into_iter().chain([
        lease.clone(),
        Message::Finish { outcome: Outcome::Done },
        Message::Drain { border: InnerStep(1) },
        Message::Ready { plan: PlanNumber(1), holds: None },
        Message::Beat,
        Message::Present { plan: PlanNumber(1), standing: Presence::Works },
        Message::Leaving { notice: Span(0) },
    ]);
    let orders: Vec<Message> = orders.collect();
    for from in [1, 3, STRANGER] {
        for order in &orders {
            assert_eq!(answer(from, 2, order.clone()), Refusal::NotYours { peer: peer(from) }, "{order:?}");
        }
    }
    assert_eq!(
        answer(0, 2, lease),
        Refusal::NotYours { peer: peer(0) },
        "only the first stage is leased work"
    );
}

/// What only a coordinator says of coming and going: a plan that names others, and one place that ends.
fn orders() -> [Message; 8] {
    let member = Member {
        peer: peer(STRANGER),
        place: place(1),
        address: Bytes::new(),
        seat: SeatId(9),
        enters: InnerStep(0),
        until: None,
    };
    let (number, coordinator) = (PlanNumber(9), peer(STRANGER));
    let plan = Plan { number, coordinator, members: vec![member], turns: Vec::new() };
    let frontier = Frontier { train_below: 12, held_out_below: 4 };
    [
        Message::Waiting { ahead: 0, why: Wait::NoVacancy },
        Message::Placed { plan: plan.clone(), start: Start::Fresh, frontier },
        Message::Roster { plan, disturbed_below: InnerStep(3) },
        Message::Enter { outer: None, step: InnerStep(3), trained: Vec::new() },
        Message::Suspects(vec![peer(3)]),
        Message::Frontier(frontier),
        Message::Close { outer: None },
        Message::Removed { why: Removal::Failed },
    ]
}

fn place(stage: u16) -> Place {
    Place { stage: StageId(stage), replica: ReplicaId(0) }
}

#[test]
fn a_coordinator_takes_no_orders() {
    for from in [1, 3, STRANGER] {
        for order in orders() {
            assert_eq!(answer(from, 0, order.clone()), Refusal::NotYours { peer: peer(from) }, "{order:?}");
        }
    }
}

#[test]
fn what_goes_another_way_is_said_by_the_stage_before_alone() {
    let diverted = Message::Diverted { microbatch: DUE };
    for from in [0, STRANGER] {
        assert_eq!(answer(from, 2, diverted.clone()), Refusal::NotMember { peer: peer(from) });
    }
    assert_eq!(answer(3, 2, diverted.clone()), Refusal::NotYours { peer: peer(3) });
    assert_eq!(answer(1, 3, diverted.clone()), Refusal::NotYours { peer: peer(1) });
    assert_eq!(answer(1, 0, diverted), Refusal::NotYours { peer: peer(1) });
}

#[test]
fn a_state_is_asked_for_by_replicas_of_the_stage_alone() {
    let ask = Message::State(StateSay::Ask { outer: OuterStep(0) });
    for from in [0, 1, 3, STRANGER] {
        assert_eq!(answer(from, 2, ask.clone()), Refusal::NotYours { peer: peer(from) });
    }
    assert_eq!(answer(1, 0, ask), Refusal::NotYours { peer: peer(1) });
}

/// Who claims to leave leaves itself alone: the message names nobody else.
#[test]
fn a_stranger_that_leaves_or_is_present_changes_nothing() {
    for message in [
        Message::Leaving { notice: Span(0) },
        Message::Leaving { notice: Span::seconds(1) },
        Message::Present { plan: PlanNumber(1), standing: Presence::Works },
        Message::Beat,
    ] {
        let mut swarm = Swarm::new(spec(Schedule::Flush), None);
        swarm.run_until(0, |event| matches!(event, Event::Started { .. }));
        swarm.inject(peer(STRANGER), 0, message);
        swarm.run();
        assert_eq!(swarm.outcome(), Some(&Outcome::Done));
        assert!(!swarm.events[0].iter().any(|event| matches!(event, Event::Removed { .. })));
    }
}

#[test]
fn the_coordinator_hears_of_work_from_those_who_do_it() {
    let (first, last) = (1, STAGES as usize);
    let loss = |microbatch, loss| Message::Loss { microbatch, attempt: Attempt(0), loss };
    let (attempt, seat) = (Attempt(0), SeatId(0));
    let settled = |microbatch| Message::Settled { microbatch, attempt, seat, trained: None };
    let stepped = |step| Message::Stepped(StepReport { step: InnerStep(step), ..StepReport::default() });
    let saved =
        |step| Message::Checkpointed { step: InnerStep(step), digest: Digest([1; 32]), took: Span(1) };
    let not_yours = |from| Refusal::NotYours { peer: peer(from) };
    let stranger = Refusal::NotMember { peer: peer(STRANGER) };
    let held = Held { place: place(0), step: InnerStep(2), digest: Digest([1; 32]) };
    let boaster = Join { held: vec![held; HELD_MAX + 1], ..join() };
    let (got, max) = (HELD_MAX as u64 + 1, HELD_MAX as u64);
    let cases = [
        (STRANGER, Message::Join(boaster), Refusal::TooMany { field: "held".into(), got, max }),
        (first, loss(DUE, 1.0), not_yours(first)),
        (last, loss(FAR, 1.0), not_due(FAR)),
        (last, loss(DUE, f32::NAN), Refusal::LossNotFinite { microbatch: DUE }),
        (last, settled(DUE), not_yours(last)),
        (first, settled(FAR), not_due(FAR)),
        (first, settled(MicrobatchId::held_out(0)), not_yours(first)),
        (first, stepped(3), not_yours(first)),
        (first, stepped(u64::MAX), not_yours(first)),
        (first, saved(1), not_yours(first)),
        (first, Message::Activation(tensor(DUE, 1, 0)), not_yours(first)),
        (STRANGER, loss(DUE, 1.0), stranger.clone()),
        (STRANGER, settled(DUE), stranger.clone()),
        (STRANGER, stepped(0), stranger.clone()),
        (STRANGER, saved(2), stranger.clone()),
        (STRANGER, Message::Receipts(Vec::new()), stranger.clone()),
        (STRANGER, Message::Failed { reason: "none".into() }, stranger.clone()),
        (STRANGER, Message::PeerLost { peer: peer(1), reason: "none".into() }, stranger),
        (
            first,
            Message::PeerLost { peer: peer(2), reason: "x".repeat(TEXT_BYTES_MAX + 1) },
            too_long("reason"),
        ),
        (first, Message::Failed { reason: "x".repeat(TEXT_BYTES_MAX + 1) }, too_long("reason")),
    ];
    for (from, message, refusal) in cases {
        assert_eq!(answer(from, 0, message.clone()), refusal, "{message:?} from {from}");
    }
}

#[test]
fn a_checkpoint_of_a_step_that_nobody_can_have_reached_holds_up_none_before_it() {
    let mut spec = spec(Schedule::Flush);
    (spec.training.steps, spec.checkpoint.every, spec.evaluation.every) = (12, 2, 0);
    let mut swarm = Swarm::new(spec, None);
    let durable = |event: &Event| matches!(event, Event::Durable { .. });
    swarm.run_until(0, |event| matches!(event, Event::Started { .. }));
    for border in [2, 4] {
        // Just within what a coordinator reserves on the disk, and beyond what it has handed out.
        let (step, digest, took) = (InnerStep(border + 4), Digest([1; 32]), Span(1));
        swarm.inject(peer(1), 0, Message::Checkpointed { step, digest, took });
        let before = swarm.events[0].len();
        swarm.turn().expect("it is heard");
        let refusal = Refusal::NotYours { peer: peer(1) };
        assert!(swarm.events[0][before..].contains(&Event::Refused { peer: peer(1), refusal }));
        swarm.run_until(0, |event| matches!(event, Event::Durable { step, .. } if step.0 == border));
    }
    swarm.run();
    assert_eq!(swarm.outcome(), Some(&Outcome::Done));
    assert_eq!(swarm.events[0].iter().filter(|event| durable(event)).count(), 6, "each in its time");
}

fn join() -> Join {
    let (text, held) = (Text::Here, Vec::new());
    Join { address: Bytes::new(), stage: None, device: String::new(), peak_flops: 0, text, held }
}

fn too_long(field: &str) -> Refusal {
    let max = TEXT_BYTES_MAX as u64;
    Refusal::FieldLength { field: field.into(), got: max + 1, max }
}

#[test]
fn receipts_are_checked_against_key_run_and_plan() {
    let run = spec(Schedule::Flush).digest();
    let statement = |stage: u16, worker, by, index| Statement {
        run,
        stage: StageId(stage),
        worker: peer(worker),
        seat: SeatId(worker as u32),
        by: peer(by),
        microbatches: vec![Trained { index, step: InnerStep(0) }],
    };
    let cases = [
        (2, statement(0, 1, 2, 11), Refusal::Receipt(ReceiptError::NeverLeased)),
        (2, statement(1, 1, 2, 0), Refusal::Receipt(ReceiptError::NotReceiver)),
        (2, statement(0, 3, 2, 0), Refusal::Receipt(ReceiptError::NotHolder)),
        (
            2,
            Statement { seat: SeatId(2), ..statement(0, 1, 2, 0) },
            Refusal::Receipt(ReceiptError::NotHolder),
        ),
        (
            2,
            Statement { seat: SeatId(99), ..statement(0, 1, 2, 0) },
            Refusal::Receipt(ReceiptError::NotHolder),
        ),
        (3, statement(0, 1, 3, 0), Refusal::Receipt(ReceiptError::NotReceiver)),
        (2, statement(1, 2, 2, 0), Refusal::Receipt(ReceiptError::OwnWork)),
        (2, Statement { run: Digest([9; 32]), ..statement(0, 1, 2, 0) }, Refusal::Receipt(ReceiptError::Run)),
        (1, statement(0, 1, 2, 0), Refusal::NotYours { peer: peer(1) }),
    ];
    for (from, statement, refusal) in cases {
        let signer = (0..=STRANGER).find(|index| peer(*index) == statement.by).expect("one of ours signs");
        let receipt = Receipt::sign(statement.clone(), &crate::swarm::keys()[signer]);
        assert_eq!(answer(from, 0, Message::Receipts(vec![receipt])), refusal, "{statement:?} from {from}");
    }
}
