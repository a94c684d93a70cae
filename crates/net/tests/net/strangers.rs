//! Those who speak rubbish: refused, counted, told apart, and never noticed by other peers.

use crate::sample::spec;
use crate::support::{PATIENCE, Peer, any_port, bind, config, frame, hasty, pair, pattern, secret};
use iroh::endpoint::{
    Connection, ConnectionError, PortmapperConfig, RecvStream, RelayMode, SendStream, presets,
};
use iroh::{Endpoint, EndpointAddr, PublicKey, SecretKey, TransportAddr};
use tokio::net::UdpSocket;
use trestle_net::{Address, LostReason, Membership, NetConfig, NetEvent, RefusedReason};
use trestle_protocol::handshake::{self, Mismatch, Welcome};
use trestle_protocol::wire::WIRE_VERSION;

const ALPN: &[u8] = b"trestle/1";

/// A peer that holds a key and speaks QUIC, and says what the test wants.
async fn raw(seed: u8) -> Endpoint {
    let builder = Endpoint::builder(presets::Minimal)
        .alpns(vec![ALPN.to_vec()])
        .secret_key(SecretKey::from_bytes(&secret(seed)))
        .relay_mode(RelayMode::Disabled)
        .portmapper_config(PortmapperConfig::Disabled)
        .clear_ip_transports()
        .bind_addr(any_port())
        .expect("a socket address");
    builder.bind().await.expect("loopback has free ports")
}

async fn connect(endpoint: &Endpoint, peer: &Peer, alpn: &[u8]) -> Option<Connection> {
    let key = PublicKey::from_bytes(&peer.id().0).expect("a key");
    let sockets = peer.net.address().sockets().iter().copied().map(TransportAddr::Ip);
    endpoint.connect(EndpointAddr::from_parts(key, sockets), alpn).await.ok()
}

/// Magic, wire version, incarnation.
fn greeting_head(version: u16) -> Vec<u8> {
    [b"trestle\n", &version.to_le_bytes()[..], &[7; 8]].concat()
}

fn hello() -> Vec<u8> {
    let words = handshake::encode(&handshake::hello(spec().digest(), Some(&spec())));
    let length = u32::try_from(words.len()).expect("a short greeting").to_le_bytes();
    [&greeting_head(WIRE_VERSION)[..], &length, &words].concat()
}

/// Connects and greets as a member would, and waits until it is taken for one.
async fn greet(endpoint: &Endpoint, peer: &mut Peer) -> (Connection, SendStream, RecvStream) {
    let connection = connect(endpoint, peer, ALPN).await.expect("it listens");
    let (mut send, recv) = connection.open_bi().await.expect("one stream is allowed");
    send.write_all(&hello()).await.expect("connected");
    peer.expect_connected(trestle_protocol::ids::PeerId(*endpoint.id().as_bytes())).await;
    (connection, send, recv)
}

fn piece(frame: u64, [payload, piece_bytes, piece, header]: [u32; 4]) -> Vec<u8> {
    let mut head = frame.to_le_bytes().to_vec();
    for word in [payload, piece_bytes, piece, header] {
        head.extend(word.to_le_bytes());
    }
    head
}

async fn misbehaved(peer: &mut Peer) -> String {
    let event = peer.next().await;
    let NetEvent::Lost { reason: LostReason::Misbehaved { detail }, .. } = event else {
        panic!("expected that someone broke the rules, got {event:?}")
    };
    detail
}

async fn refused(peer: &mut Peer) -> RefusedReason {
    let event = peer.next().await;
    let NetEvent::Refused { reason, .. } = event else { panic!("expected a refusal, got {event:?}") };
    reason
}

async fn assert_undisturbed(a: &mut Peer, b: &mut Peer) {
    let sent = frame(b"still here", pattern(3, 300_000));
    a.net.send(b.id(), sent.clone()).expect("connected");
    assert!(b.expect_frame().await.1 == sent);
    b.net.send(a.id(), sent.clone()).expect("connected");
    assert!(a.expect_frame().await.1 == sent);
    assert_eq!(a.net.counters().peers[&b.id()].connections, 1);
}

