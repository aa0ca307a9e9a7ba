//! The life of one call: head, path and key are judged; policy says yes; the token is taken; the request goes out and
//! the answer comes back, both as streams. All branching and state is here; the modules it calls decide one thing
//! each. Dropping the future, as hyper does when a caller leaves, closes the connection to the instance and nothing
//! else.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use bearerd_model::ConnectionId;
use bearerd_policy::Method;
use bearerd_tokens::{AfterRefusal, ConnectionView, LentToken};
use http::{Request, Response, StatusCode, Uri, request, response, uri::PathAndQuery};
use http_body::Body;
use hyper::body::Incoming;
use tokio::task::spawn_local;

use crate::{
    admit::{self, Asked, Known, Only, Step},
    answer_head::{self, Base},
    body::{AnswerBody, BodyFault, CallerBody, UpstreamBody},
    credentials,
    error::{Code, Fault, Wanted},
    head,
    metrics::{Origin, Shard},
    pool::{Lease, Pool},
    request_id::RequestId,
    route::Route,
    upstream_head,
    worker::{CallerConnection, Worker},
};

/// Counts a call as under way until its answer has ended or was given up.
#[derive(Debug)]
pub(crate) struct UnderWay {
    caller: Rc<CallerConnection>,
    worker: Rc<Worker>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.caller.call_ends(self.worker.now.now());
        self.worker.shard.in_flight.take_one();
    }
}

/// Answers one request; never fails but by an answer.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    caller: Rc<CallerConnection>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let wire_fault = caller.call_begins(worker.now.now());
    worker.shard.in_flight.add_one();
    let under_way = UnderWay { caller, worker: Rc::clone(&worker) };
    let (parts, body) = request.into_parts();
    let request_id = worker.ids.id_for(&parts.headers);
    let method = Method::parse(parts.method.as_str());
    let outcome = match (worker.draining.get(), wire_fault) {
        (true, _) => Err(Failed::before(Fault::new(Code::Draining).closing())),
        (false, Some(fault)) => Err(Failed::before(Fault::malformed(fault.detail()))),
        (false, None) => forward(&worker, &parts, body, request_id.clone(), under_way).await,
    };
    Ok(match outcome {
        Ok(response) => {
            worker.shard.answered(method, response.status(), Origin::Instance);
            response
        }
        Err(failed) => {
            failed.log(&request_id);
            let fault = failed.fault;
            note_fault(&worker.shard, method, &fault);
            fault.respond(Wanted::of(&parts.headers).format, request_id)
        }
    })
}

/// A fault, and the connection it concerns once that is settled: for the log.
struct Failed {
    fault: Fault,
    connection: Option<ConnectionId>,
}

impl Failed {
    fn before(fault: Fault) -> Self {
        Self { fault, connection: None }
    }

    /// One line per failure that is not the caller's.
    fn log(&self, request_id: &RequestId) {
        if self.fault.code.status().is_server_error() {
            let code = self.fault.code.name();
            let connection = self.connection.as_ref().map_or("", ConnectionId::as_str);
            let cause = self.fault.cause.as_deref().unwrap_or_default();
            tracing::warn!(
                error.code = code,
                error.cause = cause,
                request.id = request_id.as_str(),
                connection.id = connection,
                "call failed: {code}"
            );
        }
    }
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self::before(fault)
    }
}

fn note_fault(shard: &Shard, method: Option<Method>, fault: &Fault) {
    shard.answered(method, fault.code.status(), Origin::Bearerd);
    shard.failed(fault.code);
}

