//! `bearerd policy`

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use bearerd_admin::wire::{ConnectionSelector, Policy, PolicyRequest, Rule, TableSet};
use bearerd_model::{ConnectionId, FamilyName, PolicyId};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    api::{AdminApi, Put, read},
    error::CliError,
    input,
    output::{Report, fields, or_dash, table, when_exactly},
};

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Add a policy: one rule from flags, or any number from a file
    #[command(after_help = ADD_EXAMPLE)]
    Add(AddPolicy),
    /// List policies
    #[command(after_help = "Example:\n  bearerd policy list")]
    List,
    /// Show a policy, rule by rule
    #[command(after_help = "Example:\n  bearerd policy show read-incidents")]
    Show {
        /// Policy
        id: PolicyId,
    },
    /// Delete a policy that no caller key names
    #[command(after_help = "Example:\n  bearerd policy delete read-incidents --yes")]
    Delete {
        /// Policy
        id: PolicyId,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AddPolicy {
    /// Name of the policy: a-z, 0-9, - and _
    id: PolicyId,
    /// What it is for
    #[arg(long, default_value = "")]
    description: String,
    #[command(flatten)]
    connections: ConnectionFlags,
    #[command(flatten)]
    tables: TableFlags,
    /// Method to open; may be repeated. GET brings HEAD
    #[arg(long = "method", value_name = "METHOD", required_unless_present = "file", value_parser = method)]
    methods: Vec<String>,
    /// JSON file with a list of rules, or - for standard input; instead of the flags above
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ConnectionFlags", "TableFlags", "methods"])]
    file: Option<PathBuf>,
    /// Change the policy if it exists
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, Args)]
#[group(required = false, multiple = true)]
struct ConnectionFlags {
    /// Connection to open; may be repeated
    #[arg(long = "connection", value_name = "ID", required_unless_present_any = ["all_connections", "labels", "file"])]
    connections: Vec<ConnectionId>,
    /// Open every connection
    #[arg(long, conflicts_with_all = ["connections", "labels"])]
    all_connections: bool,
    /// Open connections with this label; repeated: with all of them
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = input::label, conflicts_with = "connections")]
    labels: Vec<(String, String)>,
}

#[derive(Debug, Args)]
#[group(required = false, multiple = true)]
struct TableFlags {
    /// Table to open; may be repeated
    #[arg(long = "table", value_name = "TABLE", required_unless_present_any = ["all_tables", "file"])]
    tables: Vec<String>,
    /// Open every table
    #[arg(long, conflicts_with = "tables")]
    all_tables: bool,
}

pub(super) async fn perform(
    command: PolicyCommand,
    api: &AdminApi,
    now: Timestamp,
) -> Result<Report, CliError> {
    match command {
        PolicyCommand::Add(add) => add_policy(add, api, now).await,
        PolicyCommand::List => list(api).await,
        PolicyCommand::Show { id } => {
            let json = api.get(&format!("{PATH}/{id}")).await?.body;
            let text = describe(&read(&json)?, now);
            Ok(Report { json, text })
        }
        PolicyCommand::Delete { id, yes } => {
            input::confirm(&format!("Delete policy {id}?"), yes)?;
            api.delete(&format!("{PATH}/{id}")).await?;
            Ok(Report { json: Value::Null, text: format!("Policy {id} deleted.") })
        }
    }
}

async fn add_policy(add: AddPolicy, api: &AdminApi, now: Timestamp) -> Result<Report, CliError> {
    let (id, put) = (add.id.clone(), if add.replace { Put::CreateOrChange } else { Put::CreateOnly });
    let reply = api.put(&format!("{PATH}/{id}"), put, &add.into_request()?).await?;
    let done = if reply.created { "added" } else { "changed" };
    let text = format!(
        "Policy {id} {done}.\n\n{}\n\nThen: bearerd key add --description WHO --policy {id}",
        describe(&read(&reply.body)?, now)
    );
    Ok(Report { json: reply.body, text })
}

