//! One request on a connection of its own, its answer collected: for token endpoints, revocation and user reads.
//! No redirect is followed (O-39), no content coding accepted (P-21), nothing retried, no cookie kept.

use std::{pin::pin, time::Duration};

use bearerd_model::InstanceOrigin;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header, uri::PathAndQuery};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};

use crate::connector::{ConnectError, Connector};

/// hyper refuses smaller read buffers.
const HEADER_BYTES_MIN: usize = 8 * 1024;

/// How much one exchange may take.
#[derive(Debug, Clone, Copy)]
pub struct FetchLimits {
    /// From name resolution to the last byte of the body; the connector's own limit applies within it.
    pub total: Duration,
    /// Largest status line and header section; less than 8 KiB counts as 8 KiB.
    pub header_bytes_max: usize,
    pub body_bytes_max: usize,
}

impl Default for FetchLimits {
    /// 30 s, 32 KiB and 256 KiB: token answers are a few KB, and ServiceNow's HTML error pages some tens.
    fn default() -> Self {
        Self { total: Duration::from_secs(30), header_bytes_max: 32 * 1024, body_bytes_max: 256 * 1024 }
    }
}

/// An answer, whole. A redirect is an answer like any other.
#[derive(Debug)]
pub struct Fetched {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is no usable answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Certain: the server has seen nothing of the request.
    #[error("the request was not sent")]
    NotSent(#[source] ConnectError),
    /// The request may have been acted upon; the answer did not arrive, or not whole.
    #[error("the request was sent, but {fault}")]
    NoReply { fault: ReplyFault, status: Option<StatusCode>, source: Option<hyper::Error> },
    /// An answer came that is longer than we read. `status`: `None` if its head was.
    #[error("the answer is longer than {bytes_max} bytes")]
    ReplyTooLarge { status: Option<StatusCode>, bytes_max: usize },
    /// An answer came in a content coding although none was accepted.
    #[error("the answer has a content coding")]
    ReplyEncoded { status: StatusCode },
}

impl FetchError {
    /// Whether the server may have acted on the request.
    pub fn was_sent(&self) -> bool {
        !matches!(self, Self::NotSent(_))
    }

    /// The cause in a few stable words, for operators and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotSent(cause) => cause.reason(),
            Self::NoReply { fault, .. } => fault.reason(),
            Self::ReplyTooLarge { .. } => "answer too large",
            Self::ReplyEncoded { .. } => "answer in a content coding",
        }
    }
}

/// What became of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplyFault {
    /// [`FetchLimits::total`] ran out.
    TimedOut,
    /// The connection ended before a whole head.
    Closed,
    /// The head, or the framing of the body, is not HTTP/1.
    Malformed,
    /// A head came, and the connection ended inside the body.
    BodyCut,
}

impl ReplyFault {
    fn reason(self) -> &'static str {
        match self {
            Self::TimedOut => "no answer in time",
            Self::Closed => "connection closed without an answer",
            Self::Malformed => "answer is not HTTP",
            Self::BodyCut => "answer cut short",
        }
    }
}

impl std::fmt::Display for ReplyFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.reason())
    }
}

/// Sends `request` to `origin` on a new connection and collects the answer. Of the URI, path and query count; `Host`,
/// `Connection` and `Accept-Encoding` are set here. Dropping the future closes the connection: whoever must know the
/// outcome (a refresh) runs this in a task of its own.
///
/// # Errors
/// [`FetchError`]; [`FetchError::was_sent`] tells whether the server may have acted.
pub async fn fetch(
    connector: &Connector,
    origin: &InstanceOrigin,
    request: Request<Full<Bytes>>,
    limits: FetchLimits,
) -> Result<Fetched, FetchError> {
    let deadline = Instant::now() + limits.total;
    let request = prepared(origin, request);
    let stream = connector.connect_http1(origin, limits.total).await.map_err(FetchError::NotSent)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(limits.header_bytes_max.max(HEADER_BYTES_MIN))
        .handshake(TokioIo::new(stream))
        .await
        // HTTP/1 has no handshake: this makes state, it sends nothing.
        .map_err(|_| FetchError::NotSent(ConnectError::ClosedEarly))?;
    let mut head_status = None;
    let exchange = async {
        let reply = sender.try_send_request(request).await.map_err(|mut failure| {
            let unsent = failure.take_message().is_some();
            if unsent {
                FetchError::NotSent(ConnectError::ClosedEarly)
            } else {
                head_fault(failure.into_error(), limits)
            }
        })?;
        head_status = Some(reply.status());
        collected(reply, limits).await
    };
    let outcome = timeout_at(deadline, driven(exchange, connection)).await;
    outcome.unwrap_or(Err(FetchError::NoReply {
        fault: ReplyFault::TimedOut,
        status: head_status,
        source: None,
    }))
}

