//! Who is connected, who is being dialled, who is in a handshake: the table that all tasks share.
//!
//! Owns the table and the rule that keeps one connection between two peers. Opens and closes no connection itself.
//!
//! When two peers dial each other at once, the dial of the one with the lower key is kept. A peer that dials while we
//! hold a connection that it made has lost that one; a peer of another incarnation was started anew. Both are let in,
//! and take the place of the old connection.

use crate::config::{CROSSING_AGE_MAX, Limits, Membership};
use crate::counters::{Counters, Totals};
use crate::event::NetEvent;
use crate::greeting::Incarnation;
use crate::session::{Dialler, Session};
use iroh::Endpoint;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Instant;
use tokio::sync::{mpsc, watch};
use trestle_protocol::ids::PeerId;

/// Peers that are remembered for their counts, as a multiple of those that may be connected.
const REMEMBERED_FACTOR: usize = 4;

/// What all tasks of one bound peer share.
#[derive(Debug)]
pub(crate) struct Switchboard {
    pub(crate) id: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) endpoint: Endpoint,
    pub(crate) limits: Limits,
    pub(crate) events: mpsc::Sender<NetEvent>,
    pub(crate) membership: RwLock<Membership>,
    pub(crate) closing: watch::Sender<Phase>,
    pub(crate) refused: AtomicU64,
    peers: Mutex<BTreeMap<PeerId, Entry>>,
}

/// Whether this peer still dials and accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    Closing,
}

#[derive(Debug)]
struct Entry {
    session: Option<Arc<Session>>,
    dialling: usize,
    /// When the dial that is under way began.
    dialling_since: Instant,
    accepting: usize,
    totals: Arc<Totals>,
    /// Changes whenever a connection or an attempt begins or ends.
    changed: watch::Sender<()>,
}

/// An attempt at a connection; it counts as under way until it is dropped.
#[derive(Debug)]
pub(crate) struct Attempt {
    board: Arc<Switchboard>,
    peer: PeerId,
    dialler: Dialler,
}

/// What a dial finds.
#[derive(Debug)]
pub(crate) enum DialStart {
    /// There is a connection.
    Connected,
    /// Another attempt, or the end of the last connection, is under way: its end is a change.
    UnderWay(watch::Receiver<()>),
    /// Dial; the receiver tells of other attempts meanwhile.
    Go(Attempt, watch::Receiver<()>),
}

/// What a peer that says hello finds.
#[derive(Debug)]
pub(crate) enum AcceptStart {
    /// Answer it.
    Go(Attempt),
    /// Our own dial is kept.
    Crossed,
    /// There are too many.
    Crowded { connected: usize },
}

