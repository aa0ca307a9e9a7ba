//! Secrets on their way in or out.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;
use zeroize::Zeroizing;

/// A secret in a message. Unlike the model's secrets it serialises, because being in a message is its purpose; each
/// message that has one says why. `Debug` is redacted, and a fault in reading one never quotes it.
#[derive(Clone, ToSchema)]
#[schema(value_type = String, format = Password)]
pub struct WireSecret(Zeroizing<String>);

impl WireSecret {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// A copy for the model's own secret types, which check and wipe it.
    pub(crate) fn to_text(&self) -> String {
        self.0.to_string()
    }
}

impl fmt::Debug for WireSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WireSecret(redacted)")
    }
}

impl Serialize for WireSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for WireSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)
            .map(Self::new)
            .map_err(|_| de::Error::custom("write it as a string"))
    }
}
