//! API families: which part of an instance's REST API a path lies in.

use std::{fmt, str::FromStr, sync::Arc};

/// `table`, `stats`, `attachment` and `import` under `/api/now/`; `now/NAME` for any further prefix there; and a scope
/// (`sn_sc`, `x_acme_app`) for `/api/SCOPE/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FamilyName(Arc<str>);

/// Why a text is no family that a rule can open. Never quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedFamily {
    #[error(
        "a family is table, stats, attachment, import, now/NAME for /api/now/NAME, or a scope such as sn_sc for \
         /api/sn_sc; a name is 1 to {NAME_BYTES_MAX} of a-z, 0-9 and '_'"
    )]
    NotAName,
    #[error("batch and tinyurl cannot be opened: they carry methods and paths in a body, past every rule")]
    CarriesPaths,
    #[error("table, stats, attachment and import are written without now/")]
    HasOwnName,
    #[error("a version is no family: leave it out, a family is open in every version")]
    Version,
    #[error("now is many families: write now/NAME for /api/now/NAME")]
    TooWide,
}

impl FamilyName {
    /// # Errors
    /// [`MalformedFamily`] if `text` is not in the grammar above, or names what no rule may open.
    pub fn parse(text: &str) -> Result<Self, MalformedFamily> {
        let (under_now, name) = match text.strip_prefix("now/") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(plain) {
            return Err(MalformedFamily::NotAName);
        }
        match name {
            "batch" | "tinyurl" => Err(MalformedFamily::CarriesPaths),
            _ if is_version(name) => Err(MalformedFamily::Version),
            "table" | "stats" | "attachment" | "import" if under_now => Err(MalformedFamily::HasOwnName),
            "now" if !under_now => Err(MalformedFamily::TooWide),
            _ => Ok(Self(text.into())),
        }
    }

    /// The one that a rule opens by default.
    pub fn table() -> Self {
        Self("table".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether its paths name a table, so that a rule's table set means something there.
    pub fn names_tables(&self) -> bool {
        matches!(self.as_str(), "table" | "stats" | "import")
    }
}

/// `v1`, `v2` and the like.
fn is_version(name: &str) -> bool {
    name.strip_prefix('v')
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What a table's name may have.
const NAME_BYTES_MAX: usize = 80;

impl fmt::Display for FamilyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FamilyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FamilyName({})", self.0)
    }
}

impl FromStr for FamilyName {
    type Err = MalformedFamily;
    fn from_str(text: &str) -> Result<Self, MalformedFamily> {
        Self::parse(text)
    }
}

impl serde::Serialize for FamilyName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for FamilyName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P-11: what is opened is opened by name; what carries paths in a body is not opened at all.
    #[test]
    fn a_family_is_one_part_of_the_api() {
        let longest = "x".repeat(80);
        for good in ["table", "stats", "attachment", "import", "now/ui", "now/v2x", "sn_sc", "x_1", &longest]
        {
            assert_eq!(FamilyName::parse(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", MalformedFamily::NotAName),
            ("now/", MalformedFamily::NotAName),
            ("/table", MalformedFamily::NotAName),
            ("Table", MalformedFamily::NotAName),
            ("now/now/ui", MalformedFamily::NotAName),
            ("sn_sc/x", MalformedFamily::NotAName),
            ("sn-sc", MalformedFamily::NotAName),
            ("..", MalformedFamily::NotAName),
            (&"x".repeat(81), MalformedFamily::NotAName),
            ("batch", MalformedFamily::CarriesPaths),
            ("now/batch", MalformedFamily::CarriesPaths),
            ("tinyurl", MalformedFamily::CarriesPaths),
            ("now/tinyurl", MalformedFamily::CarriesPaths),
            ("now/table", MalformedFamily::HasOwnName),
            ("now/stats", MalformedFamily::HasOwnName),
            ("now/attachment", MalformedFamily::HasOwnName),
            ("now/import", MalformedFamily::HasOwnName),
            ("v1", MalformedFamily::Version),
            ("now/v2", MalformedFamily::Version),
            ("v10", MalformedFamily::Version),
            ("now", MalformedFamily::TooWide),
        ] {
            assert_eq!(FamilyName::parse(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn only_some_families_name_a_table() {
        let names = |text: &str| FamilyName::parse(text).unwrap().names_tables();
        assert_eq!(FamilyName::table(), FamilyName::parse("table").unwrap());
        assert!(["table", "stats", "import"].into_iter().all(names));
        assert!(!["attachment", "now/ui", "sn_sc"].into_iter().any(names));
    }
}
