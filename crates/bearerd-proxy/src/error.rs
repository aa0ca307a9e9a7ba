//! The errors that bearerd itself answers with: the code table of the contract (product.md §3), and their bodies in
//! the shape that ServiceNow clients already parse.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header};

use crate::{body::AnswerBody, names, request_id::RequestId};

/// What went wrong, stable for callers: the value of `Bearerd-Error` and of `bearerd.code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    RequestMalformed,
    PathRefused,
    KeyAmbiguous,
    CallerKeyMissing,
    CallerKeyInvalid,
    CallerKeyExpired,
    PolicyDenied,
    ConnectionUnknown,
    MethodRefused,
    RequestTooSlow,
    ExpectationRefused,
    Misdirected,
    ConnectionPending,
    ConnectionFrozen,
    BodyTooLarge,
    TargetTooLong,
    HeadersTooLarge,
    ReauthorizationRequired,
    CallerRateLimited,
    CallerConcurrency,
    InstanceUnreachable,
    InstanceReplyInvalid,
    TokenUnavailable,
    InstanceAsleep,
    InstanceDroppedRequest,
    Overloaded,
    Draining,
    InstanceTimeout,
}

/// One line of the table: what a code means for caller and operator.
struct Line {
    name: &'static str,
    status: u16,
    /// May the same request be sent again as it is, with hope?
    retryable: bool,
    message: &'static str,
    fix: &'static str,
}

impl Code {
    pub const ALL: [Self; 28] = [
        Self::RequestMalformed,
        Self::PathRefused,
        Self::KeyAmbiguous,
        Self::CallerKeyMissing,
        Self::CallerKeyInvalid,
        Self::CallerKeyExpired,
        Self::PolicyDenied,
        Self::ConnectionUnknown,
        Self::MethodRefused,
        Self::RequestTooSlow,
        Self::ExpectationRefused,
        Self::Misdirected,
        Self::ConnectionPending,
        Self::ConnectionFrozen,
        Self::BodyTooLarge,
        Self::TargetTooLong,
        Self::HeadersTooLarge,
        Self::ReauthorizationRequired,
        Self::CallerRateLimited,
        Self::CallerConcurrency,
        Self::InstanceUnreachable,
        Self::InstanceReplyInvalid,
        Self::TokenUnavailable,
        Self::InstanceAsleep,
        Self::InstanceDroppedRequest,
        Self::Overloaded,
        Self::Draining,
        Self::InstanceTimeout,
    ];

