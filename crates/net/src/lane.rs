//! Lanes: streams kept open for the life of a connection, over which large frames are striped.
//!
//! Owns how many there are, how urgent each is, and the way from a lane to the inbox. One stream carries about
//! 215 Mbit/s over 40 ms, because its window is 1.25 MB; eight carry a gigabit. Knows nothing of what frames say.

use crate::config::Limits;
use crate::framing::{Fault, PIECE_HEAD_BYTES, PieceHead};
use crate::inbox::Inbox;
use crate::reassembly::{Claim, Reassembly};
use crate::stream::{ReadEnd, read_room, read_word};
use bytes::{Bytes, BytesMut};
use iroh::endpoint::{Connection, ConnectionError, RecvStream, SendStream, WriteError};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};

/// Lanes for activations and gradients, each way.
pub(crate) const ACTIVATION_LANES: usize = 8;

/// Lanes for bulk, each way: behind everything else, so fewer suffice.
pub(crate) const BULK_LANES: usize = 4;

/// All lanes of one direction; the transport lets a peer open no more.
pub(crate) const LANES: u32 = 12;

/// Priorities in the transport: higher ones are sent first.
pub(crate) const CONTROL_PRIORITY: i32 = 2;

/// What a lane is for; its first byte says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneKind {
    Activation,
    Bulk,
}

/// One kind's half-received frames, and the lanes that wait for room among them.
#[derive(Debug)]
struct Depot {
    reassembly: Mutex<Reassembly>,
    retired: Notify,
}

impl LaneKind {
    fn byte(self) -> u8 {
        match self {
            LaneKind::Activation => 0,
            LaneKind::Bulk => 1,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, Fault> {
        match byte {
            0 => Ok(LaneKind::Activation),
            1 => Ok(LaneKind::Bulk),
            got => Err(Fault::LaneKind { got }),
        }
    }

    fn lanes(self) -> usize {
        match self {
            LaneKind::Activation => ACTIVATION_LANES,
            LaneKind::Bulk => BULK_LANES,
        }
    }

    fn priority(self) -> i32 {
        match self {
            LaneKind::Activation => CONTROL_PRIORITY - 1,
            LaneKind::Bulk => CONTROL_PRIORITY - 2,
        }
    }
}

/// Why a lane could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0}")]
    Connection(#[from] ConnectionError),
    #[error("{0}")]
    Write(#[from] WriteError),
}

/// Opens the lanes of one kind.
pub(crate) async fn open(connection: &Connection, kind: LaneKind) -> Result<Vec<SendStream>, OpenError> {
    let mut lanes = Vec::with_capacity(kind.lanes());
    for _ in 0..kind.lanes() {
        let mut lane = connection.open_uni().await?;
        lane.set_priority(kind.priority()).map_err(|_| WriteError::ClosedStream)?;
        lane.write_all(&[kind.byte()]).await?;
        lanes.push(lane);
    }
    Ok(lanes)
}

/// Takes the peer's lanes as they open, and reads them until the connection ends or the peer breaks the rules.
pub(crate) async fn receive_all(connection: Connection, inbox: Inbox, limits: Limits) -> Result<(), Fault> {
    let activation = Depot::new(&limits);
    let bulk = Depot::new(&limits);
    let lanes_open = Arc::new(Mutex::new([0_usize; 2]));
    let mut lanes = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_uni() => match accepted {
                Ok(stream) => {
                    let depots = [Arc::clone(&activation), Arc::clone(&bulk)];
                    lanes.spawn(receive_lane(stream, depots, Arc::clone(&lanes_open), inbox.clone()));
                }
                Err(_) => break,
            },
            Some(ended) = lanes.join_next() => outcome(ended)?,
        }
    }
    // The connection is closed; lanes still hold what had arrived before.
    while let Some(ended) = lanes.join_next().await {
        outcome(ended)?;
    }
    Ok(())
}

/// Passes a lane's panic on: it is a bug of ours, and ends the connection.
fn outcome(ended: Result<Result<(), Fault>, JoinError>) -> Result<(), Fault> {
    match ended {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Ok(()),
    }
}

async fn receive_lane(
    mut stream: RecvStream,
    [activation, bulk]: [Arc<Depot>; 2],
    lanes_open: Arc<Mutex<[usize; 2]>>,
    inbox: Inbox,
) -> Result<(), Fault> {
    let ended = async {
        let [byte] = read_word(&mut stream).await?;
        let kind = LaneKind::from_byte(byte)?;
        let open = {
            let mut lanes_open = lanes_open.lock().expect("no holder panics");
            lanes_open[usize::from(byte)] += 1;
            lanes_open[usize::from(byte)]
        };
        if open > kind.lanes() {
            return Err(ReadEnd::Fault(Fault::Lanes { max: kind.lanes() }));
        }
        let depot = match kind {
            LaneKind::Activation => activation,
            LaneKind::Bulk => bulk,
        };
        loop {
            receive_piece(&mut stream, &depot, &inbox).await?;
        }
    };
    match ended.await {
        Ok(never) => never,
        Err(ReadEnd::Ended) => Ok(()),
        Err(ReadEnd::Fault(fault)) => Err(fault),
    }
}

async fn receive_piece(stream: &mut RecvStream, depot: &Depot, inbox: &Inbox) -> Result<(), ReadEnd> {
    let head = PieceHead::from_bytes(read_word::<PIECE_HEAD_BYTES>(stream).await?)?;
    let room = depot.claim(&head).await?;
    let header = if head.header_bytes > 0 {
        let header = BytesMut::with_capacity(head.header_bytes);
        read_room(stream, header, head.header_bytes).await?.freeze()
    } else {
        Bytes::new()
    };
    let piece = read_room(stream, room, head.bytes()).await?;
    let whole = depot.lock().fill(&head, header, piece);
    if let Some(whole) = whole {
        inbox.deliver(whole.frame, whole.pieces * PIECE_HEAD_BYTES).await;
        depot.lock().retire(head.frame);
        depot.retired.notify_waiters();
    }
    Ok(())
}

impl Depot {
    fn new(limits: &Limits) -> Arc<Self> {
        let reassembly = Reassembly::new(limits.reassembly_bytes_max, limits.reassembly_messages_max);
        Arc::new(Self { reassembly: Mutex::new(reassembly), retired: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Reassembly> {
        self.reassembly.lock().expect("no holder panics")
    }

    async fn claim(&self, head: &PieceHead) -> Result<BytesMut, Fault> {
        loop {
            let retired = self.retired.notified();
            tokio::pin!(retired);
            // Listening begins before asking, so that no retirement is missed between the two.
            retired.as_mut().enable();
            let claim = self.lock().claim(head)?;
            match claim {
                Claim::Granted(room) => return Ok(room),
                Claim::Wait => retired.await,
            }
        }
    }
}
