//! One call, from the first look at its head to the last byte of its answer: it is counted once and recorded once,
//! however it ends. Whatever is held for the call (its share of the key's limits, its place at the instance) is given
//! back then.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Instant,
};

use bearerd_audit::{AccessRecord, HttpVersion, Text};
use bearerd_model::Generation;
use bearerd_policy::{InFlight, Method};
use http::{StatusCode, Version, request};

use crate::{
    answer_head,
    body::{AnswerFault, BodyFault, CallerBody},
    caller::{CallerConnection, Streaming},
    error::{Code, Fault},
    metrics::Origin,
    names,
    places::Place,
    pool::Pool,
    request_id::RequestId,
    route::Route,
    upstream::AnswerHead,
    worker::Worker,
};

/// A call whose answer has not ended. Dropping it ends the call.
pub(crate) struct UnderWay(Box<Call>);

struct Call {
    worker: Rc<Worker>,
    caller: Rc<CallerConnection>,
    begun: Instant,
    /// On the coarse clock.
    begun_at: u64,
    /// From then on the call is over its family's limit.
    total_max_ms: u64,
    method: Option<Method>,
    origin: Option<Origin>,
    /// The answer has gone out whole.
    whole: bool,
    /// It broke off, and not by its caller's doing.
    cut: bool,
    record: AccessRecord,
    /// Its share of the limits of the policy that opened it.
    in_flight: Option<InFlight>,
    place: Option<Place>,
    body: Option<CallerBody>,
    streaming: Option<Streaming>,
}

