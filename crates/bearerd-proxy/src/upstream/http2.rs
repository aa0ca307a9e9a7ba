//! An HTTP/2 connection to an instance, for as many calls at once as it takes. The frames are hyper's; its driver is a task
//! of the worker's own, which ends with the last call that holds the connection and the pool that offers it.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
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
use tokio::{
    sync::Notify,
    task::{AbortHandle, spawn_local},
    time::timeout,
};

use crate::{
    body::UpstreamBody,
    passing::Passing,
    upstream::{
        answer::{self, AnswerHead, HeadFault},
        connection::ExchangeFault,
    },
};

type Driven = http2::Connection<TokioIo<Stream>, UpstreamBody, LocalExecutor>;

/// A connection that calls share.
#[derive(Debug)]
pub(crate) struct SharedConnection {
    sender: http2::SendRequest<UpstreamBody>,
    /// Says how many calls at once the instance admits; `None` once it has ended.
    connection: Rc<RefCell<Option<Pin<Box<Driven>>>>>,
    calls: Cell<usize>,
    /// Calls that were given up before their answer's end.
    given_up: Cell<u32>,
    /// No further call is to go over it.
    retired: Cell<bool>,
    settings: Rc<Settings>,
    driver: AbortHandle,
}

/// Whether the instance has said how many calls at once it admits.
#[derive(Debug, Default)]
struct Settings {
    came: Cell<bool>,
    told: Notify,
}

impl Settings {
    fn come(&self) {
        self.came.set(true);
        self.told.notify_waiters();
    }
}

impl Drop for SharedConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl SharedConnection {
    /// Speaks first; the instance may refuse only later.
    pub(crate) async fn begin(stream: Stream) -> Result<Self, hyper::Error> {
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .initial_max_send_streams(CALLS_BEFORE_SETTINGS)
            .handshake(TokioIo::new(stream))
            .await?;
        let connection = Rc::new(RefCell::new(Some(Box::pin(connection))));
        let alive = Rc::clone(&connection);
        let settings = Rc::new(Settings::default());
        let told = Rc::clone(&settings);
        let driver = spawn_local(async move {
            let ended = poll_fn(|cx| match &mut *alive.borrow_mut() {
                Some(connection) => {
                    let ended = connection.as_mut().poll(cx);
                    if !told.came.get() && connection.current_max_send_streams() != CALLS_BEFORE_SETTINGS {
                        told.come();
                    }
                    ended
                }
                None => Poll::Ready(Ok(())),
            });
            let ended = ended.await;
            // What waits in it is told by that.
            drop(alive.take());
            told.come();
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to an instance ended");
            }
        })
        .abort_handle();
        Ok(Self {
            sender,
            connection,
            calls: Cell::new(0),
            given_up: Cell::new(0),
            retired: Cell::new(false),
            settings,
            driver,
        })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.retired.get() || self.sender.is_closed()
    }

    /// A call more would not wait for another to end: one that waits is lost if the instance says GOAWAY meanwhile.
    pub(crate) fn has_room(&self) -> bool {
        let admitted = self.connection.borrow().as_ref().map_or(0, |live| live.current_max_send_streams());
        self.calls.get() < CALLS_MAX.min(admitted) && !self.is_closed()
    }

    /// Whether it may have more room as soon as the instance has said how much.
    pub(crate) fn may_grow(&self) -> bool {
        !self.settings.came.get() && !self.is_closed()
    }

    /// Waits for that, and no longer than a short while.
    pub(crate) async fn grown(&self) {
        let told = self.settings.told.notified();
        if self.may_grow() && timeout(SETTINGS_WAIT_MAX, told).await.is_err() {
            self.settings.come();
        }
    }

    pub(crate) fn retire(&self) {
        self.retired.set(true);
        self.settings.come(); // nobody waits for it
    }

    /// Sends; the future is the wait for the answer's head.
    pub(crate) fn send(
        self: &Rc<Self>,
        request: Request<UpstreamBody>,
    ) -> (Held, impl Future<Output = Result<Response<Incoming>, TrySendError<Request<UpstreamBody>>>> + use<>)
    {
        self.calls.set(self.calls.get() + 1);
        (Held { shared: Rc::clone(self), ended: false }, self.sender.clone().try_send_request(request))
    }
}

