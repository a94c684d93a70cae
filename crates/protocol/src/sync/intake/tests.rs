//! Tables for the end that takes.

use super::*;
use crate::port::Action;
use crate::sync::blob::CHUNK_BYTES;
use crate::sync::donor::Donor;
use crate::sync::shares::WHOLE;
use alloc::vec;

const NEW: PeerId = PeerId([9; 32]);
const A: PeerId = PeerId([1; 32]);
const B: PeerId = PeerId([2; 32]);
const OUTER: OuterStep = OuterStep(3);
const BOUNDS: Bounds = Bounds { bytes: 1 << 25, shards: 2 };

fn digest(outer: u64) -> Digest {
    Digest([outer as u8; 32])
}

fn target(outer: u64) -> (OuterStep, Digest) {
    (OuterStep(outer), digest(outer))
}

fn blob(fill: u8, chunks: usize) -> Blob {
    Blob::new(vec![fill; chunks * CHUNK_BYTES as usize - 5].into())
}

fn passed(outer: u64) -> Passed {
    let results = vec![blob(outer as u8, 2), blob(100 + outer as u8, 1)];
    let (outer, digest) = target(outer);
    Passed { outer, digest, shares: vec![WHOLE / 2, WHOLE / 2], results }
}

/// A newcomer among donors, and what of theirs never arrives.
struct Stage {
    intake: Intake,
    donors: Vec<(PeerId, Donor)>,
    deaf: Option<PeerId>,
    now: Time,
}

impl Stage {
    fn new() -> Self {
        let donors = [A, B].map(|peer| {
            let mut donor = Donor::new(Some(target(OUTER.0)), 1 << 30);
            donor.expects(BTreeSet::from([NEW]));
            (peer, donor)
        });
        let intake = Intake::new(target(OUTER.0), vec![A, B], BOUNDS, Time(0));
        Self { intake, donors: donors.into(), deaf: None, now: Time(0) }
    }

    fn commit(&mut self, outer: u64, out: &mut Outbox) {
        for (_, donor) in &mut self.donors {
            donor.committed(OuterStep(outer), digest(outer), Some(passed(outer)), out);
        }
    }

    /// Carries messages until something has come, or for long.
    fn carry(&mut self) -> Option<Came> {
        let mut out = Outbox::default();
        for _ in 0..200 {
            self.intake.woke(self.now, &mut out);
            if let Some(came) = self.carry_all(&mut out) {
                return Some(came);
            }
            self.now = self.now + Span::seconds(1);
        }
        None
    }

    fn carry_all(&mut self, out: &mut Outbox) -> Option<Came> {
        let mut open = sent(out);
        while let Some((to, say)) = open.pop() {
            if self.deaf == Some(to) && matches!(say, StateSay::Want { .. }) {
                continue;
            }
            let (id, donor) = self.donors.iter_mut().find(|(id, _)| *id == to).expect("a donor");
            if let Err(refusal) = donor.received(NEW, &say, out) {
                self.intake.refused(to, &refusal);
            }
            donor.exported(OUTER, blob(1, 20), blob(id.0[0], 3), out);
            let id = *id;
            for (_, answer) in sent(out) {
                if let Some(came) = self.intake.received(self.now, id, answer, out).expect("it fits") {
                    return Some(came);
                }
                open.extend(sent(out));
            }
        }
        None
    }
}

/// Takes what was said out of the box.
fn sent(out: &mut Outbox) -> Vec<(PeerId, StateSay)> {
    let mut all = Vec::new();
    while let Some(action) = out.pop() {
        if let Action::Send { to, message: Message::State(say) } = action {
            all.push((to, say));
        }
    }
    all
}

#[test]
fn a_newcomer_gets_both_parts_from_several_donors_even_if_one_goes_deaf() {
    for deaf in [None, Some(A), Some(B)] {
        let mut stage = Stage::new();
        stage.deaf = deaf;
        if let Some(deaf) = deaf {
            // The moments are one donor's alone; that one is gone for good only when the plan says so.
            stage.intake.donors([A, B].into_iter().filter(|peer| *peer != deaf).collect());
        }
        let Some(Came::State { outer, digest: of, agreed, own }) = stage.carry() else { panic!("{deaf:?}") };
        assert_eq!((outer, of, agreed), (OUTER, digest(3), blob(1, 20)));
        assert_eq!(own.manifest().chunks.len(), 3);
    }
}

