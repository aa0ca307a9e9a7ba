//! `bearerd demo` and `bearerd sim`: the main job on one machine, through the real doors.

use std::{
    io::{IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bearerd_audit::SinkKind;
use bearerd_model::InstanceOrigin;
use bearerd_net::{Connector, EgressSettings, FetchLimits, Fetched, InheritedSockets, fetch};
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::Full;
use rustix::{
    event::{self, PollFd, PollFlags},
    io::Errno,
};
use serde_json::{Value, json};
use servicenow_sim::{Behaviour, ClientSettings, Sim, SimSettings, SimTls};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::{
    daemon::{Addresses, Bound, Daemon},
    hardening, init, logging,
    settings::Settings,
};

/// Prints a line. Whoever reads may have left (`| head`): that ends the demo, by [`reader_left`], and nothing else.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// What `bearerd demo` takes.
#[derive(Debug, Args)]
#[command(
    after_help = "Everything lives in a temporary folder and ends with Ctrl-C, or when its output is no longer read (`| head`)."
)]
pub(crate) struct DemoArgs {
    /// Consent yourself: prints a connect link and waits until you have opened it and allowed access
    #[arg(long)]
    consent_in_browser: bool,
}

/// What `bearerd sim` takes.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  bearerd sim --listen 127.0.0.1:9000 --redirect-uri http://127.0.0.1:8081/oauth/callback\n\nUsers: admin/admin, svc.integration/svc, abel.tuter/demo. Client: bearerd-demo/demo-secret.\nSwitches and faults: curl http://127.0.0.1:9000/__sim/behaviour"
)]
pub(crate) struct SimArgs {
    /// IP:PORT to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Redirect URL registered for the client bearerd-demo; may be repeated
    #[arg(long = "redirect-uri", default_value = "http://127.0.0.1:8081/oauth/callback")]
    redirect_uris: Vec<String>,
    /// JSON with switches, as at /__sim/behaviour
    #[arg(long, value_name = "JSON")]
    behaviour: Option<String>,
    /// Certificate to show, in PEM: serves https with HTTP/2 and HTTP/1.1
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Demand client certificates signed by one of these, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    client_ca: Option<PathBuf>,
}

impl SimArgs {
    fn tls(&self) -> Result<Option<SimTls>> {
        let (Some(certificate), Some(key)) = (&self.tls_certificate, &self.tls_key) else { return Ok(None) };
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
        };
        let mut tls = SimTls::new(read(certificate)?, read(key)?);
        tls.client_ca = self.client_ca.as_ref().map(read).transpose()?;
        Ok(Some(tls))
    }
}

/// Who consents in the demo.
const DEMO_USER: &str = "admin";
/// How long the person in front of the browser may take.
const CONSENT_WAIT: Duration = Duration::from_mins(10);

/// Runs the simulator until Ctrl-C.
///
/// # Errors
/// The address is in use; the switches are not switches.
pub(crate) async fn sim(args: SimArgs) -> Result<()> {
    let mut behaviour = Behaviour::default();
    if let Some(text) = &args.behaviour {
        let patch: Value = serde_json::from_str(text).context("--behaviour is not JSON")?;
        behaviour = behaviour.patched(&patch).map_err(|fault| anyhow::anyhow!("--behaviour: {fault}"))?;
    }
    let tls = args.tls()?;
    let client = ClientSettings { redirect_uris: args.redirect_uris, ..ClientSettings::demo() };
    let settings =
        SimSettings { listen: args.listen, tls, behaviour, clients: vec![client], ..SimSettings::default() };
    let sim = Sim::start(settings).await.with_context(|| {
        format!("{} cannot be served: choose another with --listen, or see the certificate", args.listen)
    })?;
    say!("ServiceNow simulator: {}", sim.origin());
    say!(
        "  client bearerd-demo, secret demo-secret; users admin/admin, svc.integration/svc, abel.tuter/demo"
    );
    say!("  switches, faults and counters: {}/__sim/behaviour, /__sim/faults, /__sim/counters", sim.origin());
    until_stopped().await?;
    sim.stop().await;
    Ok(())
}

/// Runs everything, makes one call, and stays up until Ctrl-C, or until nobody reads what it prints.
///
/// # Errors
/// Names the step that failed.
pub(crate) async fn demo(args: DemoArgs) -> Result<()> {
    // Over the whole of it: whenever it is stopped, the folder with its key goes too.
    tokio::select! {
        result = run_demo(args) => result,
        stopped = until_stopped() => stopped,
        () = reader_left() => Ok(()),
    }
}

