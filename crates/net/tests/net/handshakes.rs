//! Who may connect: one run, one version, one connection between two peers.

use crate::sample::spec;
use crate::support::{Peer, bind, config, frame, member};
use trestle_net::{Address, DialError, Membership, Net, NetEvent, RefusedReason};
use trestle_protocol::handshake::Mismatch;
use trestle_protocol::ids::PeerId;

fn other_run(seed: u8) -> trestle_net::NetConfig {
    let mut other = spec();
    other.model.width = 128;
    let mut config = config(seed);
    config.membership = Membership::Member(Box::new(other));
    config
}

fn candidate(seed: u8, digest: trestle_protocol::ids::Digest) -> trestle_net::NetConfig {
    let mut config = config(seed);
    config.membership = Membership::Candidate { run_digest: digest };
    config
}

async fn refused(peer: &mut Peer) -> (PeerId, RefusedReason) {
    let event = peer.next().await;
    let NetEvent::Refused { from, reason } = event else { panic!("expected a refusal, got {event:?}") };
    (from, reason)
}

#[tokio::test]
async fn another_run_is_refused_by_the_first_field_that_differs() {
    let (a, mut b) = (bind(other_run(1)).await, member(2).await);
    let error = a.net.dial(b.id(), b.net.address()).await.expect_err("runs differ");
    let words = error.to_string();
    assert!(words.contains("`model.width`: 128 here, 64 there"), "{words}");
    assert!(error.hint().contains("run file"), "{}", error.hint());
    let (from, reason) = refused(&mut b).await;
    assert_eq!(from, a.id());
    assert!(reason.to_string().contains("`model.width`: 64 here, 128 there"), "{reason}");
    assert!(a.net.connected().is_empty() && b.net.connected().is_empty());
    assert_eq!(b.net.counters().refused, 1);
}

#[tokio::test]
async fn a_candidate_learns_the_spec_and_then_answers_others() {
    let mut coordinator = member(1).await;
    let mut worker = bind(candidate(2, spec().digest())).await;
    assert_eq!(worker.net.spec(), None);
    let mut other = member(3).await;
    let error = other.net.dial(worker.id(), worker.net.address()).await.expect_err("it is no member yet");
    assert!(matches!(error, DialError::Refused { mismatch: Mismatch::NoRun, .. }), "{error}");
    assert!(matches!(refused(&mut worker).await.1, RefusedReason::Mismatch(Mismatch::NoRun)));
    worker.dial(&coordinator).await;
    coordinator.expect_connected(worker.id()).await;
    assert_eq!(worker.net.spec(), Some(spec()));
    other.dial(&worker).await;
    worker.expect_connected(other.id()).await;
}

#[tokio::test]
async fn a_candidate_of_another_run_is_refused_by_digest() {
    let coordinator = member(1).await;
    let digest = trestle_protocol::ids::Digest([9; 32]);
    let worker = bind(candidate(2, digest)).await;
    let error = worker.net.dial(coordinator.id(), coordinator.net.address()).await.expect_err("another run");
    let DialError::Refused { mismatch, .. } = &error else { panic!("{error}") };
    assert_eq!(*mismatch, Mismatch::Run { ours: digest, theirs: spec().digest() });
    assert!(error.hint().contains("ticket"), "{}", error.hint());
}

#[tokio::test]
async fn a_dial_to_nobody_says_where_it_went() {
    let mut config = config(1);
    config.limits = crate::support::hasty();
    let a = bind(config).await;
    let nobody: Address = "127.0.0.1:9".parse().expect("an address");
    let error = a.net.dial(member(2).await.id(), &nobody).await.expect_err("nobody is there");
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
    assert!(matches!(error, DialError::TimedOut { .. } | DialError::Unreachable { .. }), "{error}");
    let error = a.net.dial(a.id(), &nobody).await.expect_err("itself");
    assert_eq!(error, DialError::Myself { peer: a.id() });
}

#[tokio::test]
async fn a_wrong_key_at_the_right_place_is_not_connected() {
    let (a, b, c) = (member(1).await, member(2).await, member(3).await);
    let error = a.net.dial(c.id(), b.net.address()).await.expect_err("b cannot prove c's key");
    assert!(matches!(error, DialError::Unreachable { .. }), "{error}");
    assert!(a.net.connected().is_empty());
}

#[tokio::test]
async fn peers_beyond_the_bound_are_told_so() {
    let mut crowded = config(1);
    crowded.limits.peers_max = 1;
    let mut a = bind(crowded).await;
    let (mut b, c) = (member(2).await, member(3).await);
    b.dial(&a).await;
    a.expect_connected(b.id()).await;
    let error = c.net.dial(a.id(), a.net.address()).await.expect_err("one is the most");
    assert_eq!(error, DialError::Crowded { peer: a.id() });
    assert!(matches!(refused(&mut a).await.1, RefusedReason::Crowded { connected: 1 }));
}

/// Both dial at once, many times over: both dials succeed, one connection is left, no frame is lost on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn crossing_dials_leave_one_connection() {
    for round in 0..30 {
        let (mut a, mut b) = (member(1).await, member(2).await);
        let dial = |from: &Net, to: &Net| {
            let (from, peer, address) = (from.clone(), to.id(), to.address().clone());
            tokio::spawn(async move {
                from.dial(peer, &address).await.expect("both are of one run");
                from.send(peer, frame(b"first", Vec::new())).expect("connected");
            })
        };
        let (left, right) = (dial(&a.net, &b.net), dial(&b.net, &a.net));
        left.await.expect("no panic");
        right.await.expect("no panic");
        let ids = (a.id(), b.id());
        for (peer, other) in [(&mut a, ids.1), (&mut b, ids.0)] {
            peer.expect_connected(other).await;
            assert_eq!(peer.expect_frame().await.0, other, "round {round}");
            assert_eq!(peer.net.connected(), [other]);
            assert_eq!(peer.net.counters().peers[&other].connections, 1);
        }
        tokio::join!(a.net.close(), b.net.close());
    }
}

#[tokio::test]
async fn dialling_a_connected_peer_changes_nothing() {
    let (a, mut b) = crate::support::pair().await;
    for _ in 0..3 {
        a.net.dial(b.id(), b.net.address()).await.expect("connected");
        b.net.dial(a.id(), a.net.address()).await.expect("connected");
    }
    a.net.send(b.id(), frame(b"x", Vec::new())).expect("room");
    b.expect_frame().await;
    assert_eq!(a.net.counters().peers[&b.id()].connections, 1);
}
