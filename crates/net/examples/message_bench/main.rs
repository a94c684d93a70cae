//! Measures a message one way and a small acknowledgement back over loopback: this crate beside bare iroh with the same
//! settings, striped by hand over as many streams, in turns within one run. Prints one JSON object.
//!
//! `cargo run --release -p trestle-net --example message_bench [-- PAYLOAD_BYTES [ROUNDS]]`

mod bare;
#[path = "../../tests/net/sample.rs"]
mod sample;
mod setting;

use bare::Bare;
use bytes::Bytes;
use setting::{ACK_BYTES, LOOPBACK, STREAMS};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use trestle_net::{Flow, Membership, Net, NetConfig, NetEvent};
use trestle_protocol::ids::PeerId;
use trestle_protocol::wire::Frame;

/// Bytes of a message's header: about those of an activation.
const HEADER_BYTES: usize = 48;

/// Rounds that are not measured: congestion control and MTU discovery settle.
const WARM_UP_ROUNDS: usize = 20;

/// Two of this crate's peers; the second acknowledges what it hears.
struct Ours {
    net: Net,
    events: mpsc::Receiver<NetEvent>,
    to: PeerId,
}

impl Ours {
    async fn connect() -> Self {
        let (net, mut events) = bind(1).await;
        let (other, mut other_events) = bind(2).await;
        let (to, address) = (other.id(), other.address().clone());
        tokio::spawn(async move {
            while let Some(event) = other_events.recv().await {
                if let NetEvent::Received { from, .. } = event {
                    let ack = Frame { header: vec![0; ACK_BYTES].into(), payload: Bytes::new() };
                    other.send(from, ack).expect("room for an acknowledgement");
                }
            }
        });
        net.dial(to, &address).await.expect("both are of one run");
        let connected = events.recv().await;
        assert!(matches!(connected, Some(NetEvent::Connected { .. })), "{connected:?}");
        Self { net, events, to }
    }

    async fn round(&mut self, payload: &Bytes) -> Duration {
        let start = Instant::now();
        let frame = Frame { header: vec![0; HEADER_BYTES].into(), payload: payload.clone() };
        self.net.send(self.to, frame).expect("room for one message");
        let ack = self.events.recv().await;
        assert!(matches!(ack, Some(NetEvent::Received { .. })), "{ack:?}");
        start.elapsed()
    }

    fn sent(&self) -> Flow {
        self.net.counters().peers[&self.to].sent
    }
}

async fn bind(seed: u8) -> (Net, mpsc::Receiver<NetEvent>) {
    let membership = Membership::Member(Box::new(sample::spec()));
    let config = NetConfig::new([seed; 32], SocketAddr::from(LOOPBACK), membership);
    Net::bind(config).await.expect("loopback has free ports")
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>().expect("a number"));
    let payload_bytes = arguments.next().unwrap_or(2_200_000);
    let rounds = arguments.next().unwrap_or(200).max(50);
    let payload = Bytes::from(vec![7; payload_bytes]);
    let mut ours = Ours::connect().await;
    let mut lanes = Bare::connect(payload_bytes).await;
    let mut streams = Bare::connect(payload_bytes).await;
    let mut times = [const { Vec::new() }; 3];
    let mut before = ours.sent();
    for round in 0..WARM_UP_ROUNDS + rounds {
        if round == WARM_UP_ROUNDS {
            times.iter_mut().for_each(Vec::clear);
            before = ours.sent();
        }
        times[0].push(ours.round(&payload).await);
        times[1].push(lanes.round_over_lanes(&payload).await);
        times[2].push(streams.round_over_new_streams(&payload).await);
    }
    print(payload_bytes, rounds, &mut times, before, ours.sent());
}

fn print(payload_bytes: usize, rounds: usize, times: &mut [Vec<Duration>; 3], before: Flow, after: Flow) {
    let [ours, lanes, streams] = times.each_mut().map(|times| {
        times.sort_unstable();
        [times.len() / 10, times.len() / 2, times.len() * 9 / 10].map(|at| times[at].as_secs_f64() * 1e3)
    });
    let payload = (after.payload_bytes - before.payload_bytes) as f64;
    let share = |bytes: u64| 100.0 * bytes as f64 / payload;
    let framing = after.framing_bytes + after.header_bytes - before.framing_bytes - before.header_bytes;
    let show = |[low, median, high]: [f64; 3]| {
        format!("{{\"p10_ms\": {low:.3}, \"median_ms\": {median:.3}, \"p90_ms\": {high:.3}}}")
    };
    println!("{{");
    println!("  \"payload_bytes\": {payload_bytes}, \"streams\": {STREAMS}, \"rounds\": {rounds},");
    println!("  \"trestle_net\": {},", show(ours));
    println!("  \"bare_iroh_kept_streams\": {},", show(lanes));
    println!("  \"bare_iroh_new_streams\": {},", show(streams));
    println!("  \"ratio_to_kept_streams\": {:.3},", ours[1] / lanes[1]);
    println!("  \"ratio_to_new_streams\": {:.3},", ours[1] / streams[1]);
    println!("  \"header_and_framing_percent\": {:.3},", share(framing));
    println!("  \"udp_beyond_payload_percent\": {:.3},", share(after.udp_bytes - before.udp_bytes) - 100.0);
    let datagrams = (after.udp_datagrams - before.udp_datagrams) * 28;
    println!("  \"udp_and_ipv4_heads_percent\": {:.3}", share(datagrams));
    println!("}}");
}
