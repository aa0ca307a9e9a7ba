//! From request to answer: the route, the checks that need no decision of the control, the call, the page.

use std::{error::Error, sync::Arc, time::Duration};

use bearerd_control::ConsentFault;
use bearerd_model::{ConsentOutcome, IntegrationId, SecretText};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, LOCATION, RETRY_AFTER, SET_COOKIE},
};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    callback::CallbackQuery,
    consents::Consents,
    cookie::FlowCookies,
    headers::secure,
    pages::{self, Forms, Page, Stop},
    route::Route,
    sender::OwnOrigin,
    settings::{ConnectSettings, InvalidConnectSettings},
};

/// Answers every request of the door; needs no socket. Cheap to clone.
#[derive(Debug)]
pub struct Router<C> {
    inner: Arc<Inner<C>>,
}

impl<C> Clone for Router<C> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

#[derive(Debug)]
struct Inner<C> {
    consents: Arc<C>,
    own: OwnOrigin,
    cookies: FlowCookies,
    /// Requests that may be answered at once.
    places: Semaphore,
}

/// What a request leads to, before it is dressed up as a response.
struct Answer {
    content: Content,
    /// `Set-Cookie`.
    cookie: Option<HeaderValue>,
}

enum Content {
    Page(Page),
    /// 303, always (O-27): the browser goes on with a GET and without the body.
    SeeOther(HeaderValue),
    Stopped(Stop),
}

impl From<Result<Content, Stop>> for Answer {
    fn from(result: Result<Content, Stop>) -> Self {
        Self { content: result.unwrap_or_else(Content::Stopped), cookie: None }
    }
}

impl<C: Consents> Router<C> {
    /// # Errors
    /// [`InvalidConnectSettings`] if the public URL is not one.
    pub fn new(settings: &ConnectSettings, consents: Arc<C>) -> Result<Self, InvalidConnectSettings> {
        let public_url = settings.origin()?;
        let inner = Inner {
            consents,
            own: OwnOrigin::new(&public_url),
            cookies: FlowCookies { https: public_url.scheme() == "https" },
            places: Semaphore::new(REQUESTS_MAX),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Answers one request. No address in an answer comes from the request (O-16, O-25, O-26).
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let inner = &*self.inner;
        let route = Route::of(request.uri().path());
        let allow = if route.takes(request.method()) { None } else { route.allow() };
        let answer = match inner.places.try_acquire() {
            Err(_) => Err(Stop::Overloaded).into(),
            Ok(_) if allow.is_some() => Err(Stop::MethodRefused).into(),
            Ok(_place) => inner.answer(route, request).await,
        };
        inner.response(answer, allow)
    }
}

impl<C: Consents> Inner<C> {
    async fn answer<B>(&self, route: Route, request: Request<B>) -> Answer
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        match route {
            Route::Link(None) => Err(ConsentFault::LinkInvalid.into()).into(),
            Route::Link(Some(link)) if *request.method() == Method::POST => {
                self.begin(&link, request).await.unwrap_or_else(|stop| Err(stop).into())
            }
            Route::Link(Some(link)) => self.show(&link).await.into(),
            Route::Callback { integration } => {
                let query = request.uri().query().unwrap_or_default();
                self.finish(integration, query, request.headers()).await
            }
            Route::Done { outcome } => {
                let outcome = self.consents.consent_outcome(&outcome).await.ok_or(Stop::ResultUnknown);
                outcome.map(|outcome| Content::Page(pages::outcome(&outcome))).into()
            }
            Route::Unknown => Err(Stop::PageUnknown).into(),
        }
    }

    /// GET of a link: looks, and uses nothing up (O-24).
    async fn show(&self, link: &SecretText) -> Result<Content, Stop> {
        let link = self.consents.link_page(link).await?;
        Ok(Content::Page(pages::connect(&link)))
    }

