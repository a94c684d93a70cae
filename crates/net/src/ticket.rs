//! What a coordinator gives to peers that want to join: who, where, and which run.
//!
//! Owns the text form, made to survive a terminal and a mistake in copying. Knows nothing of what joining means.

use crate::address::{Address, AddressError};
use data_encoding::BASE32_NOPAD;
use std::fmt;
use std::str::FromStr;
use trestle_protocol::ids::{Digest, PeerId};

/// How every ticket begins; the digit is the version of what follows.
pub const TICKET_PREFIX: &str = "trestle1";

/// Bytes of the BLAKE3 hash that end a ticket: one typo in 4 thousand million goes unseen.
const CHECKSUM_BYTES: usize = 4;

/// Longest ticket that is read: key, digest, 16 IPv6 sockets and the checksum take 625 characters.
const TICKET_CHARS_MAX: usize = 1024;

/// Who coordinates a run, where it can be reached, and which run it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The coordinator's key.
    pub coordinator: PeerId,
    /// Where it can be reached.
    pub address: Address,
    /// The digest of the run's spec.
    pub run_digest: Digest,
}

/// Why a text is not a ticket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It begins with something else.
    #[error("ticket begins with `{found}`, expected `{TICKET_PREFIX}`")]
    Prefix {
        /// Its first characters.
        found: String,
    },
    /// A character never occurs in tickets.
    #[error("ticket has `{found}` at character {position}, where only a-z and 2-7 are possible")]
    Character {
        /// The character.
        found: char,
        /// Its place, counted from 1.
        position: usize,
    },
    /// It is too short, too long, or cut inside a byte.
    #[error("ticket has {got} characters, which is no possible length")]
    Length {
        /// How many characters.
        got: usize,
    },
    /// A character was changed, added or lost.
    #[error("ticket's checksum does not fit")]
    Checksum,
    /// The checksum fits, but the address inside cannot be used.
    #[error("ticket holds an unusable address: {0}")]
    Address(#[from] AddressError),
}

impl TicketError {
    /// Says what to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            TicketError::Prefix { .. } => {
                "give the whole ticket as `trestle serve` printed it, from `trestle1` to its end"
            }
            TicketError::Character { .. } | TicketError::Length { .. } | TicketError::Checksum => {
                "copy the ticket again, whole and in one line"
            }
            TicketError::Address(_) => "ask the coordinator for a new ticket",
        }
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend(self.coordinator.0);
        bytes.extend(self.run_digest.0);
        bytes.extend(self.address.to_bytes());
        bytes.extend(checksum(&bytes));
        write!(f, "{TICKET_PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        let text = text.trim();
        let Some(body) = text.strip_prefix(TICKET_PREFIX) else {
            return Err(TicketError::Prefix { found: text.chars().take(TICKET_PREFIX.len()).collect() });
        };
        let stranger = body.chars().position(|c| !matches!(c, 'a'..='z' | 'A'..='Z' | '2'..='7'));
        if let Some(index) = stranger {
            let found = body.chars().nth(index).expect("position was found");
            return Err(TicketError::Character { found, position: TICKET_PREFIX.len() + index + 1 });
        }
        let length = TicketError::Length { got: text.len() };
        if text.len() > TICKET_CHARS_MAX {
            return Err(length);
        }
        // A typo in the last character can leave bits that no encoder writes: that is a checksum's matter too.
        let bytes =
            BASE32_NOPAD.decode(body.to_ascii_uppercase().as_bytes()).map_err(|error| match error.kind {
                data_encoding::DecodeKind::Length => length.clone(),
                data_encoding::DecodeKind::Symbol
                | data_encoding::DecodeKind::Trailing
                | data_encoding::DecodeKind::Padding => TicketError::Checksum,
            })?;
        let (content, check) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(length.clone())?;
        if checksum(content) != *check {
            return Err(TicketError::Checksum);
        }
        let (coordinator, rest) = content.split_first_chunk::<32>().ok_or(length.clone())?;
        let (run_digest, address) = rest.split_first_chunk::<32>().ok_or(length)?;
        Ok(Self {
            coordinator: PeerId(*coordinator),
            address: Address::from_bytes(address)?,
            run_digest: Digest(*run_digest),
        })
    }
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = Digest::of(content).0;
    [digest[0], digest[1], digest[2], digest[3]]
}
