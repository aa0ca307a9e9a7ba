//! `POST /oauth_token.do` and `/oauth_revoke_token.do`: reads the form, checks the client, runs the grant, and tells
//! the outcome the way ServiceNow does, which is one answer for nearly every failure.

use std::collections::BTreeMap;
use std::time::Duration;

use http::header::{ALLOW, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::json;
use url::form_urlencoded;

use crate::assertion;
use crate::behaviour::{Behaviour, ErrorShape};
use crate::clock::SimTime;
use crate::codes::CodeClaim;
use crate::ledger::{Decision, ExchangeOutcome};
use crate::message::{Reply, SimRequest};
use crate::secrets;
use crate::settings::ClientSettings;
use crate::tokens::{GrantRules, IssuedTokens, TokenOwner, TokenRefusal};
use crate::world::World;

/// Why the token endpoint refuses: an RFC 6749 §5.2 code, and the reason as the instance's own log would have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) error: &'static str,
    pub(crate) reason: &'static str,
}

impl Refusal {
    pub(crate) const fn grant(reason: &'static str) -> Self {
        Self { error: "invalid_grant", reason }
    }

    const fn client(reason: &'static str) -> Self {
        Self { error: "invalid_client", reason }
    }

    const fn request(reason: &'static str) -> Self {
        Self { error: "invalid_request", reason }
    }

    const fn unauthorized(reason: &'static str) -> Self {
        Self { error: "unauthorized_client", reason }
    }
}

/// RFC 6749 §5.1, members in ServiceNow's order.
#[derive(Serialize)]
struct TokenResponse<'a> {
    scope: &'a str,
    token_type: &'static str,
    expires_in: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<&'a str>,
    access_token: &'a str,
}

/// The refresh token or code that a token request spends, and the grant's name.
pub(crate) fn spent(request: &SimRequest) -> Option<(&'static str, String)> {
    if request.method != Method::POST || !request.is_form() {
        return None;
    }
    let form = Form::parse(request);
    let grant_type = known_grant(form.get("grant_type"));
    let parameter = match grant_type {
        "refresh_token" => "refresh_token",
        "authorization_code" => "code",
        _ => return None,
    };
    Some((grant_type, form.get(parameter)?.to_owned()))
}

/// The token endpoint. What becomes of the exchange, if this is one, goes into the ledger.
pub(crate) fn answer(
    world: &mut World,
    request: &SimRequest,
    exchange_seq: Option<u64>,
    now: SimTime,
) -> Reply {
    if request.method != Method::POST {
        return Reply::new(StatusCode::METHOD_NOT_ALLOWED).with(ALLOW, "POST");
    }
    if !request.is_form() {
        world.counters.token_call("none", "not_a_form");
        let body = json!({"error_description": "an unspecified error", "error": "server_error"});
        return Reply::json(StatusCode::BAD_REQUEST, &body);
    }
    let form = Form::parse(request);
    let grant_type = known_grant(form.get("grant_type"));
    let standing =
        form.get("refresh_token").and_then(|token| world.tokens.refresh_token_standing(token)).unzip();
    let result = form.refuse_repeated().and_then(|()| exchange(world, request, &form, now));
    if let Some(seq) = exchange_seq {
        let decision = decision(&world.behaviour, standing, result.as_ref().map(|(_, issued)| issued));
        world.exchanges.decide(seq, decision);
    }
    match result {
        Ok((client, issued)) => {
            world.counters.token_call(grant_type, if issued.repeated { "repeated" } else { "issued" });
            issued_reply(&client, &issued)
        }
        Err(refusal) => {
            world.counters.token_call(grant_type, refusal.reason);
            tracing::debug!(grant_type, reason = refusal.reason, "token request refused: {}", refusal.reason);
            refused_reply(&world.behaviour, refusal)
        }
    }
}