    pub fn name(self) -> &'static str {
        self.line().name
    }

    /// What happened, in a sentence.
    pub(crate) fn message(self) -> &'static str {
        self.line().message
    }

    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.line().status).expect("the table holds valid statuses")
    }

    /// Place in [`Self::ALL`]: for tables.
    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    #[expect(clippy::too_many_lines, reason = "one table, read as a table")]
    const fn line(self) -> Line {
        const fn line(
            name: &'static str,
            status: u16,
            retryable: bool,
            message: &'static str,
            fix: &'static str,
        ) -> Line {
            Line { name, status, retryable, message, fix }
        }
        match self {
            Self::RequestMalformed => line(
                "request_malformed",
                400,
                false,
                "The request is malformed",
                "Send one well-formed HTTP request for this host, with one Host header and one body length.",
            ),
            Self::PathRefused => line(
                "path_refused",
                400,
                false,
                "The path is not one that bearerd serves",
                "Call /api/now/table/{table} or /api/now/table/{table}/{sys_id}, with nothing encoded in the path.",
            ),
            Self::KeyAmbiguous => line(
                "key_ambiguous",
                400,
                false,
                "The request carries two different caller keys",
                "Send one caller key, in one header.",
            ),
            Self::CallerKeyMissing => line(
                "caller_key_missing",
                401,
                false,
                "The request carries no caller key",
                "Send your bearerd key as `Authorization: Bearer <key>`.",
            ),
            Self::CallerKeyInvalid => line(
                "caller_key_invalid",
                401,
                false,
                "The caller key is not valid",
                "Check that the whole key is sent; ask an operator whether it still exists.",
            ),
            Self::CallerKeyExpired => line(
                "caller_key_expired",
                401,
                false,
                "The caller key has expired",
                "Ask an operator to rotate the key: `bearerd key rotate`.",
            ),
            Self::PolicyDenied => line(
                "policy_denied",
                403,
                false,
                "The policy of the caller key does not allow this call",
                "Ask an operator to open it in a policy of the key.",
            ),
            Self::ConnectionUnknown => line(
                "connection_unknown",
                404,
                false,
                "No such connection",
                "Check the connection's id, and ask an operator whether a policy of your key opens it.",
            ),
            Self::MethodRefused => line(
                "method_refused",
                405,
                false,
                "The method is not served",
                "Use GET, HEAD, POST, PUT, PATCH or DELETE, in upper case.",
            ),
            Self::RequestTooSlow => line(
                "request_too_slow",
                408,
                true,
                "The request did not arrive in time",
                "Send the whole request without long pauses.",
            ),
            Self::ExpectationRefused => line(
                "expectation_refused",
                417,
                false,
                "The expectation is not met",
                "Send no Expect header other than 100-continue.",
            ),
            Self::Misdirected => line(
                "misdirected",
                421,
                false,
                "This host is not served here",
                "Use the address that the operator gave out (proxy.public_url, proxy.hosts).",
            ),
            Self::ConnectionPending => line(
                "connection_pending",
                409,
                false,
                "The connection awaits consent or confirmation",
                "An operator opens the connect link, or confirms the user: `bearerd connection confirm`.",
            ),
            Self::ConnectionFrozen => line(
                "connection_frozen",
                409,
                false,
                "The connection is frozen by an operator",
                "Ask the operator; `bearerd connection unfreeze` opens it again.",
            ),
            Self::BodyTooLarge => line(
                "body_too_large",
                413,
                false,
                "The request body is too large",
                "Send less at once, or ask the operator for a higher limit (proxy.{family}.body_bytes_max).",
            ),
            Self::TargetTooLong => line(
                "target_too_long",
                414,
                false,
                "Path and query are too long",
                "Shorten the query, or ask the operator for a higher limit (proxy.target_bytes_max).",
            ),
            Self::HeadersTooLarge => line(
                "headers_too_large",
                431,
                false,
                "The headers are too large",
                "Send fewer or smaller headers (proxy.headers_bytes_max).",
            ),
            Self::ReauthorizationRequired => line(
                "reauthorization_required",
                424,
                false,
                "The connection's grant has ended and a person must consent again",
                "An operator runs `bearerd connection reauthorize` and opens the link that it prints.",
            ),
            Self::CallerRateLimited => line(
                "caller_rate_limited",
                429,
                true,
                "The caller key has used up its rate",
                "Wait as Retry-After says.",
            ),
            Self::CallerConcurrency => line(
                "caller_concurrency",
                429,
                true,
                "The caller key has too many calls under way",
                "Wait for calls to end.",
            ),
            Self::InstanceUnreachable => line(
                "instance_unreachable",
                502,
                true,
                "The instance cannot be reached, or broke off",
                "Try later; the operator runs `bearerd connection test`.",
            ),
            Self::InstanceReplyInvalid => line(
                "instance_reply_invalid",
                502,
                true,
                "The instance's answer was broken",
                "Try later; the operator looks at what is between bearerd and the instance.",
            ),
            Self::TokenUnavailable => line(
                "token_unavailable",
                503,
                true,
                "No usable access token could be had in time",
                "Wait as Retry-After says; the operator looks at the connection's health.",
            ),
            Self::InstanceAsleep => line(
                "instance_asleep",
                503,
                true,
                "The instance answered with a web page instead of data: it sleeps, is in maintenance or asks for a login",
                "Wake the instance, or wait until its maintenance is over.",
            ),
            Self::InstanceDroppedRequest => line(
                "instance_dropped_request",
                503,
                false,
                "The instance dropped the request (status 202): too many were waiting in one session",
                "Lower the number of calls at once; repeat this one only if that is safe.",
            ),
            Self::Overloaded => {
                line("overloaded", 503, true, "bearerd is overloaded", "Wait as Retry-After says.")
            }
            Self::Draining => line(
                "draining",
                503,
                true,
                "This bearerd process is shutting down",
                "Connect again: another process answers.",
            ),
            Self::InstanceTimeout => line(
                "instance_timeout",
                504,
                true,
                "The instance did not begin to answer in time",
                "Ask for less at once, or ask the operator for a longer limit (proxy.{family}.first_byte_timeout_s).",
            ),
        }
    }
}

