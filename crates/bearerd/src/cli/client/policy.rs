//! `bearerd policy`

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use bearerd_admin::wire::{
    ConnectionSelector, ExplainRequest, Explanation, Policy, PolicyRequest, RateLimit, RecordRule, Rule,
    TableSet, WireTime,
};
use bearerd_model::{CallerKeyId, ConnectionId, FamilyName, InstanceOrigin, PolicyId};
use clap::{Args, Subcommand};
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::Value;

use super::{
    api::{AdminApi, Put, read},
    connection,
    error::{CliError, Exit},
    input,
    output::{Report, fields, or_dash, table, when_exactly},
};

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Add a policy: one rule from flags, or any number from a file
    #[command(after_help = ADD_EXAMPLE)]
    Add(Box<AddPolicy>),
    /// List policies
    #[command(after_help = "Example:\n  bearerd policy list")]
    List,
    /// Show a policy, rule by rule
    #[command(after_help = "Example:\n  bearerd policy show read-incidents")]
    Show {
        /// Policy
        id: PolicyId,
    },
    /// Explain what would become of a call, and which rule decides
    #[command(after_help = EXPLAIN_EXAMPLE)]
    Explain(Box<Explain>),
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
    #[command(flatten)]
    narrowing: NarrowingFlags,
    /// JSON file with a list of rules, or - for standard input; instead of the flags above
    #[arg(long, value_name = "FILE",
        conflicts_with_all = ["ConnectionFlags", "TableFlags", "methods", "NarrowingFlags"])]
    file: Option<PathBuf>,
    /// Calls in a time, of each caller key and in each process, such as 100/60s
    #[arg(long, value_name = "CALLS/TIME", value_parser = rate)]
    rate: Option<RateLimit>,
    /// Calls at once after a pause [default: as many as --rate says]
    #[arg(long, value_name = "CALLS", requires = "rate")]
    burst: Option<u32>,
    /// Calls under way at once, of each caller key and in each process
    #[arg(long, value_name = "CALLS")]
    concurrency: Option<u32>,
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

/// What makes the rule narrower, or moves it to other families.
#[derive(Debug, Args)]
#[group(required = false, multiple = true)]
struct NarrowingFlags {
    /// Family to open: table, stats, attachment, import, now/NAME or a scope; may be repeated [default: table]
    #[arg(long = "family", value_name = "FAMILY")]
    families: Vec<FamilyName>,
    /// Network that calls may come from; may be repeated [default: anywhere]
    #[arg(long = "network", value_name = "CIDR")]
    networks: Vec<IpNet>,
    /// When the rule ends: a time such as 2026-12-31T23:59:59Z, or a span such as 90d [default: never]
    #[arg(long, value_name = "TIME", value_parser = expiry)]
    expires: Option<Expiry>,
    /// Encoded query that every record must meet; leaves the key nothing but reads of whole tables
    #[arg(long, value_name = "CONDITION")]
    records: Option<String>,
    /// Field that may be seen; may be repeated [default: every field]
    #[arg(long = "field", value_name = "FIELD", requires = "records")]
    fields: Vec<String>,
    /// Records of one answer at most: 1 to 10000
    #[arg(long, value_name = "RECORDS", default_value_t = LIMIT_MAX_DEFAULT, requires = "records")]
    limit_max: u32,
}

#[derive(Debug, Clone, Copy)]
enum Expiry {
    At(Timestamp),
    In(Duration),
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Caller key id
    #[arg(long, value_name = "ID", required_unless_present = "policies")]
    key: Option<CallerKeyId>,
    /// Policy of a key that would call; may be repeated
    #[arg(long = "policy", value_name = "ID", conflicts_with = "key")]
    policies: Vec<PolicyId>,
    /// Connection
    #[arg(long, value_name = "ID")]
    connection: ConnectionId,
    /// Family
    #[arg(long, value_name = "FAMILY", default_value = "table")]
    family: FamilyName,
    /// Table, where the family's paths name one
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// A single record, not the collection
    #[arg(long)]
    item: bool,
    /// Method
    #[arg(long, value_name = "METHOD", default_value = "GET", value_parser = method)]
    method: String,
    /// Address that the call comes from
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    /// What stands after `?` in the call, percent-encoded
    #[arg(long, value_name = "QUERY")]
    query: Option<String>,
}

