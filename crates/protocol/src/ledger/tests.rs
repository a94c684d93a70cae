//! Tables for the ledger.

use super::*;
use crate::ids::{PlanNumber, ReplicaId};
use crate::plan::Place;
use crate::receipt::Statement;
use alloc::vec;
use bytes::Bytes;
use ed25519_dalek::SigningKey;

const RUN: Digest = Digest([3; 32]);
const ALL: u64 = 8;

fn key(peer: u8) -> SigningKey {
    SigningKey::from_bytes(&[peer + 1; 32])
}

fn id(peer: u8) -> PeerId {
    PeerId(key(peer).verifying_key().to_bytes())
}

/// Three stages of two replicas: peer 2 s + r at stage s, on the seat of that number.
fn plan() -> Plan {
    let member = |peer: u8| Member {
        peer: id(peer),
        place: Place { stage: StageId(u16::from(peer / 2)), replica: ReplicaId(u16::from(peer % 2)) },
        address: Bytes::new(),
        seat: SeatId(u32::from(peer)),
        enters: InnerStep(0),
        until: None,
    };
    Plan { number: PlanNumber(1), coordinator: id(9), members: (0..6).map(member).collect(), turns: vec![] }
}

fn ledger(finality: Finality) -> Ledger {
    let mut ledger = Ledger::new(RUN, finality, 3, (0, 0), &[]);
    plan().members.iter().for_each(|member| ledger.seat(member));
    ledger
}

fn receipt(stage: u16, worker: u8, by: u8, work: &[(u64, u64)]) -> Receipt {
    let statement = Statement {
        run: RUN,
        stage: StageId(stage),
        worker: id(worker),
        seat: SeatId(u32::from(worker)),
        by: id(by),
        microbatches: work.iter().map(|(index, step)| trained(*index, *step)).collect(),
    };
    Receipt::sign(statement, &key(by))
}

/// The commit that holds these contributions, at the border that they have seen.
fn commit(contributions: &[(SeatId, InnerStep)]) -> Commit {
    let border = contributions.iter().map(|(_, seen)| *seen).max().unwrap_or_default();
    Commit { border, contributions: contributions.to_vec(), left_out: Vec::new() }
}

fn trained(index: u64, step: u64) -> Trained {
    Trained { index, step: InnerStep(step) }
}

fn credit(ledger: &mut Ledger, receipt: Receipt) -> Result<Vec<u64>, ReceiptError> {
    let new = ledger.credit(&receipt, &plan(), ALL)?;
    Ok(new.into_iter().map(|trained| trained.index).collect())
}

fn take_redo(ledger: &mut Ledger) -> Vec<(u64, Needs)> {
    let mut taken = Vec::new();
    while let Some(index) = ledger.redo_from_free(|_| false, |_| false) {
        taken.extend(ledger.take_redo(index).map(|needs| (index, needs)));
    }
    taken
}

#[test]
fn work_is_credited_once_and_only_on_its_receivers_word() {
    let mut ledger = ledger(Finality::Commits);
    let credit = |receipt| super::tests::credit(&mut ledger, receipt);
    let mut credit = credit;
    assert_eq!(credit(receipt(1, 2, 0, &[(0, 0), (1, 0)])), Ok(vec![0, 1]));
    assert_eq!(credit(receipt(1, 2, 1, &[(1, 0), (2, 0)])), Ok(vec![2]), "said again by another receiver");
    assert_eq!(credit(receipt(1, 3, 1, &[(2, 0)])), Ok(vec![]), "the other replica did it too");
    assert_eq!(credit(receipt(1, 2, 4, &[(3, 0)])), Err(ReceiptError::NotReceiver));
    assert_eq!(credit(receipt(1, 4, 0, &[(3, 0)])), Err(ReceiptError::NotHolder));
    assert_eq!(credit(receipt(1, 2, 0, &[(ALL, 0)])), Err(ReceiptError::NeverLeased));
    assert_eq!(credit(receipt(7, 2, 0, &[(0, 0)])), Err(ReceiptError::NotReceiver));
    assert_eq!((ledger.credited(), ledger.duplicates()), (vec![0, 3, 0], 1));
}

