//! A replica's rules, one by one: what it fetches and from whom, what it votes for, what it takes for decided, and what of
//! others it refuses.

use crate::court::{X, Y, border, peer, plan, round};
use crate::swarm::contribution;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::mem::take;
use trestle_protocol::event::Event;
use trestle_protocol::ids::{Attempt, Digest, InnerStep, OuterStep, PeerId, ReplicaId, StageId};
use trestle_protocol::message::{Message, Refusal};
use trestle_protocol::port::{Action, Outbox};
use trestle_protocol::sync::blob::{Blob, CHUNK_BYTES, Manifest};
use trestle_protocol::sync::fetch::CHUNKS_IN_FLIGHT_MAX;
use trestle_protocol::sync::group::Group;
use trestle_protocol::sync::member::{Decision, Member};
use trestle_protocol::sync::say::{Begin, Part, Say};
use trestle_protocol::sync::task::{Counted, SyncDone, SyncTask};
use trestle_protocol::time::{Span, Time};

const COORDINATOR: PeerId = PeerId([0; 32]);
const OUTER: OuterStep = OuterStep(0);

/// Replica 0 of three, with others that say what a test has them say.
struct Seat {
    member: Member,
    now: Time,
    out: Outbox,
    said: Vec<(PeerId, Say)>,
    tasks: Vec<SyncTask>,
    events: Vec<Event>,
}

impl Seat {
    /// Stands at the border of the first outer step.
    fn new() -> Self {
        let group = Group::of(&plan(1, 3), StageId(0));
        let member = Member::new(ReplicaId(0), COORDINATOR, group);
        let (said, tasks, events) = (Vec::new(), Vec::new(), Vec::new());
        let mut seat = Self { member, now: Time(0), out: Outbox::default(), said, tasks, events };
        seat.member.reached(seat.now, OUTER, border(0), &mut seat.out);
        seat.drain();
        seat
    }

    /// Has offered its contribution to the first try.
    fn opened() -> Self {
        let mut seat = Self::new();
        seat.begin(begin(1)).expect("the round fits");
        seat.encode();
        seat.said();
        seat
    }

    fn drain(&mut self) {
        while let Some(action) = self.out.pop() {
            if let Action::Send { to, message: Message::Sync(say) } = action {
                self.said.push((to, say));
            } else if let Action::Sync(task) = action {
                self.tasks.push(task);
            } else if let Action::Record(event) = action {
                self.events.push(event);
            } else {
                panic!("a replica has no business with {action:?}");
            }
        }
    }

    fn said(&mut self) -> Vec<(PeerId, Say)> {
        take(&mut self.said)
    }

    fn tasks(&mut self) -> Vec<SyncTask> {
        take(&mut self.tasks)
    }

    fn hear(&mut self, from: PeerId, say: Say) -> Result<(), Refusal> {
        let heard = self.member.received(self.now, from, say, &mut self.out);
        self.drain();
        heard
    }

    fn begin(&mut self, begin: Begin) -> Result<(), Refusal> {
        self.hear(COORDINATOR, Say::Begin(begin))
    }

    fn done(&mut self, done: SyncDone) {
        self.member.done(self.now, done, &mut self.out);
        self.drain();
    }

    /// Encodes as often as it was asked to.
    fn encode(&mut self) {
        for task in self.tasks() {
            let SyncTask::Encode { outer, shares } = task else { panic!("{task:?} is not an encoding") };
            let shards = (0_u16..).zip(&shares).map(|(shard, _)| contribution(0, outer, shard)).collect();
            self.done(SyncDone::Encoded { outer, shares, shards, took: Span(5) });
        }
    }

    fn offer(
        &mut self,
        from: u16,
        attempt: u16,
        (part, shard): (Part, u16),
        manifest: &Manifest,
    ) -> Result<(), Refusal> {
        let (round, manifest) = (round(0, attempt), manifest.clone());
        self.hear(peer(0, from), Say::Offer { round, shard, part, manifest })
    }

    fn chunk(&mut self, from: u16, blob: &Blob) -> Result<(), Refusal> {
        let (blob, payload) = (blob.id(), blob.bytes().clone());
        self.hear(peer(0, from), Say::Chunk { blob, chunk: 0, payload })
    }

    /// Offers a blob that is wanted, and sends it.
    fn give(&mut self, from: u16, attempt: u16, part: Part, shard: u16, blob: &Blob) {
        self.offer(from, attempt, (part, shard), blob.manifest()).expect("the offer is taken");
        self.chunk(from, blob).expect("the chunk is taken");
    }

