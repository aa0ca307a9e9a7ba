//! `bearerd key`

use std::time::Duration;

use bearerd_admin::wire::{CallerKey, IssuedCallerKey, KeyRequest, RotateRequest, WireTime};
use bearerd_model::{CallerKeyId, ConnectionId, PolicyId};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    api::{AdminApi, read},
    error::CliError,
    input,
    output::{Report, fields, table, when, when_exactly},
};

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a caller key; it is shown once
    #[command(after_help = ADD_EXAMPLE)]
    Add(AddKey),
    /// List caller keys, without the keys themselves
    #[command(after_help = "Example:\n  bearerd key list")]
    List,
    /// Show what a caller key says and may do
    #[command(after_help = "Example:\n  bearerd key show k3v9x0a1b2c3")]
    Show {
        /// Caller key id: the part of the key between `bd_` and the next `_`
        id: CallerKeyId,
    },
    /// Give a caller key a second secret; the first one goes on for a while
    #[command(after_help = "Example:\n  bearerd key rotate k3v9x0a1b2c3 --overlap 24h")]
    Rotate {
        /// Caller key id
        id: CallerKeyId,
        /// How long the first secret goes on: up to 90d
        #[arg(long, value_name = "DURATION", value_parser = input::duration, default_value = "24h")]
        overlap: Duration,
    },
    /// Delete a caller key; it is refused everywhere within a second
    #[command(after_help = "Example:\n  bearerd key delete k3v9x0a1b2c3 --yes")]
    Delete {
        /// Caller key id
        id: CallerKeyId,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AddKey {
    /// Who calls with it
    #[arg(long)]
    description: String,
    /// Policy that says what it may do; may be repeated
    #[arg(long = "policy", value_name = "ID", required = true)]
    policies: Vec<PolicyId>,
    /// Connection for calls that name none
    #[arg(long, value_name = "ID")]
    default_connection: Option<ConnectionId>,
    /// When it ends, such as 90d [default: never]
    #[arg(long, value_name = "DURATION", value_parser = input::duration)]
    expires_in: Option<Duration>,
}

pub(super) async fn perform(command: KeyCommand, api: &AdminApi, now: Timestamp) -> Result<Report, CliError> {
    match command {
        KeyCommand::Add(add) => add_key(add, api, now).await,
        KeyCommand::List => list(api, now).await,
        KeyCommand::Show { id } => {
            let json = api.get(&format!("{PATH}/{id}")).await?.body;
            let text = describe(&read(&json)?, now);
            Ok(Report::new(json, text))
        }
        KeyCommand::Rotate { id, overlap } => {
            let request = RotateRequest { overlap_secs: overlap.as_secs() };
            let json = api.post(&format!("{PATH}/{id}/rotate"), &request).await?.body;
            let issued: IssuedCallerKey = read(&json)?;
            let ends = issued.key.live_secrets.iter().find_map(|secret| secret.expires_at);
            let old = format!("The older one ends {}.", when(ends, now));
            let text = format!("Key {id} rotated. {old}\n\n{}", once(&issued));
            Ok(Report::new(json, text))
        }
        KeyCommand::Delete { id, yes } => {
            input::confirm(&format!("Delete caller key {id}? Its callers are refused at once."), yes)?;
            api.delete(&format!("{PATH}/{id}")).await?;
            Ok(Report::new(Value::Null, format!("Key {id} deleted.")))
        }
    }
}

async fn add_key(add: AddKey, api: &AdminApi, now: Timestamp) -> Result<Report, CliError> {
    let too_far =
        |_| CliError::usage("--expires-in is too far away", "Leave it out for a key that does not end.");
    let request = KeyRequest {
        description: add.description,
        policies: add.policies,
        default_connection: add.default_connection,
        expires_at: add
            .expires_in
            .map(|span| now.checked_add(span))
            .transpose()
            .map_err(too_far)?
            .map(WireTime),
    };
    let json = api.post(PATH, &request).await?.body;
    let issued: IssuedCallerKey = read(&json)?;
    let ends =
        issued.key.expires_at.map(|time| format!(" It ends {}.", when(Some(time), now))).unwrap_or_default();
    let text = format!("Key {} added.{ends}\n\n{}", issued.key.id, once(&issued));
    Ok(Report::new(json, text))
}

async fn list(api: &AdminApi, now: Timestamp) -> Result<Report, CliError> {
    let json = Value::Array(api.list(PATH).await?);
    let mut rows = Vec::new();
    for entry in json.as_array().into_iter().flatten() {
        rows.push(match read::<CallerKey>(entry) {
            Ok(key) => [
                key.id.to_string(),
                key.description.clone(),
                policies(&key),
                key.default_connection.map_or_else(|| "-".to_owned(), |id| id.to_string()),
                key.expires_at.map_or_else(|| "never".to_owned(), |time| when(Some(time), now)),
                when(key.last_used_at, now),
            ],
            Err(_) => super::output::damaged(entry),
        });
    }
    let headings = ["ID", "DESCRIPTION", "POLICIES", "DEFAULT CONNECTION", "ENDS", "LAST USE"];
    let empty = "There is no caller key yet. Add one: bearerd key add --help";
    Ok(Report::new(json, table(headings, rows, empty)))
}

fn describe(key: &CallerKey, now: Timestamp) -> String {
    let mut pairs = vec![
        ("id", key.id.to_string()),
        ("description", key.description.clone()),
        ("policies", policies(key)),
        (
            "default connection",
            key.default_connection.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        ),
        ("ends", key.expires_at.map_or_else(|| "never".to_owned(), |time| when_exactly(Some(time), now))),
        ("last use", when_exactly(key.last_used_at, now)),
        ("created", when_exactly(Some(key.created_at), now)),
    ];
    for secret in &key.live_secrets {
        let ends =
            secret.expires_at.map(|time| format!(", ends {}", when(Some(time), now))).unwrap_or_default();
        pairs.push(("live secret", format!("made {}{ends}", when_exactly(Some(secret.created_at), now))));
    }
    fields(&pairs)
}

fn policies(key: &CallerKey) -> String {
    let ids: Vec<&str> = key.policies.iter().map(PolicyId::as_str).collect();
    ids.join(", ")
}

/// The key and a call to try it with.
fn once(issued: &IssuedCallerKey) -> String {
    let key = issued.caller_key.expose();
    let which = if issued.key.default_connection.is_some() {
        ""
    } else {
        "\nWhere its policies open several connections, name one: -H 'Connection-Id: NAME'"
    };
    format!(
        "This is the only time it is shown; put it where its caller keeps secrets:\n\n  {key}\n\nTry it (at your proxy \
         door's address):\n\n  curl -H 'Authorization: Bearer {key}' \
         '{PROXY_URL}/api/now/table/incident?sysparm_limit=1'\n{which}"
    )
}

const PATH: &str = "/v1/keys";
/// Where the proxy door listens unless told otherwise.
const PROXY_URL: &str = "http://127.0.0.1:8080";
const ADD_EXAMPLE: &str = "Example:
  bearerd key add --description 'ticket-sync, HR cluster' --policy read-incidents \\
      --default-connection hr-prod --expires-in 90d";