async fn forward(
    worker: &Rc<Worker>,
    parts: &request::Parts,
    body: Incoming,
    request_id: RequestId,
    under_way: UnderWay,
) -> Result<Response<AnswerBody>, Failed> {
    let limits = &*worker.limits;
    let has_body = !body.is_end_stream();
    let head = head::check(limits, &parts.method, &parts.uri, &parts.headers, has_body)?;
    let route = Route::parse(parts.uri.path()).map_err(Fault::from)?;
    upstream_head::check_query(parts.uri.query())?;
    let key = credentials::presented(&parts.headers)?;
    let named = admit::named_connection(&route, &parts.headers)?;
    let asked = Asked { key: key.as_bytes(), named, target: route.target, method: head.method };
    let (view, token) = admitted(worker, asked).await?;
    let concerned = |fault: Fault| Failed { fault, connection: Some(view.id.clone()) };
    if body.size_hint().lower() > limits.table_body_bytes_max {
        return Err(concerned(Fault::new(Code::BodyTooLarge).closing()));
    }
    let body = has_body.then(|| {
        CallerBody::new(body, limits.table_body_bytes_max, limits.replay_body_bytes_max, worker.now.clone())
    });
    let outgoing = Outgoing {
        worker,
        method: head.method,
        sent: parts,
        target: upstream_head::target(&route, parts.uri.query()),
        body,
    };
    let (answer, incoming, lease) = exchange(&outgoing, &view.id, token).await.map_err(concerned)?;
    if let Err(fault) = answer_head::check_sense(&answer, head.wanted, head.method) {
        if incoming.is_end_stream() {
            lease.give_back();
        }
        return Err(concerned(fault));
    }
    let base = Base {
        public_url: limits.public_url.as_deref(),
        tls: limits.tls,
        host: head.host,
        connection: route.connection,
        instance: &view.upstream.instance,
    };
    let body = AnswerBody::streamed(incoming, lease, limits.body_idle_ms, worker.now.clone(), under_way);
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer_head::headers(answer.headers, base, request_id.into_value());
    Ok(response)
}

/// Waits for what memory does not hold, and asks anew after each wait. Each question is put at most once.
async fn admitted(worker: &Worker, asked: Asked<'_>) -> Result<(Arc<ConnectionView>, LentToken), Failed> {
    let mut known = Known::default();
    loop {
        let step = {
            let mut reader = worker.snapshot.borrow_mut();
            let (snapshot, now) = (reader.load(), worker.clock.now());
            admit::step(&worker.limits, &worker.shared, snapshot, &*worker.tokens, asked, &known, now)?
        };
        match step {
            Step::Go(view, token) => return Ok((view, token)),
            Step::Acquire(view) => {
                let acquired = worker.tokens.acquire(&view.id).await;
                let refused =
                    |error| Failed { fault: admit::not_lent(&error), connection: Some(view.id.clone()) };
                let token = acquired.map_err(refused)?;
                // Another upstream, or another connection under the same id, and nobody has judged that one.
                if !Arc::ptr_eq(&token.upstream, &view.upstream) {
                    return Err(Failed {
                        fault: admit::changed_meanwhile(),
                        connection: Some(view.id.clone()),
                    });
                }
                view.last_use.mark(worker.clock.now());
                return Ok((view, token));
            }
            Step::FindSole => {
                known.only = worker.tokens.sole_connection().await.map_or(Only::None, Only::One);
            }
            Step::Load(id) => {
                let loaded = worker.tokens.load(&id).await;
                known.view = Some(loaded.map_err(|error| admit::not_lent(&error))?);
            }
        }
    }
}

/// A call that policy has let through.
struct Outgoing<'a> {
    worker: &'a Rc<Worker>,
    method: Method,
    /// The caller's own head.
    sent: &'a request::Parts,
    target: PathAndQuery,
    body: Option<CallerBody>,
}

type Answer = (response::Parts, Incoming, Lease);

/// Sends the call; and once more after a 401, with the token that a forced refresh brought, if the body is still at
/// hand *after* the refresh and the token is for the instance that answered. A 401 precedes execution, so no write
/// runs twice (P-26, I-4, I-11).
async fn exchange(outgoing: &Outgoing<'_>, id: &ConnectionId, token: LentToken) -> Result<Answer, Fault> {
    let attempt = outgoing.attempt(&token).expect("nothing of the body has passed yet");
    let first = send(outgoing, attempt).await?;
    if first.0.status == StatusCode::UNAUTHORIZED {
        let outcome = outgoing.worker.tokens.refused(id, &token);
        if !outgoing.body.as_ref().is_none_or(CallerBody::is_at_hand) {
            // The next call profits from the refresh.
            spawn_local(outcome);
        } else if let AfterRefusal::Replay(newer) = outcome.await
            && Arc::ptr_eq(&newer.upstream, &token.upstream)
            && let Some(attempt) = outgoing.attempt(&newer)
        {
            // Its connection is closed, and with it what was still being sent there.
            drop(first);
            outgoing.worker.shard.replays.add_one();
            return send(outgoing, attempt).await;
        }
    }
    outgoing.body.iter().for_each(CallerBody::keep_no_more);
    Ok(first)
}