#[test]
fn the_first_stage_is_credited_when_its_work_is_attested_and_has_come_back() {
    let mut ledger = ledger(Finality::Commits);
    assert_eq!(credit(&mut ledger, receipt(0, 0, 2, &[(0, 0)])), Ok(vec![]), "its backward is not done");
    assert_eq!(ledger.returned(SeatId(1), trained(0, 0)), None, "another has attested nothing");
    assert_eq!(ledger.returned(SeatId(0), trained(0, 4)), Some(trained(0, 4)));
    assert_eq!(ledger.returned(SeatId(0), trained(1, 4)), None);
    assert_eq!(credit(&mut ledger, receipt(0, 0, 3, &[(1, 0)])), Ok(vec![1]), "in either order");
    assert_eq!(ledger.credited(), [2, 0, 0]);
}

#[test]
fn what_no_commit_holds_is_lost_with_its_seat_and_done_again() {
    let mut ledger = ledger(Finality::Commits);
    credit(&mut ledger, receipt(1, 2, 0, &[(0, 0), (1, 1), (2, 2)])).unwrap();
    credit(&mut ledger, receipt(1, 3, 0, &[(3, 0)])).unwrap();
    ledger.committed(&commit(&[(SeatId(2), InnerStep(2))]));
    assert_eq!(ledger.lose(SeatId(2)), 1, "0 and 1 are in the weights of all");
    assert_eq!(ledger.credited(), [0, 3, 0]);
    let stage = Needs::Only(vec![StageId(1)]);
    assert_eq!(ledger.redo_from_free(|_| true, |_| false), None, "it is still under way");
    assert_eq!(ledger.redo_from(), Some(2));
    assert_eq!(take_redo(&mut ledger), [(2, stage)]);
    assert_eq!(credit(&mut ledger, receipt(1, 3, 1, &[(2, 5)])), Ok(vec![2]));
    let sums = |peer| *ledger.clone().accounts.of(StageId(1), id(peer));
    assert_eq!((sums(2).trained, sums(2).lost, sums(3).trained, sums(3).redone), (2, 1, 2, 1));
}

#[test]
fn credit_that_comes_after_the_commit_that_holds_it_is_final_at_once() {
    let mut ledger = ledger(Finality::Commits);
    ledger.committed(&commit(&[(SeatId(2), InnerStep(3))]));
    credit(&mut ledger, receipt(1, 2, 0, &[(0, 2), (1, 3)])).unwrap();
    assert_eq!(ledger.lose(SeatId(2)), 1, "only the one of step 3");
}

/// The fence: a receipt that was under way when its worker was lost must not credit what nobody has.
#[test]
fn the_fence_keeps_out_receipts_of_a_seat_that_was_lost() {
    let mut ledger = ledger(Finality::Commits);
    let mut later = plan();
    later.members.retain(|member| member.peer != id(2));
    let late = receipt(1, 2, 0, &[(0, 0)]);
    assert_eq!(ledger.credit(&late, &later, ALL), Err(ReceiptError::OldSeat));
    let again = Member { seat: SeatId(7), ..plan().members[2].clone() };
    later.members.push(again.clone());
    ledger.seat(&again);
    assert_eq!(
        ledger.credit(&late, &later, ALL),
        Err(ReceiptError::OldSeat),
        "another seat of the same peer"
    );
    assert_eq!(ledger.credited(), [0, 0, 0]);
    assert_eq!(ledger.duplicates(), 1, "it is counted once");
}

#[test]
fn what_is_said_again_of_a_seat_that_was_lost_is_counted_once() {
    let mut ledger = ledger(Finality::Commits);
    let mut later = plan();
    later.members.retain(|member| member.peer != id(2));
    credit(&mut ledger, receipt(1, 2, 0, &[(0, 0), (1, 1)])).unwrap();
    ledger.committed(&commit(&[(SeatId(2), InnerStep(1))]));
    ledger.lose(SeatId(2));
    ledger.durable(InnerStep(1), InnerStep(1), |_| true);
    let again = receipt(1, 2, 0, &[(0, 0), (1, 1), (2, 1)]);
    for _ in 0..2 {
        assert_eq!(ledger.credit(&again, &later, ALL), Err(ReceiptError::OldSeat));
        let sums = *ledger.accounts.of(StageId(1), id(2));
        let counted = (sums.trained, sums.lost, sums.duplicate);
        assert_eq!(counted, (1, 1, 1), "0 is credited to it, 1 counts as lost");
    }
}

