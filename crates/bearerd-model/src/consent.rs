//! The short-lived records of one consent: link, flow, outcome.

use crate::{ConnectionId, InstanceOrigin, IntegrationId, PkceVerifier, ProfileName, UnixTime};

/// Invites a person to consent. Spent by the POST that starts the flow, not by being looked at (O-24).
#[derive(Debug, Clone)]
pub struct ConnectLink {
    /// Keyed hash of the link's random part, in hex: the record's id. The link itself is stored nowhere.
    pub hash: String,
    pub connection: ConnectionId,
    /// The operator who asked, as the page names them.
    pub requested_by: String,
    pub created_at: UnixTime,
    pub expires_at: UnixTime,
}

/// One authorization request on its way (RFC 6749 §4.1.1). Spent by the callback, whatever it brings (O-06, O-07).
#[derive(Debug, Clone)]
pub struct ConsentFlow {
    /// Keyed hash of `state`, in hex: the record's id.
    pub state_hash: String,
    /// Keyed hash of the cookie set in the browser that started the flow (O-02, O-03, O-04).
    pub cookie_hash: [u8; 32],
    pub connection: ConnectionId,
    pub integration: IntegrationId,
    pub instance: InstanceOrigin,
    pub profile: ProfileName,
    /// As sent in the authorization request; sent again, byte for byte, in the token request (O-15).
    pub redirect_uri: String,
    /// `None` where the integration switches PKCE off.
    pub verifier: Option<PkceVerifier>,
    pub requested_by: String,
    pub expires_at: UnixTime,
}

/// What the result page shows, kept for the redirect to a clean address (O-29).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ConsentOutcome {
    /// Random; part of the result page's address.
    pub id: String,
    pub result: ConsentResult,
    pub expires_at: UnixTime,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsentResult {
    Connected {
        connection: ConnectionId,
        instance: InstanceOrigin,
        /// Name of the consenting user, as the instance has it, for people to read.
        user: String,
        /// What that user signs in with: `sys_user.user_name`, which an operator confirms. Empty in outcomes stored
        /// before there was this member.
        #[serde(default)]
        user_name: String,
        /// An operator must still confirm the user.
        awaits_confirmation: bool,
    },
    Failed {
        /// Stable code, see `docs/errors.md`.
        code: String,
        /// What happened, for the person in front of the page.
        message: String,
        /// What the operator changes.
        fix: String,
        /// What the server said, cut and cleaned; shown in a details block (O-32).
        detail: Option<String>,
        /// Finds the log lines.
        error_id: String,
    },
}
