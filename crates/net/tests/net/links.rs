//! Sockets and connections that come and go.

use crate::sample::spec;
use crate::support::{PATIENCE, Peer, bind, config, frame, hasty, member, secret};
use std::net::SocketAddr;
use tokio::runtime::Runtime;
use trestle_net::{Address, BindError, BreakReason, LostReason, Membership, Net, NetConfig, NetEvent};
use trestle_protocol::ids::PeerId;

fn hasty_config(seed: u8) -> NetConfig {
    NetConfig { limits: hasty(), ..config(seed) }
}

/// A peer on its own runtime; dropping it is a process that is killed: nothing is said to anyone.
struct Process {
    peer: Peer,
    runtime: Runtime,
}

fn start(config: NetConfig) -> Process {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("threads are to be had");
    let peer = runtime.block_on(bind(config));
    Process { peer, runtime }
}

impl Process {
    fn kill(self) -> SocketAddr {
        let socket = self.peer.net.address().sockets()[0];
        drop(self.runtime);
        drop(self.peer);
        socket
    }
}

async fn interrupted(peer: &mut Peer) -> (PeerId, BreakReason) {
    let event = peer.next().await;
    let NetEvent::Interrupted { peer, reason } = event else { panic!("expected a break, got {event:?}") };
    (peer, reason)
}

async fn lost(peer: &mut Peer) -> (PeerId, LostReason) {
    let event = peer.next().await;
    let NetEvent::Lost { peer, reason } = event else { panic!("expected a loss, got {event:?}") };
    (peer, reason)
}

#[tokio::test]
async fn a_used_port_is_named() {
    let a = member(1).await;
    let used = a.net.address().sockets()[0];
    let second = NetConfig::new(secret(2), used, Membership::Member(Box::new(spec())));
    let error = Net::bind(second).await.expect_err("the port is used");
    assert!(matches!(error, BindError::PortUsed { address } if address == used), "{error}");
    assert_eq!(error.to_string(), format!("port {} of 127.0.0.1 is in use", used.port()));
    assert!(error.hint().contains("another port"));
}

#[tokio::test]
async fn an_address_of_another_machine_is_named() {
    let mut elsewhere = config(1);
    elsewhere.bind = SocketAddr::from(([192, 0, 2, 1], 0));
    let error = Net::bind(elsewhere).await.expect_err("not an address of this machine");
    assert!(matches!(error, BindError::Socket { .. }), "{error}");
    assert!(error.to_string().contains("192.0.2.1"), "{error}");
}

#[tokio::test]
async fn all_addresses_of_a_machine_are_found_and_lead_there() {
    let mut everywhere = config(1);
    everywhere.bind = SocketAddr::from(([0, 0, 0, 0], 0));
    everywhere.advertise = vec!["127.0.0.1:9".parse().expect("a socket address")];
    let mut a = bind(everywhere).await;
    assert!(a.net.address().sockets().contains(&"127.0.0.1:9".parse().expect("a socket address")));
    assert!(a.net.address().sockets().len() > 1, "{}", a.net.address());
    let mut b = member(2).await;
    let port =
        a.net.address().sockets().iter().map(SocketAddr::port).find(|&port| port != 9).expect("one is ours");
    let loopback = Address::new([SocketAddr::from(([127, 0, 0, 1], port))]).expect("an address");
    b.net.dial(a.id(), &loopback).await.expect("it listens on all addresses");
    b.expect_connected(a.id()).await;
    a.expect_connected(b.id()).await;
}

#[tokio::test]
async fn a_farewell_is_no_loss_to_win_back() {
    let (mut a, mut b) = (bind(hasty_config(1)).await, bind(hasty_config(2)).await);
    a.dial(&b).await;
    b.expect_connected(a.id()).await;
    a.net.disconnect(b.id()).await;
    assert_eq!(lost(&mut a).await, (b.id(), LostReason::Closed));
    assert_eq!(lost(&mut b).await, (a.id(), LostReason::Closed));
    b.dial(&a).await;
    a.expect_connected(b.id()).await;
    assert_eq!(a.net.counters().peers[&b.id()].connections, 2);
}