/// What the ledger says of an exchange that came to this result. `standing` is the refresh token's, before.
fn decision(
    behaviour: &Behaviour,
    standing: (Option<TokenOwner>, Option<bool>),
    result: Result<&IssuedTokens, &Refusal>,
) -> Decision {
    let (owner, is_current) = standing;
    let spent_current = is_current.unwrap_or(false);
    match result {
        Ok(issued) => Decision {
            outcome: if issued.repeated { ExchangeOutcome::Repeated } else { ExchangeOutcome::Issued },
            reason: None,
            owner: Some(issued.owner.clone()),
            spent_current,
            refresh_token: issued.refresh_token.clone(),
        },
        Err(refusal) => {
            let revoked = refusal.reason == TokenRefusal::Reused.name() && behaviour.rotation_reuse_revokes;
            let outcome = if revoked { ExchangeOutcome::FamilyRevoked } else { ExchangeOutcome::Refused };
            Decision { outcome, reason: Some(refusal.reason), owner, spent_current, refresh_token: None }
        }
    }
}

/// The revocation endpoint: no authentication, GET or POST, and never a failure.
pub(crate) fn answer_revocation(world: &mut World, request: &SimRequest, now: SimTime) -> Reply {
    let token = match request.method {
        Method::GET => request.query_value("token"),
        Method::POST => {
            let form = Form::parse(request);
            form.get("token").map(str::to_owned).or_else(|| request.query_value("token"))
        }
        _ => return Reply::new(StatusCode::METHOD_NOT_ALLOWED).with(ALLOW, "GET, POST"),
    };
    let ends_access = world.behaviour.revoke_refresh_ends_access;
    let known = token.as_ref().is_some_and(|token| world.tokens.revoke(token, ends_access));
    world.exchanges.revoked(token, known, now);
    world.counters.revocation(if known { "revoked" } else { "unknown" });
    Reply::new(StatusCode::OK)
}

fn issued_reply(client: &ClientSettings, issued: &IssuedTokens) -> Reply {
    let body = TokenResponse {
        scope: &client.scope(),
        token_type: "Bearer",
        expires_in: issued.expires_in_s,
        refresh_token: issued.refresh_token.as_deref(),
        access_token: &issued.access_token,
    };
    Reply::json(StatusCode::OK, &body)
}

fn refused_reply(behaviour: &Behaviour, refusal: Refusal) -> Reply {
    if behaviour.error_shape == ErrorShape::Flattened {
        return flattened();
    }
    let body = json!({"error": refusal.error, "error_description": refusal.reason});
    if refusal.error == "invalid_client" {
        let reply = Reply::json(StatusCode::UNAUTHORIZED, &body);
        return reply.with(WWW_AUTHENTICATE, "Basic realm=\"Service-now\"");
    }
    Reply::json(StatusCode::BAD_REQUEST, &body)
}

/// What ServiceNow answers to nearly every failure, byte for byte.
pub(crate) fn flattened() -> Reply {
    let body = r#"{"error_description":"access_denied","error":"server_error"}"#;
    Reply::new(StatusCode::UNAUTHORIZED).typed("application/json;charset=UTF-8", body)
}

fn exchange(
    world: &mut World,
    request: &SimRequest,
    form: &Form,
    now: SimTime,
) -> Result<(ClientSettings, IssuedTokens), Refusal> {
    let grant_type = form.get("grant_type").ok_or(Refusal::request("grant_type_missing"))?;
    if grant_type == JWT_BEARER {
        return exchange_assertion(world, request, form, now);
    }
    let client = authenticate_client(world, request, form)?;
    if !client.allows_scope(form.get("scope").unwrap_or_default()) {
        return Err(Refusal { error: "invalid_scope", reason: "scope_unknown" });
    }
    let issued = match grant_type {
        "authorization_code" => exchange_code(world, &client, form, now)?,
        "refresh_token" => exchange_refresh_token(world, &client, form, now)?,
        "client_credentials" => exchange_client_credentials(world, &client, now)?,
        "password" => exchange_password(world, &client, form, now)?,
        _ => return Err(Refusal { error: "unsupported_grant_type", reason: "grant_type_unknown" }),
    };
    Ok((client, issued))
}

