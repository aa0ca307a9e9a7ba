//! Shows every page of the connect door with made-up content, on a loopback port, headers included:
//! `cargo run -p bearerd-connect --example preview -- 127.0.0.1:8099`.

use std::sync::Arc;

use bearerd_connect::{ConnectDoor, ConnectSettings, Consents};
use bearerd_control::{BegunConsent, Callback, ConsentFault, LinkPage};
use bearerd_model::{
    ConnectionId, ConsentOutcome, ConsentResult, InstanceOrigin, IntegrationId, SecretText, UnixTime,
};
use bearerd_net::{ListenSettings, Listener};
use tokio_util::sync::CancellationToken;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The samples have one flow.
const COOKIE_NAME: &str = "bearerd-flow";

struct Samples;

impl Consents for Samples {
    async fn link_page(&self, link: &SecretText) -> Result<LinkPage, ConsentFault> {
        let fault = match link.expose() {
            "gone" => ConsentFault::LinkInvalid,
            "state" => ConsentFault::StateInvalid,
            "browser" => ConsentFault::OtherBrowser,
            "integration" => ConsentFault::OtherIntegration,
            "store" => ConsentFault::StoreUnavailable,
            "long" => {
                return Ok(page(
                    &"long-name-".repeat(6),
                    Some("a.very.long.user.name.that.goes.on@subsidiary.example.com"),
                ));
            }
            "short" => return Ok(LinkPage { scopes: Vec::new(), ..page("hr-prod", None) }),
            _ => return Ok(page("hr-prod", Some("abel.tuter"))),
        };
        Err(fault)
    }

    async fn begin_consent(&self, _link: &SecretText) -> Result<BegunConsent, ConsentFault> {
        let cookie_value = SecretText::parse("sample".to_owned()).map_err(|_| ConsentFault::LinkInvalid)?;
        let authorization_url =
            "https://acmehr.service-now.com/oauth_auth.do?response_type=code&state=5a3b".to_owned();
        Ok(BegunConsent { authorization_url, cookie_name: COOKIE_NAME.to_owned(), cookie_value })
    }

    fn consent_cookie_name(&self, _state: &SecretText) -> String {
        COOKIE_NAME.to_owned()
    }

    async fn finish_consent(&self, callback: Callback) -> Result<ConsentOutcome, ConsentFault> {
        let id = if callback.error.is_some() { "denied" } else { "confirm" };
        self.consent_outcome(id).await.ok_or(ConsentFault::StateInvalid)
    }

    async fn consent_outcome(&self, id: &str) -> Option<ConsentOutcome> {
        let result = match id {
            "confirm" => connected("Abel Tuter", "abel.tuter", true),
            "done" => connected("", "svc.bearerd@example.com", false),
            "odd" => connected("<b>Ö", "$(reboot) 'x", true),
            "redirect" => failed(
                "redirect_uri_refused",
                "ServiceNow did not accept the address it should send you back to.",
                "In ServiceNow, Application Registry, open the client and set Redirect URL to exactly \
                 https://connect.example.com/oauth/callback/hr-prod.",
                Some(
                    "{\"error_description\":\"access_denied\",\"error\":\"server_error\"} <script>alert(1)</script>",
                ),
            ),
            "denied" => failed(
                "user_denied",
                "You chose not to allow access, so nothing was connected.",
                "Nothing is wrong in ServiceNow. Make a new link if access should be allowed after all.",
                None,
            ),
            _ => return None,
        };
        Some(ConsentOutcome { id: id.to_owned(), result, expires_at: UnixTime::from_secs(1_795_000_000) })
    }
}

fn page(connection: &str, expected_user: Option<&str>) -> LinkPage {
    LinkPage {
        connection: id(connection),
        integration: IntegrationId::parse("servicenow-hr").expect("an id"),
        instance: instance(),
        authorization_origin: instance().as_str().to_owned(),
        requested_by: "maria.keller".to_owned(),
        expected_user: expected_user.map(str::to_owned),
        scopes: ["useraccount", "hr_read"].map(str::to_owned).to_vec(),
        expires_at: UnixTime::from_secs(1_795_271_520),
    }
}

fn connected(user: &str, user_name: &str, awaits_confirmation: bool) -> ConsentResult {
    ConsentResult::Connected {
        connection: id("hr-prod"),
        instance: instance(),
        user: user.to_owned(),
        user_name: user_name.to_owned(),
        awaits_confirmation,
    }
}

fn failed(code: &str, message: &str, fix: &str, detail: Option<&str>) -> ConsentResult {
    ConsentResult::Failed {
        code: code.to_owned(),
        message: message.to_owned(),
        fix: fix.to_owned(),
        detail: detail.map(str::to_owned),
        error_id: "9f2c41d07be3a85e".to_owned(),
    }
}

fn id(text: &str) -> ConnectionId {
    ConnectionId::parse(text).expect("an id")
}

fn instance() -> InstanceOrigin {
    InstanceOrigin::parse("https://acmehr.service-now.com").expect("an origin")
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8099".to_owned());
    let listen = ListenSettings::at(address.clone());
    let settings = ConnectSettings { public_url: format!("http://{address}"), ..ConnectSettings::default() };
    let listener = Listener::bind(&listen, ConnectDoor::ALPN)?;
    let door = ConnectDoor::start(listener, &settings, Arc::new(Samples), CancellationToken::new())?;
    Ok(door.closed().await?)
}
