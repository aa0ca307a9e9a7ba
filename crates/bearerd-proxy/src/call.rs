//! The life of one call: head, path and key are judged; policy says yes; the token is taken; the request goes out and
//! the answer comes back, both as streams. All branching and state is here; the modules it calls decide one thing
//! each. Dropping the future, as hyper does when a caller leaves, closes the connection to the instance and nothing
//! else.

use std::{
    future::{Future, poll_fn},
    net::IpAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bearerd_audit::Text;
use bearerd_model::ConnectionId;
use bearerd_policy::Method;
use bearerd_tokens::{AfterRefusal, LentToken};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header, request, uri::PathAndQuery};
use http_body::Body;
use hyper::body::Incoming;
use tokio::task::spawn_local;
use zeroize::Zeroizing;

use crate::{
    admit::{self, Asked, Known, Opening, Step},
    answer_head::{self, Base},
    body::{AnswerBody, BodyFault, CallerBody, InstanceBody, UpstreamBody},
    caller::{CallerConnection, idle_ms_of},
    credentials,
    error::{Code, Fault, Wanted},
    head,
    line_up::line_up,
    places::Full,
    pool::{Pool, Taken, Way},
    request_id::RequestId,
    route::{Family, Route},
    settings::FamilyLimits,
    token_endpoint::{self, Refusal},
    under_way::UnderWay,
    upstream::{
        AnswerHead, AnswerStream, Connection, Exchange, ExchangeFault, SharedConnection, taken_apart,
    },
    upstream_head::{self, Length, Ours},
    wire::WireFault,
    worker::Worker,
};

/// There is nobody to answer.
#[derive(Debug, thiserror::Error)]
#[error("the caller left inside its request")]
pub(crate) struct CallerLeft;

/// Answers one request; never fails but by an answer.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    caller: Rc<CallerConnection>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, CallerLeft> {
    let wire_fault = caller.call_begins(worker.now.now());
    let (parts, body) = request.into_parts();
    let request_id = worker.ids.id_for(&parts.headers);
    let mut under_way = UnderWay::begin(&worker, caller, &parts, &request_id);
    let source = under_way.caller().source(&worker.callers_rule, &parts.headers);
    under_way.record().source = source.as_ref().ok().copied().flatten();
    let body = (!body.is_end_stream()).then(|| {
        let (caller, now) = (Rc::clone(under_way.caller()), worker.now.clone());
        CallerBody::new(body, caller, worker.limits.replay_body_bytes_max, now)
    });
    if let Some(body) = &body {
        under_way.carries(body.clone());
    }
    let outcome = match begun(&worker, wire_fault).await {
        Ok(()) => answer(&worker, &parts, source, body.as_ref(), &request_id, &mut under_way).await,
        Err(fault) => Err(Failed::before(fault)),
    };
    // A caller that waits to be asked for its body is not.
    let is_held_back = parts.headers.contains_key(header::EXPECT);
    let to_head = parts.method == http::Method::HEAD;
    if !matches!(outcome, Ok(Answer::Instance(_))) && under_way.caller_left_in_body() {
        return Err(CallerLeft);
    }
    Ok(match outcome {
        Ok(Answer::Instance(response)) => response.map(|stream| AnswerBody::streamed(stream, under_way)),
        Ok(Answer::Own(mut response)) => {
            if to_head {
                response = without_body(response);
            }
            if body.is_some_and(|body| !body.has_ended()) && parts.version != Version::HTTP_2 {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            under_way.answers_itself(response.status());
            response.map(|body| body.ending(under_way))
        }
        Err(failed) => {
            failed.log(&request_id);
            let fault = failed.fault;
            let is_read = match &body {
                Some(body) if !fault.closes() && !body.has_ended() => !is_held_back && body.discard().await,
                _ => true,
            };
            let fault = if is_read { fault } else { fault.closing() };
            let response = fault.respond(Wanted::of(&parts.headers).format, request_id, parts.version);
            let response = if to_head { without_body(response) } else { response };
            under_way.failed(&fault);
            response.map(|body| body.ending(under_way))
        }
    })
}