fn exchange_code(
    world: &mut World,
    client: &ClientSettings,
    form: &Form,
    now: SimTime,
) -> Result<IssuedTokens, Refusal> {
    let code = form.get("code").ok_or(Refusal::request("code_missing"))?;
    let claim = CodeClaim {
        client_id: &client.client_id,
        redirect_uri: form.get("redirect_uri"),
        code_verifier: form.get("code_verifier"),
    };
    let grant = world.codes.redeem(code, claim, now).map_err(|refusal| Refusal::grant(refusal.name()))?;
    if client.client_secret.is_none() && grant.code_challenge.is_none() {
        return Err(Refusal::grant("verifier_missing"));
    }
    let with_refresh = client.client_secret.is_some() || world.behaviour.refresh_token_for_public_clients;
    issue(world, client, &grant.user_name, with_refresh, now)
}

fn exchange_refresh_token(
    world: &mut World,
    client: &ClientSettings,
    form: &Form,
    now: SimTime,
) -> Result<IssuedTokens, Refusal> {
    let refresh_token = form.get("refresh_token").ok_or(Refusal::request("refresh_token_missing"))?;
    let rules = rules(&world.behaviour, client);
    let minter = world.minter(now);
    if let Some(user) = world.tokens.refresh_token_user(refresh_token)
        && !world.directory.may_sign_in(user)
    {
        return Err(Refusal::grant("user_inactive"));
    }
    world
        .tokens
        .refresh(refresh_token, &client.client_id, &rules, now, &mut |mint| minter.mint(mint))
        .map_err(|refusal| Refusal::grant(refusal.name()))
}

fn exchange_client_credentials(
    world: &mut World,
    client: &ClientSettings,
    now: SimTime,
) -> Result<IssuedTokens, Refusal> {
    if !world.behaviour.client_credentials_enabled {
        return Err(Refusal::unauthorized("client_credentials_disabled"));
    }
    if client.client_secret.is_none() {
        return Err(Refusal::unauthorized("public_client"));
    }
    let user = client.application_user.as_deref().ok_or(Refusal::unauthorized("no_application_user"))?;
    issue(world, client, user, false, now)
}

fn exchange_password(
    world: &mut World,
    client: &ClientSettings,
    form: &Form,
    now: SimTime,
) -> Result<IssuedTokens, Refusal> {
    if !world.behaviour.password_enabled {
        return Err(Refusal::unauthorized("password_disabled"));
    }
    let user = form.get("username").ok_or(Refusal::request("username_missing"))?;
    if !world.directory.password_matches(user, form.get("password").unwrap_or_default()) {
        return Err(Refusal::grant("password_wrong"));
    }
    issue(world, client, user, true, now)
}

fn exchange_assertion(
    world: &mut World,
    request: &SimRequest,
    form: &Form,
    now: SimTime,
) -> Result<(ClientSettings, IssuedTokens), Refusal> {
    let text = form.get("assertion").ok_or(Refusal::request("assertion_missing"))?;
    let named = form.get("client_id").is_some() || request.basic().is_some();
    let authenticated = if named { Some(authenticate_client(world, request, form)?) } else { None };
    let (client_id, user) = assertion::accept(world, text, now)?;
    let client = world.clients.get(&client_id).filter(|client| client.active).cloned();
    let client = client.ok_or(Refusal::client("client_unknown"))?;
    match authenticated {
        Some(authenticated) if authenticated.client_id != client.client_id => {
            return Err(Refusal::grant("assertion_for_other_client"));
        }
        None if client.client_secret.is_some() => return Err(Refusal::client("client_secret_missing")),
        Some(_) | None => {}
    }
    let issued = issue(world, &client, &user, false, now)?;
    Ok((client, issued))
}

fn issue(
    world: &mut World,
    client: &ClientSettings,
    user: &str,
    with_refresh: bool,
    now: SimTime,
) -> Result<IssuedTokens, Refusal> {
    if !world.directory.may_sign_in(user) {
        return Err(Refusal::grant("user_inactive"));
    }
    let owner = TokenOwner { client_id: client.client_id.clone(), user_name: user.to_owned() };
    let rules = rules(&world.behaviour, client);
    let minter = world.minter(now);
    Ok(world.tokens.grant(&owner, with_refresh, &rules, now, &mut |mint| minter.mint(mint)))
}

