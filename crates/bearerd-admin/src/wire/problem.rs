//! What an error answer says (RFC 9457).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a request was not done, and what to do about it (RFC 9457, `application/problem+json`).
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:bearerd:error:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words.
    pub title: String,
    pub status: u16,
    /// What happened.
    pub detail: String,
    /// Stable; for programs.
    #[schema(example = "changed_meanwhile")]
    pub code: String,
    /// What to do now, in one sentence.
    pub fix: String,
    /// The member of the request, the parameter or the header that was not accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub field: Option<String>,
    /// Finds the log line; the same as the header `X-Request-Id`.
    pub request_id: String,
}
