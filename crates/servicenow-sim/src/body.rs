//! Bodies that misbehave on purpose: chunked as ServiceNow sends them, in drips, of any size, or cut in the middle.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::pattern::{GeneratedFile, pattern};
use crate::wire::Seat;

/// What is sent: bytes, then so much of the pattern.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    held: Bytes,
    pattern_at: u64,
    pattern_end: u64,
}

impl Content {
    pub(crate) fn new(held: Bytes, file: Option<GeneratedFile>) -> Self {
        Self { held, pattern_at: 0, pattern_end: file.map_or(0, |file| file.bytes) }
    }

    /// The next piece, at most so many bytes; `None` at the end.
    pub(crate) fn take(&mut self, bytes_max: usize) -> Option<Bytes> {
        if !self.held.is_empty() {
            return Some(self.held.split_to(self.held.len().min(bytes_max)));
        }
        let left = self.pattern_end.saturating_sub(self.pattern_at);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes_max).min(PATTERN_PIECE_BYTES);
        if length == 0 {
            return None;
        }
        let piece = pattern(self.pattern_at, length);
        self.pattern_at += u64::try_from(length).unwrap_or_default();
        Some(piece)
    }

    pub(crate) fn left(&self) -> u64 {
        u64::try_from(self.held.len()).unwrap_or_default() + (self.pattern_end - self.pattern_at)
    }

    /// Keeps the first bytes only.
    fn truncate(&mut self, bytes: u64) {
        let held = usize::try_from(bytes).unwrap_or(usize::MAX).min(self.held.len());
        self.held.truncate(held);
        let rest = bytes - u64::try_from(held).unwrap_or_default();
        self.pattern_end = self.pattern_end.min(self.pattern_at + rest);
    }
}

/// A body on its way.
pub(crate) struct SimBody {
    content: Content,
    /// What the answer says is still to come; `None` = chunked.
    announced: Option<u64>,
    piece_bytes_max: usize,
    /// After each piece.
    interval: Duration,
    /// The connection is cut where the content ends.
    cuts: bool,
    trailers: Option<HeaderMap>,
    pause: Option<Pin<Box<Sleep>>>,
    is_over: bool,
    seat: Option<Seat>,
}

impl SimBody {
    pub(crate) fn whole(content: Content, sized: bool) -> Self {
        Self {
            announced: sized.then(|| content.left()),
            content,
            piece_bytes_max: usize::MAX,
            interval: Duration::ZERO,
            cuts: false,
            trailers: None,
            pause: None,
            is_over: false,
            seat: None,
        }
    }

    /// The same body; `seat` learns whether it was sent whole.
    pub(crate) fn seated(mut self, seat: Seat) -> Self {
        self.seat = Some(seat);
        self
    }

    /// Only the first bytes, then the end of the connection.
    pub(crate) fn cut_after(mut self, bytes: u64) -> Self {
        self.content.truncate(bytes);
        self.cuts = true;
        self
    }

    pub(crate) fn dripping(mut self, piece_bytes: usize, interval: Duration) -> Self {
        let pieces_max_bytes = usize::try_from(self.content.left()).unwrap_or(usize::MAX) / DRIPS_MAX;
        self.piece_bytes_max = piece_bytes.max(1).max(pieces_max_bytes);
        self.interval = interval;
        self
    }

    pub(crate) fn with_trailers(mut self, trailers: HeaderMap) -> Self {
        self.trailers = Some(trailers);
        self.announced = None;
        self
    }
}

impl Drop for SimBody {
    fn drop(&mut self) {
        let (whole, cuts) = (self.is_end_stream(), self.cuts);
        match self.seat.take() {
            Some(seat) if whole || cuts => seat.leave(whole),
            Some(_) | None => {} // dropped: the client has left
        }
    }
}

impl Body for SimBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            let piece_bytes_max = self.piece_bytes_max;
            if let Some(piece) = self.content.take(piece_bytes_max) {
                let piece_bytes = u64::try_from(piece.len()).unwrap_or_default();
                self.announced = self.announced.map(|bytes| bytes.saturating_sub(piece_bytes));
                self.pause = (!self.interval.is_zero()).then(|| Box::pin(sleep(self.interval)));
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if !self.cuts {
                self.is_over = true;
                return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            if self.is_over {
                return Poll::Ready(Some(Err(io::Error::other("cut by a fault"))));
            }
            self.is_over = true;
            self.pause = Some(Box::pin(sleep(FLUSH_PAUSE)));
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_empty = self.content.left() == 0 && self.trailers.is_none() && self.pause.is_none();
        !self.cuts && (self.is_over || is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        let known = if self.is_end_stream() { Some(0) } else { self.announced };
        known.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

/// One piece of a generated file.
const PATTERN_PIECE_BYTES: usize = 64 * 1024;
/// Longer than a write to a loopback socket takes.
const FLUSH_PAUSE: Duration = Duration::from_millis(30);
/// Pieces of one dripping body at most.
const DRIPS_MAX: usize = 100_000;
