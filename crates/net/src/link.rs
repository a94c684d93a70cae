//! Makes connections, watches over them, and makes them again when they break.
//!
//! Owns dialling and redialling. Knows nothing of what is sent.

use crate::address::Address;
use crate::cable::{self, ALPN, Close, End};
use crate::config::Membership;
use crate::error::DialError;
use crate::event::{BreakReason, LostReason, NetEvent};
use crate::greeting::{self, GreetingError, Incarnation, Reply, mirrored};
use crate::inbox::Inbox;
use crate::lane::OpenError;
use crate::session::{Dialler, Greeted, Session, SessionEnd, Unread};
use crate::switchboard::{Attempt, DialStart, Phase, Removed, Switchboard};
use iroh::endpoint::{Connection, RecvStream, SendStream};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};
use trestle_protocol::handshake::{self, Hello, Mismatch, Welcome};
use trestle_protocol::ids::PeerId;
use trestle_protocol::spec::RunSpec;

/// Wait for the dial that was kept, before dialling again.
const CROSSED_WAIT: Duration = Duration::from_millis(100);

/// Handshakes' worth of time that a dial may take in all, when it crosses another.
const DIAL_HANDSHAKES_MAX: u32 = 2;

/// How one try to dial ended.
enum Dialled {
    Connected,
    Crossed,
}

/// Connects to a peer, unless it is connected.
pub(crate) async fn dial(board: &Arc<Switchboard>, peer: PeerId, address: &Address) -> Result<(), DialError> {
    if peer == board.id {
        return Err(DialError::Myself { peer });
    }
    let wait = board.limits.handshake_wait_max * DIAL_HANDSHAKES_MAX;
    let deadline = Instant::now() + wait;
    loop {
        if board.phase() == Phase::Closing {
            return Err(DialError::Closed);
        }
        match board.begin_dial(peer) {
            DialStart::Connected => return Ok(()),
            DialStart::UnderWay(mut changes) => {
                if timeout_at(deadline, changes.changed()).await.is_err() {
                    return Err(DialError::TimedOut { peer, address: address.clone(), wait });
                }
            }
            DialStart::Go(attempt, mut changes) => match dial_once(board, peer, address, attempt).await? {
                Dialled::Connected => return Ok(()),
                Dialled::Crossed if Instant::now() >= deadline => {
                    return Err(DialError::TimedOut { peer, address: address.clone(), wait });
                }
                Dialled::Crossed => {
                    changes.mark_unchanged();
                    // Whether or not the other dial came through by then, the loop looks again.
                    let _ = timeout(CROSSED_WAIT, changes.changed()).await;
                }
            },
        }
    }
}

/// Puts a greeted connection in its place, and watches over it from now on. Once it is in its place nothing waits, so
/// that a caller who gives up leaves either nothing or a connection that is watched over.
pub(crate) async fn establish(
    board: &Arc<Switchboard>,
    greeted: Greeted,
    address: Option<Address>,
    attempt: Attempt,
) -> Result<(), OpenError> {
    let totals = board.totals(greeted.peer);
    let events = board.events.clone();
    let inbox = Inbox::new(greeted.peer, events, board.limits.reassembly_bytes_max, Arc::clone(&totals));
    let connection = greeted.connection.clone();
    let started = Session::start(greeted, totals, &board.limits).await;
    let (session, unread) = started.inspect_err(|error| {
        cable::close(&connection, Close::Refused, &error.to_string());
    })?;
    let session = Arc::new(session);
    let old = board.install(&session);
    drop(attempt);
    if board.phase() == Phase::Closing {
        cable::close(&connection, Close::Farewell, "closing");
    }
    let watched = Watched { session, unread, inbox, address };
    tokio::spawn(watch_over(Arc::clone(board), watched, old));
    Ok(())
}

/// A session in its place, with all that its end may need.
struct Watched {
    session: Arc<Session>,
    unread: Unread,
    inbox: Inbox,
    /// Where it was dialled, if we dialled it.
    address: Option<Address>,
}

