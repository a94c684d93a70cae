//! A coordinator alone, whose members and whose disk do what a test has them do: what it says, and when.

use crate::replicas::replicated;
use crate::swarm::{STAGES, keys, peer};
use bytes::Bytes;
use trestle_protocol::coordinator::CoordinatorConfig;
use trestle_protocol::ids::{
    Attempt, Digest, InnerStep, MicrobatchId, OuterStep, PeerId, PlanNumber, SeatId, StageId,
};
use trestle_protocol::ledger::Ledger;
use trestle_protocol::message::{Join, Message, Refusal, Text};
use trestle_protocol::node::Node;
use trestle_protocol::plan::{Place, Plan};
use trestle_protocol::port::{Action, Input, StoreItem, StoredItem, Took};
use trestle_protocol::receipt::{Receipt, Seals, Statement};
use trestle_protocol::spec::Schedule;
use trestle_protocol::spec::sync::SyncSpec;
use trestle_protocol::sync::arbiter::Committed;
use trestle_protocol::sync::say::{Begin, Say};
use trestle_protocol::time::{Span, Time};
use trestle_protocol::work::{Needs, Trained};

/// Two replicas of each stage; peers 1 and 4 hold the first.
const MEMBERS: std::ops::RangeInclusive<usize> = 1..=6;

struct Office {
    node: Node,
    now: Time,
    /// What it has said since it was asked last.
    said: Vec<(PeerId, Message)>,
    /// Stores that it has asked for, and that are not done.
    storing: usize,
    /// What it asked last to be stored.
    state: Bytes,
}

impl Office {
    /// Opens with all members ready, and with nothing on the disk.
    fn open() -> Self {
        let spec = replicated(2, Schedule::Flush, SyncSpec::mean(2));
        let node = Node::coordinator(CoordinatorConfig { spec, me: peer(0), seals: Seals::Signed }, None)
            .expect("it is new");
        let mut office = Self { node, now: Time(0), said: Vec::new(), storing: 0, state: Bytes::new() };
        MEMBERS.for_each(|member| office.join(member));
        for member in MEMBERS {
            office.hear(member, Message::Ready { plan: PlanNumber(1), holds: None });
        }
        office
    }

    /// Has a peer ask for a place in its stage.
    fn join(&mut self, member: usize) {
        let stage = Some(StageId((member as u16 - 1) % STAGES));
        let (address, device) = (Bytes::new(), "none".into());
        let join = Join { address, stage, device, peak_flops: 0, text: Text::Here, held: Vec::new() };
        self.hear(member, Message::Join(join));
    }