/// Client authentication (RFC 6749 §2.3.1): in the body, or Basic unless refused; never both.
fn authenticate_client(world: &World, request: &SimRequest, form: &Form) -> Result<ClientSettings, Refusal> {
    let (client_id, secret) = match request.basic() {
        Some(_) if world.behaviour.refuse_basic_client_auth => return Err(Refusal::client("basic_refused")),
        Some(_) if form.get("client_secret").is_some() => return Err(Refusal::request("client_auth_twice")),
        Some((client_id, secret)) => (client_id, Some(secret)),
        None => {
            let client_id = form.get("client_id").ok_or(Refusal::client("client_id_missing"))?;
            (client_id.to_owned(), form.get("client_secret").map(str::to_owned))
        }
    };
    let client = world.clients.get(&client_id).or_else(|| world.clients.get(&form_decoded(&client_id)));
    let client = client.filter(|client| client.active).ok_or(Refusal::client("client_unknown"))?;
    if form.get("client_id").is_some_and(|named| named != client.client_id) {
        return Err(Refusal::request("client_id_differs"));
    }
    let accepted = [&client.client_secret, &client.next_client_secret];
    let good = match (&client.client_secret, &secret) {
        (None, None) => true,
        (None, Some(given)) => given.is_empty(),
        (Some(_), None) => return Err(Refusal::client("client_secret_missing")),
        (Some(_), Some(given)) => accepted.into_iter().flatten().any(|secret| {
            secrets::same(secret, given)
                || (request.basic().is_some() && secrets::same(secret, &form_decoded(given)))
        }),
    };
    if good { Ok(client.clone()) } else { Err(Refusal::client("client_secret_wrong")) }
}

/// RFC 6749 §2.3.1 has Basic credentials form-encoded first; many clients do not, so both forms pass.
fn form_decoded(text: &str) -> String {
    form_urlencoded::parse(text.as_bytes()).next().map_or_else(String::new, |(name, _)| name.into_owned())
}

fn rules(behaviour: &Behaviour, client: &ClientSettings) -> GrantRules {
    let seconds = |own: Option<u64>, general: u64| Duration::from_secs(own.unwrap_or(general));
    GrantRules {
        access_life: seconds(client.access_token_lifetime_s, behaviour.access_token_lifetime_s),
        refresh_life: seconds(client.refresh_token_lifetime_s, behaviour.refresh_token_lifetime_s),
        within_life: behaviour.refresh_within_life,
        new_access_ends_old: behaviour.new_access_token_ends_old,
        shared: behaviour.shared_tokens,
        fresh_extends: behaviour.fresh_grant_extends,
        rotation: behaviour.rotation,
        previous_ok_for: previous_ok_for(behaviour),
        reuse_revokes: behaviour.rotation_reuse_revokes,
        rotation_extends: behaviour.rotation_extends_life,
    }
}

/// How long the previous refresh token is honoured after rotation.
pub(crate) fn previous_ok_for(behaviour: &Behaviour) -> Duration {
    let leeway = Duration::from_secs(behaviour.rotation_previous_ok_s);
    if behaviour.rotation_previous_ok { Duration::MAX } else { leeway }
}

/// A form body; query parameters are never looked at
/// (`glide.oauth.allow.parameters.in.post.body.only`).
struct Form {
    values: BTreeMap<String, String>,
    repeated: bool,
}

impl Form {
    fn parse(request: &SimRequest) -> Self {
        let mut form = Self { values: BTreeMap::new(), repeated: false };
        for (name, value) in request.form_pairs() {
            form.repeated |= form.values.insert(name, value).is_some();
        }
        form
    }

    /// The parameter, unless missing or empty (RFC 6749 §3.2: sent without a value is as if omitted).
    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn refuse_repeated(&self) -> Result<(), Refusal> {
        if self.repeated { Err(Refusal::request("parameter_repeated")) } else { Ok(()) }
    }
}

/// The grant's name for counters: never text chosen by the caller.
pub(crate) fn known_grant(grant_type: Option<&str>) -> &'static str {
    match grant_type {
        Some("authorization_code") => "authorization_code",
        Some("refresh_token") => "refresh_token",
        Some("client_credentials") => "client_credentials",
        Some("password") => "password",
        Some(JWT_BEARER) => "jwt_bearer",
        Some(SAML2_BEARER) => "saml2_bearer",
        Some(_) => "other",
        None => "none",
    }
}

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const SAML2_BEARER: &str = "urn:ietf:params:oauth:grant-type:saml2-bearer";
