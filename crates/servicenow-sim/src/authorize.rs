//! `/oauth_auth.do`: checks an authorization request, asks the user, and sends the browser back with a code or an
//! error (RFC 6749 §4.1).

use std::time::Duration;

use http::header::CONTENT_SECURITY_POLICY;
use http::{Method, StatusCode};
use url::form_urlencoded;

use crate::behaviour::{Behaviour, DenyReturns, Pkce};
use crate::clock::SimTime;
use crate::codes::CodeGrant;
use crate::message::{Reply, SimRequest};
use crate::pages::{self, ConsentPage};
use crate::settings::ClientSettings;
use crate::world::World;

/// The parameters of an authorization request, as sent.
#[derive(Debug, Default)]
struct AuthorizationRequest {
    parameters: Vec<(String, String)>,
}

impl AuthorizationRequest {
    fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let parameters =
            pairs.into_iter().filter(|(name, _)| CARRIED_PARAMETERS.contains(&name.as_str())).collect();
        Self { parameters }
    }

    /// First value of the parameter, unless empty.
    fn get(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// Where an authorization request goes wrong.
#[derive(Debug, PartialEq, Eq)]
enum RequestProblem {
    /// Told to the user on a page.
    Page(StatusCode, &'static str),
    /// Told to the client by redirect (RFC 6749 §4.1.2.1).
    Redirect { error: &'static str, description: &'static str },
}

/// Answers GET (the request) and POST (the user's decision).
pub(crate) fn answer(world: &mut World, request: &SimRequest, now: SimTime) -> Reply {
    let decision = match request.method {
        Method::GET => None,
        Method::POST if request.is_form() => Some(request.form_pairs()),
        _ => return Reply::new(StatusCode::METHOD_NOT_ALLOWED),
    };
    let pairs = decision.clone().unwrap_or_else(|| request.query_pairs().collect());
    let asked = AuthorizationRequest::new(pairs);
    let client = asked.get("client_id").and_then(|id| world.clients.get(id)).cloned();
    let Some(client) = client.filter(|client| client.active) else {
        world.counters.authorize("client_unknown");
        return page(StatusCode::BAD_REQUEST, &pages::problem("Invalid client_id"));
    };
    let Some(target) = redirect_target(&client, asked.get("redirect_uri")) else {
        world.counters.authorize("no_redirect_url");
        return page(StatusCode::BAD_REQUEST, &pages::problem("The client has no redirect URL"));
    };
    match check(&world.behaviour, &client, &asked) {
        Ok(()) => {}
        Err(RequestProblem::Page(status, message)) => {
            world.counters.authorize("refused");
            return page(status, &pages::problem(message));
        }
        Err(RequestProblem::Redirect { error, description }) => {
            world.counters.authorize("refused");
            let members = [("error", error), ("error_description", description)];
            return back(&target, &members, asked.get("state"));
        }
    }
    if let Some(decision) = decision {
        return decide(world, &client, &target, &asked, &decision, now);
    }
    match world.behaviour.auto_approve.clone() {
        Some(user) if world.directory.may_sign_in(&user) => {
            allow(world, &client, &target, &asked, &user, now)
        }
        Some(_) | None => {
            world.counters.authorize("asked");
            ask(&client, &asked, None)
        }
    }
}

/// An unmatched redirect URI is answered at the first registered one (fact 12).
fn redirect_target(client: &ClientSettings, asked: Option<&str>) -> Option<String> {
    let matched = client.redirect_uris.iter().find(|uri| Some(uri.as_str()) == asked);
    matched.or_else(|| client.redirect_uris.first()).cloned()
}

fn check(
    behaviour: &Behaviour,
    client: &ClientSettings,
    asked: &AuthorizationRequest,
) -> Result<(), RequestProblem> {
    match asked.get("state") {
        None if behaviour.state_required => {
            return Err(RequestProblem::Page(StatusCode::BAD_REQUEST, "Missing State parameter in request"));
        }
        Some(state) if behaviour.state_plain_only && !state.bytes().all(is_plain) => {
            return Err(RequestProblem::Page(StatusCode::BAD_REQUEST, "Invalid State parameter in request"));
        }
        Some(_) | None => {}
    }
    let wrong = |error, description| Err(RequestProblem::Redirect { error, description });
    if asked.get("response_type") != Some("code") {
        return wrong("unsupported_response_type", "response_type must be code");
    }
    if !client.allows_scope(asked.get("scope").unwrap_or_default()) {
        return wrong("invalid_scope", "the client record does not have this scope");
    }
    let challenge = asked.get("code_challenge");
    let demanded = behaviour.pkce == Pkce::Required || client.client_secret.is_none();
    match challenge {
        None if demanded => wrong("invalid_request", "code_challenge is required"),
        Some(_) if behaviour.pkce == Pkce::Refused => {
            wrong("invalid_request", "code_challenge is not supported")
        }
        Some(_) if asked.get("code_challenge_method") != Some("S256") => {
            wrong("invalid_request", "code_challenge_method must be S256")
        }
        Some(challenge) if challenge.len() != 43 => wrong("invalid_request", "code_challenge is malformed"),
        Some(_) | None => Ok(()),
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte)
}

fn decide(
    world: &mut World,
    client: &ClientSettings,
    target: &str,
    asked: &AuthorizationRequest,
    form: &[(String, String)],
    now: SimTime,
) -> Reply {
    let field = |name: &str| form.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
    match field("decision") {
        "deny" => {
            world.counters.authorize("denied");
            match world.behaviour.deny_returns {
                DenyReturns::Bare => back(target, &[], None),
                DenyReturns::Error => back(target, &[("error", "access_denied")], asked.get("state")),
            }
        }
        "allow" => {
            let user = field("user_name");
            if world.directory.password_matches(user, field("user_password")) {
                return allow(world, client, target, asked, user, now);
            }
            world.counters.authorize("sign_in_failed");
            ask(client, asked, Some("User name or password invalid"))
        }
        _ => ask(client, asked, None),
    }
}

fn allow(
    world: &mut World,
    client: &ClientSettings,
    target: &str,
    asked: &AuthorizationRequest,
    user: &str,
    now: SimTime,
) -> Reply {
    world.counters.authorize("allowed");
    let life = Duration::from_secs(world.behaviour.code_lifetime_s);
    let grant = CodeGrant {
        client_id: client.client_id.clone(),
        user_name: user.to_owned(),
        redirect_uri: asked.get("redirect_uri").map(str::to_owned),
        code_challenge: asked.get("code_challenge").map(str::to_owned),
        expires_at: now.after(life),
    };
    let code = world.codes.issue(grant, now);
    back(target, &[("code", &code)], asked.get("state"))
}

fn ask(client: &ClientSettings, asked: &AuthorizationRequest, problem: Option<&str>) -> Reply {
    let scope = client.scope();
    let shown =
        ConsentPage { client_id: &client.client_id, scope: &scope, parameters: &asked.parameters, problem };
    page(StatusCode::OK, &pages::consent(&shown))
}

fn back(target: &str, members: &[(&str, &str)], state: Option<&str>) -> Reply {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in members {
        query.append_pair(name, value);
    }
    if let Some(state) = state {
        query.append_pair("state", state);
    }
    let query = query.finish();
    let separator = match (query.is_empty(), target.contains('?')) {
        (true, _) => "",
        (false, true) => "&",
        (false, false) => "?",
    };
    Reply::redirect(&format!("{target}{separator}{query}"))
}

/// No `form-action` here: browsers apply it to the redirect after the form too, and that leads to the client.
fn page(status: StatusCode, html: &str) -> Reply {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";
    Reply::html(status, html.to_owned()).with(CONTENT_SECURITY_POLICY, policy)
}

const CARRIED_PARAMETERS: [&str; 7] = [
    "response_type",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "code_challenge",
    "code_challenge_method",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(changes: &[(&str, &str)]) -> AuthorizationRequest {
        let mut pairs = vec![
            ("response_type", "code"),
            ("client_id", "c"),
            ("state", "abc"),
            ("redirect_uri", "http://a/"),
        ];
        pairs.retain(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
        pairs.extend(changes);
        AuthorizationRequest::new(pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())))
    }

    #[track_caller]
    fn check_request(behaviour: &Behaviour, secret: Option<&str>, changes: &[(&str, &str)], expected: &str) {
        let client = ClientSettings { client_secret: secret.map(str::to_owned), ..ClientSettings::default() };
        let found = match check(behaviour, &client, &asked(changes)) {
            Ok(()) => "ok",
            Err(RequestProblem::Page(_, message)) => message,
            Err(RequestProblem::Redirect { error, .. }) => error,
        };
        assert_eq!(found, expected, "{changes:?}");
    }

    #[test]
    fn requests_are_checked() {
        let default = Behaviour::default();
        let lax = Behaviour { state_required: false, state_plain_only: false, ..default.clone() };
        let pkce = Behaviour { pkce: Pkce::Required, ..default.clone() };
        let no_pkce = Behaviour { pkce: Pkce::Refused, ..default.clone() };
        let challenge = ("code_challenge", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
        let s256 = ("code_challenge_method", "S256");
        let secret = Some("s");
        check_request(&default, secret, &[], "ok");
        check_request(&default, secret, &[("state", "")], "Missing State parameter in request");
        check_request(&default, secret, &[("state", "a b")], "Invalid State parameter in request");
        check_request(&lax, secret, &[("state", "")], "ok");
        check_request(&lax, secret, &[("state", "a b")], "ok");
        check_request(&default, secret, &[("response_type", "token")], "unsupported_response_type");
        check_request(&default, None, &[], "invalid_request");
        check_request(&default, None, &[challenge, s256], "ok");
        check_request(&pkce, secret, &[], "invalid_request");
        check_request(&pkce, secret, &[challenge, s256], "ok");
        check_request(&pkce, secret, &[challenge], "invalid_request");
        check_request(&no_pkce, secret, &[challenge, s256], "invalid_request");
        check_request(&default, secret, &[challenge, ("code_challenge_method", "plain")], "invalid_request");
    }

    #[test]
    fn unmatched_redirect_uri_falls_to_the_first() {
        let client = ClientSettings {
            redirect_uris: vec!["http://a/".to_owned(), "http://b/".to_owned()],
            ..ClientSettings::default()
        };
        for (asked, expected) in
            [(Some("http://b/"), "http://b/"), (Some("http://evil/"), "http://a/"), (None, "http://a/")]
        {
            assert_eq!(redirect_target(&client, asked).as_deref(), Some(expected), "{asked:?}");
        }
        assert_eq!(redirect_target(&ClientSettings::default(), Some("http://a/")), None);
    }
}
