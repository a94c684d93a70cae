//! One connection to one peer, from its handshake to its end.
//!
//! Owns the tasks that write and read its streams. Knows nothing of other connections, nor of what follows its end.

use crate::cable::{self, Close, End};
use crate::config::Limits;
use crate::control;
use crate::counters::{Totals, Udp};
use crate::framing::Fault;
use crate::greeting::Incarnation;
use crate::inbox::Inbox;
use crate::lane::{self, ACTIVATION_LANES, BULK_LANES, CONTROL_PRIORITY, LaneKind, OpenError};
use crate::outbox::Outbox;
use crate::writer::{self, SharedQueue};
use iroh::endpoint::{Connection, RecvStream, SendStream, WriteError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::{JoinError, JoinSet};
use trestle_protocol::ids::PeerId;

/// Longest wait for the owner to take what arrived before a farewell: it may be in the middle of a step.
const FAREWELL_DRAIN_MAX: Duration = Duration::from_secs(30);

/// Longest wait for what arrived before a break: it delays the redial.
const BREAK_DRAIN_MAX: Duration = Duration::from_millis(100);

/// Who made a connection; it is who makes it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialler {
    Us,
    Them,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) peer: PeerId,
    pub(crate) connection: Connection,
    pub(crate) control: (SendStream, RecvStream),
    pub(crate) incarnation: Incarnation,
    pub(crate) dialler: Dialler,
}

/// One connection to one peer.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) peer: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) dialler: Dialler,
    pub(crate) since: Instant,
    pub(crate) outbox: Outbox,
    pub(crate) totals: Arc<Totals>,
    pub(crate) connection: Connection,
    writers: Mutex<JoinSet<()>>,
    /// Closed when the last frame was delivered and all tasks have ended.
    finished: Semaphore,
}

/// The control stream's reading side, until someone reads it.
#[derive(Debug)]
pub(crate) struct Unread(RecvStream);

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    Connection(End),
    Misbehaved(Fault),
}

impl Session {
    /// Opens the lanes and starts to write. Nothing is read before [`Session::read`].
    pub(crate) async fn start(
        greeted: Greeted,
        totals: Arc<Totals>,
        limits: &Limits,
    ) -> Result<(Self, Unread), OpenError> {
        let Greeted { peer, connection, control, incarnation, dialler } = greeted;
        let (control, unread) = control;
        control.set_priority(CONTROL_PRIORITY).map_err(|_| WriteError::ClosedStream)?;
        let activation = lane::open(&connection, LaneKind::Activation).await?;
        let bulk = lane::open(&connection, LaneKind::Bulk).await?;
        let lanes = (ACTIVATION_LANES, BULK_LANES);
        let (outbox, queues) = Outbox::new(lanes, limits.queue_bytes_max, limits.queue_messages_max);
        let mut writers = JoinSet::new();
        spawn_writers(&mut writers, vec![control], queues.control);
        spawn_writers(&mut writers, activation, queues.activation);
        spawn_writers(&mut writers, bulk, queues.bulk);
        let writers = Mutex::new(writers);
        let finished = Semaphore::new(0);
        let since = Instant::now();
        let session =
            Self { peer, incarnation, dialler, since, outbox, totals, connection, writers, finished };
        Ok((session, Unread(unread)))
    }

    /// Reads until the connection ends, and says how it did. What arrived before its end is delivered.
    pub(crate) async fn read(&self, unread: Unread, inbox: Inbox, limits: &Limits) -> SessionEnd {
        let mut readers = JoinSet::new();
        readers.spawn(control::receive(unread.0, inbox.clone()));
        readers.spawn(lane::receive_all(self.connection.clone(), inbox, limits.clone()));
        let end = loop {
            tokio::select! {
                Some(ended) = readers.join_next() => {
                    if let Some(end) = self.judge(ended) {
                        break end;
                    }
                }
                error = self.connection.closed() => break SessionEnd::Connection(cable::end_of(&error)),
            }
        };
        self.outbox.shut();
        let drain_max = match &end {
            SessionEnd::Connection(End::Theirs { close: Close::Farewell, .. }) => FAREWELL_DRAIN_MAX,
            SessionEnd::Connection(End::Theirs { .. } | End::Silent | End::Transport { .. }) => {
                BREAK_DRAIN_MAX
            }
            SessionEnd::Connection(End::Ours) | SessionEnd::Misbehaved(_) => Duration::ZERO,
        };
        let drained = tokio::time::timeout(drain_max, async { while readers.join_next().await.is_some() {} });
        // Whether or not all was taken in time, the connection is gone.
        let _ = drained.await;
        readers.shutdown().await;
        self.writers.lock().await.shutdown().await;
        self.finished.close();
        end
    }

    /// Returns whether the connection has ended; what arrived before may still be on its way to the owner.
    pub(crate) fn is_over(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Waits until nothing more comes of this session.
    pub(crate) async fn finished(&self) {
        // There are no permits: the wait ends when the semaphore is closed.
        let _ = self.finished.acquire().await;
    }

    /// Sends what waits, lets the peer acknowledge it for at most `wait_max`, and closes the connection.
    pub(crate) async fn farewell(&self, wait_max: Duration) {
        self.outbox.end();
        let mut writers = self.writers.lock().await;
        let written = tokio::time::timeout(wait_max, async { while writers.join_next().await.is_some() {} });
        if written.await.is_err() {
            tracing::warn!(peer = %self.peer, "closed before all that waited was acknowledged");
        }
        drop(writers);
        cable::close(&self.connection, Close::Farewell, "farewell");
    }

    /// Returns the connection's UDP counts.
    pub(crate) fn udp(&self) -> Udp {
        let stats = self.connection.stats();
        Udp {
            sent: (stats.udp_tx.bytes, stats.udp_tx.datagrams),
            received: (stats.udp_rx.bytes, stats.udp_rx.datagrams),
        }
    }

    /// Closes the connection when a reader found a fault, or failed itself.
    fn judge(&self, ended: Result<Result<(), Fault>, JoinError>) -> Option<SessionEnd> {
        match ended {
            Ok(Ok(())) => None,
            Ok(Err(fault)) => {
                cable::close(&self.connection, Close::Misbehaved, &fault.to_string());
                Some(SessionEnd::Misbehaved(fault))
            }
            Err(error) => {
                cable::close(&self.connection, Close::Replaced, "internal error");
                tracing::error!(peer = %self.peer, %error, "a reader failed");
                let detail = "a reader of ours failed".to_owned();
                Some(SessionEnd::Connection(End::Transport { detail }))
            }
        }
    }
}

fn spawn_writers(
    writers: &mut JoinSet<()>,
    streams: Vec<SendStream>,
    queue: UnboundedReceiver<crate::outbox::Outgoing>,
) {
    let queue: SharedQueue = Arc::new(Mutex::new(queue));
    for stream in streams {
        writers.spawn(writer::write(stream, Arc::clone(&queue)));
    }
}
