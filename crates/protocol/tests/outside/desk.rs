//! A worker of the first stage alone, whose coordinator, neighbours and device do what a test has them do.

use crate::replicas::replicated;
use crate::swarm::{STAGES, keys, peer};
use bytes::Bytes;
use trestle_protocol::event::Event;
use trestle_protocol::ids::{
    Attempt, InnerStep, MicrobatchId, PeerId, PlanNumber, ReplicaId, SeatId, StageId, WeightVersion,
};
use trestle_protocol::message::{Join, Message, Refusal, Start, Tensor, Text};
use trestle_protocol::node::Node;
use trestle_protocol::plan::{Member, Place, Plan};
use trestle_protocol::port::{Action, Input, Output, Took};
use trestle_protocol::receipt::{Seals, Statement};
use trestle_protocol::spec::sync::SyncSpec;
use trestle_protocol::spec::{RunSpec, Schedule};
use trestle_protocol::time::{Span, Time};
use trestle_protocol::work::{Frontier, Needs};
use trestle_protocol::worker::WorkerConfig;

/// The worker; peers 2 and 5 are the replicas of the stage behind it.
const ME: usize = 1;

/// A seat that nobody holds at the start.
const LATER: SeatId = SeatId(40);

const TOOK: Took = Took { total: Span(5), serialise: Span(0) };

/// Two replicas of each stage, each peer on the seat of its number.
fn plan() -> Plan {
    let member = |index: u16| Member {
        peer: peer(usize::from(index)),
        place: Place { stage: StageId((index - 1) % STAGES), replica: ReplicaId((index - 1) / STAGES) },
        address: Bytes::new(),
        seat: SeatId(u32::from(index)),
        enters: InnerStep(0),
        until: None,
    };
    let members = (1..=2 * STAGES).map(member).collect();
    Plan { number: PlanNumber(1), coordinator: peer(0), members, turns: Vec::new() }
}

fn spec() -> RunSpec {
    replicated(2, Schedule::Async { staleness_max: 1 }, SyncSpec::mean(2))
}

struct Desk {
    node: Node,
    now: Time,
    plan: Plan,
    boundary: Bytes,
    said: Vec<(PeerId, Message)>,
    events: Vec<Event>,
    /// Backwards that were asked for and are not done.
    backwards: Vec<MicrobatchId>,
    /// Forwards whose backward will not come.
    discarded: Vec<MicrobatchId>,
}

impl Desk {
    /// Opens with the place taken.
    fn open() -> Self {
        Self::placed(plan(), spec())
    }

    fn placed(plan: Plan, spec: RunSpec) -> Self {
        let boundary = Bytes::from(vec![7; spec.boundary_bytes()]);
        let (address, device) = (Bytes::new(), "none".into());
        let (stage, text, held) = (Some(StageId(0)), Text::Here, Vec::new());
        let join = Join { address, stage, device, peak_flops: 0, text, held };
        let node = Node::worker(WorkerConfig {
            spec,
            key: keys()[ME].clone(),
            seals: Seals::Signed,
            coordinator: peer(0),
            coordinator_address: Bytes::new(),
            coordinator_wait: Span(0),
            join,
        });
        let (said, events, backwards, discarded) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut desk = Self { node, now: Time(0), plan, boundary, said, events, backwards, discarded };
        desk.take(Input::Connected { peer: peer(0) });
        let (plan, start, frontier) = (desk.plan.clone(), Start::Fresh, Frontier::default());
        desk.hear(0, Message::Placed { plan, start, frontier });
        assert!(desk.said.iter().any(|(_, message)| matches!(message, Message::Ready { .. })));
        desk
    }

