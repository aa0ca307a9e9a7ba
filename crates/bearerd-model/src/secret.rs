//! Values that must not leave. `Debug` is redacted; `Display`, `Serialize` and `PartialEq` are absent, so that a
//! secret cannot be printed, stored in the clear or compared in variable time by accident. Memory is wiped on drop.

use std::fmt;

use http::HeaderValue;
use zeroize::Zeroizing;

/// Why a text is not a secret of the wanted kind. Never quotes the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedSecret {
    #[error("it is empty")]
    Empty,
    #[error("it holds a character outside visible ASCII")]
    NotVisible,
    #[error("it is longer than {max} bytes")]
    TooLong { max: usize },
}

/// Longest token or client secret, in bytes: ServiceNow's JWT-format tokens are a few KB.
const SECRET_BYTES_MAX: usize = 16 * 1024;

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(Zeroizing<String>);

        impl $name {
            /// # Errors
            /// [`MalformedSecret`] if `raw` is empty, longer than 16 KiB, or holds a byte outside `VSCHAR`
            /// (RFC 6749 §A). `raw` is wiped either way.
            pub fn parse(raw: String) -> Result<Self, MalformedSecret> {
                let raw = Zeroizing::new(raw);
                if raw.is_empty() {
                    return Err(MalformedSecret::Empty);
                }
                if raw.len() > SECRET_BYTES_MAX {
                    return Err(MalformedSecret::TooLong { max: SECRET_BYTES_MAX });
                }
                if !raw.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) {
                    return Err(MalformedSecret::NotVisible);
                }
                Ok(Self(raw))
            }

            /// The text itself. Each use is a place to look at in review: a request body, a header, a seal.
            pub fn expose(&self) -> &str {
                &self.0
            }

            /// Compares in constant time (for equal lengths).
            pub fn matches(&self, other: &Self) -> bool {
                subtle::ConstantTimeEq::ct_eq(self.0.as_bytes(), other.0.as_bytes()).into()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

secret! {
    /// An access token (RFC 6749 §1.4).
    AccessToken
}
secret! {
    /// A refresh token (RFC 6749 §1.5).
    RefreshToken
}
secret! {
    /// Our client secret at one instance (RFC 6749 §2.3.1).
    ClientSecret
}
secret! {
    /// An authorization code (RFC 6749 §1.3.1).
    AuthorizationCode
}
secret! {
    /// The `code_verifier` of one consent (RFC 7636 §4.1).
    PkceVerifier
}
secret! {
    /// Any other text that must not be shown: an API key as presented, a `state`, a cookie value.
    SecretText
}

impl AccessToken {
    /// The `Authorization` value (RFC 6750 §2.1), marked sensitive for logs and header compression.
    pub fn to_bearer_header(&self) -> HeaderValue {
        let text = Zeroizing::new(format!("Bearer {}", self.0.as_str()));
        let mut value = HeaderValue::from_str(&text).expect("parse() admits visible ASCII only");
        value.set_sensitive(true);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// S-09: a secret does not print itself.
    #[test]
    fn secrets_are_redacted_and_checked() {
        let token = AccessToken::parse("canary".to_owned()).unwrap();
        assert_eq!(format!("{token:?}"), "AccessToken(redacted)");
        assert!(!format!("{:?}", token.to_bearer_header()).contains("canary"));
        assert_eq!(AccessToken::parse(String::new()).unwrap_err(), MalformedSecret::Empty);
        assert_eq!(AccessToken::parse("a\r\nb".to_owned()).unwrap_err(), MalformedSecret::NotVisible);
        assert!(AccessToken::parse("x".repeat(SECRET_BYTES_MAX + 1)).is_err());
    }
}