/// Polls `exchange` to its end, and the connection beneath it for as long as that lives.
async fn driven<T>(exchange: impl Future<Output = T>, connection: impl Future) -> T {
    let (mut exchange, mut connection) = (pin!(exchange), pin!(connection));
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            outcome = &mut exchange => return outcome,
            // Its error, if any, reaches the exchange too.
            _ = &mut connection, if open => open = false,
        }
    }
}

fn prepared(origin: &InstanceOrigin, mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(target);
    *request.version_mut() = http::Version::HTTP_11;
    let host =
        HeaderValue::from_str(origin.authority()).expect("the authority of a parsed URL is visible ASCII");
    let headers = request.headers_mut();
    headers.insert(header::HOST, host);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    request
}

fn head_fault(source: hyper::Error, limits: FetchLimits) -> FetchError {
    if source.is_parse_too_large() {
        return FetchError::ReplyTooLarge { status: None, bytes_max: limits.header_bytes_max };
    }
    let fault = if source.is_parse() { ReplyFault::Malformed } else { ReplyFault::Closed };
    FetchError::NoReply { fault, status: None, source: Some(source) }
}

async fn collected(reply: http::Response<Incoming>, limits: FetchLimits) -> Result<Fetched, FetchError> {
    let (head, mut body) = reply.into_parts();
    let status = head.status;
    if !is_framed_once(&head.headers) {
        return Err(FetchError::NoReply { fault: ReplyFault::Malformed, status: Some(status), source: None });
    }
    let encoded =
        |value: &HeaderValue| !value.is_empty() && !value.as_bytes().eq_ignore_ascii_case(b"identity");
    if head.headers.get_all(header::CONTENT_ENCODING).iter().any(encoded) {
        return Err(FetchError::ReplyEncoded { status });
    }
    let too_large = || FetchError::ReplyTooLarge { status: Some(status), bytes_max: limits.body_bytes_max };
    if body.size_hint().lower() > limits.body_bytes_max as u64 {
        return Err(too_large());
    }
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| body_fault(status, source))?;
        let Ok(part) = frame.into_data() else { continue };
        if part.len() > limits.body_bytes_max - collected.len() {
            return Err(too_large());
        }
        collected.extend_from_slice(&part);
    }
    Ok(Fetched { status, headers: head.headers, body: collected.freeze() })
}

/// Two framings in one answer, or a transfer coding other than `chunked`, are refused: hyper would pick one (P-05).
fn is_framed_once(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_chunked = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => is_chunked(coding) && !headers.contains_key(header::CONTENT_LENGTH),
        (Some(_), Some(_)) => false,
    }
}

