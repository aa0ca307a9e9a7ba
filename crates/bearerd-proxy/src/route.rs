//! The path of a call, parsed to segments by the grammar of its family and never repaired: what does not match to the
//! last byte is refused (P-10, P-11). A path that passes has exactly one spelling, so that what goes upstream, its part
//! from `/api` on, is what would be rebuilt from the segments.
//!
//! | family | paths, below `/api/now[/v1\|/v2]` |
//! |---|---|
//! | `table` | `/table/{table}[/{sys_id}]` |
//! | `stats` | `/stats/{table}` |
//! | `import` | `/import/{table}[/{sys_id}\|/insertMultiple]` |
//! | `attachment` | `/attachment`, `/attachment/{sys_id}[/file]`, `/attachment/file`, `/attachment/upload` |
//! | `now/{name}` | `/{name}` and plain segments |
//! | `{scope}` | `/api/{scope}` and plain segments |

use std::borrow::Cow;

use crate::error::{Code, Fault};

/// `[/c/{connection}]/api/…`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route<'a> {
    /// As the path names it; not yet known to be an id.
    pub(crate) connection: Option<&'a str>,
    /// The path at the instance.
    pub(crate) path: &'a str,
    pub(crate) family: Family<'a>,
    /// The table that the path names.
    pub(crate) table: Option<&'a str>,
    /// A single record, or something beneath it, is addressed.
    pub(crate) item: bool,
}

/// What kind of API is called. Policies open families by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family<'a> {
    Table,
    Stats,
    Attachment,
    Import,
    /// Any other API under `/api/now`. `batch` and `tinyurl` are among them, and no policy can open these.
    Now(&'a str),
    /// The APIs of a scope: `/api/sn_sc`.
    Scope(&'a str),
}

impl<'a> Family<'a> {
    /// As policies name it.
    pub(crate) fn name(self) -> Cow<'a, str> {
        match self {
            Self::Table => "table".into(),
            Self::Stats => "stats".into(),
            Self::Attachment => "attachment".into(),
            Self::Import => "import".into(),
            Self::Now(name) => format!("now/{name}").into(),
            Self::Scope(name) => name.into(),
        }
    }
}

/// The path is in none of the grammars. Nothing of it is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PathRefused;

impl From<PathRefused> for Fault {
    fn from(_: PathRefused) -> Self {
        Self::new(Code::PathRefused)
    }
}

impl<'a> Route<'a> {
    pub(crate) fn parse(path: &'a str) -> Result<Self, PathRefused> {
        let mut segments = Segments(path.strip_prefix('/'));
        let mut first = segments.next()?;
        let (mut connection, mut at_instance) = (None, path);
        if first == "c" {
            connection = Some(segments.matching(CONNECTION_BYTES_MAX, is_id)?);
            let rest = segments.0.ok_or(PathRefused)?;
            at_instance = &path[path.len() - rest.len() - 1..];
            first = segments.next()?;
        }
        if first != "api" {
            return Err(PathRefused);
        }
        let scope = segments.matching(SEGMENT_BYTES_MAX, |byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
        })?;
        // What is a family below `/api/now` is no scope: a policy that opens the one would open the other.
        if matches!(scope, "table" | "stats" | "attachment" | "import") {
            return Err(PathRefused);
        }
        let (family, table, item) = if scope == "now" {
            segments.now()?
        } else {
            (Family::Scope(scope), None, segments.plain_rest()?)
        };
        Ok(Self { connection, path: at_instance, family, table, item })
    }
}

/// What is left of the path; `None` after the last segment.
struct Segments<'a>(Option<&'a str>);

/// Family, table, and whether a single record is addressed.
type Below<'a> = (Family<'a>, Option<&'a str>, bool);

