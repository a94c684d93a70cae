//! Tables for the end that gives.

use super::*;
use crate::sync::shares::WHOLE;
use alloc::vec;
use alloc::vec::Vec;

const NEW: PeerId = PeerId([9; 32]);
const OTHER: PeerId = PeerId([8; 32]);
const OUTER: OuterStep = OuterStep(3);
const PASSED_MAX: u64 = 100;

fn digest(outer: u64) -> Digest {
    Digest([outer as u8; 32])
}

fn blob(fill: u8, bytes: usize) -> Blob {
    Blob::new(vec![fill; bytes].into())
}

fn donor() -> Donor {
    let mut donor = Donor::new(Some((OUTER, digest(OUTER.0))), PASSED_MAX);
    donor.expects(BTreeSet::from([NEW, OTHER]));
    donor
}

/// An outer step whose results have so many bytes.
fn passed(outer: u64, bytes: usize) -> Passed {
    let results = vec![blob(outer as u8, bytes)];
    Passed { outer: OuterStep(outer), digest: digest(outer), shares: vec![WHOLE], results }
}

fn commit(donor: &mut Donor, outer: u64, bytes: usize, out: &mut Outbox) {
    donor.committed(OuterStep(outer), digest(outer), Some(passed(outer, bytes)), out);
}

/// What was offered to whom: after which outer step, and which part.
fn offers(out: &mut Outbox) -> Vec<(PeerId, u64, StatePart)> {
    let mut offers = Vec::new();
    while let Some(action) = out.pop() {
        if let Action::Send { to, message: Message::State(StateSay::Offer { outer, part, digest: of, .. }) } =
            action
        {
            assert_eq!(of, digest(outer.0));
            offers.push((to, outer.0, part));
        }
    }
    offers
}

fn ask(donor: &mut Donor, from: PeerId, outer: u64, out: &mut Outbox) -> Result<(), Refusal> {
    donor.received(from, &StateSay::Ask { outer: OuterStep(outer) }, out)
}

fn follow(donor: &mut Donor, from: PeerId, since: u64, out: &mut Outbox) -> Result<(), Refusal> {
    donor.received(from, &StateSay::Follow { since: OuterStep(since) }, out)
}

const AGREED: StatePart = StatePart::Agreed;
const OWN: StatePart = StatePart::Own;
const RESULT: StatePart = StatePart::Result(0);

/// A donor whose copy of [`OUTER`] is being taken by [`NEW`].
fn taken() -> Donor {
    let (mut donor, mut out) = (donor(), Outbox::default());
    ask(&mut donor, NEW, OUTER.0, &mut out).unwrap();
    assert_eq!(out.pop(), Some(Action::Export { outer: OUTER }));
    donor.exported(OUTER, blob(1, 9), blob(2, 9), &mut out);
    assert_eq!(offers(&mut out), [(NEW, 3, AGREED), (NEW, 3, OWN)]);
    donor
}

#[test]
fn a_copy_that_is_taken_outlives_commits_and_they_follow() {
    let (mut donor, mut out) = (taken(), Outbox::default());
    let want = StateSay::Want { blob: blob(1, 9).id(), chunks: vec![0] };
    commit(&mut donor, 4, 10, &mut out);
    commit(&mut donor, 5, 10, &mut out);
    donor.received(NEW, &want, &mut out).unwrap();
    let Some(Action::Send { message: Message::State(StateSay::Chunk { part, .. }), .. }) = out.pop() else {
        panic!("no chunk")
    };
    assert_eq!(part, AGREED);
    ask(&mut donor, OTHER, 5, &mut out).unwrap();
    assert_eq!(offers(&mut out), [(OTHER, 3, AGREED), (OTHER, 3, OWN)], "one copy serves all");
    for since in [3, 4] {
        follow(&mut donor, NEW, since, &mut out).unwrap();
        assert_eq!(offers(&mut out), [(NEW, since + 1, RESULT)]);
    }
    let want_result = StateSay::Want { blob: blob(5, 10).id(), chunks: vec![0] };
    donor.received(NEW, &want_result, &mut out).unwrap();
    assert!(matches!(
        out.pop(),
        Some(Action::Send {
            message: Message::State(StateSay::Chunk { part: StatePart::Result(0), .. }),
            ..
        })
    ));
    follow(&mut donor, NEW, 5, &mut out).unwrap();
    assert_eq!(offers(&mut out), [], "there is nothing behind it");
    commit(&mut donor, 6, 10, &mut out);
    assert_eq!(offers(&mut out), [(NEW, 6, RESULT)], "who follows hears of what is committed");
    donor.received(OTHER, &want, &mut out).expect("another takes it still");
    donor.expects(BTreeSet::from([NEW]));
    assert!(donor.received(NEW, &want, &mut out).is_err(), "nobody takes it any more");
    donor.expects(BTreeSet::new());
    assert!(donor.passed.is_empty());
}

