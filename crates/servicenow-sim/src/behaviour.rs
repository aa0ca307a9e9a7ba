//! The switches: where ServiceNow's documentation is silent, or instances differ, the simulator does not pick one
//! truth but lets a test choose. All of them can be changed while it runs.

use serde::{Deserialize, Serialize};

/// Every switch, with the default that fits an instance as most people meet it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent property of the instance")]
pub struct Behaviour {
    /// User name that consents to every authorization request at once (302 without a page).
    pub auto_approve: Option<String>,
    /// `glide.oauth.state.parameter.required`: a request without `state` is answered with a page.
    pub state_required: bool,
    /// A `state` with characters outside `A-Z a-z 0-9 - _ . ~` is refused.
    pub state_plain_only: bool,
    /// What the authorization endpoint thinks of `code_challenge`; a public client must always send one.
    pub pkce: Pkce,
    /// What the redirect after Deny carries.
    pub deny_returns: DenyReturns,
    /// Life of an authorization code, seconds.
    pub code_lifetime_s: u64,

    /// Shape of a refusal by the token endpoint.
    pub error_shape: ErrorShape,
    /// The token endpoint does not take client credentials from `Authorization: Basic`.
    pub refuse_basic_client_auth: bool,
    /// `glide.oauth.inbound.client.credential.grant_type.enabled`.
    pub client_credentials_enabled: bool,
    /// `false` is `glide.oauth.inbound.ropc.grant_type.disabled`.
    pub password_enabled: bool,
    /// `exp`, `nbf` and `iat` of an assertion (JWT bearer) may be this far off, seconds.
    pub assertion_skew_s: u64,
    /// Life of an access token, seconds, unless the client has its own.
    pub access_token_lifetime_s: u64,
    /// Life of a refresh token, seconds, unless the client has its own; counted from consent.
    pub refresh_token_lifetime_s: u64,
    /// What a refresh inside the access token's life answers.
    pub refresh_within_life: RefreshWithinLife,
    /// A new access token ends the one before it; otherwise that lives on until its own expiry.
    pub new_access_token_ends_old: bool,
    /// The same client and user share one pair of tokens. Has no effect while `rotation` is on, where each consent
    /// makes a family of its own.
    pub shared_tokens: bool,
    /// A grant other than refresh gives existing shared tokens a new full life (KB0791140).
    pub fresh_grant_extends: bool,
    /// Each refresh answers a new refresh token and ends the one before it.
    pub rotation: bool,
    /// Under rotation the immediately previous refresh token re-answers the current pair (FAPI 2.0 §5.3.2.1).
    pub rotation_previous_ok: bool,
    /// Under rotation the immediately previous refresh token does so for this many seconds after it was replaced: a
    /// leeway, as Okta and Cognito have it. 0 = none.
    pub rotation_previous_ok_s: u64,
    /// Under rotation the reuse of an older refresh token revokes the whole family (RFC 9700 §4.14.2).
    pub rotation_reuse_revokes: bool,
    /// Under rotation each new refresh token has a full life of its own, instead of what is left since consent.
    pub rotation_extends_life: bool,
    /// What access tokens look like.
    pub token_format: TokenFormat,
    /// A public client gets a refresh token too.
    pub refresh_token_for_public_clients: bool,
    /// Revoking a refresh token also ends its access token.
    pub revoke_refresh_ends_access: bool,

    /// A session cookie from an earlier answer still authenticates when the access token does not (fact 6).
    pub cookie_auth_after_expiry: bool,
    /// `X-HTTP-Method-Override` changes the verb (fact 7).
    pub method_override: bool,
    /// `?access_token=` and `?x-sn-apikey=` authenticate (fact 7).
    pub query_credentials: bool,
    /// Basic authentication with a user's password works on `/api`.
    pub basic_auth: bool,
    /// Table API: an invalid condition makes the query match nothing, instead of being ignored.
    pub invalid_query_returns_no_rows: bool,
    /// Who may not do what: 403 on these tables.
    pub acl_denials: Vec<AclDenial>,
    /// Requests with an access token whose path contains one of these texts lack the auth scope for it: 403.
    pub scope_denials: Vec<String>,

