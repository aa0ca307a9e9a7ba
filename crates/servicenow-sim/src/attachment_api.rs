//! The Attachment API: list, describe, download, upload (raw body or multipart form), delete.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, LOCATION};
use serde_json::{Map, Value, json};

use crate::api::{self, ApiCall};
use crate::attachments::Attachment;
use crate::message::Reply;
use crate::pattern::GeneratedFile;
use crate::query::{Condition, Operator, Query};
use crate::render;
use crate::secrets;
use crate::tables::Record;
use crate::world::World;

/// What an upload says about itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Upload {
    table_name: String,
    table_sys_id: String,
    file_name: String,
    content_type: String,
    content: Bytes,
    /// Length of a content that is not held.
    unheld_bytes: Option<u64>,
}

/// `/api/now/attachment` and what is below it.
pub(crate) fn answer(world: &mut World, call: &ApiCall<'_>, rest: &[&str]) -> Reply {
    match (rest, call.method.as_str()) {
        ([], "GET" | "HEAD") => list(world, call),
        (["file"], "POST") => store(world, call, from_raw(call)),
        (["upload"], "POST") => match from_multipart(call.request.header(CONTENT_TYPE), &call.request.body) {
            Some(upload) => store(world, call, upload),
            None => bad_request(call, "The multipart form has no file"),
        },
        ([sys_id], "GET" | "HEAD") if GeneratedFile::of_sys_id(sys_id).is_some() => {
            let bytes = GeneratedFile::of_sys_id(sys_id).map_or(0, |file| file.bytes);
            render::result(call.format, StatusCode::OK, &describe_generated(sys_id, bytes))
        }
        ([sys_id], "GET" | "HEAD") => match world.attachments.get(sys_id) {
            Some(attachment) => render::result(call.format, StatusCode::OK, &describe(attachment)),
            None => api::no_record(call),
        },
        ([sys_id, "file"], "GET" | "HEAD") => download(world, call, sys_id),
        ([sys_id], "DELETE") if world.attachments.remove(sys_id) => Reply::new(StatusCode::NO_CONTENT),
        ([_], "DELETE") => api::no_record(call),
        _ => api::method_not_supported(call),
    }
}

fn list(world: &World, call: &ApiCall<'_>) -> Reply {
    let query = Query::parse(&call.request.query_value("sysparm_query").unwrap_or_default());
    let shown: Vec<Value> =
        world.attachments.list().filter(|found| selects(&query, &found.record)).map(describe).collect();
    let total = shown.len();
    render::result(call.format, StatusCode::OK, &Value::Array(shown))
        .with(api::total_count(), &total.to_string())
}

/// Equality conditions only: those are what clients send here.
fn selects(query: &Query, record: &Record) -> bool {
    let holds = |condition: &Condition| match condition {
        Condition::Test { field, operator: Operator::Equal, value } => record.get(field) == Some(value),
        Condition::Test { .. } | Condition::Invalid => true,
    };
    query.groups.is_empty()
        || query.groups.iter().any(|group| group.all.iter().all(|any| any.iter().any(holds)))
}

fn describe(attachment: &Attachment) -> Value {
    let members = attachment.record.iter().map(|(name, value)| (name.clone(), json!(value)));
    Value::Object(members.collect::<Map<_, _>>())
}

fn describe_generated(sys_id: &str, bytes: u64) -> Value {
    json!({
        "sys_id": sys_id, "file_name": "generated.bin", "content_type": "application/octet-stream",
        "size_bytes": bytes.to_string(),
    })
}

fn download(world: &World, call: &ApiCall<'_>, sys_id: &str) -> Reply {
    if let Some(file) = GeneratedFile::of_sys_id(sys_id) {
        let reply = Reply { pattern: Some(file), ..Reply::new(StatusCode::OK) };
        return reply
            .with(CONTENT_TYPE, "application/octet-stream")
            .with(CONTENT_DISPOSITION, "attachment; filename=\"generated.bin\"");
    }
    let found = world.attachments.get(sys_id).filter(|attachment| !attachment.is_unheld);
    let Some(attachment) = found else { return api::no_record(call) };
    let mut reply = Reply::new(StatusCode::OK).with(CONTENT_TYPE, &attachment.content_type);
    reply.body = attachment.content.clone();
    let name = attachment.record.get("file_name").map_or("", String::as_str).replace(['"', '\\'], "_");
    reply.with(CONTENT_DISPOSITION, &format!("attachment; filename=\"{name}\""))
}

