//! Tables for leases.

use super::*;
use crate::ids::StageId;
use crate::spec::tests::spec;

const PEER: PeerId = PeerId([1; 32]);
const OTHER: PeerId = PeerId([2; 32]);

fn leases(ahead: usize) -> Leases {
    // Two steps of four microbatches, one evaluation of two at the end.
    Leases::new(Agenda::new(&spec()), InnerStep(0), ahead)
}

fn take(leases: &mut Leases, now: u64) -> Vec<MicrobatchId> {
    leases.take(Time(now), 100, |_| Some(PEER)).into_iter().map(|(m, _)| m).collect()
}

#[test]
fn no_more_is_out_than_allowed_and_everything_comes_once() {
    let mut leases = leases(3);
    let mut seen: Vec<MicrobatchId> = Vec::new();
    loop {
        let taken = take(&mut leases, 0);
        assert!(leases.out.leases.len() <= 3);
        if taken.is_empty() {
            break;
        }
        seen.extend(&taken);
        for microbatch in taken {
            assert_eq!(leases.settle(Time(5), microbatch), Ok(()));
            assert_eq!(leases.settle(Time(5), microbatch), Err(Unsettled::Duplicate));
        }
    }
    assert_eq!(seen, Agenda::new(&spec()).from(InnerStep(0)).collect::<Vec<_>>());
}

#[test]
fn a_slow_peer_is_given_no_more_than_its_queue_holds() {
    let (fast, slow) = (PEER, OTHER);
    let mut leases = leases(2);
    let mut out_at_slow = 0;
    for _ in 0..10 {
        let to = |m: MicrobatchId| Some(if m.index.is_multiple_of(2) { fast } else { slow });
        let taken = leases.take(Time(0), 100, to);
        for (microbatch, to) in taken {
            if to == fast {
                leases.settle(Time(1), microbatch).unwrap();
            } else {
                out_at_slow += 1;
            }
        }
    }
    assert_eq!(out_at_slow, 2, "the fast one waits rather than the slow one's queue overflow");
}

#[test]
fn an_expired_lease_goes_to_another_and_lasts_longer() {
    let mut leases = leases(1);
    let microbatch = take(&mut leases, 0)[0];
    let deadline = leases.deadline().unwrap();
    assert!(leases.expire(deadline - Span(1), |_, _| None).is_empty());
    let renewed = leases.expire(deadline, |_, _| Some(OTHER));
    assert_eq!(renewed, [Renewed { microbatch, to: OTHER, attempt: Attempt(1), needs: Needs::All }]);
    assert_eq!(leases.deadline().unwrap().since(deadline), Span(2 * EXPIRY_FIRST.0));
    leases.postpone(deadline + Span(2 * EXPIRY_FIRST.0));
    assert!(leases.expire(deadline + Span(2 * EXPIRY_FIRST.0), |_, _| None).is_empty());
}

#[test]
fn what_waited_for_a_stage_to_have_somebody_teaches_no_longer_expiry() {
    let mut leases = leases(2);
    let out = take(&mut leases, 0);
    leases.settle(Time(1_000_000), out[0]).unwrap();
    let expiry = leases.expiry(Attempt(0));
    leases.stood_still(Time(900_000_000));
    leases.settle(Time(901_000_000), out[1]).unwrap();
    assert_eq!(leases.expiry(Attempt(0)), expiry);
    let next = take(&mut leases, 901_000_000)[0];
    leases.settle(Time(951_000_000), next).unwrap();
    assert!(leases.expiry(Attempt(0)) > expiry, "what was leased since counts");
}

#[test]
fn what_was_never_out_is_not_settled() {
    let mut leases = leases(1);
    take(&mut leases, 0);
    assert_eq!(leases.settle(Time(1), MicrobatchId::train(7)), Err(Unsettled::NotLeased));
}