    /// Requests with the same `JSESSIONID` are serialised; the overflow is answered 202 and dropped (fact 5).
    pub session_serialisation: bool,
    /// How many requests of one session run at a time.
    pub session_concurrency: u32,
    /// How many requests of one session may wait.
    pub session_queue: u32,
    /// A session not used for this long is gone, seconds.
    pub session_idle_s: u64,
    /// `API_INT` semaphores of the node; 0 = no limit. A real node typically has 4.
    pub node_concurrency: u32,
    /// How many requests may wait for a semaphore before 429.
    pub node_queue: u32,
    /// Rate rule: requests per hour and user on `/api`; 0 = no rule.
    pub rate_limit_per_hour: u32,
    /// After so many requests a connection is ended gracefully: `Connection: close`, on HTTP/2 GOAWAY; 0 = never.
    pub connection_requests_max: u64,
    /// An HTTP/1.1 connection that waits this long for a request is closed, milliseconds; as when it was accepted.
    pub connection_idle_ms: u64,
    /// Streams at a time that an HTTP/2 connection allows; as when it was accepted.
    pub http2_streams_max: u32,
    /// Every request to an OAuth or API route takes at least this long, milliseconds.
    pub latency_ms: u64,

    /// The instance hibernates: every route answers 200 with an HTML page.
    pub asleep: bool,
    /// Answers of the REST API carry `X-Sim-Marker`, the request's (or its `sysparm_sim_marker`), and `X-Sim-User`, the
    /// user that its credentials belong to.
    pub echo_marker: bool,
    /// Under `echo_marker` the body of a good answer is replaced by one of so many bytes that repeats both; 0 = no.
    pub echo_bytes: usize,
    /// Origin in `Link`, `Location` and reference links; default: the simulator's own.
    pub public_origin: Option<String>,
    /// How many of the latest requests are kept for `GET /__sim/last-requests`; at most 10,000.
    pub request_log_max: usize,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            auto_approve: None,
            state_required: true,
            state_plain_only: true,
            pkce: Pkce::Optional,
            deny_returns: DenyReturns::Error,
            code_lifetime_s: 60,
            error_shape: ErrorShape::Flattened,
            refuse_basic_client_auth: false,
            client_credentials_enabled: true,
            password_enabled: true,
            assertion_skew_s: 300,
            access_token_lifetime_s: 1_800,
            refresh_token_lifetime_s: 8_640_000,
            refresh_within_life: RefreshWithinLife::Remaining,
            new_access_token_ends_old: false,
            shared_tokens: true,
            fresh_grant_extends: true,
            rotation: false,
            rotation_previous_ok: false,
            rotation_previous_ok_s: 0,
            rotation_reuse_revokes: true,
            rotation_extends_life: false,
            token_format: TokenFormat::Opaque,
            refresh_token_for_public_clients: true,
            revoke_refresh_ends_access: false,
            cookie_auth_after_expiry: true,
            method_override: true,
            query_credentials: true,
            basic_auth: true,
            invalid_query_returns_no_rows: false,
            acl_denials: Vec::new(),
            scope_denials: Vec::new(),
            session_serialisation: true,
            session_concurrency: 2,
            session_queue: 10,
            session_idle_s: 300,
            node_concurrency: 0,
            node_queue: 50,
            rate_limit_per_hour: 0,
            connection_requests_max: 0,
            connection_idle_ms: 30_000,
            http2_streams_max: 200,
            latency_ms: 0,
            asleep: false,
            echo_marker: false,
            echo_bytes: 0,
            public_origin: None,
            request_log_max: 100,
        }
    }
}