    /// Stages what the others have given in the first try, as the weights `X`.
    fn staged() -> Self {
        let mut seat = Self::opened();
        for from in [1, 2] {
            for shard in [0, 2] {
                seat.give(from, 1, Part::Contribution, shard, &contribution(usize::from(from), OUTER, shard));
            }
        }
        for shard in [0, 2] {
            let result = Ok(result(shard));
            seat.done(SyncDone::Reduced { round: round(0, 1), shard, result, took: Span(5) });
        }
        seat.give(2, 1, Part::Result, 1, &result(1));
        seat.done(SyncDone::Staged { round: round(0, 1), result: Ok(X), took: Span(5) });
        seat
    }

    fn commit(&mut self, outer: u64, step: InnerStep, digest: Digest) -> Option<(OuterStep, Decision)> {
        self.hear(COORDINATOR, Say::Commit { outer: OuterStep(outer), step, tokens: 9, digest })
            .expect("it is heard");
        self.member.take_decision()
    }
}

/// A round of all three, in which replica 0 reduces shards 0 and 2.
fn begin(attempt: u16) -> Begin {
    Begin {
        round: round(0, attempt),
        contributors: [(0, 3), (1, 4), (2, 5)].map(|(replica, weight)| (ReplicaId(replica), weight)).to_vec(),
        shares: vec![20_000, 20_000, 25_536],
        reducers: [[0, 1], [1, 2], [2, 0]].map(|of| of.map(ReplicaId).to_vec()).to_vec(),
    }
}

fn result(shard: u16) -> Blob {
    Blob::new(Bytes::from(vec![shard as u8; 40]))
}

fn wanted(said: &[(PeerId, Say)]) -> BTreeSet<Digest> {
    said.iter()
        .filter_map(|(_, say)| if let Say::Want { blob, .. } = say { Some(*blob) } else { None })
        .collect()
}

fn flaws(said: Vec<(PeerId, Say)>) -> Vec<(ReplicaId, String)> {
    let flaw = |(to, say)| {
        let Say::Flaw { contributor, reason, .. } = say else { return None };
        assert_eq!(to, COORDINATOR);
        Some((contributor, reason))
    };
    said.into_iter().filter_map(flaw).collect()
}

#[test]
fn contributions_are_reduced_in_replica_order_whoever_was_first() {
    let mut seat = Seat::opened();
    for from in [2, 1] {
        let blob = contribution(usize::from(from), OUTER, 2);
        seat.offer(from, 1, (Part::Contribution, 2), blob.manifest()).expect("the offer is taken");
        assert_eq!(wanted(&seat.said()), BTreeSet::from([blob.id()]));
        assert_eq!(seat.tasks(), []);
        seat.chunk(from, &blob).expect("the chunk is taken");
    }
    let tasks = seat.tasks();
    let [SyncTask::Reduce { shard: 2, contributions, .. }] = &tasks[..] else { panic!("{tasks:?}") };
    let order: Vec<(u16, u64)> = contributions.iter().map(|one| (one.from.0, one.weight)).collect();
    assert_eq!(order, [(0, 3), (1, 4), (2, 5)]);
    assert!(contributions.iter().all(|one| one.bytes == *contribution(one.from.0.into(), OUTER, 2).bytes()));
}

#[test]
fn a_replica_votes_for_what_it_holds_and_commits_what_it_voted_for() {
    let mut seat = Seat::staged();
    let tasks = seat.tasks();
    let results = vec![result(0).bytes().clone(), result(1).bytes().clone(), result(2).bytes().clone()];
    let (shares, counted) = (begin(1).shares, Counted::In);
    assert!(tasks.contains(&SyncTask::Stage { round: round(0, 1), shares, results, counted }), "{tasks:?}");
    let vote = |(to, say): &(PeerId, Say)| {
        *to == COORDINATOR
            && matches!(say, Say::Vote { digest, round: at, .. } if *digest == X && *at == round(0, 1))
    };
    assert!(seat.said().iter().any(vote));
    assert_eq!(seat.commit(1, border(0), X), None, "of another outer step");
    assert_eq!(seat.commit(0, border(0), X), Some((OUTER, Decision::Committed)));
    assert_eq!(seat.tasks(), [SyncTask::Commit { outer: OUTER }]);
    assert!(seat.events.contains(&Event::Agreed { outer: OUTER, digest: X }));
    assert_eq!(seat.commit(0, border(0), X), None, "it is decided");
}