#[test]
fn a_copy_that_leads_nowhere_any_more_is_let_go() {
    let (mut donor, mut out) = (taken(), Outbox::default());
    (4..7).for_each(|outer| commit(&mut donor, outer, 40, &mut out));
    let want = StateSay::Want { blob: blob(1, 9).id(), chunks: vec![0] };
    let refused = donor.received(NEW, &want, &mut out);
    assert!(matches!(refused, Err(Refusal::NotHeld { .. })), "outer step 4 is too far back: {refused:?}");
    assert_eq!(follow(&mut donor, NEW, 3, &mut out), Err(Refusal::NoState { outer: OUTER }));
    assert_eq!(follow(&mut donor, NEW, 4, &mut out), Ok(()));
    ask(&mut donor, NEW, 6, &mut out).unwrap();
    let mut exports =
        core::iter::from_fn(|| out.pop()).filter(|action| matches!(action, Action::Export { .. }));
    assert_eq!(exports.next(), Some(Action::Export { outer: OuterStep(6) }));
}

#[test]
fn a_commit_without_results_breaks_the_way() {
    let (mut donor, mut out) = (taken(), Outbox::default());
    donor.committed(OuterStep(4), digest(4), None, &mut out);
    commit(&mut donor, 5, 10, &mut out);
    assert_eq!(follow(&mut donor, NEW, 3, &mut out), Err(Refusal::NoState { outer: OUTER }));
    assert_eq!(follow(&mut donor, NEW, 4, &mut out), Ok(()));
}

#[test]
fn a_commit_before_the_copy_is_made_asks_for_another() {
    let (mut donor, mut out) = (donor(), Outbox::default());
    ask(&mut donor, NEW, 2, &mut out).expect("from what is later it can follow too");
    assert_eq!(out.pop(), Some(Action::Export { outer: OUTER }));
    commit(&mut donor, 4, 10, &mut out);
    assert_eq!(out.pop(), Some(Action::Export { outer: OuterStep(4) }));
    donor.exported(OUTER, blob(1, 1), blob(2, 1), &mut out);
    assert_eq!(out.pop(), None, "the commit came between");
    donor.exported(OuterStep(4), blob(1, 1), blob(2, 1), &mut out);
    assert_eq!(offers(&mut out), [(NEW, 4, AGREED), (NEW, 4, OWN)]);
}

#[test]
fn who_hears_of_a_commit_first_gets_it_when_it_is_here() {
    let (mut donor, mut out) = (donor(), Outbox::default());
    ask(&mut donor, NEW, 4, &mut out).unwrap();
    ask(&mut donor, OTHER, 5, &mut out).unwrap();
    assert_eq!(out.pop(), None, "it is not there yet");
    commit(&mut donor, 4, 10, &mut out);
    assert_eq!(out.pop(), Some(Action::Export { outer: OuterStep(4) }));
    donor.exported(OuterStep(4), blob(1, 1), blob(2, 1), &mut out);
    assert_eq!(offers(&mut out), [(NEW, 4, AGREED), (NEW, 4, OWN)], "the other waits for a later one");
    commit(&mut donor, 5, 10, &mut out);
    assert_eq!(offers(&mut out), [(OTHER, 4, AGREED), (OTHER, 4, OWN)], "which leads there");
}

#[test]
fn only_newcomers_are_given_anything() {
    let (mut donor, mut out) = (donor(), Outbox::default());
    let stranger = PeerId([7; 32]);
    assert_eq!(ask(&mut donor, stranger, OUTER.0, &mut out), Err(Refusal::NoState { outer: OUTER }));
    assert_eq!(follow(&mut donor, stranger, OUTER.0, &mut out), Err(Refusal::NoState { outer: OUTER }));
    assert_eq!(out.pop(), None);
    let mut fresh = Donor::new(None, PASSED_MAX);
    fresh.expects(BTreeSet::from([NEW]));
    ask(&mut fresh, NEW, 0, &mut out).expect("it waits for the first commit");
    assert_eq!(out.pop(), None);
}
