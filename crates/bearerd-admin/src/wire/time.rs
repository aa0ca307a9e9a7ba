//! Instants as RFC 3339 text.

use bearerd_model::UnixTime;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use utoipa::ToSchema;

/// An instant in UTC (RFC 3339).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, format = DateTime, example = "2026-12-31T23:59:59Z")]
pub struct WireTime(pub Timestamp);

impl From<UnixTime> for WireTime {
    fn from(time: UnixTime) -> Self {
        let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        Self(Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX))
    }
}

impl From<WireTime> for UnixTime {
    /// What lies before 1970 becomes 1970: in the past either way.
    fn from(time: WireTime) -> Self {
        Self::from_millis(u64::try_from(time.0.as_millisecond()).unwrap_or(0))
    }
}

impl Serialize for WireTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for WireTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Timestamp::deserialize(deserializer)
            .map(Self)
            .map_err(|_| D::Error::custom("write it as an RFC 3339 time, such as 2026-12-31T23:59:59Z"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_and_round_trip() {
        let time = UnixTime::from_millis(1_795_291_200_250);
        let text = serde_json::to_string(&WireTime::from(time)).unwrap();
        assert_eq!(text, "\"2026-11-21T20:00:00.25Z\"");
        assert_eq!(UnixTime::from(serde_json::from_str::<WireTime>(&text).unwrap()), time);
        assert_eq!(
            UnixTime::from(serde_json::from_str::<WireTime>("\"1901-01-01T00:00:00Z\"").unwrap()).as_secs(),
            0
        );
        assert_eq!(WireTime::from(UnixTime::from_millis(u64::MAX)).0, Timestamp::MAX);
        for bad in ["\"tomorrow\"", "\"2026-11-21\"", "17", "null"] {
            assert!(serde_json::from_str::<WireTime>(bad).is_err(), "{bad}");
        }
    }
}
