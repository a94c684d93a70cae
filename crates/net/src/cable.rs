//! The transport under everything: one iroh endpoint with the settings that were measured to work.
//!
//! Owns those settings and the words with which connections end. Contacts no third party: no relay, no discovery, no
//! port mapping. Knows nothing of frames.

use crate::address::Address;
use crate::config::{Limits, NetConfig};
use crate::congestion::Factory;
use crate::error::BindError;
use crate::lane::LANES;
use iroh::endpoint::{
    Connection, ConnectionError, PortmapperConfig, QuicTransportConfig, RelayMode, VarInt, presets,
};
use iroh::{Endpoint, EndpointAddr, PublicKey, SecretKey, TransportAddr, Watcher};
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use trestle_protocol::ids::PeerId;

/// What both ends must name when they connect; the digit is the version of handshake and framing.
pub(crate) const ALPN: &[u8] = b"trestle/1";

/// Wait for the system to name the addresses of this machine, when listening on all of them.
const ADDRESS_WAIT_MAX: Duration = Duration::from_secs(3);

/// Longest reason that is sent with a close: it has to fit a packet.
const REASON_BYTES_MAX: usize = 512;

/// Why this peer closes a connection. Code 0 is what the transport says for an owner that vanished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// All is said.
    Farewell,
    /// The handshake ended in a refusal, or in nothing.
    Refused,
    /// The other broke the rules.
    Misbehaved,
    /// Another connection to the same peer takes its place.
    Replaced,
}

/// How a connection ended, seen from this peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// We closed it.
    Ours,
    /// The other closed it.
    Theirs { close: Close, detail: String },
    /// Nothing was heard for too long.
    Silent,
    /// Anything else.
    Transport { detail: String },
}

impl Close {
    const ALL: [Self; 4] = [Self::Farewell, Self::Refused, Self::Misbehaved, Self::Replaced];

    fn code(self) -> VarInt {
        VarInt::from_u32(match self {
            Close::Farewell => 1,
            Close::Refused => 2,
            Close::Misbehaved => 3,
            Close::Replaced => 4,
        })
    }
}

/// Closes a connection with a reason.
pub(crate) fn close(connection: &Connection, close: Close, reason: &str) {
    let reason = reason.as_bytes();
    connection.close(close.code(), &reason[..reason.len().min(REASON_BYTES_MAX)]);
}

/// Says how a connection ended.
pub(crate) fn end_of(error: &ConnectionError) -> End {
    match error {
        ConnectionError::LocallyClosed => End::Ours,
        ConnectionError::TimedOut => End::Silent,
        ConnectionError::ApplicationClosed(closed) => {
            let detail =
                String::from_utf8_lossy(&closed.reason).chars().filter(|c| !c.is_control()).collect();
            match Close::ALL.into_iter().find(|close| close.code() == closed.error_code) {
                Some(close) => End::Theirs { close, detail },
                None => End::Transport { detail: error.to_string() },
            }
        }
        ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::Reset
        | ConnectionError::CidsExhausted => End::Transport { detail: error.to_string() },
    }
}

/// Binds the endpoint.
pub(crate) async fn bind(config: &NetConfig) -> Result<Endpoint, BindError> {
    let address = config.bind;
    let builder = Endpoint::builder(presets::Minimal)
        .secret_key(SecretKey::from_bytes(&config.secret))
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(RelayMode::Disabled)
        .portmapper_config(PortmapperConfig::Disabled)
        .transport_config(transport(&config.limits))
        .clear_ip_transports()
        .bind_addr(address)
        .map_err(|error| refused(address, &error))?;
    builder.bind().await.map_err(|error| refused(address, &error))
}

/// Finds the addresses at which others reach the endpoint.
pub(crate) async fn own_address(endpoint: &Endpoint, config: &NetConfig) -> Result<Address, BindError> {
    let mut sockets = config.advertise.clone();
    if config.bind.ip().is_unspecified() {
        let mut watch = endpoint.watch_addr();
        let named = tokio::time::timeout(ADDRESS_WAIT_MAX, async {
            while watch.get().ip_addrs().next().is_none() && watch.updated().await.is_ok() {}
        });
        // Without any, the address is empty, which is the error below.
        let _ = named.await;
        sockets.extend(watch.get().ip_addrs());
    } else {
        sockets.extend(endpoint.bound_sockets());
    }
    Address::new(sockets).map_err(|source| BindError::NoAddress { bind: config.bind, source })
}

/// Names a peer and where it is in the transport's terms; `None` when the key is no key.
pub(crate) fn endpoint_addr(peer: PeerId, address: &Address) -> Option<EndpointAddr> {
    let key = PublicKey::from_bytes(&peer.0).ok()?;
    let sockets = address.sockets().iter().copied().map(TransportAddr::Ip);
    Some(EndpointAddr::from_parts(key, sockets))
}

/// Returns the key that the other end of a connection proved to hold.
pub(crate) fn remote_peer(connection: &Connection) -> PeerId {
    PeerId(*connection.remote_id().as_bytes())
}

/// Writes an error with its causes, each once.
pub(crate) fn words(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    words
}

/// BBR3, because Cubic collapses under random loss; stream windows stay at their default, because wider ones abort long
/// streams in this version of the transport. Streams are what a session opens, and no more.
fn transport(limits: &Limits) -> QuicTransportConfig {
    let heartbeat = limits.silence_max / 3;
    QuicTransportConfig::builder()
        .congestion_controller_factory(Arc::new(Factory::default()))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(LANES))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(silence(limits.silence_max).into()))
        .default_path_max_idle_timeout(limits.silence_max)
        .keep_alive_interval(heartbeat)
        .default_path_keep_alive_interval(heartbeat)
        .build()
}

fn silence(silence_max: Duration) -> VarInt {
    VarInt::from_u32(u32::try_from(silence_max.as_millis()).unwrap_or(u32::MAX))
}

/// Finds the system's own word among the causes of a refusal to bind.
fn refused(address: SocketAddr, error: &(dyn Error + 'static)) -> BindError {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::AddrInUse) {
            return BindError::PortUsed { address };
        }
        cause = error.source();
    }
    BindError::Socket { address, reason: words(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iroh::endpoint::ApplicationClose;

    #[test]
    fn each_close_is_told_apart_from_a_vanished_owner() {
        for close in Close::ALL {
            let closed = ApplicationClose { error_code: close.code(), reason: "why".into() };
            let end = end_of(&ConnectionError::ApplicationClosed(closed));
            assert_eq!(end, End::Theirs { close, detail: "why".to_owned() });
        }
        let vanished = ApplicationClose { error_code: VarInt::from_u32(0), reason: "".into() };
        let end = end_of(&ConnectionError::ApplicationClosed(vanished));
        assert!(matches!(end, End::Transport { .. }), "{end:?}");
    }
}
