//! Names of headers that calls are looked up by and `http` does not know: parsed once, not once a call.

use http::HeaderName;

pub(crate) static CONNECTION_ID: HeaderName = HeaderName::from_static("connection-id");
pub(crate) static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
pub(crate) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) static X_SN_APIKEY: HeaderName = HeaderName::from_static("x-sn-apikey");
pub(crate) static X_TRANSACTION_ID: HeaderName = HeaderName::from_static("x-transaction-id");
