//! Which headers pass, in either direction: those that are named here, and those that an operator adds (P-03, P-06, P-07,
//! P-08). Everything else stays behind: what a proxy in front, a single sign-on or an instance's plugin calls a credential, a
//! session or an origin has too many names to list.

use http::HeaderName;

/// What an operator lets pass besides.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Passing {
    pub(crate) requests: Vec<HeaderName>,
    pub(crate) answers: Vec<HeaderName>,
}

impl Passing {
    /// Whether a caller's header goes on to the instance.
    pub(crate) fn request(&self, name: &HeaderName) -> bool {
        is_of_requests(name.as_str()) || self.requests.contains(name)
    }

    /// Whether an instance's header goes on to the caller.
    pub(crate) fn answer(&self, name: &HeaderName) -> bool {
        is_of_answers(name.as_str()) || self.answers.contains(name)
    }
}

/// The names as a function for calls and as a list for the documentation's test. In lower case.
macro_rules! names {
    ($function:ident, $list:ident: $($name:literal)+) => {
        fn $function(name: &str) -> bool {
            matches!(name, $($name)|+)
        }

        #[cfg(test)]
        const $list: &[&str] = &[$($name),+];
    };
}

names! { is_of_requests, OF_REQUESTS:
    // What is wanted, and how (RFC 9110 §12.5, §13, §14; RFC 9111 §5; RFC 7240).
    "accept" "accept-charset" "accept-encoding" "accept-language" "cache-control" "if-match" "if-modified-since"
    "if-none-match" "if-range" "if-unmodified-since" "pragma" "prefer" "range"
    // What the body is (RFC 9110 §8; RFC 6266; RFC 9530).
    "content-digest" "content-disposition" "content-encoding" "content-language" "content-md5" "content-type"
    "repr-digest"
    // Who asks, and on what errand (W3C Trace Context).
    "traceparent" "tracestate" "user-agent"
    // ServiceNow's own.
    "x-no-response-body"
}

names! { is_of_answers, OF_ANSWERS:
    // What the body is.
    "content-digest" "content-disposition" "content-encoding" "content-language" "content-length" "content-location"
    "content-md5" "content-range" "content-type" "etag" "last-modified" "repr-digest"
    // How long it holds, and for whom.
    "age" "cache-control" "date" "expires" "pragma" "vary" "warning"
    // What may follow.
    "accept-patch" "accept-post" "accept-ranges" "allow" "deprecation" "link" "location" "preference-applied"
    "retry-after" "sunset"
    // What a browser must not do with it.
    "content-security-policy" "cross-origin-resource-policy" "permissions-policy" "referrer-policy"
    "x-content-type-options" "x-frame-options" "x-xss-protection"
    // ServiceNow's own.
    "x-attachment-metadata" "x-is-logged-in" "x-ratelimit-limit" "x-ratelimit-remaining" "x-ratelimit-reset"
    "x-ratelimit-rule" "x-total-count" "x-transaction-id"
}

