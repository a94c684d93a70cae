//! Answers those who dial us.
//!
//! Owns the accepting side of the handshake, its time limit, and the bound on strangers. Knows nothing of what follows.

use crate::cable::{self, Close};
use crate::config::Membership;
use crate::event::{NetEvent, RefusedReason};
use crate::greeting::{self, GreetingError, Heard, Incarnation, Reply};
use crate::link;
use crate::session::{Dialler, Greeted};
use crate::switchboard::{AcceptStart, Attempt, Switchboard};
use iroh::endpoint::{Connection, Incoming, RecvStream, SendStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use trestle_protocol::handshake::{self, Hello, Mismatch, Welcome};
use trestle_protocol::ids::PeerId;
use trestle_protocol::wire::WIRE_VERSION;

/// Wait for a refused peer to read why, before the connection closes under it.
const REFUSAL_WAIT_MAX: Duration = Duration::from_secs(1);

/// Answers dials until the endpoint closes.
pub(crate) async fn run(board: Arc<Switchboard>) {
    let handshakes = Arc::new(Semaphore::new(board.limits.handshakes_max));
    while let Some(incoming) = board.endpoint.accept().await {
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            board.refused.fetch_add(1, Ordering::Relaxed);
            incoming.refuse();
            continue;
        };
        let board = Arc::clone(&board);
        tokio::spawn(async move {
            greet(&board, incoming).await;
            drop(permit);
        });
    }
}

async fn greet(board: &Arc<Switchboard>, incoming: Incoming) {
    let wait = board.limits.handshake_wait_max;
    let deadline = Instant::now() + wait;
    let connection = match timeout_at(deadline, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            // Whoever this was proved no key, so there is nobody to name.
            tracing::debug!(error = %cable::words(&error), "a stranger failed to connect");
            board.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        Err(_) => {
            board.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
    };
    let peer = cable::remote_peer(&connection);
    match timeout_at(deadline, converse(board, &connection, peer)).await {
        Ok(Ok(Answered::Accepted(greeted, attempt))) => {
            match timeout_at(deadline, link::establish(board, greeted, None, attempt)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "connection ended in the handshake"),
                Err(_) => turn_away(board, &connection, RefusedReason::TimedOut { wait }).await,
            }
        }
        Ok(Ok(Answered::Refused(mut control, reason))) => {
            // What was said is on its way; the peer closes when it has read it.
            let finished = control.0.finish().is_ok();
            tracing::debug!(%peer, %reason, finished, "refused");
            let _ = timeout(REFUSAL_WAIT_MAX, connection.closed()).await;
            turn_away(board, &connection, reason).await;
        }
        Ok(Ok(Answered::Crossed(mut control))) => {
            let _ = control.0.finish();
            let _ = timeout(REFUSAL_WAIT_MAX, connection.closed()).await;
            cable::close(&connection, Close::Replaced, "crossed");
        }
        Ok(Err(error)) => {
            turn_away(board, &connection, RefusedReason::Malformed { detail: error.to_string() }).await;
        }
        Err(_) => turn_away(board, &connection, RefusedReason::TimedOut { wait }).await,
    }
}

/// Closes a connection whose handshake failed, and tells the owner.
async fn turn_away(board: &Switchboard, connection: &Connection, reason: RefusedReason) {
    board.refused.fetch_add(1, Ordering::Relaxed);
    cable::close(connection, Close::Refused, &reason.to_string());
    board.tell(NetEvent::Refused { from: cable::remote_peer(connection), reason }).await;
}

/// What came of a hello, once it is answered.
enum Answered {
    Accepted(Greeted, Attempt),
    Refused((SendStream, RecvStream), RefusedReason),
    Crossed((SendStream, RecvStream)),
}

async fn converse(
    board: &Arc<Switchboard>,
    connection: &Connection,
    peer: PeerId,
) -> Result<Answered, GreetingError> {
    let mut control = connection.accept_bi().await.map_err(|_| GreetingError::Ended)?;
    let (welcome, incarnation) = match greeting::hear(&mut control.1).await? {
        Heard::Hello(hello, incarnation) => (decide(board, &hello), incarnation),
        Heard::OtherVersion(theirs) => {
            (Welcome::Refused(Mismatch::WireVersion { ours: WIRE_VERSION, theirs }), Incarnation(0))
        }
    };
    if let Welcome::Refused(mismatch) = &welcome {
        let reason = RefusedReason::Mismatch(greeting::shown(mismatch.clone()));
        answer_welcome(board, &mut control.0, welcome).await?;
        return Ok(Answered::Refused(control, reason));
    }
    match board.begin_accept(peer, incarnation) {
        AcceptStart::Go(attempt) => {
            answer_welcome(board, &mut control.0, welcome).await?;
            let connection = connection.clone();
            let greeted = Greeted { peer, connection, control, incarnation, dialler: Dialler::Them };
            Ok(Answered::Accepted(greeted, attempt))
        }
        AcceptStart::Crossed => {
            greeting::answer(&mut control.0, &Reply::Crossed).await?;
            Ok(Answered::Crossed(control))
        }
        AcceptStart::Crowded { connected } => {
            greeting::answer(&mut control.0, &Reply::Crowded).await?;
            Ok(Answered::Refused(control, RefusedReason::Crowded { connected }))
        }
    }
}

fn decide(board: &Switchboard, hello: &Hello) -> Welcome {
    match &*board.membership.read().expect("no holder panics") {
        Membership::Member(spec) => handshake::answer(spec, hello),
        Membership::Candidate { .. } => Welcome::Refused(Mismatch::NoRun),
    }
}

async fn answer_welcome(
    board: &Switchboard,
    stream: &mut SendStream,
    welcome: Welcome,
) -> Result<(), GreetingError> {
    let incarnation: Incarnation = board.incarnation;
    greeting::answer(stream, &Reply::Welcome { welcome: Box::new(welcome), incarnation }).await
}
