//! The arbiter's rules, one by one: what commits, what is tried again, what is restored, and who counts.

use crate::court::{Court, SILENCE, X, Y, border, peer, place, plan, round};
use trestle_protocol::event::{Event, Verdict};
use trestle_protocol::ids::{Attempt, InnerStep, OuterStep, PeerId, ReplicaId, SeatId, StageId};
use trestle_protocol::message::Refusal;
use trestle_protocol::plan::Member;
use trestle_protocol::sync::arbiter::{Committed, Weighing};
use trestle_protocol::sync::say::Say;
use trestle_protocol::time::{Span, Time};

fn equal(stages: u16, replicas: u16) -> Court {
    Court::new(stages, replicas, Weighing::Equal)
}

fn replicas(ids: &[u16]) -> Vec<ReplicaId> {
    ids.iter().map(|id| ReplicaId(*id)).collect()
}

/// What `said` holds for everyone named, and for nobody else.
fn heard_by(said: &[(PeerId, Say)], want: &Say) -> Vec<PeerId> {
    said.iter().filter(|(_, say)| say == want).map(|(to, _)| *to).collect()
}

#[test]
fn nothing_is_committed_before_every_replica_of_every_stage_has_voted() {
    let mut court = equal(2, 2);
    court.reach_all(0);
    for (stage, replica, digest) in [(0, 0, X), (0, 1, X), (1, 0, Y)] {
        court.vote(stage, replica, round(0, 1), digest);
        assert_eq!(court.arbiter.take_store(), None, "three votes of four at most");
    }
    court.vote(1, 1, round(0, 1), Y);
    let step = border(0);
    let digests = vec![(StageId(0), X), (StageId(1), Y)];
    let want = Committed { outer: OuterStep(0), step, tokens: step.0 * 2 * 4 * 2 * 4, digests };
    assert_eq!(court.arbiter.take_store(), Some(want), "each stage has a digest of its own");
}

#[test]
fn nobody_begins_before_all_stand_at_the_border() {
    let mut court = equal(1, 3);
    court.reach(0, 0, 0, 0);
    court.reach(0, 2, 0, 0);
    assert_eq!(court.said(), []);
    court.reach(0, 1, 0, 0);
    let begin = court.begun();
    assert_eq!(begin.round, round(0, 1));
    let reducers = [[0, 1], [1, 2], [2, 0]].map(|of| replicas(&of));
    assert_eq!(begin.reducers, reducers, "two reduce each shard, where there are three");
}

#[test]
fn a_commit_is_announced_when_it_is_durable_and_not_before() {
    let mut court = equal(1, 2);
    court.reach_all(0);
    court.vote(0, 0, round(0, 1), X);
    court.vote(0, 1, round(0, 1), X);
    court.said();
    court.wait(Span::seconds(100));
    assert_eq!(
        court.said(),
        [],
        "nothing is announced, and nobody asked, while it is on its way to the disk"
    );
    let Committed { outer, step, tokens, .. } = court.store();
    let commit = Say::Commit { outer, step, tokens, digest: X };
    assert_eq!(heard_by(&court.said(), &commit), [peer(0, 0), peer(0, 1)]);
    assert_eq!(court.arbiter.open(), OuterStep(1));
}

/// The coordinator that wrote nothing down decides anew; the one that did says what was written.
#[test]
fn a_coordinator_that_starts_again_commits_what_is_durable_and_nothing_else() {
    let mut forgot = equal(1, 2);
    forgot.reach(0, 0, 0, 3);
    forgot.vote(0, 0, round(0, 3), X);
    forgot.reach(0, 1, 0, 2);
    forgot.vote(0, 1, round(0, 3), X);
    assert_eq!(forgot.arbiter.take_store(), None, "votes of before count for nothing");
    assert_eq!(forgot.begun().round, round(0, 4), "behind the tries of before");
    let digests = vec![(StageId(0), X)];
    let committed = Committed { outer: OuterStep(0), step: border(0), tokens: 9, digests };
    let mut knows = Court::again(1, 2, Weighing::Equal, Some(committed));
    assert_eq!(knows.arbiter.open(), OuterStep(1));
    knows.reach(0, 0, 0, 3);
    let commit = Say::Commit { outer: OuterStep(0), step: border(0), tokens: 9, digest: X };
    assert_eq!(knows.said(), [(peer(0, 0), commit)]);
}