/// Waits until the other end of standard output is closed, also while nothing is printed. A file has no other end.
async fn reader_left() {
    let (tell, left) = oneshot::channel();
    // A thread of its own, not the runtime's: it may wait for ever, and the runtime's end would wait for it.
    std::thread::spawn(move || {
        let stdout = std::io::stdout();
        let mut watched = [PollFd::new(&stdout, PollFlags::empty())]; // errors are told unasked
        loop {
            match event::poll(&mut watched, None) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return tell.send(()),
                Err(_) => return Ok(()),
            }
        }
    });
    if left.await.is_err() {
        std::future::pending::<()>().await; // it cannot be watched
    }
}

async fn run_demo(args: DemoArgs) -> Result<()> {
    let started = Instant::now();
    let folder = tempfile::Builder::new().prefix("bearerd-demo-").tempdir().context("no temporary folder")?;
    let made = init::init(folder.path())?;
    let mut settings = Settings::read_file(&made.settings)?;
    "warn".clone_into(&mut settings.process.log);
    settings.process.drain_s = 2;
    settings.access.sink = SinkKind::None; // standard output tells the story
    logging::start(&settings.process)?;
    hardening::apply();
    let bound = bind_near_defaults(&mut settings)?;
    let Addresses { proxy, connect, admin } = bound.addresses();
    settings.connect.public_url = format!("http://{connect}");

    let redirect_uri = format!("http://{connect}/oauth/callback");
    let behaviour = Behaviour {
        auto_approve: (!args.consent_in_browser).then(|| DEMO_USER.to_owned()),
        ..Behaviour::default()
    };
    let client = ClientSettings { redirect_uris: vec![redirect_uri.clone()], ..ClientSettings::demo() };
    let sim = Sim::start(SimSettings { behaviour, clients: vec![client], ..SimSettings::default() })
        .await
        .context("the simulator did not start")?;
    step(&format!("ServiceNow simulator on {}", sim.origin()));
    let daemon = Daemon::start(&settings, bound).await?;
    step(&format!(
        "bearerd: proxy door http://{proxy}, connect door http://{connect}, admin door http://{admin}"
    ));

    let mut browser = Browser::new()?;
    let admin_key = made.admin_key.expose();
    let api = |method: Method, path: &str, body: &Value| {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {admin_key}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
    };
    let admin_origin = format!("http://{admin}");
    let integration =
        json!({ "instance": sim.origin(), "client_id": "bearerd-demo", "client_secret": "demo-secret" });
    browser.json(&admin_origin, api(Method::PUT, "/v1/integrations/demo", &integration)?).await?;
    step(&format!("integration demo: redirect URL {redirect_uri}"));
    let connection = json!({ "integration": "demo", "expected_user": DEMO_USER });
    let created = browser.json(&admin_origin, api(Method::PUT, "/v1/connections/demo", &connection)?).await?;
    let link = created["connect_link"]["url"].as_str().context("no connect link was issued")?.to_owned();
    step("connection demo: waits for consent");
    if args.consent_in_browser {
        say!("\n  Open this link, log in as admin / admin, and choose Allow:\n\n    {link}\n");
        wait_until_active(&mut browser, &admin_origin, admin_key).await?;
    } else {
        consent(&mut browser, &link).await?;
    }
    step(&format!("consented: {DEMO_USER} at {} (authorization code with PKCE)", sim.origin()));
    let policy = json!({
        "description": "read incidents",
        "rules": [{ "connections": { "ids": ["demo"] }, "tables": { "named": ["incident"] }, "methods": ["GET"] }],
    });
    browser.json(&admin_origin, api(Method::PUT, "/v1/policies/read-incidents", &policy)?).await?;
    let key = json!({ "description": "demo service", "policies": ["read-incidents"] });
    let key = browser.json(&admin_origin, api(Method::POST, "/v1/keys", &key)?).await?;
    let key = key["caller_key"].as_str().context("no caller key was issued")?.to_owned();
    step("policy read-incidents (GET on table incident) and a caller key for it");

    let path = "/api/now/table/incident?sysparm_limit=2&sysparm_fields=number,short_description";
    let call = Request::builder()
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {key}"))
        .header(header::ACCEPT, "application/json")
        .body(Full::default())?;
    let answer = browser.json(&format!("http://{proxy}"), call).await?;
    step(&format!("GET {path}"));
    say!("{}", serde_json::to_string_pretty(&answer)?);
    say!("\nReady in {:.1} s. From another terminal:\n", started.elapsed().as_secs_f64());
    say!("  curl -s -H 'Authorization: Bearer {key}' 'http://{proxy}{path}'\n");
    say!("The admin API (an admin key for this demo only):\n");
    say!("  export BEARERD_ADMIN_URL=http://{admin} BEARERD_ADMIN_KEY={admin_key}");
    say!("  bearerd connection list\n");
    say!("Ctrl-C ends everything; nothing is kept.");
    daemon.run().await?;
    sim.stop().await;
    Ok(())
}

