//! The headers that every answer of this door carries, pages and redirects alike (O-28 to O-31).

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
        X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
    },
};

use crate::pages::{Forms, STYLE};

/// Makes an answer safe to show. `https`: the public URL is https.
pub(crate) fn secure(headers: &mut HeaderMap, forms: &Forms, https: bool) {
    for (name, value) in FIXED {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if https {
        headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    headers.insert(CONTENT_SECURITY_POLICY, content_security_policy(forms));
}

fn content_security_policy(forms: &Forms) -> HeaderValue {
    let form_action = match forms {
        Forms::None => "'none'".to_owned(),
        Forms::AuthorizationEndpoint { origin } if origin.starts_with("https:") => {
            format!("'self' {origin} https:")
        }
        Forms::AuthorizationEndpoint { origin } => format!("'self' {origin}"),
    };
    let text = format!("{}; form-action {form_action}", *BASE_POLICY);
    HeaderValue::try_from(text).expect("the origin of a URL is visible ASCII")
}

static BASE_POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = STANDARD.encode(bearerd_crypto::sha256(STYLE.as_bytes()));
    format!("default-src 'none'; style-src 'sha256-{hash}'; frame-ancestors 'none'; base-uri 'none'")
});

const FIXED: [(HeaderName, &str); 7] = [
    (CACHE_CONTROL, "no-store"),
    (REFERRER_POLICY, "no-referrer"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("x-robots-tag"), "noindex, nofollow"),
];