#[test]
fn what_a_lost_peer_had_goes_to_others_and_holds_the_frontier() {
    let mut leases = leases(4);
    let all = take(&mut leases, 0);
    all.iter().for_each(|m| leases.settle(Time(1), *m).unwrap());
    assert_eq!(leases.frontier().train_below, 4);
    let needs = Needs::Only([StageId(1)].into());
    let again = leases.again(Time(2), all[2], needs.clone(), PEER);
    assert_eq!((again.attempt, leases.frontier().train_below), (Attempt(1), 2));
    let renewed = leases.lost(Time(3), PEER, |_| Some(OTHER));
    assert_eq!(renewed, [Renewed { microbatch: all[2], to: OTHER, attempt: Attempt(2), needs }]);
    leases.settle(Time(4), all[2]).unwrap();
    assert_eq!((leases.frontier().train_below, leases.is_empty()), (4, true));
}

#[test]
fn a_coordinator_that_starts_again_hands_nothing_out_twice() {
    let mut first = leases(3);
    let out = take(&mut first, 0);
    let mut second = Leases::after(Agenda::new(&spec()), InnerStep(0), 3, first.handed_out());
    second.settled_before(out[0]);
    out[1..].iter().for_each(|m| second.out_again(Time(0), *m, Needs::All, PEER));
    assert_eq!(take(&mut second, 0), [MicrobatchId::train(3)], "two are out, and there is room for one more");
    assert_eq!((second.frontier().train_below, second.highest_step()), (1, InnerStep(0)));
}

#[test]
fn a_stop_lets_the_begun_step_end() {
    let mut leases = leases(2);
    let begun = take(&mut leases, 0);
    assert_eq!(leases.stop(), InnerStep(1));
    let mut trained = begun.clone();
    for m in begun {
        leases.settle(Time(1), m).unwrap();
    }
    loop {
        let more = take(&mut leases, 1);
        if more.is_empty() {
            break;
        }
        trained.extend(&more);
        more.into_iter().for_each(|m| leases.settle(Time(2), m).unwrap());
    }
    assert_eq!(trained, (0..4).map(MicrobatchId::train).collect::<Vec<_>>());
    assert_eq!((leases.settled().watermark(), leases.is_empty()), (4, true));
}

/// What is kept beside the leases must be what a look at all of them would find, whatever is done to them.
#[test]
fn what_is_looked_up_is_what_is_out() {
    let peers = [PEER, OTHER, PeerId([3; 32])];
    let mut state = 1_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..50 {
        let mut leases = leases(3);
        for now in 0..60 {
            let now = Time(now * 20_000_000);
            let peer = peers[draw(3) as usize];
            let out: Vec<MicrobatchId> = leases.out.leases.keys().copied().collect();
            let one = out.get(draw(out.len().max(1) as u64) as usize).copied();
            match (draw(6), one) {
                (0, _) => drop(leases.take(now, 2, |_| Some(peer))),
                (1, Some(one)) => leases.settle(now, one).expect("it is out"),
                (2, Some(one)) => drop(leases.move_to(now, one, peer)),
                (3, _) => drop(leases.expire(now, |_, _| Some(peer))),
                (4, _) => leases.postpone(now),
                (_, _) => drop(leases.lost(now, peer, |_| Some(OTHER))),
            }
            let all = &leases.out.leases;
            assert_eq!(leases.deadline(), all.values().map(|lease| lease.expires).min());
            assert_eq!(leases.holders(), all.values().map(|lease| lease.to).collect());
            let held = |peer| all.values().filter(|lease| lease.to == peer).count();
            assert!(leases.out.held.iter().all(|(peer, count)| *count == held(*peer)));
            let expired: Vec<MicrobatchId> = leases.out.expired(now).into_iter().collect();
            let due = all.iter().filter(|(_, lease)| lease.expires <= now).map(|(m, _)| *m);
            assert_eq!(expired, due.collect::<Vec<_>>());
            let first = |split| all.keys().find(|m| m.split == split).map(|m| m.index);
            for split in [Split::HeldOut, Split::Train] {
                assert_eq!(leases.out.first(split), first(split));
            }
        }
    }
}