#[tokio::test]
async fn raw_udp_garbage_disturbs_nobody() {
    let (mut a, mut b) = pair().await;
    let socket = UdpSocket::bind(any_port()).await.expect("loopback has free ports");
    let target = b.net.address().sockets()[0];
    for seed in 0..2000 {
        let mut garbage = pattern(seed, usize::try_from(seed % 1400).expect("small"));
        if let (Some(first), 0) = (garbage.first_mut(), seed % 3) {
            // Looks like a long QUIC header.
            *first |= 0xc0;
        }
        socket.send_to(&garbage, target).await.expect("loopback takes it");
    }
    assert_undisturbed(&mut a, &mut b).await;
}

#[tokio::test]
async fn a_stranger_to_the_protocol_is_counted() {
    let (mut a, mut b) = pair().await;
    assert!(connect(&raw(9).await, &b, b"http/3").await.is_none());
    assert_undisturbed(&mut a, &mut b).await;
    assert_eq!(b.net.counters().refused, 1);
}

#[tokio::test]
async fn rubbish_instead_of_a_hello_is_refused_by_name() {
    let (mut a, mut b) = pair().await;
    let long = [&greeting_head(WIRE_VERSION)[..], &u32::MAX.to_le_bytes()].concat();
    let unreadable = [&greeting_head(WIRE_VERSION)[..], &9_u32.to_le_bytes(), &[0xff; 9]].concat();
    for (seed, rubbish) in (0..).zip([pattern(1, 5000), long, unreadable, Vec::new(), hello()[..60].to_vec()])
    {
        let endpoint = raw(10 + seed).await;
        let connection = connect(&endpoint, &b, ALPN).await.expect("it listens");
        let (mut send, _recv) = connection.open_bi().await.expect("one stream is allowed");
        send.write_all(&rubbish).await.expect("connected");
        send.finish().expect("open");
        let reason = refused(&mut b).await;
        assert!(matches!(reason, RefusedReason::Malformed { .. }), "{seed}: {reason}");
        let end = connection.closed().await;
        assert!(matches!(end, ConnectionError::ApplicationClosed(_)), "{seed}: {end}");
        assert_undisturbed(&mut a, &mut b).await;
    }
    assert_eq!(b.net.counters().refused, 5);
}

#[tokio::test]
async fn another_version_is_named_even_when_its_hello_cannot_be_read() {
    let mut b = bind(config(2)).await;
    let endpoint = raw(9).await;
    let connection = connect(&endpoint, &b, ALPN).await.expect("it listens");
    let (mut send, mut recv) = connection.open_bi().await.expect("one stream is allowed");
    send.write_all(&[greeting_head(WIRE_VERSION + 1), vec![0xff; 40]].concat()).await.expect("connected");
    let reply = recv.read_to_end(1000).await.expect("an answer");
    let expected = Mismatch::WireVersion { ours: WIRE_VERSION, theirs: WIRE_VERSION + 1 };
    assert_eq!(handshake::decode_welcome(&reply[13..]), Some(Welcome::Refused(expected.clone())));
    connection.close(0_u32.into(), b"read");
    assert_eq!(refused(&mut b).await, RefusedReason::Mismatch(expected));
}

#[tokio::test]
async fn silence_instead_of_a_hello_has_an_end() {
    let mut b = bind(NetConfig { limits: hasty(), ..config(2) }).await;
    let endpoint = raw(9).await;
    let connection = connect(&endpoint, &b, ALPN).await.expect("it listens");
    let reason = refused(&mut b).await;
    assert_eq!(reason, RefusedReason::TimedOut { wait: hasty().handshake_wait_max });
    tokio::time::timeout(PATIENCE, connection.closed()).await.expect("it is closed");
}

