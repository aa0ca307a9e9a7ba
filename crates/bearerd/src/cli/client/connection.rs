//! `bearerd connection`

use std::{collections::BTreeMap, path::PathBuf};

use bearerd_admin::wire::{
    ConfirmRequest, ConnectLink, Connection, ConnectionRequest, ConnectionTest, ConnectionWritten,
    FreezeRequest, ImportRequest,
};
use bearerd_model::{ConnectionId, IntegrationId, ProfileName};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    api::{AdminApi, Put, read},
    error::CliError,
    input,
    output::{Report, fields, or_dash, table, when, when_exactly},
};

#[derive(Debug, Subcommand)]
pub(crate) enum ConnectionCommand {
    /// Add a connection; prints the link for the person who consents
    #[command(after_help = ADD_EXAMPLE)]
    Add(AddConnection),
    /// List connections with their states
    #[command(
        after_help = "Example:\n  bearerd connection list --output json | jq -r '.[] | select(.state.name != \"active\").id'"
    )]
    List,
    /// Show a connection: state and reason, user, expiries, last use
    #[command(after_help = "Example:\n  bearerd connection show hr-prod")]
    Show(One),
    /// Delete a connection and forget its tokens at once
    #[command(after_help = "Example:\n  bearerd connection delete hr-prod --yes")]
    Delete {
        #[command(flatten)]
        one: One,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Make a new connect link; the tokens stay in use until the new consent succeeds
    #[command(after_help = "Example:\n  bearerd connection reauthorize hr-prod")]
    Reauthorize(One),
    /// Confirm that the user shown is who was meant to consent
    #[command(
        after_help = "Example:\n  bearerd connection show hr-prod        # who consented?\n  bearerd connection confirm hr-prod --user svc_hr"
    )]
    Confirm {
        #[command(flatten)]
        one: One,
        /// Their `user_name` or `sys_id`
        #[arg(long)]
        user: String,
    },
    /// Refresh the access token now
    #[command(after_help = "Example:\n  bearerd connection refresh hr-prod")]
    Refresh(One),
    /// Read the connection's own user at the instance: proves that calls work
    #[command(after_help = "Example:\n  bearerd connection test hr-prod")]
    Test(One),
    /// Stop all calls through a connection (409 `connection_frozen`); its tokens are kept fresh
    #[command(
        after_help = "Example:\n  bearerd connection freeze hr-prod --reason 'CHG0030001: instance upgrade'"
    )]
    Freeze {
        #[command(flatten)]
        one: One,
        /// Why, for the next operator: 1 to 500 characters, shown by `connection show` and never to callers
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Let calls through again
    #[command(after_help = "Example:\n  bearerd connection unfreeze hr-prod")]
    Unfreeze(One),
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// Connection
    id: ConnectionId,
}

#[derive(Debug, Args)]
pub(crate) struct AddConnection {
    /// Name of the connection, as callers give it: a-z, 0-9, - and _
    id: ConnectionId,
    /// Integration to hold it under
    #[arg(long, value_name = "ID")]
    integration: IntegrationId,
    /// Profile of the integration: grant type and scopes
    #[arg(long, default_value_t = ProfileName::default())]
    profile: ProfileName,
    /// Label for policies to select by; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = input::label)]
    labels: Vec<(String, String)>,
    /// Who must consent (`user_name` or `sys_id`); then nobody needs to confirm it
    #[arg(long, value_name = "USER")]
    expected_user: Option<String>,
    /// JSON file with tokens obtained elsewhere, or - for standard input; instead of a consent
    #[arg(long, value_name = "FILE")]
    import_file: Option<PathBuf>,
    /// If the connection exists, change its labels and expected user
    #[arg(long, conflicts_with = "import_file")]
    replace: bool,
}