#[test]
fn one_vote_apart_is_no_commit_and_the_round_is_tried_again() {
    let mut court = equal(1, 3);
    court.reach_all(0);
    let first = court.begun();
    court.vote(0, 0, round(0, 1), X);
    court.vote(0, 1, round(0, 1), X);
    court.vote(0, 2, round(0, 1), Y);
    assert_eq!(court.arbiter.take_store(), None);
    let second = court.begun();
    assert_eq!(second.round, round(0, 2));
    assert_eq!(second.shares, first.shares, "the same cut, so that contributions stay as they are");
    let turned = [[1, 2], [2, 0], [0, 1]].map(|of| replicas(&of));
    assert_eq!(second.reducers, turned, "others reduce");
    let disagreed = Event::Disagreed { outer: OuterStep(0), stage: StageId(0), shard: 3 };
    assert_eq!(court.events, [disagreed], "votes differ behind the last shard");
}

#[test]
fn votes_and_claims_of_an_older_try_are_ignored() {
    let mut court = equal(1, 3);
    court.reach_all(0);
    court.vote(0, 0, round(0, 1), X);
    court.vote(0, 1, round(0, 1), Y);
    assert_eq!(
        court.arbiter.round(StageId(0)),
        Some(round(0, 1)),
        "who is alone is known with the last vote"
    );
    court.vote(0, 2, round(0, 1), Y);
    assert_eq!(court.arbiter.round(StageId(0)), Some(round(0, 2)));
    for replica in 0..3 {
        court.vote(0, replica, round(0, 1), Y);
        court.vote(0, replica, round(0, 3), Y);
        court.claim(replica, round(0, 1), replica, if replica == 0 { X } else { Y });
    }
    assert_eq!(court.arbiter.take_store(), None, "nobody has voted in this try");
    assert_eq!(court.arbiter.round(StageId(0)), Some(round(0, 2)), "nor claimed");
    (0..3).for_each(|replica| court.vote(0, replica, round(0, 2), X));
    assert_eq!(court.store().digests, [(StageId(0), X)]);
}

#[test]
fn two_reducers_that_disagree_are_tried_again_with_others() {
    let mut court = equal(1, 3);
    court.reach_all(0);
    court.begun();
    court.claim(0, round(0, 1), 0, X);
    court.claim(2, round(0, 1), 0, Y);
    assert_eq!(court.said(), [], "replica 2 does not reduce shard 0");
    court.claim(1, round(0, 1), 0, Y);
    assert_eq!(court.begun().round, round(0, 2));
    let disagreed = Event::Disagreed { outer: OuterStep(0), stage: StageId(0), shard: 0 };
    assert_eq!(court.events, [disagreed]);
    (0..3).for_each(|replica| court.vote(0, replica, round(0, 2), X));
    court.store();
    assert_eq!(court.summaries()[0].attempts, Attempt(2));
}

#[test]
fn the_third_disagreement_restores_all_stages() {
    let mut court = equal(2, 2);
    court.reach_all(0);
    for attempt in [1, 2, 3] {
        court.said();
        court.vote(0, 0, round(0, attempt), X);
        assert_eq!(court.arbiter.take_restored(), None);
        court.vote(0, 1, round(0, attempt), Y);
    }
    let restore = Say::Restore { outer: OuterStep(0) };
    let everyone = [peer(0, 0), peer(0, 1), peer(1, 0), peer(1, 1)];
    assert_eq!(heard_by(&court.said(), &restore), everyone, "the other stage too");
    assert_eq!(court.arbiter.take_restored(), Some(OuterStep(0)));
    assert_eq!((court.arbiter.take_store(), court.arbiter.open()), (None, OuterStep(1)));
    let summary = court.summaries()[0];
    assert_eq!((summary.verdict, summary.attempts), (Verdict::Restored, Attempt(3)));
    assert_eq!(summary.digests, []);
    court.reach_all(1);
    let begins = court.said().iter().filter(|(_, say)| matches!(say, Say::Begin(_))).count();
    assert_eq!(begins, 4, "the next outer step is as any other");
}

