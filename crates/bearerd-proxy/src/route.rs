//! The path of a call, parsed to segments by the grammar of its family and never repaired: what does not match to the
//! last byte is refused (P-10, P-11). A path that passes has exactly one spelling, so that what goes upstream can be
//! rebuilt from the segments.

use crate::error::{Code, Fault};

/// `[/c/{connection}]/api/now[/v1|/v2]/table/{table}[/{sys_id}]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route<'a> {
    /// As the path names it; not yet known to be an id.
    pub(crate) connection: Option<&'a str>,
    pub(crate) version: Option<&'a str>,
    pub(crate) target: Target<'a>,
}

/// What is called, under `/api/now[/v1|/v2]/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    Table {
        table: &'a str,
        sys_id: Option<&'a str>,
    },
    /// A family that no policy opens yet, by name; the rest of the path is harmless but unread.
    Closed {
        family: &'a str,
    },
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
        let connection = if first == "c" {
            let connection = segments.matching(63, |byte| byte.is_ascii_alphanumeric() || dash(byte))?;
            first = segments.next()?;
            Some(connection)
        } else {
            None
        };
        if first != "api" || segments.next()? != "now" {
            return Err(PathRefused);
        }
        let mut family = segments.next()?;
        let version = matches!(family, "v1" | "v2").then_some(family);
        if version.is_some() {
            family = segments.next()?;
        }
        let target = if family == "table" { segments.table()? } else { segments.closed(family)? };
        Ok(Self { connection, version, target })
    }
}

/// What is left of the path; `None` after the last segment.
struct Segments<'a>(Option<&'a str>);

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

    fn table(mut self) -> Result<Target<'a>, PathRefused> {
        let table = self.matching(80, |byte| byte.is_ascii_alphanumeric() || byte == b'_')?;
        let sys_id = match self.0 {
            Some(_) => Some(self.matching(32, |byte| byte.is_ascii_alphanumeric() || dash(byte))?),
            None => None,
        };
        if self.0.is_some() { Err(PathRefused) } else { Ok(Target::Table { table, sys_id }) }
    }

    /// Names the family only if the whole path is plain, so that a trick is a trick and not a closed family.
    fn closed(mut self, family: &'a str) -> Result<Target<'a>, PathRefused> {
        let plain = |segment: &str| {
            segment.len() <= 80
                && !segment.ends_with('.')
                && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || dash(byte) || byte == b'.')
        };
        if !plain(family) || family.contains('.') {
            return Err(PathRefused);
        }
        while self.0.is_some() {
            if !plain(self.next()?) {
                return Err(PathRefused);
            }
        }
        Ok(Target::Closed { family })
    }
}

fn dash(byte: u8) -> bool {
    matches!(byte, b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn the_table_family_is_parsed_to_its_segments() {
        let table = |connection, version, table, sys_id| {
            Ok(Route { connection, version, target: Target::Table { table, sys_id } })
        };
        for (path, expected) in [
            ("/api/now/table/incident", table(None, None, "incident", None)),
            ("/api/now/v1/table/incident", table(None, Some("v1"), "incident", None)),
            ("/api/now/v2/table/u_x9/abc", table(None, Some("v2"), "u_x9", Some("abc"))),
            ("/c/hr-prod_2/api/now/table/Incident", table(Some("hr-prod_2"), None, "Incident", None)),
            ("/c/c/api/now/v2/table/table/table", table(Some("c"), Some("v2"), "table", Some("table"))),
            ("/api/now/table/v1", table(None, None, "v1", None)),
        ] {
            assert_eq!(Route::parse(path), expected, "{path}");
        }
        let path = format!("/api/now/table/{}/{ID}", "t".repeat(80));
        assert!(Route::parse(&path).is_ok());
    }

    #[test]
    fn other_families_are_closed_by_name() {
        for (path, family) in [
            ("/api/now/stats/incident", "stats"),
            ("/api/now/v1/attachment/x/file", "attachment"),
            ("/api/now/v1/batch", "batch"),
            ("/api/now/tinyurl", "tinyurl"),
            ("/c/hr/api/now/import/u_x", "import"),
            ("/api/now/v3/table/incident", "v3"),
            ("/api/now/Table/incident", "Table"),
            ("/api/now/doc/file.json", "doc"),
        ] {
            let target = Route::parse(path).map(|route| route.target);
            assert_eq!(target, Ok(Target::Closed { family }), "{path}");
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

    const WHOLE_PATHS: [&str; 56] = [
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
        "/api/sn_sc/servicecatalog/items",
        "/api/x_scope/y",
        "/api/nowx/table/incident",
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
        /// Whatever passes as a table call is rebuilt to the same bytes, and these hold nothing but the grammar.
        #[test]
        fn what_passes_has_one_spelling(
            path in prop_oneof!["\\PC{0,60}", "(/c/[a-z.%]{0,4})?/api/now(/v[12])?/table/[a-zA-Z_.%;/-]{0,12}(/[a-z0-9./%]{0,6})?"],
        ) {
            if let Ok(Route { connection, version, target: Target::Table { table, sys_id } }) = Route::parse(&path) {
                let segment = |text: Option<&str>| text.map(|text| format!("/{text}")).unwrap_or_default();
                let prefix = connection.map(|connection| format!("/c/{connection}")).unwrap_or_default();
                let rebuilt = format!("{prefix}/api/now{}/table/{table}{}", segment(version), segment(sys_id));
                prop_assert_eq!(&rebuilt, &path);
                prop_assert!(!path.contains(['.', '%', ';', '\\', '?', '#']) && !path.contains("//"));
            }
        }
    }
}
