//! The first words on a connection, as bytes.
//!
//! Owns the form in which hello and welcome travel, and what surrounds them: a magic, the wire version (outside the
//! hello, whose form may change with it), and the incarnation of each process, which tells a peer that was started anew
//! from one that connects twice. What the words mean is decided in
//! `trestle_protocol::handshake`.

use crate::stream::{ReadEnd, read_room, read_word};
use bytes::{Bytes, BytesMut};
use iroh::endpoint::{RecvStream, SendStream};
use trestle_protocol::handshake::{self, Hello, Mismatch, Welcome};
use trestle_protocol::spec::Difference;
use trestle_protocol::wire::WIRE_VERSION;

/// Longest hello or welcome: a run spec is some hundred bytes and a few paths.
pub(crate) const GREETING_BYTES_MAX: usize = 64 * 1024;

const MAGIC: [u8; 8] = *b"trestle\n";

/// Characters of another peer's words that people are shown.
const WORDS_CHARS_MAX: usize = 256;

const HELLO_HEAD_BYTES: usize = 22;
const REPLY_HEAD_BYTES: usize = 13;

/// Names one process' life; drawn at random when it binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Incarnation(pub(crate) u64);

/// What the dialling peer said.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    Hello(Box<Hello>, Incarnation),
    /// It speaks a version whose hello we may not be able to read.
    OtherVersion(u16),
}

/// What the accepting peer answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    /// The decision of the handshake.
    Welcome { welcome: Box<Welcome>, incarnation: Incarnation },
    /// Both dialled each other, and the other dial is kept.
    Crossed,
    /// It takes no more peers.
    Crowded,
}

/// Why there was no greeting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GreetingError {
    #[error("first bytes are not a trestle's")]
    Magic,
    #[error("greeting of {got} bytes, at most {GREETING_BYTES_MAX} are allowed")]
    Length { got: usize },
    #[error("greeting cannot be read")]
    Unreadable,
    #[error("reply of kind {got}")]
    ReplyKind { got: u8 },
    #[error("connection ended before the greeting did")]
    Ended,
}

impl From<ReadEnd> for GreetingError {
    fn from(_: ReadEnd) -> Self {
        GreetingError::Ended
    }
}

/// Says hello.
pub(crate) async fn say(
    stream: &mut SendStream,
    hello: &Hello,
    incarnation: Incarnation,
) -> Result<(), GreetingError> {
    let words = handshake::encode(hello);
    let mut bytes = Vec::with_capacity(HELLO_HEAD_BYTES + words.len());
    bytes.extend(MAGIC);
    bytes.extend(hello.wire_version.to_le_bytes());
    bytes.extend(incarnation.0.to_le_bytes());
    bytes.extend(length(&words));
    bytes.extend(words);
    stream.write_chunk(bytes.into()).await.map_err(|_| GreetingError::Ended)
}

/// Hears a hello.
pub(crate) async fn hear(stream: &mut RecvStream) -> Result<Heard, GreetingError> {
    let head: [u8; HELLO_HEAD_BYTES] = read_word(stream).await?;
    let (magic, rest) = head.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(GreetingError::Magic);
    }
    let (version, rest) = rest.split_first_chunk::<2>().ok_or(GreetingError::Ended)?;
    let version = u16::from_le_bytes(*version);
    if version != WIRE_VERSION {
        return Ok(Heard::OtherVersion(version));
    }
    let (incarnation, words) = read_words(stream, rest).await?;
    let hello = handshake::decode_hello(&words).ok_or(GreetingError::Unreadable)?;
    Ok(Heard::Hello(Box::new(hello), incarnation))
}