/// A call on a shared connection, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Held {
    shared: Rc<SharedConnection>,
    /// The answer has come to its end.
    ended: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.calls.set(shared.calls.get().saturating_sub(1));
        if !self.ended {
            shared.given_up.set(shared.given_up.get() + 1);
            if shared.given_up.get() >= GIVEN_UP_MAX {
                shared.retire();
            }
        }
    }
}

/// The body of an answer. Dropping it before its end cancels its stream, and nothing else.
#[derive(Debug)]
pub(crate) struct Http2Stream {
    incoming: Incoming,
    held: Held,
}

impl Http2Stream {
    /// An answer of a stated length has ended with its last byte, also where the frame that says so is yet to come.
    pub(crate) fn is_ended(&self) -> bool {
        self.held.ended || self.length() == Some(0)
    }

    pub(crate) fn length(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// Where all that was stated has come, what says so by itself is waited for by nobody but this, so that the stream is not
    /// reset: an instance may count resets against its callers.
    pub(crate) fn close(mut self) {
        if self.is_ended() && !self.held.ended {
            spawn_local(async move {
                let end = poll_fn(|cx| self.poll_chunk(cx));
                let _ = timeout(END_WAIT_MAX, end).await;
            });
        }
    }

    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ExchangeFault>>> {
        loop {
            let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => return Poll::Pending,
            };
            self.held.ended = self.incoming.is_end_stream();
            match frame {
                // Trailers are dropped.
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        if !self.held.ended && self.length() == Some(0) {
                            // Nobody will ask for more; it may be at hand already.
                            let end = Pin::new(&mut self.incoming).poll_frame(cx);
                            self.held.ended =
                                matches!(end, Poll::Ready(None)) || self.incoming.is_end_stream();
                        }
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(ExchangeFault::Http2(error)))),
                None if self.is_ended() => {
                    self.held.ended = true;
                    return Poll::Ready(None);
                }
                // A reset that says "no error" ends a body like its last frame (RFC 9113 §8.1), wherever it comes.
                None => return Poll::Ready(Some(Err(ExchangeFault::CutOff))),
            }
        }
    }
}

/// An answer, and how its body comes.
pub(crate) fn taken_apart(
    answer: Response<Incoming>,
    mut held: Held,
    passing: &Passing,
) -> Result<(AnswerHead, Http2Stream), HeadFault> {
    let (parts, incoming) = answer.into_parts();
    answer::check_status(parts.status)?;
    if parts.headers.get_all(http::header::CONTENT_LENGTH).iter().count() > 1 {
        return Err(HeadFault::TwoLengths);
    }
    let mut headers = parts.headers;
    let gone: Vec<_> = headers.keys().filter(|name| !passing.answer(name)).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
    held.ended = incoming.is_end_stream();
    Ok((AnswerHead { status: parts.status, headers }, Http2Stream { incoming, held }))
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

/// Calls at once on one connection, if the instance admits so many; further ones open another.
const CALLS_MAX: usize = 100;
/// Until the instance has said how many it admits. One that says just this is waited for in vain, hence an odd number.
const CALLS_BEFORE_SETTINGS: usize = 13;
/// An instance says it with its first bytes (RFC 9113 §3.4).
const SETTINGS_WAIT_MAX: Duration = Duration::from_secs(1);
/// For the end of a stream whose body has come.
const END_WAIT_MAX: Duration = Duration::from_secs(1);
/// Answers to calls that were given up may still arrive. h2 counts those that come late, and breaks the connection and
/// every call on it at 1,024 over its life; before that, no further call goes over it.
const GIVEN_UP_MAX: u32 = 500;
/// What an instance may send of one answer before its caller has taken it.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// As much as an answer's head may have over HTTP/1.1.
const HEADER_LIST_BYTES_MAX: u32 = 128 * 1024;