pub(super) async fn perform(
    command: PolicyCommand,
    api: &AdminApi,
    now: Timestamp,
) -> Result<Report, CliError> {
    match command {
        PolicyCommand::Add(add) => add_policy(*add, api, now).await,
        PolicyCommand::List => list(api).await,
        PolicyCommand::Explain(explain) => {
            let request = explain.into_request();
            let json = api.post(&format!("{PATH}/explain"), &request).await?.body;
            let explanation: Explanation = read(&json)?;
            let asked = Asked {
                connection_absent: !explanation.connection_known && is_absent(api, &request.connection).await,
                request,
            };
            let text = explained(&explanation, &asked);
            Ok(Report::new(json, text))
        }
        PolicyCommand::Show { id } => {
            let json = api.get(&format!("{PATH}/{id}")).await?.body;
            let text = describe(&read(&json)?, now);
            Ok(Report::new(json, text))
        }
        PolicyCommand::Delete { id, yes } => {
            input::confirm(&format!("Delete policy {id}?"), yes)?;
            api.delete(&format!("{PATH}/{id}")).await?;
            Ok(Report::new(Value::Null, format!("Policy {id} deleted.")))
        }
    }
}

async fn add_policy(add: AddPolicy, api: &AdminApi, now: Timestamp) -> Result<Report, CliError> {
    let (id, put) = (add.id.clone(), if add.replace { Put::CreateOrChange } else { Put::CreateOnly });
    let reply = api.put(&format!("{PATH}/{id}"), put, &add.into_request(now)?).await?;
    let done = if reply.created { "added" } else { "changed" };
    let policy: Policy = read(&reply.body)?;
    let text = format!(
        "Policy {id} {done}.\n\n{}\n{}\nThen: bearerd key add --description WHO --policy {id}",
        describe(&policy, now),
        unchecked(&policy)
    );
    let notes = absent_connections(api, &policy).await;
    Ok(Report { notes, ..Report::new(reply.body, text) })
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
    Ok(Report::new(json, table(["ID", "OPENS", "DESCRIPTION"], rows, empty)))
}

impl AddPolicy {
    fn into_request(self, now: Timestamp) -> Result<PolicyRequest, CliError> {
        let rules = match &self.file {
            Some(path) => input::json_file(path, "a list of rules")?,
            None => vec![self.rule(now)?],
        };
        let rate = self.rate.map(|rate| RateLimit { burst: self.burst, ..rate });
        let (description, concurrency_max) = (self.description, self.concurrency);
        Ok(PolicyRequest { description, rules, rate, concurrency_max })
    }

    fn rule(&self, now: Timestamp) -> Result<Rule, CliError> {
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
        let NarrowingFlags { families, networks, expires, records, fields, limit_max } = &self.narrowing;
        let families = if families.is_empty() {
            BTreeSet::from([FamilyName::table()])
        } else {
            families.iter().cloned().collect()
        };
        let fields = (!fields.is_empty()).then(|| fields.iter().cloned().collect());
        let records = records.as_ref().map(|condition| RecordRule {
            condition: condition.clone(),
            fields,
            limit_max: *limit_max,
            checked_at: BTreeSet::new(),
        });
        Ok(Rule {
            connections,
            families,
            tables,
            methods: self.methods.iter().cloned().collect(),
            networks: networks.clone(),
            expires_at: expires.map(|expires| expires.from(now)).transpose()?,
            records,
        })
    }
}

impl Expiry {
    fn from(self, now: Timestamp) -> Result<WireTime, CliError> {
        let at = match self {
            Self::At(time) => Ok(time),
            Self::In(span) => now.checked_add(span),
        };
        let too_far =
            |_| CliError::usage("--expires is too far away", "Leave it out for a rule that does not end.");
        at.map(WireTime).map_err(too_far)
    }
}

impl Explain {
    fn into_request(self) -> ExplainRequest {
        ExplainRequest {
            caller_key_id: self.key,
            policies: (!self.policies.is_empty()).then_some(self.policies),
            connection: self.connection,
            family: self.family,
            table: self.table,
            item: self.item,
            method: self.method,
            source: self.source,
            query: self.query,
        }
    }
}

/// What was to be explained.
pub(super) struct Asked {
    pub(super) request: ExplainRequest,
    /// There is no such connection.
    pub(super) connection_absent: bool,
}

