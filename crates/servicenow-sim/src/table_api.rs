//! The Table API: list, read, create, change and delete records.

use http::header::{LINK, LOCATION};
use http::{Method, StatusCode};
use serde_json::Value;

use crate::api::{self, ApiCall};
use crate::body_record;
use crate::evaluate;
use crate::message::Reply;
use crate::query::Query;
use crate::render::{self, DisplayValue, View};
use crate::secrets;
use crate::tables::{Database, Record, StoreRefusal};
use crate::world::World;

/// `/api/now/table/{table}`.
pub(crate) fn on_table(world: &mut World, call: &ApiCall<'_>, table: &str, version_1: bool) -> Reply {
    if world.database.table(table).is_none() {
        return invalid_table(call, table);
    }
    if is_denied(world, call, table) {
        return denied(call);
    }
    match call.method {
        Method::GET | Method::HEAD => list(world, call, table, version_1),
        Method::POST => create(world, call, table),
        _ => api::method_not_supported(call),
    }
}

/// `/api/now/table/{table}/{sys_id}`.
pub(crate) fn on_record(world: &mut World, call: &ApiCall<'_>, table: &str, sys_id: &str) -> Reply {
    if world.database.table(table).is_none() {
        return invalid_table(call, table);
    }
    let is_read = matches!(call.method, Method::GET | Method::HEAD);
    if is_denied(world, call, table) {
        return if is_read { api::no_record(call) } else { denied(call) };
    }
    match call.method {
        Method::GET | Method::HEAD => read(world, call, table, sys_id, StatusCode::OK),
        Method::PUT | Method::PATCH => change(world, call, table, sys_id),
        Method::DELETE => delete(world, call, table, sys_id),
        _ => api::method_not_supported(call),
    }
}

/// Parameters of a list.
pub(crate) struct Page {
    pub(crate) limit: usize,
    pub(crate) offset: usize,
}

impl Page {
    pub(crate) fn of(call: &ApiCall<'_>) -> Self {
        let number = |name: &str| call.request.query_value(name).and_then(|text| text.trim().parse().ok());
        Self {
            limit: number("sysparm_limit").unwrap_or(LIMIT_DEFAULT),
            offset: number("sysparm_offset").unwrap_or(0),
        }
    }
}

fn list(world: &World, call: &ApiCall<'_>, table: &str, version_1: bool) -> Reply {
    let rows = selected(world, call, table);
    let page = Page::of(call);
    let view = view(world, call);
    let shown: Vec<Value> = rows
        .iter()
        .skip(page.offset)
        .take(page.limit)
        .map(|(store, record)| Value::Object(render::record(&world.database, store, record, &view)))
        .collect();
    let total = rows.len();
    if shown.is_empty() && version_1 {
        return api::no_record(call);
    }
    let more_known = !flag(call, "sysparm_no_count");
    let mut reply = render::result(call.format, StatusCode::OK, &Value::Array(shown));
    if more_known {
        reply = reply.with(api::total_count(), &total.to_string());
    }
    if !flag(call, "sysparm_suppress_pagination_header")
        && let Some(links) = page_links(world, call, &page, total, more_known)
    {
        reply = reply.with(LINK, &links);
    }
    reply
}

/// Absolute links to the other pages, with every other parameter as it was sent; none if all rows are on this page.
fn page_links(
    world: &World,
    call: &ApiCall<'_>,
    page: &Page,
    total: usize,
    total_known: bool,
) -> Option<String> {
    if page.limit == 0 || (page.offset == 0 && total <= page.limit) {
        return None;
    }
    let is_kept = |part: &&str| !part.starts_with("sysparm_offset=") && !part.is_empty();
    let query = call.request.query.as_deref().unwrap_or_default();
    let kept: String = query.split('&').filter(is_kept).flat_map(|part| [part, "&"]).collect();
    let base = format!("{}{}?{kept}sysparm_offset=", world.public_origin(), call.request.path);
    let link = |offset: usize, rel: &str| format!("<{base}{offset}>;rel=\"{rel}\"");
    let mut links = vec![link(0, "first")];
    if page.offset > 0 {
        links.push(link(page.offset.saturating_sub(page.limit), "prev"));
    }
    if page.offset.saturating_add(page.limit) < total {
        links.push(link(page.offset + page.limit, "next"));
    }
    if total_known && total > 0 {
        links.push(link((total - 1) / page.limit * page.limit, "last"));
    }
    Some(links.join(","))
}