/// Answers a hello.
pub(crate) async fn answer(stream: &mut SendStream, reply: &Reply) -> Result<(), GreetingError> {
    let (kind, incarnation, words) = match reply {
        Reply::Welcome { welcome, incarnation } => (0, *incarnation, handshake::encode(welcome.as_ref())),
        Reply::Crossed => (1, Incarnation(0), Vec::new()),
        Reply::Crowded => (2, Incarnation(0), Vec::new()),
    };
    let mut bytes = Vec::with_capacity(REPLY_HEAD_BYTES + words.len());
    bytes.push(kind);
    bytes.extend(incarnation.0.to_le_bytes());
    bytes.extend(length(&words));
    bytes.extend(words);
    stream.write_chunk(bytes.into()).await.map_err(|_| GreetingError::Ended)
}

/// Hears the answer to our hello.
pub(crate) async fn hear_reply(stream: &mut RecvStream) -> Result<Reply, GreetingError> {
    let head: [u8; REPLY_HEAD_BYTES] = read_word(stream).await?;
    let (incarnation, words) = read_words(stream, &head[1..]).await?;
    match head[0] {
        0 => {
            let welcome = handshake::decode_welcome(&words).ok_or(GreetingError::Unreadable)?;
            Ok(Reply::Welcome { welcome: Box::new(welcome), incarnation })
        }
        1 => Ok(Reply::Crossed),
        2 => Ok(Reply::Crowded),
        got => Err(GreetingError::ReplyKind { got }),
    }
}

/// Turns what the refusing peer found into what the refused one sees: here and there change places.
pub(crate) fn mirrored(mismatch: Mismatch) -> Mismatch {
    match shown(mismatch) {
        Mismatch::WireVersion { ours, theirs } => Mismatch::WireVersion { ours: theirs, theirs: ours },
        Mismatch::Field(Difference { field, ours, theirs }) => {
            Mismatch::Field(Difference { field, ours: theirs, theirs: ours })
        }
        Mismatch::Run { ours, theirs } => Mismatch::Run { ours: theirs, theirs: ours },
        Mismatch::NoRun => Mismatch::NoRun,
    }
}

/// Makes a mismatch that holds another peer's words fit to be shown.
pub(crate) fn shown(mismatch: Mismatch) -> Mismatch {
    match mismatch {
        Mismatch::Field(Difference { field, ours, theirs }) => {
            Mismatch::Field(Difference { field: plain(&field), ours: plain(&ours), theirs: plain(&theirs) })
        }
        other @ (Mismatch::WireVersion { .. } | Mismatch::Run { .. } | Mismatch::NoRun) => other,
    }
}

/// Bounds a text, and takes out what steers a terminal.
fn plain(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).take(WORDS_CHARS_MAX).collect()
}

/// Reads what follows the kind or the magic: 8 bytes of incarnation, 4 of length, then the words.
async fn read_words(stream: &mut RecvStream, head: &[u8]) -> Result<(Incarnation, Bytes), GreetingError> {
    let (incarnation, rest) = head.split_first_chunk::<8>().ok_or(GreetingError::Ended)?;
    let length = rest.first_chunk::<4>().ok_or(GreetingError::Ended)?;
    let got = u32::from_le_bytes(*length) as usize;
    if got > GREETING_BYTES_MAX {
        return Err(GreetingError::Length { got });
    }
    let words = read_room(stream, BytesMut::with_capacity(got), got).await?;
    Ok((Incarnation(u64::from_le_bytes(*incarnation)), words.freeze()))
}

fn length(words: &[u8]) -> [u8; 4] {
    u32::try_from(words.len()).expect("our greetings are checked when we bind").to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_our_side_and_steers_no_terminal() {
        let theirs = format!("\u{1b}[31m{}", "x".repeat(1000));
        let difference = Difference { field: "name".to_owned(), ours: theirs, theirs: "a\nb".to_owned() };
        let Mismatch::Field(seen) = mirrored(Mismatch::Field(difference)) else { panic!("still a field") };
        assert_eq!((seen.field.as_str(), seen.ours.as_str()), ("name", "ab"));
        assert_eq!(seen.theirs, format!("[31m{}", "x".repeat(WORDS_CHARS_MAX - 4)));
    }
}