/// A header that no operator can add: what frames a message or belongs to one hop (RFC 9110 §7.6.1), what is bearerd's own,
/// credentials, cookies and sessions, another method or target than the judged one, who forwarded a call, and what tells of
/// the infrastructure. These are names that are known for it; that a name is not among them says nothing.
pub(crate) fn never_passes(name: &str) -> bool {
    NEVER.contains(&name) || NEVER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[rustfmt::skip]
const NEVER: &[&str] = &[
    "connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "max-forwards", "te", "trailer",
    "transfer-encoding", "upgrade",
    "connection-id", "x-request-id",
    "access-token", "api-key", "apikey", "assertion", "authentication-info", "authorization", "client-cert",
    "client-cert-chain", "cookie", "cookie2", "dpop", "id-token", "impersonate", "jsessionid", "oidc-claim-sub",
    "remote-user", "set-cookie", "set-cookie2", "sn-auth", "token", "www-authenticate", "x-access-token", "x-api-key",
    "x-apikey", "x-arr-clientcert", "x-auth", "x-authorization", "x-client-cert", "x-client-secret", "x-id-token",
    "x-idtoken", "x-jwt-assertion", "x-password", "x-remote-user", "x-sn-apikey", "x-sn-auth", "x-sn-token",
    "x-sso-user", "x-token", "x-user-token", "x-username", "x-usertoken", "x-usertoken-response", "x-webauth-user",
    "destination", "host-override", "http-method-override", "x-host", "x-http-path-override", "x-verb", "x-http-host-override", "x-http-method",
    "x-http-method-override", "x-httpmethod", "x-method-override", "x-rewrite-url",
    "cf-connecting-ip", "client-ip", "forwarded-for", "x-originating-ip", "fastly-client-ip", "forwarded", "front-end-https", "origin", "true-client-ip",
    "via", "wl-proxy-client-ip", "x-azure-clientip", "x-client-ip", "x-cluster-client-ip", "x-real-ip",
    "alt-svc", "clear-site-data", "expect-ct", "nel", "public-key-pins", "refresh", "report-to", "reporting-endpoints",
    "server", "service-worker-allowed", "sourcemap", "strict-transport-security", "x-accel-redirect", "x-powered-by",
    "x-sendfile", "x-sourcemap",
];

#[rustfmt::skip]
const NEVER_PREFIXES: &[&str] = &[
    "access-control-", "bearerd-", "glide", "proxy-", "sec-", "ssl-client", "x-amzn-oidc-", "x-auth-", "x-csrf",
    "x-envoy-", "x-forwarded", "x-glide", "x-goog-iap-", "x-impersonat", "x-ms-client-", "x-ms-token-", "x-original-",
    "x-servicenow-session", "x-session", "x-sn-impersonat", "x-ssl-", "x-wantsession", "x-xsrf",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> HeaderName {
        HeaderName::try_from(name).unwrap()
    }

    /// P-03, P-07: these are what is called so by someone; nobody has to list them.
    #[test]
    fn only_what_is_named_goes_to_the_instance() {
        let passing = Passing { requests: vec![name("x-app")], answers: vec![] };
        for passes in ["accept", "content-type", "if-match", "x-no-response-body", "traceparent", "x-app"] {
            assert!(passing.request(&name(passes)), "{passes}");
        }
        for dropped in [
            "authorization",
            "proxy-authorization",
            "cookie",
            "x-api-key",
            "x-sn-apikey",
            "x-usertoken",
            "host",
            "content-length",
            "transfer-encoding",
            "connection",
            "te",
            "expect",
            "forwarded",
            "via",
            "origin",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-real-ip",
            "x-original-url",
            "x-http-method-override",
            "http-method-override",
            "x-httpmethod",
            "x-http-host-override",
            "host-override",
            "wl-proxy-client-ip",
            "fastly-client-ip",
            "x-azure-clientip",
            "x-arr-clientcert",
            "x-servicenow-session",
            "x-glide-session",
            "jsessionid",
            "x-sn-impersonate-user",
            "impersonate",
            "x-user-token",
            "x-sn-token",
            "x-sn-auth",
            "sn-auth",
            "x-sso-user",
            "oidc-claim-sub",
            "x-webauth-user",
            "x-username",
            "x-password",
            "x-client-secret",
            "x-idtoken",
            "assertion",
            "x-auth-token",
            "dpop",
            "x-csrf-token",
            "remote-user",
            "ssl-client-cert",
            "sec-fetch-site",
            "access-control-request-method",
            "connection-id",
            "x-request-id",
            "x-wantsessiondebugmessages",
            "referer",
            "baggage",
            "x-custom",
        ] {
            assert!(!passing.request(&name(dropped)), "{dropped}");
            let is_harmless = ["referer", "baggage", "x-custom"].contains(&dropped);
            assert_eq!(never_passes(dropped), !is_harmless, "{dropped}");
        }
    }

    /// P-08.
    #[test]
    fn only_what_is_named_goes_to_the_caller() {
        let passing = Passing { requests: vec![], answers: vec![name("x-app")] };
        for passes in ["content-type", "link", "retry-after", "x-total-count", "x-ratelimit-reset", "x-app"] {
            assert!(passing.answer(&name(passes)), "{passes}");
        }
        for dropped in [
            "set-cookie",
            "www-authenticate",
            "server",
            "x-powered-by",
            "via",
            "alt-svc",
            "strict-transport-security",
            "clear-site-data",
            "transfer-encoding",
            "connection",
            "trailer",
            "access-control-allow-origin",
            "proxy-authenticate",
            "x-backend-server",
            "x-served-by",
            "x-varnish",
            "server-timing",
            "x-real-ip",
            "x-forwarded-for",
            "forwarded",
            "x-accel-redirect",
            "x-sendfile",
            "jsessionid",
            "x-session",
            "access-token",
            "cookie",
            "x-api-key",
            "x-sn-apikey",
            "x-token",
            "x-usertoken",
            "authorization",
            "bearerd-error",
            "x-request-id",
            "report-to",
            "nel",
            "refresh",
            "x-custom",
        ] {
            assert!(!passing.answer(&name(dropped)), "{dropped}");
        }
    }

    /// P-07, P-08.
    #[test]
    fn known_credentials_cannot_be_added() {
        for name in ["x-app", "x-correlation-id", "baggage", "x-author", "referer", "x-tokens-left"] {
            assert!(!never_passes(name), "{name}");
        }
        for name in
            NEVER.iter().copied().chain(["proxy-x", "x-forwarded-for", "bearerd-error", "x-session-id"])
        {
            assert!(never_passes(name), "{name}");
            assert!(!is_of_requests(name), "{name}");
            // The parser of answers judges the length; it is the body's.
            assert!(!is_of_answers(name) || name == "content-length", "{name}");
        }
    }

    #[test]
    fn the_documentation_lists_what_passes() {
        let text = include_str!("../../../docs/headers.md");
        let listed = |title: &str| -> Vec<String> {
            let section = text.split("\n## ").find(|section| section.starts_with(title)).unwrap();
            let first_cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('|').next());
            let names = first_cells.flat_map(|cell| cell.split('`').step_by(2));
            let mut names: Vec<String> =
                names.map(str::to_ascii_lowercase).filter(|name| !name.trim().is_empty()).collect();
            names.sort_unstable();
            names
        };
        let sorted = |list: &[&str]| {
            let mut list: Vec<String> = list.iter().map(ToString::to_string).collect();
            list.sort_unstable();
            list
        };
        assert_eq!(listed("To the instance"), sorted(OF_REQUESTS));
        assert_eq!(listed("To the caller"), sorted(OF_ANSWERS));
    }
}
