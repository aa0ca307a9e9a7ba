//! Names of records. An id is chosen by an operator (connections, integrations, policies, profiles) or made by us
//! (caller keys); it is not a secret, and its alphabet is safe in a header, a path segment and a store key.

use std::{fmt, str::FromStr, sync::Arc};

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a {kind} is 1 to {max} characters of a-z, 0-9, '-' and '_', beginning with a letter or digit",
    max = ID_BYTES_MAX
)]
pub struct MalformedId {
    kind: &'static str,
}

/// Longest id, in bytes: one DNS label, which also bounds header and key sizes.
const ID_BYTES_MAX: usize = 63;

fn is_id(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    first
        && text.len() <= ID_BYTES_MAX
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// # Errors
            /// [`MalformedId`] if `text` is not 1–63 of `a-z`, `0-9`, `-`, `_`, starting with a letter or digit.
            pub fn parse(text: &str) -> Result<Self, MalformedId> {
                if is_id(text) { Ok(Self(text.into())) } else { Err(MalformedId { kind: $kind }) }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), &self.0)
            }
        }

        impl FromStr for $name {
            type Err = MalformedId;
            fn from_str(text: &str) -> Result<Self, MalformedId> {
                Self::parse(text)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

id! {
    /// Our OAuth client as registered at one instance.
    IntegrationId, "integration id"
}
id! {
    /// One grant held under one integration.
    ConnectionId, "connection id"
}
id! {
    /// Grant type and scopes under an integration; every integration has [`ProfileName::default`].
    ProfileName, "profile name"
}
id! {
    /// What a caller may do with which connections.
    PolicyId, "policy id"
}
id! {
    /// The public part of a caller key.
    CallerKeyId, "caller key id"
}

impl Default for ProfileName {
    fn default() -> Self {
        Self("default".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_safe_in_headers_paths_and_store_keys() {
        for good in ["a", "0", "hr-prod_2", &"x".repeat(63)] {
            assert_eq!(ConnectionId::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "_a", "A", "a/b", "a.b", "a b", "ä", "a\n", "{a}", "a:b", &"x".repeat(64)] {
            assert!(ConnectionId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
