//! One connection: a socket through which every byte is looked at on its way in, and on which an answer can be sent
//! that no HTTP library would send.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Version};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use crate::state::Shared;
use crate::strict::{self, RawHead, Seen, StrictReader};

/// A TCP or TLS socket.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// What is known of a connection from its TLS handshake.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFacts {
    pub(crate) is_tls: bool,
    /// SHA-256 of the client's certificate in DER, hexadecimal.
    pub(crate) client_certificate: Option<String>,
}

/// Bytes that take the place of an answer, and what happens then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawAnswer {
    pub(crate) bytes: Bytes,
    /// Closes then; otherwise the connection stays open, and further requests on it are counted but not answered.
    pub(crate) close: bool,
}

/// Which request this is, and how it looked.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) connection: u64,
    /// Counts up from 1 on each connection.
    pub(crate) number: u64,
    /// `None` on HTTP/2.
    pub(crate) raw_head: Option<Bytes>,
    /// What a strict reader finds wrong with the head.
    pub(crate) findings: Vec<&'static str>,
    pub(crate) tls: TlsFacts,
}

/// What is known of one connection.
pub(crate) struct Line {
    number: u64,
    tls: TlsFacts,
    shared: Arc<Shared>,
    state: Mutex<LineState>,
}

#[derive(Default)]
struct LineState {
    reader: StrictReader,
    /// Arrived, and not yet given to a request.
    heads: VecDeque<RawHead>,
    requests: u64,
    in_service: u64,
    raw: Option<RawAnswer>,
}

impl Line {
    pub(crate) fn new(number: u64, tls: TlsFacts, shared: &Arc<Shared>) -> Arc<Self> {
        let state = Mutex::new(LineState::default());
        Arc::new(Self { number, tls, shared: Arc::clone(shared), state })
    }

    /// The next request is answered now.
    pub(crate) fn arrival<B>(&self, request: &Request<B>) -> Arrival {
        let mut state = self.state();
        state.requests += 1;
        state.in_service += 1;
        let (number, head) = (state.requests, state.heads.pop_front());
        drop(state);
        let (raw_head, findings) = if request.version() == Version::HTTP_2 {
            let findings = strict::judge_http2(request);
            self.count_malformed(&findings, &[]);
            (None, findings)
        } else {
            head.map(|head| (Some(head.bytes), head.findings)).unwrap_or_default()
        };
        Arrival { connection: self.number, number, raw_head, findings, tls: self.tls.clone() }
    }

    pub(crate) fn answered(&self) {
        let mut state = self.state();
        state.in_service = state.in_service.saturating_sub(1);
    }

    /// From here on the connection belongs to these bytes.
    pub(crate) fn take_over(&self, raw: RawAnswer) {
        self.state().raw = Some(raw);
    }

    pub(crate) fn raw_answer(&self) -> Option<RawAnswer> {
        self.state().raw.take()
    }

    fn state(&self) -> MutexGuard<'_, LineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, bytes: &[u8]) {
        let mut state = self.state();
        let seen = state.reader.read(bytes);
        if seen.is_empty() {
            return;
        }
        let mut pipelined = 0;
        let mut malformed = Vec::new();
        for one in seen {
            match one {
                Seen::Head(head) => {
                    pipelined += u64::from(state.in_service > 0 || !state.heads.is_empty());
                    if !head.findings.is_empty() {
                        malformed.push((head.findings.clone(), head.bytes.clone()));
                    }
                    state.heads.push_back(head);
                }
                Seen::BrokenBody(finding) => malformed.push((vec![finding], Bytes::new())),
            }
        }
        drop(state);
        if pipelined > 0 {
            self.shared.world().counters.pipelined_requests += pipelined;
            self.shared.note_change();
        }
        for (findings, head) in malformed {
            self.count_malformed(&findings, &head);
        }
    }

    fn count_malformed(&self, findings: &[&'static str], head: &[u8]) {
        if findings.is_empty() {
            return;
        }
        let mut world = self.shared.world();
        world.counters.malformed_requests += 1;
        world.malformed.push(self.number, findings.to_vec(), head);
        drop(world);
        self.shared.note_change();
    }
}

/// The socket of a connection. Clones share it; one of them is used at a time.
#[derive(Clone)]
pub(crate) struct Tap {
    socket: Arc<Mutex<Box<dyn Socket>>>,
    line: Arc<Line>,
}

impl Tap {
    pub(crate) fn new(socket: Box<dyn Socket>, line: Arc<Line>) -> Self {
        Self { socket: Arc::new(Mutex::new(socket)), line }
    }

    /// Sends the bytes in place of an answer; what comes after on an open connection is read, counted and dropped.
    pub(crate) async fn answer_raw(mut self, raw: RawAnswer) -> io::Result<()> {
        self.write_all(&raw.bytes).await?;
        self.flush().await?;
        let mut buffer = vec![0; 16 * 1024];
        while !raw.close && self.read(&mut buffer).await? > 0 {
            let heads = std::mem::take(&mut self.line.state().heads).len();
            let mut world = self.line.shared.world();
            world.counters.requests_after_raw += u64::try_from(heads).unwrap_or_default();
            drop(world);
            self.line.shared.note_change();
            if heads > 0 {
                break;
            }
        }
        self.shutdown().await
    }

    fn with_socket<T>(&self, act: impl FnOnce(Pin<&mut dyn Socket>) -> T) -> T {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        act(Pin::new(&mut **socket))
    }
}

impl AsyncRead for Tap {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        std::task::ready!(self.with_socket(|socket| socket.poll_read(context, buffer)))?;
        self.line.read(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tap {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with_socket(|socket| socket.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with_socket(|socket| socket.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with_socket(|socket| socket.poll_shutdown(context))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with_socket(|socket| socket.poll_write_vectored(context, buffers))
    }

    fn is_write_vectored(&self) -> bool {
        self.with_socket(|socket| socket.is_write_vectored())
    }
}