#[test]
fn what_it_does_not_hold_is_never_committed() {
    for (step, digest) in [(border(0), Y), (InnerStep(3), X)] {
        let mut seat = Seat::staged();
        seat.tasks();
        assert_eq!(seat.commit(0, step, digest), Some((OUTER, Decision::Excluded)), "{step} {digest}");
        assert_eq!(seat.tasks(), []);
    }
    let mut early = Seat::opened();
    assert_eq!(early.commit(0, border(0), X), Some((OUTER, Decision::Excluded)), "nothing is staged");
    let mut again = Seat::staged();
    again.begin(begin(2)).expect("the round fits");
    again.done(SyncDone::Staged { round: round(0, 1), result: Ok(X), took: Span(5) });
    assert_eq!(
        again.commit(0, border(0), X),
        Some((OUTER, Decision::Excluded)),
        "staged in a try that is over"
    );
}

#[test]
fn what_is_restored_is_forgotten() {
    let mut seat = Seat::staged();
    seat.tasks();
    seat.hear(COORDINATOR, Say::Restore { outer: OuterStep(1) }).expect("it is heard");
    assert_eq!((seat.tasks(), seat.member.take_decision()), (vec![], None), "of another outer step");
    seat.hear(COORDINATOR, Say::Restore { outer: OUTER }).expect("it is heard");
    assert_eq!(seat.tasks(), [SyncTask::Restore { outer: OUTER }]);
    assert_eq!(seat.member.take_decision(), Some((OUTER, Decision::Restored)));
    assert_eq!(seat.member.deadline(), None);
}

#[test]
fn rounds_that_do_not_fit_the_group_are_refused() {
    let spoil: [fn(&mut Begin); 13] = [
        |begin| begin.contributors.clear(),
        |begin| begin.contributors.reverse(),
        |begin| begin.contributors[1].0 = ReplicaId(0),
        |begin| begin.contributors[2].0 = ReplicaId(3),
        |begin| begin.contributors[2].1 = 0,
        |begin| begin.contributors[2].1 = u64::MAX,
        |begin| begin.shares[0] += 1,
        |begin| begin.shares = vec![u32::MAX, 65_537, 0],
        |begin| begin.shares = vec![],
        |begin| begin.shares = vec![16_384; 4],
        |begin| begin.reducers[1] = vec![],
        |begin| begin.reducers[1] = [0, 1, 2].map(ReplicaId).to_vec(),
        |begin| begin.reducers[1] = vec![ReplicaId(7)],
    ];
    for (at, spoil) in spoil.iter().enumerate() {
        let (mut seat, mut begin) = (Seat::new(), begin(1));
        spoil(&mut begin);
        assert_eq!(seat.begin(begin), Err(Refusal::BeginUnfit { outer: OUTER }), "{at}");
        assert_eq!(seat.tasks(), []);
    }
}

#[test]
fn a_try_that_is_over_does_not_come_back() {
    let mut seat = Seat::opened();
    seat.begin(begin(3)).expect("the round fits");
    let said = seat.said();
    assert!(said.iter().any(|(_, say)| matches!(say, Say::Offer { round: of, .. } if *of == round(0, 3))));
    for attempt in [1, 2, 3] {
        seat.begin(begin(attempt)).expect("it is heard");
        assert_eq!((seat.said(), seat.tasks()), (vec![], vec![]), "try {attempt}");
    }
    let other = Begin { round: round(1, 4), ..begin(4) };
    seat.begin(other).expect("it is heard");
    assert_eq!(seat.said(), [], "of another outer step");
}

/// Each offer would take memory for its whole length.
#[test]
fn an_offer_stands_for_its_try() {
    let mut seat = Seat::opened();
    let any = |number: u32| {
        Blob::new(Bytes::from(
            vec![number as u8; 28].into_iter().chain(number.to_le_bytes()).collect::<Vec<_>>(),
        ))
    };
    let offered = (Part::Contribution, 0);
    assert_eq!(seat.offer(1, 1, offered, any(0).manifest()), Ok(()));
    for number in 1..500 {
        let refused = Refusal::OfferUnfit { shard: 0, bytes: 32 };
        assert_eq!(seat.offer(1, 1, offered, any(number).manifest()), Err(refused));
    }
    assert_eq!(seat.offer(1, 1, offered, any(0).manifest()), Ok(()), "said again");
    for number in 0..500 {
        assert_eq!(seat.offer(1, 2, offered, any(500).manifest()), Ok(()), "of the next try");
        assert_eq!(seat.offer(1, 1, offered, any(number).manifest()), Ok(()), "of before it");
    }
    assert_eq!(wanted(&seat.said()), BTreeSet::from([any(0).id()]), "one blob is fetched");
    seat.begin(begin(2)).expect("the round fits");
    assert!(wanted(&seat.said()).contains(&any(500).id()), "what was offered ahead of the try");
}