    /// Opens with work handed out.
    fn at_work() -> Self {
        let mut office = Self::open();
        office.store_all();
        office.said.clear();
        office
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else is asked for is a failure of the test")]
    fn take(&mut self, input: Input) {
        self.node.handle(self.now, input);
        while let Some(action) = self.node.poll() {
            match action {
                Action::Send { to, message } => self.said.push((to, message)),
                Action::Store(StoreItem::Coordinator { state, .. }) => {
                    self.storing += 1;
                    self.state = state;
                }
                Action::Record(_) => {}
                other => panic!("a coordinator with its members does not ask for {other:?}"),
            }
        }
    }

    fn hear(&mut self, member: usize, message: Message) {
        self.take(Input::Received { from: peer(member), message });
    }

    /// Lets a second pass, in which every member is heard.
    fn second(&mut self) {
        self.now = self.now + Span::seconds(1);
        MEMBERS.for_each(|member| self.hear(member, Message::Beat));
    }

    /// Lets all that is on its way to the disk come there.
    fn store_all(&mut self) {
        while self.storing > 0 {
            self.storing -= 1;
            let took = Took { total: Span(5), serialise: Span(0) };
            self.take(Input::Stored { item: StoredItem::Coordinator, took });
        }
    }

    fn said(&mut self) -> Vec<(PeerId, Message)> {
        std::mem::take(&mut self.said)
    }

    /// Returns the seat that a member was given, by what was said since this was asked last.
    fn seat_of(&self, member: usize) -> SeatId {
        let plans = self.said.iter().filter_map(|(_, message)| {
            let Message::Placed { plan, .. } = message else { return None };
            plan.member(peer(member)).map(|member| member.seat)
        });
        plans.last().expect("it has a place")
    }

    /// Lets all stand at the border of an outer step; returns what each is told to begin, which takes what receipts take.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "of all that is said, this asks for an answer or ends the wait"
    )]
    fn border(&mut self, outer: OuterStep, step: InnerStep) -> Vec<(PeerId, Begin)> {
        for member in MEMBERS {
            self.hear(member, Message::Sync(Say::Reached { outer, step, heard: Attempt(0) }));
        }
        for _ in 0..60 {
            let mut begins = Vec::new();
            for (to, message) in self.said() {
                match message {
                    Message::Sync(Say::Begin(begin)) => begins.push((to, begin)),
                    Message::Sync(Say::Probe { outer }) => {
                        let alive = Message::Sync(Say::Alive { outer });
                        self.take(Input::Received { from: to, message: alive });
                    }
                    _ => {}
                }
            }
            if !begins.is_empty() {
                return begins;
            }
            self.second();
        }
        panic!("no round of {outer:?} begins");
    }

    /// Has all vote alike for what they were told to begin; the commit is on its way to the disk then.
    fn vote(&mut self, begins: Vec<(PeerId, Begin)>) {
        for (to, begin) in begins {
            let vote = Say::Vote { round: begin.round, digest: Digest([1; 32]), rates: Vec::new() };
            self.take(Input::Received { from: to, message: Message::Sync(vote) });
        }
    }

    /// Returns what the disk has of each stage's commits, if what was stored last is there.
    fn stored_commits(&self) -> Vec<u64> {
        type Session = (Plan, InnerStep, InnerStep, u32, Ledger, Option<InnerStep>);
        type Checkpoint = (InnerStep, Vec<(Place, Digest)>);
        type State = (Digest, Option<Checkpoint>, Option<Committed>, Option<Session>);
        let (_, _, _, session): State = postcard::from_bytes(&self.state).expect("it can be read again");
        session.expect("the run is under way").4.credited()
    }

    /// Returns for which stages a microbatch was leased alone since this was asked last.
    fn leased_again(&mut self, microbatch: MicrobatchId) -> Option<Needs> {
        self.said().into_iter().find_map(|(_, message)| {
            let Message::Lease { microbatches, needs, .. } = message else { return None };
            (microbatches == [microbatch]).then_some(needs)
        })
    }

    /// Lists the leases that were told since it was asked last: to whom, of what, and in which try.
    fn leases(&mut self) -> Vec<(PeerId, Vec<MicrobatchId>, Attempt)> {
        let lease = |(to, message)| {
            let Message::Lease { microbatches, attempt, .. } = message else { return None };
            Some((to, microbatches, attempt))
        };
        self.said().into_iter().filter_map(lease).collect()
    }
}

/// A coordinator that starts again must know what may be out, or it would hand it out twice.
#[test]
fn no_work_is_handed_out_before_it_is_on_the_disk_that_it_may_be() {
    let mut office = Office::open();
    (0..3).for_each(|_| office.second());
    assert_eq!(office.storing, 1, "how far work may be handed out is on its way to the disk");
    assert_eq!(office.leases(), []);
    office.store_all();
    let leased = office.leases();
    let holders: Vec<PeerId> = leased.iter().map(|(to, ..)| *to).collect();
    assert_eq!(holders.len(), 2, "{leased:?}");
    assert!(holders.contains(&peer(1)) && holders.contains(&peer(4)), "both of the first stage: {leased:?}");
}

/// A member that acted on a plan which the coordinator then forgets would stand alone with it.
#[test]
fn nobody_hears_of_a_plan_nor_of_what_follows_from_it_before_it_is_on_the_disk() {
    let mut office = Office::at_work();
    office.hear(4, Message::Leaving { notice: Span(0) });
    assert!(office.storing > 0);
    // What it had been leased goes to the other replica at once: that changes no plan.
    let lease = |message: &Message| matches!(message, Message::Lease { attempt: Attempt(1), .. });
    let (leases, said): (Vec<_>, Vec<_>) = office.said().into_iter().partition(|(_, message)| lease(message));
    assert!(!leases.is_empty() && leases.iter().all(|(to, _)| *to == peer(1)), "{leases:?}");
    let others: Vec<_> = said.iter().filter(|(to, _)| *to != peer(4)).collect();
    assert!(others.is_empty(), "only who leaves hears of the plan at once: {others:?}");
    office.take(Input::Drain);
    assert_eq!(office.said(), [], "what is said later does not overtake it");
    office.store_all();
    for member in [1, 2, 3, 5, 6] {
        let said: Vec<_> = office.said.iter().filter(|(to, _)| *to == peer(member)).collect();
        let at = |wanted: fn(&Message) -> bool| said.iter().position(|(_, message)| wanted(message));
        let plan = at(|message| matches!(message, Message::Roster { .. })).expect("it is told");
        let drain = at(|message| matches!(message, Message::Drain { .. })).expect("and this behind it");
        assert!(plan < drain, "peer {member}: {said:?}");
    }
}

