//! The pages as values: what each says, and with which status. The texts are here, the markup in `templates/`.

use askama::Template;
use bearerd_control::{ConsentFault, LinkPage};
use bearerd_model::{ConsentOutcome, ConsentResult, UnixTime};
use http::StatusCode;

use crate::shown::{shell_argument, shown};

/// The only style; `Content-Security-Policy` names its hash.
pub(crate) const STYLE: &str = include_str!("../templates/style.css");

/// A page ready to be sent.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) html: String,
    pub(crate) forms: Forms,
}

/// Where the forms of a page may lead: `form-action`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Forms {
    None,
    /// To this door, which redirects to the authorization endpoint at this origin. Chromium holds `form-action`
    /// against every hop of that redirect (seen in 156), so the origin must be admitted, and behind an https one the
    /// sign-in pages that it sends people to; nobody can list those in advance.
    AuthorizationEndpoint {
        origin: String,
    },
}

/// Why there is no page of the wanted kind. Each has one status, one code and one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    Consent(ConsentFault),
    /// The POST came from another site's page.
    CrossSite,
    PageUnknown,
    /// No such outcome, or not any more.
    ResultUnknown,
    MethodRefused,
    BodyTooLarge,
    BodyTooSlow,
    /// The body broke off.
    BodyBroken,
    Overloaded,
    /// A fault of ours.
    Internal,
}

impl From<ConsentFault> for Stop {
    fn from(fault: ConsentFault) -> Self {
        Self::Consent(fault)
    }
}

/// What a stop says.
struct Notice {
    status: StatusCode,
    heading: &'static str,
    message: &'static str,
    fix: Option<&'static str>,
    closing: &'static str,
}

impl Stop {
    /// Stable; `docs/errors.md` lists them.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Consent(fault) => fault.code(),
            Self::CrossSite => "cross_site_refused",
            Self::PageUnknown => "page_unknown",
            Self::ResultUnknown => "result_unknown",
            Self::MethodRefused => "method_refused",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTooSlow => "request_too_slow",
            Self::BodyBroken => "request_malformed",
            Self::Overloaded => "overloaded",
            Self::Internal => "internal",
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.notice().status
    }

    /// The page, which shows `error_id` for the operator to search the log for.
    pub(crate) fn page(&self, error_id: &str) -> Page {
        let Notice { status, heading, message, fix, closing } = self.notice();
        let page = StoppedPage { heading, message, fix, code: self.code(), error_id, detail: None, closing };
        rendered(status, &page, Forms::None)
    }

    fn notice(&self) -> Notice {
        match self {
            Self::Consent(fault) => consent_notice(fault),
            Self::CrossSite => Notice {
                status: StatusCode::FORBIDDEN,
                heading: "Not started from here",
                message: "Another site tried to start this sign-in, or your browser does not say where it was \
                          started.",
                fix: None,
                closing: "Open the connect link itself, in a current browser, and continue from its page.",
            },
            Self::PageUnknown => Notice {
                status: StatusCode::NOT_FOUND,
                heading: "Nothing here",
                message: "There is no page at this address.",
                fix: None,
                closing: "Were you sent a connect link? Open it again, complete and unchanged.",
            },
            Self::ResultUnknown => Notice {
                status: StatusCode::NOT_FOUND,
                heading: "This result is no longer shown",
                message: "Result pages are kept for a few minutes only. The connection itself is not affected.",
                fix: Some("See how the connection stands: bearerd connection show CONNECTION."),
                closing: "You may close this tab.",
            },
            Self::MethodRefused => Notice {
                status: StatusCode::METHOD_NOT_ALLOWED,
                heading: "Not possible here",
                message: "This address does not take that kind of request.",
                fix: None,
                closing: "Open the connect link in a browser.",
            },
            Self::BodyTooLarge => bad_request(StatusCode::PAYLOAD_TOO_LARGE, "The request was too large."),
            Self::BodyTooSlow => {
                bad_request(StatusCode::REQUEST_TIMEOUT, "The request took too long to arrive.")
            }
            Self::BodyBroken => bad_request(StatusCode::BAD_REQUEST, "The request broke off."),
            Self::Overloaded => Notice {
                status: StatusCode::SERVICE_UNAVAILABLE,
                heading: "Too busy just now",
                message: "bearerd is answering as many requests as it can.",
                fix: None,
                closing: "Try again in a few seconds.",
            },
            Self::Internal => Notice {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                heading: "Something went wrong",
                message: "bearerd failed to answer. This is a fault in bearerd, not in what you did.",
                fix: Some("Search bearerd’s log for the error id below."),
                closing: "You may close this tab.",
            },
        }
    }
}