impl UnderWay {
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        caller: Rc<CallerConnection>,
        sent: &request::Parts,
        request_id: &RequestId,
    ) -> Self {
        worker.shard.in_flight.add_one();
        let record = AccessRecord {
            started_at: worker.clock.now(),
            request_id: Text::new(request_id.as_str()),
            method: Text::new(sent.method.as_str()),
            http: match sent.version {
                Version::HTTP_2 => HttpVersion::Http2,
                Version::HTTP_10 => HttpVersion::Http10,
                _ => HttpVersion::Http11,
            },
            ..AccessRecord::default()
        };
        Self(Box::new(Call {
            begun: Instant::now(),
            begun_at: worker.now.now(),
            total_max_ms: u64::MAX,
            method: Method::parse(sent.method.as_str()),
            origin: None,
            whole: false,
            cut: false,
            record,
            in_flight: None,
            place: None,
            body: None,
            streaming: None,
            worker: Rc::clone(worker),
            caller,
        }))
    }

    pub(crate) fn caller(&self) -> &Rc<CallerConnection> {
        &self.0.caller
    }

    /// What is said of the call, for who decides about it.
    pub(crate) fn record(&mut self) -> &mut AccessRecord {
        &mut self.0.record
    }

    pub(crate) fn routed(&mut self, route: &Route<'_>, total_max_ms: u64) {
        let call = &mut *self.0;
        call.total_max_ms = total_max_ms;
        // A little later than the call itself ends: it is answered before its connection is closed.
        call.caller.call_ends_by(call.begun_at.saturating_add(total_max_ms).saturating_add(ANSWER_MS));
        call.record.family = Text::new(&route.family.name());
        call.record.table = Text::new(route.table.unwrap_or_default());
    }

    /// Policy has let the call through, for the first time.
    pub(crate) fn decided(&mut self) {
        if self.0.record.decided_us.is_none() {
            self.0.record.decided_us = Some(self.elapsed_us());
        }
    }

    /// Until the call ends, its key has one call more under way. Counted once, however often the call is judged.
    pub(crate) fn in_flight(&mut self) -> &mut Option<InFlight> {
        &mut self.0.in_flight
    }

    pub(crate) fn place(&mut self) -> &mut Option<Place> {
        &mut self.0.place
    }

    pub(crate) fn carries(&mut self, body: CallerBody) {
        self.0.body = Some(body);
    }

    /// The caller has sent all of the body, and it went on.
    pub(crate) fn has_whole_body(&self) -> bool {
        self.0.body.as_ref().is_some_and(CallerBody::has_ended)
    }

    /// The caller left before it had sent its body.
    pub(crate) fn caller_left_in_body(&self) -> bool {
        self.0.body.as_ref().is_some_and(|body| body.fault() == Some(BodyFault::Left))
    }

    /// The call is sent once more, with a newer token.
    pub(crate) fn replayed(&mut self, generation: Generation) {
        self.0.record.replayed = true;
        self.0.record.generation = Some(generation.0);
    }

    /// The instance's answer begins.
    pub(crate) fn answered(&mut self, head: &AnswerHead) {
        let first_byte_us = self.elapsed_us();
        let call = &mut *self.0;
        call.record.first_byte_us = Some(first_byte_us);
        call.record.status = head.status.as_u16();
        call.record.instance_verdict = answer_head::verdict(head).map(|verdict| {
            call.worker.shard.refused(verdict);
            verdict.name()
        });
        if let Some(id) = head.headers.get(&names::X_TRANSACTION_ID) {
            call.record.transaction_id = Text::from_bytes(id.as_bytes());
        }
        call.origin = Some(Origin::Instance);
    }

    /// Its caller knows the answer's end by the end of the connection (RFC 9112 §6.3).
    pub(crate) fn ends_by_close(&self) {
        if self.0.record.http == HttpVersion::Http10 {
            self.0.caller.ends_by_close();
        }
    }

    /// The answer is about to be sent; from an instance, or bearerd's own.
    pub(crate) fn streams(&mut self, pool: Option<&Rc<Pool>>) {
        let call = &mut *self.0;
        call.streaming = Some(Streaming::new(&call.caller, pool, call.worker.now.now()));
    }

    /// The caller has room for more of the answer.
    pub(crate) fn asked(&self) {
        if let Some(streaming) = &self.0.streaming {
            streaming.asked(self.0.worker.now.now());
        }
    }

    /// So much of the answer was handed on.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.0.record.bytes_out += bytes as u64;
        self.0.caller.answers(bytes);
    }

    /// The answer was handed on to its end.
    pub(crate) fn ended(&mut self) {
        self.0.whole = true;
    }

    /// When the instance last took a piece of the body.
    pub(crate) fn body_progressed_at(&self) -> u64 {
        self.0.body.as_ref().map_or(0, CallerBody::progressed_at)
    }

    /// The answer breaks off, and not by its caller's doing.
    pub(crate) fn cut(&mut self, fault: &AnswerFault) {
        let code = match fault {
            AnswerFault::Cut(_) => Code::InstanceReplyInvalid,
            AnswerFault::Stalled | AnswerFault::TooLong => Code::InstanceTimeout,
        };
        let call = &mut *self.0;
        call.cut = true;
        call.record.error = Some(code.name());
        call.worker.shard.failed(code);
        tracing::warn!(
            error.code = code.name(),
            request.id = call.record.request_id.as_str(),
            connection.id = call.record.connection.as_str(),
            "answer cut: {fault}"
        );
    }

    /// bearerd itself answers.
    pub(crate) fn failed(&mut self, fault: &Fault) {
        let call = &mut *self.0;
        call.worker.shard.failed(fault.code);
        call.record.error = Some(fault.code.name());
        self.answers_itself(fault.code.status());
    }

    /// As [`Self::failed`], where that is no fault. Nothing is held at the instance or of the key's limits for it.
    pub(crate) fn answers_itself(&mut self, status: StatusCode) {
        let call = &mut *self.0;
        call.record.status = status.as_u16();
        call.origin = Some(Origin::Bearerd);
        (call.place, call.in_flight) = (None, None);
    }

    /// The call has taken longer than its family may.
    pub(crate) fn is_over(&self) -> bool {
        self.0.worker.now.is_past(self.0.begun_at, self.0.total_max_ms)
    }

    /// `None`: the call's time was over before.
    pub(crate) async fn in_time<T>(&self, waiting: impl Future<Output = T>) -> Option<T> {
        let mut waiting = pin!(waiting);
        poll_fn(|cx| match waiting.as_mut().poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending if self.is_over() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    fn elapsed_us(&self) -> u64 {
        let elapsed = self.0.begun.elapsed();
        elapsed.as_secs() * 1_000_000 + u64::from(elapsed.subsec_micros())
    }
}

/// For an answer that says that the time is up.
const ANSWER_MS: u64 = 2_000;

impl Drop for UnderWay {
    fn drop(&mut self) {
        let total_us = self.elapsed_us();
        let call = &mut *self.0;
        let record = &mut call.record;
        record.total_us = total_us;
        record.bytes_in = call.body.as_ref().map_or(0, CallerBody::received);
        // Over HTTP/2 the way to the instance is another task's, which would send on.
        call.body.iter().for_each(CallerBody::end_attempts);
        if call.caller.cuts_stream() {
            call.whole = false; // handed on, and not taken
        }
        if !call.whole && !call.cut && call.worker.cuts_all.get() {
            record.error = Some(Code::Draining.name());
            call.worker.shard.failed(Code::Draining);
            call.cut = true;
        }
        record.caller_left = !call.whole && !call.cut;
        call.caller.call_ends(call.worker.now.now(), call.whole);
        call.worker.shard.in_flight.take_one();
        let status = StatusCode::from_u16(record.status).ok();
        call.worker.shard.ended(call.method, status, call.origin);
        call.worker.access.borrow_mut().record(record);
    }
}

impl fmt::Debug for UnderWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnderWay").field("record", &self.0.record).finish_non_exhaustive()
    }
}
