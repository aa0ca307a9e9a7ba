//! The Service Catalog API: items, categories, the cart, and orders that become requests.

use http::StatusCode;
use serde_json::{Value, json};

use crate::api::{self, ApiCall};
use crate::message::Reply;
use crate::render;
use crate::seed::record;
use crate::table_api::{self, Page};
use crate::tables::{Record, StoreRefusal};
use crate::world::World;

/// `/api/sn_sc/servicecatalog/…`.
pub(crate) fn answer(world: &mut World, call: &ApiCall<'_>, rest: &[&str]) -> Reply {
    let reads = ["sc_cat_item", "sc_category", "sc_catalog"];
    if reads.iter().any(|table| table_api::is_denied(world, call, table)) {
        return table_api::denied(call);
    }
    match (rest, call.method.as_str()) {
        (["catalogs"], "GET" | "HEAD") => list(world, call, "sc_catalog", &[]),
        (["catalogs", id, "categories"], "GET" | "HEAD") => {
            list(world, call, "sc_category", &[("sc_catalog", id)])
        }
        (["categories", id], "GET" | "HEAD") => one(world, call, "sc_category", id),
        (["items"], "GET" | "HEAD") => items(world, call),
        (["items", id], "GET" | "HEAD") => one(world, call, "sc_cat_item", id),
        (["items", id, "order_now"], "POST") => with_item(world, call, id, order_now),
        (["items", id, "add_to_cart"], "POST") => with_item(world, call, id, add_to_cart),
        (["cart"], "GET" | "HEAD") => show_cart(world, call),
        (["cart", "submit_order"], "POST") => submit_order(world, call),
        (["cart", id], "DELETE") => remove_from_cart(world, call, id),
        _ => api::method_not_supported(call),
    }
}

fn list(world: &World, call: &ApiCall<'_>, table: &str, conditions: &[(&str, &str)]) -> Reply {
    let page = Page::of(call);
    let holds = |record: &Record| {
        conditions.iter().all(|(name, value)| record.get(*name).is_some_and(|found| found == value))
    };
    let rows = world.database.rows(table).into_iter().filter(|(_, record)| holds(record));
    let shown: Value = rows.skip(page.offset).take(page.limit).map(|(_, record)| plain(record)).collect();
    render::result(call.format, StatusCode::OK, &shown)
}

/// `sysparm_text` searches names, `sysparm_category` is a category's `sys_id`.
fn items(world: &World, call: &ApiCall<'_>) -> Reply {
    let page = Page::of(call);
    let text = call.request.query_value("sysparm_text").unwrap_or_default().to_lowercase();
    let category = call.request.query_value("sysparm_category").unwrap_or_default();
    let field = |record: &Record, name: &str| record.get(name).cloned().unwrap_or_default();
    let rows = world.database.rows("sc_cat_item").into_iter().filter(|(_, record)| {
        field(record, "name").to_lowercase().contains(&text)
            && (category.is_empty() || field(record, "category") == category)
    });
    let shown: Value = rows.skip(page.offset).take(page.limit).map(|(_, record)| plain(record)).collect();
    render::result(call.format, StatusCode::OK, &shown)
}

fn one(world: &World, call: &ApiCall<'_>, table: &str, sys_id: &str) -> Reply {
    let Some((_, record)) = world.database.find(table, sys_id) else { return api::no_record(call) };
    render::result(call.format, StatusCode::OK, &plain(record))
}

/// The record as this API shows it: stored values, no links.
fn plain(record: &Record) -> Value {
    let hidden = |name: &str| name.starts_with("sys_") && name != "sys_id";
    let members = record.iter().filter(|(name, _)| !hidden(name));
    Value::Object(members.map(|(name, value)| (name.clone(), json!(value))).collect())
}