#[test]
fn offers_far_ahead_or_of_nothing_are_not_kept() {
    let mut seat = Seat::opened();
    let blob = contribution(1, OUTER, 0);
    assert_eq!(seat.offer(1, 18, (Part::Contribution, 0), blob.manifest()), Ok(()));
    seat.begin(begin(18)).expect("the round fits");
    assert_eq!(wanted(&seat.said()), BTreeSet::new());
    let absurd = Manifest { bytes: u64::MAX, chunks: vec![X] };
    let refused = Refusal::OfferUnfit { shard: 0, bytes: u64::MAX };
    assert_eq!(seat.offer(1, 18, (Part::Contribution, 0), &absurd), Err(refused));
    let refused = Refusal::OfferUnfit { shard: 3, bytes: 32 };
    assert_eq!(seat.offer(1, 18, (Part::Contribution, 3), blob.manifest()), Err(refused));
}

#[test]
fn a_contribution_or_result_of_another_size_is_flawed_and_takes_no_memory() {
    let mut seat = Seat::opened();
    let large = Manifest { bytes: 64 << 20, chunks: vec![X; 64] };
    assert_eq!(seat.offer(1, 1, (Part::Contribution, 0), &large), Ok(()));
    assert_eq!(seat.offer(2, 1, (Part::Result, 1), &large), Ok(()));
    let said = seat.said();
    assert_eq!(wanted(&said), BTreeSet::new());
    let flawed: Vec<ReplicaId> = flaws(said).into_iter().map(|(replica, _)| replica).collect();
    assert_eq!(flawed, [ReplicaId(1), ReplicaId(2)]);
    assert_eq!(seat.offer(1, 1, (Part::Contribution, 0), &large), Ok(()));
    assert_eq!(flaws(seat.said()), [], "it is told once");
}

#[test]
fn who_sends_other_bytes_than_it_offered_is_flawed() {
    let mut seat = Seat::opened();
    let (offered, other) = (contribution(1, OUTER, 0), contribution(2, OUTER, 0));
    seat.offer(1, 1, (Part::Contribution, 0), offered.manifest()).expect("the offer is taken");
    let blob = offered.id();
    let refused = Err(Refusal::ChunkFalse { blob, chunk: 0 });
    let chunk = |chunk| Say::Chunk { blob, chunk, payload: other.bytes().clone() };
    assert_eq!(seat.hear(peer(0, 2), chunk(0)), refused, "of one who was not asked");
    assert_eq!(flaws(seat.said()), []);
    assert_eq!(seat.hear(peer(0, 1), chunk(0)), refused);
    let flawed: Vec<ReplicaId> = flaws(seat.said()).into_iter().map(|(replica, _)| replica).collect();
    assert_eq!(flawed, [ReplicaId(1)]);
    assert_eq!(seat.hear(peer(0, 1), chunk(0)), Ok(()), "nothing is fetched any longer");
}

#[test]
fn what_is_held_is_sent_a_few_chunks_at_a_time() {
    let mut seat = Seat::opened();
    let long = Blob::new(Bytes::from(vec![7; 20 * CHUNK_BYTES as usize]));
    seat.done(SyncDone::Reduced { round: round(0, 1), shard: 0, result: Ok(long.clone()), took: Span(5) });
    seat.said();
    let blob = long.id();
    let want = |chunks| Say::Want { blob, chunks };
    assert_eq!(seat.hear(peer(0, 2), want((0..20).chain(0..20).collect())), Ok(()));
    let said = seat.said();
    assert_eq!(said.len(), CHUNKS_IN_FLIGHT_MAX);
    assert!(said.iter().all(|(to, say)| *to == peer(0, 2) && matches!(say, Say::Chunk { .. })));
    assert_eq!(seat.hear(peer(0, 2), want(vec![u32::MAX])), Err(Refusal::NotHeld { blob }));
    let unknown = Say::Want { blob: Y, chunks: vec![0] };
    assert_eq!(seat.hear(peer(0, 2), unknown), Err(Refusal::NotHeld { blob: Y }));
    assert_eq!(seat.said(), []);
}