fn store(world: &mut World, call: &ApiCall<'_>, upload: Upload) -> Reply {
    let parent = world.database.find(&upload.table_name, &upload.table_sys_id);
    if upload.file_name.is_empty() || parent.is_none() {
        return bad_request(call, "table_name, table_sys_id and file_name must name a record and a file");
    }
    let held_bytes = u64::try_from(upload.content.len()).unwrap_or_default();
    let size_bytes = upload.unheld_bytes.unwrap_or(held_bytes);
    let sys_id = secrets::random_hex32();
    let link = format!("{}/api/now/attachment/{sys_id}", world.public_origin());
    let now = call.now.to_glide();
    let record: Record = [
        ("sys_id", sys_id.clone()),
        ("table_name", upload.table_name),
        ("table_sys_id", upload.table_sys_id),
        ("file_name", upload.file_name),
        ("content_type", upload.content_type.clone()),
        ("size_bytes", size_bytes.to_string()),
        ("download_link", format!("{link}/file")),
        ("sys_created_on", now.clone()),
        ("sys_updated_on", now),
        ("sys_created_by", call.caller.user_name.clone()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    let attachment = Attachment {
        record,
        content_type: upload.content_type,
        content: upload.content,
        is_unheld: upload.unheld_bytes.is_some(),
    };
    let shown = describe(&attachment);
    if !world.attachments.add(sys_id, attachment) {
        return bad_request(call, "The simulator's memory is full");
    }
    render::result(call.format, StatusCode::CREATED, &shown).with(LOCATION, &link)
}

fn from_raw(call: &ApiCall<'_>) -> Upload {
    let query = |name: &str| call.request.query_value(name).unwrap_or_default();
    Upload {
        table_name: query("table_name"),
        table_sys_id: query("table_sys_id"),
        file_name: query("file_name"),
        content_type: call.request.header(CONTENT_TYPE).unwrap_or("application/octet-stream").to_owned(),
        content: call.request.body.clone(),
        unheld_bytes: call.request.unheld_bytes,
    }
}

/// Reads `multipart/form-data` with the fields `table_name`, `table_sys_id` and one file.
fn from_multipart(content_type: Option<&str>, body: &Bytes) -> Option<Upload> {
    let boundary = content_type?.split_once("boundary=")?.1.split(';').next()?.trim().trim_matches('"');
    if boundary.is_empty() {
        return None;
    }
    let delimiter = format!("--{boundary}");
    let mut upload = Upload::default();
    let mut at = find(body, delimiter.as_bytes())? + delimiter.len();
    for _ in 0..PARTS_MAX {
        let rest = body.slice(at..);
        if rest.starts_with(b"--") {
            break;
        }
        let end = find(&rest, delimiter.as_bytes())?;
        read_part(&rest.slice(..end), &mut upload);
        at += end + delimiter.len();
    }
    (!upload.file_name.is_empty()).then_some(upload)
}

/// One part, from the line break after its delimiter to the one before the next.
fn read_part(part: &Bytes, upload: &mut Upload) -> Option<()> {
    let head_end = find(part, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&part[..head_end]).ok()?;
    let content = part.slice(head_end + 4..part.len().saturating_sub(2).max(head_end + 4));
    let text = || String::from_utf8_lossy(&content).into_owned();
    let line = |name: &str| {
        let is_named = |line: &&str| line.to_ascii_lowercase().starts_with(name);
        head.lines().find(is_named).and_then(|line| line.split_once(':')).map(|(_, value)| value.trim())
    };
    let disposition = line("content-disposition")?;
    let attribute = |name: &str| {
        let value =
            disposition.split(';').find_map(|item| item.trim().strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim_matches('"').to_owned())
    };
    if let Some(file_name) = attribute("filename") {
        upload.file_name = file_name;
        line("content-type").unwrap_or("application/octet-stream").clone_into(&mut upload.content_type);
        upload.content = content;
        return Some(());
    }
    match attribute("name").as_deref() {
        Some("table_name") => upload.table_name = text(),
        Some("table_sys_id") => upload.table_sys_id = text(),
        _ => {}
    }
    Some(())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn bad_request(call: &ApiCall<'_>, detail: &str) -> Reply {
    Reply::api_error(call.format, StatusCode::BAD_REQUEST, "Invalid attachment", Some(detail))
}

const PARTS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn multipart_is_read() {
        let body = "--B\r\nContent-Disposition: form-data; name=\"table_name\"\r\n\r\nincident\r\n\
                    --B\r\nContent-Disposition: form-data; name=\"table_sys_id\"\r\n\r\n1\r\n\
                    --B\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a.txt\"\r\n\
                    Content-Type: text/plain\r\n\r\nhello\r\n--B--\r\n";
        let upload = from_multipart(Some("multipart/form-data; boundary=B"), &Bytes::from(body)).unwrap();
        assert_eq!(
            upload,
            Upload {
                table_name: "incident".to_owned(),
                table_sys_id: "1".to_owned(),
                file_name: "a.txt".to_owned(),
                content_type: "text/plain".to_owned(),
                content: Bytes::from_static(b"hello"),
                unheld_bytes: None,
            }
        );
    }

    proptest! {
        #[test]
        fn multipart_never_panics(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "--B", "--", "\r\n", "\r\n\r\n", "Content-Disposition: form-data; name=\"x\"; filename=\"y\"", "z",
            ]), 0..20)) {
            let body = Bytes::from(pieces.concat());
            let _ = from_multipart(Some("multipart/form-data; boundary=B"), &body);
            let _ = from_multipart(Some("multipart/form-data; boundary="), &body);
            let _ = from_multipart(None, &body);
        }
    }
}