async fn dial_once(
    board: &Arc<Switchboard>,
    peer: PeerId,
    address: &Address,
    attempt: Attempt,
) -> Result<Dialled, DialError> {
    let wait = board.limits.handshake_wait_max;
    let greeted = timeout(wait, greet(board, peer, address));
    let timed_out = || DialError::TimedOut { peer, address: address.clone(), wait };
    let Some(greeted) = greeted.await.map_err(|_| timed_out())?? else { return Ok(Dialled::Crossed) };
    let unreachable = |error: OpenError| DialError::Unreachable {
        peer,
        address: address.clone(),
        reason: cable::words(&error),
    };
    let established = timeout(wait, establish(board, greeted, Some(address.clone()), attempt));
    established.await.map_err(|_| timed_out())?.map_err(unreachable)?;
    Ok(Dialled::Connected)
}

/// Connects and says hello; `None` when the peer keeps its own dial to us.
async fn greet(board: &Switchboard, peer: PeerId, address: &Address) -> Result<Option<Greeted>, DialError> {
    let unreachable = |reason: String| DialError::Unreachable { peer, address: address.clone(), reason };
    let target =
        cable::endpoint_addr(peer, address).ok_or_else(|| unreachable("no such key exists".to_owned()))?;
    let connected = board.endpoint.connect(target, ALPN).await;
    let connection = connected.map_err(|error| unreachable(cable::words(&error)))?;
    let opened = connection.open_bi().await;
    let mut control = opened.map_err(|error| unreachable(error.to_string()))?;
    match converse(board, peer, &mut control).await {
        Ok(Some(incarnation)) => {
            Ok(Some(Greeted { peer, connection, control, incarnation, dialler: Dialler::Us }))
        }
        Ok(None) => {
            cable::close(&connection, Close::Replaced, "crossed");
            Ok(None)
        }
        Err(error) => Err(refuse(&connection, error)),
    }
}

fn refuse(connection: &Connection, error: DialError) -> DialError {
    cable::close(connection, Close::Refused, &error.to_string());
    error
}

async fn converse(
    board: &Switchboard,
    peer: PeerId,
    (send, recv): &mut (SendStream, RecvStream),
) -> Result<Option<Incarnation>, DialError> {
    let malformed = |error: GreetingError| DialError::Malformed { peer, reason: error.to_string() };
    greeting::say(send, &our_hello(board), board.incarnation).await.map_err(malformed)?;
    match greeting::hear_reply(recv).await.map_err(malformed)? {
        Reply::Crossed => Ok(None),
        Reply::Crowded => Err(DialError::Crowded { peer }),
        Reply::Welcome { welcome, incarnation } => match *welcome {
            Welcome::Refused(mismatch) => Err(DialError::Refused { peer, mismatch: mirrored(mismatch) }),
            Welcome::Accepted { spec } => {
                learn(board, spec).map_err(|mismatch| DialError::OtherRun { peer, mismatch })?;
                Ok(Some(incarnation))
            }
        },
    }
}

fn our_hello(board: &Switchboard) -> Hello {
    match &*board.membership.read().expect("no holder panics") {
        Membership::Member(spec) => handshake::hello(spec.digest(), Some(spec)),
        Membership::Candidate { run_digest } => handshake::hello(*run_digest, None),
    }
}

/// Becomes a member, when the spec is the one that was asked for.
fn learn(board: &Switchboard, spec: Option<Box<RunSpec>>) -> Result<(), Mismatch> {
    let mut membership = board.membership.write().expect("no holder panics");
    let asked = match &*membership {
        Membership::Member(_) => return Ok(()),
        Membership::Candidate { run_digest } => *run_digest,
    };
    let spec = spec.ok_or(Mismatch::NoRun)?;
    handshake::accept(asked, &spec)?;
    *membership = Membership::Member(spec);
    Ok(())
}