pub(super) async fn perform(
    command: ConnectionCommand,
    api: &AdminApi,
    now: Timestamp,
) -> Result<Report, CliError> {
    match command {
        ConnectionCommand::Add(add) => add_connection(add, api, now).await,
        ConnectionCommand::List => list(api, now).await,
        ConnectionCommand::Show(One { id }) => {
            let json = api.get(&path(&id)).await?.body;
            shown(json, now, None)
        }
        ConnectionCommand::Delete { one: One { id }, yes } => {
            input::confirm(&format!("Delete connection {id} and forget its tokens?"), yes)?;
            api.delete(&path(&id)).await?;
            Ok(Report::new(Value::Null, format!("Connection {id} deleted; its tokens are forgotten.")))
        }
        ConnectionCommand::Reauthorize(One { id }) => {
            let json = act(api, &id, "reauthorize").await?;
            let text = invitation(&id, &read(&json)?, now);
            Ok(Report::new(json, text))
        }
        ConnectionCommand::Confirm { one: One { id }, user } => {
            let json = api.post(&format!("{}/confirm", path(&id)), &ConfirmRequest { user }).await?.body;
            shown(json, now, Some("Confirmed; calls may go out."))
        }
        ConnectionCommand::Refresh(One { id }) => {
            shown(act(api, &id, "refresh").await?, now, Some("Refreshed."))
        }
        ConnectionCommand::Test(One { id }) => {
            let json = act(api, &id, "test").await?;
            let ConnectionTest { user, took_ms } = read(&json)?;
            let text =
                format!("Works: acts as {} ({}), answered in {took_ms} ms.", user.name, user.user_name);
            Ok(Report::new(json, text))
        }
        ConnectionCommand::Freeze { one: One { id }, reason } => {
            let json = api.post(&format!("{}/freeze", path(&id)), &FreezeRequest { reason }).await?.body;
            shown(json, now, Some("Frozen; calls are refused until it is unfrozen."))
        }
        ConnectionCommand::Unfreeze(One { id }) => {
            shown(act(api, &id, "unfreeze").await?, now, Some("Unfrozen."))
        }
    }
}

async fn act(api: &AdminApi, id: &ConnectionId, act: &str) -> Result<Value, CliError> {
    Ok(api.act(&format!("{}/{act}", path(id))).await?.body)
}

async fn add_connection(add: AddConnection, api: &AdminApi, now: Timestamp) -> Result<Report, CliError> {
    let import: Option<ImportRequest> =
        add.import_file.map(|path| input::json_file(&path, "tokens to import")).transpose()?;
    let request = ConnectionRequest {
        integration: add.integration,
        profile: add.profile,
        labels: add.labels.into_iter().collect::<BTreeMap<_, _>>(),
        expected_user: add.expected_user,
        import,
    };
    let put = if add.replace { Put::CreateOrChange } else { Put::CreateOnly };
    let reply = api.put(&path(&add.id), put, &request).await?;
    let written: ConnectionWritten = read(&reply.body)?;
    let done = if reply.created { "added" } else { "changed" };
    let next = match &written.connect_link {
        Some(link) => invitation(&add.id, link, now),
        None => describe(&written.connection, now),
    };
    Ok(Report::new(reply.body, format!("Connection {} {done}.\n\n{next}", add.id)))
}

async fn list(api: &AdminApi, now: Timestamp) -> Result<Report, CliError> {
    let json = Value::Array(api.list(PATH).await?);
    let mut rows = Vec::new();
    for entry in json.as_array().into_iter().flatten() {
        rows.push(match read::<Connection>(entry) {
            Ok(connection) => [
                connection.id.to_string(),
                or_dash(connection.instance.as_deref()),
                connection.user.as_ref().map_or_else(|| "-".to_owned(), |user| user.user_name.clone()),
                state(&connection),
                when(connection.access_token_expires_at, now),
                when(connection.refresh_token_expires_at, now),
                when(connection.last_used_at, now),
            ],
            Err(_) => super::output::damaged(entry),
        });
    }
    let headings = ["ID", "INSTANCE", "USER", "STATE", "ACCESS TOKEN ENDS", "REFRESH TOKEN ENDS", "LAST USE"];
    let empty = "There is no connection yet. Add one: bearerd connection add --help";
    Ok(Report::new(json, table(headings, rows, empty)))
}

fn shown(json: Value, now: Timestamp, done: Option<&str>) -> Result<Report, CliError> {
    let text = describe(&read(&json)?, now);
    let text = done.map_or_else(|| text.clone(), |done| format!("{done}\n\n{text}"));
    Ok(Report::new(json, text))
}