#[test]
fn a_peer_that_starts_anew_is_won_back_by_its_dialler() {
    let mut dialler = start(hasty_config(1));
    let listener = start(hasty_config(2));
    let id = listener.peer.id();
    let address = listener.peer.net.address().clone();
    dialler.runtime.block_on(dialler.peer.dial(&listener.peer));
    let socket = listener.kill();
    let (peer, reason) = dialler.runtime.block_on(interrupted(&mut dialler.peer));
    assert_eq!((peer, reason), (id, BreakReason::Silent { silence_max: hasty().silence_max }));
    let sent = dialler.peer.net.send(id, frame(b"lost", Vec::new()));
    assert!(sent.is_err(), "nothing is taken for a peer that is gone");
    let mut again = start(NetConfig { bind: socket, ..hasty_config(2) });
    assert_eq!(again.peer.net.address(), &address);
    dialler.runtime.block_on(dialler.peer.expect_connected(id));
    dialler.peer.net.send(id, frame(b"again", Vec::new())).expect("connected");
    again.runtime.block_on(async {
        again.peer.expect_connected(dialler.peer.id()).await;
        assert_eq!(again.peer.expect_frame().await.1.header, "again");
    });
}

#[test]
fn a_dialler_that_starts_anew_takes_the_place_of_its_old_connection() {
    let mut listener = start(config(2));
    let mut dialler = start(config(1));
    let id = dialler.peer.id();
    dialler.runtime.block_on(dialler.peer.dial(&listener.peer));
    listener.runtime.block_on(listener.peer.expect_connected(id));
    dialler.kill();
    let mut again = start(config(1));
    again.runtime.block_on(again.peer.dial(&listener.peer));
    listener.runtime.block_on(async {
        assert_eq!(interrupted(&mut listener.peer).await, (id, BreakReason::Restarted));
        listener.peer.expect_connected(id).await;
        listener.peer.net.send(id, frame(b"again", Vec::new())).expect("connected");
    });
    assert_eq!(again.runtime.block_on(again.peer.expect_frame()).1.header, "again");
}

#[test]
fn a_peer_that_stays_away_is_lost_to_both_sides_after_a_bounded_time() {
    let mut limits = hasty();
    limits.redials_max = 2;
    let listener = start(NetConfig { limits: limits.clone(), ..config(2) });
    let mut dialler = start(NetConfig { limits: limits.clone(), ..config(1) });
    dialler.runtime.block_on(dialler.peer.dial(&listener.peer));
    let id = listener.peer.id();
    listener.kill();
    dialler.runtime.block_on(async {
        interrupted(&mut dialler.peer).await;
        let (peer, reason) = lost(&mut dialler.peer).await;
        assert_eq!(peer, id);
        assert!(matches!(reason, LostReason::Gone { redials: 2, .. }), "{reason}");
    });

    let mut listener = start(NetConfig { limits: limits.clone(), ..config(2) });
    dialler.runtime.block_on(dialler.peer.dial(&listener.peer));
    let id = dialler.peer.id();
    dialler.kill();
    listener.runtime.block_on(async {
        listener.peer.expect_connected(id).await;
        interrupted(&mut listener.peer).await;
        let (peer, reason) = lost(&mut listener.peer).await;
        assert_eq!(peer, id);
        assert!(matches!(reason, LostReason::Gone { redials: 0, .. }), "{reason}");
    });
}

#[test]
fn closing_ends_redials_and_events() {
    let mut limits = hasty();
    limits.redial_wait_first = PATIENCE;
    let listener = start(config(2));
    let mut dialler = start(NetConfig { limits, ..config(1) });
    dialler.runtime.block_on(dialler.peer.dial(&listener.peer));
    listener.kill();
    dialler.runtime.block_on(async {
        interrupted(&mut dialler.peer).await;
        dialler.peer.net.close().await;
        let Peer { net, mut events } = dialler.peer;
        drop(net);
        let ended = tokio::time::timeout(PATIENCE / 2, async { while events.recv().await.is_some() {} });
        ended.await.expect("all tasks end");
    });
}
