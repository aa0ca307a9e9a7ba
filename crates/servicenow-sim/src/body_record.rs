//! The record in the body of a write, from JSON or XML. Nested values are flattened the way the REST API reads them:
//! `{"value": …}` counts as its value.

use serde_json::Value;

use crate::tables::{FieldKind, Record, Table};

/// Reads a record.
///
/// # Errors
/// What is wrong with the body, in words for the caller.
pub(crate) fn parse(media_type: Option<&str>, body: &[u8]) -> Result<Record, &'static str> {
    if media_type.is_some_and(|media_type| media_type.ends_with("xml")) {
        let text = std::str::from_utf8(body).map_err(|_| "The payload is not valid XML.")?;
        return parse_xml(text).ok_or("The payload is not valid XML.");
    }
    let Ok(Value::Object(members)) = serde_json::from_slice(body) else {
        return Err("The payload is not valid JSON.");
    };
    Ok(flatten(members))
}

/// Reads `{"records": [{…}, …]}`; `None` if the body is not that.
pub(crate) fn parse_many(body: &[u8]) -> Option<Vec<Record>> {
    let Ok(Value::Object(mut members)) = serde_json::from_slice(body) else { return None };
    let Some(Value::Array(records)) = members.remove("records") else { return None };
    let read = |record| match record {
        Value::Object(members) => Some(flatten(members)),
        _ => None,
    };
    records.into_iter().map(read).collect()
}

/// Replaces labels of choices by their stored values.
pub(crate) fn labels_to_values(table: &Table, record: &mut Record) {
    for (name, value) in record {
        if let Some(FieldKind::Choice(choices)) = table.field(name).map(|field| &field.kind)
            && let Some((stored, _)) = choices.iter().find(|(_, label)| label == value)
        {
            value.clone_from(stored);
        }
    }
}

fn flatten(members: serde_json::Map<String, Value>) -> Record {
    members.into_iter().filter_map(|(name, value)| Some((name, text_of(value)?))).collect()
}

fn text_of(value: Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::String(text) => Some(text),
        scalar @ (Value::Bool(_) | Value::Number(_)) => Some(scalar.to_string()),
        Value::Object(mut members) => members.remove("value").and_then(text_of),
        Value::Array(_) => None,
    }
}

/// `<request><entry><field>text</field>…</entry></request>`, or the fields right under the root. Attributes,
/// comments and deeper elements are not needed for records and make the body invalid.
fn parse_xml(text: &str) -> Option<Record> {
    let text = text.trim();
    let text = if text.starts_with("<?") { text.split_once("?>")?.1.trim() } else { text };
    let (_, mut fields, rest) = element(text)?;
    if !rest.trim().is_empty() {
        return None;
    }
    if let Some(("entry" | "record", inner, rest)) = element(fields.trim())
        && rest.trim().is_empty()
    {
        fields = inner;
    }
    let mut record = Record::new();
    let mut rest = fields.trim();
    while !rest.is_empty() {
        let (name, content, after) = element(rest)?;
        if content.contains('<') {
            return None;
        }
        record.insert(name.to_owned(), unescape(content));
        rest = after.trim();
    }
    Some(record)
}

/// Name, content and what follows the element that `text` starts with.
fn element(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = text.strip_prefix('<')?.split_once('>')?;
    if let Some(name) = name.strip_suffix('/') {
        return is_name(name.trim()).then_some((name.trim(), "", rest));
    }
    if !is_name(name) {
        return None;
    }
    let (content, rest) = rest.split_once(&format!("</{name}>"))?;
    Some((name, content, rest))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&#39;", "'")
        .replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const JSON: Option<&str> = Some("application/json");
    const XML: Option<&str> = Some("application/xml");

    #[test]
    fn json_is_flattened() {
        let body = br#"{"a":"x","b":1,"c":true,"d":null,"e":{"value":"y"},"f":[1],"g":{"z":1}}"#;
        let record = parse(JSON, body).unwrap();
        let expected = [("a", "x"), ("b", "1"), ("c", "true"), ("d", ""), ("e", "y")];
        assert_eq!(record, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        for wrong in ["", "[]", "{", "\"a\"", "nonsense"] {
            assert!(parse(JSON, wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn xml_is_read() {
        let body = "<?xml version=\"1.0\"?><request><entry><a>1 &lt; 2</a> <b/></entry></request>";
        let record = parse(XML, body.as_bytes()).unwrap();
        assert_eq!(record.get("a").map(String::as_str), Some("1 < 2"));
        assert_eq!(record.get("b").map(String::as_str), Some(""));
        for wrong in ["", "<", "<a>", "<a></b>", "<a><b>", "<a><b><c>1</c></b><d>", "x", "<?"] {
            assert!(parse(XML, wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn bodies_never_panic(text in "[<>/a&;\"?é ]{0,60}", bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(XML, text.as_bytes());
            let _ = parse(XML, &bytes);
            let _ = parse(JSON, &bytes);
        }
    }
}
