//! What comes back to the caller: of the instance's head what [`Passing`](crate::passing::Passing) names (P-08), with links
//! that point at the instance pointing at bearerd instead (P-09).

use bearerd_model::InstanceOrigin;
use bearerd_policy::Method;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::{
    error::{Code, Fault, Wanted},
    names,
    upstream::AnswerHead,
};

/// Where the caller reached us, for links.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Base<'a> {
    /// `proxy.public_url`, if it is set.
    pub(crate) public_url: Option<&'a str>,
    /// Whether the door has TLS, for calls without a public URL.
    pub(crate) tls: bool,
    /// The validated `Host` of the call.
    pub(crate) host: &'a str,
    /// The connection, if the call's path named it.
    pub(crate) connection: Option<&'a str>,
    pub(crate) instance: &'a InstanceOrigin,
}

/// What an answer means that refuses a call. They are passed on; operators see them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The access token: it was ended, or the user may not log in.
    Unauthenticated,
    /// An access rule or the client's scopes: never a reason to refresh.
    Forbidden,
    /// A rate rule of the instance, which says when to come back.
    RateLimited,
    /// The instance's own queue is full: it says nothing of when.
    QueueFull,
}

impl Verdict {
    pub(crate) const ALL: [Self; 4] =
        [Self::Unauthenticated, Self::Forbidden, Self::RateLimited, Self::QueueFull];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::RateLimited => "rate_limited",
            Self::QueueFull => "queue_full",
        }
    }
}

/// Judged by status and head alone: bodies are not read.
pub(crate) fn verdict(head: &AnswerHead) -> Option<Verdict> {
    match head.status {
        StatusCode::UNAUTHORIZED => Some(Verdict::Unauthenticated),
        StatusCode::FORBIDDEN => Some(Verdict::Forbidden),
        StatusCode::TOO_MANY_REQUESTS => {
            let told = ["retry-after", "x-ratelimit-rule", "x-ratelimit-limit"];
            let told = told.into_iter().any(|name| head.headers.contains_key(name));
            Some(if told { Verdict::RateLimited } else { Verdict::QueueFull })
        }
        _ => None,
    }
}

/// The two answers of the table family that are no answers: clients would take them for data. Whether the instance
/// executed the request nobody knows, so that an invitation to repeat it is for reads alone.
pub(crate) fn check_sense(head: &AnswerHead, wanted: Wanted, method: Method) -> Result<(), Fault> {
    if head.status == StatusCode::ACCEPTED {
        return Err(Fault::new(Code::InstanceDroppedRequest));
    }
    // What refuses the call says so by its status, whatever its body.
    let surprised = !wanted.html && verdict(head).is_none();
    if surprised && head.headers.get(header::CONTENT_TYPE).is_some_and(is_html) {
        return Err(Fault::new(Code::InstanceAsleep).retryable(method.is_safe()));
    }
    Ok(())
}

/// The headers of an answer as its caller gets them: what has passed, with links that lead back here.
pub(crate) fn headers(mut passed: HeaderMap, base: Base<'_>, request_id: HeaderValue) -> HeaderMap {
    for name in [header::LOCATION, header::CONTENT_LOCATION, header::LINK] {
        if passed.contains_key(&name) {
            base.rewrite_all(&mut passed, &name);
        }
    }
    passed.insert(&names::X_REQUEST_ID, request_id);
    passed
}

fn is_html(content_type: &HeaderValue) -> bool {
    let media = content_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    media.eq_ignore_ascii_case(b"text/html") || media.eq_ignore_ascii_case(b"application/xhtml+xml")
}