/// A lease that is not settled may have been lost on its way, whoever is heard meanwhile.
#[test]
fn what_is_not_settled_in_time_is_leased_again_to_the_other_replica() {
    let mut office = Office::open();
    office.store_all();
    let first = office.leases();
    let again = (0..600).find_map(|_| {
        office.second();
        office.store_all();
        let leases = office.leases();
        (!leases.is_empty()).then_some(leases)
    });
    let again = again.expect("no lease lasts for ever");
    let had = |of: usize| {
        let of_peer = first.iter().filter(|(to, ..)| *to == peer(of));
        of_peer.flat_map(|(_, microbatches, _)| microbatches.clone()).collect::<Vec<_>>()
    };
    for (to, microbatches, attempt) in again {
        assert_eq!(attempt, Attempt(1));
        let other = if to == peer(1) { 4 } else { 1 };
        assert!(microbatches.iter().all(|microbatch| had(other).contains(microbatch)), "{microbatches:?}");
    }
}

/// Back-pressure: the work stays where it is, and is said again when there may be room.
#[test]
fn who_is_busy_is_told_of_its_lease_again_with_its_next_word_and_loses_nothing() {
    let mut office = Office::open();
    office.store_all();
    let (holder, microbatches, _) = office.leases().into_iter().next().expect("work is out");
    let (member, microbatch) = (if holder == peer(1) { 1 } else { 4 }, microbatches[0]);
    office.hear(member, Message::Refused(Refusal::Busy { microbatch }));
    assert_eq!(office.leases(), [], "not at once, and not to another");
    office.hear(member, Message::Beat);
    assert_eq!(office.leases(), [(holder, vec![microbatch], Attempt(0))]);
    office.hear(member, Message::Beat);
    assert_eq!(office.leases(), [], "once for each refusal");
    office.hear(member, Message::Refused(Refusal::Leaves { microbatch }));
    let other = if member == 1 { peer(4) } else { peer(1) };
    assert_eq!(office.leases(), [(other, vec![microbatch], Attempt(1))], "who leaves is another matter");
}

/// What no commit holds is lost with the member that trained it, though it was receipted and has come back.
#[test]
fn what_a_lost_member_was_credited_with_is_leased_again_for_its_stage_alone() {
    let spec = replicated(2, Schedule::Flush, SyncSpec::mean(2));
    let mut office = Office::open();
    let (lost, holder) = (2, 1);
    let (seat, by_seat) = (office.seat_of(lost), office.seat_of(holder));
    office.store_all();
    let leases = office.leases();
    let (_, microbatches, _) = leases.iter().find(|(to, ..)| *to == peer(holder)).expect("work is out");
    let microbatch = microbatches[0];
    let trained = Trained { index: microbatch.index, step: InnerStep(0) };
    let (run, stage, by) = (spec.digest(), StageId(1), peer(holder));
    let statement = Statement { run, stage, worker: peer(lost), seat, by, microbatches: vec![trained] };
    let receipt = Receipt::sign(statement, &keys()[holder]);
    office.hear(holder, Message::Receipts(vec![receipt]));
    office.hear(
        holder,
        Message::Settled { microbatch, attempt: Attempt(0), seat: by_seat, trained: Some(InnerStep(0)) },
    );
    office.said.clear();
    office.hear(lost, Message::Leaving { notice: Span(0) });
    office.store_all();
    assert_eq!(office.leased_again(microbatch), None, "the others may still sign for some of it");
    (0..2).for_each(|_| office.second());
    let again = office.leased_again(microbatch);
    assert_eq!(
        again,
        Some(Needs::Only(vec![stage])),
        "its credit is taken back, and that of the others stays"
    );
}