#[test]
fn everyone_says_only_what_is_his_to_say() {
    let mut seat = Seat::opened();
    let (round, outer) = (round(0, 1), OUTER);
    let manifest = contribution(1, OUTER, 0).manifest().clone();
    let of_replicas = [
        Say::Offer { round, shard: 0, part: Part::Contribution, manifest },
        Say::Want { blob: X, chunks: vec![0] },
        Say::Chunk { blob: X, chunk: 0, payload: Bytes::new() },
    ];
    let to_coordinators = [
        Say::Reached { outer, step: border(0), heard: Attempt(0) },
        Say::Claim { round, shard: 0, blob: X },
        Say::Flaw { round, contributor: ReplicaId(1), reason: String::new() },
        Say::Vote { round, digest: X, rates: vec![] },
        Say::Alive { outer },
    ];
    let of_coordinators = [
        Say::Begin(begin(2)),
        Say::Commit { outer, step: border(0), tokens: 9, digest: X },
        Say::Restore { outer },
        Say::Probe { outer },
        Say::Excluded { outer },
    ];
    let coordinator = of_replicas.iter().chain(&to_coordinators).map(|say| (COORDINATOR, say));
    let replica = to_coordinators.iter().chain(&of_coordinators).map(|say| (peer(0, 1), say));
    let all = || of_replicas.iter().chain(&to_coordinators).chain(&of_coordinators);
    let itself = all().map(|say| (peer(0, 0), say));
    let stranger = all().map(|say| (peer(1, 0), say));
    for (from, say) in coordinator.chain(replica).chain(itself).chain(stranger) {
        assert_eq!(seat.hear(from, say.clone()), Err(Refusal::NotYours { peer: from }), "{say:?}");
    }
    assert_eq!((seat.said(), seat.tasks(), seat.member.take_decision()), (vec![], vec![], None));
}

#[test]
fn a_result_comes_from_whoever_is_left_of_its_reducers() {
    let mut seat = Seat::opened();
    let large = Blob::new(Bytes::from(vec![1; 64]));
    for from in [1, 2] {
        seat.offer(from, 1, (Part::Result, 1), large.manifest()).expect("the offer is taken");
    }
    let asked: Vec<PeerId> = seat.said().into_iter().map(|(to, _)| to).collect();
    assert_eq!(asked, [peer(0, 1)]);
    seat.member.lost(seat.now, peer(0, 1), &mut seat.out);
    seat.drain();
    let want = Say::Want { blob: large.id(), chunks: vec![0] };
    assert_eq!(seat.said(), [(peer(0, 2), want)]);
}

#[test]
fn who_was_left_out_encodes_again_when_it_counts_again() {
    let mut seat = Seat::opened();
    let mut without = begin(2);
    without.contributors.remove(0);
    seat.begin(without).expect("the round fits");
    let offers =
        |said: Vec<(PeerId, Say)>| said.iter().filter(|(_, say)| matches!(say, Say::Offer { .. })).count();
    assert_eq!((seat.tasks(), offers(seat.said())), (vec![], 0), "its contribution is not asked for");
    seat.begin(begin(3)).expect("the round fits");
    assert_eq!(seat.tasks, [SyncTask::Encode { outer: OUTER, shares: begin(3).shares }]);
    seat.encode();
    assert_eq!(offers(seat.said()), 4, "to the other reducers of each shard");
}

#[test]
fn what_has_no_effect_is_said_again_ever_more_rarely() {
    let mut seat = Seat::new();
    let reached = Say::Reached { outer: OUTER, step: border(0), heard: Attempt(0) };
    assert_eq!(seat.said(), [(COORDINATOR, reached.clone())]);
    let mut waits = Vec::new();
    for _ in 0..8 {
        let next = seat.member.deadline().expect("something is owed");
        waits.push(next.since(seat.now).0 / 1_000_000);
        seat.member.woke(Time(next.0 - 1), &mut seat.out);
        seat.drain();
        assert_eq!(seat.said(), []);
        seat.now = next;
        seat.member.woke(next, &mut seat.out);
        seat.drain();
        assert_eq!(seat.said(), [(COORDINATOR, reached.clone())]);
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 64, 64, 64]);
    seat.hear(COORDINATOR, Say::Probe { outer: OUTER }).expect("it is heard");
    assert_eq!(seat.said()[0], (COORDINATOR, Say::Alive { outer: OUTER }));
}