#[test]
fn receipts_that_are_repeated_after_a_checkpoint_count_for_nothing() {
    let mut ledger = ledger(Finality::Commits);
    let said = || receipt(1, 2, 0, &[(0, 0)]);
    credit(&mut ledger, said()).unwrap();
    ledger.committed(&commit(&[(SeatId(2), InnerStep(1))]));
    ledger.durable(InnerStep(1), InnerStep(1), |_| true);
    let mut read: Ledger = postcard::from_bytes(&postcard::to_allocvec(&ledger.stored()).unwrap()).unwrap();
    assert_eq!(credit(&mut read, said()), Ok(vec![]));
    assert_eq!(read.duplicates(), 0, "it is the same work");
    for _ in 0..2 {
        assert_eq!(credit(&mut read, receipt(1, 3, 0, &[(0, 0)])), Ok(vec![]));
        assert_eq!(read.duplicates(), 1, "the other replica did it too, and that is said once or more");
    }
}

#[test]
fn what_came_back_without_credit_is_found_and_done_again() {
    let mut ledger = ledger(Finality::Commits);
    let mut settled = IndexSet::starting_at(0);
    for index in [0, 1, 3] {
        settled.insert(index);
    }
    credit(&mut ledger, receipt(1, 2, 0, &[(0, 0)])).unwrap();
    let comes = |index: u64| settled.contains(index);
    assert!(ledger.awaits_credit(StageId(1), 2, comes) && !ledger.awaits_credit(StageId(1), 1, comes));
    assert_eq!(ledger.find_missing(4, &settled, |index| index == 3), 2, "3 is under way, 2 never came back");
    let all = take_redo(&mut ledger);
    let only = |stages: &[u16]| Needs::Only(stages.iter().copied().map(StageId).collect());
    assert_eq!(all, [(0, only(&[0, 2])), (1, only(&[0, 1, 2]))]);
}

#[test]
fn a_stage_that_nobody_holds_goes_back_to_its_durable_checkpoint() {
    let mut ledger = ledger(Finality::AtOnce);
    credit(&mut ledger, receipt(1, 2, 0, &[(0, 0), (1, 1), (2, 1), (3, 2)])).unwrap();
    ledger.durable(InnerStep(2), InnerStep(2), |_| true);
    assert_eq!(ledger.durable_holes(5).len(), 2 * 5 + 2);
    assert_eq!(ledger.lose(SeatId(2)), 0);
    assert_eq!(ledger.lose_stage(StageId(1)), 1);
    assert_eq!(take_redo(&mut ledger), [(3, Needs::Only(vec![StageId(1)]))]);
    assert_eq!(ledger.credited(), [0, 3, 0]);
}

#[test]
fn a_run_is_whole_when_commits_hold_all_of_it() {
    let mut ledger = Ledger::new(RUN, Finality::Commits, 3, (0, 2), &[(StageId(1), 1)]);
    plan().members.iter().for_each(|member| ledger.seat(member));
    assert_eq!(ledger.lacking(1), [StageId(1)]);
    assert!(!ledger.all_credited(2) && ledger.all_held(1));
    credit(&mut ledger, receipt(1, 2, 0, &[(1, 6)])).unwrap();
    assert!(ledger.all_credited(2) && !ledger.all_held(2));
    assert!(!ledger.all_held_with(2, &[(SeatId(2), InnerStep(6)), (SeatId(3), InnerStep(9))]));
    assert!(ledger.all_held_with(2, &[(SeatId(2), InnerStep(7))]));
    ledger.committed(&commit(&[(SeatId(2), InnerStep(7))]));
    assert!(ledger.all_held(2));
    assert_eq!(ledger.redone(), [0, 1, 0]);
}