impl<'a> Segments<'a> {
    fn next(&mut self) -> Result<&'a str, PathRefused> {
        let rest = self.0.ok_or(PathRefused)?;
        let (segment, rest) = match rest.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (rest, None),
        };
        self.0 = rest;
        if segment.is_empty() { Err(PathRefused) } else { Ok(segment) }
    }

    fn matching(&mut self, len_max: usize, admitted: fn(u8) -> bool) -> Result<&'a str, PathRefused> {
        let segment = self.next()?;
        if segment.len() <= len_max && segment.bytes().all(admitted) { Ok(segment) } else { Err(PathRefused) }
    }

    fn table(&mut self) -> Result<&'a str, PathRefused> {
        self.matching(TABLE_BYTES_MAX, |byte| byte.is_ascii_alphanumeric() || byte == b'_')
    }

    /// A `sys_id`, if the path goes on.
    fn sys_id(&mut self) -> Result<Option<&'a str>, PathRefused> {
        match self.0 {
            Some(_) => self.matching(SYS_ID_BYTES_MAX, is_id).map(Some),
            None => Ok(None),
        }
    }

    fn end(&self) -> Result<(), PathRefused> {
        if self.0.is_some() { Err(PathRefused) } else { Ok(()) }
    }

    /// What is below `/api/now`.
    fn now(&mut self) -> Result<Below<'a>, PathRefused> {
        let mut family = self.plain()?;
        if matches!(family, "v1" | "v2") {
            family = self.plain()?;
        }
        let below = match family {
            "table" | "import" => {
                let (table, sys_id) = (self.table()?, self.sys_id()?);
                let family = if family == "table" { Family::Table } else { Family::Import };
                (family, Some(table), sys_id.is_some())
            }
            "stats" => (Family::Stats, Some(self.table()?), false),
            "attachment" => (Family::Attachment, None, self.attachment()?),
            other => (Family::Now(other), None, self.plain_rest()?),
        };
        self.end()?;
        Ok(below)
    }

    /// `true`: one attachment, or an upload, is addressed.
    fn attachment(&mut self) -> Result<bool, PathRefused> {
        let Some(which) = self.sys_id()? else { return Ok(false) };
        if self.0.is_some() && (matches!(which, "file" | "upload") || self.next()? != "file") {
            return Err(PathRefused);
        }
        Ok(true)
    }

    /// A segment that means itself and nothing else, whatever reads it.
    fn plain(&mut self) -> Result<&'a str, PathRefused> {
        let segment = self.matching(SEGMENT_BYTES_MAX, |byte| is_id(byte) || byte == b'.')?;
        let dotted = segment.starts_with('.') || segment.ends_with('.') || segment.contains("..");
        // ServiceNow's pages and processors end so, wherever they stand.
        let page = segment.len() >= 3 && segment.as_bytes()[segment.len() - 3..].eq_ignore_ascii_case(b".do");
        if dotted || page { Err(PathRefused) } else { Ok(segment) }
    }

    /// Reads the path to its end; `true` if there was anything.
    fn plain_rest(&mut self) -> Result<bool, PathRefused> {
        let any = self.0.is_some();
        while self.0.is_some() {
            self.plain()?;
        }
        Ok(any)
    }
}