impl Switchboard {
    pub(crate) fn new(
        endpoint: Endpoint,
        incarnation: Incarnation,
        (limits, membership): (Limits, Membership),
        events: mpsc::Sender<NetEvent>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: PeerId(*endpoint.id().as_bytes()),
            incarnation,
            endpoint,
            limits,
            events,
            membership: RwLock::new(membership),
            closing: watch::Sender::new(Phase::Open),
            refused: AtomicU64::new(0),
            peers: Mutex::new(BTreeMap::new()),
        })
    }

    /// Begins a dial, unless there is a connection or something that becomes one.
    pub(crate) fn begin_dial(self: &Arc<Self>, peer: PeerId) -> DialStart {
        let mut peers = self.lock();
        let entry = peers.entry(peer).or_insert_with(Entry::new);
        let changes = entry.changed.subscribe();
        match &entry.session {
            Some(session) if !session.is_over() => return DialStart::Connected,
            Some(_) => return DialStart::UnderWay(changes),
            None if entry.dialling + entry.accepting > 0 => return DialStart::UnderWay(changes),
            None => {}
        }
        entry.dialling += 1;
        entry.dialling_since = Instant::now();
        DialStart::Go(Attempt { board: Arc::clone(self), peer, dialler: Dialler::Us }, changes)
    }

    /// Begins to answer a peer that said hello, unless our own connection to it is kept.
    pub(crate) fn begin_accept(self: &Arc<Self>, peer: PeerId, incarnation: Incarnation) -> AcceptStart {
        let mut peers = self.lock();
        let connected = peers.values().filter(|e| e.session.is_some() || e.accepting > 0).count();
        if peers.len() > self.limits.peers_max * REMEMBERED_FACTOR {
            peers.retain(|_, entry| entry.is_busy());
        }
        let entry = peers.entry(peer).or_insert_with(Entry::new);
        match &entry.session {
            Some(session) if session.is_over() => {}
            Some(session) if session.dialler == Dialler::Us && session.incarnation == incarnation => {
                if is_young(session.since) {
                    return AcceptStart::Crossed;
                }
            }
            None if entry.dialling > 0 && self.id < peer && is_young(entry.dialling_since) => {
                return AcceptStart::Crossed;
            }
            None if connected >= self.limits.peers_max => return AcceptStart::Crowded { connected },
            Some(_) | None => {}
        }
        entry.accepting += 1;
        AcceptStart::Go(Attempt { board: Arc::clone(self), peer, dialler: Dialler::Them })
    }

    /// Puts a session in its place, and returns the one that had it.
    pub(crate) fn install(&self, session: &Arc<Session>) -> Option<Arc<Session>> {
        let mut peers = self.lock();
        let entry = peers.entry(session.peer).or_insert_with(Entry::new);
        let old = entry.session.replace(Arc::clone(session));
        entry.changed.send_replace(());
        old
    }

    /// Takes an ended session out, and keeps its counts.
    pub(crate) fn remove(&self, session: &Arc<Session>) -> Removed {
        let mut peers = self.lock();
        session.totals.end(session.udp());
        let Some(entry) = peers.get_mut(&session.peer) else { return Removed::Replaced };
        if entry.session.as_ref().is_none_or(|current| !Arc::ptr_eq(current, session)) {
            return Removed::Replaced;
        }
        entry.session = None;
        entry.changed.send_replace(());
        Removed::Current
    }

    /// Returns the connection to a peer.
    pub(crate) fn session(&self, peer: PeerId) -> Option<Arc<Session>> {
        self.lock().get(&peer)?.session.clone()
    }

    /// Returns all connections that are up.
    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().values().filter_map(|entry| entry.session.clone()).filter(|s| !s.is_over()).collect()
    }

    /// Returns a peer's counts, which outlive its connections.
    pub(crate) fn totals(&self, peer: PeerId) -> Arc<Totals> {
        Arc::clone(&self.lock().entry(peer).or_insert_with(Entry::new).totals)
    }

    /// Tells of changes in the connection to a peer from now on; with what there is now.
    pub(crate) fn watch(&self, peer: PeerId) -> (Option<Arc<Session>>, watch::Receiver<()>) {
        let mut peers = self.lock();
        let entry = peers.entry(peer).or_insert_with(Entry::new);
        (entry.session.clone(), entry.changed.subscribe())
    }

    /// Sums up what crossed the sockets.
    pub(crate) fn counters(&self) -> Counters {
        let peers = self.lock();
        let peers = peers.iter().filter_map(|(&peer, entry)| {
            let counts = entry.totals.read(entry.session.as_ref().map(|session| session.udp()));
            (counts.connections > 0).then_some((peer, counts))
        });
        Counters { peers: peers.collect(), refused: self.refused.load(Ordering::Relaxed) }
    }

    /// Returns whether this peer is closing.
    pub(crate) fn phase(&self) -> Phase {
        *self.closing.borrow()
    }

    /// Waits until this peer closes.
    pub(crate) async fn closed(&self) {
        let mut closing = self.closing.subscribe();
        // The sender is ours, so it outlives the wait.
        let _ = closing.wait_for(|phase| *phase == Phase::Closing).await;
    }

    /// Tells the owner of an event; waits while it has too many.
    pub(crate) async fn tell(&self, event: NetEvent) {
        // Without a receiver there is no owner left to tell.
        let _ = self.events.send(event).await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PeerId, Entry>> {
        self.peers.lock().expect("no holder panics")
    }
}

/// Whether an ended session was still the one connection to its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removed {
    Current,
    Replaced,
}

impl Entry {
    fn new() -> Self {
        Self {
            session: None,
            dialling: 0,
            dialling_since: Instant::now(),
            accepting: 0,
            totals: Arc::new(Totals::default()),
            changed: watch::Sender::new(()),
        }
    }

    fn is_busy(&self) -> bool {
        self.session.is_some() || self.dialling + self.accepting > 0
    }
}

fn is_young(since: Instant) -> bool {
    since.elapsed() < CROSSING_AGE_MAX
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut peers = self.board.lock();
        // An entry with an attempt is never forgotten.
        let Some(entry) = peers.get_mut(&self.peer) else { return };
        match self.dialler {
            Dialler::Us => entry.dialling -= 1,
            Dialler::Them => entry.accepting -= 1,
        }
        entry.changed.send_replace(());
    }
}
