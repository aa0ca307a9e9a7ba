//! hyper and rustls plumbing: the connector that dials instances, the one-shot client for token and user calls, the
//! listeners of the three doors. No policy and no tokens here.
//!
//! Deliberately absent: a switch that turns certificate verification off, a follower of redirects, a decompressor, a
//! cookie jar, a retry, and a connection pool (that one is the proxy door's).

mod address;
mod connector;
mod egress;
mod fetch;
mod listen;
mod serve;
mod stream;
#[cfg(test)]
mod testing;

pub use address::{AddressKind, address_allowed};
pub use connector::{ConnectError, ConnectStage, Connector, EgressFault, TlsFault};
pub use egress::{EgressError, EgressSettings};
pub use fetch::{FetchError, FetchLimits, Fetched, ReplyFault, fetch};
pub use listen::{Acceptor, DoorCertificate, ListenError, ListenSettings, Listener, TlsSettings};
pub use serve::{Peer, ServeLimits, serve};
pub use stream::{ServerStream, Stream};

/// Makes aws-lc the process's TLS provider. May be called any number of times; the first call counts. This crate
/// names its provider itself and does not need it; the Redis client does.
pub fn init_crypto() {
    // Err: a provider is installed already, by an earlier call.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