impl Base<'_> {
    /// Every value of `name` that leads to the instance leads here, and no other is left.
    fn rewrite_all(&self, answered: &mut HeaderMap, name: &HeaderName) {
        let values: Vec<HeaderValue> = answered.get_all(name).iter().cloned().collect();
        answered.remove(name);
        for value in values {
            let rewritten = if *name == header::LINK { self.link(&value) } else { self.location(&value) };
            if let Some(value) = rewritten {
                answered.append(name, value);
            }
        }
    }

    /// `None`: it points elsewhere, or is no reference; it is dropped.
    fn location(&self, value: &HeaderValue) -> Option<HeaderValue> {
        let target = value.to_str().ok()?;
        let mut rewritten = String::with_capacity(target.len() + 32);
        self.rewrite(target.trim(), &mut rewritten)?;
        HeaderValue::try_from(rewritten).ok()
    }

    /// RFC 8288 §3: `<target>;parameters, <target>;…`. Links elsewhere are left out.
    fn link(&self, value: &HeaderValue) -> Option<HeaderValue> {
        let mut rest = value.to_str().ok()?.trim();
        let mut rewritten = String::with_capacity(rest.len() + 64);
        while !rest.is_empty() {
            let (target, after) = rest.strip_prefix('<')?.split_once('>')?;
            let (parameters, next) = after.split_at(end_of_parameters(after)?);
            let before = rewritten.len();
            rewritten.push_str(if before == 0 { "<" } else { ",<" });
            if self.rewrite(target, &mut rewritten).is_some() {
                rewritten.push('>');
                rewritten.push_str(parameters.trim_end());
            } else {
                rewritten.truncate(before);
            }
            rest = next.trim_start_matches([',', ' ', '\t']);
        }
        if rewritten.is_empty() { None } else { HeaderValue::try_from(rewritten).ok() }
    }

    /// Appends `target` as the caller can follow it.
    fn rewrite(&self, target: &str, into: &mut String) -> Option<()> {
        if target.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'\\') {
            return None;
        }
        if let Some(rest) = self.after_instance(target) {
            self.push_base(into);
            into.push_str(if rest.is_empty() { "/" } else { rest });
        } else if target.starts_with('/') && !target.starts_with("//") {
            // Relative to the origin, which is ours already.
            self.push_prefix(into);
            into.push_str(target);
        } else {
            // Relative to the call's own path: no scheme, no authority.
            let first = target.split(['/', '?', '#']).next().unwrap_or_default();
            if first.is_empty() || first.contains(':') || target.starts_with("//") {
                return None;
            }
            into.push_str(target);
        }
        Some(())
    }

    /// The rest of `target` from its path on, if it is an absolute URL of the instance.
    fn after_instance<'t>(&self, target: &'t str) -> Option<&'t str> {
        let (scheme, rest) = target.split_once("://")?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let (own_scheme, default_port) =
            if self.instance.is_tls() { ("https", ":443") } else { ("http", ":80") };
        let own = self.instance.authority();
        let same = authority.eq_ignore_ascii_case(own)
            || authority.strip_suffix(default_port).is_some_and(|host| host.eq_ignore_ascii_case(own));
        // A target that goes on without a slash would melt into our own authority.
        let whole = rest.is_empty() || rest.starts_with('/');
        (scheme.eq_ignore_ascii_case(own_scheme) && same && whole).then_some(rest)
    }

    fn push_base(&self, into: &mut String) {
        if let Some(url) = self.public_url {
            into.push_str(url);
        } else {
            into.push_str(if self.tls { "https://" } else { "http://" });
            into.push_str(self.host);
        }
        self.push_prefix(into);
    }

    fn push_prefix(&self, into: &mut String) {
        if let Some(connection) = self.connection {
            into.push_str("/c/");
            into.push_str(connection);
        }
    }
}

