//! An HTTP/2 connection to an instance, for as many calls at once as it takes. The frames are hyper's; its driver is a task
//! of the worker's own, which ends with the last call that holds the connection and the pool that offers it.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bearerd_net::Stream;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http2},
};
use hyper_util::rt::TokioIo;
use tokio::task::{AbortHandle, spawn_local};

use crate::{
    answer_head,
    body::UpstreamBody,
    upstream::answer::{AnswerHead, HeadFault},
};

/// A connection that calls share.
#[derive(Debug)]
pub(crate) struct Shared {
    sender: http2::SendRequest<UpstreamBody>,
    calls: Cell<u32>,
    /// No further call is to go over it.
    retired: Cell<bool>,
    driver: AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Shared {
    /// Speaks first; the instance may refuse only later.
    pub(crate) async fn begin(stream: Stream) -> Result<Self, hyper::Error> {
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        let driver = spawn_local(async move {
            if let Err(error) = connection.await {
                // Each call on it has been told already.
                tracing::debug!(%error, "a connection to an instance ended");
            }
        });
        Ok(Self { sender, calls: Cell::new(0), retired: Cell::new(false), driver: driver.abort_handle() })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.retired.get() || self.sender.is_closed()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.calls.get() < CALLS_MAX && !self.is_closed()
    }

    pub(crate) fn retire(&self) {
        self.retired.set(true);
    }

    /// Sends; the future is the wait for the answer's head.
    pub(crate) fn send(
        self: &Rc<Self>,
        request: Request<UpstreamBody>,
    ) -> (Held, impl Future<Output = Result<Response<Incoming>, TrySendError<Request<UpstreamBody>>>> + use<>)
    {
        self.calls.set(self.calls.get() + 1);
        (Held(Rc::clone(self)), self.sender.clone().try_send_request(request))
    }
}

/// A call on a shared connection, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Held(Rc<Shared>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.calls.set(self.0.calls.get().saturating_sub(1));
    }
}

/// The body of an answer. Dropping it before its end cancels its stream, and nothing else.
#[derive(Debug)]
pub(crate) struct Http2Stream {
    incoming: Incoming,
    ended: bool,
    _held: Held,
}

impl Http2Stream {
    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn length(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        loop {
            let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => return Poll::Pending,
            };
            self.ended = frame.is_none() || self.incoming.is_end_stream();
            match frame {
                // Trailers are dropped.
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// An answer, and how its body comes.
pub(crate) fn taken_apart(
    answer: Response<Incoming>,
    held: Held,
) -> Result<(AnswerHead, Http2Stream), HeadFault> {
    let (parts, incoming) = answer.into_parts();
    if parts.headers.get_all(http::header::CONTENT_LENGTH).iter().count() > 1 {
        return Err(HeadFault::TwoLengths);
    }
    let mut headers = parts.headers;
    let gone: Vec<_> = headers.keys().filter(|name| !answer_head::passes(name.as_str())).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
    let ended = incoming.is_end_stream();
    Ok((AnswerHead { status: parts.status, headers }, Http2Stream { incoming, ended, _held: held }))
}

/// Runs what hyper spawns on the worker's own thread.
#[derive(Debug, Clone)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, task: F) {
        spawn_local(task);
    }
}

/// Calls at once on one connection; further ones open another. Where the instance admits fewer, they wait on it.
const CALLS_MAX: u32 = 100;
/// What an instance may send of one answer before its caller has taken it.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// As much as an answer's head may have over HTTP/1.1.
const HEADER_LIST_BYTES_MAX: u32 = 128 * 1024;