/// The body in JSON. Members come in this order, whatever features of `serde_json` a build turns on.
#[derive(serde::Serialize)]
struct JsonBody<'a> {
    error: JsonError<'a>,
    status: &'static str,
    bearerd: JsonRemedy,
}

#[derive(serde::Serialize)]
struct JsonError<'a> {
    message: &'static str,
    detail: Option<&'a str>,
}

#[derive(serde::Serialize)]
struct JsonRemedy {
    code: &'static str,
    retryable: bool,
    fix: &'static str,
}

/// One refused or failed call: the code and what is to be said about this occurrence.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) code: Code,
    retryable: bool,
    /// What happened here, for the caller. Never the cause's text, a secret, or what another caller may not know.
    detail: Option<Cow<'static, str>>,
    /// What to do about it, where the code's own line does not say that.
    fix: &'static str,
    retry_after_s: Option<u64>,
    /// Close the connection after the answer: its next bytes cannot be trusted.
    close: bool,
    /// For the log only: the chain of causes.
    pub(crate) cause: Option<String>,
}

impl Fault {
    pub(crate) fn new(code: Code) -> Self {
        let retry_after_s = match code {
            Code::InstanceDroppedRequest | Code::TokenUnavailable => Some(5),
            Code::InstanceAsleep => Some(60),
            Code::Overloaded | Code::Draining | Code::CallerRateLimited | Code::CallerConcurrency => Some(1),
            _ => None,
        };
        let Line { retryable, fix, .. } = code.line();
        Self { code, retryable, detail: None, fix, retry_after_s, close: false, cause: None }
    }

    /// A request that is wrong as such: said, and the connection closed.
    pub(crate) fn malformed(detail: &'static str) -> Self {
        Self::new(Code::RequestMalformed).detail(detail).closing()
    }

    pub(crate) fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub(crate) fn fix(mut self, fix: &'static str) -> Self {
        self.fix = fix;
        self
    }

    pub(crate) fn retry_after(mut self, secs: u64) -> Self {
        self.retry_after_s = Some(secs);
        self
    }

    /// Whether sending it again is safe depends on the call: the instance may have executed it.
    pub(crate) fn retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    pub(crate) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    pub(crate) fn caused_by(mut self, error: &dyn std::error::Error) -> Self {
        let chain = std::iter::successors(Some(error), |error| error.source());
        self.cause = Some(chain.map(ToString::to_string).collect::<Vec<_>>().join(": "));
        self
    }

    /// Its answer is the last one on the caller's connection.
    pub(crate) fn closes(&self) -> bool {
        self.close
    }

    /// Over HTTP/2 there is no connection to close for one call's sake: its framing is never in doubt.
    pub(crate) fn respond(
        &self,
        format: Format,
        request_id: RequestId,
        version: Version,
    ) -> Response<AnswerBody> {
        let mut response = Response::new(AnswerBody::own(self.body(format)));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert("bearerd-error", HeaderValue::from_static(self.code.name()));
        headers.insert(&names::X_REQUEST_ID, request_id.into_value());
        match self.code {
            Code::CallerKeyMissing | Code::CallerKeyInvalid | Code::CallerKeyExpired => {
                let challenge = HeaderValue::from_static("Bearer realm=\"bearerd\"");
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            Code::MethodRefused => {
                headers.insert(header::ALLOW, HeaderValue::from_static(METHODS));
            }
            _ => {}
        }
        if let Some(secs) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        if self.close && version != Version::HTTP_2 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Depends on nothing but the fault, so that two calls that must not be told apart are not (S-16).
    fn body(&self, format: Format) -> Bytes {
        let line = self.code.line();
        match format {
            Format::Json => serde_json::to_vec(&JsonBody {
                error: JsonError { message: line.message, detail: self.detail.as_deref() },
                status: "failure",
                bearerd: JsonRemedy { code: line.name, retryable: self.retryable, fix: self.fix },
            })
            .unwrap_or_default()
            .into(),
            Format::Xml => format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?><response><error><message>{}</message><detail>{}</detail></error>\
                 <status>failure</status><bearerd><code>{}</code><retryable>{}</retryable><fix>{}</fix></bearerd></response>",
                escaped(line.message),
                escaped(self.detail.as_deref().unwrap_or_default()),
                line.name,
                self.retryable,
                escaped(self.fix),
            )
            .into(),
        }
    }
}

/// The representation that a caller asked for, as far as bearerd's own answers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Xml,
}

