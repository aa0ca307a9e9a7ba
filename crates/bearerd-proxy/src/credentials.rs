//! The caller key of a call, in the four ways that ServiceNow clients send one: `Authorization: Bearer`, HTTP Basic
//! with the key as password, `X-API-Key`, `x-sn-apikey`.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, header};
use zeroize::Zeroizing;

use crate::{
    error::{Code, Fault},
    names,
};

/// A key as sent: a piece of a header, or decoded from one.
#[derive(Clone)]
pub(crate) enum Presented<'a> {
    Sent(&'a [u8]),
    Decoded(Zeroizing<Vec<u8>>),
}

impl Presented<'_> {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sent(key) => key,
            Self::Decoded(key) => key,
        }
    }
}

/// The one key that the call carries; the same key given twice is one.
pub(crate) fn presented(headers: &HeaderMap) -> Result<Presented<'_>, Fault> {
    let mut found: Option<Presented<'_>> = None;
    let authorization =
        headers.get_all(header::AUTHORIZATION).iter().map(|value| authorization(value.as_bytes()));
    let plain = [&names::X_API_KEY, &names::X_SN_APIKEY]
        .into_iter()
        .flat_map(|name| headers.get_all(name))
        .map(|value| Ok(Presented::Sent(value.as_bytes().trim_ascii())));
    for key in authorization.chain(plain) {
        let key = key?;
        match &found {
            None => found = Some(key),
            Some(earlier) if earlier.as_bytes() == key.as_bytes() => {}
            Some(_) => return Err(Fault::new(Code::KeyAmbiguous)),
        }
    }
    found.ok_or_else(|| Fault::new(Code::CallerKeyMissing))
}

/// RFC 6750 §2.1 or RFC 7617 §2; scheme names in any case.
fn authorization(value: &[u8]) -> Result<Presented<'_>, Fault> {
    let value = value.trim_ascii();
    let end = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
    let (scheme, rest) = (&value[..end], value[end..].trim_ascii_start());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Ok(Presented::Sent(rest));
    }
    let invalid = |detail: &'static str| Fault::new(Code::CallerKeyInvalid).detail(detail);
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return Err(invalid("Authorization is neither Bearer nor Basic."));
    }
    let malformed = || invalid("The Basic credentials are not base64 of user:password.");
    if rest.len() > BASIC_BYTES_MAX {
        return Err(malformed());
    }
    let decoded = Zeroizing::new(STANDARD.decode(rest).map_err(|_| malformed())?);
    let colon = decoded.iter().position(|byte| *byte == b':').ok_or_else(malformed)?;
    Ok(Presented::Decoded(Zeroizing::new(decoded[colon + 1..].to_vec())))
}

/// Room for a user name of 255 bytes beside the key.
const BASIC_BYTES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn outcome(headers: &[(&str, &str)]) -> String {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect();
        match presented(&headers) {
            Ok(key) => String::from_utf8(key.as_bytes().to_vec()).unwrap(),
            Err(fault) => fault.code.name().to_owned(),
        }
    }

    fn basic(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    /// clients.md: the key as Bearer, as x-sn-apikey, as X-API-Key, as Basic password.
    #[test]
    fn a_key_is_found_in_four_places_and_counts_once() {
        for (headers, expected) in [
            (&[][..], "caller_key_missing"),
            (&[("authorization", "Bearer K")], "K"),
            (&[("authorization", "bEARER   K ")], "K"),
            (&[("x-api-key", "K")], "K"),
            (&[("x-sn-apikey", " K")], "K"),
            (&[("authorization", &basic("user:K"))], "K"),
            (&[("authorization", &basic(":K:x"))], "K:x"),
            (&[("authorization", "Bearer K"), ("x-api-key", "K"), ("x-sn-apikey", "K")], "K"),
            (&[("authorization", &basic("me:K")), ("x-api-key", "K")], "K"),
            (&[("authorization", "Bearer K"), ("x-api-key", "L")], "key_ambiguous"),
            (&[("authorization", "Bearer K"), ("authorization", "Bearer L")], "key_ambiguous"),
            (&[("x-api-key", "K"), ("x-api-key", "L")], "key_ambiguous"),
            (&[("x-api-key", "K"), ("x-sn-apikey", "")], "key_ambiguous"),
            (&[("authorization", &basic("u:K")), ("authorization", &basic("u:L"))], "key_ambiguous"),
            (&[("authorization", "Bearer")], ""),
            (&[("authorization", "Digest x")], "caller_key_invalid"),
            (&[("authorization", "Basic !")], "caller_key_invalid"),
            (&[("authorization", &basic("no colon"))], "caller_key_invalid"),
            (&[("authorization", &basic(&"x".repeat(600)))], "caller_key_invalid"),
            (&[("cookie", "K"), ("proxy-authorization", "Bearer K")], "caller_key_missing"),
        ] {
            assert_eq!(outcome(headers), expected, "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn any_value_is_a_key_or_a_fault(value in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = authorization(&value);
        }
    }
}