/// What refuses a call whatever it asks for. A refusal is recorded like any other call, and waits for room like one.
async fn begun(worker: &Worker, wire_fault: Option<WireFault>) -> Result<(), Fault> {
    if worker.draining.get() {
        return Err(Fault::new(Code::Draining).closing());
    }
    let room = worker.room_for_records().await;
    match wire_fault {
        // Nothing behind a refused head is read.
        Some(fault) => Err(room.err().map_or_else(|| fault.fault(), Fault::closing)),
        None => room,
    }
}

/// To a HEAD (RFC 9110 §9.3.2): the length is said, and nothing sent. Over HTTP/2 nobody else leaves it out.
fn without_body(mut response: Response<AnswerBody>) -> Response<AnswerBody> {
    let length = HeaderValue::from(response.body().own_len());
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    response.map(|_| AnswerBody::own(Bytes::new()))
}

/// What a call is answered with.
enum Answer {
    Instance(Response<InstanceBody>),
    /// A token response.
    Own(Response<AnswerBody>),
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
        // Shedding is no news a thousand times a second: it is counted.
        let own = matches!(self.fault.code, Code::Overloaded | Code::Draining);
        if self.fault.code.status().is_server_error() && !own {
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

async fn answer(
    worker: &Rc<Worker>,
    parts: &request::Parts,
    source: Result<Option<IpAddr>, Fault>,
    body: Option<&CallerBody>,
    request_id: &RequestId,
    under_way: &mut UnderWay,
) -> Result<Answer, Failed> {
    let limits = &*worker.limits;
    let has_body = body.is_some();
    let head = head::check(limits, parts, has_body)?;
    if let Some(trace) = upstream_head::traceparent(&parts.headers) {
        under_way.record().traceparent = Text::from_bytes(trace.as_bytes());
    }
    let source = source?;
    if parts.uri.path() == token_endpoint::PATH {
        return token_response(worker, parts, head.method, body, request_id, under_way).await;
    }
    let route = Route::parse(parts.uri.path()).map_err(Fault::from)?;
    let family = limits.of(route.family);
    under_way.routed(&route, family.total_ms);
    upstream_head::check_query(parts.uri.query())?;
    let key = credentials::presented(&parts.headers)?;
    let asked = Asked {
        key: key.as_bytes(),
        named: admit::named_connection(&route, &parts.headers)?,
        route: &route,
        family: &route.family.name(),
        method: head.method,
        query: parts.uri.query(),
        source,
    };
    if let Some(body) = body {
        body.may_have(family.body_bytes_max);
    }
    line_up(&worker.shard).await; // before the call is judged, so that nothing lies between that and sending
    let (opening, token) = admitted(worker, asked, body, under_way).await?;
    let view = opening.view;
    let concerned = |fault: Fault| Failed { fault, connection: Some(view.id.clone()) };
    let outgoing = Outgoing {
        worker,
        asked,
        family,
        method: head.method,
        sent: parts,
        target: upstream_head::target(
            parts.uri.path_and_query().ok_or_else(|| Fault::new(Code::PathRefused))?,
            &route,
            opening.query.as_deref(),
        ),
        query: opening.query,
        body: body.cloned(),
    };
    let (answer, stream, pool) = exchange(&outgoing, &view.id, token, under_way).await.map_err(concerned)?;
    under_way.answered(&answer);
    line_up(&worker.shard).await;
    let checked = if route.family == Family::Table {
        answer_head::check_sense(&answer, head.wanted, head.method)
    } else {
        Ok(())
    };
    if let Err(fault) = checked {
        if let Some(connection) = stream.into_connection() {
            pool.put(connection);
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
    let stream = InstanceBody::new(stream, pool, limits.body_idle_ms, worker.now.clone());
    let mut response = Response::new(stream);
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer_head::headers(answer.headers, base, request_id.value());
    if has_body && !under_way.has_whole_body() && parts.version != Version::HTTP_2 {
        // It came before the request's end: what is left of that may never be read.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(Answer::Instance(response))
}

/// Waits for what memory does not hold, and asks anew after each wait. Each question is put at most once.
async fn admitted(
    worker: &Worker,
    asked: Asked<'_>,
    body: Option<&CallerBody>,
    under_way: &mut UnderWay,
) -> Result<(Opening, LentToken), Failed> {
    let mut known = Known::default();
    loop {
        let step = worker.remembering(|memory| admit::step(memory, asked, &known, under_way))?;
        match step {
            Step::Go(opening, token) => {
                check_length(worker, &asked, body)
                    .map_err(|fault| Failed { fault, connection: Some(opening.view.id.clone()) })?;
                // Whoever had to wait for a place is judged again.
                if has_place(worker, &opening, body, under_way).await? {
                    under_way.record().generation = Some(token.generation.0);
                    return Ok((opening, token));
                }
                (known.view, known.acquired) = (None, None);
            }
            Step::Acquire(opening) => {
                let id = &opening.view.id;
                let refused = |error| Failed { fault: admit::not_lent(&error), connection: Some(id.clone()) };
                let acquired = under_way.in_time(worker.tokens.acquire(id)).await;
                known.acquired = Some(acquired.ok_or_else(no_token_in_time)?.map_err(refused)?);
            }
            Step::Enumerate => {
                let loaded = under_way.in_time(worker.tokens.load_roster()).await;
                let loaded = loaded.ok_or_else(no_token_in_time)?;
                known.roster = Some(loaded.map_err(|error| admit::not_lent(&error))?);
            }
            Step::Load(id) => {
                let loaded = under_way.in_time(worker.tokens.load(&id)).await;
                let loaded = loaded.ok_or_else(no_token_in_time)?;
                known.view = Some(loaded.map_err(|error| admit::not_lent(&error))?);
            }
        }
    }
}

fn no_token_in_time() -> Fault {
    Fault::new(Code::TokenUnavailable).detail("The call's time was over before there was a token.")
}

/// A body that states a length beyond its family's limit is refused unread.
fn check_length(worker: &Worker, asked: &Asked<'_>, body: Option<&CallerBody>) -> Result<(), Fault> {
    let max = worker.limits.of(asked.route.family).body_bytes_max;
    match body {
        Some(body) if body.stated() > max => Err(Fault::new(Code::BodyTooLarge).closing()),
        _ => Ok(()),
    }
}

/// `false`: there is one now, after a wait. Where places are few, a call with a body first has some of it at hand (P-19).
async fn has_place(
    worker: &Worker,
    opening: &Opening,
    body: Option<&CallerBody>,
    under_way: &mut UnderWay,
) -> Result<bool, Fault> {
    let pool = worker.pools.pool(&opening.view.upstream);
    if under_way.place().as_ref().is_some_and(|place| place.is_at(&pool.places)) {
        return Ok(true);
    }
    let few = pool.places.are_few();
    if let Some(body) = body.filter(|body| few && !body.has_first()) {
        poll_fn(|cx| {
            let first = body.poll_first(cx);
            if first.is_pending() && (body.is_stalled(worker.limits.body_idle_ms) || under_way.is_over()) {
                return Poll::Ready(Err(Fault::new(Code::RequestTooSlow).closing()));
            }
            first.map_err(body_fault)
        })
        .await?;
        return Ok(false); // and it is judged again
    }
    if let Some(place) = pool.places.try_take() {
        *under_way.place() = Some(place);
        return Ok(true);
    }
    worker.shard.queued.add_one();
    let place = under_way.in_time(pool.places.take(&opening.key)).await.unwrap_or(Err(Full::WaitedTooLong));
    let place = place.map_err(|full| {
        Fault::new(Code::Overloaded).detail(match full {
            Full::QueueFull => "Too many calls wait for this instance.",
            Full::WaitedTooLong => "The instance had no room for the call in time.",
        })
    })?;
    *under_way.place() = Some(place);
    Ok(false)
}

/// `POST /oauth_token.do`.
async fn token_response(
    worker: &Rc<Worker>,
    parts: &request::Parts,
    method: Method,
    body: Option<&CallerBody>,
    request_id: &RequestId,
    under_way: &mut UnderWay,
) -> Result<Answer, Failed> {
    let refused = |refusal: Refusal, under_way: &mut UnderWay| {
        worker.shard.failed(refusal.code());
        under_way.record().error = Some(refusal.code().name());
        Ok(Answer::Own(refusal.respond(request_id.clone())))
    };
    under_way.record().family = Text::new("oauth_token");
    if method != Method::Post {
        return refused(Refusal::Unread(Code::MethodRefused), under_way);
    }
    let form = match body {
        Some(body) => whole(worker, body).await,
        None => Ok(Zeroizing::default()),
    };
    let form = match form {
        Ok(form) => form,
        Err(fault) if under_way.caller_left_in_body() => return Err(fault.into()), // nobody is answered
        Err(fault) => return refused(Refusal::Unread(fault.code), under_way),
    };
    let request = match token_endpoint::Request::parse(&parts.headers, &form) {
        Ok(request) => request,
        Err(refusal) => return refused(refusal, under_way),
    };
    let checked = worker.remembering(|memory| {
        let key = admit::authenticate(memory, &request.key, under_way)?;
        key.mark_used(memory.now);
        Ok((key.ends_at(), memory.now))
    });
    match checked {
        Ok((ends_at, now)) => Ok(Answer::Own(request.granted(ends_at, now, request_id.clone()))),
        Err(Fault { code, .. }) => refused(request.refused(code), under_way),
    }
}

/// All of a small body, within the time that a head has: whoever sends it has shown no key yet.
async fn whole(worker: &Worker, body: &CallerBody) -> Result<Zeroizing<Vec<u8>>, Fault> {
    body.may_have(token_endpoint::BODY_BYTES_MAX as u64);
    let mut stream = body.attempt().ok_or_else(|| Fault::malformed("The body was cut off."))?;
    body.keep_no_more();
    let mut bytes = Zeroizing::new(Vec::with_capacity(token_endpoint::BODY_BYTES_MAX));
    let begun = worker.now.now();
    loop {
        let chunk = poll_fn(|cx| {
            let chunk = Pin::new(&mut stream).poll_frame(cx);
            if chunk.is_pending() && worker.now.is_past(begun, worker.limits.header_read_ms) {
                return Poll::Ready(Err(Fault::new(Code::RequestTooSlow).closing()));
            }
            chunk.map(Ok)
        });
        match chunk.await? {
            None => return Ok(bytes),
            Some(Ok(frame)) => bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            Some(Err(fault)) => return Err(body_fault(fault)),
        }
    }
}

fn body_fault(fault: BodyFault) -> Fault {
    match fault {
        BodyFault::TooLarge => Fault::new(Code::BodyTooLarge).closing(),
        BodyFault::Malformed | BodyFault::Left | BodyFault::Superseded => {
            Fault::malformed("The body is malformed or was cut off.")
        }
    }
}

/// A call that policy has let through.
struct Outgoing<'a> {
    worker: &'a Rc<Worker>,
    asked: Asked<'a>,
    family: &'a FamilyLimits,
    method: Method,
    /// The caller's own head.
    sent: &'a request::Parts,
    target: PathAndQuery,
    /// What a record rule made of the caller's query.
    query: Option<String>,
    body: Option<CallerBody>,
}

/// The head of an answer, and the body to come with the pool that its connection goes back to.
type Answered = (AnswerHead, AnswerStream, Rc<Pool>);

/// Sends the call; and once more after a 401, with the token that a forced refresh brought, if the body is still at
/// hand *after* the refresh and the token is for the instance that answered. A 401 precedes execution, so no write
/// runs twice (P-26, I-4, I-11).
async fn exchange(
    outgoing: &Outgoing<'_>,
    id: &ConnectionId,
    token: LentToken,
    under_way: &mut UnderWay,
) -> Result<Answered, Fault> {
    let attempt = outgoing.attempt(&token).expect("nothing of the body has passed yet");
    let first = send(outgoing, attempt, under_way).await?;
    if first.0.status == StatusCode::UNAUTHORIZED {
        let worker = outgoing.worker;
        let outcome = worker.tokens.refused(id, &token);
        if !outgoing.body.as_ref().is_none_or(CallerBody::is_at_hand) {
            // The next call profits from the refresh.
            spawn_local(outcome);
        } else if let AfterRefusal::Replay(newer) =
            under_way.in_time(outcome).await.ok_or_else(no_token_in_time)?
            && Arc::ptr_eq(&newer.upstream, &token.upstream)
            && let Some(attempt) = outgoing.attempt(&newer)
        {
            // Key and policy may be others after the wait, and the connection is settled by now.
            let asked = Asked { named: Some(id.as_str()), ..outgoing.asked };
            let known = Known::default();
            match worker.remembering(|memory| admit::step(memory, asked, &known, under_way))? {
                Step::Go(opening, _) | Step::Acquire(opening) if opening.query == outgoing.query => {}
                _ => return Err(admit::changed_meanwhile()),
            }
            // Its connection is closed, and with it what was still being sent there.
            drop(first);
            worker.shard.replays.add_one();
            under_way.replayed(newer.generation);
            let second = send(outgoing, attempt, under_way).await;
            outgoing.body.iter().for_each(CallerBody::keep_no_more);
            return second;
        }
    }
    outgoing.body.iter().for_each(CallerBody::keep_no_more);
    Ok(first)
}

/// A request and where it goes: both follow from one token, so that it goes nowhere else (I-4).
struct OneAttempt {
    pool: Rc<Pool>,
    bearer: HeaderValue,
    body: UpstreamBody,
    length: Length,
}

/// Sends one attempt and waits for the answer's head. The attempt moves to another connection only while not a byte
/// of it was written (P-28).
async fn send(outgoing: &Outgoing<'_>, attempt: OneAttempt, under_way: &UnderWay) -> Result<Answered, Fault> {
    let OneAttempt { pool, bearer, mut body, length } = attempt;
    loop {
        let Taken { way, is_reused } = under_way
            .in_time(outgoing.worker.pools.take(&pool, outgoing.family.connect))
            .await
            .ok_or_else(no_connection_in_time)?
            .map_err(|error| {
                Fault::new(Code::InstanceUnreachable).detail(error.reason()).caused_by(&error)
            })?;
        let outcome = match way {
            Way::Http1(connection) => {
                let passing = &outgoing.worker.limits.passing;
                let ours = Ours { host: &pool.host, bearer: &bearer, length, passing };
                outgoing.over_http1(connection, &pool, ours, body, under_way).await?
            }
            Way::Http2(shared) => outgoing.over_http2(&shared, &pool, &bearer, body, under_way).await?,
        };
        match outcome {
            Ok((head, stream)) => return Ok((head, stream, pool)),
            // It was closed while idle.
            Err(Unanswered::Unsent(unsent)) if is_reused => body = unsent,
            Err(Unanswered::Unsent(_)) => return Err(outgoing.broken(&ExchangeFault::NotSent)),
            Err(Unanswered::Broken(fault)) => return Err(outgoing.broken(&fault)),
        }
    }
}

/// Nothing was sent.
fn no_connection_in_time() -> Fault {
    let detail = "The call's time was over before there was a connection to the instance.";
    Fault::new(Code::InstanceTimeout).detail(detail).retryable(true)
}

/// Why there is no answer.
enum Unanswered {
    /// Not a byte was written: the body is as it was.
    Unsent(UpstreamBody),
    Broken(ExchangeFault),
}

impl From<ExchangeFault> for Unanswered {
    fn from(fault: ExchangeFault) -> Self {
        Self::Broken(fault)
    }
}

/// `Err` of the outer kind: a limit ended the wait.
type Outcome = Result<Result<(AnswerHead, AnswerStream), Unanswered>, Fault>;

impl Outgoing<'_> {
    /// `None`: the body cannot be sent from its beginning any more.
    fn attempt(&self, token: &LentToken) -> Option<OneAttempt> {
        let body = match &self.body {
            Some(body) => body.attempt()?,
            None => UpstreamBody::EMPTY,
        };
        let length = match (&self.body, self.method) {
            (Some(_), _) => body.size_hint().exact().map_or(Length::Unknown, Length::Known),
            // A write without a body says so.
            (None, Method::Post | Method::Put | Method::Patch) => Length::Known(0),
            (None, _) => Length::Unsaid,
        };
        let pool = self.worker.pools.pool(&token.upstream);
        Some(OneAttempt { pool, bearer: token.bearer.clone(), body, length })
    }

    async fn over_http1(
        &self,
        connection: Connection,
        pool: &Pool,
        ours: Ours<'_>,
        body: UpstreamBody,
        under_way: &UnderWay,
    ) -> Outcome {
        let head = upstream_head::encode(self.method.name(), &self.target, &self.sent.headers, ours);
        let mut exchange = Exchange::new(connection, head, body, ours.length, self.method == Method::Head);
        Ok(match self.within_limits(pool, |cx| exchange.poll_head(cx, ours.passing), under_way).await? {
            Ok(parsed) => {
                let stream = exchange.into_body(&parsed);
                Ok((parsed.head, AnswerStream::Http1(Box::new(stream))))
            }
            Err(ExchangeFault::NotSent) => Err(Unanswered::Unsent(exchange.into_unsent())),
            Err(fault) => Err(fault.into()),
        })
    }

    async fn over_http2(
        &self,
        shared: &Rc<SharedConnection>,
        pool: &Pool,
        bearer: &HeaderValue,
        body: UpstreamBody,
        under_way: &UnderWay,
    ) -> Outcome {
        let mut request = Request::new(body);
        *request.method_mut() = self.sent.method.clone();
        *request.headers_mut() =
            upstream_head::headers(&self.sent.headers, bearer, &self.worker.limits.passing);
        *request.uri_mut() = Uri::builder()
            .scheme(pool.scheme.clone())
            .authority(pool.host.as_bytes())
            .path_and_query(self.target.clone())
            .build()
            .expect("an instance's authority, and a target that was parsed before");
        let (call, answering) = shared.send(request);
        let mut answering = pin!(answering);
        let answered = self.within_limits(pool, |cx| answering.as_mut().poll(cx), under_way).await;
        if answered.as_ref().is_err_and(|fault| fault.code == Code::InstanceTimeout) {
            // It may be dead without anybody saying so: no further call goes there.
            shared.retire();
        }
        Ok(match answered? {
            Ok(answer) => match taken_apart(answer, call, &self.worker.limits.passing) {
                Ok((answered, stream)) => Ok((answered, AnswerStream::Http2(stream))),
                Err(fault) => Err(ExchangeFault::from(fault).into()),
            },
            Err(mut refused) => Err(match refused.take_message() {
                Some(unsent) => Unanswered::Unsent(unsent.into_body()),
                None => ExchangeFault::Http2(refused.into_error()).into(),
            }),
        })
    }

    /// Waits for the answer's head, as long as the limits on silence allow.
    async fn within_limits<T>(
        &self,
        pool: &Pool,
        mut answer: impl FnMut(&mut Context<'_>) -> Poll<T>,
        under_way: &UnderWay,
    ) -> Result<T, Fault> {
        let worker = self.worker;
        let begun = worker.now.now();
        poll_fn(|cx| {
            if let Poll::Ready(answer) = answer(cx) {
                return Poll::Ready(Ok(answer));
            }
            let body = self.body.as_ref();
            let too_slow = |body: &CallerBody| {
                body.is_stalled(idle_ms_of(Some(pool), &worker.limits))
                    // Little by little until the call's time is up.
                    || (under_way.is_over() && body.waits_for_caller())
            };
            if body.is_some_and(too_slow) {
                return Poll::Ready(Err(Fault::new(Code::RequestTooSlow).closing()));
            }
            let since = body.map_or(begun, |body| body.progressed_at().max(begun));
            let is_due = !body.is_some_and(CallerBody::waits_for_caller);
            if is_due && worker.now.is_past(since, self.family.first_byte_ms) || under_way.is_over() {
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
    fn broken(&self, why: &ExchangeFault) -> Fault {
        if let Some(fault) = self.body.as_ref().and_then(CallerBody::fault) {
            return body_fault(fault);
        }
        let invalid = Fault::new(Code::InstanceReplyInvalid);
        let fault = match why {
            ExchangeFault::Head(fault) => invalid.detail(fault.to_string()),
            ExchangeFault::CutOff | ExchangeFault::Chunks(_) => {
                invalid.detail("The answer's head was broken or cut off.")
            }
            ExchangeFault::Http2(error) if error.is_parse() => {
                invalid.detail("The answer's head was broken or cut off.")
            }
            ExchangeFault::NotSent
            | ExchangeFault::Broken(_)
            | ExchangeFault::Body
            | ExchangeFault::Http2(_) => {
                let detail = "The connection broke before an answer came.";
                Fault::new(Code::InstanceUnreachable).detail(detail)
            }
        };
        self.after_sending(fault).caused_by(why)
    }
}
