//! The Aggregate API, `/api/now/stats/{table}`: counts, sums, averages and extremes, grouped and filtered.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::api::{self, ApiCall};
use crate::message::Reply;
use crate::render::{self, DisplayValue};
use crate::table_api;
use crate::tables::{Database, Record, Table};
use crate::world::World;

type Row<'w> = (&'w Table, &'w Record);

/// Answers `GET /api/now/stats/{table}`.
pub(crate) fn answer(world: &World, call: &ApiCall<'_>, table: &str) -> Reply {
    if !matches!(call.method, Method::GET | Method::HEAD) {
        return api::method_not_supported(call);
    }
    if world.database.table(table).is_none() {
        return table_api::invalid_table(call, table);
    }
    if table_api::is_denied(world, call, table) {
        return table_api::denied(call);
    }
    let rows = table_api::selected(world, call, table);
    let asked = Asked::of(call);
    if asked.group_by.is_empty() {
        let result = json!({"stats": asked.figures(&world.database, &rows)});
        return render::result(call.format, StatusCode::OK, &result);
    }
    let mut groups: BTreeMap<Vec<&str>, Vec<Row<'_>>> = BTreeMap::new();
    for (store, record) in rows {
        let value = |path: &String| world.database.value(store, record, path).unwrap_or_default();
        groups.entry(asked.group_by.iter().map(value).collect()).or_default().push((store, record));
    }
    let kept = groups.into_iter().filter(|(_, rows)| asked.keeps(&world.database, rows));
    let shown: Value = kept.map(|(_, rows)| asked.group(&world.database, &rows)).collect();
    render::result(call.format, StatusCode::OK, &shown)
}

/// What the parameters ask for. A field that does not exist gives no figure, as an invalid condition gives none.
struct Asked {
    count: bool,
    averages: Vec<String>,
    sums: Vec<String>,
    minima: Vec<String>,
    maxima: Vec<String>,
    group_by: Vec<String>,
    having: Vec<Having>,
    display_value: DisplayValue,
}

impl Asked {
    fn of(call: &ApiCall<'_>) -> Self {
        let value = |name: &str| call.request.query_value(name).unwrap_or_default();
        let list = |name: &str| {
            let text = value(name);
            let fields = text.split(',').map(str::trim).filter(|field| !field.is_empty());
            fields.map(str::to_owned).collect::<Vec<_>>()
        };
        Self {
            count: table_api::flag(call, "sysparm_count"),
            averages: list("sysparm_avg_fields"),
            sums: list("sysparm_sum_fields"),
            minima: list("sysparm_min_fields"),
            maxima: list("sysparm_max_fields"),
            group_by: list("sysparm_group_by"),
            having: value("sysparm_having").split(',').filter_map(Having::parse).collect(),
            display_value: DisplayValue::parse(Some(&value("sysparm_display_value"))),
        }
    }

    fn keeps(&self, database: &Database, rows: &[Row<'_>]) -> bool {
        self.having.iter().all(|having| having.holds(database, rows))
    }

    fn figures(&self, database: &Database, rows: &[Row<'_>]) -> Value {
        let mut figures = Map::new();
        if self.count {
            figures.insert("count".to_owned(), json!(rows.len().to_string()));
        }
        for (name, paths) in
            [("avg", &self.averages), ("sum", &self.sums), ("min", &self.minima), ("max", &self.maxima)]
        {
            let of_field = |path: &String| Some((path.clone(), json!(figure(database, rows, name, path)?)));
            let members: Map<_, _> = paths.iter().filter_map(of_field).collect();
            if !members.is_empty() {
                figures.insert(name.to_owned(), Value::Object(members));
            }
        }
        Value::Object(figures)
    }

    fn group(&self, database: &Database, rows: &[Row<'_>]) -> Value {
        let field = |path: &String| {
            let first = rows.first().and_then(|(store, record)| database.walk(store, record, path));
            let (stored, display) =
                first.map_or(("", ""), |(field, value)| (value, database.display_of(field, value)));
            match self.display_value {
                DisplayValue::False => json!({"field": path, "value": stored}),
                DisplayValue::True => json!({"field": path, "value": display}),
                DisplayValue::All => json!({"field": path, "value": stored, "display_value": display}),
            }
        };
        let fields: Value = self.group_by.iter().map(field).collect();
        json!({"stats": self.figures(database, rows), "groupby_fields": fields})
    }
}

/// One condition on groups: `count^state^>^5`.
struct Having {
    aggregate: String,
    field: String,
    operator: String,
    value: f64,
}

impl Having {
    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('^').collect();
        let [aggregate, field, operator, value] = parts.as_slice() else { return None };
        let owned = |text: &str| text.trim().to_owned();
        Some(Self {
            aggregate: owned(aggregate),
            field: owned(field),
            operator: owned(operator),
            value: value.trim().parse().ok()?,
        })
    }

    fn holds(&self, database: &Database, rows: &[Row<'_>]) -> bool {
        let figure = figure(database, rows, &self.aggregate, &self.field);
        let Some(found) = figure.and_then(|text| text.parse::<f64>().ok()) else { return false };
        let Some(order) = found.partial_cmp(&self.value) else { return false };
        match self.operator.as_str() {
            "=" => order == Ordering::Equal,
            "!=" => order != Ordering::Equal,
            ">" => order == Ordering::Greater,
            "<" => order == Ordering::Less,
            ">=" => order != Ordering::Less,
            "<=" => order != Ordering::Greater,
            _ => false,
        }
    }
}

/// One aggregate over one field; `None` if the field is none, or has nothing to aggregate.
fn figure(database: &Database, rows: &[Row<'_>], aggregate: &str, path: &str) -> Option<String> {
    let (table, _) = rows.first()?;
    database.field_at(table, path)?;
    let values = || rows.iter().filter_map(|(store, record)| database.value(store, record, path));
    let filled = || values().filter(|value| !value.is_empty());
    let numbers = || filled().filter_map(|value| value.parse::<f64>().ok());
    match aggregate {
        "count" => Some(rows.len().to_string()),
        "sum" => Some(numbers().sum::<f64>().to_string()),
        "avg" => {
            let count = u32::try_from(numbers().count()).ok().filter(|count| *count > 0)?;
            Some(format!("{:.4}", numbers().sum::<f64>() / f64::from(count)))
        }
        "min" => filled().min_by(|one, other| compare(one, other)).map(str::to_owned),
        "max" => filled().max_by(|one, other| compare(one, other)).map(str::to_owned),
        _ => None,
    }
}

/// Numbers by value, all else as text.
fn compare(one: &str, other: &str) -> Ordering {
    match (one.parse::<f64>(), other.parse::<f64>()) {
        (Ok(one), Ok(other)) => one.total_cmp(&other),
        _ => one.cmp(other),
    }
}