fn body_fault(status: StatusCode, source: hyper::Error) -> FetchError {
    let fault = if source.is_parse() { ReplyFault::Malformed } else { ReplyFault::BodyCut };
    FetchError::NoReply { fault, status: Some(status), source: Some(source) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        EgressSettings, TlsFault,
        testing::{FarSide, Script, TestCa, dead_address, origin},
    };

    fn connector() -> Connector {
        Connector::new(&EgressSettings::default()).unwrap()
    }

    fn post(target: &str) -> Request<Full<Bytes>> {
        Request::post(target).header("cookie-free", "1").body(Full::from("grant_type=refresh_token")).unwrap()
    }

    async fn fetched(reply: impl Into<Vec<u8>>, limits: FetchLimits) -> Result<Fetched, FetchError> {
        let far = FarSide::plain(Script::Reply(reply.into())).await;
        let outcome = fetch(&connector(), &far.http(), post("/oauth_token.do"), limits).await;
        assert_eq!(far.seen().len(), 1, "nothing is retried");
        outcome
    }

    #[track_caller]
    fn check_no_reply(
        outcome: Result<Fetched, FetchError>,
        expected: ReplyFault,
        expected_status: Option<u16>,
    ) {
        match outcome.unwrap_err() {
            FetchError::NoReply { fault, status, .. } => {
                assert_eq!((fault, status.map(|status| status.as_u16())), (expected, expected_status));
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_reply_is_collected_over_tls() {
        let ca = TestCa::new();
        let reply = "HTTP/1.1 400 Bad Request\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\n{}";
        let far = FarSide::tls(Script::Reply(reply.into()), &ca.issue("127.0.0.1")).await;
        let request = Request::post("https://elsewhere.org/oauth_token.do?a=%20b")
            .header("host", "elsewhere.org")
            .header("accept-encoding", "gzip")
            .body(Full::from("x=y"))
            .unwrap();
        let fetched = fetch(&ca.connector(), &far.https(), request, FetchLimits::default()).await.unwrap();
        assert_eq!((fetched.status.as_u16(), &fetched.body[..]), (400, &b"{}"[..]));
        assert_eq!(fetched.headers["set-cookie"], "a=b");
        let seen = far.seen().remove(0);
        assert!(seen.starts_with("POST /oauth_token.do?a=%20b HTTP/1.1\r\n"), "{seen}");
        for line in
            [format!("host: {}", far.address), "connection: close".into(), "accept-encoding: identity".into()]
        {
            assert_eq!(seen.lines().filter(|&found| found == line).count(), 1, "{line} in {seen}");
        }
        assert!(
            !seen.contains("elsewhere") && !seen.contains("gzip") && seen.ends_with("\r\n\r\nx=y"),
            "{seen}"
        );
    }

    #[tokio::test]
    async fn an_untrusted_server_sees_no_request() {
        let ca = TestCa::new();
        let far = FarSide::tls(Script::Silence, &ca.issue("127.0.0.1")).await;
        let error = fetch(&connector(), &far.https(), post("/"), FetchLimits::default()).await.unwrap_err();
        let untrusted = TlsFault::CertificateUntrusted;
        assert!(
            matches!(&error, FetchError::NotSent(ConnectError::Tls { fault, .. }) if *fault == untrusted)
        );
        assert!(!error.was_sent() && far.seen().is_empty());
    }

    /// O-39
    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let evil = FarSide::plain(Script::Silence).await;
        for status in [301, 302, 303, 307, 308] {
            let reply = format!(
                "HTTP/1.1 {status} Moved\r\nLocation: http://{}/steal\r\nContent-Length: 0\r\n\r\n",
                evil.address
            );
            let fetched = fetched(reply, FetchLimits::default()).await.unwrap();
            assert_eq!(fetched.status.as_u16(), status);
        }
        assert!(evil.seen().is_empty());
    }

    /// P-21
    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit() {
        let limits = FetchLimits { body_bytes_max: 10, ..FetchLimits::default() };
        for (body, fits) in [
            ("Content-Length: 10\r\n\r\n0123456789", true),
            ("Content-Length: 11\r\n\r\n0123456789a", false),
            ("Content-Length: 9999999999\r\n\r\n", false),
            ("Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n", true),
            ("Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n6\r\n56789a\r\n0\r\n\r\n", false),
            ("\r\n0123456789", true),
            ("\r\n0123456789a", false),
        ] {
            let outcome = fetched(format!("HTTP/1.1 200 OK\r\n{body}"), limits).await;
            match outcome {
                Ok(fetched) => assert!(fits && fetched.body == "0123456789", "{body}"),
                Err(FetchError::ReplyTooLarge { status: Some(StatusCode::OK), bytes_max: 10 }) => {
                    assert!(!fits, "{body}");
                }
                Err(other) => panic!("{body}: {other:?}"),
            }
        }
    }

    /// P-21
    #[tokio::test]
    async fn a_content_coding_is_refused() {
        for coding in ["gzip", "br", "identity, gzip", "zstd"] {
            let reply =
                format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: 1\r\n\r\nx");
            let error = fetched(reply, FetchLimits::default()).await.unwrap_err();
            assert!(matches!(error, FetchError::ReplyEncoded { .. }) && error.was_sent(), "{coding}");
        }
        let plain = "HTTP/1.1 200 OK\r\nContent-Encoding: Identity\r\nContent-Length: 1\r\n\r\nx";
        assert!(fetched(plain, FetchLimits::default()).await.is_ok());
    }

    /// P-05
    #[tokio::test]
    async fn a_broken_answer_leaves_the_outcome_unknown() {
        for (reply, fault, status) in [
            ("", ReplyFault::Closed, None),
            ("HTTP/1.1 200 OK\r\nContent-Le", ReplyFault::Closed, None),
            ("SSH-2.0-OpenSSH_9.9\r\n\r\n", ReplyFault::Malformed, None),
            ("HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n", ReplyFault::Malformed, None),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
                ReplyFault::Malformed,
                None,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                ReplyFault::Malformed,
                Some(200),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
                ReplyFault::Malformed,
                Some(200),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx", ReplyFault::Malformed, Some(200)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", ReplyFault::BodyCut, Some(200)),
            (
                "HTTP/1.1 503 Later\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01",
                ReplyFault::BodyCut,
                Some(503),
            ),
        ] {
            let outcome = fetched(reply, FetchLimits::default()).await;
            assert!(outcome.as_ref().is_err_and(FetchError::was_sent), "{reply:?}");
            check_no_reply(outcome, fault, status);
        }
        let bad_chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
        assert!(matches!(fetched(bad_chunk, FetchLimits::default()).await, Err(FetchError::NoReply { .. })));
    }

    #[tokio::test]
    async fn a_head_is_read_up_to_its_limit() {
        let limits = FetchLimits { header_bytes_max: 16 * 1024, ..FetchLimits::default() };
        let reply = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1024 * 1024));
        let error = fetched(reply, limits).await.unwrap_err();
        assert!(matches!(error, FetchError::ReplyTooLarge { status: None, bytes_max: 16384 }), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_is_given_up_on() {
        let far = FarSide::plain(Script::Silence).await;
        let outcome = fetch(&connector(), &far.http(), post("/"), FetchLimits::default()).await;
        check_no_reply(outcome, ReplyFault::TimedOut, None);
        assert_eq!(far.seen().len(), 1);
        // The whole limit holds for the way there too.
        let stuck = FarSide::plain(Script::Stuck).await;
        let limits = FetchLimits { total: Duration::from_secs(3), ..FetchLimits::default() };
        let error = fetch(&connector(), &stuck.https(), post("/"), limits).await.unwrap_err();
        assert_eq!((error.was_sent(), error.reason()), (false, "TLS handshake timed out"));
    }

    /// Closed before or after our first byte: either is told truly, and at once.
    #[tokio::test]
    async fn a_server_that_hangs_up_is_not_waited_for() {
        let far = FarSide::plain(Script::Greet(Vec::new())).await;
        let error = fetch(&connector(), &far.http(), post("/"), FetchLimits::default()).await.unwrap_err();
        assert!(matches!(
            error,
            FetchError::NotSent(ConnectError::ClosedEarly)
                | FetchError::NoReply { fault: ReplyFault::Closed, .. }
        ));
    }

    #[tokio::test]
    async fn a_refused_connection_was_not_sent() {
        let to = origin(&format!("http://{}", dead_address().await));
        // In a task of its own, as a refresh runs.
        let task = async move { fetch(&connector(), &to, post("/"), FetchLimits::default()).await };
        let error = tokio::spawn(task).await.unwrap().unwrap_err();
        assert_eq!((error.was_sent(), error.reason()), (false, "connection refused"));
    }
}
