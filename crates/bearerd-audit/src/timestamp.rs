//! RFC 3339 in UTC with milliseconds. Most records begin in the second of the one before, whose text is kept.

use bearerd_model::UnixTime;
use jiff::{Timestamp, tz::Offset};

/// The text of the last second written.
#[derive(Debug)]
pub(crate) struct TimestampText {
    secs: u64,
    /// `2026-11-28T19:27:22.`
    text: [u8; SECOND_LEN],
}

impl Default for TimestampText {
    fn default() -> Self {
        Self { secs: 0, text: *b"1970-01-01T00:00:00." }
    }
}

impl TimestampText {
    /// `2026-11-28T19:27:22.042Z`. Times after year 9999 stay at its end.
    pub(crate) fn of(&mut self, time: UnixTime) -> [u8; TIMESTAMP_LEN] {
        let millis = time.as_millis().min(MILLIS_MAX);
        let (secs, fraction) = (millis / 1_000, millis % 1_000);
        if secs != self.secs {
            *self = Self { secs, text: second(secs) };
        }
        let mut text = [b'Z'; TIMESTAMP_LEN];
        text[..SECOND_LEN].copy_from_slice(&self.text);
        digits(&mut text[SECOND_LEN..TIMESTAMP_LEN - 1], fraction);
        text
    }
}

fn second(secs: u64) -> [u8; SECOND_LEN] {
    let time =
        i64::try_from(secs).ok().and_then(|secs| Timestamp::from_second(secs).ok()).unwrap_or_default();
    let time = Offset::UTC.to_datetime(time);
    let mut text = *b"0000-00-00T00:00:00.";
    digits(&mut text[..4], time.year().unsigned_abs().into());
    for (place, number) in
        [(5, time.month()), (8, time.day()), (11, time.hour()), (14, time.minute()), (17, time.second())]
    {
        digits(&mut text[place..place + 2], number.unsigned_abs().into());
    }
    text
}

/// Fills `place` with the last digits of `number`.
fn digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

pub(crate) const TIMESTAMP_LEN: usize = 24;
const SECOND_LEN: usize = 20;
/// 9999-12-30T22:00:00.999Z: the last second that jiff has.
const MILLIS_MAX: u64 = 253_402_207_200_999;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &mut TimestampText, millis: u64) -> String {
        String::from_utf8(text.of(UnixTime::from_millis(millis)).to_vec()).unwrap()
    }

    #[test]
    fn times_at_the_edges() {
        let mut text = TimestampText::default();
        for (millis, expected) in [
            (7, "1970-01-01T00:00:00.007Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (1_795_894_042_042, "2026-11-28T19:27:22.042Z"),
            (MILLIS_MAX, "9999-12-30T22:00:00.999Z"),
            (u64::MAX, "9999-12-30T22:00:00.999Z"),
            (0, "1970-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(shown(&mut text, millis), expected);
        }
    }

    proptest! {
        /// … and every other, in whatever order, as jiff says it.
        #[test]
        fn times_are_those_of_jiff(all in prop::collection::vec(0..=MILLIS_MAX, 1..20)) {
            let mut text = TimestampText::default();
            for millis in all {
                let time = Timestamp::from_millisecond(millis.cast_signed()).unwrap();
                prop_assert_eq!(shown(&mut text, millis), format!("{time:.3}"));
            }
        }
    }
}
