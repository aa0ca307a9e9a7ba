//! How a server is connected to: where it is, TLS, login, patience.

use std::{fmt, time::Duration};

use bearerd_crypto::random_bytes;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, RedisError,
    TlsCertificates, aio::MultiplexedConnection,
};

/// A server's place. The host is without the brackets that a URL puts around an IPv6 address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Of `host:port`, as a node of a cluster names another. An IPv6 host may lack its brackets.
    pub(crate) fn of_node(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some(Self { host, port: port.parse().ok()? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[derive(Clone)]
pub(crate) struct Dialer {
    pub(crate) tls: Option<Tls>,
    pub(crate) login: RedisConnectionInfo,
    /// For a connection with TLS and login.
    pub(crate) connect_timeout: Duration,
    /// For one answer.
    pub(crate) response_timeout: Duration,
}

#[derive(Clone)]
pub(crate) struct Tls {
    /// PEM; `None`: the system's authorities.
    pub(crate) authorities: Option<Vec<u8>>,
}

impl Dialer {
    pub(crate) fn client(&self, at: &Address) -> Result<Client, RedisError> {
        let (host, port) = (at.host.clone(), at.port);
        match &self.tls {
            None => Client::open(
                ConnectionAddr::Tcp(host, port)
                    .into_connection_info()?
                    .set_redis_settings(self.login.clone()),
            ),
            Some(Tls { authorities }) => {
                let at = ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
                let info = at.into_connection_info()?.set_redis_settings(self.login.clone());
                let certificates = TlsCertificates { client_tls: None, root_cert: authorities.clone() };
                Client::build_with_tls(info, certificates)
            }
        }
    }

    pub(crate) async fn dial(&self, at: &Address) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.response_timeout));
        self.client(at)?.get_multiplexed_async_connection_with_config(&config).await
    }
}

/// Grows from one attempt to the next, and differs from process to process: a server that comes back is not met by
/// all of them at once.
pub(crate) struct Pause {
    next: Duration,
    from: Duration,
    most: Duration,
}

impl Pause {
    pub(crate) fn between(from: Duration, most: Duration) -> Self {
        Self { next: from, from, most }
    }

    /// Half of what is due, and a random part of the other half.
    pub(crate) fn next(&mut self) -> Duration {
        let part = f64::from(u16::from_be_bytes(*random_bytes::<2>())) / f64::from(u16::MAX);
        let pause = self.next.mul_f64(0.5 + part / 2.0);
        self.next = (self.next * 2).min(self.most);
        pause
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.from;
    }
}
