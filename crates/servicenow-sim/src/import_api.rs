//! The Import Set API: a row goes into a staging table, and a transform map carries it into the target table.

use http::header::LOCATION;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::api::{self, ApiCall};
use crate::body_record;
use crate::message::Reply;
use crate::seed::record;
use crate::table_api;
use crate::tables::{Record, StoreRefusal};
use crate::world::World;

/// Where the rows of a staging table go.
struct TransformMap {
    staging: &'static str,
    name: &'static str,
    target: &'static str,
    /// Target field by which an existing record is found and changed instead of a new one inserted.
    coalesce: &'static str,
    /// Target field that the answer shows.
    display: &'static str,
    /// Staging field to target field.
    fields: &'static [(&'static str, &'static str)],
}

const MAPS: [TransformMap; 2] = [
    TransformMap {
        staging: "imp_user",
        name: "User",
        target: "sys_user",
        coalesce: "user_name",
        display: "name",
        fields: &[
            ("user_name", "user_name"),
            ("first_name", "first_name"),
            ("last_name", "last_name"),
            ("email", "email"),
            ("title", "title"),
        ],
    },
    TransformMap {
        staging: "u_incident_import",
        name: "Incident import",
        target: "incident",
        coalesce: "number",
        display: "number",
        fields: &[
            ("u_number", "number"),
            ("u_short_description", "short_description"),
            ("u_category", "category"),
            ("u_caller_id", "caller_id"),
            ("u_state", "state"),
        ],
    },
];

/// `/api/now/import/…`.
pub(crate) fn answer(world: &mut World, call: &ApiCall<'_>, rest: &[&str]) -> Reply {
    let Some(map) = rest.first().and_then(|name| MAPS.iter().find(|map| map.staging == *name)) else {
        return table_api::invalid_table(call, rest.first().copied().unwrap_or_default());
    };
    if [map.staging, map.target].iter().any(|table| table_api::is_denied(world, call, table)) {
        return table_api::denied(call);
    }
    match (rest, &call.method) {
        ([_], &Method::POST) => insert_one(world, call, map),
        ([_, "insertMultiple"], &Method::POST) => insert_many(world, call, map),
        ([_, sys_id], &Method::GET | &Method::HEAD) => read(world, call, map, sys_id),
        _ => api::method_not_supported(call),
    }
}

fn insert_one(world: &mut World, call: &ApiCall<'_>, map: &TransformMap) -> Reply {
    let row = match table_api::written_record(world, call, map.staging) {
        Ok(row) => row,
        Err(reply) => return *reply,
    };
    let imported = start_set(world, call, map)
        .and_then(|set| Ok((import(world, call, map, &set, row)?, set)))
        .map(|(row, set)| (shown(world, map, &set, &row), row));
    match imported {
        Ok((body, row)) => {
            let location = format!("{}/api/now/import/{}/{row}", world.public_origin(), map.staging);
            Reply::json(StatusCode::CREATED, &body).with(LOCATION, &location)
        }
        Err(refusal) => table_api::not_stored(call, map.staging, refusal),
    }
}

/// The transform is asynchronous on a real instance; here it is over when the answer comes.
fn insert_many(world: &mut World, call: &ApiCall<'_>, map: &TransformMap) -> Reply {
    if let Err(reply) = api::check_write_headers(call) {
        return *reply;
    }
    let Some(rows) = body_record::parse_many(&call.request.body) else {
        let detail = Some("The payload has no array of records.");
        let message = "Exception while reading request";
        return Reply::api_error(call.format, StatusCode::BAD_REQUEST, message, detail);
    };
    let imported = start_set(world, call, map).and_then(|set| {
        for row in rows {
            import(world, call, map, &set, row)?;
        }
        Ok(set)
    });
    match imported {
        Ok(set) => {
            let body = json!({"import_set_id": set, "multi_import_set_id": crate::secrets::random_hex32()});
            Reply::json(StatusCode::CREATED, &body)
        }
        Err(refusal) => table_api::not_stored(call, map.staging, refusal),
    }
}

fn read(world: &World, call: &ApiCall<'_>, map: &TransformMap, sys_id: &str) -> Reply {
    let Some((_, row)) = world.database.find(map.staging, sys_id) else { return api::no_record(call) };
    let set = row.get("sys_import_set").cloned().unwrap_or_default();
    Reply::json(StatusCode::OK, &shown(world, map, &set, sys_id))
}

fn start_set(world: &mut World, call: &ApiCall<'_>, map: &TransformMap) -> Result<String, StoreRefusal> {
    let set = record(&[("state", "loaded"), ("table_name", map.staging)]);
    table_api::insert(world, call, "sys_import_set", set)
}

/// Stores one staging row and transforms it; answers the row's `sys_id`.
fn import(
    world: &mut World,
    call: &ApiCall<'_>,
    map: &TransformMap,
    set: &str,
    mut row: Record,
) -> Result<String, StoreRefusal> {
    let from_row = |(from, to): &(&str, &str)| Some(((*to).to_owned(), row.get(*from)?.clone()));
    let target: Record = map.fields.iter().filter_map(from_row).collect();
    let (state, target_id) = transform(world, call, map, target)?;
    row.extend(record(&[
        ("sys_import_set", set),
        ("sys_import_state", state),
        ("sys_target_table", map.target),
        ("sys_target_sys_id", &target_id),
    ]));
    table_api::insert(world, call, map.staging, row)
}

/// Inserts or changes the target record: what happened, and its `sys_id`. A row without any mapped value is ignored.
fn transform(
    world: &mut World,
    call: &ApiCall<'_>,
    map: &TransformMap,
    target: Record,
) -> Result<(&'static str, String), StoreRefusal> {
    if target.values().all(String::is_empty) {
        return Ok(("ignored", String::new()));
    }
    let key = target.get(map.coalesce).filter(|value| !value.is_empty());
    let rows = world.database.rows(map.target);
    let existing = key.and_then(|key| {
        let same = |(_, record): &&(_, &Record)| record.get(map.coalesce) == Some(key);
        rows.iter().find(same).and_then(|(_, record)| record.get("sys_id").cloned())
    });
    match existing {
        Some(sys_id) => {
            table_api::update(world, call, map.target, &sys_id, target)?;
            Ok(("updated", sys_id))
        }
        None => Ok(("inserted", table_api::insert(world, call, map.target, target)?)),
    }
}

/// The answer about one staging row. It has no `result` wrapper around it: its `result` is a list of outcomes.
fn shown(world: &World, map: &TransformMap, set: &str, row: &str) -> Value {
    let field = |table: &str, sys_id: &str, name: &str| {
        let found = world.database.find(table, sys_id);
        found.and_then(|(_, record)| record.get(name).cloned()).unwrap_or_default()
    };
    let status = field(map.staging, row, "sys_import_state");
    let target_id = field(map.staging, row, "sys_target_sys_id");
    let mut outcome = json!({"transform_map": map.name, "table": map.target, "status": status});
    if target_id.is_empty() {
        outcome["status_message"] = json!("Row transform ignored: no field values changed");
    } else {
        outcome["display_name"] = json!(map.display);
        outcome["display_value"] = json!(field(map.target, &target_id, map.display));
        outcome["record_link"] =
            json!(format!("{}/api/now/table/{}/{target_id}", world.public_origin(), map.target));
        outcome["sys_id"] = json!(target_id);
    }
    json!({
        "import_set": field("sys_import_set", set, "number"),
        "staging_table": map.staging,
        "result": [outcome],
    })
}