#[test]
fn a_seat_that_is_taken_from_its_own_checkpoint_has_what_it_had_not_handed_in() {
    let mut ledger = ledger(Finality::Commits);
    credit(&mut ledger, receipt(1, 2, 0, &[(0, 0), (1, 3)])).unwrap();
    credit(&mut ledger, receipt(1, 3, 0, &[(2, 1)])).unwrap();
    ledger.durable(InnerStep(2), InnerStep(2), |place| place.replica == ReplicaId(0));
    ledger.go_back(4);
    let again = Member { seat: SeatId(9), ..plan().members[2].clone() };
    ledger.seat(&again);
    assert_eq!(ledger.reopen(SeatId(9)), [Trained { index: 0, step: InnerStep(0) }]);
    assert_eq!(ledger.reopen(SeatId(9)), [], "once");
    assert_eq!(ledger.lacking(0), [StageId(0), StageId(2)], "its own is open again");
    assert_eq!(ledger.lacking(1).len(), 3, "that was behind the checkpoint");
    assert_eq!(ledger.lacking(2).len(), 3, "the other replica's checkpoint is not durable");
    assert_eq!(
        ledger.redo_from_free(|_| false, |stage| stage == StageId(1)),
        Some(0),
        "stage 1 lacks nothing of 0"
    );
    let trained = |ledger: &Ledger| ledger.accounts().by_stage(3, |sums| sums.trained);
    let mut stored: Ledger = postcard::from_bytes(&postcard::to_allocvec(&ledger.stored()).unwrap()).unwrap();
    assert_eq!((stored.lacking(0).len(), trained(&stored)), (3, vec![0, 0, 0]), "open credit is not stored");
    let mut gone = stored.clone();
    let (mut without, mut with) = (plan(), plan());
    without.members.remove(2);
    with.members[2] = again.clone();
    assert_eq!(stored.recall(&with), [(again.place, Trained { index: 0, step: InnerStep(0) })]);
    assert_eq!(trained(&stored), trained(&ledger));
    assert_eq!(stored.lacking(0), [StageId(0), StageId(2)], "but nobody has a receipt of this");
    assert_eq!(ledger.lose(SeatId(9)), 1, "and it can be lost again");
    assert_eq!((ledger.recall(&with), ledger.lacking(0).len()), (Vec::new(), 3), "for good");
    assert_eq!(
        (gone.recall(&without), gone.lacking(0).len()),
        (Vec::new(), 3),
        "as with who was lost meanwhile"
    );
    assert_eq!((trained(&gone), gone.redo_from()), (vec![0, 0, 0], Some(0)));
}

/// It wrote the checkpoint, was lost, and only then all had theirs.
#[test]
fn what_was_lost_with_a_replica_is_in_the_checkpoint_that_it_had_written() {
    let taken = |again: SeatId, other: Option<SeatId>| {
        let mut ledger = ledger(Finality::Commits);
        credit(&mut ledger, receipt(1, 2, 0, &[(0, 0), (1, 1), (2, 2)])).unwrap();
        assert_eq!(ledger.lose(SeatId(2)), 3);
        if let Some(seat) = other {
            ledger.seat(&Member { seat, ..plan().members[2].clone() });
        }
        ledger.durable(InnerStep(2), InnerStep(2), |place| place.replica == ReplicaId(0));
        ledger.go_back(0);
        ledger.seat(&Member { seat: again, ..plan().members[2].clone() });
        ledger.reopen(again)
    };
    let before = [(0, 0), (1, 1)].map(|(index, step)| Trained { index, step: InnerStep(step) });
    assert_eq!(taken(SeatId(9), None), before, "not what it trained behind the border");
    assert_eq!(taken(SeatId(9), Some(SeatId(8))), [], "the checkpoint is of who came in its place");
}

#[test]
fn what_came_back_to_two_is_credited_to_one_and_told_of_the_other() {
    let mut ledger = ledger(Finality::Commits);
    let trained = Trained { index: 0, step: InnerStep(0) };
    assert_eq!(
        (ledger.returned(SeatId(0), trained), ledger.returned_to(0)),
        (None, Some((id(0), SeatId(0))))
    );
    assert_eq!(
        (ledger.returned(SeatId(1), trained), ledger.returned_to(0)),
        (None, Some((id(1), SeatId(1))))
    );
    credit(&mut ledger, receipt(0, 0, 2, &[(0, 0)])).unwrap();
    assert_eq!((ledger.is_credited(StageId(0), 0), ledger.returned_to(0)), (true, None));
    assert_eq!(ledger.duplicates(), 1);
    credit(&mut ledger, receipt(0, 1, 2, &[(0, 0)])).unwrap();
    assert_eq!((ledger.returned(SeatId(1), trained), ledger.duplicates()), (None, 1), "once");
}

