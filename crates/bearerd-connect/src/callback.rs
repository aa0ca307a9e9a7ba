//! The query of the redirection endpoint (RFC 6749 §4.1.2, §4.1.2.1), read strictly: whoever holds the browser
//! writes it. Nothing here decides about trust; that is `bearerd-control`'s.

use bearerd_control::Callback;
use bearerd_model::SecretText;

/// The parameters that bearerd reads, each given at most once. Others are ignored (RFC 6749 §4.1.2).
#[derive(Debug, Default)]
pub(crate) struct CallbackQuery {
    state: Option<SecretText>,
    code: Option<SecretText>,
    error: Option<String>,
    error_description: Option<String>,
    iss: Option<String>,
}

/// The query is not an authorization response.
#[derive(Debug)]
pub(crate) struct MalformedQuery {
    /// Where exactly one was given: its flow is to be burnt, as after any other refusal.
    pub(crate) state: Option<SecretText>,
}

impl CallbackQuery {
    /// A parameter without a value counts as left out (RFC 6749 §3.1), but still as given for the rule against
    /// repeats.
    ///
    /// # Errors
    /// [`MalformedQuery`] if the query is too long, has a broken percent-escape, is not UTF-8, repeats a parameter
    /// that bearerd reads, brings both a code and an error or neither, or a `state` or `code` outside visible ASCII.
    pub(crate) fn parse(raw: &[u8]) -> Result<Self, MalformedQuery> {
        if raw.len() > QUERY_BYTES_MAX {
            return Err(MalformedQuery { state: None });
        }
        let mut slots: [Slot; NAMES.len()] = Default::default();
        let mut sound = true;
        for pair in raw.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let (name, value) = split_at_equals(pair);
            let (name, value) = (form_decoded(name), form_decoded(value));
            sound &= name.is_some() && value.is_some();
            if let Some(slot) = NAMES.iter().position(|known| name.as_deref() == Some(*known)) {
                sound &= slots[slot].fill(value);
            }
        }
        let [state, code, error, error_description, iss] = slots.map(Slot::into_value);
        let state = secret(state, &mut sound);
        let code = secret(code, &mut sound);
        if !sound || code.is_some() == error.is_some() {
            return Err(MalformedQuery { state });
        }
        Ok(Self { state, code, error, error_description, iss })
    }

    pub(crate) fn state(&self) -> Option<&SecretText> {
        self.state.as_ref()
    }

    pub(crate) fn into_callback(
        self,
        path_integration: Option<String>,
        cookies: Vec<(String, SecretText)>,
    ) -> Callback {
        let Self { state, code, error, error_description, iss } = self;
        Callback { path_integration, state, code, error, error_description, iss, cookies }
    }
}

impl MalformedQuery {
    /// The callback that burns the flow of a malformed query: with neither code nor error there is nothing to
    /// exchange. `None`: no flow can be told.
    pub(crate) fn into_burning_callback(
        self,
        path_integration: Option<String>,
        cookies: Vec<(String, SecretText)>,
    ) -> Option<Callback> {
        let state = Some(self.state?);
        Some(CallbackQuery { state, ..CallbackQuery::default() }.into_callback(path_integration, cookies))
    }
}

/// One parameter, while the query is read.
#[derive(Debug, Default)]
enum Slot {
    #[default]
    Absent,
    Once(String),
    /// Given twice, or in a broken encoding.
    Unusable,
}

impl Slot {
    /// Whether this was the first value. `None`: one that cannot be decoded.
    fn fill(&mut self, value: Option<String>) -> bool {
        let first = matches!(self, Self::Absent);
        *self = value.filter(|_| first).map_or(Self::Unusable, Self::Once);
        first
    }

    fn into_value(self) -> Option<String> {
        match self {
            Self::Once(value) if !value.is_empty() => Some(value),
            _ => None,
        }
    }
}

fn secret(value: Option<String>, sound: &mut bool) -> Option<SecretText> {
    let parsed = value.map(SecretText::parse).transpose();
    *sound &= parsed.is_ok();
    parsed.ok().flatten()
}

fn split_at_equals(pair: &[u8]) -> (&[u8], &[u8]) {
    match pair.iter().position(|byte| *byte == b'=') {
        Some(at) => (&pair[..at], &pair[at + 1..]),
        None => (pair, &[]),
    }
}