fn read(world: &World, call: &ApiCall<'_>, table: &str, sys_id: &str, status: StatusCode) -> Reply {
    let Some((store, record)) = world.database.find(table, sys_id) else { return api::no_record(call) };
    let shown = render::record(&world.database, store, record, &view(world, call));
    render::result(call.format, status, &Value::Object(shown))
}

fn create(world: &mut World, call: &ApiCall<'_>, table: &str) -> Reply {
    let record = match written_record(world, call, table) {
        Ok(record) => record,
        Err(reply) => return *reply,
    };
    match insert(world, call, table, record) {
        Ok(sys_id) => {
            let location = format!("{}/api/now/table/{table}/{sys_id}", world.public_origin());
            read(world, call, table, &sys_id, StatusCode::CREATED).with(LOCATION, &location)
        }
        Err(refusal) => not_stored(call, table, refusal),
    }
}

/// The answer of a write that was refused.
pub(crate) fn not_stored(call: &ApiCall<'_>, table: &str, refusal: StoreRefusal) -> Reply {
    match refusal {
        StoreRefusal::NoSuchTable => invalid_table(call, table),
        StoreRefusal::Duplicate => {
            operation_failed(call, "Insert Aborted : Error during insert: duplicate key")
        }
        StoreRefusal::Full => operation_failed(call, "The simulator's memory is full"),
    }
}

/// Stores a new record with defaults and system fields, and answers its `sys_id`.
pub(crate) fn insert(
    world: &mut World,
    call: &ApiCall<'_>,
    table: &str,
    mut record: Record,
) -> Result<String, StoreRefusal> {
    let sys_id = match record.get("sys_id") {
        Some(given) if is_sys_id(given) => given.clone(),
        Some(_) | None => secrets::random_hex32(),
    };
    fill_defaults(&world.database, table, &mut record);
    let now = call.now.to_glide();
    let by = call.caller.user_name.clone();
    for (name, value) in [
        ("sys_id", sys_id.clone()),
        ("sys_class_name", table.to_owned()),
        ("sys_created_on", now.clone()),
        ("sys_created_by", by.clone()),
        ("sys_updated_on", now),
        ("sys_updated_by", by),
        ("sys_mod_count", "0".to_owned()),
    ] {
        record.insert(name.to_owned(), value);
    }
    world.database.insert(table, record)?;
    if table == "sys_user" {
        world.user_row_changed(&sys_id);
    }
    Ok(sys_id)
}

fn change(world: &mut World, call: &ApiCall<'_>, table: &str, sys_id: &str) -> Reply {
    let changes = match written_record(world, call, table) {
        Ok(changes) => changes,
        Err(reply) => return *reply,
    };
    match update(world, call, table, sys_id, changes) {
        Ok(true) => read(world, call, table, sys_id, StatusCode::OK),
        Ok(false) => api::no_record(call),
        Err(refusal) => not_stored(call, table, refusal),
    }
}

/// Changes a record and its system fields; `false` if there is no such record.
pub(crate) fn update(
    world: &mut World,
    call: &ApiCall<'_>,
    table: &str,
    sys_id: &str,
    mut written: Record,
) -> Result<bool, StoreRefusal> {
    let Some((_, record)) = world.database.find(table, sys_id) else { return Ok(false) };
    let count: u64 = record.get("sys_mod_count").and_then(|count| count.parse().ok()).unwrap_or_default();
    written.insert("sys_mod_count".to_owned(), count.saturating_add(1).to_string());
    written.insert("sys_updated_on".to_owned(), call.now.to_glide());
    written.insert("sys_updated_by".to_owned(), call.caller.user_name.clone());
    let changed = world.database.update(table, sys_id, written)?;
    if changed && table == "sys_user" {
        world.user_row_changed(sys_id);
    }
    Ok(changed)
}

fn delete(world: &mut World, call: &ApiCall<'_>, table: &str, sys_id: &str) -> Reply {
    if !world.database.delete(table, sys_id) {
        return api::no_record(call);
    }
    if table == "sys_user" {
        world.user_row_changed(sys_id);
    }
    Reply::new(StatusCode::NO_CONTENT)
}

