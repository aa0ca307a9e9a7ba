//! hyper and rustls plumbing: the connector that dials instances, the one-shot client for token and user calls, the
//! listeners of the three doors. No policy and no tokens here.
//!
//! Deliberately absent: a switch that turns certificate verification off, a follower of redirects, a decompressor, a
//! cookie jar, a retry, and a connection pool (that one is the proxy door's).

mod address;
mod caller;
mod connector;
mod door_tls;
mod egress;
mod fetch;
mod forwarded;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod listen;
mod pem;
mod proxy_protocol;
mod serve;
mod socket;
mod stream;
#[cfg(test)]
mod testing;

pub use address::{AddressKind, address_allowed};
pub use caller::{CallerAddress, CallerRule, Peer};
pub use connector::{ConnectError, ConnectStage, Connector, EgressFault, IntegrationTrust, TlsFault};
pub use door_tls::{ClientCertificate, DoorCertificate, TlsSettings};
pub use egress::{EgressError, EgressSettings};
pub use fetch::{FetchError, FetchLimits, Fetched, ReplyFault, fetch};
pub use forwarded::{ForwardedFault, forwarded_for};
pub use listen::{Acceptor, HandshakeError, Handshaker, ListenError, ListenSettings, Listener};
pub use proxy_protocol::{
    PROXY_HEADER_BYTES_MAX, ProxyHeader, ProxyHeaderFault, ProxyHeaderProgress, parse_proxy_header,
};
pub use serve::{ServeLimits, serve};
pub use socket::{BoundAddress, InheritedSockets, PeerAddress, Socket, SocketMode};
pub use stream::{ServerStream, Stream};

/// Makes aws-lc the process's TLS provider. May be called any number of times; the first call counts. This crate
/// names its provider itself and does not need it; the Redis client does.
pub fn init_crypto() {
    // Err: a provider is installed already, by an earlier call.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