#[tokio::test]
async fn rubbish_on_the_control_stream_ends_that_connection_alone() {
    let (mut a, mut b) = pair().await;
    let oversized = [&8_u32.to_le_bytes()[..], &1_000_000_u32.to_le_bytes()].concat();
    let endless_header = [&u32::MAX.to_le_bytes()[..], &0_u32.to_le_bytes()].concat();
    let cases =
        [(oversized, "payload of 1000000"), (endless_header, "header of 4294967295"), (vec![1; 3], "inside")];
    for (seed, (rubbish, expected)) in (20..).zip(cases) {
        let endpoint = raw(seed).await;
        let (connection, mut send, _recv) = greet(&endpoint, &mut b).await;
        send.write_all(&rubbish).await.expect("connected");
        send.finish().expect("open");
        let detail = misbehaved(&mut b).await;
        assert!(detail.contains(expected), "{detail}");
        let end = connection.closed().await;
        let ConnectionError::ApplicationClosed(closed) = end else { panic!("{end}") };
        assert_eq!(closed.reason, detail.as_bytes());
        assert_undisturbed(&mut a, &mut b).await;
    }
}

/// A lane's first byte, what follows it, and a part of what is said about it.
fn lane_cases() -> Vec<(u8, Vec<u8>, &'static str)> {
    let three = [49_152, 16_384];
    let at = |frame, index, header| piece(frame, [three[0], three[1], index, header]);
    let whole = |frame: u64| [piece(frame, [10, 10, 0, 0]), vec![1; 10]].concat();
    vec![
        (9, Vec::new(), "lane of kind 9"),
        (0, at(0, 3, 0), "piece 3 of a frame of 3 pieces"),
        (0, at(0, 1, 5), "header of 5 bytes beside piece 1"),
        (0, piece(0, [u32::MAX, 16_384, 0, 0]), "payload of 4294967295"),
        (0, piece(0, [49_152, 1, 0, 0]), "pieces of 1 bytes"),
        (0, piece(0, [49_152, 0, 0, 0]), "pieces of 0 bytes"),
        (0, piece(0, [10, 10, 0, u32::MAX]), "header of 4294967295"),
        (0, [at(0, 0, 0), vec![1; 16_384], at(0, 0, 0)].concat(), "piece 0 of frame 0 came twice"),
        (1, [at(0, 0, 0), vec![1; 16_384], piece(0, [49_151, 16_384, 1, 0])].concat(), "disagree"),
        (0, piece(u64::MAX, [10, 10, 0, 0]), "while frame 0 is incomplete"),
        (1, [whole(1), whole(1)].concat(), "which is complete"),
        (0, at(0, 0, 0), "ends inside a frame"),
        (0, vec![0; 5], "ends inside a frame"),
    ]
}

#[tokio::test]
async fn rubbish_on_a_lane_ends_that_connection_alone() {
    let (mut a, mut b) = pair().await;
    for (seed, (kind, rubbish, expected)) in (40..).zip(lane_cases()) {
        let endpoint = raw(seed).await;
        let (connection, _send, _recv) = greet(&endpoint, &mut b).await;
        let mut lane = connection.open_uni().await.expect("lanes are allowed");
        lane.write_all(&[&[kind], &rubbish[..]].concat()).await.expect("connected");
        lane.finish().expect("open");
        let mut event = b.next().await;
        if let NetEvent::Received { frame, .. } = event {
            assert_eq!(frame.payload, [1; 10][..], "only the complete frame is heard");
            event = b.next().await;
        }
        let NetEvent::Lost { reason: LostReason::Misbehaved { detail }, .. } = event else {
            panic!("{event:?}")
        };
        assert!(detail.contains(expected), "expected `{expected}`, got `{detail}`");
        let end = connection.closed().await;
        assert!(matches!(end, ConnectionError::ApplicationClosed(_)), "{end}");
        assert_undisturbed(&mut a, &mut b).await;
    }
}

