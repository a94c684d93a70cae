//! Where a peer can be reached.
//!
//! Owns the list of socket addresses and its short form in messages and tickets. Knows nothing of who answers there.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Socket addresses of one peer. A home and a data-centre machine have two to six; more only slow the dial down.
pub const SOCKETS_MAX: usize = 16;

const TAG_V4: u8 = 4;
const TAG_V6: u8 = 6;

/// The socket addresses of a peer, sorted and without repetitions; at least one, at most [`SOCKETS_MAX`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    sockets: Vec<SocketAddr>,
}

/// Why something is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No socket address at all.
    #[error("address names no socket")]
    Empty,
    /// More socket addresses than the bound.
    #[error("address names {got} sockets, at most {SOCKETS_MAX} are allowed")]
    TooMany {
        /// How many.
        got: usize,
    },
    /// The bytes end inside a socket address.
    #[error("address ends after {got} bytes, inside socket {socket}")]
    Truncated {
        /// Length of the bytes.
        got: usize,
        /// Which socket address, counted from 0.
        socket: usize,
    },
    /// A socket address is of no known family.
    #[error("socket {socket} of the address has family {tag}, expected {TAG_V4} or {TAG_V6}")]
    Family {
        /// The tag found.
        tag: u8,
        /// Which socket address, counted from 0.
        socket: usize,
    },
    /// Nobody can be reached at port 0 or at an unspecified, IP-wide address.
    #[error("nobody can be reached at {socket}")]
    Unreachable {
        /// The socket address.
        socket: SocketAddr,
    },
    /// A text is not `IP:PORT`, several separated by commas.
    #[error("`{text}` is not an address, expected IP:PORT, several separated by commas")]
    Text {
        /// The part that cannot be read.
        text: String,
    },
}

impl AddressError {
    /// Says what to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            AddressError::Empty
            | AddressError::TooMany { .. }
            | AddressError::Truncated { .. }
            | AddressError::Family { .. } => "ask the peer for a new ticket",
            AddressError::Unreachable { .. } => {
                "name the IP address and the port at which others see the peer"
            }
            AddressError::Text { .. } => "write for example 192.0.2.7:4100, or [2001:db8::7]:4100",
        }
    }
}

impl Address {
    /// Checks and sorts socket addresses.
    pub fn new(sockets: impl IntoIterator<Item = SocketAddr>) -> Result<Self, AddressError> {
        let mut sockets: Vec<SocketAddr> = sockets.into_iter().collect();
        sockets.sort_unstable();
        sockets.dedup();
        if let Some(&socket) = sockets.iter().find(|s| s.port() == 0 || s.ip().is_unspecified()) {
            return Err(AddressError::Unreachable { socket });
        }
        match sockets.len() {
            0 => Err(AddressError::Empty),
            1..=SOCKETS_MAX => Ok(Self { sockets }),
            got => Err(AddressError::TooMany { got }),
        }
    }

    /// Returns the socket addresses, sorted.
    pub fn sockets(&self) -> &[SocketAddr] {
        &self.sockets
    }

    /// Writes the address: for each socket a tag (4 or 6), the IP in network order, the port in big endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.sockets.len() * 19);
        for socket in &self.sockets {
            match socket.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(TAG_V4);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(TAG_V6);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(socket.port().to_be_bytes());
        }
        bytes
    }

    /// Reads an address, or says why the bytes are not one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AddressError> {
        let mut sockets = Vec::new();
        let mut rest = bytes;
        while let Some((&tag, after)) = rest.split_first() {
            let socket = sockets.len();
            if socket == SOCKETS_MAX {
                return Err(AddressError::TooMany { got: socket + 1 });
            }
            let truncated = AddressError::Truncated { got: bytes.len(), socket };
            let (ip, after) = match tag {
                TAG_V4 => {
                    let (ip, after) = after.split_first_chunk::<4>().ok_or(truncated.clone())?;
                    (IpAddr::V4(Ipv4Addr::from(*ip)), after)
                }
                TAG_V6 => {
                    let (ip, after) = after.split_first_chunk::<16>().ok_or(truncated.clone())?;
                    (IpAddr::V6(Ipv6Addr::from(*ip)), after)
                }
                tag => return Err(AddressError::Family { tag, socket }),
            };
            let (port, after) = after.split_first_chunk::<2>().ok_or(truncated)?;
            sockets.push(SocketAddr::new(ip, u16::from_be_bytes(*port)));
            rest = after;
        }
        Self::new(sockets)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, socket) in self.sockets.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            socket.fmt(f)?;
        }
        Ok(())
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let sockets = text.split(',').map(|part| {
            part.trim().parse::<SocketAddr>().map_err(|_| AddressError::Text { text: part.trim().to_owned() })
        });
        Self::new(sockets.collect::<Result<Vec<_>, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Address {
        "192.0.2.7:4100,[2001:db8::7]:4101".parse().expect("a written address")
    }

    #[test]
    fn bytes_and_text_round_trip() {
        let address = sample();
        assert_eq!(Address::from_bytes(&address.to_bytes()), Ok(address.clone()));
        assert_eq!(address.to_string().parse(), Ok(address.clone()));
        assert_eq!(address.to_bytes().len(), 7 + 19);
    }

    #[test]
    fn every_prefix_of_the_bytes_is_refused_or_shorter() {
        let bytes = sample().to_bytes();
        for end in 0..bytes.len() {
            match Address::from_bytes(&bytes[..end]) {
                Ok(address) => assert_eq!((end, address.sockets().len()), (7, 1)),
                Err(error) => {
                    assert!(matches!(error, AddressError::Empty | AddressError::Truncated { .. }), "{error}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_dialled_is_refused() {
        assert!(matches!("0.0.0.0:1".parse::<Address>(), Err(AddressError::Unreachable { .. })));
        assert!(matches!("127.0.0.1:0".parse::<Address>(), Err(AddressError::Unreachable { .. })));
        assert!(matches!("localhost".parse::<Address>(), Err(AddressError::Text { .. })));
        assert!(matches!(Address::from_bytes(&[9]), Err(AddressError::Family { tag: 9, socket: 0 })));
        let many = (1..=17).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(Address::new(many), Err(AddressError::TooMany { got: 17 }));
        assert_eq!(
            Address::from_bytes(&[TAG_V4, 1, 2, 3, 4, 0, 1].repeat(17)),
            Err(AddressError::TooMany { got: 17 })
        );
    }
}