    /// Takes an input, and computes at once what is asked for, but for backwards.
    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else is asked for is a failure of the test")]
    fn take(&mut self, input: Input) {
        let mut inputs = std::collections::VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            self.node.handle(self.now, input);
            while let Some(action) = self.node.poll() {
                match action {
                    Action::Send { to, message } => self.said.push((to, message)),
                    Action::Dial { peer, .. } => inputs.push_back(Input::Connected { peer }),
                    Action::Load { .. } => {
                        inputs.push_back(Input::Loaded { step: InnerStep(0), took: TOOK });
                    }
                    Action::Forward { microbatch, .. } => {
                        let output = Output::Boundary(self.boundary.clone());
                        inputs.push_back(Input::Forwarded { microbatch, output, took: TOOK });
                    }
                    Action::Backward { microbatch, .. } => self.backwards.push(microbatch),
                    Action::Discard { microbatch } => self.discarded.push(microbatch),
                    Action::Record(event) => self.events.push(event),
                    other => panic!("a worker with one microbatch does not ask for {other:?}"),
                }
            }
        }
    }

    fn hear(&mut self, from: usize, message: Message) {
        self.take(Input::Received { from: peer(from), message });
    }

    /// Hears of a later plan.
    fn enrol(&mut self, change: impl FnOnce(&mut Vec<Member>)) {
        self.plan.number = PlanNumber(self.plan.number.0 + 1);
        change(&mut self.plan.members);
        let (plan, disturbed_below) = (self.plan.clone(), InnerStep(1));
        self.hear(0, Message::Roster { plan, disturbed_below });
    }

    /// Is leased a microbatch; returns to which replica of the next stage it goes.
    fn lease(&mut self, microbatch: MicrobatchId) -> usize {
        let (attempt, needs, expires_in) = (Attempt(0), Needs::All, Span::seconds(300));
        self.hear(0, Message::Lease { microbatches: vec![microbatch], attempt, needs, expires_in });
        self.activations()[0].0
    }

    /// Gives what was sent to the next stage since this was asked last: to whom, and what.
    fn activations(&mut self) -> Vec<(usize, Bytes)> {
        let number = |of: PeerId| (1..=6).find(|index| peer(*index) == of).expect("a member");
        let said = std::mem::take(&mut self.said).into_iter();
        let sent = said.filter_map(|(to, message)| {
            let Message::Activation(tensor) = message else { return None };
            Some((number(to), tensor.payload))
        });
        sent.collect()
    }

    /// Hears a gradient from the seat that a peer holds.
    fn gradient(&mut self, from: usize, microbatch: MicrobatchId, seat: SeatId) {
        let tensor = Tensor {
            microbatch,
            attempt: Attempt(0),
            stage: StageId(0),
            seat,
            version: WeightVersion(0),
            needs: Needs::All,
            trained: Some(InnerStep(0)),
            payload: self.boundary.clone(),
        };
        self.hear(from, Message::Gradient(tensor));
    }

    /// Does the backward that was asked for, and lets a second pass; gives what it signs for then.
    fn receipts(&mut self) -> Vec<Statement> {
        let microbatch = self.backwards.pop().expect("a backward is asked for");
        self.take(Input::Backwarded { microbatch, gradient: None, took: TOOK });
        self.now = self.now + Span::seconds(1);
        self.take(Input::Woke);
        let said = std::mem::take(&mut self.said).into_iter();
        let receipts = said.filter_map(|(_, message)| {
            let Message::Receipts(receipts) = message else { return None };
            Some(receipts)
        });
        receipts.flatten().map(|receipt| receipt.statement).collect()
    }
}

fn seat(number: usize) -> SeatId {
    SeatId(number as u32)
}

/// Gives a peer, which came back after its place was lost, a seat anew.
fn seat_again(members: &mut [Member], number: usize) {
    let member = members.iter_mut().find(|member| member.peer == peer(number)).expect("a member");
    member.seat = LATER;
}

/// What a gradient says was trained in the process before this one; the weights of this one do not have it.
#[test]
fn what_was_done_in_a_former_seat_is_receipted_to_that_seat() {
    let mut desk = Desk::open();
    let microbatch = MicrobatchId::train(0);
    let worker = desk.lease(microbatch);
    desk.enrol(|members| seat_again(members, worker));
    desk.gradient(worker, microbatch, seat(worker));
    let receipts = desk.receipts();
    let seats: Vec<(PeerId, SeatId)> = receipts.iter().map(|said| (said.worker, said.seat)).collect();
    assert_eq!(seats, [(peer(worker), seat(worker))], "not to the seat that it holds now");
}

#[test]
fn who_is_no_member_any_longer_is_receipted_nothing() {
    for gone in [false, true] {
        let mut desk = Desk::open();
        let microbatch = MicrobatchId::train(0);
        let worker = desk.lease(microbatch);
        desk.gradient(worker, microbatch, seat(worker));
        if gone {
            desk.enrol(|members| members.retain(|member| member.peer != peer(worker)));
        }
        assert_eq!(desk.receipts().len(), usize::from(!gone));
    }
}

/// The boundary output is kept until its gradient is back, so that another replica can be sent the same.
#[test]
fn what_was_sent_to_one_that_is_gone_goes_to_the_other_as_it_was() {
    let told: [fn(&mut Desk, usize); 2] = [
        |desk, worker| desk.hear(0, Message::Suspects(vec![peer(worker)])),
        |desk, worker| desk.enrol(|members| members.retain(|member| member.peer != peer(worker))),
    ];
    for tell in told {
        let mut desk = Desk::open();
        let microbatch = MicrobatchId::train(0);
        let worker = desk.lease(microbatch);
        tell(&mut desk, worker);
        let other = if worker == 2 { 5 } else { 2 };
        assert_eq!(desk.activations(), [(other, desk.boundary.clone())]);
        desk.gradient(other, microbatch, seat(other));
        assert_eq!(desk.receipts()[0].seat, seat(other));
    }
}

