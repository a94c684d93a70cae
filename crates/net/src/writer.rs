//! Writes what waits in a queue to a stream.
//!
//! Owns the hand-over from queue to stream. Knows nothing of what the bytes mean.

use crate::outbox::Outgoing;
use iroh::endpoint::SendStream;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;

/// A queue that several writers take from: who is free takes the next piece.
pub(crate) type SharedQueue = Arc<Mutex<UnboundedReceiver<Outgoing>>>;

/// Writes until the queue ends or the connection does; at the queue's end, until all of it is acknowledged.
pub(crate) async fn write(mut stream: SendStream, queue: SharedQueue) {
    loop {
        let outgoing = queue.lock().await.recv().await;
        match outgoing {
            Some(Outgoing::Chunks { mut chunks, hold }) => {
                if stream.write_all_chunks(&mut chunks).await.is_err() {
                    // The connection is gone; who watches over it says why.
                    return;
                }
                drop(hold);
            }
            Some(Outgoing::End) | None => {
                let acknowledged = stream.stopped();
                if stream.finish().is_ok() {
                    let _ = acknowledged.await;
                }
                return;
            }
        }
    }
}