#[test]
fn what_only_a_lost_donor_had_is_taken_from_another() {
    let mut stage = Stage::new();
    stage.deaf = Some(A);
    let mut out = Outbox::default();
    stage.intake.woke(Time(0), &mut out);
    // Both were heard, and the first is chosen for the moments.
    let (answers, mut later) = (&mut Outbox::default(), Outbox::default());
    for (id, donor) in &mut stage.donors {
        donor.received(NEW, &StateSay::Ask { outer: OUTER }, answers).unwrap();
        donor.exported(OUTER, blob(1, 20), blob(id.0[0], 3), answers);
        for (_, say) in sent(answers) {
            stage.intake.received(Time(0), *id, say, &mut later).unwrap();
        }
    }
    stage.intake.donors(vec![B]);
    let Some(Came::State { own, .. }) = stage.carry() else { panic!("it is stuck") };
    assert_eq!(own, blob(2, 3));
}

#[test]
fn what_was_committed_meanwhile_is_caught_up_with_in_order() {
    let mut stage = Stage::new();
    let mut out = Outbox::default();
    let Some(Came::State { outer, digest, .. }) = stage.carry() else { panic!("nothing came") };
    // While the driver takes hold of it, nothing more is taken.
    (4..7).for_each(|outer| stage.commit(outer, &mut out));
    stage.intake.aim(stage.now, target(6), &mut out);
    assert_eq!((sent(&mut out), stage.intake.deadline()), (vec![], None));
    stage.intake.holds(stage.now, (outer, digest), &mut out);
    for outer in 4..7 {
        assert!(!stage.intake.has_arrived());
        let came = stage.carry_all(&mut out).or_else(|| stage.carry());
        assert_eq!(came, Some(Came::Passed(passed(outer))));
        stage.intake.holds(stage.now, target(outer), &mut out);
    }
    assert!(stage.intake.has_arrived() && stage.intake.deadline().is_none());
    stage.intake.aim(stage.now, target(7), &mut out);
    assert!(!stage.intake.has_arrived());
    sent(&mut out);
    stage.commit(7, &mut out);
    assert_eq!(stage.carry(), Some(Came::Passed(passed(7))));
}

#[test]
fn a_donor_that_names_other_weights_than_the_coordinator_is_not_believed() {
    let mut stage = Stage::new();
    stage.intake = Intake::new((OUTER, Digest([66; 32])), vec![A, B], BOUNDS, Time(0));
    let Some(Came::State { digest, .. }) = stage.carry() else { panic!("nothing came") };
    assert_eq!(digest, Digest([66; 32]), "what the driver is to find");
    let (mut out, said) = (Outbox::default(), Digest([77; 32]));
    stage.intake.holds(stage.now, target(OUTER.0), &mut out);
    stage.intake.aim(stage.now, (OuterStep(4), said), &mut out);
    sent(&mut out);
    stage.commit(4, &mut out);
    let Some(Came::Passed(came)) = stage.carry() else { panic!("nothing came") };
    assert_eq!((came.outer, came.digest), (OuterStep(4), said));
}

#[test]
fn what_leads_elsewhere_or_nowhere_is_noticed_and_its_donor_shunned() {
    let mut stage = Stage::new();
    let mut out = Outbox::default();
    let Some(Came::State { outer, digest, .. }) = stage.carry() else { panic!("nothing came") };
    stage.intake.holds(stage.now, (outer, digest), &mut out);
    assert!(!stage.intake.went_astray());
    stage.intake.aim(stage.now, (OUTER, Digest([66; 32])), &mut out);
    assert!(stage.intake.went_astray());
    stage.intake.aim(stage.now, target(4), &mut out);
    assert!(!stage.intake.went_astray() && !stage.intake.is_left_behind());
    stage.intake.refused(A, &Refusal::NoState { outer: OuterStep(8) });
    stage.intake.refused(PeerId([7; 32]), &Refusal::NoState { outer: OUTER });
    stage.intake.refused(A, &Refusal::NoState { outer: OUTER });
    assert!(!stage.intake.is_left_behind(), "the other may have it");
    stage.intake.refused(B, &Refusal::NoState { outer: OUTER });
    assert!(stage.intake.is_left_behind());
    stage.intake.holds(stage.now, (outer, digest), &mut out);
    stage.intake.refused(A, &Refusal::NoState { outer: OUTER });
    for _ in 0..40 {
        stage.now = stage.now + Span::seconds(1);
        assert_eq!(stage.intake.is_left_behind(), stage.intake.asks >= ASKS_MAX);
        stage.intake.woke(stage.now, &mut out);
    }
    assert!(stage.intake.is_left_behind(), "the other says nothing");
    sent(&mut out);
    let led_by = stage.intake.led_by.clone();
    let mut anew = stage.intake.anew(stage.now);
    anew.woke(stage.now, &mut out);
    let asked: BTreeSet<PeerId> = sent(&mut out).into_iter().map(|(to, _)| to).collect();
    let others: BTreeSet<PeerId> = [A, B].into_iter().filter(|peer| !led_by.contains(peer)).collect();
    assert_eq!(asked, if others.is_empty() { BTreeSet::from([A, B]) } else { others });
    anew.led_by = BTreeSet::from([A, B]);
    let mut anew = anew.anew(stage.now);
    anew.woke(stage.now, &mut out);
    assert_eq!(sent(&mut out).len(), 2, "when all have led astray, all are asked again");
}

