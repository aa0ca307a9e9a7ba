//! Bodies that misbehave on purpose: chunked as ServiceNow sends them, in drips, or cut in the middle.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::wire::Seat;

/// One step of sending a body.
#[derive(Debug)]
pub(crate) enum Step {
    Data(Bytes),
    Pause(Duration),
    /// The connection is cut here.
    Cut,
}

/// A body of unknown length, sent step by step.
pub(crate) struct SimBody {
    steps: VecDeque<Step>,
    pause: Option<Pin<Box<Sleep>>>,
    cut: bool,
    seat: Option<Seat>,
}

impl SimBody {
    pub(crate) fn whole(content: Bytes) -> Self {
        let steps = if content.is_empty() { VecDeque::new() } else { VecDeque::from([Step::Data(content)]) };
        Self::new(steps)
    }

    fn new(steps: VecDeque<Step>) -> Self {
        Self { steps, pause: None, cut: false, seat: None }
    }

    /// The same body; `seat` learns whether it was sent whole.
    pub(crate) fn seated(mut self, seat: Seat) -> Self {
        self.seat = Some(seat);
        self
    }

    /// Only the first bytes, then the end of the connection. The pause lets them reach the wire first.
    pub(crate) fn cut(content: &Bytes, after_bytes: usize) -> Self {
        let sent = content.slice(..after_bytes.min(content.len()));
        let steps = [Step::Data(sent), Step::Pause(FLUSH_PAUSE), Step::Cut];
        Self::new(steps.into())
    }

    pub(crate) fn drip(content: &Bytes, chunk_bytes: usize, interval: Duration) -> Self {
        let chunk_bytes = chunk_bytes.max(1).max(content.len() / DRIPS_MAX);
        let starts = (0..content.len()).step_by(chunk_bytes);
        let steps = starts.flat_map(|start| {
            let end = (start + chunk_bytes).min(content.len());
            [Step::Data(content.slice(start..end)), Step::Pause(interval)]
        });
        Self::new(steps.collect())
    }
}

impl Drop for SimBody {
    fn drop(&mut self) {
        let whole = self.steps.is_empty() && self.pause.is_none() && !self.cut;
        if let Some(seat) = self.seat.take() {
            seat.leave(whole);
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
            match self.steps.pop_front() {
                None => return Poll::Ready(None),
                Some(Step::Data(data)) if data.is_empty() => {}
                Some(Step::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Step::Pause(length)) => self.pause = Some(Box::pin(sleep(length))),
                Some(Step::Cut) => {
                    self.cut = true;
                    return Poll::Ready(Some(Err(io::Error::other("cut by a fault"))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.steps.is_empty() && self.pause.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::new() }
    }
}

/// Longer than a write to a loopback socket takes.
const FLUSH_PAUSE: Duration = Duration::from_millis(30);
/// Pieces of one dripping body at most.
const DRIPS_MAX: usize = 100_000;