fn describe(connection: &Connection, now: Timestamp) -> String {
    let user =
        connection.user.as_ref().map(|user| format!("{} ({}, {})", user.name, user.user_name, user.sys_id));
    let labels: Vec<String> =
        connection.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut pairs = vec![
        ("id", connection.id.to_string()),
        (
            "state",
            format!("{}, since {}", state(connection), when_exactly(Some(connection.state.since), now)),
        ),
        ("", connection.state.reason.clone()),
    ];
    if let Some(frozen) = &connection.frozen {
        pairs.push(("frozen", format!("{}, since {}", frozen.reason, when_exactly(Some(frozen.since), now))));
    }
    if connection.health.name == "uncertain" {
        let since = when_exactly(connection.health.since, now);
        pairs.push(("in doubt", format!("since {since}: {}", or_dash(connection.health.reason.as_deref()))));
    } else if let Some(reason) = &connection.health.reason {
        let usable = if connection.access_token_usable {
            "the access token still works"
        } else {
            "no usable access token"
        };
        let since = when_exactly(connection.health.since, now);
        pairs.push((
            "failing",
            format!("{reason}; {} times since {since}; {usable}", connection.health.failures),
        ));
    }
    pairs.extend([
        ("instance", or_dash(connection.instance.as_deref())),
        ("integration", format!("{}, profile {}", connection.integration, connection.profile)),
        ("user", or_dash(user.as_deref())),
        ("expected user", or_dash(connection.expected_user.as_deref())),
        ("access token ends", when_exactly(connection.access_token_expires_at, now)),
        ("refresh token ends", refresh_token_end(connection, now)),
        ("last refresh", when_exactly(connection.last_refresh_at, now)),
        ("last use", when_exactly(connection.last_used_at, now)),
        ("scope", or_dash(connection.scope.as_deref())),
        ("generation", connection.generation.map_or_else(|| "-".to_owned(), |count| count.to_string())),
        ("fingerprint", or_dash(connection.fingerprint.as_deref())),
        ("labels", or_dash(Some(&labels.join(" ")))),
        ("redirect URI", or_dash(connection.redirect_uri.as_deref())),
        ("created", when_exactly(Some(connection.created_at), now)),
    ]);
    fields(&pairs)
}

/// The state in words: what an operator must see first.
fn state(connection: &Connection) -> String {
    let name = match (connection.state.name.as_str(), connection.state.cause.as_deref()) {
        ("active", _) => "active".to_owned(),
        ("pending", Some(cause)) => cause.replace('_', " "),
        ("reauthorization_required", Some(cause)) => format!("needs consent: {}", cause.replace('_', " ")),
        (other, _) => other.replace('_', " "),
    };
    if connection.frozen.is_some() {
        return format!("FROZEN, {name}");
    }
    match (connection.health.name.as_str(), connection.expires_soon_days) {
        ("uncertain", _) => format!("{name}, refresh in doubt"),
        ("ok", Some(days)) => format!("{name}, consent ends in {days} d"),
        ("ok", None) => name,
        _ => format!("{name}, refresh failing"),
    }
}

/// With what to do once the end is near.
fn refresh_token_end(connection: &Connection, now: Timestamp) -> String {
    let end = when_exactly(connection.refresh_token_expires_at, now);
    match connection.expires_soon_days {
        Some(_) => format!("{end}; before that: bearerd connection reauthorize {}", connection.id),
        None => end,
    }
}

fn invitation(id: &ConnectionId, link: &ConnectLink, now: Timestamp) -> String {
    format!(
        "Open this link in the browser of the person who owns the ServiceNow account. It works once and ends {}:\n\n  \
         {}\n\nThen look: bearerd connection show {id}",
        when(Some(link.expires_at), now),
        link.url.expose()
    )
}

fn path(id: &ConnectionId) -> String {
    format!("{PATH}/{id}")
}

pub(super) const PATH: &str = "/v1/connections";
const ADD_EXAMPLE: &str = "Examples:
  bearerd connection add hr-prod --integration hr --expected-user svc_hr --label env=prod
  bearerd connection add hr-old --integration hr --import-file tokens.json

tokens.json, with at least one of the two tokens:
  {\"access_token\": \"…\", \"expires_in\": 1799, \"refresh_token\": \"…\",
   \"refresh_token_expires_at\": \"2027-03-01T00:00:00Z\"}";
