//! The Knowledge Management API over published `kb_knowledge` records.

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::api::{self, ApiCall};
use crate::message::Reply;
use crate::render;
use crate::table_api;
use crate::tables::Record;
use crate::world::World;

/// `/api/sn_km_api/knowledge/articles…`.
pub(crate) fn answer(world: &World, call: &ApiCall<'_>, rest: &[&str]) -> Reply {
    if !matches!(call.method, Method::GET | Method::HEAD) {
        return api::method_not_supported(call);
    }
    if table_api::is_denied(world, call, "kb_knowledge") {
        return table_api::denied(call);
    }
    match rest {
        ["articles"] => search(world, call),
        ["articles", id] => article(world, call, id),
        _ => api::method_not_supported(call),
    }
}

/// `query` searches titles and texts, `filter` is an encoded query, `fields` adds fields.
fn search(world: &World, call: &ApiCall<'_>) -> Reply {
    let value = |name: &str| call.request.query_value(name).unwrap_or_default();
    let number = |name: &str| value(name).trim().parse::<usize>().ok();
    let (query, filter) = (value("query"), value("filter"));
    let (limit, offset) = (number("limit").unwrap_or(LIMIT_DEFAULT), number("offset").unwrap_or(0));
    let wanted = query.to_lowercase();
    let found: Vec<&Record> = table_api::selected_by(world, call, "kb_knowledge", &filter)
        .into_iter()
        .map(|(_, record)| record)
        .filter(|record| {
            is_published(record)
                && ["short_description", "text"]
                    .iter()
                    .any(|name| text(record, name).to_lowercase().contains(&wanted))
        })
        .collect();
    let fields = value("fields");
    let fields: Vec<&str> = fields.split(',').filter(|field| !field.is_empty()).collect();
    let shown: Value = found.iter().skip(offset).take(limit).map(|record| summary(record, &fields)).collect();
    let end = found.len().min(offset.saturating_add(limit));
    let meta = json!({
        "start": offset, "end": end, "count": found.len(), "query": query, "filter": filter,
        "fields": fields.join(","), "kb": "", "language": "en", "status": {"code": 200},
    });
    render::result(call.format, StatusCode::OK, &json!({"meta": meta, "articles": shown}))
}

/// By `sys_id` or number.
fn article(world: &World, call: &ApiCall<'_>, id: &str) -> Reply {
    let rows = world.database.rows("kb_knowledge");
    let is_it = |record: &Record| {
        is_published(record) && (text(record, "sys_id") == id || text(record, "number") == id)
    };
    let Some((_, record)) = rows.into_iter().find(|(_, record)| is_it(record)) else {
        return api::no_record(call);
    };
    let result = json!({
        "sys_id": text(record, "sys_id"), "number": text(record, "number"),
        "short_description": text(record, "short_description"), "content": text(record, "text"),
        "template": false, "display_attachments": true, "attachments": [], "embedded_content": [],
    });
    render::result(call.format, StatusCode::OK, &result)
}

fn summary(record: &Record, fields: &[&str]) -> Value {
    let field = |name: &&str| {
        let value = record.get(*name)?;
        Some(((*name).to_owned(), json!({"name": name, "value": value, "display_value": value})))
    };
    let fields: Map<_, _> = fields.iter().filter_map(field).collect();
    let (sys_id, number) = (text(record, "sys_id"), text(record, "number"));
    json!({
        "link": format!("?id=kb_article_view&sysparm_article={number}"), "id": format!("kb_knowledge:{sys_id}"),
        "title": text(record, "short_description"), "snippet": text(record, "text"), "score": 1, "rank": 1,
        "number": number, "fields": fields,
    })
}

fn is_published(record: &Record) -> bool {
    text(record, "workflow_state") == "published"
}

fn text<'r>(record: &'r Record, name: &str) -> &'r str {
    record.get(name).map_or("", String::as_str)
}

/// As ServiceNow's.
const LIMIT_DEFAULT: usize = 30;