#[tokio::test]
async fn lanes_beyond_their_number_are_refused() {
    let mut b = bind(config(2)).await;
    let endpoint = raw(90).await;
    let (connection, _send, _recv) = greet(&endpoint, &mut b).await;
    let mut lanes = Vec::new();
    for _ in 0..9 {
        let mut lane = connection.open_uni().await.expect("twelve are allowed in all");
        lane.write_all(&[0]).await.expect("connected");
        lanes.push(lane);
    }
    assert_eq!(misbehaved(&mut b).await, "more than 8 lanes of one kind");
}

/// Random bytes on every stream a member has: whatever comes of it, nothing panics and nobody else notices.
#[tokio::test]
async fn random_bytes_after_a_good_hello_disturb_nobody() {
    let (mut a, mut b) = pair().await;
    for seed in 100..130_u8 {
        let endpoint = raw(seed).await;
        let (connection, mut send, _recv) = greet(&endpoint, &mut b).await;
        for lane_kind in [0, 1, 0] {
            let mut lane = connection.open_uni().await.expect("lanes are allowed");
            let mut bytes = pattern(u64::from(seed) + 1000, 3000);
            bytes[0] = lane_kind;
            // Small sizes, so that some pieces are almost right.
            for at in [3, 4, 5, 6, 7, 8, 11, 12, 15, 16, 18, 19, 20, 22, 23, 24] {
                bytes[at] &= seed % 2;
            }
            // It may be closed by now.
            let _ = lane.write_all(&bytes).await;
            let _ = lane.finish();
        }
        let _ = send.write_all(&pattern(u64::from(seed), 2000)).await;
        let detail = misbehaved(&mut b).await;
        assert!(!detail.is_empty());
        assert_undisturbed(&mut a, &mut b).await;
    }
}

/// Answers one dial with given bytes.
fn answer_with(endpoint: Endpoint, reply: Vec<u8>) {
    tokio::spawn(async move {
        let connection = endpoint.accept().await.expect("one comes").await.expect("it speaks our protocol");
        let (mut send, _recv) = connection.accept_bi().await.expect("it says hello");
        send.write_all(&reply).await.expect("connected");
        send.finish().expect("open");
        connection.closed().await;
    });
}

fn reply(kind: u8, words: &[u8]) -> Vec<u8> {
    let length = u32::try_from(words.len()).expect("short").to_le_bytes();
    [&[kind], &[7; 8][..], &length, words].concat()
}

#[tokio::test]
async fn a_listener_that_speaks_rubbish_is_named() {
    let digest = spec().digest();
    let mut other = spec();
    other.seed += 1;
    let another_run = handshake::encode(&Welcome::Accepted { spec: Some(Box::new(other)) });
    let no_spec = handshake::encode(&Welcome::Accepted { spec: None });
    let cases = [
        (Vec::new(), "broke the handshake"),
        (vec![0xff; 40], "broke the handshake: greeting of 4294967295 bytes"),
        (reply(9, &[]), "broke the handshake: reply of kind 9"),
        (reply(0, &[0xff; 9]), "broke the handshake: greeting cannot be read"),
        (reply(0, &another_run), "sent another run's spec"),
        (reply(0, &no_spec), "sent another run's spec"),
        (reply(2, &[]), "takes no more peers"),
    ];
    for (seed, (reply, expected)) in (60..).zip(cases) {
        let membership = Membership::Candidate { run_digest: digest };
        let a = bind(NetConfig { membership, limits: hasty(), ..config(1) }).await;
        let endpoint = raw(seed).await;
        let id = trestle_protocol::ids::PeerId(*endpoint.id().as_bytes());
        let address = Address::new(endpoint.bound_sockets()).expect("loopback");
        answer_with(endpoint, reply);
        let error = a.net.dial(id, &address).await.expect_err("no peer of this run");
        assert!(error.to_string().contains(expected), "expected `{expected}`, got `{error}`");
        assert!(a.net.connected().is_empty() && a.net.spec().is_none());
    }
}