#[test]
fn what_a_lost_reducer_had_to_reduce_moves_and_the_cut_stays() {
    let mut court = equal(1, 3);
    court.reach_all(0);
    let before = court.begun();
    court.lose(0, 1);
    let after = court.begun();
    assert_eq!(after.round, round(0, 2));
    assert_eq!(after.shares, before.shares);
    assert_eq!(after.reducers, [[0], [2], [2]].map(|of| replicas(&of)), "one of two that are left");
    let contributors: Vec<_> = after.contributors.iter().map(|(replica, _)| replica.0).collect();
    assert_eq!(contributors, [0, 2], "nor is it among the contributors");
}

#[test]
fn what_is_reduced_outlives_who_is_lost() {
    let mut court = equal(1, 3);
    court.reach_all(0);
    for (replica, shard) in [(0, 0), (0, 2), (2, 1)] {
        court.claim(replica, round(0, 1), shard, X);
    }
    court.said();
    court.lose(0, 1);
    assert_eq!(court.begun().round, round(0, 2), "replica 2 has not reduced shard 2 yet");

    let mut court = equal(1, 3);
    court.reach_all(0);
    for (replica, shard) in [(0, 0), (0, 2), (2, 1), (2, 2)] {
        court.claim(replica, round(0, 1), shard, X);
    }
    court.said();
    court.lose(0, 1);
    assert_eq!(court.said(), [], "each shard is reduced by whoever is left of its reducers");
    court.vote(0, 0, round(0, 1), X);
    court.vote(0, 2, round(0, 1), X);
    court.store();
    let (stage, contributors) = &court.summaries()[0].contributors[0];
    assert_eq!((*stage, contributors.len()), (StageId(0), 3), "what it contributed counts");
}

#[test]
fn the_result_of_an_only_reducer_is_lost_with_it() {
    let mut court = equal(1, 2);
    court.reach_all(0);
    court.claim(0, round(0, 1), 0, X);
    court.claim(1, round(0, 1), 1, X);
    court.said();
    court.lose(0, 1);
    let begin = court.begun();
    assert_eq!(begin.reducers, [[0], [0]].map(|of| replicas(&of)));
    court.vote(0, 0, round(0, 2), X);
    court.store();
}

#[test]
fn who_is_flawed_neither_contributes_nor_reduces() {
    let mut court = equal(1, 3);
    court.reach_all(0);
    court.said();
    let flaw = |attempt, contributor| Say::Flaw {
        round: round(0, attempt),
        contributor: ReplicaId(contributor),
        reason: "x".repeat(5_000),
    };
    for (attempt, contributor) in [(2, 1), (1, 9), (1, 1), (1, 1)] {
        court.hear(peer(0, 0), flaw(attempt, contributor)).expect("a flaw is heard");
    }
    let begin = court.begun();
    assert_eq!(begin.round, round(0, 2));
    let contributors: Vec<_> = begin.contributors.iter().map(|(replica, _)| *replica).collect();
    assert_eq!(contributors, replicas(&[0, 2]));
    assert!(begin.reducers.iter().flatten().all(|replica| *replica != ReplicaId(1)), "{begin:?}");
    let flawed = Event::Flawed { outer: OuterStep(0), replica: ReplicaId(1), reason: "x".repeat(256) };
    assert_eq!(court.events, [flawed], "once, of a replica that there is, and in few words");
    court.hear(peer(0, 0), flaw(2, 0)).expect("a flaw is heard");
    court.hear(peer(0, 0), flaw(3, 2)).expect("a flaw is heard");
    assert_eq!(court.arbiter.take_restored(), Some(OuterStep(0)), "nobody is left to contribute");
}

#[test]
fn weights_are_what_others_receipted() {
    let mut court = Court::new(1, 3, Weighing::Receipts);
    court.awaits_receipts = true;
    court.reach_all(0);
    assert_eq!(court.said(), [], "the receipts are not in");
    let credits = (0..16).map(|_| 0).chain((0..8).map(|_| 2));
    for replica in credits {
        court.advance();
        assert_eq!(court.said(), []);
        court.arbiter.credit(InnerStep(1), place(0, replica));
    }
    court.awaits_receipts = false;
    court.advance();
    let begin = court.begun();
    assert_eq!(begin.contributors, [(ReplicaId(0), 16), (ReplicaId(2), 8)], "none for replica 1");
    assert_eq!(begin.reducers.len(), 3, "it still reduces");
}