/// What connection ids and `sys_id`s are written in.
fn is_id(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// The longest connection id.
const CONNECTION_BYTES_MAX: usize = 63;
/// ServiceNow's own limit on a table's name.
const TABLE_BYTES_MAX: usize = 80;
const SYS_ID_BYTES_MAX: usize = 32;
/// Longer than any name in ServiceNow's documented APIs.
const SEGMENT_BYTES_MAX: usize = 80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn the_table_family_is_parsed_to_its_segments() {
        for (prefix, connection, rest, table, item) in [
            ("", None, "/api/now/table/incident", "incident", false),
            ("", None, "/api/now/v1/table/incident", "incident", false),
            ("", None, "/api/now/v2/table/u_x9/abc", "u_x9", true),
            ("/c/hr-prod_2", Some("hr-prod_2"), "/api/now/table/Incident", "Incident", false),
            ("/c/c", Some("c"), "/api/now/v2/table/table/table", "table", true),
            ("", None, "/api/now/table/v1", "v1", false),
        ] {
            let path = format!("{prefix}{rest}");
            let expected = Route { connection, path: rest, family: Family::Table, table: Some(table), item };
            assert_eq!(Route::parse(&path), Ok(expected), "{path}");
        }
        let path = format!("/api/now/table/{}/{ID}", "t".repeat(80));
        assert!(Route::parse(&path).is_ok());
    }

    #[test]
    fn each_family_has_a_grammar_and_a_name() {
        for (path, name, table, item) in [
            ("/api/now/stats/incident", "stats", Some("incident"), false),
            ("/api/now/attachment", "attachment", None, false),
            ("/api/now/v1/attachment/x/file", "attachment", None, true),
            ("/api/now/attachment/file", "attachment", None, true),
            ("/api/now/attachment/upload", "attachment", None, true),
            ("/c/hr/api/now/import/u_x", "import", Some("u_x"), false),
            ("/api/now/import/u_x/insertMultiple", "import", Some("u_x"), true),
            ("/api/now/v1/batch", "now/batch", None, false),
            ("/api/now/tinyurl", "now/tinyurl", None, false),
            ("/api/now/v3/table/incident", "now/v3", None, true),
            ("/api/now/Table/incident", "now/Table", None, true),
            ("/api/now/doc/file.json", "now/doc", None, true),
            ("/api/sn_sc/v1/servicecatalog/items", "sn_sc", None, true),
            ("/api/x_scope/y", "x_scope", None, true),
        ] {
            let route = Route::parse(path).unwrap();
            assert_eq!(
                (route.family.name().as_ref(), route.table, route.item),
                (name, table, item),
                "{path}"
            );
        }
        for path in [
            "/api/now/stats",
            "/api/now/stats/incident/x",
            "/api/now/import",
            "/api/now/import/u_x/a/b",
            "/api/now/attachment/x/other",
            "/api/now/attachment/x/file/y",
            "/api/now/attachment/upload/file",
            "/api/now/attachment/file/file",
            "/api/now/doc/oauth_token.do",
            "/api/x_scope/login.DO",
            "/api/table/incident",
            "/api/stats/incident",
            "/api/attachment/x/file",
            "/api/import/u_x",
            "/api/x_scope/a..b",
            "/api/x_scope/.hidden",
        ] {
            assert_eq!(Route::parse(path), Err(PathRefused), "{path}");
        }
    }

    const TRICKS: [&str; 67] = [
        "..",
        ".",
        "...",
        "%2e",
        "%2e%2e",
        "%2E%2e",
        ".%2e",
        "%252e%252e",
        "%2f",
        "%2F",
        "%252f",
        "%5c",
        "\\",
        "..\\",
        "..;",
        ";",
        ";x=y",
        ";jsessionid=1",
        "%3b",
        "%3bx=y",
        "%00",
        "%0a",
        "%0d%0a",
        "%20",
        "%09",
        "+",
        "%c0%ae",
        "%c0%ae%c0%ae",
        "%e0%80%ae",
        "%c1%9c",
        "%c0%af",
        "%ef%bc%8f",
        "%u002e",
        "%u2215",
        "%",
        "%2",
        "%zz",
        "é",
        "．．",
        "／",
        "＼",
        "\u{2024}",
        "\u{202e}",
        "~",
        "!",
        "$",
        "&",
        "'",
        "(",
        "*",
        ",",
        "=",
        ":",
        "@",
        "|",
        "^",
        "\"",
        "{",
        "}",
        "`",
        "[",
        "]",
        "<",
        "\u{7f}",
        "\t",
        " ",
        "",
    ];

    const WHOLE_PATHS: [&str; 53] = [
        "",
        "/",
        "//",
        "api/now/table/incident",
        "//api/now/table/incident",
        "/api//now/table/incident",
        "/api",
        "/api/",
        "/api/now",
        "/api/now/",
        "/api/now/v1",
        "/api/now/v1/",
        "/api/now/table",
        "/api/now/table/",
        "/api/now/v2/table",
        "/api/now/table/incident/",
        "/api/now/table//x",
        "/api/now/table/incident//",
        "/api/now/table/incident.",
        "/api/now/table/incident..",
        "/api/now/table/incident/x/y",
        "/api/now/table/incident.do",
        "/API/now/table/incident",
        "/api/Now/table/incident",
        "/api/now/V1/x/..",
        "/api/now/../../oauth_token.do",
        "/api/now/table/../../../login.do",
        "/login.do",
        "/stats.do",
        "/sys_user.do",
        "/oauth_token.do",
        "/oauth_auth.do",
        "/incident.do",
        "/xmlhttp.do",
        "/api/now.do/table/incident",
        "/apinow/table/incident",
        "/c",
        "/c/",
        "/c/hr",
        "/c/hr/",
        "/c//api/now/table/incident",
        "/c/hr/c/hr/api/now/table/incident",
        "/c/hr/login.do",
        "/c/hr//api/now/table/incident",
        "/c/a.b/api/now/table/incident",
        "/x/api/now/table/incident",
        "/C/hr/api/now/table/incident",
        "/api/now/v1/v2/table/incident/x/../y",
        "*",
        "?",
        "#",
        "/api/now/table/incident/0123456789abcdef0123456789abcdef0",
        "http://x/api/now/table/incident",
    ];

    /// P-10, P-11: every trick, at every place of a good path.
    #[test]
    fn no_trick_passes() {
        let mut tried = 0;
        for trick in TRICKS {
            for path in [
                format!("/{trick}/api/now/table/incident"),
                format!("/api/{trick}/now/table/incident"),
                format!("/api/now/{trick}/table/incident"),
                format!("/api/now/table/{trick}/incident"),
                format!("/api/now/table/incident/{trick}"),
                format!("/api/now/table/incident{trick}/"),
                format!("/api/now/table/incident/{trick}/x"),
                format!("/api/now/table/incident/x/{trick}"),
                format!("/c/{trick}/api/now/table/incident"),
                format!("/c/a{trick}/{trick}/api/now/table/incident"),
                format!("/api/now/stats/{trick}/x"),
                format!("/api/now/{trick}stats{trick}/"),
            ] {
                assert_eq!(Route::parse(&path), Err(PathRefused), "{path}");
                tried += 1;
            }
            if !trick.is_empty() && trick != "." && trick != ".." && trick != "..." {
                assert_eq!(
                    Route::parse(&format!("/api/now/table/inc{trick}ident")),
                    Err(PathRefused),
                    "{trick}"
                );
                assert_eq!(
                    Route::parse(&format!("/api/now/table/incident/a{trick}b")),
                    Err(PathRefused),
                    "{trick}"
                );
                tried += 2;
            }
        }
        for path in WHOLE_PATHS {
            assert_eq!(Route::parse(path), Err(PathRefused), "{path}");
            tried += 1;
        }
        let too_long = format!("/api/now/table/{}", "t".repeat(81));
        assert_eq!(Route::parse(&too_long), Err(PathRefused));
        let too_long = format!("/c/{}/api/now/table/incident", "c".repeat(64));
        assert_eq!(Route::parse(&too_long), Err(PathRefused));
        assert!(tried > 500, "{tried}");
    }

    proptest! {
        /// Whatever passes is the connection's prefix and a path that holds nothing but the grammar; a table call is
        /// rebuilt to the same bytes.
        #[test]
        fn what_passes_has_one_spelling(
            path in prop_oneof![
                "\\PC{0,60}",
                "(/c/[a-z.%]{0,4})?/api/now(/v[12])?/table/[a-zA-Z_.%;/-]{0,12}(/[a-z0-9./%]{0,6})?",
                "(/c/[a-z]{1,4})?/api/(now/)?(v1/)?(stats|import|attachment|batch|sn_sc)(/[a-z0-9._%;-]{0,6}){0,3}",
            ],
        ) {
            fuzzing::path(path.as_bytes());
        }
    }
}