/// Else it would be done again, and be in the weights twice.
#[test]
fn what_a_commit_holds_of_a_lost_seat_is_credited_by_a_late_receipt() {
    let mut ledger = ledger(Finality::Commits);
    for (index, step) in [(0, 1), (1, 2)] {
        assert_eq!(ledger.returned(SeatId(0), trained(index, step)), None);
    }
    ledger.committed(&commit(&[(SeatId(0), InnerStep(2)), (SeatId(2), InnerStep(2))]));
    assert_eq!([SeatId(0), SeatId(2)].map(|seat| ledger.lose(seat)), [0, 0]);
    let mut later = plan();
    later.members.retain(|member| member.peer != id(0) && member.peer != id(2));
    for (stage, worker, by) in [(0, 0, 3), (1, 2, 1)] {
        let mut late = |index, step| {
            let credit = ledger.credit(&receipt(stage, worker, by, &[(index, step)]), &later, ALL);
            (credit, ledger.is_credited(StageId(stage), index))
        };
        assert_eq!(late(0, 1), (Ok(vec![]), true));
        assert_eq!(late(1, 2), (Err(ReceiptError::OldSeat), false), "no commit has seen that step");
        assert_eq!(late(0, 1), (Ok(vec![]), true), "said again");
    }
    assert_eq!((ledger.credited(), ledger.duplicates()), (vec![1, 1, 0], 2), "what is lost was in vain");
    ledger.lose_stage(StageId(1));
    let gone = ledger.credit(&receipt(1, 2, 1, &[(0, 1)]), &later, ALL);
    assert_eq!(gone, Err(ReceiptError::OldSeat), "the stage has no such weights any more");
}

#[test]
fn what_a_commit_holds_of_a_lost_seat_is_told_where_another_is_credited_for_it() {
    let mut ledger = ledger(Finality::Commits);
    ledger.returned(SeatId(0), trained(0, 1));
    ledger.committed(&commit(&[(SeatId(0), InnerStep(2))]));
    ledger.lose(SeatId(0));
    ledger.returned(SeatId(1), trained(0, 5));
    credit(&mut ledger, receipt(0, 1, 2, &[(0, 0)])).unwrap();
    assert_eq!((ledger.is_credited(StageId(0), 0), ledger.duplicates()), (true, 1));
}

#[test]
fn a_receipt_that_is_later_than_the_checkpoint_is_part_of_it() {
    let mut ledger = ledger(Finality::AtOnce);
    credit(&mut ledger, receipt(1, 2, 0, &[(0, 0)])).unwrap();
    ledger.durable(InnerStep(2), InnerStep(2), |place| place.replica == ReplicaId(0));
    credit(&mut ledger, receipt(1, 2, 0, &[(1, 1), (2, 2)])).unwrap();
    assert_eq!(ledger.lose_stage(StageId(1)), 1, "only what came in a step behind it");
    assert!(ledger.is_credited(StageId(1), 1) && !ledger.is_credited(StageId(1), 2));
    assert_eq!(ledger.durable_holes(3).iter().filter(|(stage, _)| *stage == StageId(1)).count(), 1);
}

#[test]
fn a_late_receipt_of_what_a_replica_had_not_handed_in_is_of_its_own_checkpoint() {
    let mut ledger = ledger(Finality::Commits);
    ledger.durable(InnerStep(2), InnerStep(2), |place| place.replica == ReplicaId(0));
    credit(&mut ledger, receipt(1, 2, 0, &[(0, 1), (1, 2)])).unwrap();
    ledger.lose(SeatId(2));
    let again = Member { seat: SeatId(9), ..plan().members[2].clone() };
    ledger.seat(&again);
    assert_eq!(ledger.reopen(SeatId(9)), [Trained { index: 0, step: InnerStep(1) }]);
}

#[test]
fn open_credit_that_is_said_again_to_a_stored_ledger_is_counted_once() {
    let mut ledger = ledger(Finality::Commits);
    credit(&mut ledger, receipt(1, 2, 0, &[(0, 0), (1, 0)])).unwrap();
    let trained = |ledger: &Ledger| ledger.accounts().by_stage(3, |sums| sums.trained);
    assert_eq!(trained(&ledger), [0, 2, 0]);
    let mut again = ledger.stored();
    assert_eq!(trained(&again), [0, 0, 0]);
    credit(&mut again, receipt(1, 2, 0, &[(0, 0), (1, 0)])).unwrap();
    assert_eq!((trained(&again), again.credited()), (trained(&ledger), ledger.credited()));
}

#[test]
fn what_a_contribution_has_not_seen_is_taken_back() {
    let mut ledger = ledger(Finality::Commits);
    credit(&mut ledger, receipt(1, 2, 0, &[(0, 3), (1, 4)])).unwrap();
    credit(&mut ledger, receipt(1, 3, 0, &[(2, 4)])).unwrap();
    ledger.lose_from(SeatId(2), InnerStep(4));
    let credited = |index| ledger.is_credited(StageId(1), index);
    assert_eq!((credited(0), credited(1), credited(2)), (true, false, true));
    assert_eq!(ledger.redo_from(), Some(1));
}