/// PKCE (RFC 7636) at the authorization endpoint. A challenge that was sent is always verified at the token endpoint.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Pkce {
    Optional,
    /// A request without `code_challenge` is refused.
    Required,
    /// A request with `code_challenge` is refused.
    Refused,
}

/// What the redirect after Deny carries: not documented by ServiceNow.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum DenyReturns {
    /// `error=access_denied` and `state` (RFC 6749 §4.1.2.1).
    Error,
    /// Nothing: the bare redirect URI.
    Bare,
}

/// Shape of a refusal by the token endpoint.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ErrorShape {
    /// Always `401 {"error_description":"access_denied","error":"server_error"}`, whatever the reason.
    Flattened,
    /// RFC 6749 §5.2.
    Rfc6749,
}

/// What a refresh inside the access token's life answers.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RefreshWithinLife {
    /// The same access token; `expires_in` is what is left, in whole seconds, rounded down.
    Remaining,
    /// The same access token with a full life again.
    Renewed,
    /// A new access token.
    New,
}

/// What access tokens look like.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum TokenFormat {
    /// 86 characters of base64url.
    Opaque,
    /// A signed JWT of about 1.5 KB; its key is at `/api/now/oauth/jwks`.
    Jwt,
}

/// One denied combination of user, table and methods.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct AclDenial {
    /// User name, or `*`.
    pub user: String,
    /// Table name, or `*`.
    pub table: String,
    /// HTTP methods; empty = all.
    #[serde(default)]
    pub methods: Vec<String>,
}

impl Behaviour {
    /// Whether `user` is denied `method` on `table`.
    pub(crate) fn denies(&self, user: &str, table: &str, method: &str) -> bool {
        self.acl_denials.iter().any(|denial| {
            (denial.user == "*" || denial.user == user)
                && (denial.table == "*" || denial.table == table)
                && (denial.methods.is_empty()
                    || denial.methods.iter().any(|denied| denied.eq_ignore_ascii_case(method)))
        })
    }

    /// Applies an RFC 7396 merge patch.
    ///
    /// # Errors
    /// The deserialiser's text if the result is not a behaviour: unknown switch, wrong type.
    pub fn patched(&self, patch: &serde_json::Value) -> Result<Self, String> {
        let serde_json::Value::Object(changes) = patch else {
            return Err("a behaviour patch is a JSON object".to_owned());
        };
        let Ok(serde_json::Value::Object(mut merged)) = serde_json::to_value(self) else {
            return Err("behaviour cannot be serialised".to_owned());
        };
        for (name, value) in changes {
            if value.is_null() {
                merged.remove(name);
            } else {
                merged.insert(name.clone(), value.clone());
            }
        }
        serde_json::from_value(serde_json::Value::Object(merged)).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn patch_sets_resets_and_refuses() {
        let behaviour = Behaviour::default();
        let changed = behaviour.patched(&json!({"rotation": true, "pkce": "required"})).unwrap();
        assert!(changed.rotation);
        assert_eq!(changed.pkce, Pkce::Required);
        let reset = changed.patched(&json!({"pkce": null})).unwrap();
        assert_eq!(reset.pkce, Pkce::Optional, "null puts the default back");
        assert!(reset.rotation);
        for wrong in [json!({"rotatoin": true}), json!({"rotation": 3}), json!([]), json!(null)] {
            assert!(behaviour.patched(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn denial_matches_user_table_and_method() {
        let denial = AclDenial {
            user: "abel.tuter".to_owned(),
            table: "problem".to_owned(),
            methods: vec!["get".to_owned()],
        };
        let behaviour = Behaviour { acl_denials: vec![denial], ..Behaviour::default() };
        assert!(behaviour.denies("abel.tuter", "problem", "GET"));
        assert!(!behaviour.denies("abel.tuter", "problem", "POST"));
        assert!(!behaviour.denies("admin", "problem", "GET"));
        assert!(!behaviour.denies("abel.tuter", "incident", "GET"));
    }
}