async fn list(api: &AdminApi) -> Result<Report, CliError> {
    let json = Value::Array(api.list(PATH).await?);
    let mut rows = Vec::new();
    for entry in json.as_array().into_iter().flatten() {
        rows.push(match read::<Policy>(entry) {
            Ok(policy) => {
                let rules: Vec<String> = policy.rules.iter().map(rule_text).collect();
                [policy.id.to_string(), rules.join("\n"), or_dash(Some(&policy.description))]
            }
            Err(_) => super::output::damaged(entry),
        });
    }
    let empty = "There is no policy yet, so no caller may do anything. Add one: bearerd policy add --help";
    Ok(Report { text: table(["ID", "OPENS", "DESCRIPTION"], rows, empty), json })
}

impl AddPolicy {
    fn into_request(self) -> Result<PolicyRequest, CliError> {
        let rules = match &self.file {
            Some(path) => input::json_file(path, "a list of rules")?,
            None => vec![self.rule()],
        };
        Ok(PolicyRequest { description: self.description, rules, rate: None, concurrency_max: None })
    }

    fn rule(&self) -> Rule {
        let ConnectionFlags { connections, all_connections, labels } = &self.connections;
        let connections = if *all_connections {
            ConnectionSelector::All
        } else if labels.is_empty() {
            ConnectionSelector::Ids(connections.iter().cloned().collect::<BTreeSet<_>>())
        } else {
            ConnectionSelector::Labels(labels.iter().cloned().collect::<BTreeMap<_, _>>())
        };
        let tables = if self.tables.all_tables {
            TableSet::All
        } else {
            TableSet::Named(self.tables.tables.iter().cloned().collect())
        };
        Rule {
            connections,
            families: BTreeSet::from([FamilyName::table()]),
            tables,
            methods: self.methods.iter().cloned().collect(),
            networks: Vec::new(),
            expires_at: None,
            records: None,
        }
    }
}

fn describe(policy: &Policy, now: Timestamp) -> String {
    let mut pairs = vec![("id", policy.id.to_string()), ("description", or_dash(Some(&policy.description)))];
    pairs.extend(policy.rules.iter().map(|rule| ("opens", rule_text(rule))));
    pairs.push(("changed", when_exactly(Some(policy.updated_at), now)));
    fields(&pairs)
}

/// `GET on incident, problem through hr-prod`
fn rule_text(rule: &Rule) -> String {
    let joined = |names: &mut dyn Iterator<Item = &str>| names.collect::<Vec<_>>().join(", ");
    let methods = joined(&mut rule.methods.iter().map(String::as_str));
    let tables = match &rule.tables {
        TableSet::All => "every table".to_owned(),
        TableSet::Named(names) => joined(&mut names.iter().map(String::as_str)),
    };
    let connections = match &rule.connections {
        ConnectionSelector::All => "every connection".to_owned(),
        ConnectionSelector::Ids(ids) => joined(&mut ids.iter().map(ConnectionId::as_str)),
        ConnectionSelector::Labels(labels) => {
            let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("connections with {}", labels.join(", "))
        }
    };
    format!("{methods} on {tables} through {connections}")
}

fn method(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
    if known.contains(&upper.as_str()) { Ok(upper) } else { Err(format!("known are {}", known.join(", "))) }
}

const PATH: &str = "/v1/policies";
const ADD_EXAMPLE: &str = "Examples:
  bearerd policy add read-incidents --connection hr-prod --table incident --method GET
  bearerd policy add prod-writers --label env=prod --table incident --table problem --method GET --method PATCH
  bearerd policy add mixed --file rules.json

rules.json:
  [{\"connections\": {\"ids\": [\"hr-prod\"]}, \"tables\": {\"named\": [\"incident\"]}, \"methods\": [\"GET\"]},
   {\"connections\": {\"labels\": {\"env\": \"test\"}}, \"tables\": \"all\", \"methods\": [\"GET\", \"POST\"]}]";