fn step(text: &str) {
    let mark = if std::io::stdout().is_terminal() { "\u{1b}[32m✓\u{1b}[0m" } else { "✓" };
    say!("{mark} {text}");
}

/// The default ports, and free ones for those that are in use: the demo must run beside a real daemon.
fn bind_near_defaults(settings: &mut Settings) -> Result<Bound> {
    for listen in [&mut settings.proxy.listen, &mut settings.connect.listen, &mut settings.admin.listen] {
        if std::net::TcpListener::bind(listen.as_str()).is_err() {
            "127.0.0.1:0".clone_into(listen);
        }
    }
    Bound::bind(settings, InheritedSockets::none())
}

/// Follows the consent as a browser does: link page, button, instance, callback, result page.
async fn consent(browser: &mut Browser, link: &str) -> Result<()> {
    let page = browser.go(Method::GET, link).await?;
    if page.status != 200 {
        bail!("the connect page answered {}", page.status);
    }
    let mut next = browser.redirected(Method::POST, link).await.context("the connect page's button")?;
    for hop in ["the instance", "the callback"] {
        next = browser.redirected(Method::GET, &next).await.with_context(|| hop.to_owned())?;
    }
    let result = browser.go(Method::GET, &next).await?;
    if result.status == 200 {
        Ok(())
    } else {
        bail!("the result page answered {}: see the log", result.status)
    }
}

async fn wait_until_active(browser: &mut Browser, admin: &str, admin_key: &str) -> Result<()> {
    let deadline = Instant::now() + CONSENT_WAIT;
    while Instant::now() < deadline {
        let request = Request::builder()
            .uri("/v1/connections/demo")
            .header(header::AUTHORIZATION, format!("Bearer {admin_key}"))
            .body(Full::default())?;
        if browser.json(admin, request).await?["state"]["name"] == "active" {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    bail!("nobody consented within {} minutes", CONSENT_WAIT.as_secs() / 60)
}

/// As much of a browser as a consent needs: cookies by origin, redirects one at a time.
struct Browser {
    connector: Connector,
    cookies: Vec<(String, String)>,
}

impl Browser {
    fn new() -> Result<Self> {
        Ok(Self { connector: Connector::new(&EgressSettings::default())?, cookies: Vec::new() })
    }

    async fn send(&mut self, origin: &str, mut request: Request<Full<Bytes>>) -> Result<Fetched> {
        let held: Vec<&str> =
            self.cookies.iter().filter(|(at, _)| at == origin).map(|(_, cookie)| cookie.as_str()).collect();
        if !held.is_empty() {
            request.headers_mut().insert(header::COOKIE, HeaderValue::from_str(&held.join("; "))?);
        }
        let at = InstanceOrigin::parse(origin)?;
        let answer = fetch(&self.connector, &at, request, FetchLimits::default()).await?;
        self.keep_cookies(origin, &answer.headers);
        Ok(answer)
    }

    fn keep_cookies(&mut self, origin: &str, headers: &HeaderMap) {
        for cookie in headers.get_all(header::SET_COOKIE) {
            let pair = cookie.to_str().ok().and_then(|text| text.split(';').next());
            if let Some(pair) = pair {
                self.cookies.push((origin.to_owned(), pair.to_owned()));
            }
        }
    }

    async fn go(&mut self, method: Method, url: &str) -> Result<Fetched> {
        let parsed = url::Url::parse(url)?;
        let origin = parsed.origin().ascii_serialization();
        let mut request = Request::builder().method(&method).uri(&url[origin.len()..]);
        if method == Method::POST {
            request = request.header(header::ORIGIN, &origin).header("sec-fetch-site", "same-origin");
        }
        self.send(&origin, request.body(Full::default())?).await
    }

    /// Where the answer redirects to, absolute.
    async fn redirected(&mut self, method: Method, url: &str) -> Result<String> {
        let answer = self.go(method, url).await?;
        let location = answer.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let location = location.with_context(|| format!("no redirect, but status {}", answer.status))?;
        Ok(url::Url::parse(url)?.join(location)?.into())
    }

    async fn json(&mut self, origin: &str, request: Request<Full<Bytes>>) -> Result<Value> {
        let path = request.uri().path().to_owned();
        let answer = self.send(origin, request).await?;
        if !answer.status.is_success() {
            bail!("{path} answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
        Ok(serde_json::from_slice(&answer.body)?)
    }
}

async fn until_stopped() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