/// Without it in the commit its contribution is still to come, and nobody would ever take it without a weight.
#[test]
fn a_receipt_too_late_for_a_commit_that_left_its_replica_out_weighs_in_the_next() {
    let mut court = Court::new(1, 2, Weighing::Receipts);
    court.arbiter.credit(InnerStep(0), place(0, 0));
    court.reach_all(0);
    assert_eq!(court.begun().contributors, [(ReplicaId(0), 1)]);
    for replica in 0..2 {
        court.arbiter.credit(InnerStep(1), place(0, replica));
    }
    (0..2).for_each(|replica| court.vote(0, replica, round(0, 1), X));
    court.store();
    court.said();
    court.reach_all(1);
    assert_eq!(
        court.begun().contributors,
        [(ReplicaId(1), 1)],
        "replica 0 has handed in what it is credited for"
    );
}

/// A replica that starts from its own checkpoint hands in what that has, however long ago it trained it.
#[test]
fn what_comes_from_its_own_checkpoint_weighs_in_the_outer_step_that_is_open() {
    let mut court = Court::new(1, 2, Weighing::Receipts);
    court.reach_all(0);
    (0..2).for_each(|replica| court.vote(0, replica, round(0, 1), X));
    court.store();
    court.arbiter.credit(InnerStep(0), place(0, 0));
    court.arbiter.credit_again(InnerStep(0), place(0, 1));
    court.arbiter.credit_again(InnerStep(2), place(0, 1));
    court.said();
    court.reach_all(1);
    assert_eq!(
        court.begun().contributors,
        [(ReplicaId(1), 2)],
        "what is only receipted late has been decided"
    );
}

#[test]
fn what_is_said_again_is_no_news() {
    let mut court = equal(1, 2);
    court.reach_all(0);
    assert_eq!(court.arbiter.heard(), 0);
    for _ in 0..2 {
        court.vote(0, 0, round(0, 1), X);
        assert_eq!(court.arbiter.heard(), 1);
    }
    court.vote(0, 1, round(0, 2), X);
    assert_eq!(court.arbiter.heard(), 1, "of another try");
}

#[test]
fn receipts_that_do_not_come_are_not_waited_for_for_ever() {
    let mut court = Court::new(1, 2, Weighing::Receipts);
    court.awaits_receipts = true;
    court.reach_all(0);
    court.arbiter.credit(InnerStep(0), place(0, 1));
    let deadline = court.arbiter.deadline().expect("somebody is waited for");
    court.wait(Span(deadline.since(court.now).0 - 1));
    assert_eq!(court.said(), []);
    court.wait(Span(1));
    assert_eq!(court.begun().contributors, [(ReplicaId(1), 1)]);
    let mut none = Court::new(1, 2, Weighing::Receipts);
    none.awaits_receipts = true;
    none.reach_all(0);
    none.wait(Span::seconds(40));
    assert_eq!(
        none.begun().contributors,
        [(ReplicaId(0), 1), (ReplicaId(1), 1)],
        "alike, where nobody has any"
    );
}

#[test]
fn who_does_not_answer_a_probe_is_lost_and_who_does_is_not() {
    let mut court = equal(1, 3);
    court.reach_all(0);
    court.begun();
    let due = court.arbiter.deadline().expect("the exchange is watched");
    court.wait(Span(due.since(Time(0)).0 - 1));
    assert_eq!(court.said(), []);
    court.wait(Span(1));
    let probe = Say::Probe { outer: OuterStep(0) };
    assert_eq!(heard_by(&court.said(), &probe), [peer(0, 0), peer(0, 1), peer(0, 2)]);
    for replica in [0, 2] {
        court.hear(peer(0, replica), Say::Alive { outer: OuterStep(0) }).expect("it lives");
    }
    court.wait(Span(SILENCE.0 - 1));
    assert_eq!(court.arbiter.take_lost(), []);
    court.wait(Span(1));
    assert_eq!(court.arbiter.take_lost(), [peer(0, 1)]);
    assert_eq!(court.begun().round, round(0, 2));
    let excluded = Event::Excluded { outer: OuterStep(0), peer: peer(0, 1), stage: StageId(0) };
    assert_eq!(court.events, [excluded]);
    court.vote(0, 1, round(0, 2), X);
    assert_eq!(court.said(), [(peer(0, 1), Say::Excluded { outer: OuterStep(0) })], "it is told");
    court.vote(0, 0, round(0, 2), X);
    court.vote(0, 2, round(0, 2), X);
    court.store();
}