/// The record in the body of a write. With `sysparm_input_display_value=true`, a label of a choice stands for its
/// value.
pub(crate) fn written_record(world: &World, call: &ApiCall<'_>, table: &str) -> Result<Record, Box<Reply>> {
    api::check_write_headers(call)?;
    let parsed = body_record::parse(call.request.media_type().as_deref(), &call.request.body);
    let mut record = parsed.map_err(|detail| {
        let message = "Exception while reading request";
        Box::new(Reply::api_error(call.format, StatusCode::BAD_REQUEST, message, Some(detail)))
    })?;
    if flag(call, "sysparm_input_display_value")
        && let Some(table) = world.database.table(table)
    {
        body_record::labels_to_values(table, &mut record);
    }
    Ok(record)
}

/// A new record has every field of its table: the defaults, else empty.
fn fill_defaults(database: &Database, table: &str, record: &mut Record) {
    let Some(table) = database.table(table) else { return };
    for name in table.field_names() {
        let default = FIELD_DEFAULTS.iter().find(|(field, _)| *field == name).map_or("", |(_, value)| value);
        record.entry(name).or_insert_with(|| default.to_owned());
    }
}

/// The records that `sysparm_query` and bare `field=value` parameters select.
pub(crate) fn selected<'w>(
    world: &'w World,
    call: &ApiCall<'_>,
    table: &str,
) -> Vec<(&'w crate::tables::Table, &'w Record)> {
    let Some(table) = world.database.table(table) else { return Vec::new() };
    let mut query = Query::parse(&call.request.query_value("sysparm_query").unwrap_or_default());
    for (name, value) in call.request.query_pairs() {
        if !name.starts_with("sysparm_") && !NO_FIELDS.contains(&name.to_ascii_lowercase().as_str()) {
            query.require(&name, &value);
        }
    }
    let strict = world.behaviour.invalid_query_returns_no_rows;
    evaluate::select(&world.database, table, &query, call.caller.viewer(call.now), strict)
}

/// The records that an encoded query selects, whatever the parameters of the request say.
pub(crate) fn selected_by<'w>(
    world: &'w World,
    call: &ApiCall<'_>,
    table: &str,
    query: &str,
) -> Vec<(&'w crate::tables::Table, &'w Record)> {
    let Some(table) = world.database.table(table) else { return Vec::new() };
    let strict = world.behaviour.invalid_query_returns_no_rows;
    let query = Query::parse(query);
    evaluate::select(&world.database, table, &query, call.caller.viewer(call.now), strict)
}

/// How `sysparm_fields`, `sysparm_display_value` and their like ask for records to be shown.
pub(crate) fn view(world: &World, call: &ApiCall<'_>) -> View {
    let fields = call.request.query_value("sysparm_fields").unwrap_or_default();
    let fields = fields.split(',').map(str::trim).filter(|field| !field.is_empty());
    View {
        fields: fields.map(str::to_owned).collect(),
        display_value: DisplayValue::parse(call.request.query_value("sysparm_display_value").as_deref()),
        exclude_reference_link: flag(call, "sysparm_exclude_reference_link"),
        origin: world.public_origin(),
    }
}

pub(crate) fn flag(call: &ApiCall<'_>, name: &str) -> bool {
    call.request.query_value(name).is_some_and(|value| value == "true")
}

pub(crate) fn is_denied(world: &World, call: &ApiCall<'_>, table: &str) -> bool {
    world.behaviour.denies(&call.caller.user_name, table, call.method.as_str())
}

/// The 403 of an ACL.
pub(crate) fn denied(call: &ApiCall<'_>) -> Reply {
    if matches!(call.method, Method::GET | Method::HEAD) {
        return Reply::api_error(
            call.format,
            StatusCode::FORBIDDEN,
            "Insufficient rights to query records",
            None,
        );
    }
    operation_failed(call, "ACL Exception: the operation failed due to security constraints")
}

pub(crate) fn operation_failed(call: &ApiCall<'_>, detail: &str) -> Reply {
    Reply::api_error(call.format, StatusCode::FORBIDDEN, "Operation Failed", Some(detail))
}

pub(crate) fn invalid_table(call: &ApiCall<'_>, table: &str) -> Reply {
    let message = format!("Invalid table {table}");
    Reply::api_error(call.format, StatusCode::BAD_REQUEST, &message, None)
}

pub(crate) fn is_sys_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

const FIELD_DEFAULTS: [(&str, &str); 5] =
    [("active", "true"), ("state", "1"), ("impact", "3"), ("urgency", "3"), ("priority", "5")];
/// `sysparm_limit` when none is given.
const LIMIT_DEFAULT: usize = 10_000;
/// Parameters that are neither `sysparm_…` nor a field.
const NO_FIELDS: [&str; 2] = ["access_token", "x-sn-apikey"];