#[test]
fn what_comes_back_to_the_first_stage_twice_is_told_once() {
    let mut ledger = ledger(Finality::Commits);
    let trained = Trained { index: 0, step: InnerStep(0) };
    credit(&mut ledger, receipt(0, 0, 2, &[(0, 0)])).unwrap();
    assert_eq!(ledger.returned(SeatId(0), trained), Some(trained));
    for _ in 0..2 {
        assert_eq!(ledger.returned(SeatId(1), trained), None);
        assert_eq!(ledger.returned(SeatId(0), trained), None, "its own, said again");
    }
    assert_eq!(ledger.duplicates(), 1);
}

#[test]
fn a_commit_that_came_before_a_checkpoint_was_durable_is_not_in_it() {
    for saved in [ReplicaId(0), ReplicaId(1)] {
        let mut ledger = ledger(Finality::Commits);
        credit(&mut ledger, receipt(1, 2, 0, &[(0, 0), (1, 1)])).unwrap();
        // Checkpoints of step 2 were written between the borders 1 and 3; the commit of border 3 was quicker than their word.
        ledger.committed(&commit(&[(SeatId(2), InnerStep(3))]));
        ledger.durable(InnerStep(2), InnerStep(1), |place| place.replica == saved);
        ledger.lose(SeatId(2));
        ledger.lose_stage(StageId(1));
        assert_eq!(ledger.credited(), [0, 1, 0], "that of border 1 is in every checkpoint");
        assert_eq!(take_redo(&mut ledger), [(1, Needs::Only(vec![StageId(1)]))]);
        let own = ledger.pages[1].own.of(ReplicaId(0)).map(|trained| trained.index).collect::<Vec<_>>();
        assert_eq!(own, if saved == ReplicaId(0) { vec![1] } else { vec![] }, "the rest in who trained it");
    }
}

#[test]
fn what_a_commit_left_out_is_not_in_the_checkpoint_of_its_border() {
    for late in [false, true] {
        let mut ledger = ledger(Finality::Commits);
        let of_two = || receipt(1, 2, 0, &[(0, 0), (1, 1), (2, 2)]);
        if !late {
            credit(&mut ledger, of_two()).unwrap();
        }
        ledger.committed(&commit(&[(SeatId(2), InnerStep(1)), (SeatId(3), InnerStep(1))]));
        let left_out = vec![SeatId(2)];
        ledger.committed(&Commit { left_out, ..commit(&[(SeatId(3), InnerStep(2))]) });
        ledger.committed(&commit(&[(SeatId(2), InnerStep(3)), (SeatId(3), InnerStep(3))]));
        // The word of the checkpoint at border 2 comes only now.
        ledger.durable(InnerStep(2), InnerStep(2), |_| true);
        if late {
            credit(&mut ledger, of_two()).unwrap();
        }
        let own = ledger.pages[1].own.of(ReplicaId(0)).map(|trained| trained.index).collect::<Vec<_>>();
        assert_eq!(own, [1], "late: {late}; who trained it has it in its own");
        ledger.lose_stage(StageId(1));
        assert_eq!(ledger.credited(), [0, 1, 0], "late: {late}; that of border 1 is in every checkpoint");
        let stages = || Needs::Only(vec![StageId(1)]);
        assert_eq!(take_redo(&mut ledger), [(1, stages()), (2, stages())], "late: {late}");
    }
}

#[test]
fn what_another_commit_of_the_last_border_takes_in_is_in_the_checkpoint_there() {
    let mut ledger = ledger(Finality::Commits);
    credit(&mut ledger, receipt(1, 2, 0, &[(0, 0)])).unwrap();
    let left_out = vec![SeatId(2)];
    ledger.committed(&Commit { left_out, ..commit(&[(SeatId(3), InnerStep(2))]) });
    ledger.committed(&commit(&[(SeatId(2), InnerStep(2)), (SeatId(3), InnerStep(2))]));
    ledger.durable(InnerStep(2), InnerStep(2), |_| true);
    ledger.lose_stage(StageId(1));
    assert_eq!(ledger.credited(), [0, 1, 0]);
}