#[test]
fn nobody_is_asked_when_nothing_is_owed() {
    let mut court = equal(2, 2);
    court.reach_all(0);
    court.vote(0, 0, round(0, 1), X);
    court.vote(0, 1, round(0, 1), X);
    court.said();
    court.wait(Span::seconds(100));
    let probe = Say::Probe { outer: OuterStep(0) };
    assert_eq!(
        heard_by(&court.said(), &probe),
        [peer(1, 0), peer(1, 1)],
        "the first stage has done its part"
    );
}

#[test]
fn what_is_not_a_replica_s_to_say_is_refused() {
    let mut court = equal(1, 2);
    let outer = OuterStep(0);
    let stranger = PeerId([99; 32]);
    assert_eq!(court.hear(stranger, Say::Alive { outer }), Err(Refusal::NotMember { peer: stranger }));
    let from = peer(0, 1);
    let commit = Say::Commit { outer, step: border(0), tokens: 1, digest: X };
    for say in [commit, Say::Restore { outer }, Say::Probe { outer }, Say::Excluded { outer }] {
        assert_eq!(court.hear(from, say), Err(Refusal::NotYours { peer: from }));
    }
    let early = Say::Reached { outer, step: InnerStep(1), heard: Attempt(0) };
    assert_eq!(court.hear(from, early), Err(Refusal::NotAtBorder { outer, step: InnerStep(1) }));
    let beyond = Say::Reached { outer: OuterStep(u64::MAX), step: InnerStep(8), heard: Attempt(0) };
    let refused = Refusal::NotAtBorder { outer: OuterStep(u64::MAX), step: InnerStep(8) };
    assert_eq!(court.hear(from, beyond), Err(refused));
    let got = OuterStep(1);
    assert_eq!(court.hear(from, Say::Alive { outer: got }), Err(Refusal::OuterAhead { got, open: outer }));
    assert_eq!(court.said(), []);
}

#[test]
fn who_comes_late_hears_how_it_ended() {
    let mut court = equal(1, 2);
    let decide = |court: &mut Court, outer, digests: [_; 2]| {
        court.reach_all(outer);
        let tries = if digests[0] == digests[1] { 1 } else { 3 };
        for attempt in 1..=tries {
            court.vote(0, 0, round(outer, attempt), digests[0]);
            court.vote(0, 1, round(outer, attempt), digests[1]);
        }
        if tries == 1 {
            court.store();
        }
        court.said();
    };
    decide(&mut court, 0, [X, X]);
    decide(&mut court, 1, [Y, Y]);
    decide(&mut court, 2, [X, Y]);
    assert_eq!(court.arbiter.open(), OuterStep(3));
    let mut answer = |outer| {
        court.vote(0, 0, round(outer, 1), X);
        court.said().into_iter().map(|(_, say)| say).collect::<Vec<_>>()
    };
    assert_eq!(answer(0), [Say::Excluded { outer: OuterStep(0) }], "a commit missed for good");
    let tokens = border(1).0 * 2 * 4 * 2 * 4;
    assert_eq!(answer(1), [Say::Commit { outer: OuterStep(1), step: border(1), tokens, digest: Y }]);
    assert_eq!(answer(2), [Say::Restore { outer: OuterStep(2) }]);
}

