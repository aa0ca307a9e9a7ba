//! Records as the REST API shows them: stored and display values, reference links, JSON and XML.

use serde_json::{Map, Value, json};

use crate::message::{Format, Reply, escape};
use crate::tables::{Database, Field, FieldKind, Record, Table};

/// `sysparm_display_value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DisplayValue {
    False,
    True,
    All,
}

impl DisplayValue {
    pub(crate) fn parse(text: Option<&str>) -> Self {
        match text {
            Some("true") => Self::True,
            Some("all") => Self::All,
            Some(_) | None => Self::False,
        }
    }
}

/// How records are shown.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// `sysparm_fields`; empty = every field.
    pub(crate) fields: Vec<String>,
    pub(crate) display_value: DisplayValue,
    pub(crate) exclude_reference_link: bool,
    /// Origin of reference links.
    pub(crate) origin: String,
}

/// One record; fields that do not exist are left out.
pub(crate) fn record(database: &Database, table: &Table, record: &Record, view: &View) -> Map<String, Value> {
    let mut shown = Map::new();
    if view.fields.is_empty() {
        for name in record.keys() {
            show(database, table, record, view, name, &mut shown);
        }
    }
    for path in &view.fields {
        show(database, table, record, view, path, &mut shown);
    }
    shown
}

fn show(
    database: &Database,
    table: &Table,
    record: &Record,
    view: &View,
    path: &str,
    shown: &mut Map<String, Value>,
) {
    if let Some((field, stored)) = database.walk(table, record, path) {
        shown.insert(path.to_owned(), value(database, field, stored, view));
    }
}

fn value(database: &Database, field: &Field, stored: &str, view: &View) -> Value {
    let display = database.display_of(field, stored);
    let link = match &field.kind {
        FieldKind::Reference(target) if !stored.is_empty() && !view.exclude_reference_link => {
            Some(format!("{}/api/now/table/{target}/{stored}", view.origin))
        }
        FieldKind::NameIn(target) if !stored.is_empty() && !view.exclude_reference_link => {
            Some(format!("{}/api/now/table/{target}?name={stored}", view.origin))
        }
        _ => None,
    };
    match (view.display_value, link) {
        (DisplayValue::False, None) => json!(stored),
        (DisplayValue::False, Some(link)) => json!({"link": link, "value": stored}),
        (DisplayValue::True, None) => json!(display),
        (DisplayValue::True, Some(link)) => json!({"display_value": display, "link": link}),
        (DisplayValue::All, None) => json!({"display_value": display, "value": stored}),
        (DisplayValue::All, Some(link)) => json!({"display_value": display, "link": link, "value": stored}),
    }
}

/// `{"result": …}` or `<response><result>…`; a list makes one `<result>` per record.
pub(crate) fn result(format: Format, status: http::StatusCode, result: &Value) -> Reply {
    match format {
        Format::Json => Reply::json(status, &json!({ "result": result })),
        Format::Xml => {
            let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?><response>");
            match result {
                Value::Array(records) => {
                    for record in records {
                        element(&mut text, "result", record);
                    }
                }
                single => element(&mut text, "result", single),
            }
            text.push_str("</response>");
            Reply::new(status).typed("application/xml;charset=UTF-8", text)
        }
    }
}

fn element(text: &mut String, name: &str, value: &Value) {
    text.push('<');
    text.push_str(name);
    text.push('>');
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| element(text, name, value)),
        Value::Array(items) => items.iter().for_each(|item| element(text, "item", item)),
        Value::String(content) => text.push_str(&escape(content)),
        Value::Null => {}
        scalar @ (Value::Bool(_) | Value::Number(_)) => text.push_str(&scalar.to_string()),
    }
    text.push_str("</");
    text.push_str(name);
    text.push('>');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::SeedData;
    use crate::settings::UserSettings;

    const ABEL: &str = "62826bf03710200044e0bfc8bcbe5df1";

    #[track_caller]
    fn check(display_value: DisplayValue, exclude_reference_link: bool, path: &str, expected: &Value) {
        let database = SeedData::demo().build(&UserSettings::demo());
        let table = database.table("incident").unwrap();
        let row = Record::from([
            ("caller_id".to_owned(), ABEL.to_owned()),
            ("state".to_owned(), "2".to_owned()),
            ("assigned_to".to_owned(), String::new()),
        ]);
        let view = View {
            fields: vec![path.to_owned()],
            display_value,
            exclude_reference_link,
            origin: "http://sim".to_owned(),
        };
        let shown = record(&database, table, &row, &view);
        assert_eq!(shown.get(path), Some(expected), "{display_value:?} {path}");
    }

    #[test]
    fn values_are_shown_in_each_way() {
        let link = format!("http://sim/api/now/table/sys_user/{ABEL}");
        check(DisplayValue::False, false, "state", &json!("2"));
        check(DisplayValue::True, false, "state", &json!("In Progress"));
        check(DisplayValue::All, false, "state", &json!({"display_value": "In Progress", "value": "2"}));
        check(DisplayValue::False, false, "caller_id", &json!({"link": link, "value": ABEL}));
        check(DisplayValue::False, true, "caller_id", &json!(ABEL));
        check(DisplayValue::True, false, "caller_id", &json!({"display_value": "Abel Tuter", "link": link}));
        check(DisplayValue::True, true, "caller_id", &json!("Abel Tuter"));
        let all = json!({"display_value": "Abel Tuter", "link": link, "value": ABEL});
        check(DisplayValue::All, false, "caller_id", &all);
        check(DisplayValue::All, true, "caller_id", &json!({"display_value": "Abel Tuter", "value": ABEL}));
        check(DisplayValue::False, false, "assigned_to", &json!(""));
        check(DisplayValue::False, false, "caller_id.user_name", &json!("abel.tuter"));
    }

    #[test]
    fn xml_escapes_and_repeats() {
        let records = json!([{"a": "1 < 2"}, {"a": {"link": "x&y", "value": "3"}}]);
        let reply = result(Format::Xml, http::StatusCode::OK, &records);
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        assert!(text.ends_with(
            "<response><result><a>1 &lt; 2</a></result><result><a><link>x&amp;y</link><value>3</value></a></result>\
             </response>"
        ));
    }
}