/// `application/x-www-form-urlencoded`, undone. `None`: a broken escape, or not UTF-8.
fn form_decoded(raw: &[u8]) -> Option<String> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match byte {
            b'+' => decoded.push(b' '),
            b'%' => {
                let [high, low, tail @ ..] = tail else { return None };
                decoded.push(hex_digit(*high)? << 4 | hex_digit(*low)?);
                rest = tail;
            }
            byte => decoded.push(*byte),
        }
    }
    String::from_utf8(decoded).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// In the order in which [`CallbackQuery::parse`] takes the slots apart.
const NAMES: [&str; 5] = ["state", "code", "error", "error_description", "iss"];

/// Longest query of a callback: a code in JWT format is about 2 KB, an error description a few hundred bytes.
const QUERY_BYTES_MAX: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing;

    fn parsed(raw: &str) -> CallbackQuery {
        CallbackQuery::parse(raw.as_bytes())
            .unwrap_or_else(|_| panic!("{raw:?} is an authorization response"))
    }

    #[test]
    fn an_authorization_response_is_read() {
        let query = parsed(
            "?x=1&code=a%2Bb&state=ab12&iss=https%3A%2F%2Fi&session_state=%e2%82%ac".get(1..).unwrap(),
        );
        assert_eq!(query.code.unwrap().expose(), "a+b");
        assert_eq!(query.state.unwrap().expose(), "ab12");
        assert_eq!(query.iss.unwrap(), "https://i");
        let query = parsed("error=access_denied&error_description=User+said+%22no%22&state=s&code=&iss=");
        assert_eq!(query.error.as_deref(), Some("access_denied"));
        assert_eq!(query.error_description.as_deref(), Some("User said \"no\""));
        assert!(query.code.is_none() && query.iss.is_none(), "an empty parameter counts as left out");
        assert!(parsed("code=c").state.is_none(), "a missing state is for the control to refuse");
    }

    /// O-10: repeats, contradictions, broken encodings; and which of them still name a flow to burn.
    #[test]
    fn a_malformed_query_is_refused() {
        let long = format!("state=s&code={}", "x".repeat(QUERY_BYTES_MAX));
        for (raw, burns) in [
            ("", false),
            ("state=s", true),
            ("state=s&code=", true),
            ("code=a&error=b&state=s", true),
            ("code=a&code=a&state=s", true),
            ("code=a&code=&state=s", true),
            ("error=a&error=b&state=s", true),
            ("error=a&error_description=b&error_description=b&state=s", true),
            ("code=a&state=s&iss=i&iss=i", true),
            ("code=a&state=s&state=s", false),
            ("code=a&state=s&state=", false),
            ("code=a&st%61te=s&state=t", false),
            ("code=%zz&state=s", true),
            ("code=a&state=s&x=%", true),
            ("code=a&state=s&x=%f", true),
            ("code=a&state=s&x=%ff%fe", true),
            ("error=%c3%28&state=s", true),
            ("code=a&state=%00", false),
            ("code=a%0d%0ab&state=s", true),
            ("code=%c3%a4&state=s", true),
            ("code=a&state=%", false),
            ("code=a&state=s&state=%", false),
            ("code=a&state=%ff&state=s", false),
            (&long, false),
        ] {
            let refused = CallbackQuery::parse(raw.as_bytes()).expect_err(raw);
            assert_eq!(refused.state.is_some(), burns, "{raw}");
        }
    }

    #[test]
    fn a_burning_callback_has_nothing_to_exchange() {
        let refused = CallbackQuery::parse(b"code=a&error=b&iss=i&state=s").unwrap_err();
        let callback = refused.into_burning_callback(Some("hr".to_owned()), Vec::new()).unwrap();
        assert_eq!(callback.state.unwrap().expose(), "s");
        assert!(callback.code.is_none() && callback.error.is_none() && callback.iss.is_none());
    }

    proptest! {
        /// O-10, O-32: no bytes make the parser panic, and a plain value comes back as it was sent.
        #[test]
        fn any_query_is_parsed_or_refused(raw in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzzing::callback(&raw);
        }

        #[test]
        fn near_queries_are_parsed_or_refused(raw in "((state|code|error|iss|x)=[a-z%+=0-9]{0,6}&?){0,8}") {
            fuzzing::callback(raw.as_bytes());
        }

        #[test]
        fn decoding_undoes_encoding(text in "\\PC{0,60}") {
            let encoded: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
            prop_assert_eq!(form_decoded(encoded.as_bytes()), Some(text));
        }
    }
}