pub(super) fn explained(explanation: &Explanation, asked: &Asked) -> String {
    let Explanation { allowed, policy, rule, reason, connection_known, records, limits, nearest: _ } =
        explanation;
    let mut pairs = vec![("allowed", if *allowed { "yes" } else { "no" }.to_owned())];
    if let (Some(policy), Some(rule)) = (policy, rule) {
        let decides = if *allowed { "rule" } else { "nearest rule" };
        pairs.push((decides, format!("{rule} of policy {policy}")));
    }
    if let Some(reason) = reason {
        pairs.push(("reason", reason.clone()));
    }
    if !allowed && !connection_known {
        pairs.push(("the caller sees", "404: no such connection".to_owned()));
    }
    pairs.extend(next_step(explanation, asked).map(|step| ("next", step)));
    if let Some(records) = records {
        pairs.push(("query sent", records.query.clone()));
    }
    if let Some(limits) = limits {
        pairs.extend(limits.rate.map(|rate| ("rate", rate_text(rate))));
        pairs.extend(limits.concurrency_max.map(|max| {
            ("at once", format!("{max}, {} under way in the process that answered", limits.in_flight))
        }));
    }
    fields(&pairs)
}

/// What would open a call that is denied, in one line.
fn next_step(explanation: &Explanation, asked: &Asked) -> Option<String> {
    let Asked { request, connection_absent } = asked;
    let connection = &request.connection;
    let anew = match (&explanation.policy, request.policies.as_deref()) {
        (Some(policy), _) | (None, Some([policy])) => {
            format!("write policy {policy} anew (bearerd policy add {policy} --replace)")
        }
        _ => "write one of the policies anew (bearerd policy add ID --replace)".to_owned(),
    };
    let change = |what: &str| format!("{anew} with {what} in rule {}", explanation.rule.unwrap_or_default());
    let step = match explanation.nearest.as_deref()? {
        "connection" if *connection_absent => {
            format!("add the connection: bearerd connection add {connection} --integration ID")
        }
        "connection" | "family" | "table" => format!("{anew} with one more rule: {}", rule_flags(request)),
        "method" => change(&format!("--method {}", request.method)),
        "network" => match request.source {
            Some(source) => change(&format!("a --network that {source} is in, or none,")),
            None => format!("say with --source where the call comes from, or {}", change("no --network")),
        },
        "expired" => change("a later --expires"),
        "record_rule_key" => {
            "use a key without a record rule in any of its policies (bearerd key add)".to_owned()
        }
        "records_unchecked" => {
            format!("see that {connection} is connected, then {anew}: that looks its fields up")
        }
        "query" => {
            format!("change the query as the reason says, or {}", change("other --field and --limit-max"))
        }
        "no_policy" => "make a key that has a policy: bearerd key add --policy ID".to_owned(),
        "key_expired" => "make a key that has not ended: bearerd key add".to_owned(),
        _ => return None, // of a newer daemon
    };
    Some(step)
}

/// The flags of a rule that opens the call and nothing else.
fn rule_flags(request: &ExplainRequest) -> String {
    let mut flags = vec![format!("--connection {}", request.connection)];
    if request.family != FamilyName::table() {
        flags.push(format!("--family {}", request.family));
    }
    flags.push(match &request.table {
        Some(table) => format!("--table {table}"),
        None => "--all-tables".to_owned(),
    });
    flags.push(format!("--method {}", request.method));
    flags.join(" ")
}

/// A note for each connection that the policy names and that is not there: it may come later, or its name be mistyped.
async fn absent_connections(api: &AdminApi, policy: &Policy) -> Vec<String> {
    let named: BTreeSet<&ConnectionId> = policy
        .rules
        .iter()
        .filter_map(|rule| match &rule.connections {
            ConnectionSelector::Ids(ids) => Some(ids),
            ConnectionSelector::All | ConnectionSelector::Labels(_) => None,
        })
        .flatten()
        .collect();
    let mut notes = Vec::new();
    for id in named {
        if is_absent(api, id).await {
            notes.push(format!(
                "there is no connection {id} yet; to add it: bearerd connection add {id} --integration ID"
            ));
        }
    }
    notes
}

/// Whether there is surely no such connection. What was asked for stands either way, so a failed look is no error.
async fn is_absent(api: &AdminApi, id: &ConnectionId) -> bool {
    let found = api.get(&format!("{}/{id}", connection::PATH)).await;
    found.is_err_and(|error| error.exit() == Exit::NotFound)
}

/// What could not be looked up, as a warning; nothing where all was.
fn unchecked(policy: &Policy) -> String {
    policy.unchecked.iter().fold(String::new(), |text, one| {
        format!(
            "{text}\nWarning: {} could not be asked for the fields of record rules: {}.\n",
            one.instance, one.reason
        )
    })
}