/// Its name still stands at the table that it left, while nobody has its place there.
#[test]
fn who_comes_back_to_another_place_has_its_say_there() {
    for (left, taken) in [((0, 1), (1, 1)), ((1, 0), (1, 1))] {
        let mut court = equal(2, 2);
        let [from, to] = [left, taken].map(|(stage, replica)| place(stage, replica));
        let newcomer =
            Member { seat: SeatId(9), place: to, ..plan(2, 2).member(peer(left.0, left.1)).unwrap().clone() };
        [from, to].iter().for_each(|gone| court.lose(gone.stage.0, gone.replica.0));
        court.arbiter.seat(&newcomer);
        let reached = Say::Reached { outer: OuterStep(0), step: border(0), heard: Attempt(0) };
        court.hear(newcomer.peer, reached).expect("it stands at the border");
        let others = [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().filter(|at| *at != left && *at != taken);
        for (stage, replica) in others.clone() {
            court.reach(stage, replica, 0, 0);
        }
        court
            .hear(newcomer.peer, Say::Vote { round: round(0, 1), digest: X, rates: Vec::new() })
            .expect("it votes");
        others.for_each(|(stage, replica)| court.vote(stage, replica, round(0, 1), X));
        assert_eq!(court.store().outer, OuterStep(0));
        assert!(court.said().iter().all(|(_, say)| !matches!(say, Say::Excluded { .. })));
    }
}

#[test]
fn a_replica_says_again_that_it_is_there_and_hears_of_the_round_again() {
    let mut court = equal(1, 2);
    court.reach_all(0);
    let begin = court.begun();
    court.reach(0, 1, 0, 1);
    assert_eq!(court.said(), [(peer(0, 1), Say::Begin(begin))]);
    court.vote(0, 1, round(0, 1), X);
    court.reach(0, 1, 0, 1);
    assert_eq!(court.said(), [], "it has voted");
}

#[test]
fn the_numbers_of_tries_cannot_be_used_up() {
    let mut court = equal(1, 2);
    court.reach(0, 0, 0, u16::MAX);
    court.reach(0, 1, 0, 0);
    let first = court.begun().round.attempt;
    assert_eq!(first, Attempt(u16::MAX / 2 + 1));
    let apart = |court: &mut Court, attempt| {
        court.vote(0, 0, round(0, attempt), X);
        court.vote(0, 1, round(0, attempt), Y);
    };
    court.said();
    apart(&mut court, first.0);
    assert_eq!(court.begun().round.attempt, Attempt(first.0 + 1));
    let mut court = equal(1, 2);
    court.reach_all(0);
    court.reach(0, 0, 0, 50);
    court.said();
    apart(&mut court, 1);
    assert_eq!(court.begun().round.attempt, Attempt(2), "what is heard under way changes nothing");
}

#[test]
fn a_coordinator_that_starts_again_follows_who_is_ahead() {
    let mut court = equal(1, 2);
    court.reach_all(0);
    court.said();
    court.reach(0, 1, 2, 0);
    assert_eq!(court.arbiter.open(), OuterStep(2));
    let restore = |outer| Say::Restore { outer: OuterStep(outer) };
    assert_eq!(heard_by(&court.said(), &restore(0)), [peer(0, 0), peer(0, 1)]);
    assert_eq!(court.arbiter.take_restored(), Some(OuterStep(0)), "whoever trains hears of it");
    court.reach(0, 0, 1, 0);
    assert_eq!(court.said(), [(peer(0, 0), restore(1))]);
    court.reach(0, 0, 2, 0);
    court.vote(0, 0, round(2, 1), X);
    court.vote(0, 1, round(2, 1), X);
    court.store();
    let (got, open) = (OuterStep(4), OuterStep(3));
    let ahead = Say::Alive { outer: got };
    assert_eq!(court.hear(peer(0, 0), ahead), Err(Refusal::OuterAhead { got, open }));
}

#[test]
fn who_has_decided_itself_follows_nobody() {
    let mut court = equal(1, 2);
    court.reach_all(0);
    court.vote(0, 0, round(0, 1), X);
    court.vote(0, 1, round(0, 1), X);
    court.store();
    let ahead = Say::Reached { outer: OuterStep(3), step: border(3), heard: Attempt(0) };
    let refused = Refusal::OuterAhead { got: OuterStep(3), open: OuterStep(1) };
    assert_eq!(court.hear(peer(0, 1), ahead), Err(refused));
}

#[test]
fn a_durable_state_from_beyond_the_run_panics_nobody() {
    let committed = Committed { outer: OuterStep(u64::MAX), step: border(0), tokens: 9, digests: Vec::new() };
    let mut court = Court::again(1, 2, Weighing::Equal, Some(committed));
    court.reach(0, 0, 0, 0);
    assert_eq!(court.said(), [(peer(0, 0), Say::Excluded { outer: OuterStep(0) })]);
}