    /// POST of a link: uses it up and sends the browser to the instance.
    async fn begin<B>(&self, link: &SecretText, request: Request<B>) -> Result<Answer, Stop>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        if !self.own.sent(request.headers()) {
            return Err(Stop::CrossSite);
        }
        // Before the link is used up: a request that breaks off has not been made.
        drain(request.into_body()).await?;
        let begun = self.consents.begin_consent(link).await?;
        let cookie = self.cookies.set(&begun.cookie_name, &begun.cookie_value).ok_or(Stop::Internal)?;
        let mut location = HeaderValue::try_from(begun.authorization_url).map_err(|_| Stop::Internal)?;
        location.set_sensitive(true);
        Ok(Answer { content: Content::SeeOther(location), cookie: Some(cookie) })
    }

    /// The redirection endpoint. Whatever it finds, the flow's cookie has done its work.
    async fn finish(&self, integration: Option<IntegrationId>, query: &str, headers: &HeaderMap) -> Answer {
        let path_integration = integration.map(|id| id.as_str().to_owned());
        let cookies = self.cookies.read(headers);
        let parsed = CallbackQuery::parse(query.as_bytes());
        let state = parsed.as_ref().map_or_else(|malformed| malformed.state.as_ref(), CallbackQuery::state);
        let cookie = state
            .map(|state| self.consents.consent_cookie_name(state))
            .filter(|name| cookies.iter().any(|(held, _)| held == name))
            .and_then(|name| self.cookies.clear(&name));
        let outcome = match parsed {
            Ok(query) => self.consents.finish_consent(query.into_callback(path_integration, cookies)).await,
            Err(malformed) => {
                // Every refusal burns its flow (O-07), where it can be told which; what the browser is told does not
                // depend on it.
                if let Some(callback) = malformed.into_burning_callback(path_integration, cookies) {
                    let _burnt = self.consents.finish_consent(callback).await;
                }
                Err(ConsentFault::MalformedCallback)
            }
        };
        // Without the store the flow may not be burnt yet: reloading works once it is back, with the cookie.
        let cookie = cookie.filter(|_| outcome != Err(ConsentFault::StoreUnavailable));
        let content = outcome.map_err(Stop::from).and_then(|outcome| done_address(&outcome));
        Answer { content: content.map_or_else(Content::Stopped, Content::SeeOther), cookie }
    }

    fn response(
        &self,
        Answer { content, cookie }: Answer,
        allow: Option<HeaderValue>,
    ) -> Response<Full<Bytes>> {
        let request_id = bearerd_crypto::random_hex(REQUEST_ID_BYTES);
        let mut response = Response::new(Full::default());
        let mut forms = Forms::None;
        let page = match content {
            Content::SeeOther(location) => {
                *response.status_mut() = StatusCode::SEE_OTHER;
                response.headers_mut().insert(LOCATION, location);
                None
            }
            Content::Page(page) => Some(page),
            Content::Stopped(stop) => {
                log(&stop, &request_id);
                Some(stop.page(&request_id))
            }
        };
        if let Some(page) = page {
            *response.status_mut() = page.status;
            *response.body_mut() = Full::new(page.html.into());
            response.headers_mut().insert(CONTENT_TYPE, HTML);
            forms = page.forms;
        }
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_S);
        }
        let headers = response.headers_mut();
        headers.extend(allow.map(|allow| (ALLOW, allow)));
        headers.extend(cookie.map(|cookie| (SET_COOKIE, cookie)));
        headers
            .insert(X_REQUEST_ID, HeaderValue::try_from(request_id).expect("hex digits are visible ASCII"));
        secure(headers, &forms, self.cookies.https);
        response
    }
}

/// Reads a body to its end and forgets it.
async fn drain<B>(body: B) -> Result<(), Stop>
where
    B: Body + Send,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut body = std::pin::pin!(Limited::new(body, BODY_BYTES_MAX));
    let all = async {
        while let Some(frame) = body.frame().await {
            frame?;
        }
        Ok::<_, Box<dyn Error + Send + Sync>>(())
    };
    match timeout(BODY_TIMEOUT, all).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Stop::BodyTooLarge),
        Ok(Err(_)) => Err(Stop::BodyBroken),
        Err(_) => Err(Stop::BodyTooSlow),
    }
}

/// The result page's address, without anything that the callback brought (O-29).
fn done_address(outcome: &ConsentOutcome) -> Result<HeaderValue, Stop> {
    HeaderValue::try_from(format!("/connect/done/{}", outcome.id)).map_err(|_| Stop::Internal)
}

/// Never the address: it holds the link, the code and the state (O-54).
fn log(stop: &Stop, request_id: &str) {
    let (code, status) = (stop.code(), stop.status().as_u16());
    if stop.status().is_server_error() {
        tracing::warn!(error.id = request_id, code, status, "connect door answered {status} {code}");
    } else {
        tracing::info!(error.id = request_id, code, status, "connect door answered {status} {code}");
    }
}

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES: usize = 8;
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("5");

/// Requests answered at once. People are few; the longest answer is the callback's, which waits for the instance.
pub(crate) const REQUESTS_MAX: usize = 256;
/// The form of the connect page is empty.
const BODY_BYTES_MAX: usize = 4 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
