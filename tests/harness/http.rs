//! A plain HTTP/1.1 client: one connection a request unless it is kept, no redirects, no cookies, every byte of the answer at hand.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use url::Url;

use super::{certificates::Certificates, runtime::block_on};

/// A request about to be sent.
#[derive(Debug, Clone)]
pub struct Request {
    method: Method,
    url: Url,
    headers: Vec<(String, String)>,
    body: Bytes,
    tls: Option<Arc<ClientConfig>>,
}

/// A connection for one request after another, to one origin. Dropping it closes it.
#[derive(Debug)]
pub struct KeptConnection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<Result<(), hyper::Error>>,
}

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A GET about to be sent.
#[track_caller]
pub fn get(url: &str) -> Request {
    request(Method::GET, url)
}

/// A request about to be sent.
#[track_caller]
pub fn request(method: Method, url: &str) -> Request {
    let url = Url::parse(url).unwrap_or_else(|error| panic!("{url:?} is no address: {error}"));
    Request { method, url, headers: Vec::new(), body: Bytes::new(), tls: None }
}

impl Request {
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Puts this value in the place of whatever was there.
    #[must_use]
    pub fn replace_header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(held, _)| !held.eq_ignore_ascii_case(name));
        self.header(name, value)
    }

    #[must_use]
    pub fn bearer(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        let body = body.to_string();
        self.header("content-type", "application/json").body(body)
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Trusts these certificates' authority.
    #[must_use]
    pub fn trusting(mut self, certificates: &Certificates) -> Self {
        self.tls = Some(certificates.client.clone());
        self
    }

    /// Sends it and reads the whole answer.
    ///
    /// # Panics
    /// Nobody answers.
    #[track_caller]
    pub fn send(&self) -> Reply {
        let what = format!("{} {}", self.method, self.url.path());
        self.try_send().unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// # Errors
    /// Nobody answers, or the answer breaks off.
    pub fn try_send(&self) -> Result<Reply, String> {
        block_on(self.send_async())
    }

    /// # Errors
    /// Nobody answers, or the answer breaks off.
    pub async fn send_async(&self) -> Result<Reply, String> {
        timeout(PATIENCE, self.exchange()).await.map_err(|_| format!("no answer within {PATIENCE:?}"))?
    }

    async fn exchange(&self) -> Result<Reply, String> {
        self.exchange_on(&mut self.connect().await?).await
    }

    /// Sends it on `kept` and reads the whole answer; on a new connection where there is none or it has ended. What was
    /// sent is not sent again.
    ///
    /// # Errors
    /// Nobody answers, or the answer breaks off.
    pub async fn send_on(&self, kept: &mut Option<KeptConnection>) -> Result<Reply, String> {
        let exchange = async {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            if connection.sender.ready().await.is_err() {
                connection = self.connect().await?;
            }
            let reply = self.exchange_on(&mut connection).await?;
            if !reply.header("connection").eq_ignore_ascii_case("close") {
                *kept = Some(connection);
            }
            Ok(reply)
        };
        timeout(PATIENCE, exchange).await.map_err(|_| format!("no answer within {PATIENCE:?}"))?
    }

    async fn connect(&self) -> Result<KeptConnection, String> {
        let host = self.url.host_str().ok_or("no host")?.to_owned();
        let port = self.url.port_or_known_default().ok_or("no port")?;
        let tcp =
            TcpStream::connect((host.as_str(), port)).await.map_err(|error| format!("connect: {error}"))?;
        if self.url.scheme() == "http" {
            return KeptConnection::over(tcp).await;
        }
        let tls = self.tls.clone().ok_or("https needs trusting(…)")?;
        let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
        let tls =
            TlsConnector::from(tls).connect(name, tcp).await.map_err(|error| format!("TLS: {error}"))?;
        KeptConnection::over(tls).await
    }

    async fn exchange_on(&self, connection: &mut KeptConnection) -> Result<Reply, String> {
        let query = self.url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let mut message =
            http::Request::builder().method(self.method.clone()).uri(format!("{}{query}", self.url.path()));
        if !self.headers.iter().any(|(name, _)| name == header::HOST.as_str()) {
            message = message.header(header::HOST, self.url.authority());
        }
        for (name, value) in &self.headers {
            message = message.header(name, value);
        }
        let message = message.body(Full::new(self.body.clone())).map_err(|error| error.to_string())?;
        let answer = connection.sender.send_request(message).await.map_err(|error| http_error(&error))?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| http_error(&error))?.to_bytes();
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
    }
}

impl KeptConnection {
    async fn over<S>(stream: S) -> Result<Self, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| http_error(&error))?;
        Ok(Self { sender, driver: tokio::spawn(connection) })
    }
}

impl Drop for KeptConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn http_error(error: &hyper::Error) -> String {
    format!("HTTP: {error}")
}

impl Reply {
    /// First value of the header; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or("?"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("status {}, no JSON ({error}): {}", self.status, self.text()))
    }

    /// The answer itself, provided it has this status.
    #[track_caller]
    #[must_use]
    pub fn expect(self, status: StatusCode) -> Self {
        assert_eq!(self.status, status.as_u16(), "{:?}\n{}", self.headers, self.text());
        self
    }

    /// All there is to see of the answer: for searches.
    pub fn everything(&self) -> String {
        format!("{:?}\n{}", self.headers, self.text())
    }
}

/// Longer than any limit of the daemon that these tests set.
const PATIENCE: Duration = Duration::from_secs(40);