fn consent_notice(fault: &ConsentFault) -> Notice {
    let (status, heading, message, fix, closing) = match fault {
        ConsentFault::LinkInvalid => (
            StatusCode::GONE,
            "This link no longer works",
            "A connect link works once and for a short time; this one was used, has expired or never existed.",
            "Make a new link: bearerd connection reauthorize CONNECTION.",
            "Ask whoever sent you the link for a new one.",
        ),
        ConsentFault::StateInvalid => (
            StatusCode::BAD_REQUEST,
            "This sign-in cannot be finished",
            "It was not started here, was already finished, or took longer than ten minutes.",
            "Make a new link (bearerd connection reauthorize CONNECTION) and have it followed through in one go.",
            ASK_FOR_LINK,
        ),
        ConsentFault::OtherBrowser => (
            StatusCode::BAD_REQUEST,
            "Started in another browser",
            "A sign-in must end in the browser in which it began; this one did not, so nothing was connected.",
            "Make a new link, to be opened and finished in one browser that keeps cookies.",
            ASK_FOR_LINK,
        ),
        ConsentFault::OtherIntegration => (
            StatusCode::BAD_REQUEST,
            "The answer came to the wrong address",
            "ServiceNow sent you back to an address that belongs to another integration, so nothing was connected.",
            "In ServiceNow, Application Registry, set this client’s Redirect URL to exactly the one shown by \
             bearerd integration show INTEGRATION, then make a new link.",
            ASK_FOR_LINK,
        ),
        ConsentFault::MalformedCallback => (
            StatusCode::BAD_REQUEST,
            "This answer cannot be read",
            "What arrived here is not an answer to a sign-in, so nothing was connected. If you chose not to allow access, \
             that is all there is to it.",
            "If it happens again with a new link, see what lies between browser and bearerd: something changes the \
             address.",
            ASK_FOR_LINK,
        ),
        ConsentFault::StoreUnavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "Not available just now",
            "bearerd cannot reach its store, so nothing was connected.",
            "Bring the store back: /readyz on the admin door says what is missing.",
            "Try again in a minute. If the link no longer works then, ask for a new one.",
        ),
    };
    Notice { status, heading, message, fix: Some(fix), closing }
}

fn bad_request(status: StatusCode, message: &'static str) -> Notice {
    Notice {
        status,
        heading: "Not accepted",
        message,
        fix: None,
        closing: "Open the connect link in a browser.",
    }
}

/// The page behind a connect link.
pub(crate) fn connect(link: &LinkPage) -> Page {
    let page = ConnectPage {
        instance: link.instance.authority(),
        connection: link.connection.as_str(),
        integration: link.integration.as_str(),
        requested_by: &shown(&link.requested_by, NAME_CHARS_MAX),
        expected_user: link.expected_user.as_deref().map(|user| shown(user, NAME_CHARS_MAX)),
        scopes: link.scopes.iter().map(|scope| shown(scope, NAME_CHARS_MAX)).collect(),
        expires_at: utc(link.expires_at),
    };
    let forms = Forms::AuthorizationEndpoint { origin: link.authorization_origin.clone() };
    rendered(StatusCode::OK, &page, forms)
}

/// The result page. It is 200 for a failed consent too: the page itself is what was asked for.
pub(crate) fn outcome(outcome: &ConsentOutcome) -> Page {
    match &outcome.result {
        ConsentResult::Connected { connection, instance, user, user_name, awaits_confirmation } => {
            let [user, user_name] = [user, user_name].map(|name| shown(name, NAME_CHARS_MAX));
            let (name, confirmed) = match (user.as_str(), user_name.as_str()) {
                ("", only) | (only, "") => (only, only),
                both => both,
            };
            let confirm_command =
                format!("bearerd connection confirm {connection} --user {}", shell_argument(confirmed));
            let page = ConnectedPage {
                instance: instance.authority(),
                connection: connection.as_str(),
                user: name,
                user_name: Some(confirmed).filter(|confirmed| *confirmed != name),
                awaits_confirmation: *awaits_confirmation,
                confirm_command,
            };
            rendered(StatusCode::OK, &page, Forms::None)
        }
        ConsentResult::Failed { code, message, fix, detail, error_id } => {
            let fix = shown(fix, SENTENCE_CHARS_MAX);
            let page = StoppedPage {
                heading: "Not connected",
                message: &shown(message, SENTENCE_CHARS_MAX),
                fix: Some(fix.as_str()).filter(|fix| !fix.is_empty()),
                code: &shown(code, NAME_CHARS_MAX),
                error_id: &shown(error_id, NAME_CHARS_MAX),
                detail: detail.as_deref().map(|detail| shown(detail, DETAIL_CHARS_MAX)),
                closing: "You may close this tab. For another try, ask the operator for a new link.",
            };
            rendered(StatusCode::OK, &page, Forms::None)
        }
    }
}

#[derive(Template)]
#[template(path = "connect.html")]
struct ConnectPage<'a> {
    instance: &'a str,
    connection: &'a str,
    integration: &'a str,
    requested_by: &'a str,
    expected_user: Option<String>,
    scopes: Vec<String>,
    expires_at: String,
}

#[derive(Template)]
#[template(path = "connected.html")]
struct ConnectedPage<'a> {
    instance: &'a str,
    connection: &'a str,
    user: &'a str,
    /// Where it says more than `user`.
    user_name: Option<&'a str>,
    awaits_confirmation: bool,
    confirm_command: String,
}

#[derive(Template)]
#[template(path = "stopped.html")]
struct StoppedPage<'a> {
    heading: &'a str,
    message: &'a str,
    fix: Option<&'a str>,
    code: &'a str,
    error_id: &'a str,
    detail: Option<String>,
    closing: &'a str,
}

fn rendered(status: StatusCode, template: &impl Template, forms: Forms) -> Page {
    let html = template.render().expect("a template of strings renders: writing to a String cannot fail");
    Page { status, html, forms }
}

fn utc(time: UnixTime) -> String {
    let instant = i64::try_from(time.as_secs()).ok().and_then(|secs| jiff::Timestamp::from_second(secs).ok());
    instant.map_or_else(|| "never".to_owned(), |instant| instant.strftime("%H:%M UTC, %-d %B %Y").to_string())
}

const ASK_FOR_LINK: &str = "Ask the operator for a new link.";

/// Longest user name, scope or operator name on a page: ServiceNow's `sys_user.user_name` has 40, its full name 101.
const NAME_CHARS_MAX: usize = 120;
/// Longest sentence of an outcome.
const SENTENCE_CHARS_MAX: usize = 400;
/// Longest excerpt of what a server said.
const DETAIL_CHARS_MAX: usize = 600;