fn describe(policy: &Policy, now: Timestamp) -> String {
    let mut pairs = vec![("id", policy.id.to_string()), ("description", or_dash(Some(&policy.description)))];
    pairs.extend(policy.rules.iter().map(|rule| ("opens", rule_text(rule))));
    pairs.extend(policy.rate.map(|rate| ("rate", rate_text(rate))));
    pairs.extend(policy.concurrency_max.map(|max| ("at once", format!("{max} calls of each key"))));
    pairs.push(("changed", when_exactly(Some(policy.updated_at), now)));
    fields(&pairs)
}

/// `100 calls in 60 s of each key, 20 at once`
fn rate_text(rate: RateLimit) -> String {
    let RateLimit { calls, per_s, burst } = rate;
    format!("{calls} calls in {per_s} s of each key, {} at once", burst.unwrap_or(calls))
}

/// `GET on incident, problem through hr-prod`, and what narrows that.
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
    let mut parts = vec![format!("{methods} on {tables} through {connections}")];
    if rule.families != BTreeSet::from([FamilyName::table()]) {
        parts.push(format!("in {}", joined(&mut rule.families.iter().map(FamilyName::as_str))));
    }
    if !rule.networks.is_empty() {
        let networks: Vec<String> = rule.networks.iter().map(ToString::to_string).collect();
        parts.push(format!("from {}", networks.join(", ")));
    }
    parts.extend(rule.expires_at.map(|ends| format!("until {:.0}", ends.0)));
    if let Some(RecordRule { condition, fields, limit_max, checked_at }) = &rule.records {
        parts.push(format!("records where {condition}, at most {limit_max} an answer"));
        if let Some(fields) = fields {
            parts.push(format!("fields {}", joined(&mut fields.iter().map(String::as_str))));
        }
        let checked_at = joined(&mut checked_at.iter().map(InstanceOrigin::as_str));
        parts.push(format!("checked at {}", or_dash(Some(&checked_at))));
    }
    parts.join(", ")
}

/// `100/60s`
fn rate(text: &str) -> Result<RateLimit, String> {
    let wrong = || "write calls and a time, such as 100/60s or 20/1s".to_owned();
    let (calls, time) = text.split_once('/').ok_or_else(wrong)?;
    let calls = calls.parse().map_err(|_| wrong())?;
    let per_s = u32::try_from(input::duration(time).map_err(|_| wrong())?.as_secs()).map_err(|_| wrong())?;
    Ok(RateLimit { calls, per_s, burst: None })
}

fn expiry(text: &str) -> Result<Expiry, String> {
    let wrong = |_| "write a time such as 2026-12-31T23:59:59Z, or a span such as 90d".to_owned();
    match text.parse() {
        Ok(time) => Ok(Expiry::At(time)),
        Err(_) => input::duration(text).map(Expiry::In).map_err(wrong),
    }
}

fn method(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
    if known.contains(&upper.as_str()) { Ok(upper) } else { Err(format!("known are {}", known.join(", "))) }
}

const PATH: &str = "/v1/policies";
/// As the admin API has it.
const LIMIT_MAX_DEFAULT: u32 = 1_000;
const ADD_EXAMPLE: &str = "Examples:
  bearerd policy add read-incidents --connection hr-prod --table incident --method GET
  bearerd policy add prod-writers --label env=prod --table incident --table problem --method GET --method PATCH
  bearerd policy add files --connection hr-prod --family attachment --all-tables --method GET --network 10.0.0.0/8
  bearerd policy add own-cases --connection hr-prod --table incident --method GET \\
    --records 'active=true^category=network' --field number --field state --limit-max 100 --rate 100/60s
  bearerd policy add contractor --all-connections --table incident --method GET --expires 90d --concurrency 4
  bearerd policy add mixed --file rules.json

rules.json:
  [{\"connections\": {\"ids\": [\"hr-prod\"]}, \"tables\": {\"named\": [\"incident\"]}, \"methods\": [\"GET\"]},
   {\"connections\": {\"labels\": {\"env\": \"test\"}}, \"tables\": \"all\", \"methods\": [\"GET\", \"POST\"]}]";
const EXPLAIN_EXAMPLE: &str = "Examples:
  bearerd policy explain --key k3v9x0a1b2c3 --connection hr-prod --table incident --method PATCH --item
  bearerd policy explain --policy own-cases --connection hr-prod --table incident --query sysparm_limit=10";