/// A request and where it goes: both follow from one token, so that it goes nowhere else (I-4).
struct OneAttempt {
    pool: Rc<Pool>,
    request: Request<UpstreamBody>,
}

/// Sends one attempt and waits for the answer's head. The attempt moves to another connection only while not a byte
/// of it was written (P-28).
async fn send(outgoing: &Outgoing<'_>, attempt: OneAttempt) -> Result<Answer, Fault> {
    let worker = outgoing.worker;
    let OneAttempt { pool, mut request } = attempt;
    loop {
        let mut connection = worker.pools.take(&pool).await.map_err(|error| {
            Fault::new(Code::InstanceUnreachable).detail(error.reason()).caused_by(&error)
        })?;
        let is_reused = connection.is_reused;
        let answered = outgoing.head_of(connection.sender.try_send_request(request)).await?;
        let mut refused = match answered {
            Ok(answer) => {
                let (head, incoming) = answer.into_parts();
                let lease = Lease::new(connection, pool, outgoing.body.clone());
                let checked = answer_head::check_framing(&head);
                return checked
                    .map(|()| (head, incoming, lease))
                    .map_err(|fault| outgoing.after_sending(fault));
            }
            Err(refused) => refused,
        };
        match refused.take_message() {
            // The connection was closed while idle, and the request given back whole.
            Some(unsent) if is_reused => request = unsent,
            _ => return Err(outgoing.broken(refused.error())),
        }
    }
}

impl Outgoing<'_> {
    /// `None`: the body cannot be sent from its beginning any more.
    fn attempt(&self, token: &LentToken) -> Option<OneAttempt> {
        let body = match &self.body {
            Some(body) => body.attempt()?,
            None => UpstreamBody::EMPTY,
        };
        let empty_write =
            self.body.is_none() && matches!(self.method, Method::Post | Method::Put | Method::Patch);
        let pool = self.worker.pools.pool(&token.upstream);
        let mut request = Request::new(body);
        *request.method_mut() = self.sent.method.clone();
        *request.uri_mut() = Uri::from(self.target.clone());
        *request.headers_mut() =
            upstream_head::headers(&self.sent.headers, &pool.host, &token.bearer, empty_write);
        Some(OneAttempt { pool, request })
    }

    /// Waits for `answer`, as long as the limits on silence allow.
    async fn head_of<F: Future>(&self, answer: F) -> Result<F::Output, Fault> {
        let limits = &self.worker.limits;
        let begun = self.worker.now.now();
        let mut answer = pin!(answer);
        poll_fn(|cx| {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(Ok(answer));
            }
            let body = self.body.as_ref();
            if body.is_some_and(|body| body.is_stalled(limits.body_idle_ms)) {
                return Poll::Ready(Err(Fault::new(Code::RequestTooSlow).closing()));
            }
            let since = body.map_or(begun, |body| body.progressed_at().max(begun));
            if self.worker.now.is_past(since, limits.first_byte_ms) {
                return Poll::Ready(Err(self.after_sending(Fault::new(Code::InstanceTimeout))));
            }
            Poll::Pending
        })
        .await
    }

    /// The request may have been executed: only a read is safe to repeat.
    fn after_sending(&self, fault: Fault) -> Fault {
        fault.retryable(self.method.is_safe())
    }

    /// Why there is no answer's head.
    fn broken(&self, error: &hyper::Error) -> Fault {
        match self.body.as_ref().and_then(CallerBody::fault) {
            Some(BodyFault::TooLarge) => return Fault::new(Code::BodyTooLarge).closing(),
            Some(BodyFault::Broken | BodyFault::Superseded) => {
                return Fault::malformed("The body is malformed or was cut off.");
            }
            None => {}
        }
        let fault = if error.is_parse() || error.is_incomplete_message() {
            Fault::new(Code::InstanceReplyInvalid).detail("The answer's head was broken or cut off.")
        } else {
            Fault::new(Code::InstanceUnreachable).detail("The connection broke before an answer came.")
        };
        self.after_sending(fault).caused_by(error)
    }
}