#[test]
fn a_donor_of_whose_offer_nothing_comes_is_not_waited_for_forever() {
    let mut stage = Stage::new();
    let mut out = Outbox::default();
    let offer = |part, blob: &Blob| {
        let manifest = blob.manifest().clone();
        StateSay::Offer { outer: OUTER, part, digest: digest(3), manifest }
    };
    stage.intake.received(Time(0), A, offer(StatePart::Agreed, &blob(77, 2)), &mut out).unwrap();
    sent(&mut out);
    let mut seconds = 0;
    while !stage.intake.is_left_behind() {
        seconds += 1;
        stage.now = stage.now + Span::seconds(1);
        stage.intake.woke(stage.now, &mut out);
        assert!(seconds < 600, "it is waited for");
    }
    assert!(seconds > 120, "a slow link is none: {seconds} s");
    sent(&mut out);
    stage.intake = stage.intake.anew(stage.now);
    stage.deaf = Some(A);
    let Some(Came::State { agreed, .. }) = stage.carry() else { panic!("nothing came") };
    assert_eq!(agreed, blob(1, 20), "of the other");
}

#[test]
fn absurd_offers_and_false_chunks_are_refused() {
    let bounds = Bounds { bytes: 1 << 20, shards: 1 };
    let mut intake = Intake::new(target(OUTER.0), vec![A], bounds, Time(0));
    let mut out = Outbox::default();
    let long = blob(3, 4).manifest().clone();
    let offer = |outer: u64, part, manifest| StateSay::Offer {
        outer: OuterStep(outer),
        part,
        digest: digest(outer),
        manifest,
    };
    let refused = intake.received(Time(0), A, offer(3, StatePart::Agreed, long.clone()), &mut out);
    assert!(matches!(refused, Err(Refusal::OfferUnfit { .. })));
    let fits = blob(3, 1);
    intake.received(Time(0), A, offer(3, StatePart::Agreed, fits.manifest().clone()), &mut out).unwrap();
    let (id, part) = (fits.id(), StatePart::Agreed);
    let payload = vec![4; fits.bytes().len()].into();
    let refused =
        intake.received(Time(0), A, StateSay::Chunk { part, blob: id, chunk: 0, payload }, &mut out);
    assert_eq!(refused, Err(Refusal::ChunkFalse { blob: id, chunk: 0 }));
    intake.holds(Time(0), target(OUTER.0), &mut out);
    intake.aim(Time(0), target(4), &mut out);
    for shares in [vec![], vec![WHOLE - 1], vec![WHOLE / 2, WHOLE / 2], vec![u32::MAX, WHOLE + 1]] {
        let say = StateSay::Passed { outer: OuterStep(4), digest: digest(4), shares };
        let refused = intake.received(Time(0), A, say, &mut out);
        assert!(matches!(refused, Err(Refusal::OfferUnfit { .. })));
    }
    let result = StatePart::Result(0);
    intake.received(Time(0), A, offer(4, result, long.clone()), &mut out).expect("no cut of it is known");
    assert!(intake.fetches.is_empty());
    let say =
        |outer| StateSay::Passed { outer: OuterStep(outer), digest: digest(outer), shares: vec![WHOLE] };
    intake.received(Time(0), A, say(5), &mut out).expect("it is not the next");
    assert_eq!(intake.wanted, None);
    intake.received(Time(0), A, say(4), &mut out).unwrap();
    let refused = intake.received(Time(0), A, offer(4, result, long), &mut out);
    assert!(matches!(refused, Err(Refusal::OfferUnfit { .. })));
    for (outer, part) in [(4, StatePart::Result(1)), (5, result), (4, StatePart::Own)] {
        intake.received(Time(0), A, offer(outer, part, fits.manifest().clone()), &mut out).unwrap();
        assert!(intake.fetches.is_empty(), "{outer} {part:?}");
    }
}
