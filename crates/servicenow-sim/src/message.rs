//! Requests and replies as values: what the handlers see and answer. Only `server` knows sockets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use serde::Serialize;
use serde_json::json;
use url::form_urlencoded;

use crate::pattern::GeneratedFile;

/// One request, its body read.
#[derive(Clone, Debug)]
pub(crate) struct SimRequest {
    pub(crate) method: Method,
    /// As sent: percent-encoded.
    pub(crate) path: String,
    /// As sent, without the `?`.
    pub(crate) query: Option<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Length of a body that was too long to hold; `body` is empty then.
    pub(crate) unheld_bytes: Option<u64>,
}

impl SimRequest {
    pub(crate) fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// First query parameter of this name, decoded.
    pub(crate) fn query_value(&self, name: &str) -> Option<String> {
        self.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    pub(crate) fn query_pairs(&self) -> impl Iterator<Item = (String, String)> + '_ {
        form_urlencoded::parse(self.query.as_deref().unwrap_or_default().as_bytes()).into_owned()
    }

    pub(crate) fn form_pairs(&self) -> Vec<(String, String)> {
        form_urlencoded::parse(&self.body).into_owned().collect()
    }

    /// The media type of the body, lower case, without parameters.
    pub(crate) fn media_type(&self) -> Option<String> {
        let value = self.header(CONTENT_TYPE)?;
        let essence = value.split(';').next().unwrap_or_default().trim();
        (!essence.is_empty()).then(|| essence.to_ascii_lowercase())
    }

    pub(crate) fn is_form(&self) -> bool {
        self.media_type().as_deref() == Some("application/x-www-form-urlencoded")
    }

    pub(crate) fn bearer(&self) -> Option<&str> {
        strip_scheme(self.header(AUTHORIZATION)?, "bearer")
    }

    /// User name and password of `Authorization: Basic`.
    pub(crate) fn basic(&self) -> Option<(String, String)> {
        let encoded = strip_scheme(self.header(AUTHORIZATION)?, "basic")?;
        let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        Some((user.to_owned(), password.to_owned()))
    }

    /// First cookie of this name.
    pub(crate) fn cookie(&self, name: &str) -> Option<&str> {
        self.headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// The format that an error is told in.
    pub(crate) fn format(&self) -> Format {
        negotiate(self.header(ACCEPT)).unwrap_or(Format::Json)
    }
}

fn strip_scheme<'v>(value: &'v str, scheme: &str) -> Option<&'v str> {
    let (found, rest) = value.split_once(' ')?;
    found.eq_ignore_ascii_case(scheme).then_some(rest.trim())
}

/// The two formats of the REST API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Xml,
}

/// What `Accept` asks for; `None` if it admits neither format. No header means JSON.
pub(crate) fn negotiate(accept: Option<&str>) -> Option<Format> {
    let Some(accept) = accept else { return Some(Format::Json) };
    accept.split(',').find_map(|part| {
        let media_type = part.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match media_type.as_str() {
            "application/json" | "application/*" | "*/*" | "text/json" => Some(Format::Json),
            "application/xml" | "text/xml" | "text/*" => Some(Format::Xml),
            _ => None,
        }
    })
}

/// One answer of a handler.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// After `body` so many bytes of the pattern, made while they are sent.
    pub(crate) pattern: Option<GeneratedFile>,
}

impl Reply {
    pub(crate) fn new(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: Bytes::new(), pattern: None }
    }

    pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).unwrap_or_default();
        Self::new(status).typed("application/json;charset=UTF-8", body)
    }

    pub(crate) fn html(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::new(status).typed("text/html;charset=UTF-8", body)
    }

    /// The REST API's error envelope.
    pub(crate) fn api_error(format: Format, status: StatusCode, message: &str, detail: Option<&str>) -> Self {
        match format {
            Format::Json => Self::json(
                status,
                &json!({"error": {"message": message, "detail": detail}, "status": "failure"}),
            ),
            Format::Xml => Self::new(status).typed("application/xml;charset=UTF-8", {
                format!(
                    "<?xml version=\"1.0\" encoding=\"UTF-8\"?><response><error><message>{}</message>\
                     <detail>{}</detail></error><status>failure</status></response>",
                    escape(message),
                    escape(detail.unwrap_or_default()),
                )
            }),
        }
    }

    pub(crate) fn redirect(location: &str) -> Self {
        Self::new(StatusCode::FOUND).with(http::header::LOCATION, location)
    }

    #[must_use]
    pub(crate) fn typed(mut self, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.body = body.into();
        self
    }

    /// Sets a header; a value that is none (control characters) is left out.
    #[must_use]
    pub(crate) fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            self.headers.insert(name, value);
        }
        self
    }
}

/// Escapes text for HTML and XML, attribute values included.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_picks_a_format() {
        for (accept, expected) in [
            (None, Some(Format::Json)),
            (Some("*/*"), Some(Format::Json)),
            (Some("application/json"), Some(Format::Json)),
            (Some("Application/XML; q=0.9"), Some(Format::Xml)),
            (Some("text/html, application/xml"), Some(Format::Xml)),
            (Some("text/html"), None),
            (Some(""), None),
        ] {
            assert_eq!(negotiate(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn credentials_are_found_in_headers() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("bearer abc"));
        headers.append(COOKIE, HeaderValue::from_static("a=1; JSESSIONID=2"));
        headers.append(COOKIE, HeaderValue::from_static("JSESSIONID=3"));
        let request = SimRequest {
            method: Method::GET,
            path: "/".to_owned(),
            query: Some("a=b%20c&a=d".to_owned()),
            headers,
            body: Bytes::new(),
            unheld_bytes: None,
        };
        assert_eq!(request.bearer(), Some("abc"));
        assert_eq!(request.basic(), None);
        assert_eq!(request.cookie("JSESSIONID"), Some("2"));
        assert_eq!(request.query_value("a").as_deref(), Some("b c"));
    }
}
