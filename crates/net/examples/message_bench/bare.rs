//! The yardstick: two bare iroh endpoints, and messages striped by hand.

use crate::setting::{ACK_BYTES, LOOPBACK, STREAMS};
use bytes::Bytes;
use iroh::endpoint::{
    Connection, PortmapperConfig, QuicTransportConfig, RecvStream, RelayMode, SendStream, presets,
};
use iroh::{Endpoint, EndpointAddr, TransportAddr};
use noq_proto::congestion::Bbr3Config;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const ALPN: &[u8] = b"bare";

/// First byte of a stream that is kept, and of one that carries a piece and ends.
const KEPT: u8 = 1;
const ONCE: u8 = 2;

/// The sending side; the other acknowledges each message that is complete.
pub(crate) struct Bare {
    _endpoint: Endpoint,
    connection: Connection,
    lanes: Vec<mpsc::UnboundedSender<Bytes>>,
    control: (SendStream, RecvStream),
}

impl Bare {
    pub(crate) async fn connect(payload_bytes: usize) -> Self {
        let (endpoint, other) = (bind().await, bind().await);
        let sockets = other.bound_sockets().into_iter().map(TransportAddr::Ip);
        let address = EndpointAddr::from_parts(other.id(), sockets);
        tokio::spawn(acknowledge(other, payload_bytes));
        let connection = endpoint.connect(address, ALPN).await.expect("it listens");
        let mut control = connection.open_bi().await.expect("a stream");
        control.0.write_all(&[KEPT]).await.expect("connected");
        let mut lanes = Vec::new();
        for _ in 0..STREAMS {
            let mut stream = connection.open_uni().await.expect("a stream");
            stream.write_all(&[KEPT]).await.expect("connected");
            let (lane, mut pieces) = mpsc::unbounded_channel();
            tokio::spawn(async move {
                while let Some(piece) = pieces.recv().await {
                    stream.write_chunk(piece).await.expect("connected");
                }
            });
            lanes.push(lane);
        }
        Self { _endpoint: endpoint, connection, lanes, control }
    }

    /// Sends a message over streams that are kept open.
    pub(crate) async fn round_over_lanes(&mut self, payload: &Bytes) -> Duration {
        let start = Instant::now();
        for (lane, piece) in self.lanes.iter().zip(pieces(payload)) {
            lane.send(piece).expect("the lane is open");
        }
        self.acknowledged().await;
        start.elapsed()
    }

    /// Sends a message over streams opened for it alone.
    pub(crate) async fn round_over_new_streams(&mut self, payload: &Bytes) -> Duration {
        let start = Instant::now();
        for piece in pieces(payload) {
            let mut stream = self.connection.open_uni().await.expect("a stream");
            tokio::spawn(async move {
                let mut chunks = [Bytes::from_static(&[ONCE]), piece];
                stream.write_all_chunks(&mut chunks).await.expect("connected");
                stream.finish().expect("open");
            });
        }
        self.acknowledged().await;
        start.elapsed()
    }

    async fn acknowledged(&mut self) {
        let mut ack = [0; ACK_BYTES];
        self.control.1.read_exact(&mut ack).await.expect("connected");
    }
}

fn pieces(payload: &Bytes) -> impl Iterator<Item = Bytes> {
    let piece_bytes = payload.len().div_ceil(STREAMS);
    (0..STREAMS).map(move |piece| {
        let start = (piece * piece_bytes).min(payload.len());
        payload.slice(start..(start + piece_bytes).min(payload.len()))
    })
}

/// Reads pieces on all streams, and answers when there are as many as a message has.
async fn acknowledge(endpoint: Endpoint, payload_bytes: usize) {
    let incoming = endpoint.accept().await.expect("one comes");
    let connection = incoming.await.expect("it speaks our protocol");
    let (mut control, mut heard) = connection.accept_bi().await.expect("a stream");
    heard.read_exact(&mut [0]).await.expect("connected");
    let (done, mut pieces_done) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut readers = JoinSet::new();
        let mut kept = 0;
        while let Ok(mut stream) = connection.accept_uni().await {
            let mut kind = [0];
            stream.read_exact(&mut kind).await.expect("connected");
            let piece_bytes = payload_bytes.div_ceil(STREAMS);
            let start = (kept % STREAMS * piece_bytes).min(payload_bytes);
            let lane_bytes = piece_bytes.min(payload_bytes - start);
            if kind == [KEPT] {
                kept += 1;
                readers.spawn(read_kept(stream, lane_bytes, done.clone()));
            } else {
                readers.spawn(read_once(stream, piece_bytes, done.clone()));
            }
        }
    });
    let mut pieces = 0;
    while pieces_done.recv().await.is_some() {
        pieces += 1;
        if pieces % STREAMS == 0 && control.write_all(&[0; ACK_BYTES]).await.is_err() {
            return;
        }
    }
}

async fn read_kept(mut stream: RecvStream, piece_bytes: usize, done: mpsc::UnboundedSender<Vec<u8>>) {
    loop {
        let mut piece = vec![0; piece_bytes];
        if stream.read_exact(&mut piece).await.is_err() || done.send(piece).is_err() {
            return;
        }
    }
}

async fn read_once(mut stream: RecvStream, piece_bytes: usize, done: mpsc::UnboundedSender<Vec<u8>>) {
    let piece = stream.read_to_end(piece_bytes).await.expect("connected");
    // Without a listener the run is over.
    let _ = done.send(piece);
}

async fn bind() -> Endpoint {
    let transport =
        QuicTransportConfig::builder().congestion_controller_factory(Arc::new(Bbr3Config::default())).build();
    let builder = Endpoint::builder(presets::Minimal)
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(RelayMode::Disabled)
        .portmapper_config(PortmapperConfig::Disabled)
        .transport_config(transport)
        .clear_ip_transports()
        .bind_addr(SocketAddr::from(LOOPBACK))
        .expect("a socket address");
    builder.bind().await.expect("loopback has free ports")
}
