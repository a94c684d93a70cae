//! Words for what a peer has heard, so that one that waits can say of what.
//!
//! Owns one word for each kind of input and message. Knows nothing else of them.

use trestle_protocol::message::Message;
use trestle_protocol::port::Input;

/// Returns the word for an input; `None` for one that tells nothing.
pub(super) fn heard(input: &Input) -> Option<&'static str> {
    Some(match input {
        Input::Received { message, .. } => return said(message),
        Input::Connected { .. } => "connected",
        Input::Lost { .. } => "lost",
        Input::Rejected { .. } => "rejected",
        Input::Forwarded { .. } => "forwarded",
        Input::Backwarded { .. } => "backwarded",
        Input::Stepped { .. } => "stepped",
        Input::Sync(_) => "sync task done",
        Input::Stored { .. } => "stored",
        Input::Loaded { .. } => "loaded",
        Input::Unfit { .. } => "unfit",
        Input::Faulted { .. } => "faulted",
        Input::Exported { .. } => "exported",
        Input::Drain => "drain",
        Input::Leave { .. } => "leave",
        Input::Woke => return None,
    })
}

fn said(message: &Message) -> Option<&'static str> {
    Some(match message {
        // These come all the time.
        Message::Beat | Message::Frontier(_) => return None,
        Message::Join(_) => "Join",
        Message::Waiting { .. } => "Waiting",
        Message::Placed { .. } => "Placed",
        Message::Roster { .. } => "Roster",
        Message::Ready { .. } => "Ready",
        Message::Enter { .. } => "Enter",
        Message::Present { .. } => "Present",
        Message::Suspects(_) => "Suspects",
        Message::Close { .. } => "Close",
        Message::Sign { .. } => "Sign",
        Message::Signed { .. } => "Signed",
        Message::Leaving { .. } => "Leaving",
        Message::Removed { .. } => "Removed",
        Message::Lease { .. } => "Lease",
        Message::Activation(_) => "Activation",
        Message::Gradient(_) => "Gradient",
        Message::Loss { .. } => "Loss",
        Message::Settled { .. } => "Settled",
        Message::Diverted { .. } => "Diverted",
        Message::Receipts(_) => "Receipts",
        Message::Sync(_) => "Sync",
        Message::State(_) => "State",
        Message::Stepped(_) => "Stepped",
        Message::Checkpointed { .. } => "Checkpointed",
        Message::Drain { .. } => "Drain",
        Message::Finish { .. } => "Finish",
        Message::PeerLost { .. } => "PeerLost",
        Message::Failed { .. } => "Failed",
        Message::Refused(_) => "Refused",
    })
}