/// Both may train it then, and whoever reads the log must know of it.
#[test]
fn what_gave_way_and_goes_to_another_replica_after_that_is_said_to_go_another_way() {
    let mut spec = spec();
    (spec.pipeline.schedule, spec.sync.delay) = (Schedule::Async { staleness_max: 8 }, 1);
    (spec.evaluation.every, spec.checkpoint.every) = (0, 0);
    let mut desk = Desk::placed(plan(), spec);
    let lease = |microbatches: core::ops::Range<u64>| {
        let microbatches = microbatches.map(MicrobatchId::train).collect();
        let (attempt, needs, expires_in) = (Attempt(1), Needs::All, Span::seconds(300));
        Message::Lease { microbatches, attempt, needs, expires_in }
    };
    [1..20, 20..35].into_iter().for_each(|lost| desk.hear(0, lease(lost)));
    assert_eq!(desk.activations().len(), 34, "3 in flight, and as many as may wait");
    let first = desk.lease(MicrobatchId::train(0));
    let last = desk.plan.place_of(peer(first)).map(|place| place.replica);
    assert_eq!(last, Some(ReplicaId(0)), "34 fell to the same replica");
    assert_eq!(desk.discarded, [MicrobatchId::train(34)], "the device has no use for what has given way");
    desk.enrol(|members| members.retain(|member| member.peer != peer(first)));
    desk.gradient(5, MicrobatchId::train(0), seat(5));
    desk.receipts();
    let (from, to) = (peer(first), peer(5));
    assert!(desk.events.contains(&Event::Rerouted { microbatch: MicrobatchId::train(34), from, to }));
}

/// The word by which it enters may be behind the lease: nobody would say that again before it expires.
#[test]
fn who_is_leased_work_before_it_enters_asks_to_be_told_again() {
    let mut plan = plan();
    plan.members[ME - 1].enters = InnerStep(u64::MAX);
    let mut desk = Desk::placed(plan, spec());
    let microbatch = MicrobatchId::train(0);
    let (microbatches, attempt, needs) = (vec![microbatch], Attempt(0), Needs::All);
    desk.said.clear();
    desk.hear(0, Message::Lease { microbatches, attempt, needs, expires_in: Span::seconds(60) });
    assert_eq!(desk.said, [(peer(0), Message::Refused(Refusal::Busy { microbatch }))]);
}

#[test]
fn what_is_settled_without_a_replica_is_let_go_by_its_device() {
    let mut desk = Desk::open();
    let microbatch = MicrobatchId::train(0);
    desk.lease(microbatch);
    assert_eq!(desk.node.in_flight(), Some(1));
    desk.hear(0, Message::Frontier(Frontier { train_below: 1, held_out_below: 0 }));
    assert_eq!((desk.node.in_flight(), desk.discarded), (Some(0), vec![microbatch]));
}

/// Whoever was lost may have received what nobody else signs for: to know that, all others have signed for what they received.
#[test]
fn who_is_asked_to_sign_has_signed_for_all_when_it_says_so() {
    let mut desk = Desk::open();
    let microbatch = MicrobatchId::train(0);
    let worker = desk.lease(microbatch);
    desk.gradient(worker, microbatch, seat(worker));
    let microbatch = desk.backwards.pop().expect("a backward is asked for");
    desk.take(Input::Backwarded { microbatch, gradient: None, took: TOOK });
    let of = |message: &Message| if let Message::Receipts(receipts) = message { receipts.len() } else { 0 };
    let plan = PlanNumber(1);
    desk.hear(0, Message::Sign { plan });
    let signed = desk.said.iter().position(|(_, message)| *message == Message::Signed { plan });
    let before = &desk.said[..signed.expect("it says so")];
    assert_eq!(before.iter().map(|(_, message)| of(message)).sum::<usize>(), 1);
    desk.said.clear();
    desk.hear(0, Message::Sign { plan });
    assert_eq!(desk.said, [(peer(0), Message::Signed { plan })], "there is nothing new to sign for");
    desk.said.clear();
    desk.hear(2, Message::Sign { plan });
    assert_eq!(desk.said, [(peer(2), Message::Refused(Refusal::NotYours { peer: peer(2) }))]);
}