/// Runs an act on an existing item, with the quantity that the body names.
fn with_item(
    world: &mut World,
    call: &ApiCall<'_>,
    item: &str,
    act: fn(&mut World, &ApiCall<'_>, &str, u32) -> Result<Value, StoreRefusal>,
) -> Reply {
    if let Err(reply) = api::check_write_headers(call) {
        return *reply;
    }
    let body: Value = serde_json::from_slice(&call.request.body).unwrap_or_default();
    let quantity = match &body["sysparm_quantity"] {
        Value::String(text) => text.trim().parse().ok(),
        number => number.as_u64().and_then(|number| u32::try_from(number).ok()),
    };
    let Some(quantity) = quantity.filter(|quantity| (1..=QUANTITY_MAX).contains(quantity)) else {
        let message = "Invalid quantity value";
        return Reply::api_error(call.format, StatusCode::BAD_REQUEST, message, Some("sysparm_quantity"));
    };
    if world.database.find("sc_cat_item", item).is_none() {
        return api::no_record(call);
    }
    if table_api::is_denied(world, call, "sc_request") {
        return table_api::denied(call);
    }
    match act(world, call, item, quantity) {
        Ok(result) => render::result(call.format, StatusCode::OK, &result),
        Err(refusal) => table_api::not_stored(call, "sc_request", refusal),
    }
}

fn order_now(
    world: &mut World,
    call: &ApiCall<'_>,
    item: &str,
    quantity: u32,
) -> Result<Value, StoreRefusal> {
    order(world, call, &[(item.to_owned(), quantity.to_string())])
}

/// Makes one request with an item for each line.
fn order(world: &mut World, call: &ApiCall<'_>, lines: &[(String, String)]) -> Result<Value, StoreRefusal> {
    let request = record(&[("requested_for", &call.caller.sys_id), ("stage", "requested")]);
    let request_id = table_api::insert(world, call, "sc_request", request)?;
    for (item, quantity) in lines {
        let name = world.database.find("sc_cat_item", item).and_then(|(_, item)| item.get("name").cloned());
        let line = record(&[
            ("request", &request_id),
            ("quantity", quantity),
            ("stage", "waiting_for_approval"),
            ("short_description", &name.unwrap_or_default()),
        ]);
        table_api::insert(world, call, "sc_req_item", line)?;
    }
    let made = world.database.find("sc_request", &request_id);
    let number = made.and_then(|(_, request)| request.get("number").cloned()).unwrap_or_default();
    Ok(json!({
        "sys_id": request_id, "number": number, "request_number": number, "request_id": request_id,
        "table": "sc_request",
    }))
}

fn add_to_cart(
    world: &mut World,
    call: &ApiCall<'_>,
    item: &str,
    quantity: u32,
) -> Result<Value, StoreRefusal> {
    let cart = if let Some(cart) = cart_of(world, call) {
        cart
    } else {
        let cart = record(&[("name", "DEFAULT"), ("user", &call.caller.sys_id)]);
        table_api::insert(world, call, "sc_cart", cart)?
    };
    let line = record(&[("cart", &cart), ("cat_item", item), ("quantity", &quantity.to_string())]);
    table_api::insert(world, call, "sc_cart_item", line)?;
    Ok(cart_shown(world, Some(&cart)))
}

fn show_cart(world: &World, call: &ApiCall<'_>) -> Reply {
    let cart = cart_of(world, call);
    render::result(call.format, StatusCode::OK, &cart_shown(world, cart.as_deref()))
}

fn submit_order(world: &mut World, call: &ApiCall<'_>) -> Reply {
    let cart = cart_of(world, call);
    let lines = cart.map(|cart| cart_lines(world, &cart)).unwrap_or_default();
    if lines.is_empty() {
        let message = "Cart is empty";
        return Reply::api_error(call.format, StatusCode::BAD_REQUEST, message, None);
    }
    let ordered: Vec<_> = lines.iter().map(|line| (line.item.clone(), line.quantity.clone())).collect();
    match order(world, call, &ordered) {
        Ok(result) => {
            for line in lines {
                world.database.delete("sc_cart_item", &line.sys_id);
            }
            render::result(call.format, StatusCode::OK, &result)
        }
        Err(refusal) => table_api::not_stored(call, "sc_request", refusal),
    }
}

/// Only from the caller's own cart.
fn remove_from_cart(world: &mut World, call: &ApiCall<'_>, line: &str) -> Reply {
    let lines = cart_of(world, call).map(|cart| cart_lines(world, &cart)).unwrap_or_default();
    if !lines.iter().any(|own| own.sys_id == line) || !world.database.delete("sc_cart_item", line) {
        return api::no_record(call);
    }
    Reply::new(StatusCode::NO_CONTENT)
}

struct CartLine {
    sys_id: String,
    item: String,
    quantity: String,
}

/// `sys_id` of the caller's cart.
fn cart_of(world: &World, call: &ApiCall<'_>) -> Option<String> {
    let carts = world.database.rows("sc_cart");
    let is_own = |(_, cart): &&(_, &Record)| cart.get("user") == Some(&call.caller.sys_id);
    carts.iter().find(is_own).and_then(|(_, cart)| cart.get("sys_id").cloned())
}

fn cart_lines(world: &World, cart: &str) -> Vec<CartLine> {
    let text = |line: &Record, name: &str| line.get(name).cloned().unwrap_or_default();
    let lines = world.database.rows("sc_cart_item").into_iter();
    lines
        .filter(|(_, line)| line.get("cart").is_some_and(|found| found == cart))
        .map(|(_, line)| CartLine {
            sys_id: text(line, "sys_id"),
            item: text(line, "cat_item"),
            quantity: text(line, "quantity"),
        })
        .collect()
}

fn cart_shown(world: &World, cart: Option<&str>) -> Value {
    let Some(cart) = cart else { return json!({"cart_id": "", "items": []}) };
    let shown = |line: CartLine| {
        let item = world.database.find("sc_cat_item", &line.item);
        let name = item.and_then(|(_, item)| item.get("name").cloned()).unwrap_or_default();
        json!({
            "cart_item_id": line.sys_id, "catalog_item_id": line.item, "item_name": name,
            "quantity": line.quantity,
        })
    };
    json!({"cart_id": cart, "items": cart_lines(world, cart).into_iter().map(shown).collect::<Value>()})
}

const QUANTITY_MAX: u32 = 1_000;