/// Reads a session to its end, and does what its end asks for. Boxed, because it may dial, and so watch, again.
fn watch_over(
    board: Arc<Switchboard>,
    watched: Watched,
    old: Option<Arc<Session>>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let Watched { session, unread, inbox, address } = watched;
        announce(&board, &session, old).await;
        let end = session.read(unread, inbox, &board.limits).await;
        let removed = board.remove(&session);
        if removed == Removed::Replaced || board.phase() == Phase::Closing {
            return;
        }
        let peer = session.peer;
        tracing::debug!(%peer, ?end, "connection ended");
        match after(end, board.limits.silence_max) {
            After::Lost(reason) => board.tell(NetEvent::Lost { peer, reason }).await,
            After::Interrupted(reason) => {
                let last = reason.to_string();
                board.tell(NetEvent::Interrupted { peer, reason }).await;
                match (session.dialler, address) {
                    (Dialler::Us, Some(address)) => redial(&board, peer, &address, last).await,
                    (Dialler::Us, None) | (Dialler::Them, _) => await_return(&board, peer, last).await,
                }
            }
        }
    })
}

/// Tells the owner of a new connection, after all that came of the one it replaces.
async fn announce(board: &Switchboard, session: &Session, old: Option<Arc<Session>>) {
    let peer = session.peer;
    if let Some(old) = old {
        cable::close(&old.connection, Close::Replaced, "replaced");
        old.finished().await;
        let reason = match old.incarnation == session.incarnation {
            true => BreakReason::Reconnected,
            false => BreakReason::Restarted,
        };
        board.tell(NetEvent::Interrupted { peer, reason }).await;
    }
    board.tell(NetEvent::Connected { peer }).await;
}

/// What follows the end of a session.
enum After {
    Lost(LostReason),
    Interrupted(BreakReason),
}

fn after(end: SessionEnd, silence_max: Duration) -> After {
    match end {
        SessionEnd::Misbehaved(fault) => After::Lost(LostReason::Misbehaved { detail: fault.to_string() }),
        SessionEnd::Connection(end) => match end {
            End::Ours | End::Theirs { close: Close::Farewell, .. } => After::Lost(LostReason::Closed),
            End::Theirs { close: Close::Misbehaved, detail } => {
                After::Lost(LostReason::ExpelledUs { detail })
            }
            End::Theirs { close: Close::Refused | Close::Replaced, detail } | End::Transport { detail } => {
                After::Interrupted(BreakReason::Transport { detail })
            }
            End::Silent => After::Interrupted(BreakReason::Silent { silence_max }),
        },
    }
}

/// Tries to win a peer back that we had dialled.
async fn redial(board: &Arc<Switchboard>, peer: PeerId, address: &Address, mut last: String) {
    let mut wait = board.limits.redial_wait_first;
    let mut redials = 0;
    while redials < board.limits.redials_max {
        if timeout(wait, board.closed()).await.is_ok() {
            return;
        }
        redials += 1;
        match dial(board, peer, address).await {
            Ok(()) | Err(DialError::Closed) => return,
            Err(error) => {
                tracing::debug!(%peer, %error, redials, "redial failed");
                last = error.to_string();
                if is_final(&error) {
                    break;
                }
            }
        }
        wait = wait.saturating_mul(2);
    }
    board.tell(NetEvent::Lost { peer, reason: LostReason::Gone { redials, last } }).await;
}

/// Whether no later try can succeed.
fn is_final(error: &DialError) -> bool {
    match error {
        DialError::Refused { .. }
        | DialError::OtherRun { .. }
        | DialError::Malformed { .. }
        | DialError::Myself { .. }
        | DialError::Closed => true,
        DialError::Unreachable { .. } | DialError::TimedOut { .. } | DialError::Crowded { .. } => false,
    }
}

/// Waits for a peer that had dialled us: winning back is its part.
async fn await_return(board: &Arc<Switchboard>, peer: PeerId, last: String) {
    let deadline = Instant::now() + board.limits.return_wait_max();
    loop {
        let (session, mut changes) = board.watch(peer);
        if session.is_some() {
            return;
        }
        tokio::select! {
            () = board.closed() => return,
            changed = timeout_at(deadline, changes.changed()) => if changed.is_err() { break },
        }
    }
    board.tell(NetEvent::Lost { peer, reason: LostReason::Gone { redials: 0, last } }).await;
}
