//! Frames between two connected peers: whole, in order where order is promised, bounded, and cheap.

use crate::support::{frame, pair, pattern};
use std::time::Duration;
use trestle_net::{LostReason, NetEvent, SendError, Urgency};
use trestle_protocol::wire::{HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX};

#[tokio::test]
async fn frames_of_every_size_come_back_as_they_went() {
    let (mut a, mut b) = pair().await;
    let sizes = [0, 1, 65_535, 65_536, 65_537, 200_001, 2_200_000, 9_000_001];
    for (seed, size) in (0..).zip(sizes) {
        let sent = frame(&pattern(seed + 100, 3 + size % 50), pattern(seed, size));
        a.net.send(b.id(), sent.clone()).expect("room");
        let (from, heard) = b.expect_frame().await;
        assert_eq!(from, a.id());
        b.net.send(from, heard).expect("room");
        let (from, echo) = a.expect_frame().await;
        assert_eq!(from, b.id());
        assert!(echo == sent, "{size} bytes changed on the way");
    }
}

#[tokio::test]
async fn headers_up_to_the_bound_pass_on_both_ways() {
    let (a, mut b) = pair().await;
    for payload in [0, 100_000] {
        let sent = frame(&pattern(1, HEADER_BYTES_MAX), pattern(2, payload));
        a.net.send(b.id(), sent.clone()).expect("room");
        assert!(b.expect_frame().await.1 == sent);
    }
}

#[tokio::test]
async fn control_frames_keep_their_order_beside_striped_ones() {
    let (a, mut b) = pair().await;
    for number in 0..500_u32 {
        a.net.send(b.id(), frame(&number.to_le_bytes(), Vec::new())).expect("room");
        if number % 100 == 0 {
            a.net.send(b.id(), frame(b"large", pattern(number.into(), 500_000))).expect("room");
        }
    }
    let (mut numbers, mut large) = (Vec::new(), 0);
    while numbers.len() < 500 || large < 5 {
        let (_, heard) = b.expect_frame().await;
        match heard.payload.is_empty() {
            true => numbers.push(u32::from_le_bytes(heard.header[..].try_into().expect("four bytes"))),
            false => large += 1,
        }
    }
    assert!(numbers.is_sorted() && large == 5, "{large} {numbers:?}");
}