/// What the caller's `Accept` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) format: Format,
    /// A web page was asked for by name, and so is not a surprise.
    pub(crate) html: bool,
}

impl Wanted {
    /// XML if it is named and JSON is not named before it; JSON for all else, as the Table API does.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut wanted = None;
        let mut html = false;
        for value in headers.get_all(header::ACCEPT) {
            for range in value.as_bytes().split(|byte| *byte == b',') {
                let range = range.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
                if range.eq_ignore_ascii_case(b"application/json") || range.eq_ignore_ascii_case(b"text/json")
                {
                    wanted = wanted.or(Some(Format::Json));
                } else if range.eq_ignore_ascii_case(b"application/xml")
                    || range.eq_ignore_ascii_case(b"text/xml")
                {
                    wanted = wanted.or(Some(Format::Xml));
                } else if range.eq_ignore_ascii_case(b"text/html") {
                    html = true;
                }
            }
        }
        Self { format: wanted.unwrap_or(Format::Json), html: html && wanted.is_none() }
    }
}

impl Format {
    const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json;charset=UTF-8",
            Self::Xml => "application/xml;charset=UTF-8",
        }
    }
}

/// What the families know.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";

fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>']) {
        return text.into();
    }
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(value: &'static str) -> Wanted {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(value));
        Wanted::of(&headers)
    }

    #[test]
    fn the_table_is_in_its_own_order_and_names_are_unique() {
        for (index, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code.index(), index);
            assert!(Code::ALL.iter().filter(|other| other.name() == code.name()).count() == 1);
            assert!(code.status().is_client_error() || code.status().is_server_error());
        }
    }

    #[test]
    fn xml_is_answered_to_who_asks_for_it() {
        assert_eq!(Wanted::of(&HeaderMap::new()), Wanted { format: Format::Json, html: false });
        for (value, format, html) in [
            ("*/*", Format::Json, false),
            ("application/json", Format::Json, false),
            ("application/xml", Format::Xml, false),
            ("Text/XML;q=0.9, application/json", Format::Xml, false),
            ("application/json,application/xml", Format::Json, false),
            ("text/html", Format::Json, true),
            ("text/html, application/xml", Format::Xml, false),
        ] {
            assert_eq!(accept(value), Wanted { format, html }, "{value}");
        }
    }

    #[test]
    fn the_body_is_what_servicenow_clients_parse() {
        let fault = Fault::new(Code::PolicyDenied).detail("rule 1 & <2>");
        assert_eq!(
            std::str::from_utf8(&fault.body(Format::Json)).unwrap(),
            "{\"error\":{\"message\":\"The policy of the caller key does not allow this call\",\
             \"detail\":\"rule 1 & <2>\"},\"status\":\"failure\",\"bearerd\":{\"code\":\"policy_denied\",\
             \"retryable\":false,\"fix\":\"Ask an operator to open it in a policy of the key.\"}}"
        );
        assert_eq!(
            std::str::from_utf8(&fault.body(Format::Xml)).unwrap(),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><response><error><message>The policy of the caller key does not \
             allow this call</message><detail>rule 1 &amp; &lt;2&gt;</detail></error><status>failure</status><bearerd>\
             <code>policy_denied</code><retryable>false</retryable><fix>Ask an operator to open it in a policy of the key.\
             </fix></bearerd></response>"
        );
    }

    #[test]
    fn the_head_carries_code_id_and_what_the_status_demands() {
        let respond = |code: Code| {
            Fault::new(code).respond(Format::Json, RequestId::for_test("r1"), Version::HTTP_11).into_parts().0
        };
        for code in Code::ALL {
            let parts = respond(code);
            assert_eq!(parts.status, code.status());
            assert_eq!(parts.headers["bearerd-error"], code.name());
            assert_eq!(parts.headers["x-request-id"], "r1");
            assert_eq!(parts.headers.contains_key("www-authenticate"), parts.status == 401);
            assert_eq!(parts.headers.contains_key("allow"), parts.status == 405);
            assert_eq!(
                parts.headers.contains_key("retry-after"),
                matches!(parts.status.as_u16(), 429 | 503),
                "{code:?}"
            );
        }
    }
}
