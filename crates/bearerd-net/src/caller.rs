//! Who calls: the other end of the connection, or whom a trusted proxy names. Of anybody else nothing is believed.

use std::{
    fmt,
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
};

use http::{HeaderMap, header};
use ipnet::IpNet;
use serde::Deserialize;

use crate::{
    forwarded::{ForwardedFault, forwarded_for, is_trusted},
    listen::HandshakeError,
    proxy_protocol::{self, ProxyHeader, ReadHeaderError},
    socket::{PeerAddress, Socket},
};

/// Where a door takes a caller's address from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallerAddress {
    /// The other end of the connection.
    #[default]
    Peer,
    /// The PROXY protocol's header, version 2. A connection without one, or from elsewhere than a trusted proxy, is
    /// closed.
    ProxyProtocol,
    /// `Forwarded` (RFC 7239) of each request, as far as trusted proxies vouch for it. Whoever is no trusted proxy calls
    /// for itself.
    Forwarded,
}

/// The two ends that matter of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The other end of the socket: the caller, or the proxy before it.
    pub socket: PeerAddress,
    /// The caller, as far as the connection says. `None`: not known, and inside no network.
    pub caller: Option<IpAddr>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.caller {
            Some(caller) if Some(caller) != self.socket.ip() => write!(f, "{caller} through {}", self.socket),
            _ => self.socket.fmt(f),
        }
    }
}

/// How a door knows its callers: shared by everything that came from one `bind`.
#[derive(Debug, Default)]
pub struct CallerRule {
    from: CallerAddress,
    trusted: Vec<IpNet>,
    /// An operator who mistyped a network is told once, not for each connection of whoever knocks.
    told_untrusted: AtomicBool,
}

impl CallerRule {
    pub(crate) fn new(from: CallerAddress, trusted: &[IpNet]) -> Self {
        Self { from, trusted: trusted.to_vec(), told_untrusted: AtomicBool::new(false) }
    }

    /// What the connection's beginning says, read off `socket`. Waits as long as the peer does.
    pub(crate) async fn identify(
        &self,
        socket: &mut Socket,
        address: PeerAddress,
    ) -> Result<Peer, HandshakeError> {
        let own = address.ip();
        if self.from != CallerAddress::ProxyProtocol {
            return Ok(Peer { socket: address, caller: own });
        }
        if own.is_some_and(|own| !is_trusted(own, &self.trusted)) {
            if !self.told_untrusted.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    peer = %address,
                    "a connection from {address} was closed: it is not inside trusted_proxies (said once)"
                );
            }
            return Err(HandshakeError::PeerUntrusted);
        }
        let header = proxy_protocol::read_header(socket).await.map_err(|error| match error {
            ReadHeaderError::Fault(fault) => HandshakeError::ProxyHeader(fault),
            ReadHeaderError::Io(error) => HandshakeError::Io(error),
        })?;
        let caller = match header {
            ProxyHeader::Local => own,
            ProxyHeader::For(caller) => Some(caller.ip()),
            ProxyHeader::ForUnknown => None,
        };
        Ok(Peer { socket: address, caller })
    }

    /// The caller of one request that came with `headers` on a connection from `peer`. `None`: not known, and inside no
    /// network.
    ///
    /// # Errors
    /// [`ForwardedFault`]: a trusted proxy does not say who calls. Never with another [`CallerAddress`] than `Forwarded`.
    pub fn caller_of(&self, peer: &Peer, headers: &HeaderMap) -> Result<Option<IpAddr>, ForwardedFault> {
        if self.from != CallerAddress::Forwarded {
            return Ok(peer.caller);
        }
        let values = headers.get_all(header::FORWARDED).iter().map(http::HeaderValue::as_bytes);
        forwarded_for(values, &self.trusted, peer.socket.ip())
    }
}