/// Up to the comma that ends the link: one outside of quotes. `None`: what looks like parameters may hold another link.
fn end_of_parameters(text: &str) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return Some(at),
            b'<' | b'>' if !quoted => return None,
            _ => {}
        }
    }
    (!quoted).then_some(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{error::Format, passing::Passing};

    fn instance() -> InstanceOrigin {
        InstanceOrigin::parse("https://dev1.service-now.com").unwrap()
    }

    fn base<'a>(
        instance: &'a InstanceOrigin,
        public_url: Option<&'a str>,
        connection: Option<&'a str>,
    ) -> Base<'a> {
        Base { public_url, tls: false, host: "b.example:8080", connection, instance }
    }

    fn scrub(answered: &[(&str, &str)], base: Base<'_>) -> HeaderMap {
        let lines: Vec<String> =
            answered.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        headers(head_of(200, &lines.concat()).headers, base, HeaderValue::from_static("r1"))
    }

    /// As it comes out of the parser.
    fn head_of(status: u16, lines: &str) -> AnswerHead {
        let mut bytes = bytes::BytesMut::from(format!("HTTP/1.1 {status} x\r\n{lines}\r\n").as_str());
        crate::upstream::parse(&mut bytes, false, &mut 0, &Passing::default()).unwrap().unwrap().head
    }

    #[test]
    fn refusals_are_told_apart_by_status_and_head() {
        for (status, headers, expected) in [
            (401, &[][..], Some(Verdict::Unauthenticated)),
            (403, &[], Some(Verdict::Forbidden)),
            (429, &["retry-after"], Some(Verdict::RateLimited)),
            (429, &["x-ratelimit-rule"], Some(Verdict::RateLimited)),
            (429, &[], Some(Verdict::QueueFull)),
            (200, &[], None),
            (503, &["retry-after"], None),
        ] {
            let lines: Vec<String> = headers.iter().map(|name| format!("{name}: 1\r\n")).collect();
            assert_eq!(verdict(&head_of(status, &lines.concat())), expected, "{status} {headers:?}");
        }
        for (index, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict as usize, index);
        }
    }

    /// P-08.
    #[test]
    fn cookies_challenges_and_infrastructure_do_not_pass() {
        let instance = instance();
        let dropped = [
            "set-cookie",
            "set-cookie2",
            "www-authenticate",
            "server",
            "x-powered-by",
            "alt-svc",
            "clear-site-data",
            "strict-transport-security",
            "connection",
            "keep-alive",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "proxy-authenticate",
            "proxy-connection",
            "access-control-allow-origin",
            "access-control-allow-credentials",
            "via",
            "nel",
            "report-to",
            "refresh",
            "bearerd-error",
            "expect-ct",
            "public-key-pins",
        ];
        let value = |name: &str| if name == "transfer-encoding" { "chunked" } else { "v" };
        let mut answered: Vec<_> = dropped.iter().map(|name| (*name, value(name))).collect();
        answered.extend([
            ("set-cookie", "again"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("x-request-id", "theirs"),
        ]);
        let headers = scrub(&answered, base(&instance, None, None));
        assert_eq!(headers.len(), 1, "{headers:?}");
        assert_eq!(headers["x-request-id"], "r1");
        let kept = [
            "content-type",
            "content-length",
            "content-encoding",
            "x-total-count",
            "x-transaction-id",
            "x-is-logged-in",
            "cache-control",
            "retry-after",
            "x-ratelimit-limit",
            "etag",
            "date",
            "vary",
            "x-content-type-options",
        ];
        let answered: Vec<_> = kept.iter().map(|name| (*name, "1")).collect();
        let headers = scrub(&answered, base(&instance, None, None));
        assert_eq!(headers.len(), kept.len() + 1, "{headers:?}");
    }

    /// P-08, P-09.
    #[test]
    fn locations_lead_to_bearerd_or_nowhere() {
        let instance = instance();
        let plain = base(&instance, None, None);
        let public = base(&instance, Some("https://bearerd.example"), None);
        let prefixed = base(&instance, None, Some("hr"));
        let location = |base: Base<'_>, value: &str| {
            scrub(&[("location", value)], base)
                .get("location")
                .map(|value| value.to_str().unwrap().to_owned())
        };
        let created = "https://dev1.service-now.com/api/now/table/incident/abc?x=1#f";
        for (base, expected) in [
            (plain, "http://b.example:8080/api/now/table/incident/abc?x=1#f"),
            (Base { tls: true, ..plain }, "https://b.example:8080/api/now/table/incident/abc?x=1#f"),
            (public, "https://bearerd.example/api/now/table/incident/abc?x=1#f"),
            (prefixed, "http://b.example:8080/c/hr/api/now/table/incident/abc?x=1#f"),
        ] {
            assert_eq!(location(base, created).as_deref(), Some(expected));
        }
        for (value, expected) in [
            ("HTTPS://DEV1.service-now.com:443/x", Some("http://b.example:8080/x")),
            ("https://dev1.service-now.com", Some("http://b.example:8080/")),
            ("/api/now/x", Some("/api/now/x")),
            ("incident/abc", Some("incident/abc")),
            ("?sysparm_offset=1", None),
            ("http://dev1.service-now.com/x", None),
            ("https://dev1.service-now.com:444/x", None),
            ("https://dev1.service-now.com.evil/x", None),
            ("https://dev1.service-now.com@evil/x", None),
            ("https://dev1.service-now.com?x", None),
            ("https://u@dev1.service-now.com/x", None),
            ("https://evil/x", None),
            ("//evil/x", None),
            ("//dev1.service-now.com/x", None),
            ("/\\evil", None),
            ("\\\\evil", None),
            ("javascript:alert(1)", None),
            ("https:evil", None),
            ("https:/evil", None),
            ("a b", None),
            ("", None),
        ] {
            assert_eq!(location(plain, value).as_deref(), expected, "{value}");
        }
        assert_eq!(location(prefixed, "/api/now/x").as_deref(), Some("/c/hr/api/now/x"));
    }

    /// P-09: ServiceNow's pagination.
    #[test]
    fn links_of_a_page_lead_to_bearerd() {
        let instance = instance();
        let link = |base: Base<'_>, value: &str| {
            scrub(&[("link", value)], base).get("link").map(|value| value.to_str().unwrap().to_owned())
        };
        let plain = base(&instance, Some("https://b"), None);
        let page = "<https://dev1.service-now.com/api/now/table/incident?sysparm_query=a%5Eb,c&sysparm_offset=0>;rel=\"first\",\
                    <https://dev1.service-now.com/api/now/table/incident?sysparm_offset=2>;rel=\"next\"";
        assert_eq!(
            link(plain, page).as_deref(),
            Some(
                "<https://b/api/now/table/incident?sysparm_query=a%5Eb,c&sysparm_offset=0>;rel=\"first\",\
                 <https://b/api/now/table/incident?sysparm_offset=2>;rel=\"next\""
            )
        );
        assert_eq!(
            link(base(&instance, None, Some("hr")), "<https://dev1.service-now.com/x>; rel=next").as_deref(),
            Some("<http://b.example:8080/c/hr/x>; rel=next")
        );
        for (value, expected) in [
            (
                "<https://evil/x>;rel=\"a\", <https://dev1.service-now.com/y>;rel=\"b,c\\\",d\" , </z>",
                Some("<https://b/y>;rel=\"b,c\\\",d\",</z>"),
            ),
            ("<https://evil/x>;rel=next", None),
            ("<https://dev1.service-now.com/x", None),
            ("https://dev1.service-now.com/x>;rel=next", None),
            ("<https://dev1.service-now.com/x>;rel=next,garbage", None),
            ("<https://dev1.service-now.com/x>;rel=\"next, <https://evil/x>;rel=prev", None),
            ("<https://dev1.service-now.com/x>;rel=next <https://evil/x>", None),
            ("", None),
        ] {
            assert_eq!(link(plain, value).as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn answers_that_are_none_are_told_apart_from_the_head() {
        let outcome = |status: u16, content_type: &str, wanted: Wanted| {
            let head = head_of(status, &format!("content-type: {content_type}\r\n"));
            check_sense(&head, wanted, Method::Get).err().map(|fault| fault.code)
        };
        let json = Wanted { format: Format::Json, html: false };
        for (status, content_type, expected) in [
            (200, "application/json;charset=UTF-8", None),
            (200, "application/xml", None),
            (202, "application/json", Some(Code::InstanceDroppedRequest)),
            (200, "text/html", Some(Code::InstanceAsleep)),
            (503, "Text/HTML;charset=UTF-8", Some(Code::InstanceAsleep)),
            (401, "text/html", None),
            (403, "text/html", None),
            (429, "text/html", None),
            (500, "application/json", None),
            (429, "application/json", None),
        ] {
            assert_eq!(outcome(status, content_type, json), expected, "{status} {content_type}");
        }
        assert_eq!(outcome(200, "text/html", Wanted { format: Format::Json, html: true }), None);
    }

    proptest! {
        /// Whatever an instance writes into its links, none leads to another host.
        #[test]
        fn no_link_leads_elsewhere(
            target in prop_oneof!["\\PC{0,40}", "(https?:)?//(dev1.service-now.com|evil)[:/@?#a-z0-9.\\\\]{0,12}"],
        ) {
            let instance = instance();
            let base = base(&instance, Some("https://bearerd.example"), None);
            let mut rewritten = String::new();
            if base.rewrite(&target, &mut rewritten).is_some() {
                let absolute = rewritten.starts_with("https://bearerd.example/");
                let relative = !rewritten.starts_with("//") && !rewritten.contains('\\')
                    && !rewritten.split(['/', '?', '#']).next().unwrap().contains(':');
                prop_assert!(absolute || relative, "{} -> {}", target, rewritten);
            }
        }
    }
}
