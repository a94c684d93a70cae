//! The first words of two peers: which wire, which run; different runs never train together.
//!
//! Owns what is said and the decision to go on. Knows nothing of sockets or of time limits.

use crate::ids::Digest;
use crate::spec::{Difference, RunSpec};
use crate::wire::WIRE_VERSION;
use alloc::boxed::Box;
use alloc::string::String;
use serde::{Deserialize, Serialize};

/// What the dialling peer says first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The wire format it speaks.
    pub wire_version: u16,
    /// The run it wants to be part of, from its ticket or its own run file.
    pub run_digest: Digest,
    /// The run spec, if it has one already; a peer that joins with a ticket alone asks for it.
    pub spec: Option<Box<RunSpec>>,
}

/// What the accepting peer answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Welcome {
    /// Both are of one run; the spec is sent to a peer that did not have it.
    Accepted {
        /// The run spec, for a peer that had none.
        spec: Option<Box<RunSpec>>,
    },
    /// They are not; the connection closes.
    Refused(Mismatch),
}

/// Why two peers do not belong to one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Mismatch {
    /// The wire formats differ.
    #[error("peer speaks wire version {theirs}, we speak {ours}")]
    WireVersion {
        /// The version of the peer that refuses.
        ours: u16,
        /// The version of the peer that is refused.
        theirs: u16,
    },
    /// The run specs differ in a field that can be named.
    #[error("run files differ in `{}`: {} here, {} there", .0.field, .0.ours, .0.theirs)]
    Field(Difference),
    /// The digests differ, and there is no spec to compare field by field.
    #[error("run digests differ: {ours} here, {theirs} there")]
    Run {
        /// The digest of the peer that refuses.
        ours: Digest,
        /// The digest of the peer that is refused.
        theirs: Digest,
    },
    /// The peer is not (or not yet) part of the run it asks for.
    #[error("peer has no run spec yet")]
    NoRun,
}

impl Mismatch {
    /// Says what to do about it.
    pub fn hint(&self) -> String {
        let hint = match self {
            Mismatch::WireVersion { .. } => "install the same release of trestle on both peers",
            Mismatch::Field(_) => "give both peers the same run file, or join with the ticket alone",
            Mismatch::Run { .. } => "ask the coordinator for a new ticket",
            Mismatch::NoRun => "join the coordinator first, with a ticket",
        };
        String::from(hint)
    }
}

/// Says what a dialling peer sends first; `spec` is `None` when it has only a ticket.
pub fn hello(run_digest: Digest, spec: Option<&RunSpec>) -> Hello {
    Hello { wire_version: WIRE_VERSION, run_digest, spec: spec.cloned().map(Box::new) }
}

/// Decides what an accepting peer of `spec` answers to a hello.
pub fn answer(spec: &RunSpec, hello: &Hello) -> Welcome {
    if hello.wire_version != WIRE_VERSION {
        return Welcome::Refused(Mismatch::WireVersion { ours: WIRE_VERSION, theirs: hello.wire_version });
    }
    let ours = spec.digest();
    if hello.run_digest == ours {
        let spec = if hello.spec.is_none() { Some(Box::new(spec.clone())) } else { None };
        return Welcome::Accepted { spec };
    }
    let difference = hello.spec.as_ref().and_then(|theirs| spec.first_difference(theirs));
    Welcome::Refused(match difference {
        Some(difference) => Mismatch::Field(difference),
        None => Mismatch::Run { ours, theirs: hello.run_digest },
    })
}

/// Checks a spec received in a welcome against the digest that was asked for.
pub fn accept(asked: Digest, spec: &RunSpec) -> Result<(), Mismatch> {
    let got = spec.digest();
    if got == asked { Ok(()) } else { Err(Mismatch::Run { ours: asked, theirs: got }) }
}

/// Writes a hello or a welcome for the wire.
pub fn encode<T: Serialize>(word: &T) -> alloc::vec::Vec<u8> {
    postcard::to_allocvec(word).expect("plain fields always serialise")
}

/// Reads a hello; `None` when the bytes are not one.
pub fn decode_hello(bytes: &[u8]) -> Option<Hello> {
    postcard::from_bytes(bytes).ok()
}

/// Reads a welcome; `None` when the bytes are not one.
pub fn decode_welcome(bytes: &[u8]) -> Option<Welcome> {
    postcard::from_bytes(bytes).ok()
}