/// What came back, and only a lost member can have received, is done again as soon as the others have signed; a commit later it
/// would be found too.
#[test]
fn what_nobody_has_signed_for_when_a_member_is_lost_is_leased_again() {
    let mut office = Office::open();
    office.store_all();
    let (lost, holder) = (2, 1);
    let leases = office.leases();
    let (_, microbatches, _) = leases.iter().find(|(to, ..)| *to == peer(holder)).expect("work is out");
    let microbatch = microbatches[0];
    let (attempt, trained) = (Attempt(0), Some(InnerStep(0)));
    let seat = SeatId(1);
    office.hear(holder, Message::Settled { microbatch, attempt, seat, trained });
    office.said.clear();
    office.hear(lost, Message::Leaving { notice: Span(0) });
    office.store_all();
    let asked = office.said.iter().filter_map(|(to, message)| {
        let Message::Sign { plan } = message else { return None };
        Some((*to, *plan))
    });
    let asked: Vec<(PeerId, PlanNumber)> = asked.collect();
    let others = [1, 3, 4, 5, 6];
    assert!(others.iter().all(|member| asked.iter().any(|(to, _)| *to == peer(*member))), "{asked:?}");
    let plan = asked[0].1;
    let mut again = |member: usize, plan: PlanNumber| {
        office.hear(member, Message::Signed { plan });
        office.leased_again(microbatch)
    };
    for member in others {
        assert_eq!(again(member, PlanNumber(1)), None, "of another plan");
    }
    for member in [3, 4, 5, 6, 3] {
        assert_eq!(again(member, plan), None, "one has not answered");
    }
    let all = (0..STAGES).map(StageId).collect();
    assert_eq!(again(holder, plan), Some(Needs::Only(all)), "once, for all that lack it");
}

/// Its contribution is still to come then. Without a weight no outer step would ever take it, and the run would not end.
#[test]
fn a_receipt_behind_the_commit_that_left_its_replica_out_weighs_in_the_next() {
    let mut office = Office::open();
    let run = replicated(2, Schedule::Flush, SyncSpec::mean(2)).digest();
    let seats = [2, 5].map(|member| office.seat_of(member));
    let receipt = |worker: usize, seat, index| {
        let (stage, by) = (StageId(1), peer(1));
        let microbatches = vec![Trained { index, step: InnerStep(1) }];
        let statement = Statement { run, stage, worker: peer(worker), seat, by, microbatches };
        Message::Receipts(vec![Receipt::sign(statement, &keys()[1])])
    };
    let weights = |begins: &[(PeerId, Begin)]| -> Vec<u64> {
        let (_, begin) = begins.iter().find(|(to, _)| *to == peer(2)).expect("a round begins");
        begin.contributors.iter().map(|(_, weight)| *weight).collect()
    };
    office.store_all();
    office.hear(1, receipt(2, seats[0], 0));
    let begins = office.border(OuterStep(0), InnerStep(2));
    assert_eq!(weights(&begins), [1], "the other has none");
    office.vote(begins);
    office.store_all();
    let commit = |(_, message): &(PeerId, Message)| matches!(message, Message::Sync(Say::Commit { .. }));
    assert!(office.said().iter().any(commit));
    // Of who contributed, a late receipt is of what is committed; of the other, of what is to come.
    office.hear(1, receipt(2, seats[0], 1));
    (2..5).for_each(|index| office.hear(1, receipt(5, seats[1], index)));
    let begins = office.border(OuterStep(1), InnerStep(4));
    assert_eq!(weights(&begins), [3]);
}

/// A coordinator that starts again from it would else take for open what is in the weights.
#[test]
fn a_change_of_the_plan_beside_a_commit_is_stored_with_it() {
    let mut office = Office::open();
    let run = replicated(2, Schedule::Flush, SyncSpec::mean(2)).digest();
    let seat = office.seat_of(2);
    office.store_all();
    let (stage, by) = (StageId(1), peer(1));
    let microbatches = vec![Trained { index: 0, step: InnerStep(1) }];
    let statement = Statement { run, stage, worker: peer(2), seat, by, microbatches };
    office.hear(1, Message::Receipts(vec![Receipt::sign(statement, &keys()[1])]));
    let begins = office.border(OuterStep(0), InnerStep(2));
    assert_eq!(office.stored_commits(), [0, 0, 0]);
    office.vote(begins);
    assert_eq!(office.stored_commits(), [0, 1, 0], "the commit is on its way to the disk");
    let before = office.storing;
    office.join(5);
    assert!(office.storing > before, "a member that starts again is removed first");
    assert_eq!(office.stored_commits(), [0, 1, 0]);
}