#[tokio::test]
async fn striped_frames_of_many_senders_stay_whole() {
    let (mut a, mut b) = pair().await;
    let frames = 40_u64;
    for (from, to) in [(&a, &b), (&b, &a)] {
        for number in 0..frames {
            let size = 70_000 + usize::try_from(number).expect("small") * 31_007;
            let urgency = if number % 4 == 0 { Urgency::Bulk } else { Urgency::Work };
            let sent = frame(&number.to_le_bytes(), pattern(number, size));
            from.net.send_as(to.id(), sent, urgency).expect("room");
        }
    }
    for peer in [&mut a, &mut b] {
        let mut seen = Vec::new();
        for _ in 0..frames {
            let (_, heard) = peer.expect_frame().await;
            let number = u64::from_le_bytes(heard.header[..].try_into().expect("eight bytes"));
            assert!(heard.payload == pattern(number, heard.payload.len()), "frame {number} is not whole");
            seen.push(number);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..frames).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_bound_on_half_received_bytes_slows_down_and_loses_nothing() {
    let mut narrow = crate::support::config(2);
    narrow.limits.reassembly_bytes_max = 300_000;
    narrow.limits.reassembly_messages_max = 2;
    let (mut a, mut b) = (crate::support::member(1).await, crate::support::bind(narrow).await);
    a.dial(&b).await;
    b.expect_connected(a.id()).await;
    for number in 0..60 {
        a.net
            .send(
                b.id(),
                frame(b"n", pattern(number, 250_000 + 1000 * usize::try_from(number).expect("small"))),
            )
            .expect("room");
    }
    for _ in 0..60 {
        let (_, heard) = b.expect_frame().await;
        let number = (heard.payload.len() - 250_000) / 1000;
        assert!(heard.payload == pattern(number as u64, heard.payload.len()));
    }
}

#[tokio::test]
async fn a_full_queue_is_an_error_and_room_comes_back() {
    let mut config = crate::support::config(1);
    config.limits.queue_bytes_max = 1_000_000;
    let mut slow = crate::support::config(2);
    slow.limits.events_max = 1;
    slow.limits.reassembly_bytes_max = 500_000;
    let (mut a, mut b) = (crate::support::bind(config).await, crate::support::bind(slow).await);
    a.dial(&b).await;
    b.expect_connected(a.id()).await;
    // The other takes nothing: transport buffers of some megabytes fill, then the queue, then there is no room.
    let mut taken = 0_usize;
    let full = loop {
        match a.net.send(b.id(), frame(b"x", pattern(1, 400_000))) {
            Ok(()) => taken += 1,
            Err(SendError::Full { .. }) if a.net.counters().peers[&b.id()].sent.udp_bytes < 4_000_000 => {
                // The writers still move it into the transport.
                tokio::task::yield_now().await;
            }
            Err(error) => break error,
        }
        assert!(taken < 500, "200 MB were taken from an owner whose peer takes nothing");
    };
    let SendError::Full { peer, queued_bytes, got, .. } = full else { panic!("{full}") };
    assert_eq!((peer, got), (b.id(), 400_001));
    assert!((600_000..=1_000_000).contains(&queued_bytes), "{full}");
    let waiting = a.net.clone();
    let to = b.id();
    let sender =
        tokio::spawn(async move { waiting.send_waiting(to, frame(b"last", vec![]), Urgency::Work).await });
    let mut heard = 0;
    while heard < taken + 1 {
        b.expect_frame().await;
        heard += 1;
    }
    sender.await.expect("no panic").expect("room came");
}

#[tokio::test]
async fn last_words_arrive_before_the_farewell() {
    let (a, mut b) = pair().await;
    let last = frame(b"last", pattern(5, 3_000_000));
    a.net.send(b.id(), last.clone()).expect("room");
    a.net.send(b.id(), frame(b"finish", Vec::new())).expect("room");
    a.net.close().await;
    let mut heard = [b.expect_frame().await.1, b.expect_frame().await.1];
    heard.sort_by_key(|frame| frame.payload.len());
    assert!(heard[0].header == "finish" && heard[1] == last);
    let event = b.next().await;
    let NetEvent::Lost { peer, reason: LostReason::Closed } = event else {
        panic!("expected a farewell, got {event:?}")
    };
    assert_eq!(peer, a.id());
    assert_eq!(b.net.send(a.id(), frame(b"x", vec![])), Err(SendError::NotConnected { peer: a.id() }));
    assert_eq!(a.net.send(b.id(), frame(b"x", vec![])), Err(SendError::NotConnected { peer: b.id() }));
}

/// An owner in the middle of something takes what came before a farewell when it comes back.
#[tokio::test]
async fn last_words_wait_for_a_slow_owner() {
    let mut slow = crate::support::config(2);
    slow.limits.events_max = 1;
    let (mut a, mut b) = (crate::support::member(1).await, crate::support::bind(slow).await);
    a.dial(&b).await;
    b.expect_connected(a.id()).await;
    for number in 0..100_u8 {
        let payload = if number % 10 == 0 { pattern(1, 200_000) } else { Vec::new() };
        a.net.send(b.id(), frame(&[number], payload)).expect("room");
    }
    a.net.close().await;
    let mut numbers = Vec::new();
    for _ in 0..100 {
        numbers.push(b.expect_frame().await.1.header[0]);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    assert!(matches!(b.next().await, NetEvent::Lost { reason: LostReason::Closed, .. }));
}

#[tokio::test]
async fn what_no_peer_accepts_is_not_taken() {
    let (a, b) = pair().await;
    let sent = a.net.send(b.id(), frame(&vec![0; HEADER_BYTES_MAX + 1], Vec::new()));
    assert!(matches!(sent, Err(SendError::TooLarge { part: "header", .. })), "{sent:?}");
    let sent = a.net.send(b.id(), frame(b"x", vec![0; PAYLOAD_BYTES_MAX + 1]));
    assert!(matches!(sent, Err(SendError::TooLarge { part: "payload", .. })), "{sent:?}");
}

/// Our framing is far below 1 %; what QUIC itself adds to packets of 1,452 bytes is about 2.5 %, and is checked as such.
#[tokio::test]
async fn the_wire_carries_little_beside_payload() {
    let (a, mut b) = pair().await;
    for (size, framing_max, quic_max) in [(100_000, 0.003, 0.06), (2_200_000, 0.001, 0.04)] {
        let before = a.net.counters().peers[&b.id()].sent;
        let frames = 4_000_000 / size;
        for _ in 0..frames {
            a.net.send(b.id(), frame(&[1; 40], vec![7; size])).expect("room");
            b.expect_frame().await;
        }
        let after = a.net.counters().peers[&b.id()].sent;
        let payload = after.payload_bytes - before.payload_bytes;
        assert_eq!(payload, (frames * size) as u64);
        assert_eq!(after.messages - before.messages, frames as u64);
        let ours = (after.header_bytes + after.framing_bytes) - (before.header_bytes + before.framing_bytes);
        let share = |bytes: u64| bytes as f64 / payload as f64;
        assert!(share(ours) < framing_max, "{size}: our share is {}", share(ours));
        let udp = share(after.udp_bytes - before.udp_bytes) - 1.0;
        assert!((0.0..quic_max).contains(&udp), "{size}: UDP payloads carry {udp} beyond payload");
    }
    let received = b.net.counters().peers[&a.id()].received;
    let sent = a.net.counters().peers[&b.id()].sent;
    assert_eq!((received.payload_bytes, received.framing_bytes), (sent.payload_bytes, sent.framing_bytes));
    assert!(a.net.round_trip(b.id()).is_some_and(|rtt| rtt < Duration::from_secs(1)));
}
