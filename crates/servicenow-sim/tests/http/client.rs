//! A raw HTTP/1.1 client: one connection per request, and an answer that may be none.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde_json::Value;
use servicenow_sim::{Sim, SimSettings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) const REDIRECT_URI: &str = "http://127.0.0.1:8081/oauth/callback";
pub(crate) const CLIENT: &str = "client_id=bearerd-demo&client_secret=demo-secret";

pub(crate) async fn sim() -> Sim {
    Sim::start(SimSettings::default()).await.unwrap()
}

/// A simulator with these switches.
pub(crate) async fn sim_with(patch: Value) -> Sim {
    let sim = sim().await;
    sim.state().patch_behaviour(&patch).unwrap();
    sim
}

#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The body ended as HTTP says it must.
    pub(crate) complete: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn member(&self, name: &str) -> String {
        self.json()[name].as_str().unwrap_or_else(|| panic!("no {name}: {}", self.text())).to_owned()
    }
}

/// Sends a request; `None` if the connection ended without an answer.
pub(crate) async fn send(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Option<Answer> {
    let mut request = format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        write!(request, "{name}: {value}\r\n").unwrap();
    }
    if !body.is_empty() || method == "POST" {
        write!(request, "Content-Length: {}\r\n", body.len()).unwrap();
    }
    request.push_str("\r\n");
    request.push_str(body);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut raw = Vec::new();
    let _ = stream.read_to_end(&mut raw).await; // a reset is an end too
    parse(&raw)
}

fn parse(raw: &[u8]) -> Option<Answer> {
    let head_end = raw.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&raw[..head_end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let rest = &raw[head_end + 4..];
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let (body, complete) = if chunked { dechunk(rest) } else { (rest.to_vec(), true) };
    Some(Answer { status, headers, body, complete })
}

pub(crate) fn dechunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(line_end) = rest.windows(2).position(|window| window == b"\r\n") else {
            return (body, false);
        };
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line_end]).unwrap(), 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        let start = line_end + 2;
        if rest.len() < start + size + 2 {
            return (body, false);
        }
        body.extend_from_slice(&rest[start..start + size]);
        rest = &rest[start + size + 2..];
    }
}

pub(crate) async fn get(sim: &Sim, target: &str, headers: &[(&str, &str)]) -> Answer {
    send(sim.local_addr(), "GET", target, headers, "").await.expect("an answer")
}

pub(crate) async fn form(sim: &Sim, target: &str, body: &str) -> Answer {
    let headers = [("Content-Type", "application/x-www-form-urlencoded")];
    send(sim.local_addr(), "POST", target, &headers, body).await.expect("an answer")
}

/// The same, of a connection that may be cut; `None` where no head came.
pub(crate) async fn try_form(sim: &Sim, target: &str, body: &str) -> Option<Answer> {
    let headers = [("Content-Type", "application/x-www-form-urlencoded")];
    send(sim.local_addr(), "POST", target, &headers, body).await
}

pub(crate) async fn token(sim: &Sim, body: &str) -> Answer {
    form(sim, "/oauth_token.do", body).await
}

pub(crate) async fn control(sim: &Sim, method: &str, path: &str, body: &Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    send(sim.local_addr(), method, &format!("/__sim/{path}"), &[], &body).await.expect("an answer")
}

/// `Authorization` value of the demo client's application user.
pub(crate) async fn bearer(sim: &Sim) -> String {
    let answer = token(sim, &format!("grant_type=client_credentials&{CLIENT}")).await;
    format!("Bearer {}", answer.member("access_token"))
}

/// An authorization code for `abel.tuter`, by way of `auto_approve`.
pub(crate) async fn code(sim: &Sim, more: &str) -> String {
    sim.state().change_behaviour(|behaviour| behaviour.auto_approve = Some("abel.tuter".to_owned()));
    let redirect = REDIRECT_URI.replace(':', "%3A").replace('/', "%2F");
    let target = format!(
        "/oauth_auth.do?response_type=code&client_id=bearerd-demo&redirect_uri={redirect}&state=abc{more}"
    );
    let answer = get(sim, &target, &[]).await;
    assert_eq!(answer.status, 302, "{}", answer.text());
    let location = answer.header("location").unwrap();
    location.split(['?', '&']).find_map(|part| part.strip_prefix("code=")).unwrap_or(location).to_owned()
}

/// Access and refresh token of `abel.tuter`.
pub(crate) async fn consented(sim: &Sim) -> (String, String) {
    let code = code(sim, "").await;
    let body = format!("grant_type=authorization_code&code={code}&redirect_uri={REDIRECT_URI}&{CLIENT}");
    let answer = token(sim, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    (answer.member("access_token"), answer.member("refresh_token"))
}

pub(crate) async fn refresh(sim: &Sim, refresh_token: &str) -> Answer {
    token(sim, &format!("grant_type=refresh_token&refresh_token={refresh_token}&{CLIENT}")).await
}
