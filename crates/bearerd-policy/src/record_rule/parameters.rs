//! The parameters of a list call that a record rule lets through, and how they are written for the instance: each at
//! most once, and everything but unreserved characters percent-encoded, so that there is one way to take them apart.

use std::fmt::Write as _;

use super::{Excerpt, QueryRefused};

/// A parameter that is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parameter {
    Query,
    Fields,
    Limit,
    Offset,
    DisplayValue,
    ExcludeReferenceLink,
    NoCount,
    SuppressPaginationHeader,
}

/// What a caller gave, percent-decoded: each parameter at most once.
#[derive(Debug, Default)]
pub(super) struct Parameters([Option<String>; Parameter::ALL.len()]);

impl Parameter {
    const ALL: [Self; 8] = [
        Self::Query,
        Self::Fields,
        Self::Limit,
        Self::Offset,
        Self::DisplayValue,
        Self::ExcludeReferenceLink,
        Self::NoCount,
        Self::SuppressPaginationHeader,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Query => "sysparm_query",
            Self::Fields => "sysparm_fields",
            Self::Limit => "sysparm_limit",
            Self::Offset => "sysparm_offset",
            Self::DisplayValue => "sysparm_display_value",
            Self::ExcludeReferenceLink => "sysparm_exclude_reference_link",
            Self::NoCount => "sysparm_no_count",
            Self::SuppressPaginationHeader => "sysparm_suppress_pagination_header",
        }
    }

    fn parse(name: &str) -> Result<Self, QueryRefused> {
        if let Some(parameter) = Self::ALL.into_iter().find(|parameter| parameter.name() == name) {
            return Ok(parameter);
        }
        if let Some(meant) =
            Self::ALL.into_iter().find(|parameter| parameter.name().eq_ignore_ascii_case(name))
        {
            return Err(QueryRefused::ParameterCase(meant.name()));
        }
        let is_parameter = name.get(..SYSPARM.len()).is_some_and(|start| start.eq_ignore_ascii_case(SYSPARM));
        let refused = if is_parameter { QueryRefused::ParameterUnknown } else { QueryRefused::BareField };
        Err(refused(Excerpt::of(name)))
    }
}

impl Parameters {
    /// # Errors
    /// [`QueryRefused`] for what is no well-formed query, or holds anything but known parameters, each once.
    pub(super) fn parse(query: &str) -> Result<Self, QueryRefused> {
        if query.len() > QUERY_BYTES_MAX {
            return Err(QueryRefused::TooLong);
        }
        // Some take ';' for '&'. '#' ends a query, and what is not visible ASCII is not part of one (RFC 3986 §3.4).
        if query.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b';' || byte == b'#') {
            return Err(QueryRefused::RawCharacter);
        }
        let mut given = Self::default();
        if query.is_empty() {
            return Ok(given);
        }
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').ok_or(QueryRefused::NotPairs)?;
            let parameter = Parameter::parse(&decode(name)?)?;
            let place = &mut given.0[parameter as usize];
            if place.is_some() {
                return Err(QueryRefused::ParameterTwice(parameter.name()));
            }
            *place = Some(decode(value)?);
        }
        Ok(given)
    }

    pub(super) fn get(&self, parameter: Parameter) -> Option<&str> {
        self.0[parameter as usize].as_deref()
    }

    /// The value of a parameter that takes one of a few words.
    pub(super) fn choice(&self, parameter: Parameter) -> Result<Option<&'static str>, QueryRefused> {
        let Some(given) = self.get(parameter) else { return Ok(None) };
        let (admitted, expected): (&[&str], _) = match parameter {
            Parameter::DisplayValue => (&["true", "false", "all"], "true, false or all"),
            _ => (&["true", "false"], "true or false"),
        };
        match admitted.iter().find(|word| **word == given) {
            Some(word) => Ok(Some(word)),
            None => Err(QueryRefused::ParameterValue { parameter: parameter.name(), expected }),
        }
    }
}

/// A query as it goes to the instance.
#[derive(Debug, Default)]
pub(super) struct QueryBuilder(String);

impl QueryBuilder {
    pub(super) fn add(&mut self, parameter: Parameter, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(parameter.name());
        self.0.push('=');
        encode(value, &mut self.0);
    }

    /// `None`: it became too long.
    pub(super) fn finish(self) -> Option<String> {
        (self.0.len() <= TARGET_QUERY_BYTES_MAX).then_some(self.0)
    }
}

/// Decodes as forms are (`+` is a blank), once.
fn decode(text: &str) -> Result<String, QueryRefused> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || bytes.next().and_then(hex_value).ok_or(QueryRefused::PercentEscape);
                digit()? << 4 | digit()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).map_err(|_| QueryRefused::NotUtf8)
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Percent-encodes all but the unreserved characters (RFC 3986 §2.3), in upper-case digits (§2.1).
fn encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            write!(into, "%{byte:02X}").expect("writing to a string does not fail");
        }
    }
}

const SYSPARM: &str = "sysparm_";
/// What the proxy door takes of a request target by default.
pub(super) const QUERY_BYTES_MAX: usize = 8 * 1024;
/// Encoding trebles what it has to escape, and the rule goes into each set. Instances take this much; one that did
/// not would refuse it, not shorten it.
const TARGET_QUERY_BYTES_MAX: usize = 32 * 1024;
